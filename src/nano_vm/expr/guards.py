"""What a condition's verdict says of the values it asked about: which of them are bound to what its author wrote.

`$x == 'a'`, `$x in ['a', 'b']` and `$x >= 1 and $x <= 500` pin `$x` down where they hold: nothing of whoever made the
value is left in it but a choice among what the author listed or bounded. An `and` that holds says what each of its
operands says, an `or` that holds what all of them say, and `not` turns that round.
"""

from __future__ import annotations

from typing import TypeAlias

from nano_vm.expr.nodes import And, Compare, ListOf, Lit, Node, Not, Or
from nano_vm.expr.reference import Ref

Address: TypeAlias = tuple[str, tuple[str, ...]]  # a reference's name and path

_LOW, _HIGH = 1, 2
_PINNED = _LOW | _HIGH
_NEGATED = {
    "==": "!=",
    "!=": "==",
    "<": ">=",
    ">=": "<",
    ">": "<=",
    "<=": ">",
    "in": "not in",
    "not in": "in",
}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


def pinned(node: Node, verdict: bool) -> frozenset[Address]:
    """The references whose values are pinned down when the expression comes out as `verdict`."""
    return frozenset(address for address, bounds in _bounds(node, verdict).items() if bounds == _PINNED)


def proven_true(node: Node, verdict: bool) -> frozenset[Address]:
    """The references whose values are certainly `true` when the expression comes out as `verdict`."""
    if isinstance(node, Not):
        return proven_true(node.operand, not verdict)
    if isinstance(node, And | Or):
        parts = [proven_true(operand, verdict) for operand in node.operands]
        return frozenset.union(*parts) if isinstance(node, And) is verdict else frozenset.intersection(*parts)
    if isinstance(node, Ref):
        return frozenset({(node.name, node.path)}) if verdict else frozenset()
    if isinstance(node, Compare) and node.op == ("==" if verdict else "!="):
        for ref, other in ((node.left, node.right), (node.right, node.left)):
            if isinstance(ref, Ref) and isinstance(other, Lit) and other.value is True:
                return frozenset({(ref.name, ref.path)})
    return frozenset()


def _bounds(node: Node, verdict: bool) -> dict[Address, int]:
    """For each reference, on which sides it is bounded."""
    if isinstance(node, Not):
        return _bounds(node.operand, not verdict)
    if isinstance(node, And | Or):
        parts = [_bounds(operand, verdict) for operand in node.operands]
        return _all(parts) if isinstance(node, And) is verdict else _common(parts)
    if isinstance(node, Compare):
        op = node.op if verdict else _NEGATED.get(node.op, "")
        if isinstance(node.left, Ref):
            return _compared(node.left, op, node.right)
        if isinstance(node.right, Ref):
            return _compared(node.right, _MIRRORED.get(op, ""), node.left)
    return {}


def _all(parts: list[dict[Address, int]]) -> dict[Address, int]:
    found: dict[Address, int] = {}
    for part in parts:
        for address, bounds in part.items():
            found[address] = found.get(address, 0) | bounds
    return found


def _common(parts: list[dict[Address, int]]) -> dict[Address, int]:
    first, *others = parts
    found = {}
    for address, bounds in first.items():
        for other in others:
            bounds &= other.get(address, 0)
        if bounds:
            found[address] = bounds
    return found


def _compared(ref: Ref, op: str, other: Node) -> dict[Address, int]:
    address = (ref.name, ref.path)
    if (op == "==" and _is_constant(other)) or (
        op == "in" and isinstance(other, ListOf) and _is_constant(other)
    ):
        return {address: _PINNED}
    if isinstance(other, Lit) and type(other.value) in (int, float):
        if op in ("<", "<="):
            return {address: _HIGH}
        if op in (">", ">="):
            return {address: _LOW}
    return {}


def _is_constant(node: Node) -> bool:
    return isinstance(node, Lit) or (
        isinstance(node, ListOf) and all(_is_constant(item) for item in node.items)
    )
