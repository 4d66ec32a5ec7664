"""Acting on runs from outside: resume, cancel, resolve - on runs this process drives, on parked ones, and, by mail, on
runs that another process owns. Exactly one delivery of an event wins, wherever it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import ConflictError, InputError, NanoVMError, RejectedError
from nano_vm.journal.port import Mail, RunRecord
from nano_vm.journal.trace import Trace
from nano_vm.kernel.state import Rejection, RunStatus
from nano_vm.program.labels import SEALED
from nano_vm.runtime.addressees import Addressee, addressees, stirring, takes_any
from nano_vm.runtime.driver import Run, RunLeft
from nano_vm.runtime.letters import cancel_letter, canonical_digest, event_letter, event_of, resolve_letter
from nano_vm.runtime.patience import patiently
from nano_vm.runtime.repetition import said_below, taken_below
from nano_vm.runtime.sealing import digester, keys_live, open_letter, seal_letter

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

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
    return await _leave(engine, trace_id, "cancel", cancel_letter(reason, principal))


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
    return await _deliver(engine, trace_id, "cancel", cancel_letter(reason, principal), require)


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
    letter = resolve_letter(step, resolution, value, item, principal)
    return await _deliver(engine, trace_id, "resolve", letter)


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
    lost = 0  # the fence under which somebody else was quicker
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
            # Somebody else was quicker, and what was handed in is not written: that happens once for each time that
            # the run goes from hand to hand.
            fence = 0 if known is None else known.fence + 1
            if "unclaimed" not in error.facts or fence == lost:
                raise
            lost, known = fence, None
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
    found = [Addressee(run, None, letter, kind)] if own else addressees(engine, run, kind, letter)
    found = found or stirring(run, kind, letter)
    if len(found) > 1 and not takes_any(kind, letter, found):
        names = "several runs below this one wait: name the way to the step, as in `call/step`, and the item"
        return run.answer_later(Rejection("AMBIGUOUS", names))
    nameless = kind == "event" and letter["event_id"] is None and run.program.calls
    if nameless and not found and said_below(engine, run.record.run_id, letter):
        return run.answer_later(Rejection("DUPLICATE", "a called program has taken this before"))
    target, child, letter, _ = found[0] if found else Addressee(run, None, letter, kind)
    if child is not None:
        return target.forward(child, kind, letter)
    digest = _digest_for(engine, target)
    with target.hold:
        built = event_of(engine, target.program, target.state, kind, letter, digest)
    if isinstance(built, Rejection):
        return target.answer_later(built)
    return target.deliver(*built, approves=letter.get("approves", False))


def _digest_for(engine: Engine, run: Run) -> Callable[[bytes], str]:
    """What tells the content of a letter that has no id: of a run with private values, under its subject's key."""
    labels = run.state.labels
    if labels is None or engine.keys is None or not any(label & SEALED for label in labels):
        return canonical_digest
    if keys_live(run):
        return digester(run)
    return lambda data: engine.entropy.salt().hex()  # nobody can tell a repetition any more


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
