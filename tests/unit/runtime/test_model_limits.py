"""What models may cost, per principal and day: reserved before the call, settled after it, never exceeded together;
and what is private is not added up in clear."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runtime_stage import Opener, play, program, refused, sound, tool_step

from nano_vm import (
    Completion,
    ExecutionVM,
    MockLLMAdapter,
    ModelCache,
    ModelStore,
    NotFoundError,
    Provider,
    ProviderPool,
    RunStatus,
    SqliteStore,
    ToolCall,
    Trace,
    Usage,
    tool,
)
from nano_vm.kernel.events import PolicyDecided
from nano_vm.providers.faults import ModelError
from nano_vm.providers.pool_file import load_pool
from nano_vm.testing.clock import VirtualClock
from nano_vm.vault.local import Vault

ANA, BOB = {"id": "ana", "roles": []}, {"id": "bob", "roles": []}
DAY_MS = 86_400_000
ASK = program({"id": "m", "type": "llm", "prompt": "go on?", "params": {"max_tokens": 100}})


class Priced:
    """A dollar per thousand tokens asked for, and what it really takes is told afterwards."""

    def __init__(self, *answers: Any, price: tuple[float, float] | None = (0, 1_000_000)) -> None:
        self.answers = list(answers)
        self.asked = 0
        self._price = price

    def price(self, model: str | None) -> tuple[float, float] | None:
        return self._price

    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
        self.asked += 1
        await asyncio.sleep(0)
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def cost(usd: float | None, tokens: int = 0, **fields: Any) -> Completion:
    return Completion(text="yes", usage=Usage(completion_tokens=tokens, cost_usd=usd), **fields)


def limited(**limit: Any) -> dict[str, Any]:
    limits = [{"per": ["principal", "day"], **limit}]
    return {
        "policy": "p",
        "tools": ["act"],
        "rules": [{"id": "spend", "models": ["default"], "limits": limits}],
    }


def decided(trace: Trace) -> list[tuple[str, str, str, list[int]]]:
    return [
        (
            e.decision,
            e.reason,
            "" if e.detail is None else str(e.detail or ""),
            [] if not e.counts else e.counts[0][1:],
        )
        for e in trace.events
        if type(e) is PolicyDecided and e.model
    ]


async def ran(vm: ExecutionVM, flow: dict[str, Any] = ASK, who: Any = ANA) -> Trace:
    trace = await vm.run(flow, principal=who)
    sound(vm, trace)
    return trace


def test_a_call_is_counted_at_its_worst_and_settled_at_what_it_took(opener: Opener) -> None:
    llm = Priced(cost(0.02))  # each may take 0.1 dollars at most

    async def main() -> None:
        vm = opener(llm=llm, policy=limited(max_cost_usd=0.13))
        traces = [await ran(opener(llm=llm, policy=limited(max_cost_usd=0.13))) for _ in range(3)]
        assert [trace.status.value for trace in traces] == ["SUCCESS", "SUCCESS", "FAILED"]
        saw = [decided(trace)[0][3] for trace in traces]
        assert saw == [[0, 100_000_000], [20_000_000, 100_000_000], [40_000_000, 100_000_000]]
        assert llm.asked == 2
        assert (await ran(vm, who=BOB)).status is RunStatus.SUCCESS

    play(main())


def test_a_day_later_it_is_counted_anew(opener: Opener, clock: VirtualClock) -> None:
    llm = Priced(cost(0.1))

    async def main() -> None:
        vm = opener(llm=llm, policy=limited(max_cost_usd=0.1))
        assert (await ran(vm)).status is RunStatus.SUCCESS
        assert (await ran(vm)).error["type"] == "CapabilityDeniedError"
        clock.advance(DAY_MS)
        assert (await ran(vm)).status is RunStatus.SUCCESS

    play(main())


def test_runs_at_once_never_reserve_more_than_there_is(opener: Opener) -> None:
    llm = Priced(cost(0.1))

    async def main() -> None:
        vm = opener(llm=llm, policy=limited(max_cost_usd=0.35))
        traces = await asyncio.gather(*(vm.run(ASK, principal=ANA) for _ in range(8)))
        assert (llm.asked, sum(trace.status is RunStatus.SUCCESS for trace in traces)) == (3, 3)
        for trace in traces:
            sound(vm, trace)

    play(main())


def test_tokens_are_limited_alike_and_the_answer_is_bounded(opener: Opener) -> None:
    asked: list[dict[str, Any]] = []

    class Listening(Priced):
        async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
            asked.append(params)
            return await super().complete(messages, **params)

    llm = Listening(cost(None, 50), price=None)
    flow = program({"id": "m", "type": "llm", "prompt": "go on?"})

    async def main() -> None:
        vm = opener(llm=llm, policy=limited(max_tokens=5_000))
        statuses = [(await ran(vm, flow)).status.value for _ in range(20)]
        # 4,096 and the prompt are reserved for each, and 50 remain of it.
        assert statuses == ["SUCCESS"] * 19 + ["FAILED"]
        assert {params["max_tokens"] for params in asked} == {4_096}

    play(main())


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (cost(None), 100_000_000),  # nobody says what it was: the worst case stands
        (cost(None, cached=True), 0),
        (cost(0.0, 50), 0),  # it was free: a pool has gone over to a model of one's own, say
        (ValueError("refused"), 0),
        (ModelError("MODEL_HTTP", "HTTP 503"), 0),
        (TimeoutError("lost"), 100_000_000),
        (ModelError("MODEL_TIMEOUT", "no answer within 60 s", lost=True), 100_000_000),
        (ModelError("MODEL_TRUNCATED", "cut at the token limit"), 100_000_000),
        (ModelError("MODEL_REPLY", "the answer broke off", lost=True), 100_000_000),
    ],
)
def test_what_is_not_told_stands_at_its_worst_unless_nothing_was_sold(
    opener: Opener, answer: Any, kept: int
) -> None:
    llm = Priced(answer, cost(0.01))

    async def main() -> None:
        vm = opener(llm=llm, policy=limited(max_cost_usd=5))
        await ran(vm)
        assert decided(await ran(vm))[0][3] == [kept, 100_000_000]

    play(main())


def test_every_attempt_and_every_turn_is_paid_for(opener: Opener) -> None:
    call = Completion(tool_calls=(ToolCall("1", "act", "{}"),), usage=Usage(cost_usd=0.05))
    llm = Priced(call, call, call, cost(0.05))
    flow = program(
        {"id": "m", "type": "agent", "prompt": "go", "tools": ["act"], "params": {"max_tokens": 100}}
    )

    async def main() -> None:
        vm = opener(llm=llm, tools={"act": lambda: 1}, policy=limited(max_cost_usd=0.22))
        trace = await ran(vm, flow)
        assert (trace.status, llm.asked) == (RunStatus.FAILED, 3)
        assert [saw[3][0] for saw in decided(trace)] == [0, 50_000_000, 100_000_000, 150_000_000]
        assert decided(trace)[-1][:2] == ("deny", "LIMIT")

    play(main())


@pytest.mark.parametrize("budget", [False, True])
def test_a_pool_asks_for_no_answer_that_nothing_was_reserved_for(opener: Opener, budget: bool) -> None:
    useless = ModelError("MODEL_REPLY", "no text", usage=Usage(completion_tokens=90))
    answers = [Priced(useless), Priced(useless)]
    pool = ProviderPool(
        [Provider(str(at), answer) for at, answer in enumerate(answers)], clock=VirtualClock()
    )
    retried = {**ASK["steps"][0], "on_error": "retry", "max_retries": 9, "retry": {"initial": 0.001}}
    flow = program(retried, **({"max_tokens": 250} if budget else {}))

    async def main() -> None:
        trace = await ran(opener(llm=pool, policy=None if budget else limited(max_tokens=250)), flow)
        assert trace.status is (RunStatus.BUDGET_EXCEEDED if budget else RunStatus.FAILED)
        assert (trace.total_tokens(), sum(answer.asked for answer in answers)) == (180, 2)

    play(main())


def test_a_model_without_a_price_is_denied_where_its_cost_is_limited(opener: Opener) -> None:
    llm = Priced(cost(0.01), price=None)

    async def main() -> None:
        trace = await ran(opener(llm=llm, policy=limited(max_cost_usd=5)))
        assert (trace.status, llm.asked) == (RunStatus.FAILED, 0)
        assert decided(trace) == [("deny", "CONDITION", "NO_PRICE", [])]

    play(main())


def test_a_pool_with_one_provider_without_a_price_is_denied_where_its_cost_is_limited(opener: Opener) -> None:
    """It was admitted at the price of the others, and then the one without a price was asked."""
    unpriced, priced = Priced(cost(4.0), price=None), Priced(cost(0.01))
    pool = ProviderPool([Provider("a", unpriced), Provider("b", priced)])

    async def main() -> None:
        trace = await ran(opener(llm=pool, policy=limited(max_cost_usd=1)))
        assert (trace.status, unpriced.asked, priced.asked) == (RunStatus.FAILED, 0, 0)
        assert decided(trace) == [("deny", "CONDITION", "NO_PRICE", [])]

    play(main())


@pytest.mark.parametrize("through", ["pool", "cache"])
def test_a_pool_with_a_named_provider_is_denied_where_cost_is_limited(
    opener: Opener, tmp_path: Path, through: str
) -> None:
    """What a file says with `use:` has the price that its adapter has, and most have none."""
    file = tmp_path / "pool.yaml"
    file.write_text(
        "providers:\n"
        "  - {name: a, url: 'http://127.0.0.1:9/v1', model: m, price: {input: 1, output: 1}}\n"
        "  - {name: b, use: 'mock:yes'}\n"
    )
    model = MockLLMAdapter("yes")
    pool: Any = load_pool(file, named=lambda spec: model)
    assert pool.price(None) is None
    assert pool.price_known(None) is not None
    llm = pool if through == "pool" else ModelCache(pool, ModelStore(tmp_path / "models"))

    async def main() -> None:
        trace = await ran(opener(llm=llm, policy=limited(max_cost_usd=5)))
        assert (trace.status, model.call_count) == (RunStatus.FAILED, 0)
        assert trace.switch_events == []  # the one with a price was not asked either
        assert decided(trace) == [("deny", "CONDITION", "NO_PRICE", [])]

    play(main())


def test_a_runs_own_budget_holds_back_what_is_known_of_a_pools_prices(opener: Opener) -> None:
    pool = ProviderPool([Provider("a", Priced(cost(0.01), price=None)), Provider("b", Priced(cost(0.01)))])

    async def main() -> None:
        trace = await ran(opener(llm=pool), {**ASK, "max_cost_usd": 0.05})  # less than the call may take
        assert trace.status is RunStatus.BUDGET_EXCEEDED

    play(main())


@pytest.mark.parametrize("limit", [{"max_tokens": 9_000}, {"max_cost_usd": 5}])
@pytest.mark.parametrize("price", [None, (0, 1)])
def test_a_call_that_nobody_is_counted_for_is_denied_and_verifies(
    opener: Opener, limit: dict[str, int], price: Any
) -> None:
    llm = Priced(cost(0.01), price=price)

    async def main() -> None:
        trace = await ran(opener(llm=llm, policy=limited(**limit)), who=None)
        assert (trace.status, llm.asked) == (RunStatus.FAILED, 0)
        unpriced = "max_cost_usd" in limit and price is None
        detail = "NO_PRICE" if unpriced else "UNASSIGNED_REFERENCE"
        assert decided(trace) == [("deny", "CONDITION", detail, [])]

    play(main())


def test_what_was_reserved_and_not_asked_for_is_given_back(opener: Opener) -> None:
    llm = Priced(cost(0.01))
    poor = {**ASK, "max_cost_usd": 0.05}  # less than the call may take

    async def main() -> None:
        vm = opener(llm=llm, policy=limited(max_cost_usd=0.1))
        assert (await ran(vm, poor)).status is RunStatus.BUDGET_EXCEEDED
        assert (await ran(vm)).status is RunStatus.SUCCESS

    play(main())


TOGETHER = program(
    {
        "id": "g",
        "type": "parallel",
        "parallel_steps": [
            {"id": "a", "type": "llm", "prompt": "a", "params": {"max_tokens": 990}},
            {"id": "b", "type": "llm", "prompt": "b" * 100},
        ],
    },
    max_tokens=1_000,
)


@pytest.mark.parametrize("policy", [None, limited(max_tokens=10**6), limited(max_calls=10**6)])
def test_a_call_that_waits_for_its_budget_may_take_what_is_left_then(opener: Opener, policy: Any) -> None:
    asked: list[int] = []

    class Slow(Priced):
        async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
            asked.append(params["max_tokens"])
            return await super().complete(messages, **params)

    async def main() -> None:
        trace = await ran(opener(llm=Slow(cost(None, 50)), policy=policy), TOGETHER)
        assert (trace.status, asked) == (RunStatus.SUCCESS, [990, 1_000 - 50 - 26])

    play(main())


class Hanging(Priced):
    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
        self.asked += 1
        return await asyncio.get_running_loop().create_future()


def test_a_call_that_waits_for_its_budget_when_its_run_ends_has_taken_nothing(opener: Opener) -> None:
    llm = Hanging()

    async def main() -> None:
        vm = opener(llm=llm, policy=limited(max_tokens=10**6))
        running = asyncio.create_task(vm.run(TOGETHER, principal=ANA, trace_id="r"))
        while not llm.asked:
            await asyncio.sleep(0)
        await vm.cancel("r")
        sound(vm, await running)
        # What the first may have taken is all.
        assert decided(await ran(opener(llm=Priced(cost(None, 1)), policy=limited(max_tokens=10**6))))[0][
            3
        ] == [991, 102]

    play(main())


def test_a_call_that_is_stopped_before_it_began_has_taken_nothing(tmp_path: Path) -> None:
    llm = Hanging()

    async def stopped_after(turns: int, vm: ExecutionVM) -> bool:
        """Whether the run was cancelled between its call's intent and the call."""
        llm.asked, run_id = 0, f"r{turns}"
        running = asyncio.create_task(vm.run(ASK, principal=ANA, trace_id=run_id))
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            trace = await vm.cancel(run_id)
        except NotFoundError:  # it has not begun
            trace = None
        running.cancel()
        await asyncio.wait([running])
        if trace is None or llm.asked or not decided(trace):
            return False
        sound(vm, trace)
        (count,) = (e.counts[0] for e in trace.events if type(e) is PolicyDecided)
        assert (count[1:], vm.store.counted([count[0]], "")) == ([0, 102], [0])
        return True

    async def main() -> None:
        with SqliteStore(tmp_path / "runs.db") as store:
            vm = ExecutionVM(llm, store=store, policy=limited(max_tokens=10**6, per=["run"]))
            found = [await stopped_after(turns, vm) for turns in range(20)]
            assert any(found)

    play(main())


