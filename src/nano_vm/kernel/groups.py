"""Parallel and map: a group is one activity, its lanes are activities of their own.

A group is looked after whenever `todo` says so (`settle.mark`): lanes are started as long as
`concurrency_max` allows, and when none is left the group settles. One lane's failure never hides another's
effect: all lanes settle first.
"""

from __future__ import annotations

from typing import Any

from nano_vm.errors import NanoVMError
from nano_vm.kernel.activity import add, remove, set_phase
from nano_vm.kernel.agents import look_after_agent
from nano_vm.kernel.ending import abandon, admits_step
from nano_vm.kernel.labels import label_of
from nano_vm.kernel.opening import open_activity
from nano_vm.kernel.settle import back_off, fail_for_good, goes_on, hide_item, mark, succeed
from nano_vm.kernel.state import Activity, Group, Phase, State
from nano_vm.program.compiled import (
    SLOT_INDEX,
    SLOT_ITEM,
    CompiledProgram,
    CompiledStep,
    Kind,
    MapAction,
    ParallelAction,
)

# A group fails by several lanes' failures, each with its own draw: the middle of the range stands for all.
_GROUP_DRAW = 500_000


def open_group(
    program: CompiledProgram, state: State, step: CompiledStep, occurrence: int, todo: list[int]
) -> None:
    """Begin one occurrence of a parallel or map."""
    action = step.action
    items: list[Any] | None = None
    label = 0
    if type(action) is MapAction:
        if state.labels is not None:
            label = label_of(state, action.over.refs)
        try:
            items = _items(state, action)
        except NanoVMError as error:
            activity = Activity(
                step=step.index, occurrence=occurrence, entered_ms=state.now_ms, failures=1, label=label
            )
            fail_for_good(program, state, step, activity, error.code, error.message, todo)
            return
        total = len(items)
        state.occurrences[action.lane] = occurrence
    else:
        assert type(action) is ParallelAction
        total = len(action.lanes)
        for lane in action.lanes:
            state.occurrences[lane] = occurrence
    activity = Activity(
        step=step.index,
        occurrence=occurrence,
        phase=Phase.GROUP,
        entered_ms=state.now_ms,
        group=Group(total=total, queue=list(range(total - 1, -1, -1)), items=items, item_label=label),
        due_ms=state.now_ms + step.timeout_ms if step.timeout_ms else 0,
    )
    add(state, activity)
    todo.append(mark(step.index))


def _items(state: State, action: MapAction) -> list[Any]:
    items = action.over.render(state.slots)
    if type(items) is not list:
        raise NanoVMError("NOT_A_LIST", "`over` is not a list")
    if len(items) > action.items_max:
        raise NanoVMError("TOO_MANY_ITEMS", f"{len(items)} items, at most {action.items_max}")
    return items


def look_after(program: CompiledProgram, state: State, index: int, todo: list[int]) -> None:
    """Start lanes that may start; settle the group when none is left."""
    activity = state.active.get(index)
    if activity is None or activity.phase is not Phase.GROUP:
        return  # settled by an earlier entry of `todo`, or backing off
    group = activity.group
    assert group is not None
    step = program.steps[index]
    action = step.action
    if step.kind is Kind.AGENT:
        look_after_agent(program, state, step, activity, todo)
        return
    assert type(action) is ParallelAction or type(action) is MapAction
    while group.queue and group.active < action.concurrency_max:
        if not admits_step(program, state):
            return
        _start_lane(program, state, action, activity, group, todo)
    if not group.active:
        _settle_group(program, state, step, activity, group, todo)


def _start_lane(
    program: CompiledProgram,
    state: State,
    action: ParallelAction | MapAction,
    activity: Activity,
    group: Group,
    todo: list[int],
) -> None:
    place = group.queue.pop()
    group.active += 1
    state.steps += 1
    attempt = group.attempts.get(place, 0) + 1
    if type(action) is ParallelAction:
        open_activity(
            program, state, program.steps[action.lanes[place]], activity.occurrence, -1, attempt, todo
        )
        return
    assert type(action) is MapAction
    lane = program.steps[action.lane]
    assert group.items is not None
    state.slots[SLOT_ITEM] = group.items[place]
    state.slots[SLOT_INDEX] = place
    if state.labels is not None:
        state.labels[SLOT_ITEM] = group.item_label
    open_activity(program, state, lane, activity.occurrence, place, attempt, todo)
    hide_item(state)


