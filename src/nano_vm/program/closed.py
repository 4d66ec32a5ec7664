"""Closed schemas: those that admit nothing but what their author could have listed or bounded (SPEC §9).

A value that has passed such a schema carries no words of whoever made it: enumerations, constants, booleans, null,
numbers bounded on both sides, and arrays and objects of these, themselves bounded. In doubt a schema is open.
"""

from __future__ import annotations

from typing import Any

DEPTH_MAX = 32
STEPS_MAX = 10_000  # parts that are looked at, each as often as a reference leads to it
_REFS = ("#/$defs/", "#/definitions/")


def is_closed(schema: Any) -> bool:
    """Whether a JSON Schema (2020-12) admits closed values only."""
    return _closed(schema, _Root(schema), 0)


class _Root:
    """A schema, and how many of its parts may still be looked at."""

    __slots__ = ("left", "schema")

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.left = STEPS_MAX


def _closed(schema: Any, root: _Root, depth: int) -> bool:
    if schema is False:
        return True  # admits nothing
    root.left -= 1
    if not isinstance(schema, dict) or depth > DEPTH_MAX or root.left < 0:
        return False
    # Whatever else a schema asks for only narrows what one closed part of it leaves.
    if "const" in schema or isinstance(schema.get("enum"), list):
        return True
    if _any_closed(schema.get("allOf"), root, depth):
        return True
    for name in ("anyOf", "oneOf"):
        options = schema.get(name)
        if isinstance(options, list) and options and all(_closed(one, root, depth + 1) for one in options):
            return True
    if "$ref" in schema and _closed(_target(schema["$ref"], root.schema), root, depth + 1):
        return True
    types = schema.get("type")
    if isinstance(types, str):
        types = [types]
    return (
        isinstance(types, list)
        and bool(types)
        and all(_type_closed(one, schema, root, depth) for one in types)
    )


def _any_closed(schemas: Any, root: _Root, depth: int) -> bool:
    return isinstance(schemas, list) and any(_closed(one, root, depth + 1) for one in schemas)


def _target(ref: Any, root: Any) -> Any:
    if isinstance(ref, str) and isinstance(root, dict):
        for prefix, keyword in zip(_REFS, ("$defs", "definitions"), strict=True):
            if ref.startswith(prefix):
                return root.get(keyword, {}).get(ref[len(prefix) :])
    return None


def _type_closed(name: Any, schema: dict[str, Any], root: _Root, depth: int) -> bool:
    if name in ("boolean", "null"):
        return True
    if name in ("integer", "number"):
        return _bounded(schema, "minimum", "exclusiveMinimum") and _bounded(
            schema, "maximum", "exclusiveMaximum"
        )
    if name == "array":
        if "maxItems" not in schema:
            return False
        first = schema.get("prefixItems", [])
        return _closed(schema.get("items"), root, depth + 1) and all(
            _closed(one, root, depth + 1) for one in first
        )
    if name == "object":
        # Names of members are words too: only the author's own may come through.
        if schema.get("additionalProperties") is not False or "patternProperties" in schema:
            return False
        return all(_closed(one, root, depth + 1) for one in schema.get("properties", {}).values())
    return False


def _bounded(schema: dict[str, Any], *names: str) -> bool:
    return any(type(schema.get(name)) in (int, float) for name in names)
