"""Events from outside: which wait one is for, the inbox, and telling a repetition from a conflict."""

from __future__ import annotations

from msgspec import UNSET as ABSENT

from nano_vm import canonical
from nano_vm.kernel.approvals import approval_fault, take_approval, waits_for_action
from nano_vm.kernel.events import EventReceived
from nano_vm.kernel.find import advance_clock
from nano_vm.kernel.flow import move
from nano_vm.kernel.labels import letter_label, take_answer
from nano_vm.kernel.limits import EVENTS_SEEN_MAX, INBOX_MAX
from nano_vm.kernel.settle import succeed
from nano_vm.kernel.state import Activity, Phase, Rejection, Stage, State
from nano_vm.kernel.waits import Letter, event_fault, event_name, event_output, is_timer
from nano_vm.program.compiled import CompiledProgram, CompiledStep, WaitAction

_WAITING = Phase.WAITING


def event_digest(event: EventReceived) -> str:
    """Content of an outside event, for telling a repetition from a conflict. Who sent it and when is no part
    of it.
    """
    content = [
        None if event.name is ABSENT else event.name,
        None if event.step is ABSENT else event.step,
        None if event.payload is ABSENT else event.payload,
    ]
    if event.item is not ABSENT:
        content.append(event.item)
    return canonical.digest_value(content)


def seen_before(state: State, event: EventReceived, digest: str) -> Rejection | None:
    """DUPLICATE when the run accepted this very event, EVENT_CONFLICT when it accepted another one of that
    id.
    """
    known = state.seen.get(event.event_id)
    if known is None:
        return None
    if known == digest:
        return Rejection("DUPLICATE", f"event `{event.event_id}` was accepted before")
    return Rejection("EVENT_CONFLICT", f"event `{event.event_id}` was accepted with other content")


def event_received(program: CompiledProgram, state: State, event: EventReceived) -> Rejection | None:
    digest = event_digest(event)
    refusal = seen_before(state, event, digest)
    if refusal is not None:
        return refusal
    if event.step is not ABSENT and event.step not in program.step_index:
        return Rejection("UNKNOWN_STEP", f"no step `{event.step}`")
    letter: Letter = {
        "id": event.event_id,
        "name": None if event.name is ABSENT else event.name,
        "step": None if event.step is ABSENT else event.step,
        "item": None if event.item is ABSENT else event.item,
        "data": None if event.payload is ABSENT else event.payload,
        "principal": None if event.principal is ABSENT else event.principal,
    }
    candidates = _candidates(program, state, letter)
    if not candidates:
        return _keep(program, state, event, letter, digest)
    chosen = _choose(program, state, letter, candidates, event.at_ms)
    if type(chosen) is Rejection:
        return chosen
    assert type(chosen) is Activity
    step = program.steps[chosen.step]
    action = step.action if type(step.action) is WaitAction else None
    advance_clock(state, event.at_ms)
    _remember(state, event.event_id, digest)
    if state.labels is not None:
        take_answer(state, step, chosen)
    todo: list[int] = []
    if chosen.ask is not None:
        take_approval(program, state, step, chosen, letter, todo)
    else:
        succeed(program, state, step, chosen, event_output(action, letter), todo)
    state.stalled = 0
    move(program, state, todo)
    return None


def _candidates(program: CompiledProgram, state: State, letter: Letter) -> list[Activity]:
    """The waits that the event may mean, in the order they began to wait."""
    found = []
    for key in state.parked:
        activity = state.active[key]
        if activity.phase is not _WAITING:
            continue
        step = program.steps[activity.step]
        if is_timer(step) or (letter["step"] is not None and step.id != letter["step"]):
            continue
        if letter["item"] is not None and activity.item != letter["item"]:
            continue
        if letter["name"] is not None and _name_of(step, activity) != letter["name"]:
            continue
        found.append(activity)
    return found


def _name_of(step: CompiledStep, activity: Activity) -> str | None:
    if activity.ask is not None:
        return step.id
    return event_name(step, step.action) if type(step.action) is WaitAction else None


def _choose(
    program: CompiledProgram, state: State, letter: Letter, candidates: list[Activity], at_ms: int
) -> Activity | Rejection:
    """The wait that takes the event.

    An event meant for a kind of event goes to the wait that began first among those that accept it. An
    approval or the answer to a tool is meant for one thing only: where several could be meant, none is.
    """
    if letter["step"] is None and letter["name"] is None and len(candidates) > 1:
        return Rejection("AMBIGUOUS", "several steps wait: name the step")
    taking = []
    fault = None
    for activity in candidates:
        step = program.steps[activity.step]
        action = step.action
        why = event_fault(state, step, action, activity, letter) if type(action) is WaitAction else None
        if why is None and (activity.ask is not None or waits_for_action(step)):
            why = approval_fault(state, activity, letter, at_ms)
        if why is None:
            taking.append(activity)
        elif fault is None:
            fault = Rejection(why, f"`{step.id}` does not take this event")
    if not taking:
        assert fault is not None
        return fault
    if len(taking) > 1:
        action = program.steps[taking[0].step].action
        if type(action) is not WaitAction or action.approvers:
            return Rejection("AMBIGUOUS", "several lanes wait: name the step and the item")
    return taking[0]


def _keep(
    program: CompiledProgram, state: State, event: EventReceived, letter: Letter, digest: str
) -> Rejection | None:
    """Put an event that no wait has asked for yet into the inbox, if the program declares it."""
    if letter["name"] not in program.events or state.stage is not Stage.GOING:
        return Rejection("NOT_WAITING", "nothing waits for this event")
    if len(state.inbox) >= INBOX_MAX:
        return Rejection("INBOX_FULL", f"{INBOX_MAX} events are kept already")
    advance_clock(state, event.at_ms)
    if state.labels is not None:
        state.label = letter_label(program, event)
    state.inbox.append(letter)
    _remember(state, event.event_id, digest)
    return None


def _remember(state: State, event_id: str, digest: str) -> None:
    """Keep the id for deduplication; the oldest goes when there are too many."""
    if len(state.seen) >= EVENTS_SEEN_MAX:
        del state.seen[next(iter(state.seen))]
    state.seen[event_id] = digest