def _settle_group(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    group: Group,
    todo: list[int],
) -> None:
    if group.timed_out:
        _group_timed_out(program, state, step, activity, group, todo)
        return
    if group.errors:
        _group_failed(program, state, step, activity, group, todo)
        return
    action = step.action
    value: Any
    activity.label = group.label
    if type(action) is ParallelAction:
        value = {program.steps[lane].id: group.results[place] for place, lane in enumerate(action.lanes)}
    else:
        value = [group.results[place] for place in range(group.total)]
    succeed(program, state, step, activity, value, todo)


def _group_failed(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    group: Group,
    todo: list[int],
) -> None:
    """A retried group repeats the lanes that failed, never those that are done; it is not retried when one of them
    failed in a way that is not retryable."""
    message = _lanes_message(program, step, group)
    activity.failures += 1
    activity.error = "SUBSTEP_FAILED"
    again = step.on_error == "retry" and activity.failures < step.retry.attempts_max and not group.final
    if again and goes_on(state, step):
        group.queue = sorted(group.errors, reverse=True)
        group.errors = {}
        back_off(state, step, activity, activity.failures, _GROUP_DRAW)
        return
    remove(state, activity)
    fail_for_good(program, state, step, activity, "SUBSTEP_FAILED", message, todo)


def _group_timed_out(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    group: Group,
    todo: list[int],
) -> None:
    if step.on_timeout == "fallback":
        succeed(program, state, step, activity, step.fallback, todo, True)
        return
    activity.failures += 1
    remove(state, activity)
    fail_for_good(program, state, step, activity, "TIMEOUT", _lanes_message(program, step, group), todo)


def _lanes_message(program: CompiledProgram, step: CompiledStep, group: Group) -> str:
    return ", ".join(
        f"{lane_name(program, step, place)}: {group.errors[place]}" for place in sorted(group.errors)
    )


def lane_name(program: CompiledProgram, step: CompiledStep, place: int) -> str:
    """How messages name a lane: `charge`, or `charge[3]` in a map."""
    action = step.action
    if type(action) is ParallelAction:
        return program.steps[action.lanes[place]].id
    assert type(action) is MapAction
    return f"{program.steps[action.lane].id}[{place}]"


def resume_group(state: State, step: CompiledStep, activity: Activity, todo: list[int]) -> None:
    """The back-off of a failed group is over: its failed lanes begin again, and so does its time-out."""
    activity.due_ms = state.now_ms + step.timeout_ms if step.timeout_ms else 0
    set_phase(state, activity, Phase.GROUP)
    todo.append(mark(step.index))


def time_out_group(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    """Start no further lane; those under way settle first (no effect is abandoned), then the group has timed
    out.
    """
    group = activity.group
    assert group is not None
    group.timed_out = True
    group.queue.clear()
    activity.due_ms = 0
    set_phase(state, activity, Phase.GROUP)
    for lane in lanes_of(program, state, step):
        phase = lane.phase
        if phase is Phase.READY or phase is Phase.BACKOFF or phase is Phase.WAITING:
            abandon(program, state, lane, "TIMEOUT")
        elif phase is Phase.GROUP:  # an agent
            time_out_group(program, state, program.steps[lane.step], lane, todo)
        elif program.steps[lane.step].kind is Kind.CALL:
            stop_child(state, lane)
    todo.append(mark(step.index))


def stop_child(state: State, activity: Activity) -> None:
    """The child is to be stopped; it is under way until it has ended."""
    activity.stopping = True
    activity.due_ms = 0
    set_phase(state, activity, Phase.STARTED, reachable=True)


def lanes_of(program: CompiledProgram, state: State, step: CompiledStep) -> list[Activity]:
    """The lanes of a group that are in progress, in the order they began."""
    return [
        activity for activity in state.active.values() if program.steps[activity.step].parent == step.index
    ]
