"""Opening a step that takes time: what it needs is rendered when it is reached, and stays what it was."""

from __future__ import annotations

from typing import Any

from nano_vm.errors import NanoVMError
from nano_vm.kernel.activity import set_phase
from nano_vm.kernel.labels import label_of, note_request
from nano_vm.kernel.settle import fail, succeed
from nano_vm.kernel.state import Activity, Phase, State, activity_key
from nano_vm.kernel.waits import due_ms, event_output, take_letter
from nano_vm.program.compiled import (
    AgentAction,
    CallAction,
    CompiledProgram,
    CompiledStep,
    ModelAction,
    Template,
    ToolAction,
    WaitAction,
)


def open_activity(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    occurrence: int,
    item: int,
    attempt: int,
    todo: list[int],
) -> None:
    """Begin one occurrence (or lane) of a tool, llm, agent, call or wait step."""
    index = step.index
    activity = Activity(
        step=index, occurrence=occurrence, item=item, attempt=attempt, entered_ms=state.now_ms
    )
    key = index if item < 0 else activity_key(index, item)
    state.active[key] = activity
    state.ready[key] = None
    state.busy += 1
    action = step.action
    if type(action) is ToolAction and action.idempotency_key is None:
        # The common case of `prepare`, without the call.
        if state.labels is not None:
            note_request(state, step, activity)
        try:
            activity.request = action.args.render(state.slots)
        except NanoVMError as error:
            fail(program, state, step, activity, error.code, error.message, False, 0, todo)
    else:
        prepare(program, state, step, activity, todo)


def prepare(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    """Render what the step needs. A wait may find its event in the inbox and settle at once."""
    action = step.action
    if state.labels is not None:
        note_request(state, step, activity)
    try:
        if type(action) is ToolAction:
            activity.request = action.args.render(state.slots)
            if action.idempotency_key is not None:
                activity.business_key = _business_key(action.idempotency_key, state.slots)
            return
        if type(action) is ModelAction:
            activity.request = model_request(action, state.slots)
            return
        if type(action) is AgentAction:
            activity.request = model_request(action, state.slots)
            _begin_numbering(state, step, action, activity)
            return
        if type(action) is CallAction:
            activity.request = action.inputs.render(state.slots)
            if type(activity.request) is not dict:
                raise NanoVMError("BAD_CALL_INPUTS", "`inputs` of a call is not an object")
            return
        assert type(action) is WaitAction
        activity.due_ms = due_ms(state, step, action, activity.entered_ms)
        if action.approves >= 0:
            # What is shown to the approver: the other step's action as it would be now.
            approved: ToolAction = program.steps[action.approves].action  # type: ignore[assignment]
            if state.labels is not None:
                activity.label = label_of(state, approved.args.refs)
            activity.request = approved.args.render(state.slots)
            activity.ask = None
    except NanoVMError as error:
        fail(program, state, step, activity, error.code, error.message, False, 0, todo)
        return
    set_phase(state, activity, Phase.WAITING)
    if action.approves >= 0:
        return  # an approval of an action cannot have come before the action was put down
    if state.inbox and (action.event is not None or action.approvers):
        letter = take_letter(state, step, action, activity)
        if letter is not None:
            succeed(program, state, step, activity, event_output(action, letter), todo)


def _begin_numbering(state: State, step: CompiledStep, action: AgentAction, activity: Activity) -> None:
    """Actions are counted from 0 in each occurrence. A repeated lane goes on counting: no number is used twice."""
    if activity.attempt == 1:
        state.actions[step.index] = 0
    for lane in action.lanes:
        state.occurrences[lane] = activity.occurrence


def _business_key(template: Template, slots: list[Any]) -> Any:
    key = template.render(slots)
    if type(key) not in (str, int, float) or key == "":
        # No key at all would quietly turn "once" into "as often as it is tried".
        raise NanoVMError("BAD_IDEMPOTENCY_KEY", "`idempotency_key` is neither a text nor a number")
    return key


def model_request(action: ModelAction, slots: list[Any]) -> dict[str, Any]:
    """What a model is asked with: `messages`, and `model` and `params` where the step has them.

    Raises:
        NanoVMError: as rendering does.
    """
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
