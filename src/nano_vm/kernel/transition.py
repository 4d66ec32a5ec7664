"""The transition function: `apply` takes one event or says by name why it is not admissible (SPEC §4).

`spec/transition.md` is the table. Pure and synchronous: nothing here knows a clock, a store or asyncio; the
asyncio runtime, recovery, replay, the simulator and foreign durable-execution engines all drive `decide` and
`apply`.

Invariant: a handler refuses before it changes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET as ABSENT

from nano_vm.expr.reference import ERASED
from nano_vm.kernel import events as ev
from nano_vm.kernel.activity import key_of, set_phase, spend, spend_reservation
from nano_vm.kernel.agents import action_proposed, are_messages, model_turned, out_of_turns, take_feedback
from nano_vm.kernel.approvals import approval_requested, expire, is_cleared, policy_decided
from nano_vm.kernel.children import (
    child_finished,
    child_resumed,
    child_started,
    child_suspended,
    time_out,
)
from nano_vm.kernel.compensation import (
    compensation_failed,
    compensation_resolved,
    compensation_started,
    compensation_succeeded,
    compensation_timer,
    compensation_unknown,
)
from nano_vm.kernel.decide import all_waits, child_run_id, decide, waiting
from nano_vm.kernel.ending import abandon, admits_step, child_budgets
from nano_vm.kernel.find import advance_clock, find, wrong_phase
from nano_vm.kernel.flow import move
from nano_vm.kernel.groups import resume_group, stop_child, time_out_group
from nano_vm.kernel.labels import failure_label, take_output
from nano_vm.kernel.life import (
    budget_exhausted,
    erased,
    event_refused,
    run_adopted,
    run_cancelled,
    run_finished,
    run_started,
    values_changed,
)
from nano_vm.kernel.outside import event_digest, event_received, seen_before
from nano_vm.kernel.settle import back_off, fail, goes_on, mark, succeed
from nano_vm.kernel.state import COMPENSATION_KEY, Activity, Phase, Rejection, Stage, State, StepStatus
from nano_vm.kernel.waits import is_timer
from nano_vm.program.compiled import AgentAction, CompiledProgram, CompiledStep, Kind, ModelAction
from nano_vm.program.labels import DECLARED

_NEW, _GOING, _ENDING, _ENDED = Stage.NEW, Stage.GOING, Stage.ENDING, Stage.ENDED
_READY, _STARTED, _UNKNOWN = Phase.READY, Phase.STARTED, Phase.UNKNOWN
_BACKOFF, _WAITING, _GROUP = Phase.BACKOFF, Phase.WAITING, Phase.GROUP
_TOOL, _LLM, _CALL, _AGENT = Kind.TOOL, Kind.LLM, Kind.CALL, Kind.AGENT
_RESOLUTIONS = frozenset({"succeeded", "failed", "repeat"})
_DRAWS = 1_000_000
_ONCE = frozenset(
    {"irreversible", "reconcilable"}
)  # effects that nothing but knowledge of the outcome repeats


def apply(program: CompiledProgram, state: State, event: ev.Event) -> State | Rejection:
    """δ: take one event. Consumes `state` and returns it changed; a `Rejection` leaves it as it was."""
    if state.stage is not _GOING:
        refusal = _refused_by_stage(state, event)
        if refusal is not None:
            return refusal
    try:
        handler = _HANDLERS[type(event)]
    except KeyError:
        return Rejection("MALFORMED", f"no event is a {type(event).__name__}")
    settled, verdicts = state.settled, state.verdicts
    if settled:
        state.settled = []
    if verdicts:
        state.verdicts = []
    state.label = 0
    refusal = handler(program, state, event)
    if refusal is not None:
        state.settled, state.verdicts = settled, verdicts
        return refusal
    state.seq += 1
    return state


def _refused_by_stage(state: State, event: ev.Event) -> Rejection | None:
    stage = state.stage
    if stage is _NEW and type(event) is not ev.RunStarted:
        return Rejection("OUT_OF_ORDER", "the run has not started")
    if stage is _ENDED and event.type not in ev.ANNEX_TYPES:
        if type(event) is ev.EventReceived:
            # Whoever repeats an accepted event is told so for as long as anybody asks.
            refusal = seen_before(state, event, event_digest(event))
            if refusal is not None:
                return refusal
        return Rejection("TERMINAL", f"the run has ended {state.ending}")
    return None


# --- attempts -----------------------------------------------------------------------------------------------


def _step_started(program: CompiledProgram, state: State, event: ev.StepStarted) -> Rejection | None:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    if activity.phase is not _READY or activity.group is not None:
        return wrong_phase(event, activity.phase)
    if program.steps[activity.step].kind is _CALL:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` starts a child")
    if state.governed and not is_cleared(state, activity, program.steps[activity.step]):
        return _undecided(event)
    payload = event.payload
    same = payload is activity.request or payload is ABSENT or payload == activity.request
    # The prefix of a fork was recorded under another run id, which requests may hold.
    if not same and state.seq >= state.fork_seq:
        return Rejection("MISMATCH", f"`{event.step}` renders another request")
    if event.reserved_tokens is not ABSENT or event.reserved_cost_nanousd is not ABSENT:
        kind = program.steps[activity.step].kind
        if kind is not _LLM and kind is not _AGENT:
            return Rejection("MALFORMED", f"`{event.step}` asks no model")
        refusal = _reserve(state, activity, event)
        if refusal is not None:
            return refusal
    if not same:
        activity.request = payload
    if event.at_ms > state.now_ms:
        advance_clock(state, event.at_ms)
    if event.effect is not ABSENT:
        activity.effect = event.effect
    # READY and STARTED are both busy: only the queue of what is to be dispatched changes.
    activity.phase = _STARTED
    state.label = activity.label
    del state.ready[activity.step if activity.item < 0 else key_of(activity)]
    return None


def _undecided(event: Any) -> Rejection:
    return Rejection("POLICY", f"nothing allows attempt {event.attempt} of `{event.step}`")


def _reserve(state: State, activity: Activity, event: ev.StepStarted) -> Rejection | None:
    tokens = 0 if event.reserved_tokens is ABSENT else event.reserved_tokens
    cost = 0 if event.reserved_cost_nanousd is ABSENT else event.reserved_cost_nanousd
    if tokens and state.tokens_max and state.tokens + state.reserved_tokens + tokens > state.tokens_max:
        return Rejection("OVER_BUDGET", "tokens")
    held = state.cost_nanousd + state.reserved_cost_nanousd
    if cost and state.cost_nanousd_max and held + cost > state.cost_nanousd_max:
        return Rejection("OVER_BUDGET", "cost_nanousd")
    state.reserved_tokens += tokens
    state.reserved_cost_nanousd += cost
    activity.reserved_tokens = tokens
    activity.reserved_cost_nanousd = cost
    return None


def _step_succeeded(program: CompiledProgram, state: State, event: ev.StepSucceeded) -> Rejection | None:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    step = program.steps[activity.step]
    kind = step.kind
    phase = activity.phase
    # Only a tool without effects needs no intent. A late answer settles an unknown outcome: it is the truth.
    if event.pure is True:
        if phase is not _READY or kind is not _TOOL:
            return wrong_phase(event, phase)
        if state.governed and not is_cleared(state, activity, step):
            return _undecided(event)
    elif phase is _STARTED:
        # What was denied after its intent has not been called.
        if state.governed and activity.cleared != activity.attempt and not is_cleared(state, activity, step):
            return _undecided(event)
    elif phase is not _UNKNOWN:
        return wrong_phase(event, phase)
    if kind is not _TOOL and kind is not _LLM and kind is not _AGENT:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` is not settled by an answer of its own")
    spends = not (event.tokens_in is event.tokens_out is event.cost_nanousd is ABSENT)
    if kind is _TOOL and (spends or _is_of_model(event)):
        return Rejection("MALFORMED", f"`{event.step}` asks no model")
    if event.declared is not ABSENT and event.declared not in DECLARED:
        return Rejection("MALFORMED", f"what `{event.step}` declares is no label of a tool's output")
    value = None if event.payload is ABSENT else event.payload
    substituted = event.substituted is True
    if substituted or kind is not _TOOL:
        refusal = _gate(step, value, substituted)
        if refusal is not None:
            return refusal
    if event.at_ms > state.now_ms:
        advance_clock(state, event.at_ms)
    if spends:
        spend(state, event)
    if state.labels is not None:
        take_output(state, step, activity, event.declared, substituted)
    todo: list[int] = []
    succeed(program, state, step, activity, value, todo, substituted)
    move(program, state, todo)
    return None


def _is_of_model(event: Any) -> bool:
    """Whether an event says who answered, as only those of models do."""
    told = (event.model, event.provider, event.switches)
    return any(one is not ABSENT for one in told) or getattr(event, "cached", ABSENT) is not ABSENT


def _gate(step: CompiledStep, value: Any, substituted: bool) -> Rejection | None:
    """Whether a step admits an output (P2). What is substituted is what the author wrote, or the language
    says.
    """
    action = step.action
    allowed = action.allowed_outputs if isinstance(action, ModelAction) else ()  # an agent's is one, too
    if substituted:
        fits = step.on_timeout == "fallback" and value == step.fallback
        if step.on_error == "skip" and allowed:
            fits = fits or value == allowed[0]
        return None if fits or value is ERASED else Rejection("GATE", f"`{step.id}` has no such fallback")
    if allowed and value not in allowed and value is not ERASED:
        return Rejection("GATE", f"`{step.id}` admits none but its allowed outputs")
    return None


def _step_failed(program: CompiledProgram, state: State, event: ev.StepFailed) -> Rejection | None:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    step = program.steps[activity.step]
    phase = activity.phase
    if event.pure is True:
        if phase is not _READY or activity.group is not None:
            return wrong_phase(event, phase)
    elif (phase is not _STARTED and phase is not _UNKNOWN) or step.kind is _CALL:
        return wrong_phase(event, phase)
    if not 0 <= event.draw < _DRAWS:
        return Rejection("MALFORMED", f"a draw is a number from 0 to {_DRAWS - 1}")
    spends = not (event.tokens_in is event.tokens_out is event.cost_nanousd is ABSENT)
    if step.kind is not _LLM and step.kind is not _AGENT and (spends or _is_of_model(event)):
        return Rejection("MALFORMED", f"`{event.step}` asks no model")
    details = event.payload if type(event.payload) is dict else {}
    feedback = details.get("feedback")
    if step.kind is _AGENT and feedback is not None and not are_messages(feedback):
        return Rejection("MALFORMED", "feedback is a list of messages")
    advance_clock(state, event.at_ms)
    spend(state, event)
    if type(feedback) is list and step.kind is _LLM:
        # The model is told what was wrong with its own last answer, and nothing else (P8).
        request = activity.request
        activity.request = {**request, "messages": [*request["messages"], *feedback]}
    elif type(feedback) is list and step.kind is _AGENT:
        take_feedback(activity, feedback)
    message = details.get("message", "")
    if state.labels is not None:
        state.label = failure_label(step, activity)
    todo: list[int] = []
    action = step.action
    if type(action) is AgentAction and activity.turns >= action.turns_max and step.on_error == "retry":
        out_of_turns(program, state, step, activity, todo)
        move(program, state, todo)
        return None
    fail(program, state, step, activity, event.error, message, event.retryable, event.draw, todo)
    move(program, state, todo)
    return None


def _step_pending(program: CompiledProgram, state: State, event: ev.StepPending) -> Rejection | None:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    step = program.steps[activity.step]
    phase = activity.phase
    if event.pure is True:
        if phase is not _READY:
            return wrong_phase(event, phase)
    elif phase is not _STARTED and phase is not _UNKNOWN:
        return wrong_phase(event, phase)
    if step.kind is not _TOOL:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` is no tool")
    if (event.pure is True or phase is _STARTED) and state.governed and not is_cleared(state, activity, step):
        return _undecided(event)
    if event.declared is not ABSENT and event.declared not in DECLARED:
        return Rejection("MALFORMED", f"what `{event.step}` declares is no label of a tool's output")
    advance_clock(state, event.at_ms)
    activity.reason = ""
    activity.declared = "" if event.declared is ABSENT else event.declared
    set_phase(state, activity, _WAITING)
    if not goes_on(state, step):
        _give_up(program, state, step, activity)
    return None


def _give_up(program: CompiledProgram, state: State, step: CompiledStep, activity: Activity) -> None:
    """Nothing is begun or waited for in a run that is ending, nor in a group that has timed out."""
    abandon(program, state, activity, "ABANDONED" if state.stage is not _GOING else "TIMEOUT")
    if state.stage is _GOING and step.parent >= 0:
        move(program, state, [mark(step.parent)])


def _model_turned(program: CompiledProgram, state: State, event: ev.ModelTurned) -> Rejection | None:
    found = find(program, state, event) if state.governed else None
    if (
        type(found) is Activity
        and found.phase is _STARTED
        and not is_cleared(state, found, program.steps[found.step])
    ):
        return _undecided(event)
    todo: list[int] = []
    refusal = model_turned(program, state, event, todo)
    if refusal is None:
        move(program, state, todo)
    return refusal


def _action_proposed(program: CompiledProgram, state: State, event: ev.ActionProposed) -> Rejection | None:
    todo: list[int] = []
    refusal = action_proposed(program, state, event, todo)
    if refusal is None:
        move(program, state, todo)
    return refusal


# --- unknown outcomes ---------------------------------------------------------------------------------------


def _outcome_unknown(program: CompiledProgram, state: State, event: ev.OutcomeUnknown) -> Rejection | None:
    if event.compensation is True:
        return compensation_unknown(state, event)
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    if activity.phase is not _STARTED or program.steps[activity.step].kind is _CALL:
        return wrong_phase(event, activity.phase)
    if activity.effect and event.effect != activity.effect:
        return Rejection("MISMATCH", f"`{event.step}` was dispatched as {activity.effect}")
    advance_clock(state, event.at_ms)
    activity.reason = event.reason
    activity.effect = event.effect
    if state.labels is not None:
        state.label = failure_label(program.steps[activity.step], activity)
    set_phase(state, activity, _UNKNOWN)
    return None


def _outcome_resolved(program: CompiledProgram, state: State, event: ev.OutcomeResolved) -> Rejection | None:
    draw = 0 if event.draw is ABSENT else event.draw
    if event.resolution not in _RESOLUTIONS or not 0 <= draw < _DRAWS:
        return Rejection("MALFORMED", f"no resolution `{event.resolution}`")
    if event.compensation is True:
        return compensation_resolved(state, event)
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    if activity.phase is not _UNKNOWN:
        return wrong_phase(event, activity.phase)
    step = program.steps[activity.step]
    value = None if event.payload is ABSENT else event.payload
    if event.resolution == "succeeded":
        refusal = _gate(step, value, False)
        if refusal is not None:
            return refusal
    if event.declared is not ABSENT and event.declared not in DECLARED:
        return Rejection("MALFORMED", f"what `{event.step}` declares is no label of a tool's output")
    if event.resolution == "repeat" and event.by == "contract" and activity.effect in _ONCE:
        return Rejection("MISMATCH", f"no contract lets `{event.step}` be repeated")
    advance_clock(state, event.at_ms)
    # Nobody knows the bill of an attempt that nobody saw end: it is settled at its worst case.
    spend_reservation(state, activity)
    todo: list[int] = []
    if event.resolution == "succeeded":
        if state.labels is not None:
            take_output(state, step, activity, event.declared)
        succeed(program, state, step, activity, value, todo)
    elif event.resolution == "failed":
        if state.labels is not None:
            state.label = failure_label(step, activity)
        details = event.payload if type(event.payload) is dict else {}
        error = "RESOLVED_FAILED" if event.error is ABSENT else event.error
        # It is known not to have happened, so the author's retries may go on.
        fail(program, state, step, activity, error, details.get("message", ""), True, draw, todo)
    else:
        _repeat(program, state, step, activity, event.by, draw)
    move(program, state, todo)
    return None


def _repeat(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, by: str, draw: int
) -> None:
    """Do it again: at once after a crash, the first time, or when somebody vouches for it; else after the
    step's back-off, so that a tool that never answers is not called in a tight loop."""
    at_once = by == "operator" or activity.reason == "CRASH" or activity.attempt == 1
    if not goes_on(state, step):
        _give_up(program, state, step, activity)
    elif not at_once:
        back_off(state, step, activity, activity.attempt - 1, draw)
    elif not admits_step(program, state):
        # The run is ending now, and this was the last that was known of the attempt.
        _give_up(program, state, step, activity)
    else:
        state.steps += 1
        activity.attempt += 1
        set_phase(state, activity, _READY)


