"""Performing what the kernel commands: a call that is alone, a call beside others, a call inside a transaction.

The intent of each is durable by then. What comes of it is recorded at once where the run waits for nothing else, or
joins the run's arrivals.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallModel, CallTool, Command, Compensate, Reconcile, StartChild
from nano_vm.kernel.state import Stage, activity_key
from nano_vm.runtime.agent import definitions
from nano_vm.runtime.outcomes import Outcome
from nano_vm.runtime.ports import ToolSpec

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

_UNSET = ev.UNSET
_GOING = Stage.GOING
BATCH_MAX = 256  # entries of pure steps that are gathered before they are made durable


class Released(Exception):
    """The driver gave the run up at a safe place because the engine is shutting down."""


async def call_alone(run: Run, command: CallTool, spec: ToolSpec) -> None:
    """The common case: one tool and nothing beside it. No task is made."""
    engine = run.engine
    step = run.program.steps[command.step]
    if spec.effect == "pure":
        binds = run.gate is not None and run.gate.binding() and not engine.volatile
        if len(run.batch) >= BATCH_MAX or run.is_awaited or binds:
            await run.flush()
        run.seal_open()  # nothing will ride with it, and the tool may take its time
    else:
        await run.flush()
        if spec.effect == "transactional":
            await transact(run, command, spec)
            return
    outcome = None
    if command.business_key is not None:
        outcome = await _action_conflict(run, command, spec)
    if outcome is None and run.gate is not None:
        outcome = await run.gate.recheck(command, spec)
    if outcome is None:
        outcome = await engine.calls.tool(run.facts, step, command, spec, alone=True)
    run.conclude(outcome)


async def transact(run: Run, command: CallTool | Compensate, spec: ToolSpec) -> None:
    """The tool's writes and its outcome commit together, in a transaction of their own (SPEC §7)."""
    engine = run.engine
    if type(command) is CallTool and command.business_key is not None:
        conflict = await _action_conflict(run, command, spec)
        if conflict is not None:
            run.record_event(conflict.event, conflict.payload)
            run.count_outcome()
            return
    while True:
        if run.gate is not None:
            refused = await run.gate.recheck(command, spec, keep=True)
            if refused is not None:
                run.record_event(refused.event, refused.payload)
                break
        try:
            async with engine.store.transaction() as transaction:
                if run.gate is not None and run.gate.is_stale(command):
                    raise _StaleError  # something has changed while it waited for its turn
                if type(command) is CallTool:
                    step = run.program.steps[command.step]
                    outcome = await engine.calls.tool(run.facts, step, command, spec, transaction)
                else:
                    assert type(command) is Compensate
                    outcome = await engine.calls.compensation(run.facts, command, spec, transaction)
                if type(outcome.event) not in (ev.StepSucceeded, ev.CompensationSucceeded):
                    raise _RolledBack(outcome)
                run.record_event(outcome.event, outcome.payload)
                run.seal_open()
                transaction.append(run.record.run_id, run.fence, run.batch)
                run.batch = []
        except _StaleError:
            continue
        except _RolledBack as rolled_back:
            # The transaction is gone, and with it the effect: this failure is known.
            outcome = rolled_back.outcome
            run.record_event(outcome.event, outcome.payload)
        break
    if run.gate is not None:
        run.gate.dispatched(command)
    run.count_outcome()


def spawn(run: Run, command: Command, spec: ToolSpec | None, limit: int) -> None:
    task = asyncio.get_running_loop().create_task(_perform(run, command, spec, limit))
    run.tasks[activity_key(command.step, command.item), command.attempt] = task
    if type(command) is CallModel:
        task.add_done_callback(lambda done: _never_began(run, command, done))


def _never_began(run: Run, command: CallModel, task: asyncio.Task[Any]) -> None:
    """A task that is cancelled before its first step runs none of its code."""
    key = (activity_key(command.step, command.item), command.attempt)
    if run.tasks.get(key) is task:
        del run.tasks[key]
        if run.gate is not None:
            run.gate.models.give_back(command)
        outcome = run.engine.calls.failed(command, "CANCELLED", "the run is ending", False)
        run.arrivals.append((outcome, None))
        run.wake()


async def _perform(run: Run, command: Command, spec: ToolSpec | None, limit: int) -> None:
    """One call beside others; its outcome joins the arrivals."""
    calls = run.engine.calls
    outcome: Outcome | None = None
    failure: BaseException | None = None
    try:
        if type(command) is CallTool:
            assert spec is not None
            step = run.program.steps[command.step]
            if command.business_key is not None:
                outcome = await _action_conflict(run, command, spec)
            if outcome is None and run.gate is not None:
                outcome = await run.gate.recheck(command, spec)
            if outcome is None:
                outcome = await calls.tool(run.facts, step, command, spec)
        elif type(command) is CallModel:
            offered = definitions(run.engine.tools, command.tools)
            if run.gate is not None:
                outcome = await run.gate.recheck(command, None)
            if outcome is None:
                outcome = await calls.model(run.program.steps[command.step], command, limit, offered)
            if run.gate is not None:
                await run.gate.models.settle(command, outcome)
        elif type(command) is Compensate:
            assert spec is not None
            if run.gate is not None:
                outcome = await run.gate.recheck(command, spec)
            if outcome is None:
                outcome = await calls.compensation(run.facts, command, spec)
        elif type(command) is Reconcile:
            assert spec is not None
            outcome = await calls.reconcile(run.facts, command, spec)
        elif type(command) is StartChild:
            outcome = await run.engine.run_child(run, command)
    except asyncio.CancelledError:
        if type(command) is CallModel and run.state.stage is not _GOING:
            outcome = calls.failed(command, "CANCELLED", "the run is ending", False)
        else:
            failure = Released()
    except BaseException as error:
        failure = error
    run.ends(command, outcome, failure)


async def _action_conflict(run: Run, command: CallTool, spec: ToolSpec) -> Outcome | None:
    """Bind the author's idempotency key to its arguments; a failure when it was used for others before."""
    problem = await run.engine.claim_action(run, command, spec)
    if problem is None:
        return None
    pure = True if spec.effect == "pure" else _UNSET  # such a call has no intent
    return run.engine.calls.failed(command, problem.code, problem.message, False, pure=pure)


class _StaleError(Exception):
    """What was admitted has to be looked at again."""


class _RolledBack(Exception):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome
