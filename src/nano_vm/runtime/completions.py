"""What a model adapter answers, in the one form we keep, and as the facts of an event."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Decimal
from types import CoroutineType
from typing import Any

from nano_vm.kernel import events as ev
from nano_vm.kernel.limits import NAME_CHARS_MAX, SWITCHES_MAX
from nano_vm.runtime.ports import Completion, ToolCall, Usage

NANO = Decimal(1_000_000_000)
TOKENS_MAX = 1_000_000_000  # of one call; more is a mistake of the adapter
COST_USD_MAX = 1_000_000
_UNSET = ev.UNSET


def completion_of(answer: Any) -> Completion:
    """An adapter's answer in the one form we keep, or a TypeError that says what is wrong with it."""
    if isinstance(answer, str):
        return Completion(text=str(answer))
    if type(answer) is tuple and len(answer) == 2 and isinstance(answer[0], str):
        usage = answer[1] or {}
        if not isinstance(usage, Usage | Mapping):
            raise TypeError(f"the adapter returned a {type(usage).__name__} as usage")
        if isinstance(usage, Usage):
            answer = Completion(text=str(answer[0]), usage=usage)
        else:
            counts = {name: usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")}
            answer = Completion(text=str(answer[0]), usage=Usage(**counts, cost_usd=usage.get("cost_usd")))
    if not isinstance(answer, Completion):
        raise TypeError(f"the adapter returned a {type(answer).__name__}, not text")
    if type(answer.text) is not str:
        raise TypeError(f"the adapter returned a {type(answer.text).__name__} as text")
    if type(answer.usage) is not Usage:
        raise TypeError(f"the adapter returned a {type(answer.usage).__name__} as usage, not a `Usage`")
    if not _is_sound(answer.usage):
        raise TypeError("the adapter reported tokens or a cost that are no numbers from 0 on")
    if answer.model is not None and type(answer.model) is not str:
        raise TypeError(f"the adapter returned a {type(answer.model).__name__} as model")
    for call in answer.tool_calls:
        if not (
            type(call) is ToolCall and all(type(part) is str for part in (call.id, call.name, call.arguments))
        ):
            raise TypeError("the adapter returned tool calls that are no `ToolCall`s of texts")
    return answer


def awaited(answer: Any) -> Any:
    """What an adapter's `complete` has given, to be awaited; a TypeError that says what is wrong with the adapter."""
    if type(answer) is CoroutineType or inspect.isawaitable(answer):
        return answer
    kind = type(answer).__name__
    raise TypeError(
        f"the adapter's `complete` gave a {kind} and is to be an `async def` that returns the text"
    )


def told_by(source: Any) -> dict[str, Any]:
    """What a `Completion`, or an exception in place of one, says of the call, as the facts of an event: usage, model,
    provider, switches. What a useless answer has cost is paid for, too."""
    told: dict[str, Any] = {}
    usage = getattr(source, "usage", None)
    if isinstance(usage, Usage) and _is_sound(usage):
        told = _spent(usage)
    for name in ("model", "provider"):
        value = getattr(source, name, None)
        if type(value) is str and value:
            told[name] = encodable_text(value)[:NAME_CHARS_MAX]
    switches = getattr(source, "switches", ())
    if isinstance(switches, tuple | list) and switches:
        kept = [switch for switch in switches if type(switch) is ev.Switch]
        told["switches"] = kept[:SWITCHES_MAX] or _UNSET
    return told


def _spent(usage: Usage) -> dict[str, Any]:
    """Usage as events state it."""
    return {
        # What was free has been told; what nobody says has not.
        "cost_nanousd": _UNSET if usage.cost_usd is None else _nanousd(usage.cost_usd),
        "tokens_in": usage.prompt_tokens or _UNSET,
        "tokens_out": usage.completion_tokens or _UNSET,
    }


def _is_sound(usage: Usage) -> bool:
    """Whether tokens are whole numbers and the cost is a number, none of them negative or absurd."""
    counts = usage.prompt_tokens, usage.completion_tokens
    cost = usage.cost_usd
    return all(type(count) is int and 0 <= count <= TOKENS_MAX for count in counts) and (
        cost is None or (type(cost) in (int, float) and 0 <= cost <= COST_USD_MAX)
    )


def _nanousd(cost_usd: float) -> int:
    """Exact nano-dollars, rounded up: a budget is never undercharged."""
    return int((Decimal(str(cost_usd)) * NANO).to_integral_value(ROUND_CEILING))


def accepted_by(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names of the keyword parameters a model adapter takes; None when it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def encodable_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
