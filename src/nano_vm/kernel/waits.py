"""Waits: which events and timers they take, and what they yield."""

from __future__ import annotations

from typing import Any

from nano_vm.errors import NanoVMError
from nano_vm.expr.reference import UNSET
from nano_vm.kernel.instants import instant, milliseconds
from nano_vm.kernel.settle import hide_item, show_item
from nano_vm.kernel.state import Activity, State
from nano_vm.program.compiled import SLOT_EVENT, CompiledStep, WaitAction

Letter = dict[str, Any]  # an outside event: {"id", "name", "step", "item", "data", "principal"}


def is_timer(step: CompiledStep) -> bool:
    """Whether the step is a `wait` for a time, which no event ends."""
    action = step.action
    return type(action) is WaitAction and (action.delay is not None or action.until is not None)


def due_ms(state: State, step: CompiledStep, action: WaitAction, entered_ms: int) -> int:
    """When the wait, entered at `entered_ms`, ends of itself: its time, its time-out, or never (0).

    Raises:
        NanoVMError: BAD_DELAY, BAD_INSTANT, or what rendering raises.
    """
    if action.delay is not None:
        return max(entered_ms + milliseconds(action.delay.render(state.slots)), 1)
    if action.until is not None:
        # A timer due at 0 would be no timer.
        return max(instant(action.until.render(state.slots)), entered_ms, 1)
    return entered_ms + step.timeout_ms if step.timeout_ms else 0


def event_name(step: CompiledStep, action: WaitAction) -> str:
    """The event a wait is for; an approval's is its step id."""
    return action.event or step.id


def take_letter(state: State, step: CompiledStep, action: WaitAction, activity: Activity) -> Letter | None:
    """The oldest event in the inbox that this wait takes, taken out of it."""
    name = event_name(step, action)
    for place, letter in enumerate(state.inbox):
        if (
            letter["name"] == name
            and letter["step"] in (None, step.id)
            and letter["item"] in (None, activity.item)
            and event_fault(state, step, action, activity, letter) is None
        ):
            del state.inbox[place]
            return letter
    return None


def event_fault(
    state: State, step: CompiledStep, action: WaitAction, activity: Activity, letter: Letter
) -> str | None:
    """Why this wait does not take this event: a rejection code, or None when it does."""
    data = letter["data"]
    if action.approvers:
        principal = letter["principal"]
        held = principal.get("roles") if type(principal) is dict else None
        if type(held) is not list or not any(role in action.approvers for role in held):
            return "NOT_APPROVER"
        if type(data) is not dict or type(data.get("approved")) is not bool:
            return "NOT_APPROVAL"
    if action.accept is None:
        return None
    slots = state.slots
    slots[SLOT_EVENT] = data
    show_item(state, step, activity)
    try:
        return None if action.accept(slots) else "NOT_ACCEPTED"
    except NanoVMError:
        return "NOT_ACCEPTED"
    finally:
        slots[SLOT_EVENT] = UNSET
        hide_item(state)


def event_output(action: WaitAction | None, letter: Letter) -> Any:
    """What the wait yields: the event's data; an approval also says who gave it."""
    if action is not None and action.approvers:
        return {**letter["data"], "by": letter["principal"].get("id")}
    return letter["data"]
