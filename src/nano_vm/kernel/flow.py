"""How a run moves through its graph: entering steps, settling them, ending.

Everything here is reached from `apply`. Moving on is iterative - a step that settles puts its successors on `todo` - so
neither a long chain of conditions nor a long chain of failures deepens the stack.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.expr.reference import UNSET
from nano_vm.kernel.limits import EVENTS_SEEN_MAX
from nano_vm.kernel.state import (
    BUSY,
    Activity,
    Group,
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
    END,
    NO_TARGET,
    SLOT_EVENT,
    SLOT_INDEX,
    SLOT_ITEM,
    CallAction,
    CompiledProgram,
    CompiledStep,
    ConditionAction,
    Kind,
    MapAction,
    ModelAction,
    ParallelAction,
    ToolAction,
    WaitAction,
)

_READY = Phase.READY
_SUCCESS = StepStatus.SUCCESS


def run_todo(program: CompiledProgram, state: State, todo: list[int]) -> None:
    """Enter the steps on `todo`, and those that follow at once, until something has to be awaited."""
    place = 0
    while place < len(todo):
        if state.stage is not Stage.GOING:
            return
        index = todo[place]
        place += 1
        if index == END:
            end(program, state, RunStatus.SUCCESS)
            return
        _enter(program, state, index, todo)
        if place > 256:
            # A long chain of conditions must not keep what it has passed.
            del todo[:place]
            place = 0


def admits_step(program: CompiledProgram, state: State) -> bool:
    """Whether the budgets admit one more step; ends the run when they do not (P10: checked before the step)."""
    if state.steps >= state.steps_max:
        return _exhausted(program, state, "steps")
    if state.tokens_max and state.tokens > state.tokens_max:
        return _exhausted(program, state, "tokens")
    if state.cost_nanousd_max and state.cost_nanousd > state.cost_nanousd_max:
        return _exhausted(program, state, "cost_nanousd")
    if state.duration_ms_max and state.now_ms - state.started_ms - state.suspended_ms > state.duration_ms_max:
        return _exhausted(program, state, "duration_ms")
    if state.stalled_steps_max and state.stalled >= state.stalled_steps_max:
        state.error = {"type": "STALLED", "message": "no bound value has changed", "attempts": 0}
        end(program, state, RunStatus.STALLED)
        return False
    return True


def _exhausted(program: CompiledProgram, state: State, budget: str) -> bool:
    state.error = {"type": "BUDGET_EXCEEDED", "message": budget, "attempts": 0}
    end(program, state, RunStatus.BUDGET_EXCEEDED)
    return False


def _enter(program: CompiledProgram, state: State, index: int, todo: list[int]) -> None:
    if not admits_step(program, state):
        return
    step = program.steps[index]
    occurrence = state.occurrences[index] + 1
    state.occurrences[index] = occurrence
    state.steps += 1
    action = step.action
    if type(action) is ToolAction:
        open_activity(program, state, step, occurrence, -1, todo)
    elif type(action) is ConditionAction:
        _branch(program, state, step, action, occurrence, todo)
    elif type(action) is ParallelAction:
        lanes = len(action.lanes)
        _open_group(program, state, step, occurrence, lanes, None, todo)
    elif type(action) is MapAction:
        _open_map(program, state, step, action, occurrence, todo)
    else:
        open_activity(program, state, step, occurrence, -1, todo)


# --- conditions ---------------------------------------------------------------------------------------------


def _branch(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    action: ConditionAction,
    occurrence: int,
    todo: list[int],
) -> None:
    try:
        verdict = action.test(state.slots)
    except NanoVMError as error:
        _condition_failed(program, state, step, occurrence, error.code, error.message)
        return
    target = action.then if verdict else action.otherwise
    if target == NO_TARGET:
        _condition_failed(program, state, step, occurrence, "NO_BRANCH", "then" if verdict else "otherwise")
        return
    state.verdicts.append([step.id, occurrence, verdict])
    state.settled.append(Settled(step.index, occurrence, -1, _SUCCESS, verdict, "", 1, state.now_ms, False))
    if program.is_dag:
        settle_edges(program, state, step, "then" if verdict else "otherwise", todo)
    else:
        todo.append(target)


def _condition_failed(
    program: CompiledProgram, state: State, step: CompiledStep, occurrence: int, code: str, message: str
) -> None:
    state.verdicts.append([step.id, occurrence, code])
    state.settled.append(
        Settled(step.index, occurrence, -1, StepStatus.FAILED, None, code, 1, state.now_ms, False)
    )
    state.error = {"type": code, "message": message, "attempts": 1, "step": step.id}
    end(program, state, RunStatus.FAILED)


# --- activities ---------------------------------------------------------------------------------------------


def open_activity(
    program: CompiledProgram, state: State, step: CompiledStep, occurrence: int, item: int, todo: list[int]
) -> None:
    """Begin one occurrence (or map lane) of a step that takes time. What it needs is rendered now."""
    activity = Activity(step=step.index, occurrence=occurrence, item=item, entered_ms=state.now_ms)
    key = step.index if item < 0 else activity_key(step.index, item)
    state.active[key] = activity
    state.ready[key] = None
    state.busy += 1
    action = step.action
    try:
        if type(action) is ToolAction:
            activity.request = action.args.render(state.slots)
            if action.idempotency_key is not None:
                activity.business_key = action.idempotency_key.render(state.slots)
        elif type(action) is ModelAction:
            activity.request = _model_request(action, state.slots)
        elif type(action) is CallAction:
            activity.request = action.inputs.render(state.slots)
            if step.timeout_ms:
                activity.due_ms = state.now_ms + step.timeout_ms
        elif type(action) is WaitAction:
            _open_wait(program, state, step, action, activity, todo)
    except NanoVMError as error:
        fail(program, state, step, activity, error.code, error.message, False, 0, todo)


def _model_request(action: ModelAction, slots: list[Any]) -> dict[str, Any]:
    messages = []
    if action.system is not None:
        messages.append({"role": "system", "content": action.system.render(slots)})
    messages.append({"role": "user", "content": action.prompt.render(slots)})
    request: dict[str, Any] = {"messages": messages}
    if action.model is not None:
        request["model"] = action.model.render(slots)
    if action.params is not None:
        request["params"] = action.params.render(slots)
    return request


def _open_wait(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    action: WaitAction,
    activity: Activity,
    todo: list[int],
) -> None:
    if action.delay is not None:
        activity.due_ms = state.now_ms + _milliseconds(action.delay.render(state.slots))
    elif action.until is not None:
        activity.due_ms = max(_instant(action.until.render(state.slots)), state.now_ms)
    elif step.timeout_ms:
        activity.due_ms = state.now_ms + step.timeout_ms
    set_phase(state, activity, Phase.WAITING)
    if action.event is not None or action.approvers:
        name = action.event or step.id
        for place, letter in enumerate(state.inbox):
            if letter.get("name") == name and event_fault(action, letter, state.slots) is None:
                del state.inbox[place]
                succeed(program, state, step, activity, event_output(action, letter), todo)
                return


def _milliseconds(seconds: Any) -> int:
    if type(seconds) not in (int, float) or seconds < 0 or seconds > 315_576_000_000:
        raise NanoVMError("BAD_DELAY", "`seconds` is not a number from 0 to 10,000 years")
    return round(seconds * 1_000)


def _instant(until: Any) -> int:
    if type(until) in (int, float) and 0 <= until < 315_576_000_000:
        return round(until * 1_000)
    try:
        moment = datetime.fromisoformat(until)
        if moment.tzinfo is None:
            raise ValueError("no time zone")
        return round(moment.timestamp() * 1_000)
    except (TypeError, ValueError, OverflowError):
        raise NanoVMError(
            "BAD_INSTANT", "`until` is neither an RFC 3339 time with a zone nor epoch seconds"
        ) from None


def event_fault(action: WaitAction, letter: dict[str, Any], slots: list[Any]) -> str | None:
    """Why this wait does not take this event: a rejection code, or None when it does."""
    data = letter["data"]
    if action.approvers:
        held = (letter.get("principal") or {}).get("roles") or []
        if not any(role in action.approvers for role in held):
            return "NOT_APPROVER"
        if type(data) is not dict or type(data.get("approved")) is not bool:
            return "NOT_APPROVAL"
    if action.accept is not None:
        slots[SLOT_EVENT] = data
        try:
            if not action.accept(slots):
                return "NOT_ACCEPTED"
        except NanoVMError:
            return "NOT_ACCEPTED"
        finally:
            slots[SLOT_EVENT] = UNSET
    return None


def event_output(action: WaitAction | None, letter: dict[str, Any]) -> Any:
    """What the wait yields: the event's data; an approval also says who gave it."""
    if action is not None and action.approvers:
        return {**letter["data"], "by": letter["principal"]["id"]}
    return letter["data"]


def set_phase(state: State, activity: Activity, phase: Phase) -> None:
    """Move an activity to another phase and keep the counters and queues that depend on it."""
    key = activity_key(activity.step, activity.item)
    was = activity.phase
    if was is _READY:
        state.ready.pop(key, None)
    state.busy += (phase in BUSY) - (was in BUSY)
    activity.phase = phase
    if phase is _READY:
        state.ready[key] = None
    if phase in (Phase.READY, Phase.STARTED) and not activity.due_ms:
        state.parked.pop(key, None)
    else:
        state.parked[key] = None


def remove(state: State, activity: Activity) -> None:
    """Take a settled activity out and give back what it had reserved."""
    key = activity.step if activity.item < 0 else activity_key(activity.step, activity.item)
    del state.active[key]
    phase = activity.phase
    if phase is _READY:
        state.ready.pop(key, None)
    if phase in BUSY:
        state.busy -= 1
    if state.parked:
        state.parked.pop(key, None)
    release_reservation(state, activity)


def release_reservation(state: State, activity: Activity) -> None:
    if activity.reserved_tokens or activity.reserved_cost_nanousd:
        state.reserved_tokens -= activity.reserved_tokens
        state.reserved_cost_nanousd -= activity.reserved_cost_nanousd
        activity.reserved_tokens = activity.reserved_cost_nanousd = 0


