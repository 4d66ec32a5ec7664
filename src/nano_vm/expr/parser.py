"""Recursive descent, one method per rule of the grammar in `spec/expressions.md`:

- or: `and ("or" and)*`
- and: `not ("and" not)*`
- not: `"not" not | comparison`
- comparison: `operand [operator operand | "is" ["not"] "null"]`
- operand: `reference | string | number | constant | "[" [operand ("," operand)*] "]" | "(" or ")"`
"""

from __future__ import annotations

from typing import NoReturn

from nano_vm.expr.errors import ExprError
from nano_vm.expr.lexer import Lexer, Token
from nano_vm.expr.limits import DEPTH_MAX, SOURCE_CHARS_MAX
from nano_vm.expr.nodes import And, Compare, IsNull, ListOf, Lit, Node, Not, Or, Text, children, has_surrogate
from nano_vm.expr.reference import Ref
from nano_vm.expr.refusals import refused_call, refused_operand_word, refused_operator_word

__all__ = ["parse"]

_CONSTANTS: dict[str, bool | None] = {
    "true": True,
    "false": False,
    "null": None,
    "True": True,
    "False": False,
    "None": None,
}
_SYMBOL_OPERATORS = frozenset({"==", "!=", "<", "<=", ">", ">="})
_NO_METHOD = "a value has no methods"


def parse(source: str) -> Node:
    """Parses a condition into its tree.

    Args:
        source: at most `limits.SOURCE_CHARS_MAX` characters.

    Raises:
        ExprError: one of the `EXPR_*` codes, with offset and length in `source` and what to write instead.
    """
    if type(source) is not str:
        raise ExprError("EXPR_SYNTAX", "an expression is a string", help="put the expression in quotes")
    if len(source) > SOURCE_CHARS_MAX:
        raise ExprError(
            "EXPR_TOO_LONG",
            f"an expression has at most {SOURCE_CHARS_MAX} characters",
            offset=SOURCE_CHARS_MAX,
            length=len(source) - SOURCE_CHARS_MAX,
            help="split it over several condition steps, or compute it in a tool step",
            facts={"limit": SOURCE_CHARS_MAX, "size": len(source)},
        )
    if has_surrogate(source):
        offset = next(i for i, char in enumerate(source) if "\ud800" <= char <= "\udfff")
        raise ExprError("EXPR_STRING", "an unpaired surrogate", offset=offset, length=1)
    parser = _Parser(source)
    node = parser.disjunction()
    parser.expect_end()
    _check_depth(node)
    return node


def _check_depth(root: Node) -> None:
    level: list[Node] = [root]
    for _ in range(DEPTH_MAX):
        level = [child for node in level for child in children(node)]
        if not level:
            return
    raise _too_deep(level[0].offset, level[0].length)


