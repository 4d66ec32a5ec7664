"""The provider pool: who is asked, how often, who is left for whom, and what is remembered of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm import Completion, ExecutionVM, MockLLMAdapter, SqliteStore, ToolCall, Usage
from nano_vm.errors import InputError, NanoVMError
from nano_vm.kernel.events import Switch
from nano_vm.providers.cache import ModelCache
from nano_vm.providers.faults import ModelError
from nano_vm.providers.health import Breaker, Health, VolatileMemory, claim_probe, failed, succeeded
from nano_vm.providers.model_store import ModelStore
from nano_vm.providers.pool import MINUTE_MS, Provider, ProviderPool
from nano_vm.providers.routing import Weights, scores
from nano_vm.runtime.ports import ModelCall
from nano_vm.testing.clock import START_MS, VirtualClock

MESSAGES = [{"role": "user", "content": "hello"}]
BUSY = ModelError("MODEL_HTTP", "HTTP 503", facts={"status": 503})
GONE = ModelError("MODEL_HTTP", "no contact", lost=True)
STRANGER = ModelError("MODEL_REFUSED", "HTTP 401", facts={"status": 401})
WRONG = ModelError("MODEL_REFUSED", "HTTP 400", facts={"status": 400})
CUT = ModelError("MODEL_TRUNCATED", "cut", usage=Usage(prompt_tokens=5, completion_tokens=7, cost_usd=0.5))


def again(error: ModelError) -> ModelError:
    return ModelError(error.code, error.message, facts=error.facts, usage=error.usage, lost=error.lost)


class Model:
    """Answers or fails as told; the last word stands. Time passes while it does."""

    def __init__(self, *answers: Any, clock: VirtualClock | None = None, takes_ms: int = 0) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []
        self.clock, self.takes_ms = clock, takes_ms

    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Any:
        self.calls.append((messages, params))
        if self.clock is not None and self.takes_ms:
            self.clock.advance(self.takes_ms)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, ModelError):
            raise again(answer)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Pool:
    def __init__(self, *models: Model, names: str = "abc", memory: Any = None, **options: Any) -> None:
        self.clock = VirtualClock()
        self.memory = memory or VolatileMemory()
        self.models = models
        providers = [Provider(name, model) for name, model in zip(names, models, strict=False)]
        self.pool = ProviderPool(providers, clock=self.clock, memory=self.memory, **options)

    def ask(self, **params: Any) -> Completion:
        return asyncio.run(self.pool.complete([dict(message) for message in MESSAGES], **params))

    def refused(self) -> Any:
        with pytest.raises(NanoVMError) as caught:
            self.ask()
        return caught.value

    @property
    def asked(self) -> list[int]:
        return [len(model.calls) for model in self.models]


def switch(origin: str, to: str, reason: str, attempts: int, error: str = "MODEL_HTTP") -> Switch:
    return Switch(attempts=attempts, error=error, origin=origin, reason=reason, to=to)


def test_the_first_provider_answers_when_it_can() -> None:
    pool = Pool(Model(Completion(text="yes", usage=Usage(prompt_tokens=3), model="m")), Model("no"))
    answer = pool.ask(temperature=0)
    assert (answer.text, answer.provider, answer.switches, answer.model) == ("yes", "a", (), "m")
    assert answer.usage == Usage(prompt_tokens=3)
    assert pool.asked == [1, 0]
    assert pool.models[0].calls[0] == (MESSAGES, {"temperature": 0})


def test_a_provider_that_answers_badly_is_asked_again_and_then_left() -> None:
    pool = Pool(Model(BUSY), Model("yes"))
    answer = pool.ask()
    assert (answer.text, answer.provider) == ("yes", "b")
    assert answer.switches == (switch("a", "b", "RetryLimitExceeded", 3),)
    assert pool.asked == [3, 1]
    assert [at - START_MS for at in pool.clock.slept] == [200, 600]


@pytest.mark.parametrize(
    ("problem", "code"),
    [(GONE, "MODEL_HTTP"), (STRANGER, "MODEL_REFUSED"), (ConnectionResetError(), "ConnectionResetError")],
)
def test_a_provider_that_is_not_there_or_does_not_admit_us_is_left_at_once(problem: Any, code: str) -> None:
    pool = Pool(Model(problem), Model("yes"))
    assert pool.ask().switches == (switch("a", "b", "ProviderUnavailable", 1, code),)
    assert pool.asked == [1, 1]


@pytest.mark.parametrize("error", [WRONG, CUT])
def test_what_no_other_provider_could_mend_is_raised_at_once(error: ModelError) -> None:
    pool = Pool(Model(error), Model("yes"))
    raised = pool.refused()
    assert raised.code == error.code
    assert (raised.provider, raised.switches, raised.usage) == ("a", (), error.usage)
    assert pool.asked == [1, 0]
    assert pool.memory.load()["a"].circuit(START_MS) == "CLOSED"


def test_all_attempts_are_paid_for() -> None:
    bad = ModelError("MODEL_REPLY", "?", usage=Usage(prompt_tokens=2, cost_usd=0.25))
    good = Completion(text="yes", usage=Usage(prompt_tokens=1, completion_tokens=1, cost_usd=0.5))
    assert Pool(Model(bad), Model(good)).ask().usage == Usage(
        prompt_tokens=7, completion_tokens=1, cost_usd=1.25
    )
    raised = Pool(Model(bad), Model(bad)).refused()
    assert raised.usage == Usage(prompt_tokens=12, cost_usd=1.5)
    assert raised.switches == (switch("a", "b", "RetryLimitExceeded", 3, "MODEL_REPLY"),)
    assert raised.provider == "b"


def test_a_provider_that_wants_to_be_left_alone_is() -> None:
    busy = ModelError("MODEL_HTTP", "HTTP 429", facts={"status": 429, "retry_after": 30})
    pool = Pool(Model(busy), Model("yes"))
    assert pool.ask().switches == (switch("a", "b", "ProviderUnavailable", 1),)
    assert pool.ask().switches == (switch("a", "b", "ProviderUnavailable", 0, "CIRCUIT_OPEN"),)
    pool.clock.advance(30_000)
    assert pool.ask().switches == (switch("a", "b", "ProviderUnavailable", 1),)
    soon = ModelError("MODEL_HTTP", "HTTP 429", facts={"status": 429, "retry_after": 1})
    pool = Pool(Model(soon, "yes"), Model("no"))
    assert (pool.ask().text, pool.clock.now_ms() - START_MS) == ("yes", 1_000)


# --- the circuit --------------------------------------------------------------------------------------------------


def test_a_circuit_opens_lets_one_probe_through_and_closes() -> None:
    pool = Pool(
        Model(GONE, GONE, GONE, GONE, "back"), Model("spare"), breaker=Breaker(failures=3, cooldown_ms=1_000)
    )
    for _ in range(3):
        assert pool.ask().switches[0].attempts == 1
    assert pool.ask().switches == (switch("a", "b", "ProviderUnavailable", 0, "CIRCUIT_OPEN"),)
    assert pool.asked == [3, 4]
    pool.clock.advance(1_000)
    assert pool.ask().provider == "b"  # the probe failed: twice as long now
    pool.clock.advance(1_999)
    assert pool.ask().switches[0].error == "CIRCUIT_OPEN"
    pool.clock.advance(1)
    assert pool.ask().text == "back"
    assert pool.ask().text == "back"
    assert pool.memory.load()["a"].opened_in_row == 0


def test_only_one_of_many_calls_probes() -> None:
    class Slow(Model):
        async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Any:
            await asyncio.sleep(0)
            return await super().complete(messages, **params)

    pool = Pool(Slow(GONE, GONE, GONE, "back"), Model("spare"))
    for _ in range(3):
        pool.ask()
    pool.clock.advance(10_000)

    async def many() -> list[Completion]:
        return await asyncio.gather(*(pool.pool.complete(MESSAGES) for _ in range(20)))

    found = asyncio.run(many())
    assert sorted(answer.text for answer in found) == ["back"] + ["spare"] * 19
    assert pool.asked[0] == 4


def test_a_probe_that_never_comes_back_does_not_close_the_door_for_ever() -> None:
    breaker = Breaker(failures=1, cooldown_ms=1_000, probe_ms=5_000)
    health = failed(Health(), 0, breaker, "MODEL_HTTP")
    assert health.circuit(999) == "OPEN"
    assert health.circuit(1_000) == "HALF_OPEN"
    probing = claim_probe(health, 1_000, breaker)
    assert probing.circuit(5_999) == "OPEN"
    assert probing.circuit(6_000) == "HALF_OPEN"


def test_when_nobody_may_be_asked_the_one_that_is_free_first_is_asked_once() -> None:
    pool = Pool(Model(GONE), Model(GONE, GONE, GONE, "yes"))
    for _ in range(3):
        pool.refused()
        pool.clock.advance(1)
    assert pool.asked == [3, 3]
    pool.memory.update("a", lambda known: failed(known, pool.clock.now_ms(), Breaker(), "X", 60_000))
    answer = pool.ask()
    assert (answer.text, answer.provider) == ("yes", "b")
    skipped = ("ProviderUnavailable", 0, "CIRCUIT_OPEN")
    assert answer.switches == (switch("a", "b", *skipped), switch("b", "b", *skipped))
    assert pool.asked == [3, 4]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30_000)), max_size=60))
@settings(max_examples=150, deadline=None)
def test_a_circuit_keeps_its_rules_whatever_happens(happenings: list[tuple[bool, int]]) -> None:
    breaker = Breaker(failures=3, cooldown_ms=1_000, cooldown_max_ms=8_000)
    health, now, row = Health(), 0, 0
    for good, pause in happenings:
        now += pause
        before = health.circuit(now)
        if before == "HALF_OPEN":
            health = claim_probe(health, now, breaker)
        if good:
            health, row = succeeded(health, now, 5), 0
            assert health.circuit(now) == "CLOSED"
        else:
            health, row = failed(health, now, breaker, "X"), row + 1
            assert (health.circuit(now) == "OPEN") is (row >= breaker.failures)
            assert health.open_until_ms - now <= breaker.cooldown_max_ms
        assert health.failures_in_row == row
        assert 0 <= health.health <= 1
    assert health.failed <= health.calls == len(happenings)


def test_records_survive_a_restart_and_are_shared(tmp_path: Any) -> None:
    with ModelStore(tmp_path / "models") as store, ModelStore(tmp_path / "models") as other:
        first = Pool(Model(GONE), Model("yes"), memory=store)
        for _ in range(3):
            first.ask()
        second = Pool(Model("back"), Model("yes"), memory=other)
        assert second.ask().switches == (switch("a", "b", "ProviderUnavailable", 0, "CIRCUIT_OPEN"),)
    with ModelStore(tmp_path / "models") as store:
        third = Pool(Model("back"), Model("yes"), memory=store)
        assert third.ask().provider == "b"
        assert third.pool.status()[0]["circuit"] == "OPEN"
        assert third.pool.status()[0]["last_error"] == "MODEL_HTTP"
        third.clock.advance(10_000)
        assert third.ask().provider == "a"


# --- rate limits --------------------------------------------------------------------------------------------------


def test_a_rate_limit_is_kept_in_every_minute() -> None:
    clock = VirtualClock()
    a, b = Model("a"), Model("b")
    providers = [Provider("a", a, requests_per_minute=2), Provider("b", b)]
    pool = ProviderPool(providers, clock=clock)

    async def ask() -> Completion:
        return await pool.complete(MESSAGES)

    assert [asyncio.run(ask()).text for _ in range(3)] == ["a", "a", "b"]
    assert asyncio.run(ask()).switches == (switch("a", "b", "ProviderUnavailable", 0, "RATE_LIMITED"),)
    clock.advance(MINUTE_MS)
    assert asyncio.run(ask()).text == "a"


def test_a_single_provider_is_waited_for() -> None:
    clock = VirtualClock()
    pool = ProviderPool([Provider("a", Model("a"), requests_per_minute=1)], clock=clock)

    async def thrice() -> list[str]:
        return [(await pool.complete(MESSAGES)).text for _ in range(3)]

    assert asyncio.run(thrice()) == ["a", "a", "a"]
    assert clock.now_ms() == START_MS + 2 * MINUTE_MS


class Timed(Model):
    """Notes when it is asked."""

    def __init__(self, clock: VirtualClock, *answers: Any) -> None:
        super().__init__(*answers)
        self.now, self.times = clock, []

    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Any:
        self.times.append(self.now.now_ms() - START_MS)
        return await super().complete(messages, **params)

    @property
    def most_in_a_minute(self) -> int:
        return max(sum(first <= time < first + MINUTE_MS for time in self.times) for first in self.times)


@given(
    per_minute=st.integers(1, 4),
    starts=st.lists(st.integers(0, 90_000), min_size=1, max_size=12),
    answers=st.lists(st.sampled_from(["yes", BUSY]), min_size=1, max_size=12),
    given_up=st.sets(st.integers(0, 11)),
)
@settings(max_examples=100, deadline=None)
def test_however_many_wait_a_rate_limit_is_kept(
    per_minute: int, starts: list[int], answers: list[Any], given_up: set[int]
) -> None:
    """By those who wait together, by those who ask again, and whoever gives up."""
    clock = VirtualClock()
    model = Timed(clock, *answers, "yes")
    breaker = Breaker(failures=1_000)
    pool = ProviderPool(
        [Provider("a", model, requests_per_minute=per_minute)], clock=clock, breaker=breaker, attempts=2
    )

    async def ask(number: int, start: int) -> Any:
        await clock.sleep_until(START_MS + start)
        asking = asyncio.create_task(pool.complete(MESSAGES))
        if number in given_up:
            await asyncio.sleep(0)
            asking.cancel()
        return await asyncio.gather(asking, return_exceptions=True)

    async def main() -> list[Any]:
        return await asyncio.gather(*[ask(number, start) for number, start in enumerate(starts)])

    for number, (told,) in enumerate(asyncio.run(main())):
        if number not in given_up:
            assert isinstance(told, Completion | ModelError), told
    if model.times:
        assert model.most_in_a_minute <= per_minute


def test_a_turn_that_nobody_takes_is_somebody_elses() -> None:
    clock = VirtualClock()
    model = Timed(clock, "yes")
    pool = ProviderPool([Provider("a", model, requests_per_minute=1)], clock=clock)

    async def main() -> None:
        await pool.complete(MESSAGES)
        impatient = [asyncio.create_task(pool.complete(MESSAGES)) for _ in range(5)]
        await asyncio.sleep(0)
        for one in impatient:
            one.cancel()
        await asyncio.gather(*impatient, return_exceptions=True)
        await pool.complete(MESSAGES)

    asyncio.run(main())
    assert model.times == [0, MINUTE_MS]


def test_who_may_not_ask_again_soon_goes_to_the_next_one() -> None:
    clock = VirtualClock()
    providers = [Provider("a", Model(BUSY), requests_per_minute=1), Provider("b", Model("b"))]
    answer = asyncio.run(ProviderPool(providers, clock=clock).complete(MESSAGES))
    assert answer.switches == (switch("a", "b", "ProviderUnavailable", 1, "RATE_LIMITED"),)
    assert clock.now_ms() == START_MS


# --- routing ------------------------------------------------------------------------------------------------------


class Priced(Model):
    def __init__(self, usd: float | None, *answers: Any, **options: Any) -> None:
        super().__init__(*answers, **options)
        self.usd = usd

    def price(self, model: str | None) -> tuple[float, float] | None:
        return None if self.usd is None else (self.usd, self.usd)


def test_scored_routing_weighs_health_latency_and_cost() -> None:
    known = {"slow": Health(latency_ms=900.0), "bad": Health(health=0.1)}
    prices = {
        "dear": (100.0, 300.0),
        "slow": (1.0, 1.0),
        "bad": (1.0, 1.0),
        "new": (1.0, 1.0),
        "unknown": None,
    }
    found = scores(prices, known, Weights(), 0)
    assert sorted(found, key=found.__getitem__)[0] == "new"
    assert found["unknown"] == found["dear"] == 1.0
    assert found["slow"] == pytest.approx(1.005)
    assert found["bad"] == pytest.approx(1.805)
    assert scores(prices, known, Weights(health=0, latency=0, cost=0), 0) == dict.fromkeys(prices, 0.0)


def test_scored_routing_goes_to_whoever_does_best() -> None:
    clock = VirtualClock()
    models = [
        Priced(9.0, "dear", clock=clock, takes_ms=10),
        Priced(1.0, GONE, "cheap", clock=clock, takes_ms=10),
        Priced(2.0, "middle", clock=clock, takes_ms=10),
    ]
    providers = [Provider(name, model) for name, model in zip("abc", models, strict=True)]
    pool = ProviderPool(providers, routing="scored", clock=clock, attempts=1)

    def ask() -> Completion:
        return asyncio.run(pool.complete(MESSAGES))

    first = ask()
    assert (first.provider, first.switches) == ("c", (switch("b", "c", "ProviderUnavailable", 1),))
    assert [provider.name for provider in pool.order()] == [
        "b",
        "a",
        "c",
    ]  # c is known to be slow, b to have failed
    assert [row["name"] for row in pool.status()] == ["b", "a", "c"]
    assert pool.status()[0]["place"] == 1
    # Whoever has not been asked has its chance; then c is cheap and has never failed.
    assert [ask().provider for _ in range(5)] == ["b", "a", "c", "c", "c"]
    clock.advance(24 * 3_600_000)
    assert ask().provider == "b"  # the cheapest, and its failure is forgotten


def test_what_is_held_against_a_provider_fades() -> None:
    bad = Health(health=0.0, latency_ms=1_000.0, last_failure_at_ms=1)
    assert bad.faded(1) == (0.0, 1_000.0)
    assert bad.faded(300_001) == pytest.approx((0.5, 500.0))


def test_a_program_may_name_a_model_and_each_provider_calls_it_its_own_way() -> None:
    a, b = Model("a"), Model("b")
    providers = [
        Provider("a", a, model="a-large", models={"small": "a-small"}),
        Provider("b", b, model="b-large"),
    ]
    pool = ProviderPool(providers)
    for asked in (None, "small", "other"):
        asyncio.run(pool.complete(MESSAGES, **({} if asked is None else {"model": asked})))
    assert [params["model"] for _, params in a.calls] == ["a-large", "a-small"]
    assert [params["model"] for _, params in b.calls] == ["other"]
    only = ProviderPool(providers[:1])
    with pytest.raises(ModelError) as caught:
        asyncio.run(only.complete(MESSAGES, model="other"))
    assert caught.value.code == "MODEL_REFUSED"


def test_the_price_is_the_worst_case(tmp_path: Path) -> None:
    priced = [Provider("a", Priced(1.0, "")), Provider("b", Priced(3.0, ""))]
    unpriced = Provider("c", Priced(None, ""), models={"known": "known"})
    assert ProviderPool(priced).price(None) == (3.0, 3.0)
    pool = ProviderPool([*priced, unpriced])
    assert (pool.price(None), pool.price_known(None)) == (None, (3.0, 3.0))
    assert pool.price("other") == (3.0, 3.0)  # which the third is not asked for
    assert ProviderPool([unpriced]).price_known(None) is None
    with contextlib.closing(ModelStore(tmp_path / "models")) as answers:
        assert ModelCache(pool, answers).price_known(None) == (3.0, 3.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProviderPool([]),
        lambda: ProviderPool([Provider("a", Model("")), Provider("a", Model(""))]),
        lambda: ProviderPool([Provider("a", Model(""))], attempts=0),
        lambda: ProviderPool([Provider("a", Model(""))], routing="random"),  # type: ignore[arg-type]
        lambda: ProviderPool([Provider(str(n), Model("")) for n in range(33)]),
        lambda: Provider("", Model("")),
        lambda: Provider("a\n", Model("")),
        lambda: Provider("a", Model(""), requests_per_minute=0),
    ],
)
def test_pools_that_are_none_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.code == "POOL"


def test_providers_get_copies_and_what_they_take() -> None:
    class Bare:
        async def complete(self, messages: list[dict[str, Any]]) -> str:
            messages.clear()
            raise ConnectionError

    class Cached:
        call: Any = None

        async def complete(self, messages: list[dict[str, Any]], *, model_call: Any = None) -> Completion:
            Cached.call = model_call
            return Completion(
                text=messages[0]["content"], tool_calls=(ToolCall("c", "pay", "{}"),), cached=True
            )

    pool = ProviderPool([Provider("a", Bare()), Provider("b", Cached())], memory=(memory := VolatileMemory()))
    call = ModelCall(fresh=True)
    answer = asyncio.run(pool.complete(MESSAGES, model_call=call, temperature=1))
    assert (answer.text, answer.tool_calls[0].name, answer.provider) == ("hello", "pay", "b")
    assert Cached.call is call
    assert "b" not in memory.load()  # a kept answer says nothing about its provider


# --- in a run -----------------------------------------------------------------------------------------------------

PROGRAM = {
    "name": "credit",
    "steps": [
        {"id": "read", "type": "llm", "prompt": "read $text"},
        {"id": "decide", "type": "llm", "prompt": "decide on $read.output", "allowed_outputs": ["yes", "no"]},
    ],
}


def run(tmp_path: Any, *models: Model, program: Any = PROGRAM) -> Any:
    pool = Pool(*models)
    with SqliteStore(tmp_path / "runs.db") as store:
        vm = ExecutionVM(llm=pool.pool, store=store, clock=pool.clock)
        trace = vm.run_sync(program, {"text": "it"})
        assert vm.verify(trace.trace_id)
        again = vm.trace(trace.trace_id)
        assert again.to_dict() == trace.to_dict()
        assert [event.type for event in trace.events]
        return trace


def test_switches_are_journaled_and_are_no_part_of_the_hashes(tmp_path: Any) -> None:
    well = run(tmp_path, Model("a", "yes"), Model("?"))
    retry = run(tmp_path, Model("a", BUSY), Model("yes"))
    hard = run(tmp_path, Model("a", GONE), Model("yes"))
    assert [trace.status.value for trace in (well, retry, hard)] == ["SUCCESS"] * 3
    assert well.trace_hash == retry.trace_hash == hard.trace_hash
    assert well.outcome_hash == retry.outcome_hash == hard.outcome_hash
    assert (well.switch_events, well.provider_final) == ([], "a")
    (event,) = retry.switch_events
    assert {name: event[name] for name in ("step", "from", "to", "reason", "attempts", "error")} == {
        "step": "decide",
        "from": "a",
        "to": "b",
        "reason": "RetryLimitExceeded",
        "attempts": 3,
        "error": "MODEL_HTTP",
    }
    assert retry.provider_final == hard.provider_final == "b"
    assert hard.switch_events[0]["reason"] == "ProviderUnavailable"
    assert [step.provider for step in hard.steps] == ["a", "b"]


def test_a_failed_step_tells_who_was_asked(tmp_path: Any) -> None:
    trace = run(tmp_path, Model("a", BUSY), Model(GONE))
    assert trace.status.value == "FAILED"
    assert trace.provider_final == "b"
    assert [event["reason"] for event in trace.switch_events] == ["RetryLimitExceeded"]


@pytest.mark.parametrize("fields", [{}, {"on_timeout": "fallback", "fallback": "no"}])
def test_a_time_out_in_the_middle_tells_how_far_the_call_came(tmp_path: Any, fields: dict[str, Any]) -> None:
    class Silent:
        async def complete(self, messages: list[dict[str, Any]]) -> str:
            await asyncio.Event().wait()
            raise AssertionError

    pool = ProviderPool([Provider("a", Model(GONE)), Provider("b", Silent())])
    step = {"id": "ask", "type": "llm", "prompt": "?", "timeout_seconds": 0.05, **fields}
    with SqliteStore(tmp_path / "runs.db") as store:
        trace = ExecutionVM(llm=pool, store=store).run_sync({"name": "p", "steps": [step]})
        assert [(event["from"], event["to"]) for event in trace.switch_events] == [("a", "b")]
        assert trace.provider_final == "b"


@pytest.mark.parametrize(("silent_ms", "failures"), [(999, 0), (1_000, 1)])
def test_a_provider_whose_silence_was_waited_out_is_not_asked_first_for_ever(
    silent_ms: int, failures: int
) -> None:
    class Silent:
        async def complete(self, messages: list[dict[str, Any]]) -> str:
            await asyncio.Event().wait()
            raise AssertionError

    clock, memory = VirtualClock(), VolatileMemory()
    pool = ProviderPool([Provider("a", Silent())], clock=clock, memory=memory)

    async def give_up() -> None:
        task = asyncio.create_task(pool.complete(MESSAGES))
        await asyncio.sleep(0)
        clock.advance(silent_ms)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert memory.load().get("a", Health()).failed == failures


def test_the_mock_is_a_provider_like_any_other() -> None:
    pool = ProviderPool(
        [Provider("a", MockLLMAdapter(OSError("gone"))), Provider("b", MockLLMAdapter("yes"))]
    )
    assert asyncio.run(pool.complete(MESSAGES)).provider == "b"