# --- settling -----------------------------------------------------------------------------------------------


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
    remove(state, activity)
    if status is _SUCCESS and step.compensation is not None:
        fault = _remember_undo(state, step, activity, value)
        if fault is not None:
            # What cannot be undone any more must not pass for done.
            activity.failures = activity.attempt
            _fail_for_good(program, state, step, activity, fault.code, fault.message, todo)
            return
    _bind(state, step, value)
    state.last_output = value
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
        )
    )
    if step.parent >= 0:
        _lane_settled(program, state, step, activity, value, "", todo)
    elif state.stage is Stage.GOING:
        if step.is_terminal:
            state.outcome = step.outcome
            if step.final_status != "SUCCESS":
                state.error = {"type": "GOVERNED_FAILURE", "message": "", "attempts": 0, "step": step.id}
            end(program, state, RunStatus(step.final_status))
        elif program.is_dag:
            settle_edges(program, state, step, "done", todo)
        else:
            todo.append(step.next)


def _bind(state: State, step: CompiledStep, value: Any) -> None:
    slots = state.slots
    slot = step.output_slot
    if slot >= 0:
        if state.stalled_steps_max:
            old = slots[slot]
            same = old is not UNSET and canonical.encode(old) == canonical.encode(value)
            state.stalled = state.stalled + 1 if same else 0
        slots[slot] = value
    if step.key_slot >= 0:
        slots[step.key_slot] = value
    if step.error_slot >= 0:
        slots[step.error_slot] = None


