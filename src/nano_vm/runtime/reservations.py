"""What a model call may cost at most: reserved before it is made, in the run's budgets and in policies' limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm import canonical
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallModel
from nano_vm.runtime.agent import definitions

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

_UNSET = ev.UNSET
MODEL_TOKENS_DEFAULT = (
    4_096  # asked for, and reserved, when something is to be held and the step sets no limit
)


class Reservation(NamedTuple):
    """`limit`: most tokens of an answer to ask for; `tokens`: those of the prompt and of that answer; `cost_nanousd`:
    what they may cost, None when nobody knows the price."""

    limit: int
    tokens: int
    cost_nanousd: int | None


def worst_case(run: Run, command: CallModel) -> Reservation:
    """What a call may take at most, as the run's budgets stand now."""
    state = run.state
    prompt = _characters(run, command) // 4 + 1
    limit = command.tokens_max or MODEL_TOKENS_DEFAULT
    if state.tokens_max and not command.tokens_max:
        limit = min(limit, state.tokens_max - state.tokens - state.reserved_tokens - prompt)
    output = max(limit, 1)
    return Reservation(limit, prompt + output, run.engine.worst_cost(command.request, prompt, output))


def taken(event: Any, unit: str) -> int | None:
    """What a call has taken of `tokens` or `cost` (nano-dollars); None when nobody said, and the worst case stands."""
    told = [event.tokens_in, event.tokens_out] if unit == "tokens" else [event.cost_nanousd]
    known: list[int] = [amount for amount in told if amount is not _UNSET]
    if known:
        return sum(known)
    if getattr(event, "cached", _UNSET) is True:
        return 0
    # A provider that refused to answer has charged nothing; one that did not answer in time may have.
    return 0 if type(event) is ev.StepFailed and event.error not in _MAY_HAVE_COST else None


_MAY_HAVE_COST = frozenset({"TIMEOUT", "CANCELLED", "GATE", "MODEL_REPLY"})


def _characters(run: Run, command: CallModel) -> int:
    """How long a request is, with the calls in it and the tools that are offered."""
    size = 0
    for message in command.request["messages"]:
        size += len(message["content"])
        if "tool_calls" in message:
            size += len(canonical.encode(message["tool_calls"]))
    if command.tools:
        size += len(canonical.encode(definitions(run.engine.tools, command.tools)))
    return size
