"""What each audience saw, or may see, of one step: the five views of `nano_vm.projection`, made from the journal.

What a model or a tool was sent is not stored; it is made again: the journal is folded up to the moment before the call,
and the kernel is asked for its command, which is the one that was given then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Entry
from nano_vm.journal.fold import fold
from nano_vm.journal.trace import TraceStep
from nano_vm.kernel.commands import CallModel, CallTool
from nano_vm.kernel.decide import decide
from nano_vm.kernel.events import Event
from nano_vm.kernel.state import State
from nano_vm.program.tool_schema import ToolSchema
from nano_vm.projection.views import for_model, for_operator, for_reader, for_receipt, for_tool
from nano_vm.studio.library import Sight, plain_record

AUDIENCES = ("TRACE", "LLM", "TOOL", "RECEIPT", "OPERATOR")


class Call(NamedTuple):
    """A call that the kernel asked for: `kind` is "LLM" or "TOOL", `view` what the other side was sent."""

    attempt: int
    kind: str
    name: str
    view: dict[str, Any]


def calls(sight: Sight, step: TraceStep, schemas: Mapping[str, ToolSchema] | None = None) -> list[Call]:
    """The calls of one occurrence of a step, one for each attempt and turn, as the model or the tool saw them."""
    program = sight.trace.program
    index = program.step_index.get(step.id, -1)
    place = (index, step.occurrence, -1 if step.item is None else step.item)
    found: dict[str, Call] = {}

    def look(entry: Entry, event: Event, state: State) -> None:
        for key in state.ready:
            activity = state.active[key]
            if (activity.step, activity.occurrence, activity.item) != place:
                continue
            for command in decide(program, state):
                if not isinstance(command, CallModel | CallTool):
                    continue
                if (command.step, command.occurrence, command.item) == place:
                    turn = f"{command.id}/{len(found)}" if isinstance(command, CallModel) else command.id
                    call = _call(command, schemas)
                    if call not in found.values():
                        found[turn] = call
            return

    fold(program, sight.trace.trace_id, sight.entries, on_transition=look)
    return [call._replace(view=sight.veil.value(call.view)) for call in found.values()]


def _call(command: CallModel | CallTool, schemas: Mapping[str, ToolSchema] | None) -> Call:
    if isinstance(command, CallTool):
        schema = (schemas or {}).get(command.tool)
        parameters = {} if schema is None else schema.parameters
        return Call(command.attempt, "TOOL", command.tool, for_tool(command.args, parameters or {}))
    try:
        messages, params = for_model(command.request)
    except NanoVMError as error:  # it was refused then, too
        return Call(command.attempt, "LLM", "", {"refused": error.code})
    return Call(
        command.attempt, "LLM", str(params.get("model", "")), {"messages": messages, "params": params}
    )


def view(
    sight: Sight, step: TraceStep, audience: str, schemas: Mapping[str, ToolSchema] | None = None
) -> Any:
    """What an audience sees of a step: data, or None when the step never had it as its audience."""
    if audience in ("LLM", "TOOL"):
        found = [call for call in calls(sight, step, schemas) if call.kind == audience]
        return [
            {"attempt": call.attempt, **({"tool": call.name} if audience == "TOOL" else {}), **_sent(call)}
            for call in found
        ] or None
    if audience == "OPERATOR":
        return for_operator(plain_record(sight.record))
    project = for_receipt if audience == "RECEIPT" else for_reader
    projected = project({"steps": [step.to_dict()]})
    return sight.veil.value(projected["steps"][0])


def _sent(call: Call) -> dict[str, Any]:
    return {"args": call.view} if call.kind == "TOOL" else call.view
