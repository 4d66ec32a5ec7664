"""Waiting: events, approvals, timers, PENDING, and who may end it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from runtime_stage import Counter, Opener, kinds, play, program, refused, sound, tool_step, wait_step

from nano_vm import PENDING, ExecutionVM, RunStatus, SqliteStore, tool
from nano_vm.errors import StoreError
from nano_vm.runtime import control
from nano_vm.runtime.control import leave_event
from nano_vm.runtime.system import SystemClock
from nano_vm.testing.clock import VirtualClock

ANA = {"id": "ana", "roles": ["manager"]}


async def parked(vm: ExecutionVM, flow: dict[str, Any], context: Any = None) -> str:
    trace = await vm.run(flow, context)
    assert trace.status is RunStatus.SUSPENDED, trace.error
    sound(vm, trace)
    return trace.trace_id


def test_the_same_event_again_is_answered_alike_and_another_is_refused(opener: Opener) -> None:
    count = Counter()
    flow = program(wait_step("w", output_key="x"), tool_step("a", args={"effect": "$x.n"}))

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: count(effect)})
        run_id = await parked(vm, flow)
        first = await vm.resume(run_id, {"n": 1}, event_id="e1", name="go")
        again = await opener(tools=vm.tools).resume(run_id, {"n": 1}, event_id="e1", name="go")
        assert first.status is again.status is RunStatus.SUCCESS
        assert again.trace_hash == first.trace_hash
        with refused("EVENT_CONFLICT"):
            await vm.resume(run_id, {"n": 2}, event_id="e1", name="go")
        with refused("TERMINAL"):
            await vm.resume(run_id, {"n": 1}, event_id="e2", name="go")
        assert count.effects == [1]
        trace = vm.trace(run_id)
        assert kinds(trace)[-2:] == ["EventRefused", "EventRefused"]
        sound(vm, trace)

    play(main())


def test_a_refused_event_leaves_a_run_that_nobody_drives_as_it_stood(opener: Opener) -> None:
    count = Counter()
    flow = program(*[tool_step(name, args={"effect": name}) for name in "abc"], wait_step("w"))

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: count(effect)})
        run_id = (await vm.start(flow)).trace_id

        def stands() -> tuple[str, list[str]]:
            """But for who has had it in his hands."""
            done = [kind for kind in kinds(vm.trace(run_id)) if kind != "RunAdopted"]
            return vm.store.record(run_id).status, done

        for effects in ([], ["a"]):
            status, before = stands()
            for data in (1, 2):
                with refused("NOT_WAITING"):
                    await vm.resume(run_id, data, name="other")
            with refused("NOT_WAITING"):
                await vm.resolve(run_id, "a", "repeat")
            assert stands() == (status, [*before, "EventRefused", "EventRefused"])
            assert (count.effects, vm.live) == (effects, {})
            sound(vm, vm.trace(run_id))
            await vm.step(run_id)
        (trace,) = await vm.recover()
        assert (trace.status, count.effects) == ("SUSPENDED", ["a", "b", "c"])
        sound(vm, trace)

    play(main())


def test_a_store_that_fails_over_a_refusal_leaves_the_run_to_others(opener: Opener) -> None:
    vm = opener(tools={})

    async def main() -> None:
        run_id = await parked(vm, program(wait_step("w")))
        append = vm.store.append

        def failing(*args: Any) -> Any:
            raise StoreError("STORE_FULL", "the disk is full")

        vm.store.append = failing  # type: ignore[method-assign]
        with refused("STORE_FULL"):
            await vm.resume(run_id, 1, name="other")
        vm.store.append = append  # type: ignore[method-assign]
        assert vm.store.record(run_id).owner is None
        assert (await vm.resume(run_id, 1)).status is RunStatus.SUCCESS

    play(main())


def test_without_an_id_the_content_is_the_identity(opener: Opener) -> None:
    flow = program(wait_step("w"), wait_step("v", "more"))

    async def main() -> None:
        vm = opener(tools={})
        run_id = await parked(vm, flow)
        await vm.resume(run_id, {"n": 1}, step="w")
        trace = await vm.resume(run_id, {"n": 1}, step="w")  # a repetition
        assert trace.waiting[0].step == "v"
        with refused("NOT_WAITING"):
            await vm.resume(run_id, {"n": 2}, step="w")
        trace = await vm.resume(run_id, {"n": 1})
        assert trace.status is RunStatus.SUCCESS
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("apart", [False, True])
def test_exactly_one_of_many_concurrent_resumes_wins(opener: Opener, apart: bool) -> None:
    count = Counter()

    async def act(effect: int) -> int:
        await asyncio.sleep(0)
        count(effect)
        return effect

    flow = program(wait_step("w", output_key="x"), tool_step("a", args={"effect": "$x"}))

    async def main() -> None:
        vm = opener(tools={"act": act})
        others = [opener(tools={"act": act}) if apart else vm for _ in range(6)]
        run_id = await parked(vm, flow)
        attempts = (other.resume(run_id, n, event_id=f"e{n}") for n, other in enumerate(others))
        results = await asyncio.gather(*attempts, return_exceptions=True)
        won = [result for result in results if not isinstance(result, Exception)]
        assert len(won) == 1, results
        assert {getattr(r, "code", None) for r in results if isinstance(r, Exception)} <= {
            "NOT_WAITING",
            "TERMINAL",
        }
        assert len(count.effects) == 1
        trace = vm.trace(run_id)
        assert trace.status is RunStatus.SUCCESS
        assert kinds(trace).count("EventRefused") == 5
        sound(vm, trace)

    play(main())


def test_what_the_wait_does_not_accept_is_refused_and_kept(opener: Opener) -> None:
    flow = program(wait_step("w", accept="$event.amount >= 5"))

    async def main() -> None:
        vm = opener(tools={})
        run_id = await parked(vm, flow)
        for bad in ({"amount": 4}, {"amount": "5"}, "text", {}, None):
            with refused("NOT_ACCEPTED"):
                await vm.resume(run_id, bad)
        with refused("NOT_WAITING"):
            await vm.resume(run_id, {"amount": 9}, name="other")
        with refused("VALUE_NUMBER"):
            await vm.resume(run_id, float("inf"))
        with refused("EVENT_ID"):
            await vm.resume(run_id, 1, event_id="")
        with refused("EVENT_ID"):
            await vm.resume(run_id, 1, event_id="auto:1")
        with refused("RUN_NOT_FOUND"):
            await vm.resume("nowhere", 1)
        trace = await vm.resume(run_id, {"amount": 5})
        assert trace.status is RunStatus.SUCCESS
        assert kinds(trace).count("EventRefused") == 6
        sound(vm, trace)

    play(main())


def test_an_approval_needs_a_role_and_says_who_gave_it(opener: Opener) -> None:
    flow = program({"id": "ok", "type": "wait", "approvers": ["manager"], "output_key": "x"})

    async def main() -> None:
        vm = opener(tools={})
        run_id = await parked(vm, flow)
        with refused("NOT_APPROVER"):
            await vm.resume(run_id, {"approved": True})
        with refused("NOT_APPROVER"):
            await vm.resume(run_id, {"approved": True}, principal={"id": "bob", "roles": ["clerk"]})
        with refused("NOT_APPROVAL"):
            await vm.resume(run_id, "yes", principal=ANA)
        trace = await vm.resume(run_id, {"approved": True}, principal=ANA)
        assert trace.final_output == {"approved": True, "by": "ana"}
        sound(vm, trace)

    play(main())


def test_an_early_event_is_kept_if_the_program_declares_it(opener: Opener) -> None:
    flow = program(wait_step("first", "one"), wait_step("second", "two"))

    async def main() -> None:
        vm = opener(tools={})
        run_id = await parked(vm, flow)
        trace = await vm.resume(run_id, "early", name="two", event_id="e2")
        assert trace.waiting[0].step == "first"
        await vm.resume(run_id, "early", name="two", event_id="e2")
        trace = await vm.resume(run_id, 1, name="one")
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "early")
        sound(vm, trace)

    play(main())


def test_a_durable_timer_fires_in_another_process(opener: Opener, clock: VirtualClock) -> None:
    flow = program({"id": "w", "type": "wait", "seconds": "$n"}, tool_step("a"))

    async def main() -> None:
        run_id = await parked(opener(tools={"act": lambda: "late"}), flow, {"n": 3600})
        vm = opener(tools={"act": lambda: "late"})
        assert await vm.recover() == []
        clock.advance(3_599_999)
        assert await vm.recover() == []
        clock.advance(1)
        (trace,) = await vm.recover()
        assert (trace.trace_id, trace.status, trace.final_output) == (run_id, RunStatus.SUCCESS, "late")
        sound(vm, trace)

    play(main())


def test_a_wait_that_times_out_takes_its_fallback_or_fails(opener: Opener, clock: VirtualClock) -> None:
    patient = wait_step("w", timeout_seconds=60, on_timeout="fallback", fallback="nobody")
    strict = wait_step("w", timeout_seconds=60, on_failure="end")
    end = tool_step("end", args={}, is_terminal=True, outcome="timed_out")

    async def main() -> None:
        vm = opener(tools={"act": lambda: 1})
        first = await parked(vm, program(patient))
        second = await parked(vm, program(strict, end))
        clock.advance(60_000)
        traces = {trace.trace_id: trace for trace in await vm.recover()}
        assert traces[first].final_output == "nobody"
        assert traces[second].outcome == "timed_out"
        with refused("TERMINAL"):
            await vm.resume(first, 1)
        for trace in traces.values():
            sound(vm, vm.trace(trace.trace_id))

    play(main())


def test_a_group_that_waits_times_out_although_no_wait_of_its_own_is_timed(
    opener: Opener, clock: VirtualClock
) -> None:
    group = {
        "id": "g",
        "type": "parallel",
        "timeout_seconds": 60,
        "parallel_steps": [wait_step("w"), tool_step("a")],
    }

    async def main() -> None:
        vm = opener(tools={"act": lambda: 1})
        await parked(vm, program(group))
        clock.advance(60_000)
        (trace,) = await vm.recover()
        assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "TIMEOUT")
        sound(vm, trace)

    play(main())


def test_an_answer_that_is_to_come_in_a_group_that_has_timed_out_is_not_waited_for(
    opener: Opener, clock: VirtualClock
) -> None:
    group = {
        "id": "g",
        "type": "parallel",
        "timeout_seconds": 60,
        "on_error": "skip",
        "parallel_steps": [tool_step("x"), tool_step("y")],
    }
    check = {
        "id": "c",
        "type": "condition",
        "condition": "$g.output != null",
        "then": "x2",
        "otherwise": "y2",
    }
    flow = program(
        group, check, tool_step("x2", "end", is_terminal=True), tool_step("y2", "end", is_terminal=True)
    )

    async def late() -> Any:
        await clock.sleep_until(start + 61_000)
        return PENDING

    start = clock.now_ms()
    end = tool(name="end", effect="pure")(lambda: "ended")

    async def main() -> None:
        vm = opener(tools=[tool(name="act", effect="idempotent")(late), end])
        trace = await vm.run(flow)
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "ended")
        assert [step.id for step in trace.steps][-2:] == ["c", "y2"]
        sound(vm, trace)

    play(main())


def test_a_run_with_a_timer_and_nothing_else_is_given_up(opener: Opener, clock: VirtualClock) -> None:
    group = {
        "id": "g",
        "type": "parallel",
        "parallel_steps": [{"id": "w", "type": "wait", "seconds": 3600}, tool_step("a")],
    }

    async def main() -> None:
        vm = opener(tools={"act": lambda: 1}, clock=VirtualClock(clock.now_ms(), auto=False))
        trace = await vm.run(program(group))
        assert trace.status is RunStatus.SUSPENDED
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("value", [PENDING, "PENDING"])
def test_a_pending_tool_waits_for_its_answer(opener: Opener, value: Any) -> None:
    flow = program(tool_step("a", output_key="x"), tool_step("b", "echo", args={"value": "$x.paid"}))
    tools = {"act": lambda: value, "echo": lambda value: value}

    async def main() -> None:
        vm = opener(tools=tools)
        run_id = await parked(vm, flow)
        assert vm.trace(run_id).waiting[0].kind == "tool"
        trace = await opener(tools=tools).resume(run_id, {"paid": True}, step="a")
        assert trace.final_output is True
        sound(vm, trace)

    play(main())


def test_a_tool_may_opt_out_of_the_reserved_string(opener: Opener) -> None:
    @tool(may_suspend=False)
    def act() -> str:
        return "PENDING"

    assert play(opener(tools={"act": act}).run(program(tool_step("a")))).final_output == "PENDING"


def test_an_event_reaches_a_run_that_is_being_driven(opener: Opener) -> None:
    gate = asyncio.Event()

    async def act() -> str:
        await gate.wait()
        return "slow"

    group = {"id": "g", "type": "parallel", "parallel_steps": [wait_step("w"), tool_step("a")]}

    async def main() -> None:
        vm = opener(tools={"act": act})
        running = asyncio.ensure_future(vm.run(program(group), trace_id="r"))
        while "StepStarted" not in (kinds(vm.trace("r")) if vm.runs() else []):
            await asyncio.sleep(0)
        resumed = asyncio.ensure_future(vm.resume("r", "now"))
        while "EventReceived" not in kinds(vm.trace("r")):
            await asyncio.sleep(0)
        with refused("NOT_WAITING"):
            await vm.resume("r", "other", event_id="e")
        assert not running.done()
        gate.set()
        assert (await resumed).final_output == (await running).final_output == {"w": "now", "a": "slow"}
        sound(vm, vm.trace("r"))

    play(main())


def test_mail_reaches_a_run_that_another_machine_drives(opener: Opener) -> None:
    gate = asyncio.Event()

    async def act() -> str:
        await gate.wait()
        return "slow"

    group = {"id": "g", "type": "parallel", "parallel_steps": [wait_step("w"), tool_step("a")]}

    async def main() -> None:
        vm, other = opener(tools={"act": act}), opener(tools={"act": act})
        running = asyncio.ensure_future(vm.run(program(group), trace_id="r"))
        while "StepStarted" not in (kinds(vm.trace("r")) if vm.runs() else []):
            await asyncio.sleep(0)
        resumed = asyncio.ensure_future(other.resume("r", "now"))
        while "EventReceived" not in kinds(vm.trace("r")):
            await asyncio.sleep(0.001)
        with refused("NOT_WAITING"):
            await other.resume("r", "other", event_id="e")
        gate.set()
        assert (await running).final_output == {"w": "now", "a": "slow"}
        assert (await resumed).final_output == {"w": "now", "a": "slow"}
        sound(vm, vm.trace("r"))

    play(main())


async def _dead_owner(path: Path) -> str:
    """A run that is under way in a process which has died."""
    store = SqliteStore(path, durability="normal")
    trace = await ExecutionVM(tools={"f": lambda: 1}, store=store).start(
        {"name": "p", "steps": [{"id": "a", "type": "tool", "tool": "f"}]}
    )
    assert store.claim(trace.trace_id, SystemClock().now_ms()) is not None
    store.abandon()
    return trace.trace_id


def test_whoever_waits_for_another_worker_goes_on_in_its_place_when_it_dies(tmp_path: Path) -> None:
    async def main() -> None:
        run_id = await _dead_owner(tmp_path / "runs.db")
        with SqliteStore(tmp_path / "runs.db", durability="normal") as store:
            vm = ExecutionVM(tools={"f": lambda: 1}, store=store)
            await control.until_settled(vm, run_id)
            assert vm.trace(run_id).status == "SUCCESS"

    asyncio.run(main())


@pytest.mark.parametrize("where", ["own", "called"])
def test_the_same_answer_left_twice_is_taken_once_and_told_alike(opener: Opener, where: str) -> None:
    """Both lie there when the run is taken up: neither knew of the other."""
    flow = program(wait_step("w"), wait_step("v", "more"))
    vm = opener(tools={})
    vm.save_program(program(wait_step("w"), name="called"))
    if where == "called":
        flow = program({"id": "c", "type": "call", "program": "called"}, wait_step("v", "more"))
    way = "w" if where == "own" else "c/w"

    async def main() -> None:
        run_id = await parked(vm, flow)
        left = [await leave_event(vm, run_id, data, step=way) for data in ({"n": 1}, {"n": 1}, {"n": 2})]
        await opener(tools={}).recover()
        told = [json.loads(vm.store.answered(run_id, mail) or b"") for mail in left]
        assert [each.get("code") for each in told] == [None, "DUPLICATE", "NOT_WAITING"]
        trace = vm.trace(run_id)
        assert [wait.step for wait in trace.waiting] == ["v"]
        sound(vm, trace)

    play(main())


BAD: dict[str, tuple[str, Callable[[ExecutionVM, str], Awaitable[Any]]]] = {
    "item": ("EVENT_ITEM", lambda vm, run: vm.resume(run, 1, item=2**53)),
    "negative": ("EVENT_ITEM", lambda vm, run: vm.resume(run, 1, item=-1)),
    "step": ("EVENT_TEXT", lambda vm, run: vm.resume(run, 1, step=5)),  # type: ignore[arg-type]
    "name": ("EVENT_TEXT", lambda vm, run: vm.resume(run, 1, name=5)),  # type: ignore[arg-type]
    "id": ("EVENT_ID", lambda vm, run: vm.resume(run, 1, event_id=5)),  # type: ignore[arg-type]
    "lone step": ("VALUE_STRING", lambda vm, run: vm.resume(run, 1, step="\ud800")),
    "lone name": ("VALUE_STRING", lambda vm, run: vm.resume(run, 1, name="\ud800")),
    "lone id": ("VALUE_STRING", lambda vm, run: vm.resume(run, 1, event_id="\ud800")),
    "lone principal": ("VALUE_STRING", lambda vm, run: vm.resume(run, 1, principal="\ud800")),
    "approved step": ("EVENT_TEXT", lambda vm, run: vm.approve(run, step=5)),  # type: ignore[arg-type]
    "approved item": ("EVENT_ITEM", lambda vm, run: vm.approve(run, item=2**53)),
    "comment": ("EVENT_TEXT", lambda vm, run: vm.approve(run, comment=5)),  # type: ignore[arg-type]
    "action": ("EVENT_TEXT", lambda vm, run: vm.approve(run, action=5)),  # type: ignore[arg-type]
    "reason": ("EVENT_TEXT", lambda vm, run: vm.cancel(run, 5)),  # type: ignore[arg-type]
    "lone reason": ("VALUE_STRING", lambda vm, run: vm.cancel(run, "\ud800")),
    "resolved step": ("EVENT_TEXT", lambda vm, run: vm.resolve(run, 5, "failed")),  # type: ignore[arg-type]
    "resolved item": ("EVENT_ITEM", lambda vm, run: vm.resolve(run, "w", "failed", item=2**53)),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_journaled_leaves_a_run_as_it_stood(opener: Opener, what: str) -> None:
    """And free: nobody owns it afterwards who drives nothing."""
    code, send = BAD[what]

    async def main() -> None:
        vm = opener(tools={})
        run_id = await parked(vm, program(wait_step("w")))
        head = vm.trace(run_id).head
        with refused(code):
            await send(vm, run_id)
        assert vm.trace(run_id).head == head
        sound(vm, vm.trace(run_id))
        trace = await opener(tools={}).resume(run_id, 1)
        assert trace.status is RunStatus.SUCCESS

    play(main())