def _remember_undo(state: State, step: CompiledStep, activity: Activity, value: Any) -> NanoVMError | None:
    assert step.compensation is not None
    slots = state.slots
    held = slots[step.output_slot]
    slots[step.output_slot] = value
    try:
        args = step.compensation.args.render(slots)
    except NanoVMError as error:
        slots[step.output_slot] = held
        return error
    slots[step.output_slot] = held
    state.undo.append(
        Undo(
            step=step.id,
            occurrence=activity.occurrence,
            item=activity.item,
            tool=step.compensation.tool,
            args=args,
        )
    )
    return None


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
    if (
        state.stage is Stage.GOING
        and retryable
        and step.on_error == "retry"
        and activity.failures < step.retry.attempts_max
    ):
        release_reservation(state, activity)
        back_off(state, step, activity, draw)
        return
    remove(state, activity)
    _fail_for_good(program, state, step, activity, error, message, todo)


def back_off(state: State, step: CompiledStep, activity: Activity, draw: int) -> None:
    """Wait before the next attempt. The timer is data, so a restart goes on with it instead of beginning again."""
    retry = step.retry
    delay = min(retry.cap_ms, retry.initial_ms * retry.factor ** min(activity.failures - 1, 64))
    delay_ms = int(delay)
    if retry.jitter:
        delay_ms = delay_ms // 2 + delay_ms // 2 * draw // 1_000_000
    activity.attempt += 1
    activity.due_ms = state.now_ms + delay_ms
    set_phase(state, activity, Phase.BACKOFF)


def _fail_for_good(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    error: str,
    message: str,
    todo: list[int],
) -> None:
    if step.on_error == "skip" and state.stage is Stage.GOING:
        state.active[activity_key(activity.step, activity.item)] = activity
        activity.phase = Phase.WAITING
        succeed(program, state, step, activity, None, todo, False, StepStatus.SKIPPED)
        return
    attempts = max(activity.failures, 1)
    if step.error_slot >= 0:
        state.slots[step.error_slot] = {"type": error, "message": message, "attempts": attempts}
    state.settled.append(
        Settled(
            step.index,
            activity.occurrence,
            activity.item,
            StepStatus.FAILED,
            None,
            error,
            activity.attempt,
            activity.entered_ms,
            False,
        )
    )
    if step.parent >= 0:
        _lane_settled(program, state, step, activity, None, error, todo)
    elif state.stage is not Stage.GOING:
        return
    elif step.on_failure >= 0:
        if program.is_dag:
            settle_edges(program, state, step, "failure", todo)
        else:
            todo.append(step.on_failure)
    else:
        state.error = {"type": error, "message": message, "attempts": attempts, "step": step.id}
        end(program, state, RunStatus.FAILED)


# --- parallel and map ---------------------------------------------------------------------------------------


def _open_map(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    action: MapAction,
    occurrence: int,
    todo: list[int],
) -> None:
    fault: tuple[str, str] | None = None
    items: Any = None
    try:
        items = action.over.render(state.slots)
    except NanoVMError as error:
        fault = (error.code, error.message)
    if fault is None and type(items) is not list:
        fault = ("NOT_A_LIST", "`over` is not a list")
    if fault is None and len(items) > action.items_max:
        fault = ("TOO_MANY_ITEMS", f"{len(items)} items, at most {action.items_max}")
    if fault is not None:
        activity = Activity(step=step.index, occurrence=occurrence, entered_ms=state.now_ms, failures=1)
        _fail_for_good(program, state, step, activity, *fault, todo)
        return
    _open_group(program, state, step, occurrence, len(items), items, todo)


def _open_group(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    occurrence: int,
    total: int,
    items: list[Any] | None,
    todo: list[int],
) -> None:
    group = Group(total=total, queue=list(range(total - 1, -1, -1)), items=items, results={}, errors={})
    activity = Activity(
        step=step.index,
        occurrence=occurrence,
        phase=Phase.GROUP,
        entered_ms=state.now_ms,
        group=group,
        due_ms=state.now_ms + step.timeout_ms if step.timeout_ms else 0,
    )
    state.active[step.index] = activity
    if activity.due_ms:
        state.parked[step.index] = None
    if total:
        _start_lanes(program, state, step, activity, group, todo)
    else:
        _group_settled(program, state, step, activity, group, todo)