def test_a_prompt_that_no_model_may_see_takes_nothing(opener: Opener) -> None:
    secret = {"type": "string", "label": "secret"}
    flow = program(
        {"id": "m", "type": "llm", "prompt": "tell $s"},
        inputs={"type": "object", "properties": {"s": secret}, "required": ["s"]},
    )

    async def main() -> None:
        vm = opener(llm=Priced(cost(None, 1)), policy=limited(max_tokens=10**6), vault=Vault.in_memory())
        vm.proves = False  # as where nobody could see it before
        trace = await vm.run(flow, {"s": "x"}, principal=ANA)
        sound(vm, trace)
        assert trace.error["type"] == "SECRET_IN_PROMPT"
        assert decided(await ran(vm))[0][3] == [0, 102]

    play(main())


def test_a_call_of_a_tool_that_refuses_its_arguments_is_not_counted(opener: Opener) -> None:
    done: list[int] = []

    def act(amount: int) -> int:
        done.append(amount)
        return amount

    step = tool_step("a", args={"amount": "$x"}, on_error="skip")
    flows = [
        program(step),  # the first step of a run, a later one, and one of many
        program(tool_step("z", "end"), step),
        program({"id": "m", "type": "map", "over": ["$x", 3], "step": tool_step("a", args={"amount": "$item"})}),
    ]  # fmt: skip
    rule = {"id": "sum", "tools": ["act"], "limits": [{"max_sum": 100, "of": "$args.amount", "per": ["day"]}]}
    counting = {"id": "calls", "tools": ["act"], "limits": [{"max_calls": 100, "per": ["day"]}]}
    policy = {"policy": "p", "tools": ["end"], "rules": [rule, counting]}

    async def main() -> None:
        vm = opener(tools={"act": act, "end": lambda: None}, policy=policy)
        for flow in flows:
            trace = await vm.run(flow, {"x": 0.5}, principal=ANA)
            sound(vm, trace)
        trace = await vm.run(flows[0], {"x": 7}, principal=ANA)
        sound(vm, trace)
        (said,) = [e.counts for e in trace.events if type(e) is PolicyDecided]
        assert (done, [count[1:] for count in said]) == ([3, 7], [[3_000_000, 7_000_000], [1, 1]])

    play(main())


