"""An engine may be shut down at any moment: what it was driving is left where another one goes on with it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, NanoVMError, RunStatus, SqliteStore
from nano_vm.journal.port import RunQuery
from nano_vm.testing.clock import VirtualClock
from unit.runtime.runtime_stage import (
    ORDINARY,
    Opener,
    counted_tools,
    play,
    program,
    refused,
    tool_step,
    wait_step,
)


def _call(step_id: str, name: str, x: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "call", "program": name, "inputs": {"x": x}}


_TAKES = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
INNER = program(
    tool_step("a", "later", args={"x": "$x"}),
    {"id": "w", "type": "wait", "seconds": 1},
    tool_step("b", "at_once", args={"x": "$x"}),
    name="inner",
    inputs=_TAKES,
)
MIDDLE = program(
    _call("c", "inner", "$x"), tool_step("d", "later", args={"x": 7}), name="middle", inputs=_TAKES
)

FLOWS = {
    **ORDINARY,
    "a child": program(_call("c", "inner", 20), tool_step("end", "later", args={"x": 9})),
    "a child's child": program(_call("c", "middle", 30), tool_step("end", "at_once", args={"x": 9})),
    "children at once": program(
        {"id": "m", "type": "map", "over": [40, 41], "step": _call("c", "inner", "$item")},
        tool_step("end", "at_once", args={"x": 9}),
    ),
    "a child beside a tool": program(
        {**_call("c", "inner", 50), "depends_on": []},
        {**tool_step("t", "later", args={"x": 8}), "depends_on": []},
        {**tool_step("end", "at_once", args={"x": 9}), "depends_on": ["c", "t"]},
    ),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_at_any_turn_of_the_loop(opener: Opener, clock: VirtualClock, flow: str) -> None:
    async def main(turns: int) -> bool:
        calls: Counter[tuple[str, int]] = Counter()

        def engine() -> ExecutionVM:
            vm = opener(tools=counted_tools(calls))
            vm.save_program(INNER)
            vm.save_program(MIDDLE)
            return vm

        vm = engine()
        name = f"{flow} {turns}"
        driving = asyncio.create_task(vm.run(FLOWS[flow], trace_id=name))
        for _ in range(turns):
            await asyncio.sleep(0)
        over = driving.done()  # to its end, or to a timer: nothing happens in the turns that follow
        await vm.drain()
        (left,) = await asyncio.gather(driving, return_exceptions=True)
        if isinstance(left, NanoVMError):
            assert left.code == "SHUTTING_DOWN"  # it had not begun
            return False
        other = engine()
        while (trace := other.trace(name)).status is not RunStatus.SUCCESS:
            assert trace.status is RunStatus.RUNNING or _due(trace.waiting), trace.waiting
            clock.advance(2_000)
            await other.recover()
        for record in other.store.records(RunQuery(limit=4)):  # the newest; there are no more of this one
            if record.run_id.startswith(name):
                assert record.owner is None
                other.verify(record.run_id)
        for store in (vm.store, other.store):
            if not getattr(store, "volatile", False):
                store.close()
        assert set(calls.values()) == {1}
        return over

    turns = 0
    while not play(main(turns)):
        turns += 1
    assert turns > 1


ASKS: dict[str, Any] = {
    "resume": lambda vm: vm.resume("r", {"x": 1}),
    "cancel": lambda vm: vm.cancel("r"),
    "resolve": lambda vm: vm.resolve("r", "w", "succeeded"),
    "step": lambda vm: vm.step("r"),
    "take_up": lambda vm: vm.take_up("r"),
    "fork": lambda vm: vm.fork("r", "w"),
    "run": lambda vm: vm.run(WAITS),
    "start": lambda vm: vm.start(WAITS),
}
WAITS = program(wait_step("w"), tool_step("a", "later"))


@pytest.mark.parametrize("ask", ASKS)
def test_who_asks_an_engine_that_has_been_shut_down_is_refused(opener: Opener, ask: str) -> None:
    async def main() -> None:
        async def later() -> int:
            return 1

        vm = opener(tools=[later])
        await vm.run(WAITS, trace_id="r")
        await vm.drain()
        entries = vm.read("r")
        with refused("SHUTTING_DOWN"):
            await ASKS[ask](vm)
        assert await vm.recover() == []
        assert vm.read("r") == entries
        assert [record.run_id for record in vm.runs()] == ["r"]
        assert vm.verify("r").state.status is RunStatus.SUSPENDED

    play(main())


@pytest.mark.parametrize("ask", ["resume", "cancel"])
def test_what_is_asked_in_the_meantime_happens_or_is_refused(opener: Opener, ask: str) -> None:
    async def asked(vm: ExecutionVM, name: str) -> Any:
        return await (vm.resume(name, {"x": 1}) if ask == "resume" else vm.cancel(name))

    async def main(turns: int) -> bool:
        calls: list[str] = []

        async def later() -> int:
            calls.append("later")
            await asyncio.sleep(0)
            return 1

        vm, other = opener(tools=[later]), opener(tools=[later])
        name = f"r{turns}"
        await vm.run(WAITS, trace_id=name)
        asking = asyncio.create_task(asked(vm, name))
        for _ in range(turns):
            await asyncio.sleep(0)
        over = asking.done()
        await vm.drain()
        (told,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(told, NanoVMError):
            assert told.code == "SHUTTING_DOWN"
            assert other.trace(name).waiting[0].kind == "event"
            await asked(other, name)
        await other.recover()
        trace = other.trace(name)
        other.verify(name)
        assert trace.status is (RunStatus.SUCCESS if ask == "resume" else RunStatus.CANCELLED)
        assert len(calls) == (ask == "resume")
        return over

    turns = 0
    while not play(main(turns)):
        turns += 1
    assert turns > 0


@pytest.mark.parametrize(
    "ask", ["run", "again", "resume", "cancel", "resolve", "approve", "fork", "take_up", "recover"]
)
def test_a_call_in_flight_when_the_engine_is_closed_is_told_so(tmp_path: Path, ask: str) -> None:
    """Its store was closed under it, and it said so: as if whoever had asked had closed a store too early."""

    async def main(turns: int) -> bool:
        may_go = asyncio.Event()

        async def later() -> int:
            await may_go.wait()
            return 1

        def engine() -> ExecutionVM:
            return ExecutionVM(
                tools=[later], store=SqliteStore(tmp_path / f"{turns}.db", durability="normal")
            )

        vm, other = engine(), engine()
        slow = program(tool_step("a", "later"))
        await vm.run(WAITS, trace_id="w")
        await vm.start(slow, trace_id="new")
        driven = asyncio.create_task(other.run(slow, trace_id="r", idempotency_key="k"))  # by another process
        while not other.live:
            await asyncio.sleep(0)
        asking: Any = asyncio.create_task(
            {
                "run": lambda: vm.run(slow, trace_id="mine"),
                "again": lambda: vm.run(slow, idempotency_key="k"),
                "resume": lambda: vm.resume("w", {"x": 1}),
                "cancel": lambda: vm.cancel("r"),
                "resolve": lambda: vm.resolve("r", "a", "succeeded"),
                "approve": lambda: vm.approve("r", step="a"),
                "fork": lambda: vm.fork("w", "w"),
                "take_up": lambda: vm.take_up("new"),
                "recover": lambda: vm.recover(),
            }[ask]()
        )
        for _ in range(turns):
            await asyncio.sleep(0.001)
        over = asking.done()
        await vm.close(0.01)
        may_go.set()
        (told,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(told, BaseException):
            assert isinstance(told, NanoVMError)
            assert told.code in ("SHUTTING_DOWN", "NOT_WAITING"), told
        await driven
        await other.close()
        return over

    for turns in range(0, 30, 3):
        if play(main(turns)):
            break


def _due(waits: Any) -> bool:
    """Whether there is a timer in everything that is waited for, at any depth."""
    found = [wait.to_dict() if hasattr(wait, "to_dict") else wait for wait in waits]
    return bool(found) and all(wait.get("due_ms") or _due(wait.get("waits", ())) for wait in found)
