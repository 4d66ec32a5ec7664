"""Activities: one occurrence of a step in progress, and the counters and queues that depend on its phase.

Invariant: `State.busy` counts the activities up to `LAST_BUSY`, `State.ready` holds the keys of those that
are READY, and `State.parked` the keys of those that a timer, an event, a resolution or a request to stop can
reach.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET as ABSENT

from nano_vm.kernel.state import LAST_BUSY, Activity, Phase, State, activity_key

_READY, _STARTED, _GROUP = Phase.READY, Phase.STARTED, Phase.GROUP


def key_of(activity: Activity) -> int:
    """The key under which the state holds the activity."""
    return activity.step if activity.item < 0 else activity_key(activity.step, activity.item)


def add(state: State, activity: Activity) -> None:
    """Take up a group, or a compensation that has been started."""
    key = key_of(activity)
    state.active[key] = activity
    if activity.phase is _STARTED:
        state.busy += 1
    elif activity.due_ms:
        state.parked[key] = None


def set_phase(state: State, activity: Activity, phase: Phase, reachable: bool = False) -> None:
    """Move an activity to another phase. `reachable` parks a STARTED one: children can be stopped."""
    key = key_of(activity)
    was = activity.phase
    if was is _READY:
        del state.ready[key]
    state.busy += (phase <= LAST_BUSY) - (was <= LAST_BUSY)
    activity.phase = phase
    if phase is _READY:
        state.ready[key] = None
    if phase is _READY or (phase is _STARTED and not reachable) or (phase is _GROUP and not activity.due_ms):
        state.parked.pop(key, None)
    else:
        state.parked[key] = None


def remove(state: State, activity: Activity) -> None:
    """Take an activity out and give back what it had reserved."""
    key = activity.step if activity.item < 0 else activity_key(activity.step, activity.item)
    del state.active[key]
    phase = activity.phase
    if phase <= LAST_BUSY:
        state.busy -= 1
        if phase is _READY:
            del state.ready[key]
    if state.parked:
        state.parked.pop(key, None)
    if activity.reserved_tokens or activity.reserved_cost_nanousd or activity.reserved_steps:
        release_reservation(state, activity)


def release_reservation(state: State, activity: Activity) -> None:
    """Give back what an attempt had reserved and did not spend."""
    state.reserved_steps -= activity.reserved_steps
    state.reserved_tokens -= activity.reserved_tokens
    state.reserved_cost_nanousd -= activity.reserved_cost_nanousd
    activity.reserved_tokens = activity.reserved_cost_nanousd = activity.reserved_steps = 0


def spend(state: State, event: Any) -> None:
    """Add what a model call is reported to have used."""
    if event.tokens_in is not ABSENT:
        state.tokens += event.tokens_in
    if event.tokens_out is not ABSENT:
        state.tokens += event.tokens_out
    if event.cost_nanousd is not ABSENT:
        state.cost_nanousd += event.cost_nanousd


def spend_reservation(state: State, activity: Activity) -> None:
    """Settle an attempt whose bill nobody knows at its worst case."""
    state.tokens += activity.reserved_tokens
    state.cost_nanousd += activity.reserved_cost_nanousd
    release_reservation(state, activity)