# --- timers -------------------------------------------------------------------------------------------------


def _timer_fired(program: CompiledProgram, state: State, event: ev.TimerFired) -> Rejection | None:
    if COMPENSATION_KEY in state.active:
        return compensation_timer(state, event)
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    activity: Activity = found  # type: ignore[assignment]
    phase = activity.phase
    if phase is _READY or phase is _UNKNOWN or not activity.due_ms or event.at_ms < activity.due_ms:
        return Rejection("OUT_OF_ORDER", f"no timer of `{event.step}` is due")
    step = program.steps[activity.step]
    advance_clock(state, event.at_ms)
    todo: list[int] = []
    if phase is _BACKOFF:
        if activity.group is not None:
            resume_group(state, step, activity, todo)
        elif admits_step(program, state):
            state.steps += 1
            activity.due_ms = 0
            set_phase(state, activity, _READY)
    elif phase is _GROUP:
        time_out_group(program, state, step, activity, todo)
    elif phase is not _WAITING:
        stop_child(state, activity)
    elif activity.ask is not None and step.kind is _TOOL:
        expire(program, state, step, activity, todo)
    elif is_timer(step):
        succeed(program, state, step, activity, None, todo)
    else:
        time_out(program, state, step, activity, todo)
    move(program, state, todo)
    return None


