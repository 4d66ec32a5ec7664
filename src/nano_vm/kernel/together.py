"""A group of plain tools: the transitions of lanes that succeed at their first attempt, without the generality they
do not need.

What is here is `apply` of StepStarted and StepSucceeded, and nothing else; a property test drives random programs both
ways and compares journals and snapshots. The state is as `apply` would leave it after every lane, so whatever is
not plain is left to the general functions at any time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nano_vm.kernel.flow import move
from nano_vm.kernel.lane import is_call
from nano_vm.kernel.settle import succeed
from nano_vm.kernel.state import Activity, Group, Phase, Stage, State, activity_key
from nano_vm.program.compiled import CompiledProgram

_READY, _STARTED, _GROUP = Phase.READY, Phase.STARTED, Phase.GROUP
_GOING = Stage.GOING


class Lanes(NamedTuple):
    """A parallel or map that has just been opened."""

    group: Group
    activities: list[Activity]  # its lanes, READY at their first attempt, in the order they began


def lanes(program: CompiledProgram, state: State, begun: bool = False) -> Lanes | None:
    """The group that is all the run is at, if every lane of it is to be dispatched now and is a plain tool; else
    None. `begun`: some of them may be dispatched already."""
    if state.stage is not _GOING or state.governed or (state.labels is not None and any(state.labels)):
        return None  # what is not trusted is for the general functions
    opened: Activity | None = None
    activities: list[Activity] = []
    for activity in state.active.values():
        phase = activity.phase
        if (
            (phase is _READY or (begun and phase is _STARTED))
            and activity.attempt == 1
            and not activity.failures
        ):
            step = program.steps[activity.step]
            if not is_call(step) or (state.labels is not None and step.adds):
                return None
            activities.append(activity)
        elif phase is _GROUP and opened is None:
            opened = activity
        else:
            return None
    if opened is None or opened.group is None or not activities:
        return None
    group = opened.group
    # Lanes that wait for their turn begin with the success of another; a time-out has to be watched; and an agent is a
    # group of another kind.
    if group.queue or opened.due_ms or not group.active == group.total == len(activities):
        return None
    if any(program.steps[activity.step].parent != opened.step for activity in activities):
        return None
    return Lanes(group, activities)


def begin_lane(state: State, activity: Activity, effect: str) -> None:
    """`apply` of StepStarted, in the instant the lane was opened."""
    activity.effect = effect
    activity.phase = _STARTED
    del state.ready[activity_key(activity.step, activity.item)]
    state.seq += 1


def succeed_lane(
    program: CompiledProgram, state: State, group: Group, activity: Activity, value: Any, at_ms: int
) -> bool:
    """`apply` of a lane's StepSucceeded. True when it was the last, and the run has gone on from the group."""
    step = program.steps[activity.step]
    if at_ms > state.now_ms:
        state.now_ms = at_ms
    state.settled, state.verdicts, state.label = [], [], 0
    state.seq += 1
    if group.active == 1 or state.stage is not _GOING:
        todo: list[int] = []
        succeed(program, state, step, activity, value, todo)
        move(program, state, todo)
        return True
    key = activity_key(activity.step, activity.item)
    del state.active[key]
    if activity.phase is _READY:  # without effects
        del state.ready[key]
    state.busy -= 1
    bound = [step.error_slot]
    if activity.item < 0:
        bound += step.output_slot, step.key_slot
        place = activity.step - step.parent - 1
    else:
        place = activity.item
    for slot in bound:
        if slot >= 0:
            state.slots[slot] = None if slot == step.error_slot else value
            state.pins.pop(slot, None)  # in runs that track labels: nobody has looked at the new value
    group.active -= 1
    group.results[place] = value
    return False
