"""Agents, as the runtime sees them: which tools a model is offered, what it answers, which proposed calls are made.

Everything a model wrote is data. What cannot be read as a call is rejected, and the model is told.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import JudgeAction
from nano_vm.kernel.limits import AGENT_CALLS_MAX
from nano_vm.policy.decide import DENIED
from nano_vm.program.tool_schema import offered_name
from nano_vm.runtime.admission import PROPOSED, Refusal, examine
from nano_vm.runtime.ports import Completion, ToolCall, ToolInvoker

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

_UNSET = ev.UNSET
TEXT_CHARS_MAX = 65_536  # of what a model says beside its calls
ARGUMENTS_CHARS_MAX = 65_536  # of one call
CALL_NAME_CHARS_MAX = 128
CALL_ID_CHARS_MAX = 64
_TOLD = {
    "UNLISTED_TOOL": "there is no tool of that name",
    "MAX_TURNS": "no turn is left in which the result could be used",
    "BAD_ARGUMENT": "the arguments are not a JSON object",
    "DUPLICATE_CALL": "another call of the same answer has this id",
}


def definitions(tools: ToolInvoker, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The tools as models are offered them; one that is not registered is not offered."""
    offered = []
    for name in names:
        spec = tools.spec(name)
        if spec is not None:
            function: dict[str, Any] = {"name": offered_name(name), "parameters": spec.schema.parameters}
            if spec.schema.description:
                function["description"] = spec.schema.description
            offered.append({"type": "function", "function": function})
    copy: list[dict[str, Any]] = canonical.decode(
        canonical.encode(offered)
    )  # adapters may do with it as they like
    return copy


def read_turn(completion: Completion, attempt: int) -> tuple[dict[str, Any], bytes, int]:
    """The payload of ModelTurned, its canonical bytes, and how many calls were dropped for being too many."""
    proposed = completion.tool_calls
    turn: dict[str, Any] = {"text": _clean(completion.text, TEXT_CHARS_MAX), "calls": []}
    if len(proposed) > AGENT_CALLS_MAX:
        # None of them is made: which of them the model can do without is not for us to say.
        told = (
            f"You proposed {len(proposed)} calls in one answer, and at most {AGENT_CALLS_MAX} are considered. "
            "None of them was made. Answer again."
        )
        turn["feedback"] = [{"role": "user", "content": told}]
        return *canonical.normalize(turn), len(proposed)
    ids: set[str] = set()
    for number, call in enumerate(proposed):
        turn["calls"].append(_read_call(call, f"call_{attempt}_{number}", ids))
    return *canonical.normalize(turn), 0


def _read_call(call: ToolCall, own_id: str, ids: set[str]) -> dict[str, Any]:
    read: dict[str, Any] = {"name": _clean(call.name, CALL_NAME_CHARS_MAX)}
    arguments = _arguments(call.arguments)
    read["arguments"] = _clean(call.arguments, ARGUMENTS_CHARS_MAX) if arguments is None else arguments
    id = call.id
    if id in ids:
        read["fault"] = "DUPLICATE_CALL"
    if id in ids or not 0 < len(id) <= CALL_ID_CHARS_MAX or not id.isascii() or not id.isprintable():
        id = own_id
        while id in ids:
            id += "_"
    ids.add(id)
    read["id"] = id
    return read


def _arguments(text: str) -> dict[str, Any] | None:
    """The object that the text stands for; None when it is none."""
    if len(text) > ARGUMENTS_CHARS_MAX:
        return None
    try:
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant)
        plain, _ = canonical.normalize(value)
    except (ValueError, RecursionError, InputError):
        return None
    return plain if type(plain) is dict else None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")  # of two members with one name every reader takes another one
    return members


def _no_constant(word: str) -> object:
    raise ValueError(word)


def _clean(text: str, limit: int) -> str:
    return text[:limit].encode("utf-8", "replace").decode("utf-8")


def judge(run: Run, command: JudgeAction) -> None:
    """Say whether a proposed call is made, and journal it. An accepted one is a tool call like any other from then on:
    it is examined and decided again at the instant of dispatch."""
    reason, told = command.fault, _TOLD.get(command.fault, "")
    decided: dict[str, Any] | None = None
    if not reason:
        reason, told, decided = _judged(run, command)
    details, payload = (None, None)
    if reason and told:
        details, payload = canonical.normalize({"message": _clean(told, TEXT_CHARS_MAX)})
    run.record_event(
        ev.ActionProposed(
            action=command.action,
            at_ms=run.engine.clock.now_ms() if decided is None else decided.pop("at_ms"),
            attempt=command.attempt,
            decided=_UNSET if decided is None else decided,
            item=command.item if command.item >= 0 else _UNSET,
            occurrence=command.occurrence,
            payload=_UNSET if payload is None else details,
            reason=reason or _UNSET,
            step=command.step_id,
            tool=command.tool if command.tool is not None else _UNSET,
            verdict="rejected" if reason else "accepted",
        ),
        payload,
    )


def _judged(run: Run, command: JudgeAction) -> tuple[str, str, dict[str, Any] | None]:
    """Why a proposal that may be one is rejected, what the model is told, and what a policy said; empty, when it is
    not."""
    assert command.tool is not None
    lane = run.program.steps[command.lane]
    decided = None if run.gate is None else run.gate.proposed(command)
    asks = decided is not None and decided["decision"] == "ask"
    # Where a person will be asked about exactly this action, somebody vouches for what is in it.
    examined = examine(run, lane, command.tool, command.args, PROPOSED, vouched=asks)
    if isinstance(examined, Refusal):
        # What the model got wrong it is told; what it may not do, and why, is nothing to tell a model (P8).
        return examined.code, examined.message if examined.code == "BAD_ARGUMENT" else "", None
    if decided is None or decided.pop("decision") != "deny":
        return "", "", None
    return DENIED, "", decided
