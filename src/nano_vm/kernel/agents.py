"""Agents: a model proposes calls, the runtime says which are made, and their results go back to the model.

An agent is one activity. While it is READY or STARTED without a group, its model is to be asked, or is being asked.
When the model has proposed calls, the agent is a group: READY with the next proposal to be judged, or GROUP with an
accepted one - an action, a lane of its own - in progress. Actions run one after the other, in the order proposed. When
all of a turn are over, what came of them joins the conversation and the model is asked again.

The conversation is the request of the activity. It grows by what events bring and by nothing else, so a run that is
recovered in the middle of it repeats neither an answer nor an action. What a model wrote is data here: it is compared
with the names of tools and handed on, never read as a reference or an expression.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET as ABSENT

from nano_vm import canonical
from nano_vm.kernel.activity import release_reservation, remove, set_phase, spend
from nano_vm.kernel.ending import abandon, admits_step
from nano_vm.kernel.events import ActionProposed, ModelTurned
from nano_vm.kernel.find import advance_clock, find, wrong_phase
from nano_vm.kernel.labels import failure_label, note_action, take_turn
from nano_vm.kernel.limits import AGENT_CALLS_MAX, AGENT_RESULT_CHARS_MAX, AGENT_TALK_CHARS_MAX
from nano_vm.kernel.settle import fail_for_good, goes_on, mark
from nano_vm.kernel.state import Activity, Group, Phase, Rejection, RunStatus, Stage, State, activity_key
from nano_vm.program.compiled import AgentAction, CompiledProgram, CompiledStep, Kind

_READY, _STARTED, _UNKNOWN, _GROUP = Phase.READY, Phase.STARTED, Phase.UNKNOWN, Phase.GROUP
_AGENT = Kind.AGENT
_CUT = "\n(cut: the result is longer)"


def model_turned(
    program: CompiledProgram, state: State, event: ModelTurned, todo: list[int]
) -> Rejection | None:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    activity = found
    step = program.steps[activity.step]
    if step.kind is not _AGENT:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` is no agent")
    if activity.phase is not _STARTED and activity.phase is not _UNKNOWN:
        return wrong_phase(event, activity.phase)
    refusal = _unreadable(event)
    if refusal is not None:
        return refusal
    advance_clock(state, event.at_ms)
    spend(state, event)
    release_reservation(state, activity)
    if activity.phase is _UNKNOWN:
        set_phase(state, activity, _STARTED)  # the late answer is the truth
    if state.labels is not None:
        take_turn(state, step, activity)
    activity.turns += 1
    activity.failures = 0
    activity.error = activity.reason = ""
    if not goes_on(state, step):
        # Nothing is begun in a run that is ending, nor in a group that has timed out.
        abandon(program, state, activity, "ABANDONED" if state.stage is not Stage.GOING else "TIMEOUT")
        if state.stage is Stage.GOING:
            todo.append(mark(step.parent))
        return None
    calls = [dict(call) for call in event.payload["calls"]]
    _say(activity, _answer(event.payload["text"], calls))
    for message in event.payload.get("feedback", ()):
        _say(activity, dict(message))
    if not calls:
        _next_turn(program, state, step, activity, todo)
        return None
    first = state.actions.get(step.index, 0)
    state.actions[step.index] = first + len(calls)
    activity.group = Group(
        total=len(calls),
        queue=list(range(first + len(calls) - 1, first - 1, -1)),
        items=calls,
        first=first,
    )
    set_phase(state, activity, _READY)
    return None


def _unreadable(event: ModelTurned) -> Rejection | None:
    payload = event.payload
    calls = payload.get("calls") if type(payload) is dict else None
    if type(calls) is not list or len(calls) != event.proposals or type(payload.get("text")) is not str:
        return Rejection("MALFORMED", "an answer is an object of a text and its calls")
    if calls and event.dropped is not ABSENT:
        return Rejection("MALFORMED", "all of too many calls are dropped, or none")
    if len(calls) > AGENT_CALLS_MAX:
        return Rejection("OVERSIZED", f"{len(calls)} calls in one answer, at most {AGENT_CALLS_MAX}")
    for call in calls:
        if type(call) is not dict or not {"arguments", "id", "name"} <= call.keys() <= _CALL_FIELDS:
            return Rejection("MALFORMED", "a call is an object of `id`, `name` and `arguments`")
        texts = call["id"], call["name"], call.get("fault", "")
        if any(type(text) is not str for text in texts) or type(call["arguments"]) not in (dict, str):
            return Rejection("MALFORMED", "what a call is made of has other types")
    feedback = payload.get("feedback", [])
    if not are_messages(feedback):
        return Rejection("MALFORMED", "feedback is a list of messages")
    if bool(calls) is bool(feedback):
        return Rejection("MALFORMED", "an answer that goes on has calls, or feedback")
    return None


def are_messages(feedback: Any) -> bool:
    """Whether this is a list of {"role", "content"}, as it may join a conversation."""
    return type(feedback) is list and all(
        type(told) is dict
        and told.keys() == {"content", "role"}
        and type(told["role"]) is str
        and type(told["content"]) is str
        for told in feedback
    )


_KNOWN_FAULTS = frozenset({"MAX_TURNS", "UNLISTED_TOOL"})  # what the program itself says
_CALL_FIELDS = {"arguments", "fault", "id", "name"}


# --- proposals ----------------------------------------------------------------------------------------------


def proposal(program: CompiledProgram, activity: Activity) -> tuple[int, dict[str, Any], int, str]:
    """The proposal to be judged next: its number, the call, which of the agent's tools it is for (-1: none), and why it
    must be rejected whatever anybody says (empty: nothing is known against it)."""
    group = activity.group
    assert group is not None
    assert group.items is not None
    number = group.queue[-1]
    call: dict[str, Any] = group.items[number - group.first]
    action = program.steps[activity.step].action
    assert type(action) is AgentAction
    try:
        place = action.offered.index(call["name"])
    except ValueError:
        place = -1
    if place < 0:
        fault = "UNLISTED_TOOL"
    elif activity.turns >= action.turns_max:
        fault = "MAX_TURNS"
    elif type(call["arguments"]) is not dict:
        fault = "BAD_ARGUMENT"
    else:
        fault = call.get("fault", "")
    return number, call, place, fault


def action_proposed(
    program: CompiledProgram, state: State, event: ActionProposed, todo: list[int]
) -> Rejection | None:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    activity = found
    step = program.steps[activity.step]
    if step.kind is not _AGENT or activity.phase is not _READY or activity.group is None:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` has no proposal to be judged")
    number, call, place, fault = proposal(program, activity)
    if event.action != number:
        code = "DUPLICATE" if event.action < number else "OUT_OF_ORDER"
        return Rejection(code, f"proposal {number} is to be judged next")
    refusal = _judged_wrongly(step, event, place, fault)
    if refusal is not None:
        return refusal
    advance_clock(state, event.at_ms)
    group = activity.group
    if event.verdict == "rejected":
        if state.labels is not None:
            state.label = failure_label(step, activity)
        group.queue.pop()
        group.errors[number] = str(event.reason)
        told = event.payload.get("message") if type(event.payload) is dict else None
        call["told"] = told if type(told) is str else ""
        look_after_agent(program, state, step, activity, todo)
    elif admits_step(program, state):
        group.queue.pop()
        group.active += 1
        state.steps += 1
        set_phase(state, activity, _GROUP)
        _open_action(program, state, step, activity, place, number, call["arguments"])
    return None


def _judged_wrongly(step: CompiledStep, event: ActionProposed, place: int, fault: str) -> Rejection | None:
    action = step.action
    assert type(action) is AgentAction
    if event.tool != (ABSENT if place < 0 else action.tools[place]):
        return Rejection("MISMATCH", f"`{event.step}` proposes another tool")
    if event.verdict == "accepted":
        if event.reason is not ABSENT or event.decided is not ABSENT:
            return Rejection("MALFORMED", "an accepted proposal needs no reason")
        return Rejection("GATE", f"`{event.step}` must not: {fault}") if fault else None
    if event.verdict != "rejected" or event.reason is ABSENT or not event.reason:
        return Rejection("MALFORMED", "a proposal is accepted, or rejected with a reason")
    if event.reason != fault and (fault or event.reason in _KNOWN_FAULTS):
        return Rejection("MISMATCH", f"the reason is {fault or 'another'}")
    return None


def _open_action(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    agent: Activity,
    place: int,
    number: int,
    args: dict[str, Any],
) -> None:
    action = step.action
    assert type(action) is AgentAction
    lane = action.lanes[place]
    key = activity_key(lane, number)
    activity = Activity(
        step=lane, occurrence=agent.occurrence, item=number, entered_ms=state.now_ms, request=args
    )
    if state.labels is not None:
        note_action(state, step, agent, activity)
    state.active[key] = activity
    state.ready[key] = None
    state.busy += 1


# --- turns --------------------------------------------------------------------------------------------------


def look_after_agent(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    """Go on with the next proposal, or - when none is left - with the next turn."""
    group = activity.group
    assert group is not None
    if group.active:
        return
    if group.timed_out:
        activity.failures += 1
        remove(state, activity)
        fail_for_good(program, state, step, activity, "TIMEOUT", "", todo)
    elif group.queue:
        set_phase(state, activity, _READY)
    else:
        activity.label |= group.label
        for number in range(group.first, group.first + group.total):
            _say(activity, _result(group, number))
        _next_turn(program, state, step, activity, todo)


def _next_turn(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    action = step.action
    assert type(action) is AgentAction
    activity.group = None
    if activity.turns >= action.turns_max:
        out_of_turns(program, state, step, activity, todo)
        return
    if activity.said > AGENT_TALK_CHARS_MAX:
        remove(state, activity)
        message = f"the conversation has more than {AGENT_TALK_CHARS_MAX} characters"
        fail_for_good(program, state, step, activity, "CONVERSATION_TOO_LARGE", message, todo)
        return
    activity.attempt += 1
    set_phase(state, activity, _READY)
    if admits_step(program, state):
        state.steps += 1


def out_of_turns(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    """The model has had its turns and has not come to an end (P10)."""
    remove(state, activity)
    fail_for_good(
        program,
        state,
        step,
        activity,
        "BUDGET_EXCEEDED",
        "max_turns",
        todo,
        RunStatus.BUDGET_EXCEEDED,
    )


# --- the conversation ---------------------------------------------------------------------------------------


def take_feedback(activity: Activity, feedback: list[dict[str, Any]]) -> None:
    """A final answer did not pass its gate: it was a turn, and the model is told what was wrong with it (P8)."""
    activity.turns += 1
    for message in feedback:
        _say(activity, dict(message))


def _say(activity: Activity, message: dict[str, Any]) -> None:
    activity.said += len(message["content"])
    for call in message.get("tool_calls", ()):
        activity.said += len(call["function"]["arguments"])
    activity.request["messages"].append(message)


def _answer(text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": _text(call["arguments"])},
            }
            for call in calls
        ]
    return message


def _result(group: Group, number: int) -> dict[str, Any]:
    """What the model is told of one of its calls: the output, or that there is none. What went wrong inside a tool is
    its author's business; why a proposal was rejected is the model's."""
    assert group.items is not None
    call = group.items[number - group.first]
    if number in group.results:
        content = _text(group.results[number])
    else:
        error = {"error": group.errors.get(number, "ABANDONED")}
        if call.get("told"):
            error["message"] = call["told"]
        content = _text(error)
    if len(content) > AGENT_RESULT_CHARS_MAX:
        content = content[:AGENT_RESULT_CHARS_MAX] + _CUT
    return {"role": "tool", "tool_call_id": call["id"], "content": content}


def _text(value: Any) -> str:
    return value if type(value) is str else canonical.encode(value).decode()
