"""Letters: what somebody tells a run, before it is an event of the run.

One is written and checked before the run is touched, wherever it is driven; as which event the run takes it is known by
whoever drives it, from the state that it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.kernel import events as ev
from nano_vm.kernel.limits import EVENT_ID_CHARS_MAX, PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import COMPENSATION_KEY, Activity, Phase, Rejection, State
from nano_vm.kernel.transition import all_waits, event_digest
from nano_vm.program.compiled import CompiledProgram, ToolAction
from nano_vm.runtime.repetition import AUTO, repeated_id, sent_by
from nano_vm.runtime.rights import principal_of

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

_UNSET = ev.UNSET
_APPROVALS = ("approval",)


def event_letter(
    data: Any,
    event_id: str | None,
    name: str | None,
    step: str | None,
    item: int | None,
    principal: str | Mapping[str, Any] | None,
    approves: bool,
) -> dict[str, Any]:
    """An event for a run. With `approves` nothing takes it but what waits for an approval.

    Raises:
        InputError: EVENT_ID, VALUE_TOO_LARGE, and as `_checked`.
    """
    data, encoded = canonical.normalize(data)
    if len(encoded) > PAYLOAD_BYTES_MAX:
        canonical.check_size(encoded, PAYLOAD_BYTES_MAX, "the event")
    if event_id is not None and not (type(event_id) is str and 0 < len(event_id) <= EVENT_ID_CHARS_MAX):
        raise InputError("EVENT_ID", f"an event id has 1 to {EVENT_ID_CHARS_MAX} characters")
    if event_id is not None and event_id.startswith(AUTO):
        raise InputError("EVENT_ID", f"event ids beginning with `{AUTO}` are reserved")
    who = principal_of(principal)
    letter = {"event_id": event_id, "name": name, "step": step, "item": item, "data": data, "principal": who}
    return _checked(letter, "name", "step") | ({"approves": True} if approves else {})


def cancel_letter(reason: str, principal: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """That a run is to end. Raises InputError as `_checked`."""
    return _checked({"reason": reason, "principal": principal_of(principal)}, "reason")


def resolve_letter(
    step: str, resolution: str, value: Any, item: int | None, principal: str | Mapping[str, Any] | None
) -> dict[str, Any]:
    """What became of an outcome that nobody knows.

    Raises:
        InputError: RESOLUTION, and as `_checked`.
    """
    if resolution not in ("succeeded", "failed", "repeat"):
        raise InputError(
            "RESOLUTION", f"no resolution `{resolution}`", help="one of: succeeded, failed, repeat"
        )
    value, _ = canonical.normalize(value)
    letter = {
        "step": step,
        "resolution": resolution,
        "value": value,
        "item": item,
        "principal": principal_of(principal),
    }
    return _checked(letter, "step")


def _checked(letter: dict[str, Any], *texts: str) -> dict[str, Any]:
    """The letter, if all of it can be journaled: before a run is touched.

    Raises:
        InputError: EVENT_TEXT, EVENT_ITEM, VALUE_STRING, VALUE_NUMBER.
    """
    for name in texts:
        if letter[name] is not None and type(letter[name]) is not str:
            raise InputError("EVENT_TEXT", f"the {name} is no text", help="give a text")
    item = letter.get("item")
    if item is not None and (type(item) is not int or not 0 <= item <= canonical.INT_MAX):
        raise InputError("EVENT_ITEM", "an item is the place of an element of a map: 0, 1, 2, …")
    canonical.encode(letter)
    return letter


def kinds_for(kind: str, letter: dict[str, Any]) -> tuple[str, ...]:
    """What may take a letter."""
    if kind == "resolve":
        return ("outcome",)
    return _APPROVALS if letter.get("approves") else ("event", "approval", "tool")


# --- as events ----------------------------------------------------------------------------------------------


def event_of(
    engine: Engine,
    program: CompiledProgram,
    state: State,
    kind: str,
    letter: dict[str, Any],
    digest: Callable[[bytes], str],
) -> tuple[ev.Event, bytes | None] | Rejection:
    """The event that a letter is to the run in this state, and its payload's bytes. `digest` tells its content."""
    now = engine.clock.now_ms()
    who = _UNSET if letter.get("principal") is None else letter["principal"]
    if kind == "cancel":
        details = {"reason": letter["reason"]}
        return ev.RunCancelled(at_ms=now, payload=details, principal=who), canonical.encode(details)
    if kind == "resolve":
        return _resolution(engine, program, state, letter, now, who)
    event = ev.EventReceived(
        at_ms=now,
        event_id=letter["event_id"] or "",
        item=_UNSET if letter.get("item") is None else letter["item"],
        name=_UNSET if letter["name"] is None else letter["name"],
        payload=letter["data"],
        principal=who,
        step=_UNSET if letter["step"] is None else letter["step"],
    )
    if letter["event_id"] is None:
        kinds = kinds_for(kind, letter)
        event.event_id = _auto_id(program, state, event, letter.get("mail_id"), digest, kinds)
    return event, canonical.encode(letter["data"])


