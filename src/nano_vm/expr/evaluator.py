"""Evaluates conditions: compiled to closures for the hot path, and by a plain walk of the tree as the
reference.

Both implement `spec/expressions.md`, "Meaning". They share no code for the operators, so that the property
tests comparing them compare two readings of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, TypeAlias, assert_never

from nano_vm.canonical import encode
from nano_vm.expr import operators
from nano_vm.expr.errors import ExprError
from nano_vm.expr.nodes import And, Compare, IsNull, ListOf, Lit, Node, Not, Or, Text
from nano_vm.expr.operators import json_type, mismatch, not_boolean
from nano_vm.expr.reference import UNSET, Ref, walk

__all__ = ["Condition", "Lookup", "Resolve", "bindings_lookup", "compile_condition", "evaluate"]

Slots: TypeAlias = list[Any]
Resolve: TypeAlias = Callable[[Ref], tuple[int, tuple[str, ...]]]
Condition: TypeAlias = Callable[[Slots], bool]
Lookup: TypeAlias = Callable[[Ref], Any]

_OPERATORS: dict[str, Callable[[Any, Any, Node], bool]] = {
    "==": operators.equal,
    "!=": operators.unequal,
    "<": operators.less,
    "<=": operators.less_equal,
    ">": operators.greater,
    ">=": operators.greater_equal,
    "in": operators.member,
    "not in": operators.not_member,
    "contains": operators.contains,
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def compile_condition(node: Node, resolve: Resolve) -> Condition:
    """Compiles a condition to a function of the slots that hold the values of a run.

    Args:
        node: the parsed condition.
        resolve: gives for a reference the index of its slot and the path that is left to walk in the slot's
        value.
            Called once per reference, now.

    Returns:
        A pure function of the slots: a list of canonical JSON values, `UNSET` where nothing is assigned yet.
        It raises `ExprError`: `UNASSIGNED_REFERENCE` for an `UNSET` slot outside `is null`,
        `UNRESOLVED_REFERENCE` for a path that leads nowhere, `TYPE_MISMATCH`; each with the offset of what it
        is about.
    """
    return _boolean(node, resolve)


# --- compiled: every function below returns a closure over its slot, path and constant
# --------------------------


def _boolean(node: Node, resolve: Resolve) -> Condition:
    match node:
        case Compare():
            return _comparison(node, resolve)
        case IsNull():
            return _null_test(node, resolve)
        case Not(operand=operand):
            inner = _boolean(operand, resolve)
            return lambda slots: not inner(slots)
        case And(operands=operands):
            return _conjunction([_boolean(operand, resolve) for operand in operands])
        case Or(operands=operands):
            return _disjunction([_boolean(operand, resolve) for operand in operands])
        case Lit() | Ref() | Text() | ListOf():
            return _checked_boolean(node, _value(node, resolve))
        case _:
            assert_never(node)


def _checked_boolean(node: Node, get: Callable[[Slots], Any]) -> Condition:
    def boolean(slots: Slots) -> bool:
        value = get(slots)
        if value is True or value is False:
            return value
        raise not_boolean(value, node)

    return boolean


def _conjunction(conditions: list[Condition]) -> Condition:
    first, second = conditions[:2]
    if len(conditions) == 2:
        return lambda slots: first(slots) and second(slots)
    if len(conditions) == 3:
        third = conditions[2]
        return lambda slots: first(slots) and second(slots) and third(slots)
    every = tuple(conditions)

    def conjunction(slots: Slots) -> bool:
        for condition in every:
            if not condition(slots):
                return False
        return True

    return conjunction


def _disjunction(conditions: list[Condition]) -> Condition:
    first, second = conditions[:2]
    if len(conditions) == 2:
        return lambda slots: first(slots) or second(slots)
    every = tuple(conditions)

    def disjunction(slots: Slots) -> bool:
        for condition in every:
            if condition(slots):
                return True
        return False

    return disjunction


def _null_test(node: IsNull, resolve: Resolve) -> Condition:
    ref, negated = node.ref, node.negated
    slot, path = resolve(ref)
    if not path:
        if negated:
            return lambda slots: (value := slots[slot]) is not None and value is not UNSET
        return lambda slots: (value := slots[slot]) is None or value is UNSET

    def null_test(slots: Slots) -> bool:
        value = slots[slot]
        if value is UNSET:
            return not negated
        return (_walk(value, path, ref) is None) is not negated

    return null_test


def _value(node: Node, resolve: Resolve) -> Callable[[Slots], Any]:
    match node:
        case Lit(value=value):
            return lambda slots: value
        case Ref():
            return _reference(node, resolve)
        case Text(parts=parts):
            return _text(parts, resolve)
        case ListOf(items=items):
            if all(isinstance(item, Lit) for item in items):
                # One list for all evaluations: no operator changes or returns its operands.
                constant = [item.value for item in items if isinstance(item, Lit)]
                return lambda slots: constant
            getters = tuple([_value(item, resolve) for item in items])
            return lambda slots: [get(slots) for get in getters]
        case _:
            return _boolean(node, resolve)


def _reference(ref: Ref, resolve: Resolve) -> Callable[[Slots], Any]:
    slot, path = resolve(ref)
    if not path:

        def whole(slots: Slots) -> Any:
            value = slots[slot]
            if value is UNSET:
                raise _unassigned(ref)
            return value

        return whole
    if len(path) == 1:
        key = path[0]

        def field(slots: Slots) -> Any:
            value = slots[slot]
            if type(value) is dict and key in value:
                return value[key]
            if value is UNSET:
                raise _unassigned(ref)
            return _walk(value, path, ref)

        return field

    def part(slots: Slots) -> Any:
        value = slots[slot]
        if value is UNSET:
            raise _unassigned(ref)
        return _walk(value, path, ref)

    return part


def _text(parts: tuple[str | Ref, ...], resolve: Resolve) -> Callable[[Slots], str]:
    getters: list[str | Callable[[Slots], Any]] = [
        _reference(part, resolve) if isinstance(part, Ref) else part for part in parts
    ]

    def text(slots: Slots) -> str:
        return "".join([part if isinstance(part, str) else _rendered(part(slots)) for part in getters])

    return text


def _rendered(value: Any) -> str:
    """A value inside a quoted string: strings as they are, others as canonical JSON."""
    return value if type(value) is str else encode(value).decode()


def _comparison(node: Compare, resolve: Resolve) -> Condition:
    left, right = _value(node.left, resolve), _value(node.right, resolve)
    operator = _OPERATORS[node.op]

    def comparison(slots: Slots) -> bool:
        return operator(left(slots), right(slots), node)

    if isinstance(node.right, Lit) and node.op in _MIRRORED:
        return _with_constant(node.op, node.left, left, node.right.value, resolve, comparison)
    if isinstance(node.left, Lit) and node.op in _MIRRORED:
        return _with_constant(_MIRRORED[node.op], node.right, right, node.left.value, resolve, comparison)
    if node.op in ("in", "not in") and isinstance(node.right, ListOf):
        return _in_constants(node, left, comparison)
    return comparison


def _with_constant(
    op: str, node: Node, get: Callable[[Slots], Any], constant: Any, resolve: Resolve, general: Condition
) -> Condition:
    """A comparison with a constant: the expected type is answered here, everything else by `general`.

    `general` evaluates again from the start and so raises the error that the source order asks for.
    """
    if isinstance(node, Ref):
        slot, path = resolve(node)
        if not path:
            if type(constant) is str and op in ("==", "!="):
                return _slot_equals_string(slot, constant, general, negated=op == "!=")
            get = itemgetter(slot)  # what is not assigned is of neither type
        elif len(path) == 1 and (type(constant) is int or type(constant) is float):
            return _FIELD_TESTS[op](slot, path[0], constant, general)
    if type(constant) is str:
        return _STRING_TESTS[op](get, constant, general)
    if type(constant) is int or type(constant) is float:
        return _NUMBER_TESTS[op](get, constant, general)
    return general


def _slot_equals_string(slot: int, constant: str, general: Condition, *, negated: bool) -> Condition:
    if negated:

        def differs(slots: Slots) -> bool:
            value = slots[slot]
            return value != constant if type(value) is str else general(slots)

        return differs

    def equals(slots: Slots) -> bool:
        value = slots[slot]
        return value == constant if type(value) is str else general(slots)

    return equals


def _in_constants(node: Compare, get: Callable[[Slots], Any], general: Condition) -> Condition:
    """Membership in a list of string constants, when the item is a string: one look into a set."""
    items = node.right.items if isinstance(node.right, ListOf) else ()
    values = [item.value for item in items if isinstance(item, Lit)]
    strings = frozenset([value for value in values if type(value) is str])
    if len(values) != len(items):
        return general
    if node.op == "in":
        return lambda slots: value in strings if type(value := get(slots)) is str else general(slots)
    return lambda slots: value not in strings if type(value := get(slots)) is str else general(slots)


_Get: TypeAlias = Callable[[Slots], Any]
_TestFactory: TypeAlias = Callable[[_Get, Any, Condition], Condition]

# One closure per operator: calling through `operator.lt` would cost a third more.
_STRING_TESTS: dict[str, _TestFactory] = {
    "==": lambda get, c, general: lambda slots: v == c if type(v := get(slots)) is str else general(slots),
    "!=": lambda get, c, general: lambda slots: v != c if type(v := get(slots)) is str else general(slots),
    "<": lambda get, c, general: lambda slots: v < c if type(v := get(slots)) is str else general(slots),
    "<=": lambda get, c, general: lambda slots: v <= c if type(v := get(slots)) is str else general(slots),
    ">": lambda get, c, general: lambda slots: v > c if type(v := get(slots)) is str else general(slots),
    ">=": lambda get, c, general: lambda slots: v >= c if type(v := get(slots)) is str else general(slots),
}
_NUMBER_TESTS: dict[str, _TestFactory] = {
    "==": lambda get, c, general: (
        lambda s: v == c if (t := type(v := get(s))) is int or t is float else general(s)
    ),
    "!=": lambda get, c, general: (
        lambda s: v != c if (t := type(v := get(s))) is int or t is float else general(s)
    ),
    "<": lambda get, c, general: (
        lambda s: v < c if (t := type(v := get(s))) is int or t is float else general(s)
    ),
    "<=": lambda get, c, general: (
        lambda s: v <= c if (t := type(v := get(s))) is int or t is float else general(s)
    ),
    ">": lambda get, c, general: (
        lambda s: v > c if (t := type(v := get(s))) is int or t is float else general(s)
    ),
    ">=": lambda get, c, general: (
        lambda s: v >= c if (t := type(v := get(s))) is int or t is float else general(s)
    ),
}

# Of a field of an object in a slot, which is what most rules of policies are about: with one call less.
_FIELD_TESTS: dict[str, Callable[[int, str, Any, Condition], Condition]] = {
    "==": lambda slot, key, c, general: (
        lambda s: (
            v == c
            if type(o := s[slot]) is dict and ((t := type(v := o.get(key))) is int or t is float)
            else general(s)
        )
    ),
    "!=": lambda slot, key, c, general: (
        lambda s: (
            v != c
            if type(o := s[slot]) is dict and ((t := type(v := o.get(key))) is int or t is float)
            else general(s)
        )
    ),
    "<": lambda slot, key, c, general: (
        lambda s: (
            v < c
            if type(o := s[slot]) is dict and ((t := type(v := o.get(key))) is int or t is float)
            else general(s)
        )
    ),
    "<=": lambda slot, key, c, general: (
        lambda s: (
            v <= c
            if type(o := s[slot]) is dict and ((t := type(v := o.get(key))) is int or t is float)
            else general(s)
        )
    ),
    ">": lambda slot, key, c, general: (
        lambda s: (
            v > c
            if type(o := s[slot]) is dict and ((t := type(v := o.get(key))) is int or t is float)
            else general(s)
        )
    ),
    ">=": lambda slot, key, c, general: (
        lambda s: (
            v >= c
            if type(o := s[slot]) is dict and ((t := type(v := o.get(key))) is int or t is float)
            else general(s)
        )
    ),
}


def _walk(value: Any, path: tuple[str, ...], ref: Ref) -> Any:
    try:
        return walk(value, path)
    except ExprError as error:
        error.offset, error.length = ref.offset, ref.length
        error.facts["name"] = ref.name
        raise


def _unassigned(ref: Ref) -> ExprError:
    return ExprError(
        "UNASSIGNED_REFERENCE",
        f"`{ref}` is not assigned yet",
        offset=ref.offset,
        length=ref.length,
        help=f"test it first: `{ref} is not null and …`",
        facts={"name": ref.name},
    )


# --- the reference
# --------------------------------------------------------------------------------------------


def bindings_lookup(bindings: Mapping[str, Any]) -> Lookup:
    """Returns a `Lookup` over a mapping from names to values; names that are missing are unassigned."""

    def lookup(ref: Ref) -> Any:
        value = bindings.get(ref.name, UNSET)
        return value if value is UNSET else _walk(value, ref.path, ref)

    return lookup


def evaluate(node: Node, lookup: Lookup) -> bool:
    """Evaluates a condition by walking its tree: slow, obvious, and the judge of `compile_condition`.

    Args:
        lookup: gives the value a reference resolves to, or `UNSET`; may raise `UNRESOLVED_REFERENCE`.

    Raises:
        ExprError: as the function that `compile_condition` returns.
    """
    result = _evaluate(node, lookup)
    if not isinstance(result, bool):
        raise not_boolean(result, node)
    return result


def _evaluate(node: Node, lookup: Lookup) -> Any:
    match node:
        case Lit(value=value):
            return value
        case Ref():
            value = lookup(node)
            if value is UNSET:
                raise _unassigned(node)
            return value
        case Text(parts=parts):
            return "".join(
                part if isinstance(part, str) else _rendered(_evaluate(part, lookup)) for part in parts
            )
        case ListOf(items=items):
            return [_evaluate(item, lookup) for item in items]
        case IsNull(ref=ref, negated=negated):
            value = lookup(ref)
            return (value is UNSET or value is None) != negated
        case Not(operand=operand):
            return not evaluate(operand, lookup)
        case And(operands=operands):
            return all(evaluate(operand, lookup) for operand in operands)
        case Or(operands=operands):
            return any(evaluate(operand, lookup) for operand in operands)
        case Compare():
            left, right = _evaluate(node.left, lookup), _evaluate(node.right, lookup)
            return _compare(node, left, right)
        case _:
            assert_never(node)


def _compare(node: Compare, left: Any, right: Any) -> bool:
    types = (json_type(left), json_type(right))
    match node.op:
        case "==" | "!=":
            if types[0] != types[1] and "null" not in types:
                raise mismatch(node.op, left, right, node)
            are_equal = bool(_key(left) == _key(right))
            return are_equal if node.op == "==" else not are_equal
        case "<" | "<=" | ">" | ">=":
            if types not in (("number", "number"), ("string", "string")):
                raise mismatch(node.op, left, right, node)
            order = int(left > right) - int(left < right)
            return order in {"<": (-1,), "<=": (-1, 0), ">": (1,), ">=": (1, 0)}[node.op]
        case _:
            found: bool
            container, item = (left, right) if node.op == "contains" else (right, left)
            if json_type(container) == "array":
                found = _key(item) in [_key(element) for element in container]
            elif types == ("string", "string"):
                found = bool(container.find(item) >= 0)
            else:
                raise mismatch(node.op, left, right, node)
            return not found if node.op == "not in" else found


def _key(value: Any) -> Any:
    """A value that Python's `==` compares as the language does: tagged with its JSON type at every level."""
    if isinstance(value, list):
        return ("array", [_key(item) for item in value])
    if isinstance(value, dict):
        return ("object", {key: _key(item) for key, item in value.items()})
    return (json_type(value), value)
