"""What is wrong with a value, by a JSON Schema that is known to be sound."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jsonschema_rs

from nano_vm import canonical
from nano_vm.program.schema_steps import TOO_MANY_STEPS, Steps

EXPLAINED_BYTES_MAX = 16 * 1024  # of larger values the first fault alone is told: each element may have one
WANTED_CHARS_MAX = 200


@lru_cache(maxsize=1024)
def validator(schema: bytes) -> tuple[Any, Steps | None]:
    """A compiled JSON Schema 2020-12 validator for the schema with these canonical bytes, and what counts its steps
    where they have to be counted. Remote references are not fetched."""
    decoded = canonical.decode(schema)
    steps = Steps(decoded)
    return jsonschema_rs.Draft202012Validator(decoded), steps if steps.counts else None


class _Kind(NamedTuple):
    name: str


class _TooManySteps(NamedTuple):
    """A fault that stands for all that nobody will look for."""

    message: str = TOO_MANY_STEPS
    instance_path: tuple[str | int, ...] = ()
    kind: _Kind = _Kind("SCHEMA_STEPS_MAX")


def faults(schema: bytes, value: Any) -> list[Any]:
    """What is wrong with a value: all of it, or the first fault of a large one. Each has `message`, `instance_path` and
    `kind`. Where the schema's references make more of the value than `SCHEMA_STEPS_MAX` allows, that is its fault."""
    check, steps = validator(schema)
    if steps is not None and steps.exceeds(value):
        return [_TooManySteps()]
    try:
        check.validate(value)
        return []
    except jsonschema_rs.ValidationError as fault:
        first = fault
    small = len(canonical.encode(value)) <= EXPLAINED_BYTES_MAX
    return list(check.iter_errors(value)) if small else [first]


def wanted_by(schema: Any, fault: Any) -> str:
    """What a schema wants where a value does not fit it, as `minimum: 1`: the author's words, nothing of the value."""
    keyword: str = fault.kind.name
    for part in getattr(fault, "schema_path", ()):
        try:
            schema = schema[part]
        except (KeyError, IndexError, TypeError):
            return keyword
        if part == keyword:
            wanted = canonical.encode(schema).decode()
            return f"{keyword}: {wanted}" if len(wanted) <= WANTED_CHARS_MAX else keyword
    return keyword
