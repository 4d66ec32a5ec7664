"""Whoever drives a run in a task may have that task cancelled, at any moment: the run is left for others, nothing is
called twice, and no run is stranded under an owner that does not drive it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from nano_vm import RunStatus
from nano_vm.journal.port import RunQuery
from unit.runtime.runtime_stage import ORDINARY, Opener, counted_tools, numbered, play, program, tool_step

FLOWS = {
    **ORDINARY,
    "a child": program(
        {"id": "c", "type": "call", "program": "kid", "inputs": {}},
        tool_step("end", "at_once", args={"x": 9}),
    ),
    "a list": program(
        {"id": "m", "type": "map", "over": [1, 2, 3], "step": tool_step("i", "later", args={"x": "$item"})},
        tool_step("end", "at_once", args={"x": 9}),
    ),
}


@pytest.mark.parametrize(
    ("named", "again"),
    [(True, 0), (False, 0), (True, 1), (False, 2)],
    ids=["named", "unnamed", "twice in a turn", "twice"],
)
@pytest.mark.parametrize("flow", FLOWS)
def test_a_driver_is_cancelled_at_any_turn_of_the_loop(
    opener: Opener, flow: str, named: bool, again: int
) -> None:
    """Once, or by two that do not know of each other: a time-out and a group of tasks, say."""

    async def main(turns: int) -> bool:
        calls: Counter[tuple[str, int]] = Counter()

        vm = opener(tools=counted_tools(calls))
        vm.save_program(program(*numbered("later", "at_once"), name="kid"))
        known = {record.run_id for record in vm.store.records(RunQuery(limit=1_000))}
        name = f"{flow} {named} {turns}" if named else None
        driving = asyncio.create_task(vm.run(FLOWS[flow], trace_id=name))
        for _ in range(turns):
            await asyncio.sleep(0)
        driving.cancel()
        if again:
            for _ in range(again - 1):
                await asyncio.sleep(0)
            driving.cancel()
        ended = await asyncio.gather(driving, return_exceptions=True)
        for _ in range(10):  # calls that nobody waits for any more come to their ends
            await asyncio.sleep(0)
        while await vm.recover():
            pass
        for record in vm.store.records(RunQuery(limit=1_000)):
            if record.run_id not in known:
                trace = vm.trace(record.run_id)
                vm.verify(record.run_id)
                # What was under way has no known outcome, and is waited for.
                assert trace.status is RunStatus.SUCCESS or (
                    trace.waiting and not isinstance(ended[0], Exception)
                )
        assert max(calls.values(), default=0) <= 1
        return not isinstance(ended[0], BaseException)

    turns = 0
    while not play(main(turns)):
        turns += 1
    assert turns > 1


def test_a_driver_is_cancelled_while_its_run_waits_for_its_turn(opener: Opener) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def wait() -> int:
            await gate.wait()
            return 1

        vm, other = opener(tools=[wait], max_concurrent_runs=1), opener(tools=[wait])
        first = asyncio.create_task(vm.run(program(tool_step("a", "wait")), trace_id="first"))
        while not (live := vm.live_here("first")) or not live.state.active:
            await asyncio.sleep(0)
        second = asyncio.create_task(vm.run(program(tool_step("b", "wait")), trace_id="second"))
        while vm.live_here("second") is None:
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert vm.store.record("second").owner is None
        gate.set()
        (trace,) = await other.recover()
        assert (trace.trace_id, trace.status) == ("second", RunStatus.SUCCESS)
        assert (await first).status is RunStatus.SUCCESS
        third = await vm.run(program(tool_step("c", "wait")))  # the turn was not lost
        assert third.status is RunStatus.SUCCESS

    play(main())


def test_whoever_waits_for_a_run_whose_driver_is_cancelled_before_its_turn_is_told(opener: Opener) -> None:
    """It has been handed a cancellation by then, and the engine that is shut down waits for it."""

    async def main() -> None:
        gate = asyncio.Event()

        async def wait() -> int:
            await gate.wait()
            return 1

        vm = opener(tools=[wait], max_concurrent_runs=1)
        first = asyncio.create_task(vm.run(program(tool_step("a", "wait")), trace_id="first"))
        while not (live := vm.live_here("first")) or not live.state.active:
            await asyncio.sleep(0)
        second = asyncio.create_task(vm.run(program(tool_step("b", "wait")), trace_id="second"))
        while (queued := vm.live_here("second")) is None:
            await asyncio.sleep(0)
        handed_in = asyncio.create_task(vm.cancel("second"))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await queued.wait_until_settled()
        gate.set()
        assert (await handed_in).status is RunStatus.CANCELLED
        assert (await first).status is RunStatus.SUCCESS

    play(main())