def _too_deep(offset: int, length: int) -> ExprError:
    return ExprError(
        "EXPR_TOO_DEEP",
        f"an expression is nested at most {DEPTH_MAX} levels deep",
        offset=offset,
        length=length,
        help="split it over several condition steps",
        facts={"limit": DEPTH_MAX},
    )


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.lexer = Lexer(source)
        self.token = self.lexer.next()
        self.end = 0  # where the last consumed token ended
        self.open = 0  # parentheses, lists and `not`s open here: bounds the recursion

    def advance(self) -> Token:
        token = self.token
        self.end = token.offset + token.length
        self.token = self.lexer.next()
        return token

    def is_word(self, word: str) -> bool:
        return self.token.kind == "word" and self.token.value == word

    def is_symbol(self, symbol: str) -> bool:
        return self.token.kind == "symbol" and self.token.value == symbol

    def enter(self, token: Token) -> None:
        self.open += 1
        if self.open > DEPTH_MAX:
            raise _too_deep(token.offset, token.length)

    # --- the grammar
    # ------------------------------------------------------------------------------------------

    def disjunction(self) -> Node:
        start = self.token.offset
        operands = [self.conjunction()]
        while self.is_word("or"):
            self.advance()
            operands.append(self.conjunction())
        return operands[0] if len(operands) == 1 else Or(tuple(operands), start, self.end - start)

    def conjunction(self) -> Node:
        start = self.token.offset
        operands = [self.negation()]
        while self.is_word("and"):
            self.advance()
            operands.append(self.negation())
        return operands[0] if len(operands) == 1 else And(tuple(operands), start, self.end - start)

    def negation(self) -> Node:
        if not self.is_word("not"):
            return self.comparison()
        token = self.advance()
        self.enter(token)
        operand = self.negation()
        self.open -= 1
        return Not(operand, token.offset, self.end - token.offset)

    def comparison(self) -> Node:
        start = self.token.offset
        left = self.operand()
        node = self.comparison_after(left, start)
        if node is None:
            return left
        token = self.token
        if self.at_operator():
            raise ExprError(
                "EXPR_CHAIN",
                "a comparison of a comparison",
                offset=token.offset,
                length=token.length,
                help="write `1 < $x and $x < 3`, or put parentheses around what is compared",
            )
        return node

    def comparison_after(self, left: Node, start: int) -> Node | None:
        token = self.token
        if (token.kind == "symbol" and token.value in _SYMBOL_OPERATORS) or (
            token.kind == "word" and token.value in ("in", "contains")
        ):
            op = self.advance().value
        elif self.is_word("not"):
            self.advance()
            if not self.is_word("in"):
                self.fail_at(
                    token, "`not` is followed by `in` here", "write `$x not in […]`, or `not ($x …)`"
                )
            self.advance()
            op = "not in"
        elif self.is_word("is"):
            return self.null_test(left, start)
        else:
            return None
        right = self.operand()
        return Compare(op, left, right, start, self.end - start)

    def at_operator(self) -> bool:
        token = self.token
        return (token.kind == "symbol" and token.value in _SYMBOL_OPERATORS) or (
            token.kind == "word" and token.value in ("in", "contains", "is", "not")
        )

    def null_test(self, left: Node, start: int) -> Node:
        token = self.advance()
        negated = self.is_word("not")
        if negated:
            self.advance()
        if not (self.is_word("null") or self.is_word("None")):
            self.fail_at(token, "`is` only tests for null", "write `==` or `!=` to compare with other values")
        self.advance()
        if not isinstance(left, Ref):
            raise ExprError(
                "EXPR_SYNTAX",
                "`is null` is asked of a reference only",
                offset=start,
                length=max(left.length, 1),
                help="write `$name is null`",
            )
        return IsNull(left, negated, start, self.end - start)

    def operand(self) -> Node:
        token = self.token
        node: Node
        if token.kind == "ref":
            node = token.value
            self.advance()
        elif token.kind == "string":
            node = _string_node(token)
            self.advance()
        elif token.kind == "number":
            node = Lit(token.value, token.offset, token.length)
            self.advance()
        elif token.kind == "word" and token.value in _CONSTANTS:
            node = Lit(_CONSTANTS[token.value], token.offset, token.length)
            self.advance()
        elif self.is_symbol("("):
            node = self.parenthesised()
        elif self.is_symbol("["):
            node = self.list_literal()
        else:
            self.fail_at_operand(token)
        self.refuse_call_or_index(node, token)
        return node

    def parenthesised(self) -> Node:
        token = self.advance()
        self.enter(token)
        if self.is_symbol(")"):
            self.fail_at(token, "empty parentheses", "write an expression inside them")
        node = self.disjunction()
        if self.is_symbol(","):
            self.fail_at(self.token, "a tuple is not in the language", "write a list: `[1, 2]`")
        self.close(")", token)
        return node

    def list_literal(self) -> Node:
        token = self.advance()
        self.enter(token)
        items: list[Node] = []
        if not self.is_symbol("]"):
            items.append(self.operand())
            while self.is_symbol(","):
                self.advance()
                items.append(self.operand())
        self.close("]", token)
        return ListOf(tuple(items), token.offset, self.end - token.offset)

    def close(self, symbol: str, opening: Token) -> None:
        if not self.is_symbol(symbol):
            token = self.token
            if token.kind == "end":
                self.fail_at(opening, f"`{opening.value}` is not closed", f"add `{symbol}`")
            if symbol == "]" and (self.at_operator() or self.is_word("and") or self.is_word("or")):
                self.fail_at(token, "an operator inside a list", "put parentheses around the element")
            self.fail_between_values(
                f"`{symbol}` is expected here", f"add `{symbol}`, or `,` between elements"
            )
        self.open -= 1
        self.advance()

    # --- refusals
    # ---------------------------------------------------------------------------------------------

    def expect_end(self) -> None:
        if self.token.kind != "end":
            self.fail_between_values("an operator is expected here", "join two conditions with `and` or `or`")

    def fail_between_values(self, message: str, help: str) -> NoReturn:
        """The source goes on where the value before it is complete."""
        token = self.token
        if token.kind == "word" and token.value not in _CONSTANTS and token.value != "not":
            raise refused_operator_word(token.value, token.offset)
        if token.kind == "symbol" and token.value in (")", "]"):
            self.fail_at(
                token, f"`{token.value}` closes nothing", "remove it, or open the bracket it should close"
            )
        self.fail_at(token, message, help)

    def fail_at_operand(self, token: Token) -> NoReturn:
        if token.kind == "end":
            what = "the expression is empty" if not self.source.strip() else "the expression ends too early"
            self.fail_at(token, what, "write a value, e.g. `$name == 'text'`")
        if token.kind == "word":
            if token.value == "not":
                self.fail_at(
                    token, "`not` stands where a value is expected", "put it in parentheses: `(not $x)`"
                )
            raise refused_operand_word(token.value, token.offset, self.source[token.offset + token.length :])
        self.fail_at(
            token, f"`{token.value}` stands where a value is expected", "write a value on both sides"
        )

    def refuse_call_or_index(self, node: Node, token: Token) -> None:
        """A bracket right after a value: `$x.lower()`, `$items[0]`, `(…)(…)`."""
        following = self.token
        if following.kind != "symbol" or following.value not in ("(", "["):
            return
        if following.value == "(":
            if isinstance(node, Ref) and node.path:
                method = node.path[-1]
                raise refused_call(method, node.offset + node.length - len(method) - 1, len(method) + 1)
            raise refused_call(node.name if isinstance(node, Ref) else "", following.offset, 1)
        where = (
            f"write `${node.name}.0`" if isinstance(node, Ref) else "write an index after the name: `$name.0`"
        )
        raise ExprError(
            "EXPR_INDEX",
            "an indexing expression",
            offset=following.offset,
            length=1,
            help=f"{where} for the first element, `$name.key` for a key",
        )

    def fail_at(self, token: Token, message: str, help: str) -> NoReturn:
        raise ExprError("EXPR_SYNTAX", message, offset=token.offset, length=token.length, help=help)


def _string_node(token: Token) -> Node:
    parts: tuple[str | Ref, ...] = token.value
    if any(isinstance(part, Ref) for part in parts):
        return Text(parts, token.offset, token.length)
    literals = [part for part in parts if isinstance(part, str)]
    return Lit("".join(literals), token.offset, token.length)
