"""How much work a JSON Schema makes of a value: counted before a validator does it.

A validator holds a part of a value against a part of a schema each time that some way through the schema leads there.
With references that double - `a` is twice `b`, `b` twice `c` - or that come round again with more than one branch the
ways are exponentially many. So where a schema refers to itself, or unfolds into very many parts, the steps are counted
for the value at hand, and counting stops at a limit. Everything else is not looked at: its steps are at most its parts
for each part of the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

UNFOLDED_MAX = (
    10_000  # parts of a schema, each counted as often as a reference leads to it, that nobody has to count
)
SCHEMA_STEPS_MAX = 200_000  # that a small value may take
STEPS_PER_VALUE, STEPS_AT_MOST = (
    20,
    5_000_000,
)  # and how many more each part of a large one adds, up to that many

TOO_MANY_STEPS = (
    f"the schema's references take more than SCHEMA_STEPS_MAX ({SCHEMA_STEPS_MAX:,}) steps for it"
)

_ONE = ("not", "if", "then", "else")  # hold for the same value, as lists of them in `_MANY` do
_MANY = ("allOf", "anyOf", "oneOf")
_OF_MEMBERS = ("additionalProperties", "unevaluatedProperties")
_OF_ELEMENTS = ("items", "contains", "unevaluatedItems")
_REFERENCES = ("$ref", "$dynamicRef")


class Steps:
    """Counts the steps of one schema.

    Args:
        schema: a JSON Schema, decoded; whether it is sound is for others to say. It must not be changed any more.
    """

    __slots__ = ("_anchors", "_home", "_root", "counts")

    def __init__(self, schema: Any) -> None:
        self._root = schema
        self._home: dict[int, Any] = {}  # by part that holds a reference: the resource that it is in
        self._anchors: dict[str, list[Any]] = {}
        self.counts = type(schema) is dict and self._index() and self._is_large()
        """Whether values have to be counted."""

    def exceeds(self, value: Any) -> bool:
        """Whether the schema takes more steps than may be for this value."""
        if not self.counts:
            return False
        left = min(SCHEMA_STEPS_MAX + STEPS_PER_VALUE * _size(value), STEPS_AT_MOST)
        stack = [(self._root, value)]
        while stack:
            schema, part = stack.pop()
            if type(schema) is not dict:
                continue
            left -= 1
            if left < 0:
                return True
            stack += [(other, part) for other in self._beside(schema)]
            if type(part) is dict:
                stack += _members(schema, part)
            elif type(part) is list:
                stack += _elements(schema, part)
        return False

    def _index(self) -> bool:
        """Note where references are, and what anchors name. False when there are none: then all is as it stands."""
        found = False
        stack = [(self._root, self._root)]
        while stack:
            node, home = stack.pop()
            if type(node) is list:
                stack += [(one, home) for one in node]
            if type(node) is not dict:
                continue
            if type(node.get("$id")) is str:
                home = node
            for name in ("$anchor", "$dynamicAnchor"):
                if type(node.get(name)) is str:
                    self._anchors.setdefault(node[name], []).append(node)
            if any(name in node for name in _REFERENCES):
                self._home[id(node)] = home
                found = True
            stack += [(one, home) for one in node.values()]
        return found

    def _is_large(self) -> bool:
        """Whether the schema refers to itself, or unfolds into more parts than need no counting."""
        sizes: dict[int, int] = {}
        above: set[int] = set()
        stack = [(self._root, False)]
        while stack:
            schema, is_known = stack.pop()
            key = id(schema)
            if is_known:
                above.discard(key)
                sizes[key] = 1 + sum(sizes[id(one)] for one in self._below(schema))
                if sizes[key] > UNFOLDED_MAX:
                    return True
            elif key in above:
                return True  # it comes round to itself
            elif key not in sizes:
                above.add(key)
                stack.append((schema, True))
                stack += [(one, False) for one in self._below(schema)]
        return False

    def _below(self, schema: dict[str, Any]) -> list[dict[str, Any]]:
        """The parts that one part leads to, for the same value or for parts of it."""
        found = [*self._beside(schema)]
        for name in ("properties", "patternProperties"):
            if type(schema.get(name)) is dict:
                found += schema[name].values()
        found += [schema.get(name) for name in (*_OF_MEMBERS, *_OF_ELEMENTS, "propertyNames")]
        if type(schema.get("prefixItems")) is list:
            found += schema["prefixItems"]
        return [one for one in found if type(one) is dict]

    def _beside(self, schema: dict[str, Any]) -> Iterator[Any]:
        """The parts that hold for the same value."""
        for name in _ONE:
            if name in schema:
                yield schema[name]
        for name in _MANY:
            if type(schema.get(name)) is list:
                yield from schema[name]
        if type(schema.get("dependentSchemas")) is dict:
            yield from schema["dependentSchemas"].values()
        for name in _REFERENCES:
            if name in schema:
                yield from self._targets(schema, schema[name])

    def _targets(self, schema: dict[str, Any], reference: Any) -> Iterator[Any]:
        """What a reference may lead to; of those that go by an anchor, all that have its name."""
        if type(reference) is not str or not reference.startswith("#"):
            return
        pointer = reference[1:]
        if pointer and not pointer.startswith("/"):
            yield from self._anchors.get(pointer, ())
            return
        found = self._home[id(schema)]
        for token in pointer.split("/")[1:]:
            name = _unescaped(token)
            if type(found) is dict:
                found = found.get(name)
            elif type(found) is list and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                return
        yield found


def _members(schema: dict[str, Any], value: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    named = schema.get("properties")
    named = named if type(named) is dict else {}
    for name, part in named.items():
        if name in value:
            yield part, value[name]
    if type(schema.get("patternProperties")) is dict:  # which of them fit is not looked at
        for part in schema["patternProperties"].values():
            yield from ((part, member) for member in value.values())
    for keyword in _OF_MEMBERS:
        if type(schema.get(keyword)) is dict:
            yield from ((schema[keyword], member) for name, member in value.items() if name not in named)
    if type(schema.get("propertyNames")) is dict:
        yield from ((schema["propertyNames"], name) for name in value)


def _elements(schema: dict[str, Any], value: list[Any]) -> Iterator[tuple[Any, Any]]:
    first = schema.get("prefixItems")
    first = first if type(first) is list else []
    yield from zip(first, value, strict=False)
    for keyword in _OF_ELEMENTS:
        if type(schema.get(keyword)) is dict:
            rest = value if keyword == "contains" else value[len(first) :]
            yield from ((schema[keyword], element) for element in rest)


def _size(value: Any) -> int:
    """How many parts a value has, itself included."""
    count, stack = 0, [value]
    while stack:
        part = stack.pop()
        count += 1
        if type(part) is dict:
            stack += part.values()
        elif type(part) is list:
            stack += part
    return count


def _unescaped(token: str) -> str:
    """A token of a JSON Pointer in a URI fragment (RFC 6901, section 6)."""
    first, *escaped = token.split("%")
    data = first.encode("utf-8", "replace")
    for part in escaped:
        try:
            data += bytes.fromhex(part[:2]) + part[2:].encode("utf-8", "replace")
        except ValueError:
            data += b"%" + part.encode("utf-8", "replace")
    return data.decode("utf-8", "replace").replace("~1", "/").replace("~0", "~")
