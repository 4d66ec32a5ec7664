"""Settling: a step has its result, or has failed; what it yields is bound, and the run goes on from there.

Nothing is entered here. What comes next is put on `todo` - step indexes, `END`, and groups to look after - so
neither a long chain of steps nor a long chain of failures deepens the stack.
"""

from __future__ import annotations

from typing import Any

from nano_vm.errors import NanoVMError
from nano_vm.expr.reference import UNSET
from nano_vm.kernel.activity import release_reservation, remove, set_phase
from nano_vm.kernel.dag import settle_edges
from nano_vm.kernel.ending import drop_group, end, leave_group, place_of
from nano_vm.kernel.labels import bind, failure_label, label_of, output_label, part_labels
from nano_vm.kernel.state import (
    STATUSES,
    Activity,
    Phase,
    RunStatus,
    Settled,
    Stage,
    State,
    StepStatus,
    Undo,
    activity_key,
)
from nano_vm.program.compiled import (
    SLOT_INDEX,
    SLOT_ITEM,
    Compensation,
    CompiledProgram,
    CompiledStep,
    Kind,
)

_GOING = Stage.GOING
_STARTED = Phase.STARTED
_SUCCESS, _FAILED, _SKIPPED = StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.SKIPPED
_WAIT = Kind.WAIT

_GROUP_MARK = -3  # on `todo`: `_GROUP_MARK - index` asks to look after the group at that step


def mark(group: int) -> int:
    """The entry of `todo` that asks to look after the group at step `group`; `mark` undoes itself."""
    return _GROUP_MARK - group


def succeed(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    value: Any,
    todo: list[int],
    substituted: bool = False,
    status: StepStatus = _SUCCESS,
) -> None:
    """A step has its result (SKIPPED steps have `null`): bind it and move on."""
    if state.grants:
        _use_up(state, activity)
    if (
        activity.phase is _STARTED
        and activity.item < 0
        and not (state.parked or activity.reserved_tokens or activity.reserved_cost_nanousd)
    ):
        # The common case of `remove`, without the call.
        del state.active[activity.step]
        state.busy -= 1
    else:
        remove(state, activity)
    if step.compensation is not None and status is _SUCCESS:
        fault = _remember_undo(state, step, activity, value)
        if fault is not None:
            # What can no longer be undone must not pass for done.
            state.incomplete.append(step.id)
            activity.failures = activity.attempt
            fail_for_good(program, state, step, activity, fault.code, fault.message, todo)
            return
    _settle_value(program, state, step, activity, value, todo, substituted, status)


def _settle_value(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    value: Any,
    todo: list[int],
    substituted: bool,
    status: StepStatus,
) -> None:
    slots = state.slots
    label = 0
    if state.labels is not None:
        label = _bind_label(state, step, activity, substituted, status)
    if activity.item < 0:
        # Lanes of a map have no names of their own: which comes last would be chance.
        slot = step.output_slot
        if state.stalled_steps_max and step.parent < 0:
            _count_stalled(program, state, step, value)
        if slot >= 0:
            slots[slot] = value
        if step.key_slot >= 0:
            slots[step.key_slot] = value
    if step.error_slot >= 0:
        slots[step.error_slot] = None
    state.settled.append(
        Settled(
            step.index,
            activity.occurrence,
            activity.item,
            status,
            value,
            "",
            activity.attempt,
            activity.entered_ms,
            substituted,
            label,
        )
    )
    if step.parent >= 0:
        _lane_settled(program, state, activity, value, label, todo)
    elif state.stage is _GOING:
        if step.is_terminal:
            state.last_output, state.last_label = value, label
            end_here(program, state, step)
        elif not program.is_dag:
            state.last_output, state.last_label = value, label
            todo.append(step.next)
        else:
            # Which of two independent steps finishes last is chance; their rank is not.
            if step.rank >= state.last_rank:
                state.last_rank = step.rank
                state.last_output, state.last_label = value, label
            settle_edges(program, state, step, "done", todo)


