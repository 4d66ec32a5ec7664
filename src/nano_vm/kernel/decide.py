"""What must happen next, and what is waited for. Nothing here changes a state."""

from __future__ import annotations

from typing import Any

from nano_vm.kernel.agents import proposal
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
from nano_vm.kernel.ending import child_budgets
from nano_vm.kernel.state import Activity, Phase, RunStatus, Stage, State, Waiting
from nano_vm.kernel.waits import event_name, is_timer
from nano_vm.program.compiled import (
    AgentAction,
    CallAction,
    CompiledProgram,
    CompiledStep,
    ModelAction,
    ToolAction,
    WaitAction,
)
from nano_vm.program.labels import SEALED

_GOING, _ENDING = Stage.GOING, Stage.ENDING
_STARTED, _WAITING, _UNKNOWN, _CHILD_WAITING = (
    Phase.STARTED,
    Phase.WAITING,
    Phase.UNKNOWN,
    Phase.CHILD_WAITING,
)
_SUCCESS = RunStatus.SUCCESS.value


def decide(program: CompiledProgram, state: State) -> list[Command]:
    """What must happen next: dispatches first, in the order the steps were reached, then what is waited for.

    Cost is proportional to what is in progress, never to what has been. A command is given again until an
    event answers it; its `id` tells that it is the same one. An attempt under way has no command: its outcome
    is awaited.
    """
    if state.active:
        active = state.active
        commands: list[Command] = []
        for key in state.ready:
            activity = active[key]
            if key >= 0:
                commands.append(_dispatch(program, state, program.steps[activity.step], activity))
            else:
                commands.append(_compensate(program, state, activity.attempt))
        if state.parked:
            for key in state.parked:
                command = _parked(program, state, active[key])
                if command is not None:
                    commands.append(command)
        return commands
    if state.stage is not _ENDING:
        return []
    if compensates(state):
        return [_compensate(program, state, 1)]
    return [
        Finish(
            step=-1,
            step_id="",
            occurrence=0,
            item=-1,
            attempt=1,
            status=state.ending,
            outcome=state.outcome,
            incomplete=tuple(incomplete(state)),
        )
    ]


def compensates(state: State) -> bool:
    """Whether a compensation is due: the run ends other than SUCCESS and something is still to be undone."""
    return bool(state.undo) and state.ending != _SUCCESS


def incomplete(state: State) -> list[str]:
    """Steps that could not be undone; a run that ends SUCCESS has nothing to undo."""
    return [] if state.ending == _SUCCESS else state.incomplete


def _dispatch(program: CompiledProgram, state: State, step: CompiledStep, activity: Activity) -> Command:
    action = step.action
    if type(action) is ToolAction:
        return CallTool(
            step=activity.step,
            step_id=step.id,
            occurrence=activity.occurrence,
            item=activity.item,
            attempt=activity.attempt,
            tool=action.tool,
            args=activity.request,
            business_key=activity.business_key,
            timeout_ms=step.timeout_ms,
        )
    if type(action) is ModelAction:
        return CallModel(
            step=activity.step,
            step_id=step.id,
            occurrence=activity.occurrence,
            item=activity.item,
            attempt=activity.attempt,
            request=activity.request,
            private=bool((activity.label | step.adds) & SEALED),
            tokens_max=action.tokens_max,
            timeout_ms=step.timeout_ms,
        )
    if type(action) is AgentAction:
        return _ask(program, step, action, activity)
    return start_child(program, state, step, activity)


def start_child(program: CompiledProgram, state: State, step: CompiledStep, activity: Activity) -> StartChild:
    """The command by which this attempt of a call begins, or is taken up again."""
    action = step.action
    assert type(action) is CallAction
    return StartChild(
        step=activity.step,
        step_id=step.id,
        occurrence=activity.occurrence,
        item=activity.item,
        attempt=activity.attempt,
        child=child_of(state, step, activity),
        program=state.programs.get(action.program, action.program),
        inputs=activity.request,
        budgets=child_budgets(program, state, activity),
        depth=state.depth + 1,
    )


def _ask(
    program: CompiledProgram, step: CompiledStep, action: AgentAction, activity: Activity
) -> CallModel | JudgeAction:
    where: dict[str, Any] = {
        "step": activity.step,
        "step_id": step.id,
        "occurrence": activity.occurrence,
        "item": activity.item,
        "attempt": activity.attempt,
    }
    if activity.group is None:
        return CallModel(
            **where,
            request=activity.request,
            private=bool((activity.label | step.adds) & SEALED),
            tokens_max=action.tokens_max,
            tools=action.tools,
            timeout_ms=step.timeout_ms,
        )
    number, call, place, fault = proposal(program, activity)
    return JudgeAction(
        **where,
        action=number,
        tool=None if place < 0 else action.tools[place],
        args=call["arguments"],
        fault=fault,
        lane=-1 if place < 0 else action.lanes[place],
    )


def child_run_id(run: str, step_id: str, occurrence: int, item: int, attempt: int) -> str:
    """Deterministic, so that a child is never started twice."""
    lane = "" if item < 0 else f".{item}"
    return f"{run}/{step_id}.{occurrence}{lane}.{attempt}"


