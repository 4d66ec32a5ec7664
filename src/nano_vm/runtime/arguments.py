"""What callers pass, held against what it may be: before anything is touched, so that a mistake is named where it was
made, and not by whatever would have come upon it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nano_vm.canonical import INT_MAX
from nano_vm.errors import InputError


def check_trace_id(trace_id: Any) -> None:
    """Raises InputError TRACE_ID for what is no text. Whether there is such a run the store says."""
    if not isinstance(trace_id, str):
        raise InputError(
            "TRACE_ID",
            f"the trace id is a {type(trace_id).__name__} and should be a text",
            help="pass `trace.trace_id` of the run",
        )


def check_text(name: str, value: Any) -> None:
    """Raises InputError USAGE for what is neither a text nor None."""
    if value is not None and not isinstance(value, str):
        raise _wrong(name, value, "a text", f'{name}="…"')


def check_count(name: str, value: Any) -> None:
    """Raises InputError USAGE for what is no whole number from 0 to 2^53 - 1."""
    if type(value) is not int:
        raise _wrong(name, value, "a whole number", f"{name}=100")
    if not 0 <= value <= INT_MAX:
        raise InputError("USAGE", f"`{name}` is out of range", help=f"a whole number from 0 to {INT_MAX}")


def check_mapping(name: str, value: Any, example: str) -> None:
    """Raises InputError USAGE for what is neither a mapping with texts as names nor None.

    Args:
        example: how it is written.
    """
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object of values by name", example)
    for key in value:
        if not isinstance(key, str):
            raise _wrong(f"a name in {name}", key, "a text", example)


def check_callable(name: str, value: Any) -> None:
    """Raises InputError USAGE for what is neither None nor can be called."""
    if value is not None and not callable(value):
        raise _wrong(name, value, "a function", f"{name}=print")


def check_part(name: str, value: Any, method: str, example: str) -> None:
    """Raises InputError USAGE for a part of an engine, given or not, that has not got the method it is called by."""
    if value is not None and not callable(getattr(value, method, None)):
        raise _wrong(name, value, f"something with `{method}`", example)


def check_replanned(value: Any) -> None:
    """Raises InputError USAGE where a run could not say what it goes on with."""
    check_mapping("replanned", value, _REPLANNED)
    kinds = {"head": str, "number": int, "program": str, "run": str}
    if value is not None and {name: type(part) for name, part in value.items()} != kinds:
        raise InputError("USAGE", "`replanned` does not say what is gone on with", help=_REPLANNED)


_REPLANNED = 'replanned={"run": old.trace_id, "head": old.head, "program": old.program_hash, "number": 1}'


def _wrong(name: str, value: Any, wanted: str, example: str) -> InputError:
    kind = "null" if value is None else type(value).__name__
    return InputError("USAGE", f"`{name}` is a {kind} and should be {wanted}", help=example)
