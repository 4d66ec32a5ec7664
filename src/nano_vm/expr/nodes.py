"""The tree of an expression, its JSON form, and its source form.

Three forms, one meaning: `parse` makes nodes from text, `to_ast`/`from_ast` translate them to and from the
JSON AST that is part of a program's hash (`spec/expressions.md`, "JSON AST"), `to_source` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from nano_vm.canonical import INT_MAX
from nano_vm.expr.errors import ExprError
from nano_vm.expr.limits import DEPTH_MAX, NODES_MAX, SOURCE_CHARS_MAX
from nano_vm.expr.reference import IS_NAME, IS_SEGMENT, Ref

__all__ = [
    "COMPARISONS",
    "And",
    "Compare",
    "IsNull",
    "ListOf",
    "Lit",
    "Node",
    "Not",
    "Or",
    "Ref",
    "Text",
    "from_ast",
    "null_tests",
    "ref_uses",
    "refs",
    "to_ast",
    "to_source",
]

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains")


class Lit(msgspec.Struct, frozen=True, gc=False):
    """A constant. A float with an integral value within ±(2^53-1) is held as an int."""

    value: bool | int | float | str | None
    offset: int = 0
    length: int = 0


class Text(msgspec.Struct, frozen=True):
    """A quoted string with at least one reference inside; literals are not empty and not adjacent."""

    parts: tuple[str | Ref, ...]
    offset: int = 0
    length: int = 0


class ListOf(msgspec.Struct, frozen=True):
    items: tuple[Node, ...]
    offset: int = 0
    length: int = 0


class Compare(msgspec.Struct, frozen=True):
    """`op` is one of `COMPARISONS`."""

    op: str
    left: Node
    right: Node
    offset: int = 0
    length: int = 0


class IsNull(msgspec.Struct, frozen=True):
    """`$x is null` (negated: `is not null`): the only place where a name may still be unassigned."""

    ref: Ref
    negated: bool = False
    offset: int = 0
    length: int = 0


class Not(msgspec.Struct, frozen=True):
    operand: Node
    offset: int = 0
    length: int = 0


class And(msgspec.Struct, frozen=True):
    """Two or more operands, evaluated left to right until one is false."""

    operands: tuple[Node, ...]
    offset: int = 0
    length: int = 0


class Or(msgspec.Struct, frozen=True):
    """Two or more operands, evaluated left to right until one is true."""

    operands: tuple[Node, ...]
    offset: int = 0
    length: int = 0


Node: TypeAlias = Lit | Ref | Text | ListOf | Compare | IsNull | Not | And | Or


def children(node: Node) -> tuple[Node, ...]:
    """The direct sub-expressions, in source order; references inside a `Text` are not among them."""
    match node:
        case Lit() | Ref() | Text():
            return ()
        case ListOf(items=items):
            return items
        case Compare(left=left, right=right):
            return (left, right)
        case IsNull(ref=ref):
            return (ref,)
        case Not(operand=operand):
            return (operand,)
        case And(operands=operands) | Or(operands=operands):
            return operands


def ref_uses(node: Node) -> tuple[tuple[Ref, bool], ...]:
    """Every reference in source order, each with whether it is the operand of `is null` / `is not null`."""
    return tuple(_uses(node))


def refs(node: Node) -> tuple[Ref, ...]:
    """Every reference of the expression in source order, repeated ones repeated."""
    return tuple(ref for ref, _ in _uses(node))


def null_tests(node: Node) -> tuple[Ref, ...]:
    """The references under `is null` / `is not null`: these may name what is not assigned yet."""
    return tuple(ref for ref, is_null_test in _uses(node) if is_null_test)


def _uses(node: Node) -> Iterator[tuple[Ref, bool]]:
    if isinstance(node, Ref):
        yield node, False
    elif isinstance(node, IsNull):
        yield node.ref, True
    elif isinstance(node, Text):
        for part in node.parts:
            if isinstance(part, Ref):
                yield part, False
    else:
        for child in children(node):
            yield from _uses(child)


# --- the JSON AST
# -----------------------------------------------------------------------------------------------


def to_ast(node: Node) -> list[Any]:
    """Returns the JSON AST, e.g. `["==", ["ref", "decision", []], ["lit", "yes"]]`, without offsets."""
    match node:
        case Lit(value=value):
            return ["lit", value]
        case Ref(name=name, path=path):
            return ["ref", name, list(path)]
        case Text(parts=parts):
            return ["text", *(to_ast(part) if isinstance(part, Ref) else part for part in parts)]
        case ListOf(items=items):
            return ["list", *map(to_ast, items)]
        case Compare(op=op, left=left, right=right):
            return [op, to_ast(left), to_ast(right)]
        case IsNull(ref=ref, negated=negated):
            return ["is not null" if negated else "is null", to_ast(ref)]
        case Not(operand=operand):
            return ["not", to_ast(operand)]
        case And(operands=operands):
            return ["and", *map(to_ast, operands)]
        case Or(operands=operands):
            return ["or", *map(to_ast, operands)]


def from_ast(ast: Any) -> Node:
    """Builds the tree of a JSON AST from any source, trusted or not.

    Raises:
        ExprError: `EXPR_AST` when it is not a well-formed AST, `EXPR_TOO_DEEP`, `EXPR_TOO_LONG` beyond
        `limits`.
    """
    return _AstReader().read(ast, 1)


class _AstReader:
    def __init__(self) -> None:
        self.nodes = 0
        self.chars = 0

    def read(self, ast: Any, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise ExprError("EXPR_TOO_DEEP", f"the expression is deeper than {DEPTH_MAX} levels")
        self.nodes += 1
        if self.nodes > NODES_MAX:
            raise ExprError("EXPR_TOO_LONG", f"the expression has more than {NODES_MAX} nodes")
        if not isinstance(ast, list) or not ast or not isinstance(ast[0], str):
            raise _bad_ast("a node is a list that begins with its operator")
        tag, count = ast[0], len(ast) - 1
        if tag == "lit" and count == 1:
            return Lit(self.literal(ast[1]))
        if tag == "ref" and count == 2:
            return self.reference(ast)
        if tag == "text":
            return self.text(ast[1:])
        if tag == "list":
            return ListOf(self.read_all(ast, depth))
        if tag in COMPARISONS and count == 2:
            return Compare(tag, self.read(ast[1], depth + 1), self.read(ast[2], depth + 1))
        if tag in ("is null", "is not null") and count == 1:
            ref = self.read(ast[1], depth + 1)
            if not isinstance(ref, Ref):
                raise _bad_ast(f"`{tag}` wants a reference")
            return IsNull(ref, tag == "is not null")
        if tag == "not" and count == 1:
            return Not(self.read(ast[1], depth + 1))
        if tag == "and" and count >= 2:
            return And(self.read_all(ast, depth))
        if tag == "or" and count >= 2:
            return Or(self.read_all(ast, depth))
        raise _bad_ast("unknown operator or wrong number of operands")

    def read_all(self, ast: list[Any], depth: int) -> tuple[Node, ...]:
        return tuple([self.read(ast[index], depth + 1) for index in range(1, len(ast))])

    def literal(self, value: Any) -> bool | int | float | str | None:
        kind = type(value)
        if kind is str:
            return self.string(value)
        if kind is float:
            if value != value or value in (float("inf"), float("-inf")):
                raise _bad_ast("a number is not finite")
            return plain_number(value)
        if kind is int and not -INT_MAX <= value <= INT_MAX:
            raise _bad_ast("an integer is beyond ±(2^53-1)")
        if value is None or kind is bool or kind is int:
            return value  # type: ignore[no-any-return]
        raise _bad_ast("a literal is null, a boolean, a number or a string")

    def string(self, value: Any) -> str:
        if type(value) is not str:
            raise _bad_ast("a string is missing")
        self.chars += len(value)
        if self.chars > SOURCE_CHARS_MAX:
            raise ExprError("EXPR_TOO_LONG", f"the expression holds more than {SOURCE_CHARS_MAX} characters")
        if has_surrogate(value):
            raise _bad_ast("a string holds an unpaired surrogate")
        return value

    def reference(self, ast: list[Any]) -> Ref:
        if len(ast) != 3 or type(ast[2]) is not list or len(ast[2]) > SOURCE_CHARS_MAX:
            raise _bad_ast("a reference is a name and a list of path segments")
        name = self.string(ast[1])
        path = tuple([self.string(segment) for segment in ast[2]])
        if not IS_NAME(name) or not all(map(IS_SEGMENT, path)):
            raise _bad_ast("a reference holds characters that are not allowed")
        return Ref(name, path)

    def text(self, parts: list[Any]) -> Text:
        read: list[str | Ref] = []
        for part in parts:
            self.nodes += 1
            if self.nodes > NODES_MAX:
                raise ExprError("EXPR_TOO_LONG", f"the expression has more than {NODES_MAX} nodes")
            if isinstance(part, list):
                if not part or part[0] != "ref":
                    raise _bad_ast("a text holds strings and references")
                read.append(self.reference(part))
            else:
                literal = self.string(part)
                if not literal or (read and isinstance(read[-1], str)):
                    raise _bad_ast("a text holds an empty string, or two strings side by side")
                read.append(literal)
        if not any(isinstance(part, Ref) for part in read):
            raise _bad_ast("a text without a reference is a literal")
        return Text(tuple(read))


def _bad_ast(why: str) -> ExprError:
    return ExprError("EXPR_AST", f"not an expression: {why}", help="see spec/expressions.md, JSON AST")


def plain_number(value: float) -> int | float:
    """The number as canonical bytes would give it back: integral values within ±(2^53-1) are ints."""
    return int(value) if value.is_integer() and -INT_MAX <= value <= INT_MAX else value


def has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


# --- source
# ---------------------------------------------------------------------------------------------------

_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t", "$": "$$"}
_WORDS = {None: "null", True: "true", False: "false"}
# A node is put in parentheses where a tighter one is wanted.
_OR, _AND, _NOT, _COMPARE, _OPERAND = range(5)


def to_source(node: Node) -> str:
    """Prints an expression so that parsing it gives the same AST."""
    return _print(node, _OR)


def _print(node: Node, wanted: int) -> str:
    match node:
        case Lit(value=str() as value):
            return f"'{_quoted(value)}'"
        case Lit(value=value):
            return _WORDS[value] if value is None or isinstance(value, bool) else repr(value)
        case Ref():
            return str(node)
        case Text(parts=parts):
            return "'" + "".join(_printed_part(part) for part in parts) + "'"
        case ListOf(items=items):
            return "[" + ", ".join(_print(item, _OPERAND) for item in items) + "]"
        case Compare(op=op, left=left, right=right):
            text, level = f"{_print(left, _OPERAND)} {op} {_print(right, _OPERAND)}", _COMPARE
        case IsNull(ref=ref, negated=negated):
            text, level = f"{ref} is {'not ' if negated else ''}null", _COMPARE
        case Not(operand=operand):
            text, level = f"not {_print(operand, _NOT)}", _NOT
        case And(operands=operands):
            text, level = " and ".join(_print(operand, _NOT) for operand in operands), _AND
        case Or(operands=operands):
            text, level = " or ".join(_print(operand, _AND) for operand in operands), _OR
    return text if level >= wanted else f"({text})"


def _printed_part(part: str | Ref) -> str:
    return "${" + ".".join((part.name, *part.path)) + "}" if isinstance(part, Ref) else _quoted(part)


def _quoted(text: str) -> str:
    return "".join(
        _ESCAPES.get(c, c if c.isprintable() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}") for c in text
    )