def canonical_digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return canonical.digest(data)[7:]


def _auto_id(
    program: CompiledProgram,
    state: State,
    event: ev.EventReceived,
    mail_id: str | None,
    keyed: Callable[[bytes], str],
    kinds: tuple[str, ...],
) -> str:
    """An event without an id of its own is the same one when its content is, unless the run has come to wait again:
    then it is the answer to the new wait."""
    digest = event_digest(event)
    wanted = [
        wait
        for wait in all_waits(program, state)
        if wait.kind in kinds
        and (event.step is _UNSET or wait.step == event.step)
        and (event.item is _UNSET or wait.item == event.item)
        and (event.name is _UNSET or wait.event == event.name)
    ]
    known = None if wanted else repeated_id(state, event)
    if known is not None:
        return known
    personal = kinds == _APPROVALS or any(wait.kind == "approval" for wait in wanted)
    sender = sent_by(event.principal) if personal else ""
    if mail_id is not None:  # dealt with once, even if its owner is gone before it is answered
        return AUTO + canonical.digest_value([state.run, mail_id])[7:39] + sender
    place = [state.seq, [wait.to_dict() for wait in wanted]]
    return AUTO + keyed(canonical.encode([place, digest]))[:32] + sender


def _resolution(
    engine: Engine, program: CompiledProgram, state: State, letter: dict[str, Any], now: int, who: Any
) -> tuple[ev.Event, bytes | None] | Rejection:
    step, item = letter["step"], letter["item"]
    found = []
    for key, activity in state.active.items():
        if activity.phase is not Phase.UNKNOWN:
            continue
        compensation = key == COMPENSATION_KEY
        name = state.undo[-1].step if compensation else program.steps[activity.step].id
        if name == step and (item is None or activity.item == item):
            found.append((activity, compensation))
    if not found:
        return Rejection("NOT_WAITING", f"no outcome of `{step}` is unknown")
    if len(found) > 1:
        return Rejection("AMBIGUOUS", f"several outcomes of `{step}` are unknown: name the item")
    activity, compensation = found[0]
    resolution, value = letter["resolution"], letter["value"]
    payload: Any = _UNSET
    if resolution == "succeeded":
        payload = value
    elif resolution == "failed":
        payload = {"message": value if type(value) is str else ""}
    event = ev.OutcomeResolved(
        at_ms=now,
        attempt=activity.attempt,
        by="operator",
        compensation=True if compensation else _UNSET,
        declared=_declared(engine, program, activity) if resolution == "succeeded" else _UNSET,
        draw=engine.entropy.draw() if resolution == "failed" else _UNSET,
        item=activity.item if activity.item >= 0 else _UNSET,
        occurrence=activity.occurrence,
        payload=payload,
        principal=who,
        resolution=resolution,
        step=step,
    )
    return event, None if payload is _UNSET else canonical.encode(payload)


def _declared(engine: Engine, program: CompiledProgram, activity: Activity) -> Any:
    """What the tool says of its output holds for what is put in its place, too."""
    action = program.steps[activity.step].action if activity.step >= 0 else None
    spec = engine.tools.spec(action.tool) if type(action) is ToolAction else None
    return _UNSET if spec is None else spec.schema.output_label or _UNSET
