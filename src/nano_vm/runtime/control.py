"""Acting on runs from outside: resume, cancel, resolve - on runs this process drives, on parked ones, and, by mail, on
runs that another process owns. Exactly one delivery of an event wins, wherever it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm import canonical
from nano_vm.errors import ConflictError, InputError, NanoVMError, RejectedError
from nano_vm.journal.port import Mail, RunRecord
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.limits import EVENT_ID_CHARS_MAX, PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import COMPENSATION_KEY, Activity, Phase, Rejection, RunStatus, State
from nano_vm.kernel.transition import all_waits, child_run_id, event_digest
from nano_vm.program.compiled import CallAction, CompiledProgram, ToolAction
from nano_vm.program.labels import SEALED
from nano_vm.runtime.driver import Run, RunLeft
from nano_vm.runtime.patience import patiently
from nano_vm.runtime.repetition import AUTO, repeated_id, said_below, sent_by, taken_below
from nano_vm.runtime.sealing import digester, keys_live, open_letter, seal_letter
from nano_vm.runtime.ways import inward

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

_UNSET = ev.UNSET
_APPROVALS = ("approval",)
POLL_MS = 20  # how often an answer from another process is looked for
ERASURE = "erasure"  # the reason of the cancellations that an erasure makes


async def resume(
    engine: Engine,
    record: RunRecord,
    data: Any,
    event_id: str | None,
    name: str | None,
    step: str | None,
    item: int | None,
    principal: str | Mapping[str, Any] | None,
    *,
    approves: bool = False,
) -> Trace:
    """See `Engine.resume`. With `approves` nothing takes it but what waits for an approval."""
    letter = event_letter(data, event_id, name, step, item, principal, approves)
    return await deliver_event(engine, record, letter)


async def deliver_event(engine: Engine, record: RunRecord, letter: dict[str, Any]) -> Trace:
    """`resume` with a letter that is written."""
    return await _deliver(engine, record.run_id, "event", letter, known=record)


def event_letter(
    data: Any,
    event_id: str | None,
    name: str | None,
    step: str | None,
    item: int | None,
    principal: str | Mapping[str, Any] | None,
    approves: bool,
) -> dict[str, Any]:
    from nano_vm.runtime.rights import principal_of

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


async def leave_event(
    engine: Engine,
    trace_id: str,
    data: Any,
    *,
    name: str | None = None,
    step: str | None = None,
    item: int | None = None,
    principal: str | Mapping[str, Any] | None = None,
) -> str:
    """Leave an event for whoever takes the run up next - a worker, or the process that has it - and drive nothing here:
    for those who may answer and have neither the tools nor the model. Whether it is admitted is decided there.

    Returns:
        The mail's id: the store's `answered` says what has become of it.

    Raises:
        NotFoundError: RUN_NOT_FOUND. InputError: CHILD_RUN, MAIL_FULL, …
    """
    return await leave_letter(
        engine, trace_id, event_letter(data, None, name, step, item, principal, approves=False)
    )


async def leave_letter(engine: Engine, trace_id: str, letter: dict[str, Any]) -> str:
    """`leave_event` with a letter that is written."""
    return await _leave(engine, trace_id, "event", letter)


async def leave_cancel(
    engine: Engine, trace_id: str, reason: str, principal: str | Mapping[str, Any] | None
) -> str:
    """`cancel`, left like `leave_event`."""
    from nano_vm.runtime.rights import principal_of

    letter = _checked({"reason": reason, "principal": principal_of(principal)}, "reason")
    return await _leave(engine, trace_id, "cancel", letter)


async def _leave(engine: Engine, trace_id: str, kind: str, letter: dict[str, Any]) -> str:
    record = engine.store.record(trace_id)
    _refuse_child(record)
    if RunStatus(record.status).is_terminal:
        raise RejectedError(
            "TERMINAL", f"run {trace_id} has ended", help=_REMEDIES["TERMINAL"], facts={"run_id": trace_id}
        )
    return await _post(engine, record.run_id, kind, letter)


def _refuse_child(record: RunRecord) -> None:
    """Raises InputError CHILD_RUN."""
    if record.parent is not None:
        raise InputError(
            "CHILD_RUN",
            f"run {record.run_id} is a child: its waits and its cancellation go through its parent",
            help=f"use {record.parent}",
        )


async def cancel(
    engine: Engine,
    trace_id: str,
    reason: str,
    principal: str | Mapping[str, Any] | None,
    require: Callable[[Engine, str], None] | None = None,
) -> Trace:
    """See `Engine.cancel`. Before the run is driven here, `require` is asked: what it raises leaves it untouched."""
    from nano_vm.runtime.rights import principal_of

    letter = _checked({"reason": reason, "principal": principal_of(principal)}, "reason")
    return await _deliver(engine, trace_id, "cancel", letter, require)


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
    from nano_vm.runtime.rights import principal_of

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
    return await _deliver(engine, trace_id, "resolve", _checked(letter, "step"))


# --- delivery -----------------------------------------------------------------------------------------------


async def _deliver(
    engine: Engine,
    trace_id: str,
    kind: str,
    letter: dict[str, Any],
    require: Callable[[Engine, str], None] | None = None,
    known: RunRecord | None = None,
) -> Trace:
    """Bring a letter to whoever owns the run: a driver here, nobody (then we take it over), or another process.
    `known`: the run's record, where the caller has just read it."""
    from nano_vm.runtime import recovery

    mail_id: str | None = None
    while True:
        if mail_id is None:
            live = engine.live_here(trace_id)
            if live is not None:
                try:
                    return await _to_live(engine, live, kind, letter)
                except RunLeft:
                    await asyncio.sleep(0)
                    continue
            known = known or engine.store.record(trace_id)
            _refuse_child(known)
        else:
            answer = engine.store.answered(trace_id, mail_id)
            if answer is not None:
                said = canonical.decode(answer)
                _raise_refusal(trace_id, Rejection(said["code"], said["message"]) if said else None)
                await until_settled(engine, trace_id, require)
                return engine.trace(trace_id)
        engine.refuse_closed()  # whoever takes the run up reads what has been posted
        try:
            run = await recovery.take_over(engine, trace_id, require, known)
            if run is not None and mail_id is None:
                return await _to_parked(engine, run, kind, letter)
        except RunLeft:
            continue
        except ConflictError as error:
            if "unclaimed" not in error.facts:
                raise
            known = None  # somebody else was quicker, and what was handed in is not written
            continue
        if run is not None:
            await engine.drive(run)  # its mail, ours among it, is read first
            continue
        if mail_id is None:
            mail_id = await _post(engine, trace_id, kind, letter)
        await asyncio.sleep(POLL_MS / 1_000)


