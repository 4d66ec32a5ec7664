"""Saga compensation: what succeeded is undone in reverse order when the run ends other than SUCCESS.

One compensation is in progress at a time, as the activity `COMPENSATION_KEY`, for the last entry of
`State.undo`. It has a budget of its own: `COMPENSATION_ATTEMPTS_MAX` attempts that are known to have failed
or were repeated under the tool's contract. What cannot be undone is named in `State.incomplete`.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET as ABSENT

from nano_vm.kernel.activity import add, remove, set_phase
from nano_vm.kernel.decide import compensates
from nano_vm.kernel.events import (
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    OutcomeResolved,
    OutcomeUnknown,
    PolicyDecided,
    TimerFired,
)
from nano_vm.kernel.find import advance_clock
from nano_vm.kernel.limits import COMPENSATION_ATTEMPTS_MAX, COMPENSATION_BACKOFF_MS
from nano_vm.kernel.state import COMPENSATION_KEY, Activity, Phase, Rejection, Stage, State
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.labels import UNTRUSTED

_READY, _STARTED, _UNKNOWN = Phase.READY, Phase.STARTED, Phase.UNKNOWN


def compensation_started(
    program: CompiledProgram, state: State, event: CompensationStarted
) -> Rejection | None:
    if state.stage is not Stage.ENDING or not compensates(state):
        return Rejection("OUT_OF_ORDER", "nothing is to be undone")
    undo = state.undo[-1]
    activity = state.active.get(COMPENSATION_KEY)
    if activity is None and state.active:
        return Rejection("OUT_OF_ORDER", "effects are still under way")
    if not _names(state, event):
        return Rejection("OUT_OF_ORDER", f"`{undo.step}` #{undo.occurrence} is to be undone next")
    attempt = 1 if activity is None else activity.attempt
    if event.attempt != attempt:
        return Rejection("STALE_ATTEMPT", f"the compensation is at attempt {attempt}")
    if activity is not None and activity.phase is not _READY:
        return Rejection("OUT_OF_ORDER", f"the compensation is {activity.phase.name}")
    if state.policy and state.undo_cleared != attempt:
        return Rejection("POLICY", f"nothing allows attempt {attempt} of undoing `{undo.step}`")
    if event.payload is not ABSENT and event.payload != undo.args:
        return Rejection("MISMATCH", "the compensation has other arguments")
    advance_clock(state, event.at_ms)
    if activity is None:
        activity = Activity(
            step=COMPENSATION_KEY,
            occurrence=undo.occurrence,
            item=undo.item,
            phase=_STARTED,
            entered_ms=state.now_ms,
        )
        add(state, activity)
    else:
        set_phase(state, activity, _STARTED)
    activity.effect = "" if event.effect is ABSENT else event.effect
    state.label = undo.label
    return None


def compensation_decided(state: State, event: PolicyDecided) -> Rejection | None:
    """Undoing is an action like any other. What is denied, or would have to be approved first, stays undone, and is
    named: nobody can be waited for while a run ends."""
    if state.stage is not Stage.ENDING or not compensates(state):
        return Rejection("OUT_OF_ORDER", "nothing is to be undone")
    activity = state.active.get(COMPENSATION_KEY)
    if (activity is None and state.active) or not _names(state, event):
        return Rejection("OUT_OF_ORDER", f"`{state.undo[-1].step}` is to be undone next")
    if event.attempt != (1 if activity is None else activity.attempt):
        return Rejection("STALE_ATTEMPT", f"the compensation of `{event.step}` is at another attempt")
    # As with steps: tightening between intent and call is recorded beside the intent, and the failure follows.
    tightened = activity is not None and activity.phase is _STARTED and event.decision == "deny"
    if activity is not None and activity.phase is not _READY and not tightened:
        return Rejection("OUT_OF_ORDER", f"the compensation is {activity.phase.name}")
    advance_clock(state, event.at_ms)
    if tightened:
        return None
    if event.decision == "allow":
        state.undo_cleared = event.attempt
        return None
    undo = state.undo.pop()
    if activity is not None:
        remove(state, activity)
    state.undo_cleared = 0
    state.incomplete.append(undo.step)
    return None


def _names(state: State, event: Any, item_optional: bool = False) -> bool:
    """Whether the event is about the compensation that is due. Timers and resolutions answer a command for
    the one in progress and may leave the item out."""
    undo = state.undo[-1]
    if event.item is ABSENT:
        same_item = item_optional or undo.item < 0
    else:
        same_item = event.item == undo.item
    return bool(same_item and event.step == undo.step and event.occurrence == undo.occurrence)


def _in_progress(
    state: State, event: Any, phase: Phase, or_phase: Phase, item_optional: bool = False
) -> Activity | Rejection:
    activity = state.active.get(COMPENSATION_KEY)
    if activity is None or not _names(state, event, item_optional):
        return Rejection("OUT_OF_ORDER", "no such compensation is in progress")
    if activity.attempt != event.attempt:
        return Rejection("STALE_ATTEMPT", f"the compensation is at attempt {activity.attempt}")
    if activity.phase is not phase and activity.phase is not or_phase:
        return Rejection("OUT_OF_ORDER", f"the compensation is {activity.phase.name}")
    return activity


def compensation_succeeded(
    program: CompiledProgram, state: State, event: CompensationSucceeded
) -> Rejection | None:
    found = _in_progress(state, event, _STARTED, _UNKNOWN)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    advance_clock(state, event.at_ms)
    state.label = state.undo[-1].label
    _settle(state, found, undone=True)
    return None


def compensation_failed(
    program: CompiledProgram, state: State, event: CompensationFailed
) -> Rejection | None:
    found = _in_progress(state, event, _STARTED, _UNKNOWN)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    advance_clock(state, event.at_ms)
    found.error = event.error
    _note_label(state)
    _attempt_failed(state, found, event.retryable)
    return None


def compensation_unknown(state: State, event: OutcomeUnknown) -> Rejection | None:
    found = _in_progress(state, event, _STARTED, _STARTED)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    advance_clock(state, event.at_ms)
    found.reason = event.reason
    found.effect = event.effect
    _note_label(state)
    set_phase(state, found, _UNKNOWN)
    return None


def compensation_resolved(state: State, event: OutcomeResolved) -> Rejection | None:
    found = _in_progress(state, event, _UNKNOWN, _UNKNOWN, item_optional=True)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    advance_clock(state, event.at_ms)
    _note_label(state)
    if event.resolution == "succeeded":
        _settle(state, found, undone=True)
    elif event.resolution == "repeat" and event.by == "operator":
        # Somebody vouches for it, so it does not count against the attempts.
        found.attempt += 1
        set_phase(state, found, _READY)
    else:
        _attempt_failed(state, found, True)
    return None


def compensation_timer(state: State, event: TimerFired) -> Rejection | None:
    found = _in_progress(state, event, Phase.BACKOFF, Phase.BACKOFF, item_optional=True)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    if event.at_ms < found.due_ms:
        return Rejection("OUT_OF_ORDER", "the back-off is not over")
    advance_clock(state, event.at_ms)
    found.due_ms = 0
    set_phase(state, found, _READY)
    return None


def _note_label(state: State) -> None:
    """What is said about a compensation may quote its arguments."""
    if state.labels is not None:
        state.label = UNTRUSTED | state.undo[-1].label


def _attempt_failed(state: State, activity: Activity, retryable: bool) -> None:
    activity.failures += 1
    if not retryable or activity.failures >= COMPENSATION_ATTEMPTS_MAX:
        _settle(state, activity, undone=False)
        return
    activity.attempt += 1
    activity.due_ms = state.now_ms + COMPENSATION_BACKOFF_MS * 2 ** (activity.failures - 1)
    set_phase(state, activity, Phase.BACKOFF)


def _settle(state: State, activity: Activity, undone: bool) -> None:
    undo = state.undo.pop()
    state.undo_cleared = 0
    remove(state, activity)
    if not undone:
        state.incomplete.append(undo.step)
