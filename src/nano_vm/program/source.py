"""What the readers of YAML and JSON text have in common: limits, problems, spans and numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from nano_vm.canonical import INT_MAX

BYTES_MAX = 64 * 1024 * 1024
NODES_MAX = 5_000_000
DEPTH_MAX = 64
ALIAS_NODES_MAX = 100_000

# Takes the place of a number that cannot be held, chosen so that no field complains about it a second time.
PLACEHOLDER = 1


class Problem(NamedTuple):
    """Something wrong with a text: `start` is an index into it, `length` in characters."""

    code: str
    message: str
    help: str | None
    start: int
    length: int


class Span(NamedTuple):
    """Where a key or value stands in a text. `style` and `value` are those of a scalar; `value` is None for
    others."""

    start: int
    end: int
    style: str
    value: str | None


def number(text: str) -> Any:
    """Returns the int or float a decimal literal stands for, or the `Problem` with it.

    Floats with an integral value become ints, as they would in canonical JSON.
    """
    if not any(character in ".eE" for character in text):
        # More digits than this are beyond 2^53-1 whatever they are; int() of millions of them is slow.
        value: float | int = int(text) if len(text) <= 20 else INT_MAX + 1
        if -INT_MAX <= value <= INT_MAX:
            return value
        shown = text if len(text) <= 40 else f"{text[:37]}…"
        help = f'write "{shown}" in quotes if it is an identifier'
        return Problem("DOCUMENT_NUMBER", f"`{shown}` is beyond what JSON holds exactly (2^53-1)", help, 0, 1)
    value = float(text)
    if not math.isfinite(value):
        return Problem(
            "DOCUMENT_NUMBER", "a number beyond the range of floats", "write a smaller number", 0, 1
        )
    return whole(value)


def whole(value: float) -> int | float:
    """Returns a float with an integral value as an int, others as they are (RFC 8785 writes both alike)."""
    return int(value) if value.is_integer() and abs(value) <= INT_MAX else value