async def until_settled(
    engine: Engine, trace_id: str, require: Callable[[Engine, str], None] | None = None
) -> None:
    """Wait while another worker drives the run on with what we sent it; when it dies over that, go on in its place."""
    from nano_vm.runtime import recovery

    while not engine.draining:
        live = engine.live_here(trace_id)
        if live is not None:
            await live.wait_until_settled()
        record = engine.store.record(trace_id)
        if record.status != RunStatus.RUNNING or record.owner is None:
            return
        run = await recovery.take_over(engine, trace_id, require)
        if run is None:
            await asyncio.sleep(POLL_MS / 1_000)
        elif run.state.status.is_terminal:
            await run.flush(run.update(release=True))
        else:
            await engine.drive(run)


async def _post(engine: Engine, trace_id: str, kind: str, letter: dict[str, Any]) -> str:
    given = letter.get("event_id")
    chance = engine.entropy.salt().hex()
    mail_id = f"event:{given}" if given is not None else f"{kind}:{chance}"
    # What an erasure says is nobody's secret, and has to arrive when nothing opens any more.
    is_plain = kind == "cancel" and letter["reason"] == ERASURE
    body = canonical.encode(letter) if is_plain else seal_letter(engine, trace_id, letter)
    now = engine.clock.now_ms()
    try:
        mail = Mail(mail_id=mail_id, kind=kind, body=body, posted_at_ms=now)
        await patiently(lambda: engine.store.post(trace_id, mail))
    except ConflictError:
        # The same id with other content: the run itself has to refuse it, and to keep what it refused.
        mail_id = f"{mail_id}#{chance}"
        other = Mail(mail_id=mail_id, kind=kind, body=body, posted_at_ms=now)
        await patiently(lambda: engine.store.post(trace_id, other))
    return mail_id