_HANDLERS: dict[type[Any], Callable[[CompiledProgram, State, Any], Rejection | None]] = {
    ev.RunStarted: run_started,
    ev.StepStarted: _step_started,
    ev.StepSucceeded: _step_succeeded,
    ev.StepFailed: _step_failed,
    ev.ModelTurned: _model_turned,
    ev.ActionProposed: _action_proposed,
    ev.StepPending: _step_pending,
    ev.OutcomeUnknown: _outcome_unknown,
    ev.OutcomeResolved: _outcome_resolved,
    ev.TimerFired: _timer_fired,
    ev.EventReceived: event_received,
    ev.EventRefused: event_refused,
    ev.ChildStarted: child_started,
    ev.ChildSuspended: child_suspended,
    ev.ChildResumed: child_resumed,
    ev.ChildFinished: child_finished,
    ev.RunCancelled: run_cancelled,
    ev.BudgetExhausted: budget_exhausted,
    ev.RunAdopted: run_adopted,
    ev.Erased: erased,
    ev.ValuesChanged: values_changed,
    ev.CompensationStarted: compensation_started,
    ev.CompensationSucceeded: compensation_succeeded,
    ev.CompensationFailed: compensation_failed,
    ev.PolicyDecided: policy_decided,
    ev.ApprovalRequested: approval_requested,
    ev.RunFinished: run_finished,
}

__all__ = [
    "StepStatus",
    "all_waits",
    "apply",
    "child_budgets",
    "child_run_id",
    "decide",
    "event_digest",
    "waiting",
]
