"""The five views: LLM, TOOL, TRACE, RECEIPT, OPERATOR.

Each names the members it passes on. What is not named stays behind: a field that is added to a request, a trace or a
record tomorrow reaches nobody until somebody writes it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from nano_vm import canonical
from nano_vm.errors import InputError


class Target(StrEnum):
    """Whom a view is for."""

    LLM = "LLM"  # a model
    TOOL = "TOOL"  # a tool
    TRACE = "TRACE"  # whoever may read a run
    RECEIPT = "RECEIPT"  # whoever is to be convinced: no values
    OPERATOR = "OPERATOR"  # whoever keeps things running: no values


SECRET_REFERENCE: Final = "vault://secret/"

_MESSAGE = ("role", "content", "tool_calls", "tool_call_id")
_TRACE = (
    "trace_id",
    "program",
    "status",
    "outcome",
    "error",
    "waiting",
    "final_output",
    "outputs",
    "started_at_ms",
    "finished_at_ms",
    "duration_ms",
    "total_tokens",
    "total_cost_usd",
    "path",
    "steps",
    "rollbacks",
    "provider_final",
    "switch_events",
    "incomplete_compensations",
    "trace_hash",
    "outcome_hash",
    "disclosure_root",
    "entries",
    "head",
)
_VALUES = ("final_output", "outputs")
_STEP = (
    "id",
    "type",
    "occurrence",
    "item",
    "status",
    "verdict",
    "attempts",
    "retries",
    "started_at_ms",
    "finished_at_ms",
    "duration_ms",
    "tokens",
    "tokens_in",
    "tokens_out",
    "cost_nanousd",
    "cost_usd",
    "model",
    "cached",
    "substituted",
)
_OPERATOR = (
    "run_id",
    "tenant",
    "program_name",
    "program_hash",
    "parent",
    "status",
    "outcome",
    "waits",
    "wake_at_ms",
    "created_at_ms",
    "updated_at_ms",
    "length",
    "head",
    "owner",
)


def for_model(request: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """LLM: the rendered messages, the model's name and the step's own parameters.

    Returns:
        Messages and parameters, sharing nothing with the request.

    Raises:
        InputError: SECRET_IN_PROMPT when any of it holds a secret's reference: what a model reads, it may repeat.
    """
    messages = [
        {name: message[name] for name in _MESSAGE if name in message} for message in request["messages"]
    ]
    params = dict(request.get("params") or {})
    if "model" in request:
        params["model"] = request["model"]
    if any(type(value) is not str for message in messages for value in message.values()) or params:
        encoded = canonical.encode([messages, params])
        found = SECRET_REFERENCE.encode() in encoded
        messages, params = canonical.decode(encoded)
    else:
        found = any(SECRET_REFERENCE in value for message in messages for value in message.values())
    if found:
        raise InputError(
            "SECRET_IN_PROMPT",
            "what the model would be sent holds a secret's reference",
            help="give secrets to tools: a parameter that is declared as one",
        )
    return messages, params


def for_tool(args: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """TOOL: the arguments that its schema has, sharing nothing with what is recorded. Whoever calls has checked them; a
    tool that takes any further ones gets these, too."""
    if parameters.get("additionalProperties", True) is False:
        known = parameters.get("properties", {})
        if not args.keys() <= known.keys():
            args = {name: value for name, value in args.items() if name in known}
    for value in args.values():
        if type(value) is dict or type(value) is list:
            copied: dict[str, Any] = canonical.decode(canonical.encode(args))
            return copied
    return dict(args)


def for_reader(trace: Mapping[str, Any]) -> dict[str, Any]:
    """TRACE: what a run did, with its values; what was erased shows as a tombstone.

    Args:
        trace: `Trace.to_dict()`.
    """
    return _only(trace, _TRACE)


def for_receipt(trace: Mapping[str, Any]) -> dict[str, Any]:
    """RECEIPT: what a run did without any value: nothing in it could ever have to be erased. Errors show their type."""
    view = {name: value for name, value in _only(trace, _TRACE).items() if name not in _VALUES}
    error = view.get("error")
    view["error"] = {"type": error.get("type"), "step": error.get("step")} if type(error) is dict else None
    view["steps"] = [
        {
            **_only(step, _STEP),
            "error": None if step.get("error") is None else step["error"].get("type"),
            "failures": [failure.get("error") for failure in step.get("failures", ())],
        }
        for step in view["steps"]
    ]
    return view


def for_operator(record: Mapping[str, Any]) -> dict[str, Any]:
    """OPERATOR: where runs stand and who has them.

    Args:
        record: the members of a `RunRecord`.
    """
    return _only(record, _OPERATOR)


def _only(source: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: source[name] for name in names if name in source}
