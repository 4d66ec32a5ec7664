"""Parallel tools whose calls are begun without a task each (`runtime.together`): what a tool may rely on is the same,
whether it answers at once or has to wait."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from nano_vm import ExecutionVM, SqliteStore, ToolError, tool


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run_test(**fixtures: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await test(**fixtures)

        asyncio.run(bounded())

    return run_test


SEEN: ContextVar[list[int]] = ContextVar("SEEN")


def parallel(*tools: str) -> dict[str, Any]:
    lanes = [
        {"id": f"p{number}", "type": "tool", "tool": name, "args": {"x": number}}
        for number, name in enumerate(tools)
    ]
    return {"name": "group", "steps": [{"id": "all", "type": "parallel", "parallel_steps": lanes}]}


@tool(effect="idempotent")
async def at_once(x: int) -> int:
    return x


@tool(effect="idempotent")
async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x


@tool(effect="pure")
async def tied(x: int) -> list[bool]:
    """Whether the task it is in stays the same, over a time-out and a group of tasks that tie themselves to it."""
    before = asyncio.current_task()
    async with asyncio.timeout(60):
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        await asyncio.sleep(0)
    return [before is asyncio.current_task(), before in asyncio.all_tasks()]


@tool(effect="pure")
async def times_out(x: int) -> int:
    async with asyncio.timeout(0):
        await asyncio.Event().wait()
    return x


@tool(effect="pure")
async def notes(x: int) -> list[int]:
    seen = SEEN.get([])
    SEEN.set([*seen, x])
    await asyncio.sleep(0) if x % 2 else None
    return SEEN.get()


@tool(effect="idempotent")
async def gives_itself_up(x: int) -> int:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return x


@tool(effect="pure", blocking=False)
def future(x: int) -> Awaitable[int]:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answer.get_loop().call_soon(answer.set_result, x)
    return answer


async def run(program: dict[str, Any]) -> Any:
    tools = [at_once, later, tied, times_out, notes, gives_itself_up, future]
    async with ExecutionVM(tools=tools) as vm:
        trace = await vm.run(program)
        vm.verify(trace.trace_id)
        assert trace.steps
        return trace


@in_loop
async def test_a_tool_that_waits_has_been_in_its_own_task_from_the_beginning() -> None:
    trace = await run(parallel("at_once", "tied", "at_once", "tied", "later"))
    assert trace.final_output == {"p0": 0, "p1": [True, True], "p2": 2, "p3": [True, True], "p4": 4}


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 has it")
@in_loop
async def test_a_loop_that_begins_tasks_at_once_makes_no_difference() -> None:
    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
    trace = await run(parallel("at_once", "tied", "at_once", "tied", "later"))
    assert trace.final_output == {"p0": 0, "p1": [True, True], "p2": 2, "p3": [True, True], "p4": 4}


@in_loop
async def test_what_a_plain_function_returns_is_its_output_and_is_not_awaited() -> None:
    program = parallel("at_once", "future", "at_once")
    trace = await run(program)
    assert {step.id: step.status for step in trace.steps if step.id != "all"} == {
        "p0": "SUCCESS",
        "p1": "FAILED",
        "p2": "SUCCESS",
    }


@in_loop
async def test_a_time_out_inside_a_tool_fails_that_tool_alone() -> None:
    program = parallel("at_once", "times_out", "later")
    program["steps"][0]["on_error"] = "skip"
    trace = await run(program)
    failed = {step.id: step.status for step in trace.steps if step.id != "all"}
    assert failed == {"p0": "SUCCESS", "p1": "FAILED", "p2": "SUCCESS"}
    assert trace.status == "SUCCESS"


@in_loop
async def test_what_a_tool_sets_in_its_context_is_for_nobody_else() -> None:
    trace = await run(parallel("notes", "notes", "notes", "notes"))
    assert trace.final_output == {f"p{number}": [number] for number in range(4)}
    assert SEEN.get(None) is None


@in_loop
async def test_a_tool_that_cancels_its_own_task_cancels_no_other() -> None:
    trace = await run(parallel("at_once", "gives_itself_up", "later", "tied", "at_once"))
    assert trace.final_output == {"p0": 0, "p1": 1, "p2": 2, "p3": [True, True], "p4": 4}


@pytest.mark.parametrize("first", [True, False], ids=["at the start", "after a step"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("way", ["answers", "waits", "fails", "cancels"])
@in_loop
async def test_every_call_is_made_once(first: bool, named: bool, way: str) -> None:
    """Nor are calls without effects, of which the state does not say that they have begun."""
    calls: list[int] = []

    @tool(effect="pure")
    async def look(x: int) -> int:
        calls.append(x)
        if way == "waits":
            await asyncio.sleep(0)
        elif way == "fails":
            raise ToolError("no", code="NO", retryable=False)
        elif way == "cancels":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            raise asyncio.CancelledError
        return x

    program = parallel("look", "look", "look")
    if not first:
        before = {"id": "before", "type": "tool", "tool": "at_once", "args": {"x": 0}}
        program["steps"].insert(0, before)
    async with ExecutionVM(tools=[look, at_once]) as vm:
        trace = await vm.run(program, trace_id="run" if named else None)
        vm.verify(trace.trace_id)
    assert calls == [0, 1, 2]
    assert trace.status == ("SUCCESS" if way in ("answers", "waits") else "FAILED")


@in_loop
async def test_only_failures_are_repeated() -> None:
    calls: list[int] = []

    @tool(effect="irreversible")
    async def once(x: int) -> int:
        calls.append(x)
        if calls == [0, 1]:
            raise ToolError("again", code="AGAIN", retryable=True)
        return x

    program = parallel("once", "once", "once")
    for lane in program["steps"][0]["parallel_steps"]:
        lane |= {"on_error": "retry", "max_retries": 2, "retry": {"initial": 0.001}}
    async with ExecutionVM(tools=[once]) as vm:
        trace = await vm.run(program)
    assert trace.final_output == {"p0": 0, "p1": 1, "p2": 2}
    assert calls == [0, 1, 2, 1]


@pytest.mark.parametrize("tools", [("at_once", "later"), ("later", "at_once"), ("at_once", "at_once")])
@in_loop
async def test_every_intent_is_durable_before_the_first_call(tools: tuple[str, str], tmp_path: Any) -> None:
    path = tmp_path / "runs.db"
    store = SqliteStore(str(path))
    found: list[int] = []

    def look(x: int) -> int:
        with contextlib.closing(sqlite3.connect(path)) as other:
            facts = "".join(row[0] for row in other.execute("SELECT facts FROM nvm_entries"))
        found.append(facts.count('"type":"StepStarted"'))
        return x

    @tool(effect="idempotent", name="at_once")
    async def first(x: int) -> int:
        return look(x)

    @tool(effect="idempotent", name="later")
    async def second(x: int) -> int:
        await asyncio.sleep(0)
        return look(x)

    async with ExecutionVM(tools=[first, second], store=store) as vm:
        trace = await vm.run(parallel(*tools))
    assert trace.status == "SUCCESS"
    assert found == [2, 2]


@in_loop
async def test_a_run_that_is_cancelled_while_some_calls_wait_tells_what_came_of_all_of_them() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    @tool(effect="irreversible")
    async def slow(x: int) -> int:
        begun.set()
        await may_end.wait()
        return x

    async with ExecutionVM(tools=[at_once, slow]) as vm:
        running = asyncio.create_task(vm.run(parallel("at_once", "slow", "at_once"), trace_id="run"))
        await begun.wait()
        cancelling = asyncio.create_task(vm.cancel("run"))
        await asyncio.sleep(0)
        may_end.set()
        await cancelling
        trace = await running
        settled = {step.id: step.status for step in trace.steps if step.id != "all"}
    assert trace.status == "CANCELLED"
    assert settled == {f"p{number}": "SUCCESS" for number in range(3)}


@in_loop
async def test_a_driver_that_is_given_up_takes_the_waiting_calls_with_it() -> None:
    ended: list[str] = []
    begun = asyncio.Event()

    @tool(effect="idempotent")
    async def hangs(x: int) -> int:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.append("hangs")
        return x

    async with ExecutionVM(tools=[at_once, hangs]) as vm:
        running = asyncio.create_task(vm.run(parallel("at_once", "hangs"), trace_id="run"))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended == ["hangs"]


@pytest.mark.parametrize("leaf", ["at_once", "later"])
@pytest.mark.parametrize("beside", ["at_once", "later"])
@in_loop
async def test_a_tool_in_a_group_may_run_a_program_with_a_group(leaf: str, beside: str) -> None:
    @tool(effect="idempotent")
    async def nested(x: int) -> int:
        trace = await vm.run(parallel(leaf, beside, leaf))
        vm.verify(trace.trace_id)
        return x + sum(trace.final_output.values())

    async with ExecutionVM(tools=[at_once, later, nested]) as vm:
        trace = await vm.run(parallel("nested", beside, "nested", "nested"), trace_id="run")
        vm.verify("run")
    assert trace.final_output == {"p0": 3, "p1": 1, "p2": 5, "p3": 6}


@in_loop
async def test_a_group_in_a_loop_counts_its_occurrences() -> None:
    number = iter(range(10))

    @tool(effect="pure")
    async def count() -> int:
        return next(number)

    lanes = [{"id": f"p{at}", "type": "tool", "tool": "at_once", "args": {"x": "$n"}} for at in range(2)]
    program = {
        "name": "loop",
        "max_steps": 100,
        "steps": [
            {"id": "count", "type": "tool", "tool": "count", "output_key": "n"},
            {"id": "all", "type": "parallel", "parallel_steps": lanes},
            {"id": "more", "type": "condition", "condition": "$n < 3", "then": "count", "otherwise": "last"},
            {
                "id": "last",
                "type": "tool",
                "tool": "at_once",
                "args": {"x": "$p1.output"},
                "is_terminal": True,
            },
        ],
    }
    async with ExecutionVM(tools=[count, at_once]) as vm:
        trace = await vm.run(program)
        vm.verify(trace.trace_id)
        assert [step.occurrence for step in trace.steps if step.id == "p1"] == [1, 2, 3, 4]
    assert trace.final_output == 3