PAYING = {"policy": "p", "rules": [
    {"id": "sum", "tools": ["act"], "limits": [{"max_sum": 10**9, "of": "$args.amount", "per": ["day"]}]},
]}  # fmt: skip


@pytest.mark.parametrize("private", [True, False])
def test_private_amounts_are_not_added_up_in_clear(tmp_path: Path, private: bool) -> None:
    amount: dict[str, Any] = {"type": "integer", **({"private": True} if private else {})}
    flow = program(
        tool_step(
            "a",
            args={"amount": "$n", "to": "$who"},
            compensate={"tool": "act", "args": {"amount": "$n", "to": ""}},
        ),
        tool_step("b", "end", is_terminal=True, final_status="FAILED"),
        inputs={"type": "object", "properties": {"n": amount, "who": {"type": "string", "private": True}}},
        subject="$who",
    )
    done: list[int] = []

    @tool(effect="keyed", blocking=False)
    def act(amount: int, to: str) -> None:
        done.append(amount)

    async def main() -> None:
        store = SqliteStore(tmp_path / "runs.db")
        vm = partial(ExecutionVM, store=store, vault=Vault.in_memory())(
            tools={"act": act, "end": lambda: None}, policy={**PAYING, "tools": ["end"]}
        )
        if private:
            with refused("INVALID_PROGRAM"):  # the action, and what undoes it
                await vm.run(flow, {"n": 7_777_123, "who": "s-1"}, principal=ANA)
        vm.proves = False  # as where the policy came later
        trace = await vm.run(flow, {"n": 7_777_123, "who": "s-1"}, principal=ANA)
        details = [e.detail for e in trace.events if type(e) is PolicyDecided and e.detail]
        vm.verify(trace.trace_id)
        store.close()
        written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        if private:
            assert (details, done) == (["PRIVATE_AMOUNT"], [])
            assert b"7777123" not in written
            assert (7_777_123_000_000).to_bytes(6, "big") not in written
        else:
            assert (details, done) == ([], [7_777_123, 7_777_123])
            assert b"7777123000000" in written

    play(main())


