"""E -> E': raw input of any provenance becomes a typed event, or a rejection that says why not (SPEC §4).

Nothing here raises. What comes out is safe to apply: exact types, bounded texts, non-negative quantities, and
a payload that is canonical JSON sharing nothing with the input.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.kernel import events as ev
from nano_vm.kernel.limits import (
    EVENT_ID_CHARS_MAX,
    NAME_CHARS_MAX,
    PAYLOAD_BYTES_MAX,
    ROLES_MAX,
    SWITCH_REASONS,
    SWITCHES_MAX,
    TEXT_CHARS_MAX,
)
from nano_vm.kernel.state import REJECTIONS, Rejection, RunStatus
from nano_vm.program.labels import ALL, DECLARED

_ENVELOPE_BYTES_MAX = 1024 * 1024  # facts beside the payload
_NAMES = frozenset({"name", "code", "key", "budget", "effect", "by", "model", "program", "provider", "tool"})
_TABLES = {"budgets": "quantity", "programs": "name", "labels": "label"}  # and what their values are
_PATHS = frozenset({"step", "child"})  # names joined through children
_COUNTED_FROM_1 = frozenset({"attempt", "occurrence"})
_MOST = {"draw": 999_999, "label": ALL, "output_label": ALL, "undo_label": ALL}
_CHOICES: dict[str, frozenset[str]] = {
    "resolution": frozenset({"succeeded", "failed", "repeat"}),
    "by": frozenset({"contract", "reconcile", "operator"}),
    "budget": frozenset({"tokens", "cost_nanousd", "steps"}),
    "declared": frozenset(DECLARED),
    "verdict": frozenset({"accepted", "rejected"}),
    "status": frozenset(status.value for status in RunStatus if status.is_terminal),
}


def normalize_event(type: str, raw: object) -> ev.Event | Rejection:
    """Read one event.

    Args:
        type: the event's name, a key of `EVENT_TYPES`.
        raw: its fields as an object, or the UTF-8 JSON text of one. `payload` is among the fields.

    Returns:
        The event, or a Rejection: MALFORMED when it is not one, OVERSIZED when it is beyond a limit.
    """
    try:
        return _read(type, raw)
    except _RefusedError as refused:
        return Rejection(refused.code, refused.message)
    except RecursionError:
        return Rejection("MALFORMED", "the event is nested too deeply")


def fault_of(event: ev.Event) -> str:
    """What is beyond the bounds of a recorded event's facts, which `normalize_event` would have refused; empty when
    nothing is."""
    try:
        for name in event.__struct_fields__:
            value = getattr(event, name)
            if name != "payload" and value is not msgspec.UNSET:
                _check(name, value)
    except _RefusedError as refused:
        return refused.message
    return ""


class _RefusedError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


def _read(kind_name: str, raw: object) -> ev.Event:
    kind = ev.EVENT_TYPES.get(kind_name) if type(kind_name) is str else None
    if kind is None:
        raise _RefusedError("MALFORMED", "there is no event of that type")
    if type(raw) is bytes or type(raw) is bytearray or type(raw) is memoryview:
        raw = _parse(bytes(raw))
    if type(raw) is not dict:
        raise _RefusedError("MALFORMED", "an event is an object")
    fields: dict[str, Any] = dict(raw)
    has_payload = "payload" in fields
    payload = fields.pop("payload", None)
    facts = _plain(fields, _ENVELOPE_BYTES_MAX, "the event")
    try:
        event = msgspec.convert(facts, kind, strict=True)
    except (msgspec.ValidationError, ValueError, OverflowError):
        # The validator's own words may quote the input, ours never do.
        raise _RefusedError("MALFORMED", f"the fields are not those of a {kind_name}") from None
    if has_payload and "payload" not in kind.__struct_fields__:
        raise _RefusedError("MALFORMED", f"a {kind_name} has no payload")
    if has_payload:
        event.payload = _plain(payload, PAYLOAD_BYTES_MAX, "the payload")  # type: ignore[union-attr]
    for name in kind.__struct_fields__:
        value = getattr(event, name)
        if name != "payload" and value is not msgspec.UNSET:
            _check(name, value)
    return event


def _parse(text: bytes) -> object:
    if len(text) > PAYLOAD_BYTES_MAX + _ENVELOPE_BYTES_MAX:
        raise _RefusedError("OVERSIZED", f"the event takes {len(text)} bytes")
    try:
        # Decoded here, because `json` would guess at UTF-16 and UTF-32.
        return json.loads(text.decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant)
    except ValueError:
        raise _RefusedError("MALFORMED", "the event is not JSON in UTF-8") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Of two members with one name every reader takes another one.
        raise ValueError("duplicate member")
    return members


def _no_constant(word: str) -> object:
    raise ValueError(word)


def _plain(value: Any, limit: int, what: str) -> Any:
    try:
        plain, encoded = canonical.normalize(value)
    except InputError as error:
        raise _RefusedError("MALFORMED", f"{what} is not JSON data ({error.code})") from None
    if len(encoded) > limit:
        raise _RefusedError("OVERSIZED", f"{what} takes {len(encoded)} bytes, at most {limit}")
    return plain


def _check(name: str, value: Any) -> None:
    """Bounds of one field beyond its type."""
    if type(value) is int:
        _check_number(name, value)
    elif type(value) is str:
        _check_text(name, value)
    elif name == "principal":
        _check_principal(value)
    elif name in _TABLES:
        for key, entry in value.items():
            _check_text("name", key)
            _check(_TABLES[name], entry)
    elif name in ("features", "names", "incomplete", "opens", "keys"):
        for entry in value:
            _check_text("text", entry)
    elif name == "switches":
        _check_switches(value)


def _check_number(name: str, value: int) -> None:
    least = 1 if name in _COUNTED_FROM_1 else 0
    most = _MOST.get(name, canonical.INT_MAX)
    if not least <= value <= most:
        raise _RefusedError("MALFORMED", f"`{name}` is not from {least} to {most}")


def _check_text(name: str, value: str) -> None:
    if name == "event_id":
        limit, least = EVENT_ID_CHARS_MAX, 1
    elif name in _NAMES:
        limit, least = NAME_CHARS_MAX, 1
    else:
        limit, least = TEXT_CHARS_MAX, 1 if name in _PATHS else 0
    if len(value) > limit:
        raise _RefusedError("OVERSIZED", f"`{name}` has {len(value)} characters, at most {limit}")
    if len(value) < least:
        raise _RefusedError("MALFORMED", f"`{name}` is empty")
    choices = _CHOICES.get(name)
    if choices is not None and value not in choices:
        raise _RefusedError("MALFORMED", f"`{name}` is none of {', '.join(sorted(choices))}")
    if name == "code" and value not in REJECTIONS:
        raise _RefusedError("MALFORMED", "`code` is no rejection")


def _check_switches(switches: list[ev.Switch]) -> None:
    if not 0 < len(switches) <= SWITCHES_MAX:
        raise _RefusedError("MALFORMED", f"there are 1 to {SWITCHES_MAX} switches")
    for switch in switches:
        if switch.reason not in SWITCH_REASONS:
            raise _RefusedError("MALFORMED", f"`reason` is none of {', '.join(sorted(SWITCH_REASONS))}")
        _check_number("attempts", switch.attempts)
        for text in (switch.error, switch.origin, switch.to):
            _check_text("provider", text)


def _check_principal(principal: dict[str, Any]) -> None:
    roles = principal.get("roles", [])
    if not principal.keys() <= {"id", "roles", "tenant"} or type(roles) is not list or len(roles) > ROLES_MAX:
        raise _RefusedError("MALFORMED", "a principal has an `id`, `roles` and a `tenant`")
    for text in (principal.get("id"), principal.get("tenant", "default"), *roles):
        if type(text) is not str or not 0 < len(text) <= NAME_CHARS_MAX:
            raise _RefusedError("MALFORMED", "the id, roles and tenant of a principal are short texts")
