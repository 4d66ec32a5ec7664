"""Taking up runs that nobody drives: after a crash, when a timer is due, or to deliver something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from nano_vm.errors import ConflictError, NanoVMError, RejectedError, RuntimeFault
from nano_vm.journal.entry import Chain, Entry, is_closed, read_facts
from nano_vm.journal.fold import fold
from nano_vm.journal.port import RunRecord
from nano_vm.journal.replay import refold
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Phase, State
from nano_vm.policy.progress import Noting, Progress
from nano_vm.program.compiled import CallAction, CompiledProgram
from nano_vm.runtime.driver import Run
from nano_vm.runtime.governing import gate_of
from nano_vm.runtime.patience import patiently
from nano_vm.runtime.sealing import key_named_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nano_vm.runtime.engine import Engine

_UNSET = ev.UNSET
_FEW = 32  # entries that are folded one by one sooner than their stretches are found
RECOVERIES_MAX = 32  # runs that one `recover` drives at once


def load(engine: Engine, run_id: str, fence: int, known: RunRecord | None = None) -> Run:
    """A run as its journal tells it. The journal is verified on the way: nothing is built on changed evidence. What
    this engine itself has let go of, and nobody has had since, it knows already.

    `known` is the run's record as it was read before: it still holds where nobody owned the run then, and whoever took
    it next, with this fence, is us. Only owners change records.
    """
    holds = known is not None and known.owner is None and known.fence + 1 == fence
    if known is None or not holds:
        record = engine.store.record(run_id)
    else:
        record = replace(known, owner=engine.store.owner, fence=fence)
    parked = engine.parking.take(engine, record, fence)
    if parked is not None:
        return parked
    program = engine.load_program(record.program_hash)
    entries = engine.read(run_id)
    _require_readable(run_id, entries)
    progress = Progress(program)
    state = None
    if len(entries) > _FEW:
        state = refold(program, run_id, entries, (Noting(progress),))
    if state is None:
        progress = Progress(program)
        state = fold(
            program,
            run_id,
            entries,
            verify=True,
            on_transition=lambda entry, event, state: progress.follow(event, state),
        )
    run = run_from(engine, program, record, state, entries, fence)
    run.gate = gate_of(run)
    if run.gate is not None:
        run.gate.progress = progress
    return run


def _require_readable(run_id: str, entries: Sequence[Entry]) -> None:
    """Nobody goes on with a run whose values are there and cannot be read: it would take them for erased.

    Raises:
        RuntimeFault: NO_KEYS.
    """
    if any(entry.payload is not None and not entry.salt for entry in entries):
        raise RuntimeFault(
            "NO_KEYS",
            f"run {run_id} has sealed values, and their key is not here",
            help="give the engine the vault that belongs to the database: ExecutionVM(vault=Vault.beside(…)); where an "
            "erasure is under way or was cut: vm.recover()",
            facts={"run_id": run_id},
        )


def run_from(
    engine: Engine,
    program: CompiledProgram,
    record: RunRecord,
    state: State,
    entries: Sequence[Entry],
    fence: int,
) -> Run:
    from nano_vm.journal.entry import open_event

    chain = Chain(record.run_id, len(entries), entries[-1].digest) if entries else Chain(record.run_id)
    first = open_event(entries[0]) if entries else None
    who = getattr(first, "principal", _UNSET)
    run = Run(
        engine,
        program,
        record,
        state,
        chain,
        fence,
        True,
        None if who is _UNSET else who,
        recorded=record.status,
        mail_waits=True,
    )
    if state.labels is not None:
        run.key_id = key_named_in(entries)
        run.named = run.key_id is not None
        run.closed = any(is_closed(entry, read_facts(entry)) for entry in entries if not entry.salt)
    return run


async def take_over(
    engine: Engine,
    run_id: str,
    require: Callable[[Engine, str], None] | None = None,
    known: RunRecord | None = None,
) -> Run | None:
    """Become the owner of a run and load it; None while a live owner has it. What `require` raises once nobody else
    has it leaves it untouched. `known`: its record, where the caller has just read it.

    A run that was RUNNING had an owner who is gone: what it had in flight is an unknown outcome now. The adoption is
    journaled at once, so that a late append of the old owner collides with it.
    """

    def claim() -> int | None:
        """Asked for anew whenever the store was waited for: what is let go here is not out of our hands at once."""
        return None if run_id in engine.live else engine.store.claim(run_id, engine.clock.now_ms(), known)

    fence = await patiently(claim)
    if fence is None:
        return None
    held = fence
    try:
        if require is not None:
            require(engine, run_id)
        run = load(engine, run_id, held, known)
        if not run.state.status.is_terminal:
            await adopt(engine, run)
    except BaseException:
        await patiently(lambda: engine.store.release(run_id, held))
        raise
    return run


async def adopt(engine: Engine, run: Run) -> None:
    """Journal that the run has a new owner, and that calls in flight have no known outcome."""
    state = run.state
    now = engine.clock.now_ms()
    if state.busy or any(activity.phase is Phase.STARTED for activity in state.active.values()):
        run.record_event(ev.RunAdopted(at_ms=now, fence=run.fence))
    lose_calls(run, now)
    await run.flush()


def lose_calls(run: Run, now_ms: int) -> None:
    """Record that nobody here is told any more what comes of the calls that the journal has begun."""
    state = run.state
    in_flight = [activity for activity in state.active.values() if activity.phase is Phase.STARTED]
    for activity in in_flight:
        compensation = activity.step < 0
        if not compensation and type(run.program.steps[activity.step].action) is CallAction:
            continue  # the child has a journal of its own: it is taken up with its parent
        step = state.undo[-1].step if compensation else run.program.steps[activity.step].id
        run.record_event(
            ev.OutcomeUnknown(
                at_ms=now_ms,
                attempt=activity.attempt,
                compensation=True if compensation else _UNSET,
                effect=activity.effect or "irreversible",
                item=activity.item if activity.item >= 0 else _UNSET,
                occurrence=activity.occurrence,
                reason="CRASH",
                step=step,
            )
        )


async def recover(
    engine: Engine, limit: int, on_error: Callable[[str, Exception], None] | None
) -> list[Trace]:
    """See `Engine.recover`."""
    lanes = asyncio.Semaphore(RECOVERIES_MAX)
    failures: list[Exception] = []
    unfinished: NanoVMError | None = None
    try:
        await engine.complete_erasures()
    except NanoVMError as error:
        unfinished = error  # it keeps no run from being driven

    async def attempt(run_id: str) -> Trace | None:
        async with lanes:
            if engine.draining:
                return None
            try:
                return await take_up(engine, run_id)
            except ConflictError as error:
                if error.code in ("LEASE_LOST", "JOURNAL_CONFLICT"):
                    return None  # somebody else was quicker
                failure: Exception = error
            except Exception as error:
                failure = error
            if on_error is not None:
                on_error(run_id, failure)
            else:
                failures.append(failure)
            return None

    run_ids = engine.store.claimable(engine.clock.now_ms(), limit)
    traces = await asyncio.gather(*(attempt(run_id) for run_id in run_ids))
    if unfinished is not None:
        raise unfinished
    if failures:
        raise failures[0]
    return [trace for trace in traces if trace is not None]


async def take_up(engine: Engine, run_id: str) -> Trace | None:
    """See `Engine.take_up`."""
    engine.refuse_closed()
    run = await take_over(engine, run_id)
    if run is None:
        return None
    if run.state.status.is_terminal:
        # The journal had ended, its record did not say so: bring the record up to date.
        await run.flush(run.update(release=True))
    else:
        await engine.drive(run)
    return engine.trace_of(run)


async def step(engine: Engine, trace_id: str) -> Trace:
    """See `Engine.step`."""
    engine.refuse_closed()
    run = await take_over(engine, trace_id)
    if run is None:
        raise RejectedError("LEASE_LOST", f"run {trace_id} is being driven by another worker")
    if run.state.status.is_terminal:
        await run.flush(run.update(release=True))
        return engine.trace_of(run)
    run.transitions_left = 1
    await engine.drive(run)
    return engine.trace_of(run)
