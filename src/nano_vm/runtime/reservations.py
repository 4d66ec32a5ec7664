"""What a model call may cost at most: reserved before it is made, in the run's budgets and in policies' limits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallModel
from nano_vm.kernel.state import State
from nano_vm.policy.decide import Counter
from nano_vm.policy.model import RESERVED, Policy
from nano_vm.runtime.actions import key_of, model_name
from nano_vm.runtime.agent import definitions
from nano_vm.runtime.patience import patiently

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run
    from nano_vm.runtime.outcomes import Outcome

_UNSET = ev.UNSET
COUNTED_MAX = 2**62  # what a correction may come to: it is no request, and never refused
MODEL_TOKENS_DEFAULT = (
    4_096  # asked for, and reserved, when something is to be held and the step sets no limit
)


class Reservation(NamedTuple):
    """`limit`: most tokens of an answer to ask for; `tokens`: those of the prompt and of that answer; `cost_nanousd`:
    what they may cost, None when nobody knows the price; `budgeted_nanousd`: what the run's own budget holds back for
    them, which is that as far as prices are known."""

    limit: int
    tokens: int
    cost_nanousd: int | None
    budgeted_nanousd: int


class Shortage(NamedTuple):
    """What the next call needs of a budget, and what is left of it. `may_be_given_back`: calls under way hold so much
    that it may yet be enough."""

    budget: str
    left: int
    needed: int
    may_be_given_back: bool


class Reservations:
    """Model calls of one run that limits of policies have counted at their worst case, until it is known what they
    took."""

    __slots__ = ("_held", "_run")

    def __init__(self, run: Run) -> None:
        self._run = run
        self._held: dict[tuple[int, int], tuple[Reservation, tuple[Counter, ...], str]] = {}

    def of(self, policies: Sequence[Policy], command: Any) -> Reservation | None:
        """The worst case of a model call whose tokens or cost a policy limits; of everything else None."""
        if not isinstance(command, CallModel):
            return None
        held = self.held(command)
        if held is not None:
            return held  # as it has been counted
        name = model_name(command)
        return worst_case(self._run, command) if any(policy.reserves(name) for policy in policies) else None

    def held(self, command: CallModel) -> Reservation | None:
        """What has been counted for a model call that is about to be made."""
        held = self._held.get(key_of(command))
        return None if held is None else held[0]

    def hold(self, command: Any, reservation: Reservation, counters: tuple[Counter, ...], place: str) -> None:
        """A call has been counted, under this identity."""
        self._held.setdefault(key_of(command), (reservation, counters, place))

    async def settle(self, command: CallModel, outcome: Outcome) -> None:
        """Count what a model call took in place of its worst case. Where this fails, or the process dies before it,
        the worst case stands."""
        correction = self._correction(command, lambda unit: taken(outcome.event, unit))
        if correction is not None:
            engine = self._run.engine
            with contextlib.suppress(NanoVMError):
                await patiently(lambda: engine.store.count(*correction, engine.clock.now_ms()))

    def give_back(self, command: CallModel) -> None:
        """A model call that was counted is not made."""
        correction = self._correction(command, lambda unit: 0)
        if correction is not None:
            with contextlib.suppress(NanoVMError):
                self._run.engine.store.count(*correction, self._run.engine.clock.now_ms())

    def _correction(
        self, command: CallModel, found: Callable[[str], int | None]
    ) -> tuple[str, list[tuple[str, int, int]]] | None:
        """What is to be counted beside the reservation, so that both together come to what was found."""
        held = self._held.pop(key_of(command), None)
        if held is None:
            return None
        _, counters, place = held
        wanted = []
        for counter in counters:
            actual = found(counter.unit) if counter.unit in RESERVED else None
            if actual is not None and actual != counter.amount:
                wanted.append((counter.key, actual - counter.amount, COUNTED_MAX))
        return (canonical.digest_value([place, "settled"]), wanted) if wanted else None


def worst_case(run: Run, command: CallModel) -> Reservation:
    """What a call may take at most, as the run's budgets stand now."""
    state = run.state
    prompt = _characters(run, command) // 4 + 1
    limit = command.tokens_max or MODEL_TOKENS_DEFAULT
    if state.tokens_max and not command.tokens_max:
        limit = min(limit, state.tokens_max - state.tokens - state.reserved_tokens - prompt)
    output = max(limit, 1)
    cost = run.engine.worst_cost(command.request, prompt, output)
    known = cost if cost is not None else run.engine.worst_cost(command.request, prompt, output, known=True)
    return Reservation(limit, prompt + output, cost, known or 0)


def shortage(state: State, reservation: Reservation) -> Shortage | None:
    """The first of the run's budgets that does not admit a call now; the kernel would not either."""
    needed = reservation.tokens
    left = state.tokens_max - state.tokens - state.reserved_tokens
    if state.tokens_max and needed > left:
        held = state.reserved_tokens
        return Shortage("tokens", max(left, 0), needed, bool(held) and needed <= left + held)
    needed = reservation.budgeted_nanousd
    left = state.cost_nanousd_max - state.cost_nanousd - state.reserved_cost_nanousd
    if needed and state.cost_nanousd_max and needed > left:
        held = state.reserved_cost_nanousd
        return Shortage("cost_nanousd", max(left, 0), needed, bool(held) and needed <= left + held)
    return None


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


_MAY_HAVE_COST = frozenset(
    {"CANCELLED", "GATE", "MODEL_REPLY", "MODEL_TIMEOUT", "MODEL_TRUNCATED", "TIMEOUT", "TimeoutError"}
)


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
