"""The transition function: `decide` and `apply` (SPEC §4; `spec/transition.md` is the table).

Pure and synchronous. `decide` says what must happen next, `apply` takes one event or says by name why it is not
admissible. Nothing here knows a clock, a store or asyncio; the asyncio runtime, recovery, replay, the simulator and
foreign durable-execution engines all drive these two functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.expr.reference import UNSET
from nano_vm.kernel import events as ev
from nano_vm.kernel import flow
from nano_vm.kernel.commands import (
    AwaitEvent,
    CallModel,
    CallTool,
    Command,
    Compensate,
    Finish,
    Reconcile,
    StartChild,
    StartTimer,
    StopChild,
)
from nano_vm.kernel.limits import (
    CALL_DEPTH_MAX,
    COMPENSATION_ATTEMPTS_MAX,
    COMPENSATION_BACKOFF_MS,
    INBOX_MAX,
)
from nano_vm.kernel.state import (
    BUSY,
    COMPENSATION_KEY,
    Activity,
    Phase,
    Rejection,
    RunStatus,
    Stage,
    State,
    StepStatus,
    Undo,
    Waiting,
    activity_key,
)
from nano_vm.program.compiled import (
    SLOT_PRINCIPAL,
    SLOT_RUN,
    CallAction,
    CompiledProgram,
    CompiledStep,
    ModelAction,
    ToolAction,
    WaitAction,
)

_READY, _STARTED, _UNKNOWN = Phase.READY, Phase.STARTED, Phase.UNKNOWN
_ABSENT = msgspec.UNSET


# --- decide -------------------------------------------------------------------------------------------------


def decide(program: CompiledProgram, state: State) -> list[Command]:
    """What must happen next: dispatches first, in the order the steps were reached, then what is waited for.

    Cost is proportional to what is in progress, never to what has been. A command is given again until an event
    answers it; its `id` tells that it is the same one.
    """
    if state.stage is Stage.GOING or state.active:
        commands: list[Command] = []
        for key in state.ready:
            commands.append(_dispatch(program, state, state.active[key]))
        for key in state.parked:
            command = _parked(program, state, state.active[key])
            if command is not None:
                commands.append(command)
        return commands
    if state.stage is Stage.ENDING:
        if state.undo and state.ending != RunStatus.SUCCESS:
            return [_compensate(program, state, state.undo[-1], 1)]
        return [
            Finish(
                step=-1,
                step_id="",
                occurrence=0,
                item=-1,
                attempt=1,
                status=state.ending,
                outcome=state.outcome,
                incomplete=tuple(state.incomplete),
            )
        ]
    return []


def _dispatch(program: CompiledProgram, state: State, activity: Activity) -> Command:
    if activity.step < 0:
        return _compensate(program, state, state.undo[-1], activity.attempt)
    step = program.steps[activity.step]
    action = step.action
    if type(action) is ToolAction:
        return CallTool(
            step=step.index,
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
            step=step.index,
            step_id=step.id,
            occurrence=activity.occurrence,
            item=activity.item,
            attempt=activity.attempt,
            request=activity.request,
            tokens_max=action.tokens_max,
            timeout_ms=step.timeout_ms,
        )
    assert type(action) is CallAction
    return StartChild(
        step=step.index,
        step_id=step.id,
        occurrence=activity.occurrence,
        item=activity.item,
        attempt=activity.attempt,
        child=child_run_id(state.run, step.id, activity.occurrence, activity.item, activity.attempt),
        program=state.programs.get(action.program, action.program),
        inputs=activity.request,
        budgets=remaining_budgets(state),
        depth=state.depth + 1,
    )


def child_run_id(run: str, step_id: str, occurrence: int, item: int, attempt: int) -> str:
    """Deterministic, so that a child is never started twice."""
    lane = "" if item < 0 else f".{item}"
    return f"{run}/{step_id}.{occurrence}{lane}.{attempt}"


def remaining_budgets(state: State) -> dict[str, int]:
    """What is left for a child that starts now."""
    left = {"steps": max(state.steps_max - state.steps, 0)}
    if state.tokens_max:
        left["tokens"] = max(state.tokens_max - state.tokens - state.reserved_tokens, 0)
    if state.cost_nanousd_max:
        spent = state.cost_nanousd + state.reserved_cost_nanousd
        left["cost_nanousd"] = max(state.cost_nanousd_max - spent, 0)
    if state.duration_ms_max:
        used = state.now_ms - state.started_ms - state.suspended_ms
        left["duration_ms"] = max(state.duration_ms_max - used, 0)
    return left


def _compensate(program: CompiledProgram, state: State, undo: Undo, attempt: int) -> Compensate:
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
    compensation = activity.step < 0
    undo = state.undo[-1] if compensation else None
    step = None if compensation else program.steps[activity.step]
    step_id = undo.step if undo is not None else step.id  # type: ignore[union-attr]
    phase = activity.phase
    where: dict[str, Any] = {
        "step": activity.step,
        "step_id": step_id,
        "occurrence": undo.occurrence if undo is not None else activity.occurrence,
        "item": undo.item if undo is not None else activity.item,
        "attempt": activity.attempt,
    }
    if phase is Phase.UNKNOWN:
        action = step.action if step is not None else None
        tool = undo.tool if undo is not None else action.tool if type(action) is ToolAction else ""
        return Reconcile(
            **where,
            tool=tool,
            args=undo.args if undo is not None else activity.request,
            effect=activity.effect,
            reason=activity.reason,
            compensation=compensation,
            business_key=activity.business_key,
        )
    if phase is Phase.WAITING:
        if activity.due_ms and step is not None and _is_timer(step):
            return StartTimer(**where, due_ms=activity.due_ms)
        return AwaitEvent(**where, kind=_waiting_kind(step, activity), due_ms=activity.due_ms)
    if state.stage is not Stage.GOING and phase in (_STARTED, Phase.CHILD_WAITING):
        if step is not None and type(step.action) is CallAction:
            child = child_run_id(state.run, step_id, activity.occurrence, activity.item, activity.attempt)
            return StopChild(**where, child=child)
        return None
    if phase is Phase.CHILD_WAITING:
        return AwaitEvent(**where, kind="child", due_ms=activity.due_ms)
    return StartTimer(**where, due_ms=activity.due_ms) if activity.due_ms else None


def _is_timer(step: CompiledStep) -> bool:
    action = step.action
    return type(action) is WaitAction and (action.delay is not None or action.until is not None)


def _waiting_kind(step: CompiledStep | None, activity: Activity) -> str:
    if activity.phase is Phase.UNKNOWN:
        return "outcome"
    if activity.phase is Phase.CHILD_WAITING:
        return "child"
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
    found = []
    for activity in state.active.values():
        if activity.phase not in (Phase.WAITING, Phase.UNKNOWN, Phase.CHILD_WAITING):
            continue
        compensation = activity.step < 0
        step = None if compensation else program.steps[activity.step]
        action = step.action if step is not None else None
        event = None
        approvers: tuple[str, ...] = ()
        if type(action) is WaitAction and activity.phase is Phase.WAITING:
            approvers = action.approvers
            event = action.event or (step.id if approvers and step is not None else None)
        found.append(
            Waiting(
                kind=_waiting_kind(step, activity),
                step=state.undo[-1].step if step is None else step.id,
                occurrence=activity.occurrence,
                item=None if activity.item < 0 else activity.item,
                attempt=activity.attempt,
                event=event,
                approvers=approvers,
                due_ms=activity.due_ms,
                reason=activity.reason if activity.phase is Phase.UNKNOWN else "",
                waits=tuple(activity.waits) if activity.phase is Phase.CHILD_WAITING else (),
            )
        )
    return found


# --- apply --------------------------------------------------------------------------------------------------


def apply(program: CompiledProgram, state: State, event: ev.Event) -> State | Rejection:
    """δ: take one event. Consumes `state` and returns it changed; a `Rejection` leaves it as it was."""
    if state.settled:
        state.settled = []
    if state.verdicts:
        state.verdicts = []
    if state.stage is Stage.ENDED and event.type not in ev.ANNEX_TYPES:
        return Rejection("TERMINAL", f"the run has ended {state.ending}")
    rejection = _HANDLERS[type(event)](program, state, event)
    if rejection is not None:
        return rejection
    state.seq += 1
    return state


def _clock(state: State, at_ms: int) -> None:
    """Time moves forwards only, whatever the driver's clock does; suspended time is not the run's own."""
    if at_ms > state.now_ms:
        if not state.busy and state.active:
            state.suspended_ms += at_ms - state.now_ms
        state.now_ms = at_ms


def _find(
    program: CompiledProgram, state: State, event: Any, phases: tuple[Phase, ...]
) -> Activity | Rejection:
    """The activity an event is about, if it is in one of `phases`."""
    index = program.step_index.get(event.step)
    if index is None:
        return Rejection("UNKNOWN_STEP", f"no step `{event.step}`")
    item = event.item
    activity = state.active.get(index if item is _ABSENT else activity_key(index, item))
    if activity is None:
        if event.occurrence <= state.occurrences[index]:
            return Rejection("DUPLICATE", f"`{event.step}` #{event.occurrence} has settled")
        return Rejection("OUT_OF_ORDER", f"`{event.step}` is not in progress")
    if activity.occurrence != event.occurrence or activity.attempt != event.attempt:
        return Rejection("STALE_ATTEMPT", f"`{event.step}` is at attempt {activity.attempt}")
    if activity.phase not in phases:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` is {activity.phase.name}")
    return activity


def _run_started(program: CompiledProgram, state: State, event: ev.RunStarted) -> Rejection | None:
    if state.stage is not Stage.NEW:
        return Rejection("OUT_OF_ORDER", "the run has started before")
    if event.program != program.hash:
        return Rejection("MISMATCH", "the run is pinned to another program")
    inputs = event.payload if type(event.payload) is dict else {}
    depth = 0 if event.depth is _ABSENT else event.depth
    if depth > CALL_DEPTH_MAX:
        return Rejection("OVER_BUDGET", f"calls are nested deeper than {CALL_DEPTH_MAX}")
    slots: list[Any] = [UNSET] * len(program.slots)
    for name, slot in program.input_slots.items():
        if name in inputs:
            slots[slot] = inputs[name]
        elif name in program.optional_inputs:
            slots[slot] = program.optional_inputs[name]
    slots[SLOT_RUN] = {
        "id": state.run,
        "program": program.name,
        "program_hash": program.hash,
        "started_at_ms": event.at_ms,
    }
    if event.principal is not _ABSENT:
        slots[SLOT_PRINCIPAL] = event.principal
    budgets = program.budgets
    given: dict[str, int] = {} if event.budgets is _ABSENT else event.budgets
    state.slots = slots
    state.steps_max = min(budgets.steps_max, given.get("steps", budgets.steps_max))
    state.tokens_max = _tighter(budgets.tokens_max, given, "tokens")
    state.cost_nanousd_max = _tighter(budgets.cost_nanousd_max, given, "cost_nanousd")
    state.duration_ms_max = _tighter(budgets.duration_ms_max, given, "duration_ms")
    state.stalled_steps_max = budgets.stalled_steps_max
    state.occurrences = [0] * len(program.steps)
    state.started_ms = state.now_ms = event.at_ms
    state.depth = depth
    state.programs = {} if event.programs is _ABSENT else dict(event.programs)
    state.fork_seq = 0 if event.forked is _ABSENT else int(event.forked["seq"])
    state.stage = Stage.GOING
    if program.is_dag:
        state.unmet = [step.dependencies for step in program.steps]
        state.taken = [False] * len(program.steps)
        todo = list(program.roots)
    else:
        todo = [program.entry]
    return _move(program, state, todo)


def _tighter(own: int, given: dict[str, int], name: str) -> int:
    """A parent's remaining budget tightens the child's own; 0 of it left is as good as 1: nothing fits."""
    if name not in given:
        return own
    left = max(given[name], 1)
    return min(own, left) if own else left


def _move(program: CompiledProgram, state: State, todo: list[int]) -> None:
    if todo:
        flow.run_todo(program, state, todo)
    if program.is_dag:
        flow.finish_if_drained(program, state)


def _step_started(program: CompiledProgram, state: State, event: ev.StepStarted) -> Rejection | None:
    found = _find(program, state, event, (_READY,))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    if event.payload is not _ABSENT and event.payload != activity.request:
        return Rejection("MISMATCH", f"`{event.step}` renders another request")
    tokens = 0 if event.reserved_tokens is _ABSENT else event.reserved_tokens
    cost = 0 if event.reserved_cost_nanousd is _ABSENT else event.reserved_cost_nanousd
    if tokens or cost:
        if tokens and state.tokens_max and state.tokens + state.reserved_tokens + tokens > state.tokens_max:
            return Rejection("OVER_BUDGET", "tokens")
        held = state.cost_nanousd + state.reserved_cost_nanousd
        if cost and state.cost_nanousd_max and held + cost > state.cost_nanousd_max:
            return Rejection("OVER_BUDGET", "cost_nanousd")
        state.reserved_tokens += tokens
        state.reserved_cost_nanousd += cost
        activity.reserved_tokens = tokens
        activity.reserved_cost_nanousd = cost
    _clock(state, event.at_ms)
    if event.effect is not _ABSENT:
        activity.effect = event.effect
    # READY and STARTED are both busy: only the queue of what is to be dispatched changes.
    activity.phase = _STARTED
    del state.ready[activity.step if activity.item < 0 else activity_key(activity.step, activity.item)]
    return None


def _spend(state: State, event: Any) -> None:
    if event.tokens_in is not _ABSENT:
        state.tokens += event.tokens_in
    if event.tokens_out is not _ABSENT:
        state.tokens += event.tokens_out
    if event.cost_nanousd is not _ABSENT:
        state.cost_nanousd += event.cost_nanousd


def _outcome_phases(event: Any) -> tuple[Phase, ...]:
    # A tool without effects has no intent. A late answer settles an unknown outcome: it is the truth.
    return (_READY,) if event.pure is True else (_STARTED, _UNKNOWN)


def _step_succeeded(program: CompiledProgram, state: State, event: ev.StepSucceeded) -> Rejection | None:
    found = _find(program, state, event, _outcome_phases(event))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    step = program.steps[activity.step]
    action = step.action
    value = None if event.payload is _ABSENT else event.payload
    substituted = event.substituted is True
    if type(action) is ModelAction:
        if action.allowed_outputs and value not in action.allowed_outputs and not substituted:
            return Rejection("GATE", f"`{event.step}` admits none but its allowed outputs")
    elif type(action) is not ToolAction:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` is not settled by an answer of its own")
    _clock(state, event.at_ms)
    _spend(state, event)
    todo: list[int] = []
    flow.succeed(program, state, step, activity, value, todo, substituted)
    return _move(program, state, todo)


def _step_failed(program: CompiledProgram, state: State, event: ev.StepFailed) -> Rejection | None:
    found = _find(program, state, event, _outcome_phases(event))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    step = program.steps[activity.step]
    details = event.payload if type(event.payload) is dict else {}
    _clock(state, event.at_ms)
    _spend(state, event)
    feedback = details.get("feedback")
    if feedback and type(step.action) is ModelAction:
        # The model is told what was wrong with its own last answer, and nothing else (P8).
        request = activity.request
        activity.request = {**request, "messages": [*request["messages"], *feedback]}
    todo: list[int] = []
    message = details.get("message", "")
    flow.fail(program, state, step, activity, event.error, message, event.retryable, event.draw, todo)
    return _move(program, state, todo)


def _step_pending(program: CompiledProgram, state: State, event: ev.StepPending) -> Rejection | None:
    found = _find(program, state, event, (_READY,) if event.pure is True else (_STARTED, _UNKNOWN))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    _clock(state, event.at_ms)
    flow.set_phase(state, activity, Phase.WAITING)
    return None


def _outcome_unknown(program: CompiledProgram, state: State, event: ev.OutcomeUnknown) -> Rejection | None:
    if event.compensation is True:
        activity = state.active.get(COMPENSATION_KEY)
        if activity is None or activity.phase is not _STARTED or activity.attempt != event.attempt:
            return Rejection("OUT_OF_ORDER", "no such compensation is under way")
    else:
        found = _find(program, state, event, (_STARTED,))
        if type(found) is Rejection:
            return found
        activity = found  # type: ignore[assignment]
    assert activity is not None
    _clock(state, event.at_ms)
    activity.reason = event.reason
    activity.effect = event.effect
    if activity.reserved_tokens or activity.reserved_cost_nanousd:
        # Paid for, as far as anybody can tell: an unknown bill is settled at its worst case.
        state.tokens += activity.reserved_tokens
        state.cost_nanousd += activity.reserved_cost_nanousd
        flow.release_reservation(state, activity)
    _set_phase(state, activity, Phase.UNKNOWN)
    return None


def _set_phase(state: State, activity: Activity, phase: Phase) -> None:
    """`flow.set_phase`, for compensations as well."""
    if activity.step >= 0:
        flow.set_phase(state, activity, phase)
        return
    state.busy += (phase in BUSY) - (activity.phase in BUSY)
    activity.phase = phase
    state.ready.pop(COMPENSATION_KEY, None)
    state.parked.pop(COMPENSATION_KEY, None)
    if phase is _READY:
        state.ready[COMPENSATION_KEY] = None
    elif phase is not _STARTED:
        state.parked[COMPENSATION_KEY] = None


def _outcome_resolved(program: CompiledProgram, state: State, event: ev.OutcomeResolved) -> Rejection | None:
    if event.compensation is True:
        return _compensation_resolved(program, state, event)
    found = _find(program, state, event, (_UNKNOWN,))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    step = program.steps[activity.step]
    _clock(state, event.at_ms)
    todo: list[int] = []
    if event.resolution == "succeeded":
        flow.succeed(
            program, state, step, activity, None if event.payload is _ABSENT else event.payload, todo
        )
    elif event.resolution == "failed":
        details = event.payload if type(event.payload) is dict else {}
        error = "RESOLVED_FAILED" if event.error is _ABSENT else event.error
        draw = 0 if event.draw is _ABSENT else event.draw
        # It is known not to have happened, so the author's retries may go on.
        flow.fail(program, state, step, activity, error, details.get("message", ""), True, draw, todo)
    elif event.resolution == "repeat":
        if state.stage is not Stage.GOING:
            flow.remove(state, activity)  # nothing is done again in a run that is ending
            _give_up_lane(program, state, step)
        elif flow.admits_step(program, state):
            state.steps += 1
            activity.attempt += 1
            flow.set_phase(state, activity, _READY)
        else:
            _remove_left_over(state, activity)
    else:
        return Rejection("MALFORMED", f"no resolution `{event.resolution}`")
    return _move(program, state, todo)


def _remove_left_over(state: State, activity: Activity) -> None:
    if state.active.get(activity_key(activity.step, activity.item)) is activity:
        flow.remove(state, activity)


def _give_up_lane(program: CompiledProgram, state: State, step: CompiledStep) -> None:
    parent = state.active.get(step.parent) if step.parent >= 0 else None
    if parent is not None and parent.group is not None:
        parent.group.active -= 1
        if not parent.group.active:
            state.active.pop(step.parent)
            state.parked.pop(step.parent, None)


def _timer_fired(program: CompiledProgram, state: State, event: ev.TimerFired) -> Rejection | None:
    if state.stage is Stage.ENDING and COMPENSATION_KEY in state.active:
        return _compensation_timer(state, event)
    found = _find(
        program,
        state,
        event,
        (Phase.BACKOFF, Phase.WAITING, Phase.GROUP, _STARTED, Phase.CHILD_WAITING),
    )
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    if not activity.due_ms or event.at_ms < activity.due_ms:
        return Rejection("OUT_OF_ORDER", f"no timer of `{event.step}` is due")
    step = program.steps[activity.step]
    _clock(state, event.at_ms)
    todo: list[int] = []
    phase = activity.phase
    if phase is Phase.BACKOFF:
        if activity.group is not None:
            flow.resume_group(program, state, step, activity, todo)
        elif flow.admits_step(program, state):
            state.steps += 1
            activity.due_ms = 0
            if type(step.action) is CallAction and step.timeout_ms:
                activity.due_ms = state.now_ms + step.timeout_ms
            flow.set_phase(state, activity, _READY)
    elif phase is Phase.GROUP:
        flow.time_out_group(program, state, step, activity, todo)
    elif phase is Phase.WAITING and _is_timer(step):
        state.stalled = 0
        flow.succeed(program, state, step, activity, None, todo)
    elif phase is Phase.WAITING:
        _timed_out(program, state, step, activity, todo)
    else:  # a child that took too long: the driver has stopped it, its end settles the step
        return Rejection("OUT_OF_ORDER", f"`{event.step}` ends with its child")
    return _move(program, state, todo)


def _timed_out(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    if step.on_timeout == "fallback":
        flow.succeed(program, state, step, activity, step.fallback, todo, True)
    else:
        flow.fail(program, state, step, activity, "TIMEOUT", "nothing arrived in time", False, 0, todo)


# --- outside events -----------------------------------------------------------------------------------------


def event_digest(event: ev.EventReceived) -> str:
    """Content of an outside event, for telling a repetition from a conflict."""
    content = [
        None if event.name is _ABSENT else event.name,
        None if event.step is _ABSENT else event.step,
        None if event.payload is _ABSENT else event.payload,
    ]
    return canonical.digest_value(content)


def _event_received(program: CompiledProgram, state: State, event: ev.EventReceived) -> Rejection | None:
    if state.stage is Stage.NEW:
        return Rejection("OUT_OF_ORDER", "the run has not started")
    digest = event_digest(event)
    known = state.seen.get(event.event_id)
    if known is not None:
        if known == digest:
            return Rejection("DUPLICATE", f"event `{event.event_id}` was accepted before")
        return Rejection("EVENT_CONFLICT", f"event `{event.event_id}` was accepted with other content")
    letter = {
        "id": event.event_id,
        "name": None if event.name is _ABSENT else event.name,
        "data": None if event.payload is _ABSENT else event.payload,
        "principal": None if event.principal is _ABSENT else event.principal,
    }
    activity = _addressee(program, state, event)
    if activity is None:
        if event.name is not _ABSENT and event.name in program.events and state.stage is Stage.GOING:
            if len(state.inbox) >= INBOX_MAX:
                return Rejection("INBOX_FULL", f"{INBOX_MAX} events are kept already")
            _clock(state, event.at_ms)
            state.inbox.append(letter)
            flow.remember_event(state, event.event_id, digest)
            return None
        return Rejection("NOT_WAITING", "nothing waits for this event")
    step = program.steps[activity.step]
    action = step.action if type(step.action) is WaitAction else None
    if action is not None:
        fault = flow.event_fault(action, letter, state.slots)
        if fault is not None:
            return Rejection(fault, f"`{step.id}` does not take this event")
    _clock(state, event.at_ms)
    flow.remember_event(state, event.event_id, digest)
    state.stalled = 0
    todo: list[int] = []
    flow.succeed(program, state, step, activity, flow.event_output(action, letter), todo)
    return _move(program, state, todo)


def _addressee(program: CompiledProgram, state: State, event: ev.EventReceived) -> Activity | None:
    """The wait an event is for: named by step, by event name, or - when it names neither - the only one there is."""
    candidates = []
    for key in state.parked:
        activity = state.active[key]
        if activity.phase is not Phase.WAITING or activity.step < 0:
            continue
        step = program.steps[activity.step]
        if _is_timer(step):
            continue
        if event.step is not _ABSENT and step.id != event.step:
            continue
        if event.name is not _ABSENT:
            action = step.action
            if type(action) is not WaitAction or (action.event or step.id) != event.name:
                continue
        candidates.append(activity)
    if not candidates:
        return None
    named = event.step is not _ABSENT or event.name is not _ABSENT
    return candidates[0] if named or len(candidates) == 1 else None


def _event_refused(program: CompiledProgram, state: State, event: ev.EventRefused) -> Rejection | None:
    return None


# --- children -----------------------------------------------------------------------------------------------


def _child_started(program: CompiledProgram, state: State, event: ev.ChildStarted) -> Rejection | None:
    found = _find(program, state, event, (_READY,))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    step = program.steps[activity.step]
    if type(step.action) is not CallAction:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` calls no program")
    child = child_run_id(state.run, step.id, activity.occurrence, activity.item, activity.attempt)
    pinned = state.programs.get(step.action.program, step.action.program)
    if event.child != child or event.program != pinned:
        return Rejection("MISMATCH", f"`{event.step}` calls another child")
    _clock(state, event.at_ms)
    flow.set_phase(state, activity, _STARTED)
    state.parked[activity_key(activity.step, activity.item)] = None
    return None


def _child_suspended(program: CompiledProgram, state: State, event: ev.ChildSuspended) -> Rejection | None:
    found = _find(program, state, event, (_STARTED, Phase.CHILD_WAITING))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    _clock(state, event.at_ms)
    activity.waits = event.waits
    flow.set_phase(state, activity, Phase.CHILD_WAITING)
    return None


def _child_resumed(program: CompiledProgram, state: State, event: ev.ChildResumed) -> Rejection | None:
    found = _find(program, state, event, (Phase.CHILD_WAITING,))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    _clock(state, event.at_ms)
    activity.waits = []
    flow.set_phase(state, activity, _STARTED)
    state.parked[activity_key(activity.step, activity.item)] = None
    return None


def _child_finished(program: CompiledProgram, state: State, event: ev.ChildFinished) -> Rejection | None:
    found = _find(program, state, event, (_STARTED, Phase.CHILD_WAITING))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    step = program.steps[activity.step]
    _clock(state, event.at_ms)
    state.steps += event.steps
    if event.tokens is not _ABSENT:
        state.tokens += event.tokens
    if event.cost_nanousd is not _ABSENT:
        state.cost_nanousd += event.cost_nanousd
    details = event.payload if type(event.payload) is dict else {}
    todo: list[int] = []
    if event.status == RunStatus.SUCCESS:
        # What a finished child did is undone through its call.
        for undo in details.get("compensations", ()):
            state.undo.append(
                Undo(
                    step=f"{step.id}/{undo['step']}",
                    occurrence=undo["occurrence"],
                    item=undo["item"],
                    tool=undo["tool"],
                    args=undo["args"],
                )
            )
        flow.succeed(program, state, step, activity, details.get("output"), todo)
    elif activity.due_ms and event.status == RunStatus.CANCELLED and state.stage is Stage.GOING:
        activity.due_ms = 0
        _timed_out(program, state, step, activity, todo)
    else:
        flow.fail(program, state, step, activity, "CHILD_FAILED", event.status, True, 500_000, todo)
    return _move(program, state, todo)


# --- the run itself -----------------------------------------------------------------------------------------


def _run_cancelled(program: CompiledProgram, state: State, event: ev.RunCancelled) -> Rejection | None:
    if state.stage is not Stage.GOING:
        return Rejection("OUT_OF_ORDER", "the run is ending already")
    _clock(state, event.at_ms)
    state.error = {"type": "CANCELLED", "message": "", "attempts": 0}
    flow.end(program, state, RunStatus.CANCELLED)
    return None


def _budget_exhausted(program: CompiledProgram, state: State, event: ev.BudgetExhausted) -> Rejection | None:
    if state.stage is not Stage.GOING:
        return Rejection("OUT_OF_ORDER", "the run is ending already")
    _clock(state, event.at_ms)
    state.error = {"type": "BUDGET_EXCEEDED", "message": event.budget, "attempts": 0, "step": event.step}
    flow.end(program, state, RunStatus.BUDGET_EXCEEDED)
    return None


def _run_adopted(program: CompiledProgram, state: State, event: ev.RunAdopted) -> Rejection | None:
    if state.stage is Stage.NEW:
        return Rejection("OUT_OF_ORDER", "the run has not started")
    return None


def _values_changed(program: CompiledProgram, state: State, event: ev.ValuesChanged) -> Rejection | None:
    if state.stage is not Stage.GOING or not state.fork_seq or state.seq != state.fork_seq:
        return Rejection("OUT_OF_ORDER", "values change only where a fork leaves the shared prefix")
    changes = event.payload if type(event.payload) is dict else {}
    names = {name: slot for slot, name in enumerate(program.slots)}
    if sorted(changes) != event.names or any(name not in names for name in changes):
        return Rejection("MALFORMED", "the change names a value that the program does not have")
    _clock(state, event.at_ms)
    for name, value in changes.items():
        state.slots[names[name]] = value
    # Steps that are ready were rendered from the old values.
    todo: list[int] = []
    for key in list(state.ready):
        activity = state.active[key]
        step = program.steps[activity.step]
        if step.parent < 0:
            flow.remove(state, activity)
            flow.open_activity(program, state, step, activity.occurrence, activity.item, todo)
    return _move(program, state, todo)


def _run_finished(program: CompiledProgram, state: State, event: ev.RunFinished) -> Rejection | None:
    if state.stage is not Stage.ENDING or state.active:
        return Rejection("OUT_OF_ORDER", "the run is not ready to end")
    if state.undo and state.ending != RunStatus.SUCCESS:
        return Rejection("OUT_OF_ORDER", "a compensation is due first")
    outcome = None if event.outcome is _ABSENT else event.outcome
    incomplete = [] if event.incomplete is _ABSENT else event.incomplete
    if event.status != state.ending or outcome != state.outcome or incomplete != state.incomplete:
        return Rejection("MISMATCH", f"the run ends {state.ending}")
    _clock(state, event.at_ms)
    state.stage = Stage.ENDED
    return None


# --- compensation -------------------------------------------------------------------------------------------


def _compensation_started(
    program: CompiledProgram, state: State, event: ev.CompensationStarted
) -> Rejection | None:
    if state.stage is not Stage.ENDING or not state.undo or state.ending == RunStatus.SUCCESS:
        return Rejection("OUT_OF_ORDER", "nothing is to be undone")
    undo = state.undo[-1]
    activity = state.active.get(COMPENSATION_KEY)
    if activity is None:
        if state.active:
            return Rejection("OUT_OF_ORDER", "effects are still under way")
        attempt = 1
    elif activity.phase is not _READY:
        return Rejection("OUT_OF_ORDER", f"the compensation is {activity.phase.name}")
    else:
        attempt = activity.attempt
    item = -1 if event.item is _ABSENT else event.item
    if (event.step, event.occurrence, item) != (undo.step, undo.occurrence, undo.item):
        return Rejection("OUT_OF_ORDER", "another step is to be undone first")
    if event.attempt != attempt:
        return Rejection("STALE_ATTEMPT", f"the compensation is at attempt {attempt}")
    if event.payload is not _ABSENT and event.payload != undo.args:
        return Rejection("MISMATCH", "the compensation has other arguments")
    _clock(state, event.at_ms)
    if activity is None:
        activity = Activity(
            step=COMPENSATION_KEY,
            occurrence=undo.occurrence,
            phase=_STARTED,
            entered_ms=state.now_ms,
            request=undo.args,
        )
        state.active[COMPENSATION_KEY] = activity
        state.busy += 1
    else:
        _set_phase(state, activity, _STARTED)
    activity.effect = "" if event.effect is _ABSENT else event.effect
    return None


def _under_compensation(state: State, event: Any, phases: tuple[Phase, ...]) -> Activity | Rejection:
    activity = state.active.get(COMPENSATION_KEY)
    if activity is None or not state.undo or state.undo[-1].step != event.step:
        return Rejection("OUT_OF_ORDER", "no such compensation is under way")
    if activity.attempt != event.attempt:
        return Rejection("STALE_ATTEMPT", f"the compensation is at attempt {activity.attempt}")
    if activity.phase not in phases:
        return Rejection("OUT_OF_ORDER", f"the compensation is {activity.phase.name}")
    return activity


def _undone(state: State, activity: Activity, failed: bool) -> None:
    undo = state.undo.pop()
    if activity.phase in BUSY:
        state.busy -= 1
    del state.active[COMPENSATION_KEY]
    state.ready.pop(COMPENSATION_KEY, None)
    state.parked.pop(COMPENSATION_KEY, None)
    if failed:
        state.incomplete.append(undo.step)


def _compensation_succeeded(
    program: CompiledProgram, state: State, event: ev.CompensationSucceeded
) -> Rejection | None:
    found = _under_compensation(state, event, (_STARTED, _UNKNOWN))
    if type(found) is Rejection:
        return found
    _clock(state, event.at_ms)
    _undone(state, found, False)  # type: ignore[arg-type]
    return None


def _compensation_failed(
    program: CompiledProgram, state: State, event: ev.CompensationFailed
) -> Rejection | None:
    found = _under_compensation(state, event, (_STARTED, _UNKNOWN))
    if type(found) is Rejection:
        return found
    _clock(state, event.at_ms)
    _compensation_attempt_failed(state, found, event.retryable)  # type: ignore[arg-type]
    return None


def _compensation_attempt_failed(state: State, activity: Activity, retryable: bool) -> None:
    activity.failures += 1
    if not retryable or activity.failures >= COMPENSATION_ATTEMPTS_MAX:
        _undone(state, activity, True)
        return
    activity.attempt += 1
    activity.due_ms = state.now_ms + COMPENSATION_BACKOFF_MS * 2 ** (activity.failures - 1)
    _set_phase(state, activity, Phase.BACKOFF)


def _compensation_timer(state: State, event: ev.TimerFired) -> Rejection | None:
    found = _under_compensation(state, event, (Phase.BACKOFF,))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    if event.at_ms < activity.due_ms:
        return Rejection("OUT_OF_ORDER", "the back-off is not over")
    _clock(state, event.at_ms)
    activity.due_ms = 0
    _set_phase(state, activity, _READY)
    return None


def _compensation_resolved(
    program: CompiledProgram, state: State, event: ev.OutcomeResolved
) -> Rejection | None:
    found = _under_compensation(state, event, (_UNKNOWN,))
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    _clock(state, event.at_ms)
    if event.resolution == "succeeded":
        _undone(state, activity, False)
    elif event.resolution == "failed":
        _undone(state, activity, True)
    elif event.resolution == "repeat":
        activity.attempt += 1
        _set_phase(state, activity, _READY)
    else:
        return Rejection("MALFORMED", f"no resolution `{event.resolution}`")
    return None


_HANDLERS: dict[type[Any], Callable[[CompiledProgram, State, Any], Rejection | None]] = {
    ev.RunStarted: _run_started,
    ev.StepStarted: _step_started,
    ev.StepSucceeded: _step_succeeded,
    ev.StepFailed: _step_failed,
    ev.StepPending: _step_pending,
    ev.OutcomeUnknown: _outcome_unknown,
    ev.OutcomeResolved: _outcome_resolved,
    ev.TimerFired: _timer_fired,
    ev.EventReceived: _event_received,
    ev.EventRefused: _event_refused,
    ev.ChildStarted: _child_started,
    ev.ChildSuspended: _child_suspended,
    ev.ChildResumed: _child_resumed,
    ev.ChildFinished: _child_finished,
    ev.RunCancelled: _run_cancelled,
    ev.BudgetExhausted: _budget_exhausted,
    ev.RunAdopted: _run_adopted,
    ev.ValuesChanged: _values_changed,
    ev.CompensationStarted: _compensation_started,
    ev.CompensationSucceeded: _compensation_succeeded,
    ev.CompensationFailed: _compensation_failed,
    ev.RunFinished: _run_finished,
}

__all__ = [
    "StepStatus",
    "all_waits",
    "apply",
    "child_run_id",
    "decide",
    "event_digest",
    "remaining_budgets",
    "waiting",
]
