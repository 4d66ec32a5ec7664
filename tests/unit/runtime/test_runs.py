"""Runs as a whole: idempotency keys, streams, steps, recovery, shutting down, cancelling."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from runtime_stage import Counter, Opener, kinds, play, program, refused, sound, tool_step, wait_step

from nano_vm import MockLLMAdapter, RunStatus, StoreError, tool
from nano_vm.kernel.events import CompensationFailed
from nano_vm.testing.clock import VirtualClock

# --- idempotency keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True])
def test_one_key_starts_one_run_however_many_ask_at_once(opener: Opener, apart: bool) -> None:
    count = Counter()

    async def act() -> str:
        count("act")
        await asyncio.sleep(0)
        return "once"

    async def main() -> None:
        one = opener(tools={"act": act})
        machines = [opener(tools={"act": act}) if apart else one for _ in range(5)]
        traces = await asyncio.gather(
            *(vm.run(program(tool_step("a")), idempotency_key="k") for vm in machines)
        )
        assert len({trace.trace_id for trace in traces}) == 1
        assert {trace.final_output for trace in traces} == {"once"}
        assert count.effects == ["act"]
        again = await opener(tools={"act": act}).run(program(tool_step("a")), idempotency_key="k")
        assert (again.trace_id, count.effects) == (traces[0].trace_id, ["act"])
        other = await one.run(program(tool_step("a")), idempotency_key="k", tenant="other")
        assert other.trace_id != again.trace_id

    play(main())


def test_a_failed_run_is_the_result_of_its_key(opener: Opener) -> None:
    count = Counter()

    def act() -> None:
        count("act")
        raise ValueError

    vm = opener(tools={"act": act})

    async def main() -> None:
        for _ in range(3):
            trace = await vm.run(program(tool_step("a")), idempotency_key="k")
            assert trace.status is RunStatus.FAILED
        assert count.effects == ["act"]

    play(main())


def test_the_same_key_with_another_context_is_a_conflict(opener: Opener) -> None:
    vm = opener(tools={"act": lambda n: n})
    flow = program(tool_step("a", args={"n": "$n"}))

    async def main() -> None:
        await vm.run(flow, {"n": 1}, idempotency_key="k")
        with refused("KEY_CONFLICT"):
            await vm.run(flow, {"n": 2}, idempotency_key="k")
        with refused("RUN_EXISTS"):
            await vm.run(flow, {"n": 2}, trace_id=vm.runs()[0].run_id)

    play(main())


def test_a_key_finds_its_suspended_run_and_finishes_a_dead_one(opener: Opener) -> None:
    died = []

    @tool(effect="idempotent")
    async def act() -> str:
        if not died:
            died.append(1)
            raise KeyboardInterrupt
        return "done"

    async def main() -> None:
        vm = opener(tools={"act": act})
        with pytest.raises(KeyboardInterrupt):
            await vm.run(program(tool_step("a"), wait_step("w")), idempotency_key="k", trace_id="r")
        trace = await opener(tools={"act": act}).run(
            program(tool_step("a"), wait_step("w")), idempotency_key="k"
        )
        assert (trace.trace_id, trace.status) == ("r", RunStatus.SUSPENDED)

    play(main())


# --- ways to run ----------------------------------------------------------------------------------------------


def test_run_sync_works_again_and_again_and_from_threads(opener: Opener) -> None:
    vm = opener(tools={"act": lambda n: n + 1})
    flow = program(tool_step("a", args={"n": "$n"}), tool_step("b", args={"n": "$a.output"}))
    assert [vm.run_sync(flow, {"n": n}).final_output for n in range(3)] == [2, 3, 4]
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(vm.run_sync(flow, {"n": 5}).final_output))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [7] * 4


def test_stream_tells_what_is_durable_in_order(opener: Opener) -> None:
    vm = opener(tools={"act": lambda: 1})

    async def main() -> None:
        heard = []
        async for progress in vm.stream(program(tool_step("a"), tool_step("b")), trace_id="r"):
            assert len(vm.store.read("r")) > progress.seq
            heard.append(progress.type)
        assert heard == kinds(vm.trace("r"))

    play(main())


def test_leaving_a_stream_does_not_stop_the_run_nor_does_a_broken_listener(opener: Opener) -> None:
    vm = opener(tools={"act": lambda: 1})

    def broken(progress: Any) -> None:
        raise ValueError

    async def main() -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, facts: told.append(facts))
        async for _ in vm.stream(program(tool_step("a"), tool_step("b")), trace_id="r"):
            break
        while vm.store.record("r").status != "SUCCESS":
            await asyncio.sleep(0.001)
        heard: list[str] = []
        vm.listeners[:] = [lambda run_id, progress: heard.append(progress.type)]
        trace = await vm.run(program(tool_step("a")), listener=broken)
        assert trace.status is RunStatus.SUCCESS
        assert len(told) == len(heard)
        assert heard == kinds(trace)  # who listens beside it is told all the same

    play(main())


def test_a_stream_that_nobody_reads_any_more_gathers_nothing(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[Any] = []

    class Watched(asyncio.Queue[Any]):
        def put_nowait(self, item: Any) -> None:
            gathered.append(item)
            super().put_nowait(item)

    async def main() -> None:
        left = asyncio.Event()
        vm = opener(tools={"act": left.wait})
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "Queue", Watched)
            events = vm.stream(program(tool_step("a"), tool_step("b")), trace_id="r")
            assert (await anext(events)).type == "RunStarted"
        await events.aclose()
        heard = len(gathered)
        left.set()
        await asyncio.gather(*vm.background)
        assert vm.trace("r").status is RunStatus.SUCCESS
        assert gathered[heard:] == [None]  # that it is over

    play(main())


def test_step_takes_one_step_at_a_time(opener: Opener) -> None:
    count = Counter()
    vm = opener(tools={"act": lambda effect: count(effect)})
    steps = [tool_step(name, args={"effect": name}) for name in "abc"]

    async def main() -> None:
        trace = await vm.start(program(*steps))
        for number in (1, 2, 3):
            assert trace.status is RunStatus.RUNNING
            trace = await vm.step(trace.trace_id)
            assert len(count.effects) == number
        assert trace.status is RunStatus.SUCCESS
        sound(vm, trace)
        assert (await vm.step(trace.trace_id)).status is RunStatus.SUCCESS

    play(main())


def test_no_more_runs_at_once_than_allowed(opener: Opener) -> None:
    under_way = most = 0

    async def act() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    vm = opener(tools={"act": act}, max_concurrent_runs=3)

    async def main() -> None:
        traces = await asyncio.gather(*(vm.run(program(tool_step("a"), tool_step("b"))) for _ in range(12)))
        assert {trace.status for trace in traces} == {RunStatus.SUCCESS}
        assert most == 3

    play(main())


@pytest.mark.parametrize("blocking", [False, True])
def test_what_a_tool_runs_does_not_wait_for_the_turn_of_its_own_run(opener: Opener, blocking: bool) -> None:
    inner = program(tool_step("i", "leaf"), name="inner")

    async def leaf() -> int:
        await asyncio.sleep(0)
        return 1

    async def nest() -> Any:
        return (await vm.run(inner)).final_output

    @tool(name="nest")
    def nest_in_a_thread() -> Any:
        return vm.run_sync(inner).final_output

    vm = opener(tools=[leaf, nest_in_a_thread if blocking else nest], max_concurrent_runs=1)
    group = {
        "id": "g",
        "type": "parallel",
        "parallel_steps": [tool_step("b", "nest"), tool_step("c", "nest")],
    }

    async def main() -> None:
        outer = program(tool_step("a", "nest"), group)
        traces = await asyncio.gather(*(vm.run(outer) for _ in range(3)))
        assert [trace.final_output for trace in traces] == [{"b": 1, "c": 1}] * 3

    play(main())


# --- shutting down and recovering ----------------------------------------------------------------------------


def test_closing_waits_for_calls_and_loses_nothing(opener: Opener) -> None:
    count = Counter()
    gate = asyncio.Event()

    async def act(effect: str) -> str:
        count(effect)
        await gate.wait()
        return effect

    steps = [tool_step(name, args={"effect": name}) for name in "ab"]

    async def main() -> None:
        vm, other = opener(tools={"act": act}), opener(tools={"act": act})
        keep = vm.store.close
        vm.store.close = lambda: None  # type: ignore[method-assign] # in memory both machines have the same store
        running = asyncio.ensure_future(vm.run(program(*steps), trace_id="r"))
        while not count.effects:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(vm.close())
        await asyncio.sleep(0)
        gate.set()
        await closing
        assert (await running).status is RunStatus.RUNNING
        assert vm.store.record("r").owner is None
        with refused("SHUTTING_DOWN"):
            await vm.run(program(*steps))
        (trace,) = await other.recover()
        assert trace.status is RunStatus.SUCCESS
        assert count.effects == ["a", "b"]
        sound(other, trace)
        vm.store.close = keep  # type: ignore[method-assign]

    play(main())


def test_closing_in_a_back_off_does_not_wait_for_it(opener: Opener, clock: VirtualClock) -> None:
    quiet = VirtualClock(clock.now_ms(), auto=False)

    def act() -> None:
        raise ValueError

    async def main() -> None:
        vm = opener(tools={"act": act}, clock=quiet)
        running = asyncio.ensure_future(vm.run(program(tool_step("a", on_error="retry")), trace_id="r"))
        while not quiet.slept:
            await asyncio.sleep(0)
        await vm.close()
        trace = await running
        assert trace.status is RunStatus.RUNNING

    play(main())


def test_a_store_that_fails_leaves_no_run_owned(opener: Opener) -> None:
    vm = opener(tools={"act": lambda: 1})
    append = vm.store.append

    def failing(*args: Any) -> Any:
        raise StoreError("STORE_FULL", "the disk is full")

    async def main() -> None:
        trace = await vm.start(program(tool_step("a"), tool_step("b")))
        vm.store.append = failing  # type: ignore[method-assign]
        with refused("STORE_FULL"):
            await vm.recover()
        vm.store.append = append  # type: ignore[method-assign]
        assert vm.live == {}
        assert vm.store.record(trace.trace_id).owner is None
        (trace,) = await vm.recover()
        assert trace.status is RunStatus.SUCCESS
        sound(vm, trace)

    play(main())


def test_a_run_that_cannot_be_recovered_keeps_no_other_from_it(opener: Opener) -> None:
    vm = opener(tools={"act": lambda: 1})

    async def main() -> None:
        bad = await vm.start(program(tool_step("a"), name="bad"))
        good = await vm.start(program(tool_step("a"), name="good"))
        load = vm.load_program

        def refuse(program_hash: str) -> Any:
            if program_hash == bad.program_hash:
                raise StoreError("STORE_DAMAGED", "the program cannot be read")
            return load(program_hash)

        vm.load_program = refuse  # type: ignore[method-assign]
        told: list[Any] = []
        traces = await vm.recover(on_error=lambda run_id, error: told.append((run_id, error.code)))
        assert [trace.trace_id for trace in traces] == [good.trace_id]
        assert told == [(bad.trace_id, "STORE_DAMAGED")]
        with refused("STORE_DAMAGED"):
            await vm.recover()

    play(main())


def test_two_machines_recovering_at_once_share_the_work(opener: Opener) -> None:
    count = Counter()

    async def act(n: int) -> None:
        await asyncio.sleep(0)
        count(n)

    async def main() -> None:
        one, two = opener(tools={"act": act}), opener(tools={"act": act})
        for n in range(20):
            await one.start(program(tool_step("a", args={"n": "$n"})), {"n": n})
        both = await asyncio.gather(one.recover(), two.recover())
        assert sum(len(traces) for traces in both) >= 20
        assert sorted(count.effects) == list(range(20))

    play(main())


# --- cancelling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["started", "waiting", "back-off", "unknown", "group"])
def test_a_run_can_be_cancelled_in_every_state(opener: Opener, clock: VirtualClock, state: str) -> None:
    quiet = VirtualClock(clock.now_ms(), auto=False)

    def act() -> None:
        raise ConnectionError if state == "unknown" else ValueError

    step: dict[str, Any] = tool_step("a", on_error="retry")
    if state == "waiting":
        step = wait_step("a")
    elif state == "group":
        step = {"id": "a", "type": "parallel", "parallel_steps": [wait_step("x"), wait_step("y", "more")]}
    vm = opener(tools={"act": act, "undo": lambda: None, "ok": lambda: 1}, clock=quiet)
    flow = program(tool_step("first", "ok", compensate={"tool": "undo", "args": {}}), step)

    async def main() -> None:
        if state == "started":
            run_id = (await vm.start(flow)).trace_id
        elif state == "back-off":
            running = asyncio.ensure_future(vm.run(flow, trace_id="r"))
            run_id = "r"
            while not quiet.slept:
                await asyncio.sleep(0)
        else:
            run_id = (await vm.run(flow)).trace_id
        trace = await vm.cancel(run_id, "enough", principal="ana")
        if state == "unknown":
            assert (
                trace.status is RunStatus.SUSPENDED
            )  # an effect that nobody knows of is named, not forgotten
            trace = await vm.resolve(run_id, "a", "failed")
        if state == "back-off":
            assert (await running).status is RunStatus.CANCELLED
        assert trace.status is RunStatus.CANCELLED
        assert trace.rollbacks == (state != "started")
        sound(vm, trace)
        with refused("TERMINAL"):
            await vm.cancel(run_id)

    play(main())


# --- compensation -----------------------------------------------------------------------------------------------


def test_a_saga_is_undone_in_reverse_order(opener: Opener) -> None:
    count = Counter()
    keys: list[str] = []

    def undo(name: str) -> None:
        count(name)
        keys.append(name)

    steps = [
        tool_step(name, args={"name": name}, compensate={"tool": "undo", "args": {"name": f"${name}.output"}})
        for name in "abc"
    ]
    vm = opener(tools={"act": lambda name: name.upper(), "undo": undo, "bad": lambda: 1 / 0})
    trace = play(vm.run(program(*steps, tool_step("d", "bad"))))
    assert (trace.status, count.effects, trace.rollbacks) == (RunStatus.FAILED, ["C", "B", "A"], 3)
    sound(vm, trace)


def test_a_compensation_whose_arguments_its_tool_does_not_take_is_named_and_not_made(opener: Opener) -> None:
    undone: list[Any] = []

    def undo(number: int) -> None:
        undone.append(number)

    steps = [
        tool_step(f"s{at}", args={"x": x}, compensate={"tool": "undo", "args": {"number": f"$s{at}.output"}})
        for at, x in enumerate([1, "two", 3])
    ]
    vm = opener(tools={"act": lambda x: x, "undo": undo, "bad": lambda: 1 / 0})
    trace = play(vm.run(program(*steps, tool_step("d", "bad"))))
    assert (undone, trace.incomplete_compensations) == ([3, 1], ["s1"])
    failed = [event for event in trace.events if type(event) is CompensationFailed]
    assert [(event.step, event.error, event.retryable) for event in failed] == [("s1", "BAD_ARGUMENT", False)]
    sound(vm, trace)


def test_a_compensation_that_fails_is_retried_then_named_and_the_others_go_on(opener: Opener) -> None:
    count = Counter()

    def undo(name: str) -> None:
        count(name)
        if name == "B":
            raise ValueError

    steps = [
        tool_step(name, args={"name": name}, compensate={"tool": "undo", "args": {"name": f"${name}.output"}})
        for name in "abc"
    ]
    vm = opener(tools={"act": lambda name: name.upper(), "undo": undo, "bad": lambda: 1 / 0})
    trace = play(vm.run(program(*steps, tool_step("d", "bad"))))
    assert count.effects == ["C", "B", "B", "B", "A"]
    assert trace.incomplete_compensations == ["b"]
    assert trace.status is RunStatus.FAILED
    sound(vm, trace)


def test_an_unknown_compensation_waits_for_somebody(opener: Opener) -> None:
    def undo() -> None:
        raise ConnectionError

    vm = opener(tools={"act": lambda: 1, "undo": undo, "bad": lambda: 1 / 0})
    flow = program(tool_step("a", compensate={"tool": "undo", "args": {}}), tool_step("b", "bad"))

    async def main() -> None:
        trace = await vm.run(flow)
        assert (trace.status, trace.waiting[0].kind, trace.waiting[0].step) == (
            RunStatus.SUSPENDED,
            "outcome",
            "a",
        )
        trace = await vm.resolve(trace.trace_id, "a", "succeeded")
        assert (trace.status, trace.rollbacks) == (RunStatus.FAILED, 1)
        sound(vm, trace)

    play(main())


# --- budgets ------------------------------------------------------------------------------------------------------


class Priced(MockLLMAdapter):
    def price(self, model: str | None) -> tuple[int, int]:
        return 1_000, 1_000


def test_budgets_are_reserved_before_the_call(opener: Opener) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "cost_usd": 0.00003}
    ask = [{"id": f"m{n}", "type": "llm", "prompt": "hello", "params": {"max_tokens": 20}} for n in range(9)]
    llm = Priced("x", usage=usage)
    trace = play(opener(llm=llm).run(program(*ask, max_tokens=100)))
    assert (trace.status, trace.error["message"]) == (RunStatus.BUDGET_EXCEEDED, "tokens")
    assert trace.total_tokens() <= 100
    assert llm.call_count == 3
    llm.reset()
    trace = play(opener(llm=llm).run(program(*ask, max_cost_usd=0.0001)))
    assert (trace.status, trace.error["message"]) == (RunStatus.BUDGET_EXCEEDED, "cost_nanousd")
    assert llm.call_count == 3
    assert trace.total_cost_usd() <= 0.0001


def test_parallel_calls_cannot_overdraw_together(opener: Opener) -> None:
    lanes = [
        {"id": f"m{n}", "type": "llm", "prompt": "hello", "params": {"max_tokens": 40}} for n in range(5)
    ]
    llm = MockLLMAdapter("x", usage={"prompt_tokens": 2, "completion_tokens": 40})
    vm = opener(llm=llm)
    trace = play(vm.run(program({"id": "g", "type": "parallel", "parallel_steps": lanes}, max_tokens=100)))
    assert trace.status is RunStatus.BUDGET_EXCEEDED
    assert llm.call_count <= 2  # an answer that is of no use any more is not asked for
    assert trace.total_tokens() <= 100
    sound(vm, trace)


def test_suspended_time_is_not_duration_and_budgets_survive_it(opener: Opener, clock: VirtualClock) -> None:
    async def act() -> None:
        clock.advance(4_000)

    flow = program(tool_step("a"), wait_step("w"), tool_step("b"), tool_step("c"), max_duration_seconds=7)

    async def main() -> None:
        trace = await opener(tools={"act": act}).run(flow)
        clock.advance(1_000_000)
        trace = await opener(tools={"act": act}).resume(trace.trace_id, 1)
        assert (trace.status, trace.error["message"]) == (RunStatus.BUDGET_EXCEEDED, "duration_ms")
        assert trace.path == ["a", "w", "b"]

    play(main())


def test_a_run_that_changes_nothing_is_stalled(opener: Opener) -> None:
    steps = [
        tool_step("a", output_key="x"),
        {"id": "c", "type": "condition", "condition": "$x == 2", "then": "end", "otherwise": "a"},
        tool_step("end", is_terminal=True),
    ]
    vm = opener(tools={"act": lambda: 1})
    trace = play(vm.run(program(*steps, max_stalled_steps=4, max_steps=500)))
    assert trace.status is RunStatus.STALLED
    assert trace.step("a").occurrence <= 6
    sound(vm, trace)


def test_fewer_runs_than_none_cannot_be_in_progress(opener: Opener) -> None:
    with refused("USAGE"):
        opener(max_concurrent_runs=-1)


def test_each_event_loop_has_its_own_turns(opener: Opener) -> None:
    """Runs in another loop do not make this one forget how many it has in progress."""
    seen: list[int] = []

    async def main() -> None:
        busy = 0

        async def act() -> None:
            nonlocal busy
            busy += 1
            seen.append(busy)
            for _ in range(5):
                await asyncio.sleep(0)
            busy -= 1

        vm = opener(tools={"act": act, "leaf": lambda: 1}, max_concurrent_runs=1)
        first = asyncio.create_task(vm.run(program(tool_step("a"))))
        while not seen:
            await asyncio.sleep(0)
        leaf = program(tool_step("l", "leaf"), name="leaf")
        elsewhere = threading.Thread(target=vm.run_sync, args=[leaf])
        elsewhere.start()
        elsewhere.join()
        await asyncio.gather(first, *(vm.run(program(tool_step("a"))) for _ in range(3)))

    play(main())
    assert seen == [1] * 4
