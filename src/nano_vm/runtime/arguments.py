"""What callers pass, held against what it may be: before anything is touched, so that a mistake is named where it was
made, and not by whatever would have come upon it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from inspect import isfunction
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


def check_text(name: str, value: Any, *, needed: bool = False) -> None:
    """Raises InputError USAGE for what is neither a text nor, unless it is needed, None."""
    if (needed or value is not None) and not isinstance(value, str):
        raise _wrong(name, value, "a text", f'{name}="…"')


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises InputError USAGE for what is neither one of these texts nor None: nothing would ever be found under it."""
    check_text(name, value)
    if value is not None and value not in choices:
        raise InputError("USAGE", f"`{name}` is none that there is", help=f"one of: {', '.join(choices)}")


def check_hash(name: str, value: Any) -> None:
    """Raises InputError USAGE for what is no text: whether something is stored under it the store says."""
    if not isinstance(value, str):
        raise _wrong(name, value, "a hash", f'{name}="sha256:…"')


def check_path(name: str, value: Any) -> None:
    """Raises InputError USAGE for what cannot be the name of a file."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise _wrong(name, value, "the path of a file", f'{name}="runs.db"')
    try:
        sound = bool(path) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        sound = False
    if not sound:
        raise InputError("USAGE", f"`{name}` is no path that a file can have", help=f'{name}="runs.db"')


def check_count(name: str, value: Any) -> None:
    """Raises InputError USAGE for what is no whole number from 0 to 2^53 - 1."""
    if type(value) is not int:
        raise _wrong(name, value, "a whole number", f"{name}=100")
    if not 0 <= value <= INT_MAX:
        raise InputError("USAGE", f"`{name}` is out of range", help=f"a whole number from 0 to {INT_MAX}")


def check_seconds(name: str, value: Any, *, least: float | None = None) -> None:
    """Raises InputError USAGE for what is neither a number of seconds above 0 nor None; with `least`, for what is no
    number from there on."""
    if value is None and least is None:
        return
    if type(value) not in (int, float):
        raise _wrong(name, value, "a number of seconds", f"{name}=30")
    if not (value > 0 if least is None else least <= value) or value == float("inf"):
        bounds = "above 0" if least is None else f"from {least} on"
        raise InputError("USAGE", f"`{name}` is out of range", help=f"a number {bounds}: {name}=30")


def check_is(name: str, value: Any, kind: type, example: str) -> None:
    """Raises InputError USAGE for what is not of that kind."""
    if not isinstance(value, kind):
        raise _wrong(name, value, f"a `{kind.__name__}`", example)


def check_switch(name: str, value: Any) -> None:
    """Raises InputError USAGE for what is neither True nor False: a text such as "no" would count as True."""
    if type(value) is not bool:
        raise _wrong(name, value, "True or False", f"{name}=False")


def check_mapping(name: str, value: Any, example: str, *, needed: bool = False) -> None:
    """Raises InputError USAGE for what is neither a mapping with texts as names nor, unless it is needed, None.

    Args:
        example: how it is written.
    """
    if value is None and not needed:
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


def check_part(name: str, value: Any, method: str, example: str, *, needed: bool = False) -> None:
    """Raises InputError USAGE for a part that has not got the method it is called by; None will do unless it is needed.
    A class in the place of an instance has not got it."""
    called = getattr(value, method, None)
    if (needed or value is not None) and (
        not callable(called) or (isinstance(value, type) and isfunction(called))
    ):
        raise _wrong(name, value, f"something with `{method}`", example)


def check_client(name: str, value: Any) -> None:
    """Raises InputError USAGE for what is no model client."""
    check_part(name, value, "complete", _CLIENT, needed=True)


def check_replanned(value: Any) -> None:
    """Raises InputError USAGE where a run could not say what it goes on with."""
    check_mapping("replanned", value, _REPLANNED)
    kinds = {"head": str, "number": int, "program": str, "run": str}
    if value is not None and {name: type(part) for name, part in value.items()} != kinds:
        raise InputError("USAGE", "`replanned` does not say what is gone on with", help=_REPLANNED)


def check_all(name: str, values: Any, kind: type, example: str) -> None:
    """Raises InputError USAGE for what is no list, or no tuple, of that kind alone."""
    if not isinstance(values, list | tuple):
        raise _wrong(name, values, f"a list of `{kind.__name__}`", example)
    for value in values:
        if not isinstance(value, kind):
            raise _wrong(f"a part of {name}", value, f"a `{kind.__name__}`", example)


_CLIENT = 'MockLLMAdapter("yes")'
_REPLANNED = 'replanned={"run": old.trace_id, "head": old.head, "program": old.program_hash, "number": 1}'


def _wrong(name: str, value: Any, wanted: str, example: str) -> InputError:
    kind = "null" if value is None else type(value).__name__
    if isinstance(value, type):
        kind = f"class (`{value.__name__}`)"
    return InputError("USAGE", f"`{name}` is a {kind} and should be {wanted}", help=example)
