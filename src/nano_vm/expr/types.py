"""What is known before a run about the values of a program: a small closed lattice of types.

`kind` is a JSON type or `any`; a type may be narrowed to a finite set of values and widened by null.
Everything a JSON Schema can say beyond that becomes `any`: the checker then stays silent rather than wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from nano_vm.canonical import INT_MAX

__all__ = ["ANY", "BOOLEAN", "NULL", "NUMBER", "STRING", "Scalar", "Type", "field_type", "type_from_schema"]

Kind: TypeAlias = Literal["null", "boolean", "number", "string", "array", "object", "any"]
Scalar: TypeAlias = bool | int | float | str

ENUM_MAX = 256
"""More values than this and a type is treated as open: the checker compares enums pairwise."""

_SCHEMA_DEPTH_MAX = 32


class Type(msgspec.Struct, frozen=True):
    """A set of JSON values.

    Attributes:
        kind: the type of every value but null.
        enum: all values it may have besides null, when these are few and known; each of `kind`.
        nullable: whether null belongs to it. `kind="null"` is null alone.
        fields: of an object, the properties that are known.
        closed: of an object, whether there are no properties but `fields`.
        item: of an array, the type of its elements.
    """

    kind: Kind
    enum: tuple[Scalar, ...] | None = None
    nullable: bool = False
    fields: Mapping[str, Type] | None = None
    closed: bool = False
    item: Type | None = None


ANY = Type("any")
NULL = Type("null", nullable=True)
BOOLEAN = Type("boolean")
NUMBER = Type("number")
STRING = Type("string")

_KINDS: dict[str, Kind] = {
    "null": "null",
    "boolean": "boolean",
    "number": "number",
    "integer": "number",
    "string": "string",
    "array": "array",
    "object": "object",
}
# With one of these in a schema its other keywords do not tell the whole type.
_COMBINATORS = frozenset({"$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "not", "if"})


def type_from_schema(schema: Any) -> Type:
    """Returns the type of the values a JSON Schema accepts, or a wider one.

    Understood are `type`, `enum`, `const`, `properties`, `additionalProperties: false` and `items`;
    `nullable: true` is not JSON Schema and is ignored. Never raises: a schema that makes no sense is `any`.
    """
    return _from_schema(schema, 0)


def _from_schema(schema: Any, depth: int) -> Type:
    if type(schema) is not dict or depth > _SCHEMA_DEPTH_MAX or not _COMBINATORS.isdisjoint(schema):
        return ANY
    declared = _declared_kinds(schema.get("type"))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values:
        return _from_values(values, declared)
    if not declared:
        return ANY
    kinds = declared - {"null"}
    nullable = "null" in declared
    if not kinds:
        return NULL
    if len(kinds) > 1:
        return ANY
    (kind,) = kinds
    if kind == "object":
        return _object_type(schema, nullable, depth)
    if kind == "array":
        uniform = "items" in schema and "prefixItems" not in schema
        item = _from_schema(schema["items"], depth + 1) if uniform else None
        return Type("array", nullable=nullable, item=item)
    return Type(kind, nullable=nullable)


def _declared_kinds(declared: Any) -> frozenset[Kind]:
    names = declared if isinstance(declared, list) else [declared]
    kinds = [_KINDS.get(name) if isinstance(name, str) else None for name in names]
    known = [kind for kind in kinds if kind is not None]
    return frozenset(known) if len(known) == len(names) else frozenset()


def _object_type(schema: dict[str, Any], nullable: bool, depth: int) -> Type:
    properties = schema.get("properties")
    fields = (
        {name: _from_schema(inner, depth + 1) for name, inner in properties.items() if isinstance(name, str)}
        if isinstance(properties, dict)
        else None
    )
    closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    return Type("object", nullable=nullable, fields=fields, closed=closed)


def _from_values(values: list[Any], declared: frozenset[Kind]) -> Type:
    kinds: set[Kind] = set()
    scalars: list[Scalar] = []
    nullable = False
    for value in values:
        kind = kind_of(value)
        if declared and kind not in declared:
            continue  # `type` and `enum` both hold: such a value is never accepted
        if value is None:
            nullable = True
        elif isinstance(value, bool | int | float | str):
            kinds.add(kind)
            scalars.append(value)
        else:
            return ANY
    if len(kinds) > 1:
        return ANY
    if not kinds:
        return NULL if nullable else ANY
    enum = tuple(scalars) if len(scalars) <= ENUM_MAX else None
    return Type(kinds.pop(), enum, nullable)


def kind_of(value: Any) -> Kind:
    """The kind of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else "any"


def field_type(of: Type, path: tuple[str, ...]) -> Type | None:
    """Follows a path into a type.

    Returns:
        The type at its end, `ANY` where nothing is known, and `None` where no value can have such a part.
    """
    for segment in path:
        if of.kind == "any":
            return ANY
        if of.kind == "object":
            known = (of.fields or {}).get(segment)
            if known is None:
                return None if of.closed else ANY
            of = known
        elif of.kind == "array":
            if (
                not segment.isdigit()
                or int(segment[:17]) > INT_MAX
                or (len(segment) > 1 and segment[0] == "0")
            ):
                return None
            of = of.item or ANY
        else:
            return None
    return of
