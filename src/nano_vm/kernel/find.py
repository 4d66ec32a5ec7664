"""Which activity an event is about, and why there is none."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET as ABSENT

from nano_vm.kernel.state import Activity, Phase, Rejection, State, activity_key
from nano_vm.program.compiled import CompiledProgram, Kind


def find(program: CompiledProgram, state: State, event: Any) -> Activity | Rejection:
    """The activity an event names by step, occurrence, item and attempt, in whatever phase it is."""
    index = program.step_index.get(event.step)
    if index is None:
        return Rejection("UNKNOWN_STEP", f"no step `{event.step}`")
    item = event.item
    if item is ABSENT:
        key = index
    elif item >= 0:
        key = activity_key(index, item)
    else:
        return Rejection("MALFORMED", "an item is counted from 0")
    activity = state.active.get(key)
    if activity is None:
        return _absent(program, state, event, index)
    if activity.occurrence != event.occurrence or activity.attempt != event.attempt:
        return Rejection(
            "STALE_ATTEMPT",
            f"`{event.step}` is at occurrence {activity.occurrence}, attempt {activity.attempt}",
        )
    return activity


def _absent(program: CompiledProgram, state: State, event: Any, index: int) -> Rejection:
    parent = program.steps[index].parent
    in_map = parent >= 0 and program.steps[parent].kind in (Kind.MAP, Kind.AGENT)
    if (event.item is not ABSENT) is not in_map:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` has {'items' if in_map else 'no items'}")
    if 1 <= event.occurrence <= state.occurrences[index] and not _queued(program, state, event, index):
        return Rejection("DUPLICATE", f"`{event.step}` #{event.occurrence} is settled")
    return Rejection("OUT_OF_ORDER", f"`{event.step}` #{event.occurrence} is not in progress")


def _queued(program: CompiledProgram, state: State, event: Any, index: int) -> bool:
    """Whether the event is about a lane that its group has not started yet, or does not have."""
    parent = program.steps[index].parent
    group = state.active.get(parent)
    if parent >= 0 and program.steps[parent].kind is Kind.AGENT:
        return _is_ahead(state, event, parent)
    if parent < 0 or group is None or group.group is None or group.occurrence != event.occurrence:
        return False
    place = index - parent - 1 if event.item is ABSENT else event.item
    lanes = group.group
    return place in lanes.queue or not (place in lanes.results or place in lanes.errors)


def _is_ahead(state: State, event: Any, agent: int) -> bool:
    """Whether the event is about a proposal that is still to be judged, or that no model has made."""
    if event.item is ABSENT or event.item >= state.actions.get(agent, 0):
        return True
    activity = state.active.get(agent)
    return activity is not None and activity.group is not None and event.item in activity.group.queue


def wrong_phase(event: Any, phase: Phase) -> Rejection:
    """The activity is there, but not where the event wants it."""
    return Rejection("OUT_OF_ORDER", f"`{event.step}` is {phase.name}")


def advance_clock(state: State, at_ms: int) -> None:
    """Time moves forwards only, whatever the driver's clock does; suspended time is not the run's own."""
    if at_ms > state.now_ms:
        if not state.busy and state.active:
            state.suspended_ms += at_ms - state.now_ms
        state.now_ms = at_ms