def _start_lanes(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    group: Group,
    todo: list[int],
) -> None:
    action = step.action
    assert type(action) is ParallelAction or type(action) is MapAction
    while group.queue and group.active < action.concurrency_max:
        if not admits_step(program, state):
            return
        place = group.queue.pop()
        state.steps += 1
        group.active += 1
        if type(action) is MapAction:
            lane, item = program.steps[action.lane], place
            assert group.items is not None
            state.slots[SLOT_ITEM] = group.items[place]
            state.slots[SLOT_INDEX] = place
        else:
            lane, item = program.steps[action.lanes[place]], -1
            state.occurrences[lane.index] = activity.occurrence
        # A lane that settles at once comes back to `_lane_settled`, which sees that we are still starting.
        group.active += 1_000_000
        open_activity(program, state, lane, activity.occurrence, item, todo)
        group.active -= 1_000_000
        state.slots[SLOT_ITEM] = state.slots[SLOT_INDEX] = UNSET
    if not group.active and not group.queue and state.active.get(step.index) is activity:
        _group_settled(program, state, step, activity, group, todo)


def _lane_settled(
    program: CompiledProgram,
    state: State,
    lane: CompiledStep,
    activity: Activity,
    value: Any,
    error: str,
    todo: list[int],
) -> None:
    step = program.steps[lane.parent]
    parent = state.active.get(lane.parent)
    if parent is None or parent.group is None:  # the group was given up when the run began to end
        return
    group = parent.group
    place = activity.item if activity.item >= 0 else step.action.lanes.index(lane.index)  # type: ignore[union-attr]
    group.active -= 1
    if error:
        group.errors[place] = error
    else:
        group.results[place] = value
    if group.active >= 900_000:
        return
    if state.stage is Stage.GOING and not group.timed_out:
        _start_lanes(program, state, step, parent, group, todo)
    elif not group.active:
        if group.timed_out and state.stage is Stage.GOING:
            _group_failed(program, state, step, parent, group, "TIMEOUT", todo)
        else:
            _drop_group(state, parent)


def _drop_group(state: State, activity: Activity) -> None:
    state.active.pop(activity.step, None)
    state.parked.pop(activity.step, None)


def _group_settled(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    group: Group,
    todo: list[int],
) -> None:
    if group.errors:
        _group_failed(program, state, step, activity, group, "SUBSTEP_FAILED", todo)
        return
    action = step.action
    value: Any
    if type(action) is ParallelAction:
        value = {program.steps[lane].id: group.results[i] for i, lane in enumerate(action.lanes)}
    else:
        value = [group.results[i] for i in range(group.total)]
    succeed(program, state, step, activity, value, todo)


def _group_failed(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    group: Group,
    error: str,
    todo: list[int],
) -> None:
    """A retried group repeats the lanes that failed, never those that are done."""
    names = [_lane_name(program, step, place) for place in sorted(group.errors)]
    message = ", ".join(
        f"{name}: {group.errors[place]}" for name, place in zip(names, sorted(group.errors), strict=True)
    )
    redo = sorted(group.errors, reverse=True)
    activity.failures += 1
    if (
        step.on_error == "retry"
        and error == "SUBSTEP_FAILED"
        and activity.failures < step.retry.attempts_max
        and state.stage is Stage.GOING
    ):
        group.queue = redo
        group.errors = {}
        back_off(state, step, activity, 500_000)
        return
    if error == "TIMEOUT" and step.on_timeout == "fallback":
        succeed(program, state, step, activity, step.fallback, todo, True)
        return
    remove(state, activity)
    _fail_for_good(program, state, step, activity, error, message, todo)


def _lane_name(program: CompiledProgram, step: CompiledStep, place: int) -> str:
    action = step.action
    if type(action) is ParallelAction:
        return program.steps[action.lanes[place]].id
    assert type(action) is MapAction
    return f"{program.steps[action.lane].id}[{place}]"