async def _to_live(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> Trace:
    run.check_not_inside()
    rejection = await hand_in(engine, run, kind, letter)
    _raise_refusal(run.record.run_id, rejection)
    await run.wait_until_settled()
    return engine.trace(run.record.run_id)


async def _to_parked(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> Trace:
    """Hand a letter to a run we have just taken over, and drive it on - unless it is refused: then the run stays as it
    stood, whether it waited or nobody had driven it yet."""
    try:
        answer = hand_in(engine, run, kind, letter)
        rejection = run.admit_arrivals(answer)
    except RunLeft:
        raise
    except BaseException:
        await run.leave()
        raise
    if rejection is not None and rejection.code != "DUPLICATE":
        await run.leave()
    else:
        await engine.drive(run)
    _raise_refusal(run.record.run_id, await answer)
    return engine.trace_of(run)


def hand_in(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> asyncio.Future[Rejection | None]:
    """Give a letter to a run that we own, or to the child of it that waits for it. The future says whether it was
    admitted, once that is durable; what is refused is journaled where it was refused. It raises RunLeft when the run
    was let go before."""
    if kind == "event" and letter["event_id"] is not None and run.program.calls:
        known = taken_below(engine, run.record.run_id, letter)
        if known is not None:
            return run.answer_later(known)
    with run.hold:
        own = kind == "cancel" or (kind == "event" and letter["event_id"] in run.state.seen)
    found = [_Addressee(run, None, letter, kind)] if own else _addressees(engine, run, kind, letter)
    found = found or _stirring(run, kind, letter)
    if len(found) > 1 and not _takes_any(kind, letter, found):
        names = "several runs below this one wait: name the way to the step, as in `call/step`, and the item"
        return run.answer_later(Rejection("AMBIGUOUS", names))
    nameless = kind == "event" and letter["event_id"] is None and run.program.calls
    if nameless and not found and said_below(engine, run.record.run_id, letter):
        return run.answer_later(Rejection("DUPLICATE", "a called program has taken this before"))
    target, child, letter, _ = found[0] if found else _Addressee(run, None, letter, kind)
    if child is not None:
        return target.forward(child, kind, letter)
    labels = target.state.labels
    private = labels is not None and engine.keys is not None and any(label & SEALED for label in labels)
    digest = digester(target) if private else canonical_digest
    if private and not keys_live(target):
        digest = lambda data: engine.entropy.salt().hex()  # noqa: E731 - nobody can tell a repetition any more
    with target.hold:
        built = _build(engine, target.program, target.state, kind, letter, digest)
    if isinstance(built, Rejection):
        return target.answer_later(built)
    return target.deliver(*built, approves=letter.get("approves", False))


class _Addressee(NamedTuple):
    """Who waits for a letter: a run that is being driven here, and the id of its child when that one is parked; the
    letter as it is to be passed on; the kind of the wait."""

    run: Run
    child: str | None
    letter: dict[str, Any]
    kind: str


def _addressees(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> list[_Addressee]:
    """All that the letter may be meant for. Of its own waits a run chooses itself."""
    with run.hold:
        return _addressees_of(engine, run, kind, letter)


def _addressees_of(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> list[_Addressee]:
    found: list[_Addressee] = []
    for wait in all_waits(run.program, run.state):
        fits = _fits(kind, letter, wait.to_dict())
        if fits is None:
            continue
        if wait.kind != "child":
            if all(other.child is not None for other in found):
                found.append(_Addressee(run, None, letter, fits))
            continue
        item = -1 if wait.item is None else wait.item
        child = child_run_id(run.state.run, wait.step, wait.occurrence, item, wait.attempt)
        inner = inward(letter, wait.step, wait.item)
        assert inner is not None
        found.append(_Addressee(run, child, inner, fits))
    for activity in run.state.active.values():
        if activity.phase is not Phase.STARTED or activity.step < 0:
            continue
        step = run.program.steps[activity.step]
        if type(step.action) is CallAction:
            child = child_run_id(run.state.run, step.id, activity.occurrence, activity.item, activity.attempt)
            live = engine.live_here(child)
            inner = inward(letter, step.id, None if activity.item < 0 else activity.item)
            if live is not None and inner is not None:
                found += _addressees(engine, live, kind, inner)
    return found


def _stirring(run: Run, kind: str, letter: dict[str, Any]) -> list[_Addressee]:
    """Children that are about to be taken up for a letter, and may take this one too: they still wait, although the run
    says so no longer."""
    found = []
    with run.hold:
        for activity in run.state.active.values():
            if activity.phase is Phase.STARTED and activity.step >= 0 and run.letters:
                step, item = run.program.steps[activity.step], activity.item
                child = child_run_id(run.state.run, step.id, activity.occurrence, item, activity.attempt)
                inner = inward(letter, step.id, None if item < 0 else item)
                if child in run.letters and inner is not None:
                    found.append(_Addressee(run, child, inner, kind))
    return found


def _takes_any(kind: str, letter: dict[str, Any], found: list[_Addressee]) -> bool:
    """An event meant for a kind of event goes to the wait that began first; an approval, an answer or a resolution is
    meant for one thing only."""
    named = kind == "event" and (letter["name"] is not None or letter["step"] is not None)
    return named and all(one.kind == "event" for one in found)


def _build(
    engine: Engine,
    program: CompiledProgram,
    state: State,
    kind: str,
    letter: dict[str, Any],
    digest: Callable[[bytes], str],
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
        item=_UNSET if letter.get("item") is None else letter["item"],
        name=_UNSET if letter["name"] is None else letter["name"],
        payload=letter["data"],
        principal=who,
        step=_UNSET if letter["step"] is None else letter["step"],
    )
    if letter["event_id"] is None:
        kinds = _kinds_for(kind, letter)
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


def _fits(kind: str, letter: dict[str, Any], wait: dict[str, Any]) -> str | None:
    """The kind of wait that the letter may be meant for, here or below; None when it is not meant for this one."""
    if wait["kind"] == "child":
        inner = inward(letter, wait["step"], wait.get("item"))
        found = () if inner is None else (_fits(kind, inner, one) for one in wait.get("waits", ()))
        return next((one for one in found if one is not None), None)
    if wait["kind"] not in _kinds_for(kind, letter):
        return None
    if letter["step"] is not None and wait["step"] != letter["step"]:
        return None
    if letter.get("item") is not None and wait.get("item") != letter["item"]:
        return None
    fits = kind == "resolve" or letter["name"] is None or wait.get("event") == letter["name"]
    return str(wait["kind"]) if fits else None


def _kinds_for(kind: str, letter: dict[str, Any]) -> tuple[str, ...]:
    """What may take a letter."""
    if kind == "resolve":
        return ("outcome",)
    return _APPROVALS if letter.get("approves") else ("event", "approval", "tool")


# --- refusals -----------------------------------------------------------------------------------------------


def _raise_refusal(run_id: str, rejection: Rejection | None) -> None:
    """Say what was refused - except that a repetition is answered like the first time."""
    if rejection is not None and rejection.code != "DUPLICATE":
        raise RejectedError(
            rejection.code,
            f"run {run_id} does not take the event: {rejection.message}",
            help=_REMEDIES.get(rejection.code),
            facts={"run_id": run_id},
        )


_REMEDIES = {
    "NOT_WAITING": "`nano-vm trace` shows what the run waits for",
    "TERMINAL": "the run has ended; start a new one, or fork it",
    "AMBIGUOUS": "name the step and, inside a map, the item; for a step of a called program: `call/step`, or "
    "`call[0]/step` where a map calls it",
    "NOT_APPROVER": "send it as a principal who holds one of the wait's roles",
    "NOT_APPROVAL": 'send {"approved": true} or {"approved": false}',
}


# --- mail ---------------------------------------------------------------------------------------------------


def take_mail(engine: Engine, run: Run) -> None:
    """Deal with what others left for a run that we drive; the driver answers when what came of it is durable."""
    for mail in engine.store.mail(run.record.run_id):
        if mail.mail_id not in run.mail_taken:
            run.mail_taken.add(mail.mail_id)
            try:
                letter = {**open_letter(engine, run.record.run_id, mail.body), "mail_id": mail.mail_id}
                answer = hand_in(engine, run, mail.kind, letter)
            except NanoVMError as error:
                if error.code != "ERASED":
                    raise
                answer = run.answer_later(Rejection("NOT_WAITING", "what it says has been erased"))
            run.mail.append((mail.mail_id, answer))


async def answer_mail(engine: Engine, run: Run) -> None:
    """Write the answers that are known. What was let go unanswered stays for the next owner."""
    held, run.mail = run.mail, []
    for mail_id, answer in held:
        if not answer.done():
            run.mail.append((mail_id, answer))
        elif answer.exception() is None:
            rejection = answer.result()
            said = {} if rejection is None else {"code": rejection.code, "message": rejection.message}
            await _write_answer(engine, run.record.run_id, mail_id, canonical.encode(said))


async def _write_answer(engine: Engine, run_id: str, mail_id: str, said: bytes) -> None:
    await patiently(lambda: engine.store.answer(run_id, mail_id, said))
