"""How a run ends: the status is decided once, what has not begun is dropped, dispatched effects are waited
for.

Budgets belong here as well, because a budget that is spent ends the run before the next step (P10).
"""

from __future__ import annotations

from typing import Any

from nano_vm.kernel.activity import remove, set_phase
from nano_vm.kernel.state import Activity, Phase, RunStatus, Settled, Stage, State, StepStatus
from nano_vm.program.compiled import CompiledProgram, Kind

_GOING, _ENDING = Stage.GOING, Stage.ENDING
_TOOL = Kind.TOOL


def end(
    program: CompiledProgram, state: State, status: RunStatus, error: dict[str, Any] | None = None
) -> None:
    """Decide the terminal status of a run that is going.

    What waits or has not been dispatched is given up. What was dispatched stays until its outcome is known,
    children that wait are to be stopped, and groups stay until their last lane has settled.
    """
    state.stage = _ENDING
    state.ending = status._value_  # `value` runs through Python code
    state.error = error
    if not state.active:
        return
    groups = []
    for activity in list(state.active.values()):
        phase = activity.phase
        if phase is Phase.GROUP:
            assert activity.group is not None
            activity.group.queue.clear()
            activity.due_ms = 0
            set_phase(state, activity, Phase.GROUP)
            groups.append(activity)
        elif phase is Phase.READY or phase is Phase.BACKOFF or phase is Phase.WAITING:
            abandon(program, state, activity, "ABANDONED")
        elif phase is Phase.CHILD_WAITING:
            set_phase(state, activity, Phase.STARTED, reachable=True)
    for activity in groups:
        assert activity.group is not None
        if not activity.group.active and state.active.get(activity.step) is activity:
            drop_group(program, state, activity)


def abandon(program: CompiledProgram, state: State, activity: Activity, error: str) -> None:
    """Give up an activity that is not under way, and put down what is known of it.

    A step that was never dispatched leaves nothing behind; one whose attempts failed has FAILED; a tool that
    answered PENDING, or an attempt of which nobody knows whether it happened, is UNKNOWN - and when it had
    something to undo, it is named in `incomplete`. An agent in the middle of its conversation has FAILED. A lane leaves
    its group with `error`.
    """
    step = program.steps[activity.step]
    phase = activity.phase
    status: StepStatus | None = None
    if (
        phase is Phase.UNKNOWN
        or activity.reason
        or (phase is Phase.WAITING and step.kind is _TOOL and activity.ask is None)
    ):
        status = StepStatus.UNKNOWN
        if step.compensation is not None:
            state.incomplete.append(step.id)
    elif activity.error:
        status, error = StepStatus.FAILED, activity.error
    elif activity.turns:
        status = StepStatus.FAILED
    remove(state, activity)
    if status is not None:
        _put_down(state, activity, status, error)
    if step.parent >= 0:
        leave_group(program, state, activity, error)


def _put_down(state: State, activity: Activity, status: StepStatus, error: str) -> None:
    state.settled.append(
        Settled(
            activity.step,
            activity.occurrence,
            activity.item,
            status,
            None,
            error,
            activity.attempt,
            activity.entered_ms,
            False,
        )
    )


def drop_group(program: CompiledProgram, state: State, activity: Activity) -> None:
    """The last lane of a group has settled in a run that is ending. An agent is a group that may be a lane itself."""
    remove(state, activity)
    if activity.turns:
        _put_down(state, activity, StepStatus.FAILED, "ABANDONED")
    if program.steps[activity.step].parent >= 0:
        leave_group(program, state, activity, "ABANDONED")


def leave_group(program: CompiledProgram, state: State, activity: Activity, error: str) -> None:
    """A lane ends without a result. The last one takes the group with it when the run is ending."""
    step = program.steps[activity.step]
    parent = state.active[step.parent]
    group = parent.group
    assert group is not None
    group.active -= 1
    group.errors[place_of(program, activity)] = error
    if state.stage is not _GOING and not group.active and parent.phase is Phase.GROUP:
        drop_group(program, state, parent)


def place_of(program: CompiledProgram, lane: Activity) -> int:
    """The number of a lane in its group: its item, or its place among the declared sub-steps."""
    # Sub-steps follow their parent in the list of steps.
    return lane.item if lane.item >= 0 else lane.step - program.steps[lane.step].parent - 1


# --- budgets ------------------------------------------------------------------------------------------------


def admits_step(program: CompiledProgram, state: State) -> bool:
    """Whether the budgets admit one more step, attempt or lane; ends the run when they do not."""
    if state.steps + state.reserved_steps >= state.steps_max:
        return _exhausted(program, state, "steps")
    if state.tokens_max and state.tokens > state.tokens_max:
        return _exhausted(program, state, "tokens")
    if state.cost_nanousd_max and state.cost_nanousd > state.cost_nanousd_max:
        return _exhausted(program, state, "cost_nanousd")
    if state.duration_ms_max and used_ms(state) > state.duration_ms_max:
        return _exhausted(program, state, "duration_ms")
    if state.stalled_steps_max and state.stalled >= state.stalled_steps_max:
        error = {"type": "STALLED", "message": "no bound value has changed", "attempts": 0}
        end(program, state, RunStatus.STALLED, error)
        return False
    return True


def _exhausted(program: CompiledProgram, state: State, budget: str) -> bool:
    error = {"type": "BUDGET_EXCEEDED", "message": budget, "attempts": 0}
    end(program, state, RunStatus.BUDGET_EXCEEDED, error)
    return False


def used_ms(state: State) -> int:
    """Duration so far; time in which the run was suspended does not count."""
    return state.now_ms - state.started_ms - state.suspended_ms


def remaining_budgets(state: State) -> dict[str, int]:
    """What is left of the declared budgets, reservations taken off."""
    left = {"steps": max(state.steps_max - state.steps - state.reserved_steps, 0)}
    if state.tokens_max:
        left["tokens"] = max(state.tokens_max - state.tokens - state.reserved_tokens, 0)
    if state.cost_nanousd_max:
        spent = state.cost_nanousd + state.reserved_cost_nanousd
        left["cost_nanousd"] = max(state.cost_nanousd_max - spent, 0)
    if state.duration_ms_max:
        left["duration_ms"] = max(state.duration_ms_max - used_ms(state), 0)
    return left


def child_budgets(program: CompiledProgram, state: State, activity: Activity) -> dict[str, int]:
    """What a child may spend: alone, all that is left; beside others an equal share of it, so that together they
    never spend more than there is. Once it has started, what was reserved for it. Time is not shared out: it
    passes for all of them at once.
    """
    left = remaining_budgets(state)
    if activity.phase is not Phase.READY:
        held = {
            "steps": activity.reserved_steps,
            "tokens": activity.reserved_tokens,
            "cost_nanousd": activity.reserved_cost_nanousd,
        }
        return {name: held.get(name, value) for name, value in left.items()}
    ready = len(state.ready)
    lane = program.steps[activity.step].parent >= 0
    others = len(state.active) - ready - lane
    # One share is for what comes up in the meantime: lanes that queue, further attempts.
    shares = ready + 1 if ready > 1 or others else 1
    return {name: value if name == "duration_ms" else value // shares for name, value in left.items()}
