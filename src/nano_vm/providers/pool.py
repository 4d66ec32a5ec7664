"""Several providers behind one `ModelClient`: state survives, providers don't.

A program never names a provider. The pool asks them in order - as declared, or by score - and repeats and leaves them
by rules that it journals: every attempt is the pool's own, and every switch from one provider to the next is told with
the answer (`Completion.switches`), or with the error when nobody had one. What is known of the providers is kept in a
`Memory`, so that a process that starts again does not begin with those that are known to be down.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from nano_vm.errors import InputError
from nano_vm.kernel.events import Switch
from nano_vm.providers.asking import Client
from nano_vm.providers.faults import ModelError
from nano_vm.providers.health import (
    Breaker,
    Health,
    Memory,
    VolatileMemory,
    claim_probe,
    failed,
    succeeded,
)
from nano_vm.providers.routing import Weights, scores
from nano_vm.runtime.arguments import check_all, check_is, check_mapping, check_part, check_text
from nano_vm.runtime.ports import Clock, Completion, Message, ModelCall, ModelClient, Usage
from nano_vm.runtime.system import SystemClock

PROVIDERS_MAX = 32
ATTEMPTS_MAX = 20
REST_MS_MAX = 2_000  # a provider that wants to be left alone for longer is left for another one
PAUSE_MS, PAUSE_MS_MAX = 200, 2_000  # between attempts; doubles
SILENCE_MS_MIN = 1_000
MINUTE_MS = 60_000
_NOT_ADMITTED = frozenset({401, 402, 403, 404})  # this provider does not take us; another one may


class Provider:
    """One provider of a pool.

    Args:
        name: how it is called in journals and listings; 1 to 100 printable characters.
        client: any model client. It must not repeat by itself.
        model: asked for where a step names none; None leaves it to the client.
        models: a step's model -> what this provider calls it. A provider whose table lacks the model is not asked.
        requests_per_minute: the most requests in any 60 seconds, by this process; None for no limit.
    """

    def __init__(
        self,
        name: str,
        client: ModelClient,
        *,
        model: str | None = None,
        models: dict[str, str] | None = None,
        requests_per_minute: int | None = None,
    ) -> None:
        if not (isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()):
            raise InputError(
                "POOL", "a provider's name has 1 to 100 printable characters", help="name: primary"
            )
        if requests_per_minute is not None and not (
            type(requests_per_minute) is int and requests_per_minute > 0
        ):
            raise InputError("POOL", f"`{name}`: requests per minute are a whole number from 1 on")
        self.name = name
        self.client = Client(client)
        check_text("model", model)
        check_mapping("models", models, 'models={"fast": "gpt-4o-mini"}')
        self.model = model
        self.models = dict(models or {})
        self.per_minute = requests_per_minute
        self._turns: list[int] = []  # when requests went out in the last minute, or are about to; in order

    def takes(self, asked: str | None) -> bool:
        return asked is None or not self.models or asked in self.models

    def model_for(self, asked: str | None) -> str | None:
        return self.model if asked is None else self.models.get(asked, asked)

    def free_at(self, earliest_ms: int, now_ms: int) -> int:
        """When the rate limit admits one more request, from `earliest_ms` on."""
        if self.per_minute is None:
            return earliest_ms
        turns = self._turns
        del turns[: bisect_right(turns, now_ms - MINUTE_MS)]
        if len(turns) < self.per_minute:
            return earliest_ms
        return max(earliest_ms, turns[-1], turns[-self.per_minute] + MINUTE_MS)

    async def take_turn(self, clock: Clock, earliest_ms: int) -> None:
        """Wait until the rate limit admits a request. The turn is taken at once: who waits together does not go
        together."""
        at_ms = self.free_at(earliest_ms, clock.now_ms())
        if self.per_minute is not None:
            insort(self._turns, at_ms)
        try:
            if at_ms > clock.now_ms():
                await clock.sleep_until(at_ms)
        except BaseException:
            if at_ms in self._turns:
                self._turns.remove(at_ms)  # somebody else may have it
            raise


class _Journey:
    """One call on its way through the providers."""

    def __init__(self) -> None:
        self.switches: list[Switch] = []
        self.usage: Usage | None = None
        self.provider: str | None = None  # who is being asked
        self._leaving: tuple[str, str, int, str] | None = None

    def leave(self, provider: str, reason: str, attempts: int, error: str) -> None:
        self._leaving = provider, reason, attempts, error

    def arrive(self, provider: str) -> None:
        self.provider = provider
        if self._leaving is not None:
            origin, reason, attempts, error = self._leaving
            switch = Switch(attempts=attempts, error=error, origin=origin, reason=reason, to=provider)
            self.switches.append(switch)
            self._leaving = None

    def pay(self, usage: Any) -> None:
        if isinstance(usage, Usage):
            self.usage = usage if self.usage is None else _sum(self.usage, usage)

    @property
    def is_paid(self) -> bool:
        """Whether something is known to have been paid for."""
        usage = self.usage
        return usage is not None and bool(usage.prompt_tokens or usage.completion_tokens or usage.cost_usd)

    def mark(self, error: BaseException) -> None:
        """Write down on an error what it has cost and where it has been."""
        for name, value in (
            ("switches", tuple(self.switches)),
            ("provider", self.provider),
            ("usage", self.usage),
        ):
            try:
                setattr(error, name, value)
            except Exception:  # an exception of somebody else's may not take it
                return


class ProviderPool:
    """A `ModelClient` that asks one of several.

    Args:
        providers: in order of preference.
        routing: "ordered" - the first that can be asked; "scored" - the best by health, latency and cost (`routing`).
        attempts: how often one provider is asked in one call before the next one is; a provider that does not answer,
            or does not admit us, is left at once.
        breaker: when a circuit opens, and for how long.
        weights: what counts in scored routing.
        memory: where the providers' records are kept; a `ModelStore` keeps them over restarts.
        clock: time, for tests.

    Example:
        pool = ProviderPool([Provider("primary", a), Provider("backup", b)], memory=ModelStore("runs.db-models"))
        vm = ExecutionVM(llm=pool)

    Raises:
        InputError: POOL, USAGE.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        routing: Literal["ordered", "scored"] = "ordered",
        attempts: int = 3,
        breaker: Breaker | None = None,
        weights: Weights | None = None,
        memory: Memory | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_all("providers", providers, Provider, 'providers=[Provider("primary", llm)]')
        check_part("memory", memory, "update", 'memory=ModelStore("runs.db-models")')
        if breaker is not None:
            check_is("breaker", breaker, Breaker, "breaker=Breaker(failures=3)")
        if weights is not None:
            check_is("weights", weights, Weights, "weights=Weights()")
        if not 0 < len(providers) <= PROVIDERS_MAX:
            raise InputError("POOL", f"a pool has 1 to {PROVIDERS_MAX} providers")
        if len({provider.name for provider in providers}) < len(providers):
            raise InputError(
                "POOL", "two providers have the same name", help="journals tell them apart by it"
            )
        if routing not in ("ordered", "scored"):
            raise InputError("POOL", f"unknown routing `{routing}`", help="ordered or scored")
        if type(attempts) is not int or not 0 < attempts <= ATTEMPTS_MAX:
            raise InputError("POOL", f"attempts are a whole number from 1 to {ATTEMPTS_MAX}")
        self._providers = tuple(providers)
        self._routing = routing
        self._attempts = attempts
        self._breaker = breaker or Breaker()
        self._weights = weights or Weights()
        self._memory: Memory = memory or VolatileMemory()
        self._clock: Clock = clock or SystemClock()

    def __repr__(self) -> str:
        return f"<ProviderPool {', '.join(provider.name for provider in self._providers)}>"

    @property
    def default_model(self) -> str:
        """What a call that names no model may be answered by."""
        return " | ".join(provider.model or provider.client.default_model for provider in self._providers)

    def price(self, model: str | None) -> tuple[float, float] | None:
        """The worst case: the highest price of any provider that may be asked; None when one of them has no price."""
        prices = [p.client.price(p.model_for(model)) for p in self._providers if p.takes(model)]
        return None if None in prices else _highest(prices)

    def price_known(self, model: str | None) -> tuple[float, float] | None:
        """The highest price among the providers that have one."""
        return _highest([p.client.price_known(p.model_for(model)) for p in self._providers if p.takes(model)])

    async def complete(
        self, messages: list[Message], *, model_call: ModelCall | None = None, **params: Any
    ) -> Completion:
        """One completion from whoever gives one.

        Raises:
            Exception: the last provider's error, with `switches`, `provider` and the `usage` of all attempts.
        """
        journey = _Journey()
        try:
            answer = await self._travel(journey, messages, params, model_call)
        except BaseException as error:
            journey.mark(error)
            raise
        journey.pay(answer.usage)
        return msgspec.structs.replace(
            answer,
            usage=journey.usage or Usage(),
            provider=journey.provider,
            switches=tuple(journey.switches),
        )

    async def forget(self, messages: list[Message], **params: Any) -> None:
        """An answer was not accepted: for providers that keep answers."""
        for provider in self._providers:
            await provider.client.forget(messages, params)

    # --- one call ---------------------------------------------------------------------------------------------

    async def _travel(
        self,
        journey: _Journey,
        messages: list[Message],
        params: dict[str, Any],
        model_call: ModelCall | None,
    ) -> Completion:
        asked = params.pop("model", None)
        candidates = self.order(asked)
        if not candidates:
            raise ModelError(
                "MODEL_REFUSED", "no provider of the pool has the model", help="see its `models`"
            )
        failure: Exception | None = None
        for provider in candidates:
            problem = self._problem(provider)
            journey.arrive(provider.name)
            if problem is not None:
                journey.leave(provider.name, "ProviderUnavailable", 0, problem)
                continue
            answer = await self._ask(journey, provider, messages, params, asked, model_call, self._attempts)
            if isinstance(answer, Completion):
                return answer
            failure = answer
        if failure is not None:
            raise failure
        # Nobody may be asked. A run is worth one call more: whoever is free again first is asked once.
        provider = min(candidates, key=self._free_at)
        journey.arrive(provider.name)
        answer = await self._ask(journey, provider, messages, params, asked, model_call, 1)
        if isinstance(answer, Completion):
            return answer
        raise answer

    async def _ask(
        self,
        journey: _Journey,
        provider: Provider,
        messages: list[Message],
        params: dict[str, Any],
        asked: str | None,
        model_call: ModelCall | None,
        attempts: int,
    ) -> Completion | Exception:
        """Ask one provider until it answers or is to be left: then its last error is returned. Errors that no other
        provider could mend are raised."""
        model = provider.model_for(asked)
        given = params if model is None else {**params, "model": model}
        clock = self._clock
        earliest = clock.now_ms()
        for attempt in range(1, attempts + 1):
            await provider.take_turn(clock, earliest)
            began = clock.now_ms()
            try:
                answer = await provider.client.ask(_copies(messages), dict(given), model_call)
            except asyncio.CancelledError:
                self._note_silence(provider, began)
                raise
            except Exception as error:
                journey.pay(getattr(error, "usage", None))
                fault = _Fault(error)
                if fault.kind == "request":
                    self._note_success(provider, began)  # it is well: it has read the request
                    raise
                now = clock.now_ms()
                self._note_failure(provider, now, fault)
                if model_call is not None and model_call.reserved and journey.is_paid:
                    raise  # another answer is another attempt of the step, for which more is reserved first
                if fault.kind == "unavailable" or fault.rest_ms > REST_MS_MAX:
                    journey.leave(provider.name, "ProviderUnavailable", attempt, fault.code)
                    return error
                if attempt == attempts:
                    journey.leave(provider.name, "RetryLimitExceeded", attempt, fault.code)
                    return error
                pause = min(PAUSE_MS * 2 ** (attempt - 1), PAUSE_MS_MAX)
                earliest = now + max(pause, fault.rest_ms)
                if provider.free_at(earliest, now) > now + REST_MS_MAX:
                    journey.leave(provider.name, "ProviderUnavailable", attempt, "RATE_LIMITED")
                    return error
            else:
                if not answer.cached:
                    self._note_success(provider, began)
                return answer
        raise AssertionError("an attempt either returns or raises")

    def _note_silence(self, provider: Provider, began: int) -> None:
        """A call was given up: by the step's time-out, or because the run is ending. It counts against a provider that
        has been silent for much longer than it usually is; otherwise one that hangs would be asked first for ever."""
        now = self._clock.now_ms()
        usual = self._memory.load().get(provider.name, Health()).latency_ms
        if now - began >= max(SILENCE_MS_MIN, 3 * usual):
            self._memory.update(provider.name, lambda known: failed(known, now, self._breaker, "SILENT"))

    def _note_success(self, provider: Provider, began: int) -> None:
        now = self._clock.now_ms()
        self._memory.update(provider.name, lambda known: succeeded(known, now, now - began))

    def _note_failure(self, provider: Provider, now: int, fault: _Fault) -> None:
        rest = fault.rest_ms if fault.rest_ms > REST_MS_MAX else 0
        self._memory.update(provider.name, lambda known: failed(known, now, self._breaker, fault.code, rest))

    def _problem(self, provider: Provider) -> str | None:
        """Why a provider may not be asked now."""
        now = self._clock.now_ms()
        if provider.free_at(now, now) > now:
            return "RATE_LIMITED"
        circuit = self._memory.load().get(provider.name, Health()).circuit(now)
        if circuit == "OPEN":
            return "CIRCUIT_OPEN"
        if circuit == "HALF_OPEN" and not self._claim(provider, now):
            return "CIRCUIT_OPEN"
        return None

    def _claim(self, provider: Provider, now: int) -> bool:
        """Become the one who probes; False when another one, perhaps in another process, was faster."""
        claimed = []

        def change(known: Health) -> Health:
            claimed.append(known.circuit(now) == "HALF_OPEN")
            return claim_probe(known, now, self._breaker) if claimed[-1] else known

        self._memory.update(provider.name, change)
        return claimed[-1]

    def _free_at(self, provider: Provider) -> int:
        now = self._clock.now_ms()
        health = self._memory.load().get(provider.name, Health())
        return max(provider.free_at(now, now), health.open_until_ms)

    # --- looking ----------------------------------------------------------------------------------------------

    def order(self, model: str | None = None) -> list[Provider]:
        """The providers that have `model`, in the order in which they would be asked now."""
        able = [provider for provider in self._providers if provider.takes(model)]
        if self._routing == "ordered":
            return able
        scored = self._scores(able, model)
        return sorted(able, key=lambda provider: scored[provider.name])

    def _scores(self, able: Sequence[Provider], model: str | None) -> dict[str, float]:
        prices = {p.name: p.client.price(p.model_for(model)) for p in able}
        return scores(prices, self._memory.load(), self._weights, self._clock.now_ms())

    def status(self) -> list[dict[str, Any]]:
        """What is known of each provider, in the order in which they would be asked now."""
        now = self._clock.now_ms()
        known = self._memory.load()
        scored = self._scores(self._providers, None)
        rows = []
        for place, provider in enumerate(self.order(), 1):
            health = known.get(provider.name, Health())
            price = provider.client.price(provider.model)
            rows.append(
                {
                    "place": place,
                    "name": provider.name,
                    "model": provider.model,
                    "circuit": health.circuit(now),
                    "score": round(scored[provider.name], 6) if self._routing == "scored" else None,
                    "requests_per_minute": provider.per_minute,
                    "usd_per_million_tokens": None if price is None else [price[0] / 1_000, price[1] / 1_000],
                    **msgspec.to_builtins(health),
                }
            )
        return rows


