"""Preparing what the kernel commands: the intent is journaled first, and what is to be called then is listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from nano_vm import canonical
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import (
    AwaitEvent,
    CallModel,
    CallTool,
    Command,
    Compensate,
    Finish,
    JudgeAction,
    Reconcile,
    RequestApproval,
    StartChild,
    StartTimer,
    StopChild,
)
from nano_vm.kernel.state import activity_key
from nano_vm.runtime import attending
from nano_vm.runtime.admission import Refusal, examine_call, examine_prompt, examine_undoing, is_gone
from nano_vm.runtime.agent import judge
from nano_vm.runtime.journaled import defect
from nano_vm.runtime.ports import ToolSpec
from nano_vm.runtime.reservations import shortage, worst_case
from nano_vm.runtime.secrets import references_in
from nano_vm.runtime.tooling import REPEATABLE

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

_UNSET = ev.UNSET
Launches: TypeAlias = list[tuple[Command, ToolSpec | None, int]]
ATTEMPTS_MAX = (
    100  # an unknown outcome is not repeated beyond this attempt, however many processes it has cost
)
REPEATS_MAX = 3  # how often an unknown outcome is repeated under the tool's contract while the process lives


def prepare(run: Run, command: Command, launches: Launches) -> None:
    """Journal the intent of a command; what is to be called afterwards goes on `launches`."""
    kind = type(command)
    if run.closed and kind in _DISPATCHES and is_gone(command):  # type: ignore[arg-type]
        _refuse_erased(run, command)
        return
    if kind is CallTool:
        _tool(run, command, launches)  # type: ignore[arg-type]
    elif kind is CallModel:
        _model(run, command, launches)  # type: ignore[arg-type]
    elif kind is JudgeAction:
        judge(run, command)  # type: ignore[arg-type]
    elif kind is StartTimer or kind is AwaitEvent:
        attending.set_timer(run, command)  # type: ignore[arg-type]
        if type(command) is AwaitEvent and command.kind == "child":
            attending.watch_child(run, command)
    elif kind is Finish:
        assert type(command) is Finish
        run.intend(
            ev.RunFinished(
                at_ms=run.engine.clock.now_ms(),
                incomplete=list(command.incomplete) or _UNSET,
                outcome=_UNSET if command.outcome is None else command.outcome,
                status=command.status,
            )
        )
    elif kind is RequestApproval:
        assert type(command) is RequestApproval
        assert run.gate is not None  # the program has such a wait
        run.gate.request(command)
    elif kind is Reconcile:
        _reconcile(run, command, launches)  # type: ignore[arg-type]
    elif kind is StartChild:
        _child(run, command, launches)  # type: ignore[arg-type]
    elif kind is Compensate:
        _compensation(run, command, launches)  # type: ignore[arg-type]
    elif kind is StopChild:
        assert type(command) is StopChild
        attending.stop_child(run, activity_key(command.step, command.item), launches)


_DISPATCHES = (CallTool, CallModel, StartChild, Compensate)


def _refuse_erased(run: Run, command: Any) -> None:
    """Nothing is sent in place of an erased value: the step fails, and says why."""
    message = "what it would be given has been erased"
    if type(command) is not Compensate:
        outcome = run.engine.calls.failed(command, "ERASED", message, False, pure=True)
        run.record_event(outcome.event, outcome.payload)
        return
    if run.gate is not None and not run.gate.admit(command, run.engine.tools.spec(command.tool)):
        return
    item = command.item if command.item >= 0 else _UNSET
    where: dict[str, Any] = {
        "attempt": command.attempt,
        "item": item,
        "occurrence": command.occurrence,
        "step": command.step_id,
    }
    now = run.engine.clock.now_ms()
    run.intend(ev.CompensationStarted(at_ms=now, effect="irreversible", **where))
    details = {"message": message}
    run.record_event(
        ev.CompensationFailed(at_ms=now, draw=0, error="ERASED", payload=details, retryable=False, **where),
        canonical.encode(details),
    )


def _tool(run: Run, command: CallTool, launches: Launches) -> None:
    engine = run.engine
    spec = examine_call(run, command)
    if isinstance(spec, Refusal):
        outcome = engine.calls.failed(command, spec.code, spec.message, False, pure=True)
        run.record_event(outcome.event, outcome.payload)
        return
    if spec.effect == "pure":
        if (activity_key(command.step, command.item), command.attempt) in run.tasks:
            return
        if run.gate is None or run.gate.admit(command, spec):
            launches.append((command, spec, 0))
        return
    if run.gate is not None and not run.gate.admit(command, spec):
        return
    event = ev.StepStarted(
        at_ms=engine.clock.now_ms(),
        attempt=command.attempt,
        effect=spec.effect,
        item=command.item if command.item >= 0 else _UNSET,
        occurrence=command.occurrence,
        opens=references_in(spec, command.args) or _UNSET if spec.secrets else _UNSET,
        step=command.step_id,
    )
    run.intend(event)
    launches.append((command, spec, 0))


def _model(run: Run, command: CallModel, launches: Launches) -> None:
    engine, gate, state = run.engine, run.gate, run.state
    refusal = examine_prompt(run, command)
    if refusal is not None:
        outcome = engine.calls.failed(command, refusal.code, refusal.message, False, pure=True)
        run.record_event(outcome.event, outcome.payload)
        return
    counted = None if gate is None else gate.models.held(command)
    reservation = counted
    if counted is None and (state.tokens_max or state.cost_nanousd_max):
        reservation = worst_case(run, command)
        missing = shortage(state, reservation)
        if missing is not None and (gate is None or not gate.denies(command)):
            if missing.may_be_given_back and (run.tasks or launches):
                return  # calls under way hold it: their outcome makes us look again
            run.record_event(
                ev.BudgetExhausted(
                    at_ms=engine.clock.now_ms(),
                    budget=missing.budget,
                    left=missing.left,
                    needed=missing.needed,
                    step=command.step_id,
                )
            )
            return
    if gate is not None and not gate.admit(command, None):
        return
    limit, tokens, cost = 0, 0, 0
    if reservation is not None:
        limit = reservation.limit
        if state.tokens_max:
            tokens = reservation.tokens
        cost = reservation.budgeted_nanousd
    event = ev.StepStarted(
        at_ms=engine.clock.now_ms(),
        attempt=command.attempt,
        effect="model",
        item=command.item if command.item >= 0 else _UNSET,
        occurrence=command.occurrence,
        reserved_cost_nanousd=cost or _UNSET,
        reserved_tokens=tokens or _UNSET,
        step=command.step_id,
    )
    run.intend(event)
    launches.append((command, None, limit))


def _child(run: Run, command: StartChild, launches: Launches) -> None:
    event = ev.ChildStarted(
        at_ms=run.engine.clock.now_ms(),
        attempt=command.attempt,
        child=command.child,
        item=command.item if command.item >= 0 else _UNSET,
        occurrence=command.occurrence,
        program=command.program,
        reserved_cost_nanousd=command.budgets.get("cost_nanousd") or _UNSET,
        reserved_steps=command.budgets["steps"] or _UNSET,
        reserved_tokens=command.budgets.get("tokens") or _UNSET,
        step=command.step_id,
    )
    rejection = run.record_intent(event)
    if rejection is None:
        launches.append((command, None, 0))
    elif rejection.code != "OVER_BUDGET" or not (run.tasks or launches):
        defect(run.record.run_id, event, rejection)
    # Else what has begun in this very turn took of what the child was to get: its outcome makes us look again.


def _compensation(run: Run, command: Compensate, launches: Launches) -> None:
    engine = run.engine
    spec = engine.tools.spec(command.tool)
    if run.gate is not None and not run.gate.admit(command, spec):
        return
    examined = examine_undoing(run, command)
    fault = examined if isinstance(examined, Refusal) else None
    effect = spec.effect if spec is not None else "irreversible"
    item = command.item if command.item >= 0 else _UNSET
    run.intend(
        ev.CompensationStarted(
            at_ms=engine.clock.now_ms(),
            attempt=command.attempt,
            effect=effect,
            item=item,
            occurrence=command.occurrence,
            opens=_UNSET if fault or spec is None else references_in(spec, command.args) or _UNSET,
            step=command.step_id,
        )
    )
    if spec is not None and fault is None:
        launches.append((command, spec, 0))
        return
    assert fault is not None
    details = {"message": fault.message}
    run.record_event(
        ev.CompensationFailed(
            at_ms=engine.clock.now_ms(),
            attempt=command.attempt,
            draw=0,
            error=fault.code,
            item=item,
            occurrence=command.occurrence,
            payload=details,
            retryable=False,
            step=command.step_id,
        ),
        canonical.encode(details),
    )


def _reconcile(run: Run, command: Reconcile, launches: Launches) -> None:
    """Settle an unknown outcome under the tool's contract - the one it was dispatched under and the one it has
    now must both allow it - or leave it to an operator."""
    key = activity_key(command.step, command.item)
    if command.id in run.tried or (key, command.attempt) in run.tasks:
        return
    run.tried.add(command.id)
    spec = run.engine.tools.spec(command.tool) if command.tool else None
    is_model = command.effect == "model"
    if is_model or (spec is not None and spec.effect in REPEATABLE and command.effect in REPEATABLE):
        repeats = run.repeats.get(key, 0)
        if command.reason != "CRASH" and not is_model and repeats >= REPEATS_MAX:
            return
        if command.attempt >= ATTEMPTS_MAX:
            return  # whoever tries it dies: somebody has to look
        if not is_model and run.gate is not None and not run.gate.may_repeat(command):
            return  # the policy was tightened, or the approval is over: what may have happened is not given up
        run.repeats[key] = repeats + 1
        run.record_event(run.engine.calls.resolved(command, "contract", "repeat"))
    elif spec is not None and spec.reconcile is not None:
        launches.append((command, spec, 0))
