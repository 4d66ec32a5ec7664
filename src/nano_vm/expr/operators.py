"""What the operators do with two values (`spec/expressions.md`, "Meaning"): strict, total, free of coercion.

Values are canonical JSON values (`nano_vm.canonical.normalize`). `where` is the node that is being evaluated:
errors carry its offset and the types involved, never the values.
"""

from __future__ import annotations

from typing import Any

from nano_vm.expr.errors import ExprError
from nano_vm.expr.nodes import Node

_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def json_type(value: Any) -> str:
    """The JSON type of a value; `"unknown"` for what no normalised value can be."""
    return _TYPES.get(type(value), "unknown")


def same(left: Any, right: Any) -> bool:
    """Deep equality in which values of different JSON types are unequal: `true` is not `1`, `1` is `1.0`."""
    kind = type(left)
    if kind is not type(right):
        return _is_number(left) and _is_number(right) and bool(left == right)
    if kind is list:
        return len(left) == len(right) and all(map(same, left, right))
    if kind is dict:
        return len(left) == len(right) and all(
            key in right and same(value, right[key]) for key, value in left.items()
        )
    return bool(left == right)


def equal(left: Any, right: Any, where: Node, op: str = "==") -> bool:
    """`==`: between different types an error, except that null equals null and nothing else."""
    kind = type(left)
    if kind is type(right):
        if kind is str:
            return bool(left == right)
        return same(left, right)
    if left is None or right is None:
        return False
    if _is_number(left) and _is_number(right):
        return bool(left == right)
    raise mismatch(op, left, right, where)


def unequal(left: Any, right: Any, where: Node) -> bool:
    return not equal(left, right, where, "!=")


def less(left: Any, right: Any, where: Node) -> bool:
    _check_order("<", left, right, where)
    return bool(left < right)


def less_equal(left: Any, right: Any, where: Node) -> bool:
    _check_order("<=", left, right, where)
    return bool(left <= right)


def greater(left: Any, right: Any, where: Node) -> bool:
    _check_order(">", left, right, where)
    return bool(left > right)


def greater_equal(left: Any, right: Any, where: Node) -> bool:
    _check_order(">=", left, right, where)
    return bool(left >= right)


def member(item: Any, container: Any, where: Node, op: str = "in") -> bool:
    """`in`: an element of a list, by `same`, or a string inside a string."""
    kind = type(container)
    if kind is str and type(item) is str:
        return item in container
    if kind is list:
        if type(item) is str:
            return item in container
        return any(same(item, element) for element in container)
    raise mismatch(op, item, container, where)


def not_member(item: Any, container: Any, where: Node) -> bool:
    return not member(item, container, where, "not in")


def contains(container: Any, item: Any, where: Node) -> bool:
    kind = type(container)
    if kind is list or (kind is str and type(item) is str):
        return member(item, container, where)
    raise mismatch("contains", container, item, where)


def mismatch(op: str, left: Any, right: Any, where: Node) -> ExprError:
    types = json_type(left), json_type(right)
    return ExprError(
        "TYPE_MISMATCH",
        f"`{op}` between {_a(types[0])} and {_a(types[1])}",
        offset=where.offset,
        length=where.length,
        help=mismatch_help(op, *types),
        facts={"op": op, "left": types[0], "right": types[1]},
    )


def not_boolean(value: Any, where: Node) -> ExprError:
    found = json_type(value)
    return ExprError(
        "TYPE_MISMATCH",
        f"a condition is true or false, this is {_a(found)}",
        offset=where.offset,
        length=where.length,
        help="compare it: `$x == 'yes'`, `$x > 0`, `$x is not null`",
        facts={"found": found},
    )


def mismatch_help(op: str, left: str, right: str) -> str:
    """What to write instead when `op` does not take these types; the checker says the same before a run."""
    if op in ("==", "!="):
        if {left, right} == {"number", "string"}:
            return "quote the number, or give the step an `output_schema` so that its output is a number"
        if "boolean" in (left, right):
            return "write `true` / `false` without quotes, or compare with the text the step yields"
        return "compare values of one type"
    if op in ("<", "<=", ">", ">="):
        return "order two numbers or two strings; test `is not null` first where a value may be missing"
    return "the container is a list or a string; only a string can be inside a string"


def _check_order(op: str, left: Any, right: Any, where: Node) -> None:
    if type(left) is str and type(right) is str:
        return
    if _is_number(left) and _is_number(right):
        return
    raise mismatch(op, left, right, where)


def _is_number(value: Any) -> bool:
    kind = type(value)
    return kind is int or kind is float


def _a(kind: str) -> str:
    return {"null": "null", "array": "a list", "object": "an object"}.get(kind, f"a {kind}")
