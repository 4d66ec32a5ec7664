"""What is made of an exception that comes out of a call: whose it is, what it says, and whether contact was lost."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.kernel.limits import TEXT_CHARS_MAX
from nano_vm.runtime.completions import encodable_text

TRACEBACK_CHARS_MAX = 8_000


def lost_contact(error: BaseException) -> bool:
    """Whether an exception is, or was caused by, losing contact in the middle of a call."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, OSError | TimeoutError | asyncio.TimeoutError | EOFError):
            return True
        # HTTP clients have exceptions of their own for the same thing; they are told by name, not imported.
        if any(kind.__name__ in _TRANSPORT_ERRORS for kind in type(cause).__mro__):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


_TRANSPORT_ERRORS = frozenset({"TransportError", "ConnectionError", "Timeout", "ClientConnectionError"})


def describe(error: BaseException) -> dict[str, Any]:
    message = message_of(error)[:TRACEBACK_CHARS_MAX]
    details, _ = encodable({"message": message, "traceback": traceback_of(error)})
    return details


def message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception may be as broken as anything else
        return f"{type(error).__name__}, which cannot be printed"


def traceback_of(error: BaseException) -> str:
    """The traceback from the tool's own frame on: which of our ways led to it is not the author's business."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("nano_vm.runtime."):
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))[-TRACEBACK_CHARS_MAX:]
    except Exception:
        return ""


def is_ours(error: BaseException) -> bool:
    """Whether an exception out of a call is meant for us, not a failure of what was called."""
    if isinstance(error, asyncio.CancelledError):
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return False  # in a thread nobody cancels: the tool has raised it
        return task is None or task.cancelling() > 0  # else something inside the tool was cancelled
    return isinstance(error, KeyboardInterrupt | GeneratorExit)


def text_of(value: Any) -> str:
    """A name or code that came from outside, as text that facts may hold."""
    return encodable_text(value if type(value) is str else str(value))[:TEXT_CHARS_MAX]


def encodable(details: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        return canonical.normalize(details)
    except InputError:  # a message may hold anything, lone surrogates included
        return canonical.normalize(_scrub(details))


def _scrub(value: Any) -> Any:
    if type(value) is str:
        return encodable_text(value)
    if type(value) is dict:
        return {key: _scrub(item) for key, item in value.items()}
    if type(value) is list:
        return [_scrub(item) for item in value]
    return value
