"""Acting on runs from outside: resume, cancel, resolve - on runs this process drives, on parked ones, and, by mail, on
runs that another process owns. Exactly one delivery of an event wins, wherever it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import InputError, RejectedError
from nano_vm.journal.port import Mail
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.limits import EVENT_ID_CHARS_MAX, PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import COMPENSATION_KEY, Phase, Rejection, State
from nano_vm.kernel.transition import all_waits, child_run_id, event_digest
from nano_vm.program.compiled import CompiledProgram
from nano_vm.runtime.driver import Run, RunLeft

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

_UNSET = ev.UNSET
POLL_MS = 20  # how often an answer from another process is looked for
AUTO = "auto:"  # prefix of event ids made from content


async def resume(
    engine: Engine,
    trace_id: str,
    data: Any,
    event_id: str | None,
    name: str | None,
    step: str | None,
    principal: str | Mapping[str, Any] | None,
) -> Trace:
    """See `Engine.resume`."""
    from nano_vm.runtime.engine import principal_of

    data, encoded = canonical.normalize(data)
    if len(encoded) > PAYLOAD_BYTES_MAX:
        canonical.check_size(encoded, PAYLOAD_BYTES_MAX, "the event")
    if event_id is not None and not 0 < len(event_id) <= EVENT_ID_CHARS_MAX:
        raise InputError("EVENT_ID", f"an event id has 1 to {EVENT_ID_CHARS_MAX} characters")
    who = principal_of(principal)
    letter = {"event_id": event_id, "name": name, "step": step, "data": data, "principal": who}
    return await _deliver(engine, trace_id, "event", letter)


async def cancel(
    engine: Engine, trace_id: str, reason: str, principal: str | Mapping[str, Any] | None
) -> Trace:
    """See `Engine.cancel`."""
    from nano_vm.runtime.engine import principal_of

    letter = {"reason": reason, "principal": principal_of(principal)}
    return await _deliver(engine, trace_id, "cancel", letter)


async def resolve(
    engine: Engine,
    trace_id: str,
    step: str,
    resolution: str,
    value: Any,
    item: int | None,
    principal: str | Mapping[str, Any] | None,
) -> Trace:
    """See `Engine.resolve`."""
    from nano_vm.runtime.engine import principal_of

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
    return await _deliver(engine, trace_id, "resolve", letter)


# --- delivery -----------------------------------------------------------------------------------------------


async def _deliver(engine: Engine, trace_id: str, kind: str, letter: dict[str, Any]) -> Trace:
    """Bring a letter to whoever owns the run: a driver here, nobody (then we take it over), or another process."""
    from nano_vm.runtime import recovery

    mail_id: str | None = None
    while True:
        live = engine.live.get(trace_id)
        if live is not None:
            try:
                return await _to_live(engine, live, kind, letter)
            except RunLeft:
                continue
        record = engine.store.record(trace_id)
        if record.parent is not None:
            raise InputError(
                "CHILD_RUN",
                f"run {trace_id} is a child: its waits and its cancellation go through its parent",
                help=f"use {record.parent}",
            )
        run = await recovery.take_over(engine, trace_id)
        if run is not None:
            return await _to_parked(engine, run, kind, letter)
        if mail_id is None:
            mail_id = _post(engine, trace_id, kind, letter)
        answer = engine.store.answered(trace_id, mail_id)
        if answer is not None:
            _raise_refusal(trace_id, canonical.decode(answer))
            return engine.trace(trace_id)
        await engine.clock.sleep_until(engine.clock.now_ms() + POLL_MS)


def _post(engine: Engine, trace_id: str, kind: str, letter: dict[str, Any]) -> str:
    given = letter.get("event_id")
    mail_id = f"event:{given}" if given is not None else f"{kind}:{engine.entropy.salt().hex()}"
    engine.store.post(
        trace_id,
        Mail(mail_id=mail_id, kind=kind, body=canonical.encode(letter), posted_at_ms=engine.clock.now_ms()),
    )
    return mail_id


async def _to_live(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> Trace:
    rejection: Rejection | None
    target = route(run, kind, letter)
    if target is not None:
        rejection = await _to_child(run, target, kind, letter)
    else:
        built = _build(engine, run.program, run.state, kind, letter)
        if isinstance(built, Rejection):
            rejection = built
        else:
            rejection = await run.deliver(*built)
    if rejection is not None:
        _refuse(engine, run, kind, letter, rejection)
    if run.settled is None:
        run.settled = asyncio.get_running_loop().create_future()
    await asyncio.shield(run.settled)
    return engine.trace_of(run)


async def _to_parked(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> Trace:
    """Apply a letter to a run we have just taken over, and drive it on; or refuse, and put it back."""
    target = route(run, kind, letter)
    if target is not None:
        # A child waits for it: it is delivered there, and the parent drives on.
        answer = _to_child(run, target, kind, letter)
        await engine.drive(run)
        if (refused := await answer) is not None and refused.code != "DUPLICATE":
            _raise_refusal(run.record.run_id, {"code": refused.code, "message": refused.message})
        return engine.trace_of(run)
    rejection = offer_letter(engine, run, kind, letter)
    if rejection is not None:
        try:
            _refuse(engine, run, kind, letter, rejection)
        finally:
            await run.flush(run.update(release=True))
        return engine.trace_of(run)
    await engine.drive(run)
    return engine.trace_of(run)


def offer_letter(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> Rejection | None:
    """Put a letter to the kernel, as the event it stands for."""
    built = _build(engine, run.program, run.state, kind, letter)
    if isinstance(built, Rejection):
        return built
    event, payload = built
    return run.offer(event, payload)


def _build(
    engine: Engine, program: CompiledProgram, state: State, kind: str, letter: dict[str, Any]
) -> tuple[ev.Event, bytes | None] | Rejection:
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
        name=_UNSET if letter["name"] is None else letter["name"],
        payload=letter["data"],
        principal=who,
        step=_UNSET if letter["step"] is None else letter["step"],
    )
    if letter["event_id"] is None:
        event.event_id = _auto_id(program, state, event)
    elif event.event_id.startswith(AUTO):
        return Rejection("MALFORMED", f"event ids beginning with `{AUTO}` are reserved")
    if state.status.is_terminal and event.event_id in state.seen:
        same = state.seen[event.event_id] == event_digest(event)
        return Rejection("DUPLICATE" if same else "EVENT_CONFLICT", f"event `{event.event_id}` is known")
    return event, canonical.encode(letter["data"])


def _auto_id(program: CompiledProgram, state: State, event: ev.EventReceived) -> str:
    """An event without an id of its own is the same one when its content is, unless the run has come to wait again:
    then it is the answer to the new wait."""
    digest = event_digest(event)
    wanted = [
        wait
        for wait in all_waits(program, state)
        if wait.kind in ("event", "approval", "tool")
        and (event.step is _UNSET or wait.step == event.step)
        and (event.name is _UNSET or wait.event == event.name)
    ]
    if not wanted:
        for known, content in state.seen.items():
            if known.startswith(AUTO) and content == digest:
                return known
    place = [state.seq, [wait.to_dict() for wait in wanted]]
    return AUTO + canonical.digest_value([place, digest])[7:39]


def _resolution(
    engine: Engine, program: CompiledProgram, state: State, letter: dict[str, Any], now: int, who: Any
) -> tuple[ev.Event, bytes | None] | Rejection:
    step, item = letter["step"], letter["item"]
    found = None
    for key, activity in state.active.items():
        if activity.phase is not Phase.UNKNOWN:
            continue
        compensation = key == COMPENSATION_KEY
        name = state.undo[-1].step if compensation else program.steps[activity.step].id
        if name == step and (item is None or activity.item == item):
            found = (activity, compensation)
            break
    if found is None:
        return Rejection("NOT_WAITING", f"no outcome of `{step}` is unknown")
    activity, compensation = found
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
        draw=engine.entropy.draw() if resolution == "failed" else _UNSET,
        item=activity.item if activity.item >= 0 else _UNSET,
        occurrence=activity.occurrence,
        payload=payload,
        principal=who,
        resolution=resolution,
        step=step,
    )
    return event, None if payload is _UNSET else canonical.encode(payload)


def route(run: Run, kind: str, letter: dict[str, Any]) -> str | None:
    """The child run that waits for a letter, if it is not the run itself."""
    if kind == "cancel":
        return None
    for wait in all_waits(run.program, run.state):
        if wait.kind == "child":
            if any(_fits(kind, letter, inner) for inner in wait.waits):
                item = -1 if wait.item is None else wait.item
                return child_run_id(run.state.run, wait.step, wait.occurrence, item, wait.attempt)
        elif _fits(kind, letter, wait.to_dict()):
            return None
    return None


def _to_child(run: Run, child: str, kind: str, letter: dict[str, Any]) -> asyncio.Future[Rejection | None]:
    answer: asyncio.Future[Rejection | None] = asyncio.get_running_loop().create_future()
    run.letters[child] = (kind, letter, answer)
    run.wake()
    return answer


def _fits(kind: str, letter: dict[str, Any], wait: dict[str, Any]) -> bool:
    if wait["kind"] == "child":
        return any(_fits(kind, letter, inner) for inner in wait.get("waits", ()))
    if kind == "resolve":
        return bool(wait["kind"] == "outcome" and wait["step"] == letter["step"])
    if wait["kind"] not in ("event", "approval", "tool"):
        return False
    if letter["step"] is not None and wait["step"] != letter["step"]:
        return False
    return letter["name"] is None or wait.get("event") == letter["name"]


# --- refusals -----------------------------------------------------------------------------------------------


def _refuse(engine: Engine, run: Run, kind: str, letter: dict[str, Any], rejection: Rejection) -> None:
    """Journal what was refused and say so - except that a repetition is answered like the first time."""
    if rejection.code == "DUPLICATE":
        return
    if kind == "event":
        note_refusal(engine, run, letter, rejection)
    _raise_refusal(run.record.run_id, {"code": rejection.code, "message": rejection.message})


def note_refusal(engine: Engine, run: Run, letter: dict[str, Any], rejection: Rejection) -> None:
    who = _UNSET if letter["principal"] is None else letter["principal"]
    run.record_event(
        ev.EventRefused(
            at_ms=engine.clock.now_ms(),
            code=rejection.code,
            event_id=letter["event_id"] or "",
            name=_UNSET if letter["name"] is None else letter["name"],
            payload=letter["data"],
            principal=who,
            step=_UNSET if letter["step"] is None else letter["step"],
        ),
        canonical.encode(letter["data"]),
    )
    run.wake()


def _raise_refusal(run_id: str, answer: dict[str, Any]) -> None:
    code = answer.get("code")
    if code and code != "DUPLICATE":
        raise RejectedError(
            code,
            f"run {run_id} does not take the event: {answer['message']}",
            help=_REMEDIES.get(code),
            facts={"run_id": run_id},
        )


_REMEDIES = {
    "NOT_WAITING": "`nano-vm trace` shows what the run waits for",
    "TERMINAL": "the run has ended; start a new one, or fork it",
    "NOT_APPROVER": "send it as a principal who holds one of the wait's roles",
    "NOT_APPROVAL": 'send {"approved": true} or {"approved": false}',
}


# --- mail ---------------------------------------------------------------------------------------------------


def take_mail(engine: Engine, run: Run) -> bool:
    """Deal with what other processes left for a run we own. Returns whether there was anything."""
    if not getattr(engine.store, "shared", False):
        return False
    run_id = run.record.run_id
    letters = engine.store.mail(run_id)
    for mail in letters:
        letter = canonical.decode(mail.body)
        rejection = offer_letter(engine, run, mail.kind, letter)
        answer: dict[str, Any] = {}
        if rejection is not None:
            answer = {"code": rejection.code, "message": rejection.message}
            if mail.kind == "event" and rejection.code != "DUPLICATE":
                note_refusal(engine, run, letter, rejection)
        engine.store.answer(run_id, mail.mail_id, canonical.encode(answer))
    if letters:
        run.wake()
    return bool(letters)