def _bind_label(
    state: State, step: CompiledStep, activity: Activity, substituted: bool, status: StepStatus
) -> int:
    """Give the slots of a result its label."""
    label = output_label(step, activity, substituted) if status is _SUCCESS else 0
    if activity.item < 0:
        if step.output_slot >= 0:
            bind(state, step.output_slot, label)
        if step.key_slot >= 0:
            bind(state, step.key_slot, label)
    if step.error_slot >= 0:
        bind(state, step.error_slot, 0)
    return label


def _use_up(state: State, activity: Activity) -> None:
    """An approval is good for one occurrence of one step: whatever came of it, it is not used again."""
    state.grants.pop(activity_key(activity.step, activity.item), None)


def end_here(program: CompiledProgram, state: State, step: CompiledStep) -> None:
    """The run ends as the terminal step says."""
    state.outcome = step.outcome
    error = None
    if step.final_status != "SUCCESS":
        error = {"type": "GOVERNED_FAILURE", "message": "", "attempts": 0, "step": step.id}
    end(program, state, STATUSES[step.final_status], error)


def _count_stalled(program: CompiledProgram, state: State, step: CompiledStep, value: Any) -> None:
    """Count the steps in a row that changed no bound value; a wait begins the count anew."""
    if step.kind is _WAIT:
        state.stalled = 0
        return
    old = state.slots[step.output_slot]
    same = old is not UNSET and program.unchanged(old, value)
    state.stalled = state.stalled + 1 if same else 0


def _remember_undo(state: State, step: CompiledStep, activity: Activity, value: Any) -> NanoVMError | None:
    """Render the compensation now, while the values it was made from are current."""
    compensation = step.compensation
    assert compensation is not None
    slots = state.slots
    bound = [slot for slot in (step.output_slot, step.key_slot) if slot >= 0]
    held = [slots[slot] for slot in bound]
    for slot in bound:
        slots[slot] = value
    show_item(state, step, activity)
    undo = Undo(
        step=step.id, occurrence=activity.occurrence, item=activity.item, tool=compensation.tool, args=None
    )
    try:
        if state.labels is not None:
            _label_undo(state, step, activity, compensation, bound, undo)
        undo.args = compensation.args.render(slots)
    except NanoVMError as error:
        return error
    finally:
        hide_item(state)
        for slot, old in zip(bound, held, strict=True):
            slots[slot] = old
    state.undo.append(undo)
    return None


def _label_undo(
    state: State,
    step: CompiledStep,
    activity: Activity,
    compensation: Compensation,
    bound: list[int],
    undo: Undo,
) -> None:
    labels = state.labels
    assert labels is not None
    held = [(labels[slot], state.pins.pop(slot, None)) for slot in bound]
    for slot in bound:
        labels[slot] = output_label(step, activity)
    undo.label = label_of(state, compensation.args.refs)
    undo.labels = part_labels(state, compensation.args)
    for slot, (old, pins) in zip(bound, held, strict=True):
        labels[slot] = old
        if pins is not None:
            state.pins[slot] = pins


def show_item(state: State, step: CompiledStep, activity: Activity) -> None:
    """Let `$item` and `$index` mean those of this lane, until `hide_item`."""
    if activity.item >= 0:
        group = state.active[step.parent].group
        assert group is not None
        assert group.items is not None
        state.slots[SLOT_ITEM] = group.items[activity.item]
        state.slots[SLOT_INDEX] = activity.item
        if state.labels is not None:
            state.labels[SLOT_ITEM] = group.item_label


def hide_item(state: State) -> None:
    state.slots[SLOT_ITEM] = state.slots[SLOT_INDEX] = UNSET
    if state.labels is not None:
        state.labels[SLOT_ITEM] = 0


# --- failures -----------------------------------------------------------------------------------------------