class _Fault:
    """What an error of a provider means to the pool: `request` (no provider could do better), `unavailable` (leave
    it), or `again`."""

    def __init__(self, error: Exception) -> None:
        code = getattr(error, "code", None)
        self.code = code if isinstance(code, str) and code else type(error).__name__
        facts = getattr(error, "facts", None)
        facts = facts if isinstance(facts, dict) else {}
        rest: Any = facts.get("retry_after")
        self.rest_ms = int(rest * 1_000) if type(rest) in (int, float) and rest > 0 else 0
        lost = getattr(error, "lost", None)
        if lost is None:
            lost = isinstance(error, OSError | TimeoutError)
        if lost or facts.get("status") in _NOT_ADMITTED:
            self.kind = "unavailable"
        elif getattr(error, "retryable", True) is False:
            self.kind = "request"
        else:
            self.kind = "again"


def _sum(a: Usage, b: Usage) -> Usage:
    costs = [usage.cost_usd for usage in (a, b) if usage.cost_usd is not None]
    return Usage(
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
        cost_usd=round(sum(costs), 13) if costs else None,
    )


def _highest(prices: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [price for price in prices if price is not None]
    return (max(price[0] for price in known), max(price[1] for price in known)) if known else None


def _copies(messages: list[Message]) -> list[Message]:
    return [dict(message) for message in messages]
