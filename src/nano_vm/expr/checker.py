"""Checks a condition against what its references can yield, before anything runs.

The checker never guesses: where a type is unknown it says nothing. What it reports as an error would fail, or
could never be taken, in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Literal, NamedTuple, TypeAlias, assert_never

from nano_vm.expr.errors import ExprError
from nano_vm.expr.evaluator import bindings_lookup, evaluate
from nano_vm.expr.nodes import And, Compare, IsNull, ListOf, Lit, Node, Not, Or, Text, refs
from nano_vm.expr.operators import mismatch_help
from nano_vm.expr.reference import Ref
from nano_vm.expr.types import (
    ANY,
    BOOLEAN,
    ENUM_MAX,
    NULL,
    STRING,
    Scalar,
    Type,
    field_type,
    kind_of,
    type_from_schema,
)

__all__ = ["Finding", "Type", "TypeOf", "check", "field_type", "type_from_schema"]

_nothing_bound = bindings_lookup({})

TypeOf: TypeAlias = Callable[[Ref], Type | None]
"""The type of what a whole reference (name and path) yields; `None` when nothing is known of it."""


class Finding(NamedTuple):
    """One thing wrong with a condition; offset and length count characters of its source."""

    code: str
    severity: Literal["error", "warning"]
    offset: int
    length: int
    message: str
    help: str


def check(node: Node, type_of: TypeOf) -> list[Finding]:
    """Returns what is wrong with a condition, in source order.

    `TYPE_MISMATCH` (error): an operator that would refuse its operands. `IMPOSSIBLE_COMPARISON`: a comparison
    with something the operand never is (error; warning for one element of several in a list).
    `CONSTANT_CONDITION` (warning): a part whose result is known already.
    """
    checker = _Checker(type_of)
    checker.condition(node)
    return sorted(checker.findings, key=lambda finding: (finding.offset, finding.length))


class _Checker:
    def __init__(self, type_of: TypeOf) -> None:
        self.type_of = type_of
        self.findings: list[Finding] = []
        # The types of operands by the identity of their nodes, so that each node is looked at once.
        self.types: dict[int, Type] = {}

    def report(self, code: str, node: Node, message: str, help: str, *, warning: bool = False) -> None:
        severity: Literal["error", "warning"] = "warning" if warning else "error"
        self.findings.append(Finding(code, severity, node.offset, node.length, message, help))

    def condition(self, node: Node, *, inside_constant: bool = False) -> None:
        """Checks a node whose value must be a boolean."""
        constant = not refs(node)
        if constant and not inside_constant:
            self.report_constant(node)
        match node:
            case And(operands=operands) | Or(operands=operands):
                for operand in operands:
                    self.condition(operand, inside_constant=constant)
            case Not(operand=operand):
                self.condition(operand, inside_constant=constant)
            case Compare():
                self.comparison(node, constant)
            case IsNull():
                pass
            case Lit() | Ref() | Text() | ListOf():
                found = self.value(node)
                if found.kind not in ("boolean", "any"):
                    self.report(
                        "TYPE_MISMATCH",
                        node,
                        f"a condition is true or false, this is of type {found.kind}",
                        "compare it: `$x == 'yes'`, `$x > 0`, `$x is not null`",
                    )
            case _:
                assert_never(node)

    def report_constant(self, node: Node) -> None:
        try:
            result = evaluate(node, _nothing_bound)
        except ExprError:
            return  # the types are wrong, and that is what will be reported
        self.report(
            "CONSTANT_CONDITION",
            node,
            f"this is always {str(result).lower()}",
            "compare with a reference, or leave it out",
            warning=True,
        )

    def value(self, node: Node, *, inside_constant: bool = False) -> Type:
        """Returns the type of an operand, after checking what is inside it."""
        found = self.types[id(node)] = self.infer(node, inside_constant=inside_constant)
        return found

    def infer(self, node: Node, *, inside_constant: bool) -> Type:
        match node:
            case Lit(value=None):
                return NULL
            case Lit(value=value):
                return Type(kind_of(value), (value,)) if value is not None else NULL
            case Ref():
                return self.type_of(node) or ANY
            case Text(parts=parts):
                return self.text(parts)
            case ListOf(items=items):
                kinds = [self.value(item, inside_constant=inside_constant) for item in items]
                return Type("array", item=_union(kinds))
            case _:
                self.condition(node, inside_constant=inside_constant)
                return BOOLEAN

    def text(self, parts: tuple[str | Ref, ...]) -> Type:
        """`'$decision'` alone yields the strings that `$decision` yields; other texts are open."""
        if len(parts) == 1 and isinstance(parts[0], Ref):
            inner = self.type_of(parts[0]) or ANY
            if inner.kind == "string" and not inner.nullable:
                return Type("string", inner.enum)
        return STRING

    def comparison(self, node: Compare, constant: bool) -> None:
        left = self.value(node.left, inside_constant=constant)
        right = self.value(node.right, inside_constant=constant)
        if node.op in ("==", "!="):
            fits = left.kind == right.kind or bool({"any", "null"} & {left.kind, right.kind})
        elif node.op in ("<", "<=", ">", ">="):
            kinds = {left.kind, right.kind} - {"any"}
            fits = kinds <= {"number"} or kinds <= {"string"}
        else:
            container, item = (left, right) if node.op == "contains" else (right, left)
            fits = container.kind in ("array", "any") or (
                container.kind == "string" and item.kind in ("string", "any")
            )
        if not fits:
            self.report(
                "TYPE_MISMATCH",
                node,
                f"`{node.op}` between {left.kind} and {right.kind}",
                mismatch_help(node.op, left.kind, right.kind),
            )
        elif not constant:
            self.reach(node, left, right)

    # --- can it be taken?
    # -------------------------------------------------------------------------------------

    def reach(self, node: Compare, left: Type, right: Type) -> None:
        """Reports a comparison whose result the types already decide."""
        if node.op in ("in", "not in") and isinstance(node.right, ListOf):
            self.reach_list(node, left, node.right)
            return
        if "null" in (left.kind, right.kind) and node.op in ("==", "!="):
            return  # the name may be unassigned or the step skipped: only a run can tell
        container = right if node.op in ("in", "not in") else left if node.op == "contains" else None
        if container is not None and container.kind == "array":
            item = left if container is right else right
            if container.item is not None and _disjoint(item, container.item):
                self.impossible(node, container.item, item)
            return
        if left.enum is None or right.enum is None or len(left.enum) * len(right.enum) > ENUM_MAX:
            return
        results = {_holds(node, a, b) for a in left.enum for b in right.enum}
        negated = node.op in ("!=", "not in")
        if left.nullable or right.nullable:
            results.add(negated)  # what null gives; where the operator refuses null, nothing is lost
        if len(results) > 1:
            return
        if results == {negated}:
            known, other = (left, right) if len(left.enum) >= len(right.enum) else (right, left)
            self.impossible(node, known, other)
        else:
            word = str(not negated).lower()
            self.report("CONSTANT_CONDITION", node, f"this is always {word}", "leave it out", warning=True)

    def reach_list(self, node: Compare, item: Type, elements: ListOf) -> None:
        never = [element for element in elements.items if _disjoint(item, self.types[id(element)])]
        if len(never) == len(elements.items):
            self.impossible(node, item, self.types[id(elements)].item or ANY)
            return
        for element in never:
            self.report(
                "IMPOSSIBLE_COMPARISON",
                element,
                f"this element is never met: the value {_described(item)}",
                _nearest(item, self.types[id(element)]),
                warning=True,
            )

    def impossible(self, node: Compare, known: Type, other: Type) -> None:
        word = "true" if node.op in ("!=", "not in") else "false"
        self.report(
            "IMPOSSIBLE_COMPARISON",
            node,
            f"this is always {word}, one branch can never be taken: the value {_described(known)}",
            _nearest(known, other),
        )


def _holds(node: Compare, left: Scalar, right: Scalar) -> bool:
    return evaluate(Compare(node.op, Lit(left), Lit(right)), _nothing_bound)


def _disjoint(left: Type, right: Type) -> bool:
    """Whether no value of one type equals a value of the other."""
    if "any" in (left.kind, right.kind) or (left.nullable and right.nullable):
        return False
    if "null" in (left.kind, right.kind):
        return False  # as for `==`: a step may be skipped
    if left.kind != right.kind:
        return True
    if left.enum is None or right.enum is None:
        return False
    return not any(a == b for a in left.enum for b in right.enum)


def _union(types: Iterable[Type]) -> Type | None:
    """The type of a list's elements; `None` when there are none, `ANY` when they differ."""
    merged: Type | None = None
    for found in types:
        if merged is None:
            merged = found
        elif merged.kind != found.kind or found.kind in ("array", "object", "null", "any"):
            return ANY
        else:
            both = merged.enum is not None and found.enum is not None
            enum = (merged.enum or ()) + (found.enum or ()) if both else None
            merged = Type(found.kind, enum, merged.nullable or found.nullable)
    return merged


def _described(of: Type) -> str:
    if of.enum is None:
        return f"is of type {of.kind}"
    shown = [repr(value) if isinstance(value, str) else str(value).lower() for value in of.enum[:8]]
    return "is one of " + ", ".join(shown) + (", …" if len(of.enum) > 8 else "")


def _nearest(known: Type, other: Type) -> str:
    """A did-you-mean: the value that was probably intended."""
    wanted = [value for value in other.enum or () if isinstance(value, str)]
    offered = [value for value in known.enum or () if isinstance(value, str)]
    for value in wanted:
        folded = {candidate.casefold(): candidate for candidate in offered}
        close = get_close_matches(value.casefold()[:80], list(folded), n=1)
        if close:
            return f"did you mean '{folded[close[0]]}'?"
    return "compare with a value that can occur"