def fail(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    error: str,
    message: str,
    retryable: bool,
    draw: int,
    todo: list[int],
) -> None:
    """An attempt failed: back off, skip, hand over to `on_failure`, or end the run."""
    activity.failures += 1
    activity.error = error
    activity.reason = ""
    if (
        retryable
        and step.on_error == "retry"
        and activity.failures < step.retry.attempts_max
        and goes_on(state, step)
    ):
        release_reservation(state, activity)
        back_off(state, step, activity, activity.failures, draw)
        return
    if not retryable and step.parent >= 0:
        # A retried group would repeat the lane, and with it an effect that has happened.
        group = state.active[step.parent].group
        assert group is not None
        group.final = True
    remove(state, activity)
    fail_for_good(program, state, step, activity, error, message, todo)


def goes_on(state: State, step: CompiledStep) -> bool:
    """Whether a step may be tried again: not in a run that is ending nor in a group that has timed out."""
    if state.stage is not _GOING:
        return False
    if step.parent < 0:
        return True
    group = state.active[step.parent].group
    assert group is not None
    return not group.timed_out


def back_off(state: State, step: CompiledStep, activity: Activity, rounds: int, draw: int) -> None:
    """Wait before the next attempt, after `rounds`. The timer is data: a restart goes on with it."""
    retry = step.retry
    delay: float = retry.initial_ms
    # Multiplied out, because a product is rounded alike on every machine and a power is not.
    for _ in range(min(rounds - 1, 64)):
        delay *= retry.factor
        if delay >= retry.cap_ms:
            break
    delay_ms = int(min(delay, retry.cap_ms))
    if retry.jitter:
        delay_ms = delay_ms // 2 + delay_ms // 2 * draw // 1_000_000
    activity.attempt += 1
    activity.due_ms = state.now_ms + delay_ms
    set_phase(state, activity, Phase.BACKOFF)


def fail_for_good(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    error: str,
    message: str,
    todo: list[int],
    status: RunStatus = RunStatus.FAILED,
) -> None:
    """No attempt is left. The activity has been taken out already. `status` is the run's if nobody handles it."""
    if state.grants:
        _use_up(state, activity)
    if step.on_error == "skip" and state.stage is _GOING:
        _settle_value(program, state, step, activity, None, todo, False, _SKIPPED)
        return
    attempts = max(activity.failures, 1)
    if step.error_slot >= 0:
        state.slots[step.error_slot] = {"type": error, "message": message, "attempts": attempts}
        if state.labels is not None:
            bind(state, step.error_slot, failure_label(step, activity))
    state.settled.append(
        Settled(
            step.index,
            activity.occurrence,
            activity.item,
            _FAILED,
            None,
            error,
            activity.attempt,
            activity.entered_ms,
            False,
        )
    )
    if step.parent >= 0:
        _lane_failed(program, state, activity, error, todo)
    elif state.stage is not _GOING:
        return
    elif step.on_failure >= 0:
        if program.is_dag:
            settle_edges(program, state, step, "failure", todo)
        else:
            todo.append(step.on_failure)
    else:
        failure = {"type": error, "message": message, "attempts": attempts, "step": step.id}
        end(program, state, status, failure)


# --- lanes --------------------------------------------------------------------------------------------------


def _lane_settled(
    program: CompiledProgram, state: State, activity: Activity, value: Any, label: int, todo: list[int]
) -> None:
    parent = state.active[program.steps[activity.step].parent]
    group = parent.group
    assert group is not None
    group.active -= 1
    group.results[place_of(program, activity)] = value
    group.label |= label
    if state.stage is _GOING:
        todo.append(mark(parent.step))
    elif not group.active:
        drop_group(program, state, parent)


def _lane_failed(
    program: CompiledProgram, state: State, activity: Activity, error: str, todo: list[int]
) -> None:
    parent = program.steps[activity.step].parent
    group = state.active[parent].group
    assert group is not None
    group.attempts[place_of(program, activity)] = activity.attempt
    leave_group(program, state, activity, error)
    if state.stage is _GOING:
        todo.append(mark(parent))