def test_an_agents_private_conversation_hands_no_amount_to_a_limit(tmp_path: Path) -> None:
    """What a model proposes may hold whatever its conversation held."""
    call = Completion(tool_calls=(ToolCall("1", "act", '{"amount": 7777123}'),))
    flow = program(
        {"id": "m", "type": "agent", "prompt": "pay $n", "tools": ["act"]},
        inputs={"type": "object", "properties": {"n": {"type": "integer", "private": True}}},
    )

    async def main() -> None:
        store = SqliteStore(tmp_path / "runs.db")
        policy = {**PAYING, "models": ["default"]}
        vm = ExecutionVM(
            Priced(call, cost(0.01)),
            {"act": lambda amount: amount},
            store,
            vault=Vault.in_memory(),
            policy=policy,
        )
        trace = await vm.run(flow, {"n": 7_777_123}, principal=ANA)
        vm.verify(trace.trace_id)
        assert trace.status is RunStatus.SUCCESS
        store.close()
        assert b"7777123" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())

    play(main())


@pytest.mark.parametrize("change", ["DELETE FROM nvm_counts", "UPDATE nvm_counts SET amount = amount - 1"])
def test_what_was_counted_and_is_gone_is_found(tmp_path: Path, change: str) -> None:
    path = tmp_path / "runs.db"
    limit = {"limits": [{"max_sum": 50, "of": "$args.amount", "per": ["day"]}]}
    policy = {"policy": "p", "rules": [{"id": "m", "models": ["*"], "limits": [{"max_tokens": 9_000, "per": ["day"]}]},
                                       {"id": "sum", "tools": ["act"], **limit}]}  # fmt: skip
    flow = program(
        tool_step("a", args={"amount": 20}, compensate={"tool": "act", "args": {"amount": 2}}),
        {"id": "m", "type": "llm", "prompt": "?"},
        {"id": "e", "type": "map", "over": [1, 2], "step": tool_step("each", args={"amount": "$item"})},
        tool_step("end", args={"amount": 3}, is_terminal=True, final_status="FAILED"),
    )

    async def main() -> None:
        with SqliteStore(path) as store:
            vm = ExecutionVM(Priced(cost(None, 50)), {"act": lambda amount: amount}, store, policy=policy)
            run_id = (await ran(vm, flow)).trace_id
            assert dict(vm.verify(run_id).steps)["limits"].startswith("6 ")
        with contextlib.closing(sqlite3.connect(path)) as con:
            for (name,) in con.execute(
                "SELECT name FROM sqlite_master WHERE tbl_name = 'nvm_counts'"
            ).fetchall():
                con.execute(f"DROP TRIGGER IF EXISTS {name}") if name != "nvm_counts" else None
            con.execute(change)
            con.commit()
        with SqliteStore(path) as store, refused("COUNT_MISSING"):
            ExecutionVM(store=store).verify(run_id)

    play(main())


def test_others_may_count_while_a_run_is_verified(tmp_path: Path) -> None:
    limit = {"id": "sum", "tools": ["act"], "limits": [{"max_calls": 50, "per": ["day"]}]}

    class Busy(SqliteStore):
        """Somebody else counts between any two looks, for a while."""

        def counted(self, keys: Any, action: str) -> Any:
            found = super().counted(keys, action)
            if self.busy:
                self.busy -= 1
                self.count(f"other {self.busy}", [(key, 1, 10**9) for key in keys], 0)
            return found

        busy = 0

    async def main() -> None:
        with Busy(tmp_path / "runs.db") as store:
            vm = ExecutionVM(tools={"act": lambda: 1}, store=store, policy={"policy": "p", "rules": [limit]})
            trace = await vm.run(program(tool_step("a")), principal=ANA)
            store.busy = 7
            assert dict(vm.verify(trace.trace_id).steps)["limits"].startswith("1 ")
            assert store.busy == 0

    play(main())