def child_of(state: State, step: CompiledStep, activity: Activity) -> str:
    """The run id of the child that this attempt of a call runs."""
    return child_run_id(state.run, step.id, activity.occurrence, activity.item, activity.attempt)


def _compensate(program: CompiledProgram, state: State, attempt: int) -> Compensate:
    undo = state.undo[-1]
    return Compensate(
        step=program.step_index.get(undo.step, -1),
        step_id=undo.step,
        occurrence=undo.occurrence,
        item=undo.item,
        attempt=attempt,
        tool=undo.tool,
        args=undo.args,
    )


def _parked(program: CompiledProgram, state: State, activity: Activity) -> Command | None:
    if activity.step < 0:
        return _parked_compensation(state, activity)
    step = program.steps[activity.step]
    phase = activity.phase
    where: dict[str, Any] = {
        "step": activity.step,
        "step_id": step.id,
        "occurrence": activity.occurrence,
        "item": activity.item,
        "attempt": activity.attempt,
    }
    if phase is _UNKNOWN:
        action = step.action
        return Reconcile(
            **where,
            tool=action.tool if type(action) is ToolAction else "",
            args=activity.request,
            effect=activity.effect,
            reason=activity.reason,
            compensation=False,
            business_key=activity.business_key,
        )
    if phase is _WAITING:
        if activity.ask is None and type(step.action) is WaitAction and step.action.approves >= 0:
            action = program.steps[step.action.approves].action
            assert type(action) is ToolAction
            return RequestApproval(**where, tool=action.tool, args=activity.request, due_ms=activity.due_ms)
        if is_timer(step):
            return StartTimer(**where, due_ms=activity.due_ms)
        return AwaitEvent(**where, kind=waiting_kind(step, activity), due_ms=activity.due_ms)
    under_way = phase is _STARTED or phase is _CHILD_WAITING  # of these only children are parked
    if under_way and (activity.stopping or state.stage is not _GOING):
        return StopChild(**where, child=child_of(state, step, activity))
    if phase is _CHILD_WAITING:
        return AwaitEvent(**where, kind="child", due_ms=activity.due_ms)
    return StartTimer(**where, due_ms=activity.due_ms) if activity.due_ms else None


def _parked_compensation(state: State, activity: Activity) -> Command:
    undo = state.undo[-1]
    where: dict[str, Any] = {
        "step": -1,
        "step_id": undo.step,
        "occurrence": undo.occurrence,
        "item": undo.item,
        "attempt": activity.attempt,
    }
    if activity.phase is not _UNKNOWN:
        return StartTimer(**where, due_ms=activity.due_ms)
    return Reconcile(
        **where,
        tool=undo.tool,
        args=undo.args,
        effect=activity.effect,
        reason=activity.reason,
        compensation=True,
    )


def waiting_kind(step: CompiledStep | None, activity: Activity) -> str:
    """What an activity waits for: event, approval, timer, tool, outcome or child."""
    if activity.phase is _UNKNOWN:
        return "outcome"
    if activity.phase is _CHILD_WAITING:
        return "child"
    if activity.ask is not None:
        return "approval"
    action = step.action if step is not None else None
    if type(action) is not WaitAction:
        return "tool"
    if action.approvers:
        return "approval"
    return "timer" if action.event is None else "event"


def waiting(program: CompiledProgram, state: State) -> list[Waiting]:
    """What a SUSPENDED run waits for, by name (P10); empty unless it is SUSPENDED."""
    return all_waits(program, state) if state.status is RunStatus.SUSPENDED else []


def all_waits(program: CompiledProgram, state: State) -> list[Waiting]:
    """What is being waited for, also while other steps are under way."""
    waiting_phases = (_WAITING, _UNKNOWN, _CHILD_WAITING)
    return [
        _waits_for(program, state, activity)
        for activity in state.active.values()
        if activity.phase in waiting_phases
    ]


def _waits_for(program: CompiledProgram, state: State, activity: Activity) -> Waiting:
    compensation = activity.step < 0
    step = None if compensation else program.steps[activity.step]
    action = step.action if step is not None else None
    event = None
    approvers: tuple[str, ...] = ()
    if step is not None and type(action) is WaitAction and (action.approvers or action.event is not None):
        approvers = action.approvers
        event = event_name(step, action)
    ask = activity.ask
    if ask is not None and step is not None:
        event = step.id
        approvers = tuple(dict.fromkeys(role for roles in ask["roles"] for role in roles))
    item = state.undo[-1].item if compensation else activity.item
    return Waiting(
        kind=waiting_kind(step, activity),
        step=state.undo[-1].step if step is None else step.id,
        occurrence=activity.occurrence,
        item=None if item < 0 else item,
        attempt=activity.attempt,
        event=event,
        approvers=approvers,
        due_ms=activity.due_ms,
        reason=activity.reason if activity.phase is _UNKNOWN else "",
        waits=tuple(activity.waits or ()),
        action="" if ask is None else ask["action"],
        nonce="" if ask is None else ask["nonce"],
        tool="" if ask is None else ask["tool"],
    )
