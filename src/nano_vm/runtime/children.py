"""Child runs: a `call` step runs another program as a run of its own, with its own journal, linked by hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import (
    ConflictError,
    NanoVMError,
    NotFoundError,
    StoreError,
    VerificationError,
)
from nano_vm.journal.port import RunRecord
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import StartChild
from nano_vm.kernel.labels import FEATURE
from nano_vm.kernel.reports import report_of
from nano_vm.kernel.state import RunStatus, Stage, activity_key
from nano_vm.kernel.transition import waiting
from nano_vm.runtime.driver import Letter, Run
from nano_vm.runtime.outcomes import Outcome

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

_UNSET = ev.UNSET


async def run_child(engine: Engine, parent: Run, command: StartChild) -> Outcome | None:
    """Drive a child to its end or to where it waits, and say so to the parent. A child that exists is taken up where
    it is, never started again. None when it was let go before: whoever takes up the parent goes on with it."""
    while True:
        run = await _begin_or_take_up(engine, parent, command)
        if isinstance(run, Outcome):
            return run
        if command.child in parent.stopping and not run.state.status.is_terminal:
            _cancel(engine, run)
        await engine.drive(run)
        if run.state.status is RunStatus.RUNNING:
            return None
        if run.state.stage is not Stage.GOING or command.child not in parent.stopping:
            return report(engine, run, command)
        # It was on its way to waiting when it was to be stopped, and has not heard of it.


async def _begin_or_take_up(engine: Engine, parent: Run, command: StartChild) -> Run | Outcome:
    from nano_vm.runtime import recovery

    try:
        record = engine.store.record(command.child)
    except NotFoundError:
        # Also one that is only to be stopped: what exists can be begun by nobody else, who has not heard of that yet.
        try:
            return await _create(engine, parent, command)
        except NanoVMError as error:
            if not isinstance(error, ConflictError | StoreError | VerificationError):
                return _refused(engine, command, error)
            if error.code != "RUN_EXISTS":
                raise
        record = engine.store.record(command.child)
    if record.parent != parent.record.run_id:
        # Nothing that somebody put there may pass for the result of a child.
        message = f"run `{command.child}` exists and is not a child of this run"
        return _refused(engine, command, ConflictError("RUN_EXISTS", message))
    taken = await recovery.take_over(engine, command.child)
    if taken is None:
        raise _lease_lost(command.child)
    _deliver(engine, taken, parent.letters.pop(command.child, []))
    return taken


async def _create(engine: Engine, parent: Run, command: StartChild) -> Run:
    from nano_vm.runtime.starting import take_inputs

    compiled = engine.load_program(command.program)
    inputs, payload = take_inputs(compiled, command.inputs)
    now = engine.clock.now_ms()
    record = RunRecord(
        run_id=command.child,
        tenant=parent.record.tenant,
        program_hash=compiled.hash,
        program_name=compiled.name,
        parent=parent.record.run_id,
        created_at_ms=now,
        updated_at_ms=now,
        owner=engine.store.owner,
        fence=1,
    )
    run = engine.new_run(record, compiled, parent.facts.principal)
    pinned = None if parent.gate is None else parent.gate.pinned
    await engine.govern(run, pinned)
    link: dict[str, Any] = {
        "run": parent.record.run_id,
        "step": command.step_id,
        "occurrence": command.occurrence,
    }
    if command.item >= 0:
        link["item"] = command.item
    labels = None
    if parent.state.labels is not None:
        labels = parent.state.active[activity_key(command.step, command.item)].labels or {}
    run.record_event(
        ev.RunStarted(
            at_ms=now,
            budgets=command.budgets,
            depth=command.depth,
            features=_UNSET if labels is None else [FEATURE],
            labels=_UNSET if labels is None else labels,
            parent=link,
            payload=inputs,
            policy=_UNSET if pinned is None else pinned.hash,
            principal=_UNSET if parent.facts.principal is None else parent.facts.principal,
            program=compiled.hash,
            programs=parent.state.programs or _UNSET,
        ),
        payload,
    )
    await run.create()
    if not _is_held(engine, parent):
        await run.abandon()  # it is for whoever has taken the parent over
        raise _lease_lost(parent.record.run_id)
    return run


def _is_held(engine: Engine, run: Run) -> bool:
    """Whether a run that is driven here has not been taken over by somebody else."""
    try:
        record = engine.store.record(run.record.run_id)
    except NotFoundError:
        return True  # it lives in memory, and nobody has seen it
    return (record.owner, record.fence) == (engine.store.owner, run.fence)


def _lease_lost(run_id: str) -> ConflictError:
    return ConflictError(
        "LEASE_LOST", f"run {run_id} is being driven by another worker", facts={"run_id": run_id}
    )


def _deliver(engine: Engine, run: Run, letters: list[Letter]) -> None:
    """Give letters that were addressed to the parent to the child that waits for them (or to the child's child)."""
    from nano_vm.runtime import control

    for letter in letters:
        control.hand_in(engine, run, letter.kind, letter.body).add_done_callback(letter.pass_on)


def report(engine: Engine, run: Run, command: StartChild) -> Outcome:
    """What the parent journals of its child."""
    state = run.state
    item = command.item if command.item >= 0 else _UNSET
    now = engine.clock.now_ms()
    if not state.status.is_terminal:
        waits = [wait.to_dict() for wait in waiting(run.program, state)]
        return Outcome(
            ev.ChildSuspended(
                at_ms=now,
                attempt=command.attempt,
                item=item,
                occurrence=command.occurrence,
                step=command.step_id,
                waits=waits,
            ),
            None,
        )
    told = report_of(run.program, state)
    details, payload = canonical.normalize(told.details)
    return Outcome(
        ev.ChildFinished(
            at_ms=now,
            attempt=command.attempt,
            cost_nanousd=told.cost_nanousd or _UNSET,
            head=run.chain.head,
            item=item,
            occurrence=command.occurrence,
            output_label=_UNSET if told.output_label is None else told.output_label,
            payload=details,
            status=told.status,
            step=command.step_id,
            steps=told.steps,
            tokens=told.tokens or _UNSET,
            undo_label=told.undo_label or _UNSET,
        ),
        payload,
    )


def _refused(engine: Engine, command: StartChild, error: NanoVMError) -> Outcome:
    """The child could not be started at all."""
    message = f"{RunStatus.FAILED.value} {error.code}: {error.message}"
    details: dict[str, Any] = {"output": None, "compensations": [], "message": message}
    return Outcome(
        ev.ChildFinished(
            at_ms=engine.clock.now_ms(),
            attempt=command.attempt,
            head="",
            item=command.item if command.item >= 0 else _UNSET,
            occurrence=command.occurrence,
            payload=details,
            status=RunStatus.FAILED.value,
            step=command.step_id,
            steps=0,
        ),
        canonical.encode(details),
    )


def stop_child(engine: Engine, parent: Run, child: str) -> None:
    """Cancel a child because its parent ends, or because it took too long."""
    if child in parent.stopping:
        return
    parent.stopping.add(child)
    live = engine.live_here(child)
    if live is not None:
        event = ev.RunCancelled(at_ms=engine.clock.now_ms(), payload={"reason": "parent"})
        answer = live.deliver(event, canonical.encode({"reason": "parent"}))
        answer.add_done_callback(lambda future: future.exception())  # it may have ended by itself


def _cancel(engine: Engine, run: Run) -> None:
    reason = {"reason": "parent"}
    run.offer(ev.RunCancelled(at_ms=engine.clock.now_ms(), payload=reason), canonical.encode(reason))
