"""Steps without effects ask for no commit. One that takes its time keeps nothing that was finished from being durable,
nor a new run from being seen."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, RunStatus, SqliteStore, tool
from nano_vm.journal.port import RunQuery
from nano_vm.runtime import keeper
from unit.runtime.runtime_stage import play, program, tool_step

TURNS_MAX = 20_000


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 0)  # it looks whenever the loop turns


async def seen(store: SqliteStore, entries: int) -> None:
    """Until another one's view of the only run has so many entries."""
    for _ in range(TURNS_MAX):
        records = store.records(RunQuery(limit=2))
        if records and len(store.read(records[0].run_id)) >= entries:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{entries} entries never came")


@pytest.mark.parametrize("lane", [True, False], ids=["along the lane", "the general way"])
@pytest.mark.parametrize("blocking", [False, True], ids=["awaited", "in a thread"])
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_what_is_finished_is_durable_while_a_step_takes_its_time(
    tmp_path: Path, durability: str, blocking: bool, lane: bool
) -> None:
    async def main() -> None:
        gates = [threading.Event() for _ in range(3)]
        calls: list[int] = []

        def wait(x: int) -> int:
            calls.append(x)
            assert gates[x].wait(30)
            return x

        async def hold(x: int) -> int:
            calls.append(x)
            while not gates[x].is_set():
                await asyncio.sleep(0)
            return x

        slow = tool(name="slow", effect="pure")(wait if blocking else hold)
        flow = program(*[tool_step(f"s{at}", "slow", args={"x": at}) for at in range(3)])
        with SqliteStore(tmp_path / "runs.db") as reader:
            store = SqliteStore(tmp_path / "runs.db", durability=durability)
            async with ExecutionVM(tools=[slow], store=store) as vm:
                vm.lane = lane
                running = asyncio.create_task(vm.run(flow))
                try:
                    for at, gate in enumerate(gates):
                        await seen(reader, at + 1)  # the start of the run, then one more with each step
                        gate.set()
                    trace = await running
                finally:
                    for gate in gates:
                        gate.set()
                assert (trace.status, calls) == (RunStatus.SUCCESS, [0, 1, 2])
                vm.verify(trace.trace_id)

    play(main())


def test_what_was_written_so_is_not_done_again_after_the_owner_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        calls: list[int] = []
        stuck = asyncio.Event()

        @tool(effect="pure")
        async def look(x: int) -> int:
            calls.append(x)
            if x == 2 and calls.count(2) == 1:
                await stuck.wait()
            return x

        flow = program(*[tool_step(f"s{at}", "look", args={"x": at}) for at in range(4)])
        store: Any = SqliteStore(tmp_path / "runs.db")
        vm = ExecutionVM(tools=[look], store=store)
        running = asyncio.create_task(vm.run(flow))
        with SqliteStore(tmp_path / "runs.db") as reader:
            await seen(reader, 3)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        (trace,) = await vm.recover()
        assert (trace.status, calls) == (RunStatus.SUCCESS, [0, 1, 2, 2, 3])
        vm.verify(trace.trace_id)
        await vm.close()

    play(main())
