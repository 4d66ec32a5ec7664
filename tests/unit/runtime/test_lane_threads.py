"""Runs whose tools are plain functions are taken along in a thread, one for all their steps in a row."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, MemoryStore, SqliteStore

MANY = 40


def in_a_loop(test: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


def _chain(*tools: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"id": f"s{place}", "type": "tool", "tool": name} for place, name in enumerate(tools)
    ]
    return {"name": "chain", "steps": steps}


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "runs.db")


@in_a_loop
async def test_plain_functions_in_a_row_share_a_thread_that_is_not_the_loops(store: Any) -> None:
    seen: list[int] = []

    def plain() -> None:
        seen.append(threading.get_ident())

    async def awaited() -> None:
        seen.append(threading.get_ident())

    async with ExecutionVM(tools={"plain": plain, "awaited": awaited}, store=store) as vm:
        trace = await vm.run(_chain(*["plain"] * MANY, "awaited", "plain"))
        assert trace.status == "SUCCESS"
        vm.verify(trace.trace_id)
    here = threading.get_ident()
    assert len(set(seen[:MANY])) == 1
    assert here not in seen[:MANY]
    assert [place == here for place in seen[MANY:]] == [True, False]


@in_a_loop
async def test_a_plain_function_that_hangs_stalls_no_other_run(store: Any) -> None:
    let_go = threading.Event()

    def hang() -> str:
        return "late" if let_go.wait(30) else "never"

    async with ExecutionVM(tools={"hang": hang, "plain": lambda: 1}, store=store) as vm:
        slow = asyncio.ensure_future(vm.run(_chain("plain", "hang", "plain"), trace_id="slow"))
        while "slow" not in vm.live:
            await asyncio.sleep(0)
        for _ in range(3):
            assert (await vm.run(_chain("plain", "plain"))).status == "SUCCESS"
        assert not slow.done()
        assert len(vm.trace("slow").entries) >= 1
        let_go.set()
        assert (await slow).steps[1].output == "late"


async def _at_the_gate(store: Any, act: Callable[[ExecutionVM, asyncio.Future[Any]], Any]) -> list[str]:
    """Run two plain functions, and `act` while the first is out; which of them were called."""
    reached, let_go = threading.Event(), threading.Event()
    called: list[str] = []

    def first() -> str:
        called.append("first")
        reached.set()
        let_go.wait(30)
        return "done"

    def second() -> None:
        called.append("second")

    async with ExecutionVM(tools={"first": first, "second": second}, store=store) as vm:
        run = asyncio.ensure_future(vm.run(_chain("first", "second"), trace_id="run"))
        while not reached.is_set():
            await asyncio.sleep(0)
        acting = asyncio.ensure_future(act(vm, run))
        for _ in range(5):
            await asyncio.sleep(0)
        let_go.set()
        await acting
        await asyncio.wait({run})
        vm.verify("run")
        for _ in range(50):  # a thread that went on would call the second one now
            await asyncio.sleep(0)
    return called


@in_a_loop
async def test_a_run_that_is_cancelled_ends_when_its_function_returns(store: Any) -> None:
    async def cancel(vm: ExecutionVM, run: asyncio.Future[Any]) -> None:
        trace = await vm.cancel("run")
        assert trace.status == "CANCELLED"
        assert trace.steps[0].output == "done"

    assert await _at_the_gate(store, cancel) == ["first"]


@in_a_loop
async def test_a_run_whose_task_is_cancelled_goes_no_further_in_its_thread(store: Any) -> None:
    async def abandon(vm: ExecutionVM, run: asyncio.Future[Any]) -> None:
        run.cancel()
        await asyncio.wait({run})
        types = [type(event).__name__ for event in vm.trace("run").events]
        assert types == ["RunStarted", "StepStarted"]

    assert await _at_the_gate(store, abandon) == ["first"]


@in_a_loop
async def test_what_a_plain_function_raises_is_the_same_in_and_out_of_the_lane(store: Any) -> None:
    def stop() -> None:
        raise StopIteration("x")

    found = []
    for lane in (True, False):
        async with ExecutionVM(tools={"stop": stop}) as vm:
            vm.lane = lane
            found.append((await vm.run(_chain("stop"))).error)
    assert found[0] == found[1]


@in_a_loop
async def test_an_intent_is_durable_before_a_function_is_called_in_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    found: list[list[str]] = []

    def look() -> None:
        with SqliteStore(path) as other:
            _, entries = other.tail(0)
            found.append([entry.facts.decode() for _, entry in entries])

    async with ExecutionVM(tools={"look": look}, store=SqliteStore(path)) as vm:
        await vm.run(_chain("look", "look", "look"))
    for place, facts in enumerate(found):
        assert sum(text.count('"StepStarted"') for text in facts) == place + 1
        assert sum(text.count('"StepSucceeded"') for text in facts) == place


@in_a_loop
async def test_runs_in_many_threads_append_to_one_store_in_memory() -> None:
    """Each appends more than once from its thread."""
    steps, runs = 150, 8
    async with ExecutionVM(tools={"plain": lambda: 1}, store=MemoryStore()) as vm:
        traces = await asyncio.gather(*[vm.run(_chain(*["plain"] * steps)) for _ in range(runs)])
        _, tailed = vm.store.tail(0, 10_000)
        for trace in traces:
            assert [entry.seq for run, entry in tailed if run == trace.trace_id] == list(range(steps + 1))
            vm.verify(trace.trace_id)