def resume_group(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    """The back-off of a failed group is over: its failed lanes begin again."""
    assert activity.group is not None
    set_phase(state, activity, Phase.GROUP)
    activity.due_ms = 0
    state.parked.pop(activity.step, None)
    _start_lanes(program, state, step, activity, activity.group, todo)


def time_out_group(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    """Start no further lane; those under way settle first (no effect is abandoned), then the group has timed out."""
    group = activity.group
    assert group is not None
    group.timed_out = True
    activity.due_ms = 0
    state.parked.pop(activity.step, None)
    group.queue.clear()
    for lane in [a for a in state.active.values() if program.steps[a.step].parent == step.index]:
        if lane.phase in (Phase.READY, Phase.BACKOFF, Phase.WAITING):
            remove(state, lane)
            group.active -= 1
            group.errors[_place(step, lane)] = "TIMEOUT"
    if not group.active:
        _group_failed(program, state, step, activity, group, "TIMEOUT", todo)


def _place(step: CompiledStep, lane: Activity) -> int:
    action = step.action
    return action.lanes.index(lane.step) if type(action) is ParallelAction else lane.item


# --- declarative DAG ----------------------------------------------------------------------------------------


def settle_edges(
    program: CompiledProgram, state: State, step: CompiledStep, result: str, todo: list[int]
) -> None:
    """Tell the dependents of a settled step. `result`: done, then, otherwise, failure or skipped. A step whose
    dependencies have all settled runs if at least one was taken, else it is skipped, and so on."""
    queue = [(step, result)]
    for settled, how in queue:
        for edge in settled.edges:
            if how == "skipped":
                taken = False
            elif edge.when == "done":
                taken = how != "failure"
            else:
                taken = edge.when == how
            target = edge.target
            state.taken[target] = state.taken[target] or taken
            state.unmet[target] -= 1
            if state.unmet[target]:
                continue
            if state.taken[target]:
                todo.append(target)
            else:
                skipped = program.steps[target]
                state.settled.append(
                    Settled(target, 1, -1, StepStatus.SKIPPED, None, "", 0, state.now_ms, False)
                )
                if skipped.output_slot >= 0:
                    state.slots[skipped.output_slot] = None
                queue.append((skipped, "skipped"))


def finish_if_drained(program: CompiledProgram, state: State) -> None:
    """A DAG is done when nothing is in progress any more."""
    if program.is_dag and state.stage is Stage.GOING and not state.active:
        end(program, state, RunStatus.SUCCESS)


# --- ending -------------------------------------------------------------------------------------------------


def end(program: CompiledProgram, state: State, status: RunStatus) -> None:
    """Decide the terminal status. What has not begun is dropped; dispatched effects are waited for."""
    if state.stage is not Stage.GOING:
        return
    state.stage = Stage.ENDING
    state.ending = status.value
    if not state.active:
        return
    for activity in list(state.active.values()):
        if activity.phase in (Phase.READY, Phase.BACKOFF, Phase.WAITING):
            parent = state.active.get(program.steps[activity.step].parent)
            if activity.group is None:
                remove(state, activity)
                if parent is not None and parent.group is not None:
                    parent.group.active -= 1
            else:
                set_phase(state, activity, Phase.GROUP)
    for activity in list(state.active.values()):
        if activity.group is not None:
            activity.group.queue.clear()
            activity.due_ms = 0
            state.parked.pop(activity.step, None)
            if activity.group.active % 1_000_000 == 0:
                _drop_group(state, activity)


def remember_event(state: State, event_id: str, digest: str) -> None:
    """Keep the id for deduplication; the oldest goes when there are too many."""
    if len(state.seen) >= EVENTS_SEEN_MAX:
        del state.seen[next(iter(state.seen))]
    state.seen[event_id] = digest


def kind_of(program: CompiledProgram, activity: Activity) -> Kind:
    return program.steps[activity.step].kind
