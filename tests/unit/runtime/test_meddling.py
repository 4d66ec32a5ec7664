"""Events, cancellations and forks come when they like: at any turn of the loop, from this engine or another. No call is
made twice, every run ends when it gets what it waits for, and all of it verifies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, MemoryStore, RejectedError, SqliteStore, ToolContext, Trace, tool
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle
from nano_vm.journal.port import RunQuery
from unit.runtime.runtime_stage import play, program, tool_step, wait_step


def _act(step_id: str, name: str = "later", **fields: Any) -> dict[str, Any]:
    return tool_step(step_id, name, args={"name": step_id}, **fields)


def _call(step_id: str, name: str = "kid", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "call", "program": name, "inputs": {}, **fields}


KID = program(_act("before"), wait_step("kid_waits"), _act("after", "at_once"), name="kid")
MIDDLE = program(_call("middle_calls"), _act("middle_acts"), name="middle")
FLOWS: dict[str, list[dict[str, Any]]] = {
    "in a row": [_act("a"), wait_step("w"), _act("b")],
    "a child's child": [_call("c", "middle"), _act("e", "at_once")],
    "together": [
        {"id": "g", "type": "parallel", "parallel_steps": [_act("a"), wait_step("w"), _call("c")]},
        _act("e"),
    ],
    "a list": [{"id": "m", "type": "map", "over": [1, 2], "step": _call("c")}, _act("e")],
    "a graph": [
        _act("a", depends_on=[]),
        wait_step("w", depends_on=[]),
        _call("c", depends_on=[]),
        _act("e", depends_on=["a", "w"]),
        _act("f", "at_once", depends_on=["c"]),
    ],
}


async def _resume(vm: ExecutionVM, other: ExecutionVM) -> list[Any]:
    return await asyncio.gather(
        other.resume("r", {"v": 1}, name="go", event_id="e"),
        vm.resume("r", {"v": 1}, name="go", event_id="e"),
        return_exceptions=True,
    )


async def _cancel(vm: ExecutionVM, other: ExecutionVM) -> list[Any]:
    return await asyncio.gather(
        other.cancel("r"), vm.resume("r", {"v": 1}, name="go"), return_exceptions=True
    )


async def _fork(vm: ExecutionVM, other: ExecutionVM) -> list[Any]:
    reached = {step.id for step in other.trace("r").steps}
    return await asyncio.gather(
        *[
            other.fork("r", step_id, new_trace_id=f"fork-{step_id}")
            for step_id in sorted(reached & set("acegmw"))
        ],
        return_exceptions=True,
    )


async def _give(
    vm: ExecutionVM, run_id: str, waits: Any, number: int, way: str = "", item: Any = None
) -> None:
    """Give a run the first of the things it waits for."""
    wait: Mapping[str, Any] = waits[0] if isinstance(waits[0], Mapping) else waits[0].to_dict()
    step, item = f"{way}{wait['step']}", wait.get("item", item)
    if wait["kind"] == "child":
        await _give(vm, run_id, wait["waits"], number, f"{step}/", item)
    elif wait["kind"] == "outcome":
        await vm.resolve(run_id, step, "succeeded", "done", item=item)
    else:
        await vm.resume(run_id, {"v": 2}, step=step, item=item, event_id=f"given-{number}")


@pytest.mark.parametrize("apart", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("meddle", [_resume, _cancel, _fork])
@pytest.mark.parametrize("flow", FLOWS)
def test_at_any_turn_of_the_loop(
    tmp_path: Path, flow: str, meddle: Callable[[ExecutionVM, ExecutionVM], Awaitable[list[Any]]], apart: bool
) -> None:
    async def main(turns: int) -> bool:
        calls: Counter[tuple[Any, ...]] = Counter()

        @tool(effect="irreversible")
        async def later(name: str, ctx: ToolContext) -> str:
            calls[ctx.trace_id, name, ctx.item] += 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return name

        @tool(effect="irreversible")
        async def at_once(name: str, ctx: ToolContext) -> str:
            calls[ctx.trace_id, name, ctx.item] += 1
            return name

        memory, path = MemoryStore(), tmp_path / f"{turns}.db"

        def engine() -> ExecutionVM:
            store = SqliteStore(path, durability="normal") if apart else memory
            return ExecutionVM(tools=[later, at_once], store=store)

        vm = engine()
        vm.save_program(KID)
        vm.save_program(MIDDLE)
        other = engine() if apart else vm
        driving = asyncio.create_task(vm.run(program(*FLOWS[flow]), trace_id="r"))
        while vm.live_here("r") is None:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        over = driving.done()
        for told in await meddle(vm, other):
            # What comes too early or too late is refused.
            assert isinstance(told, Trace | RejectedError) or told.code == "UNKNOWN_STEP", told
        await driving
        number = 0
        while running := [found for found in vm.runs() if not vm.trace(found.run_id).status.is_terminal]:
            await asyncio.sleep(0)
            await vm.recover()
            for found in running:
                if waits := vm.trace(found.run_id).waiting:
                    number += 1
                    await _give(vm, found.run_id, waits, number)
        assert max(calls.values()) == 1
        for record in vm.store.records(RunQuery(limit=100)):
            assert record.owner is None
            vm.verify(record.run_id)
            verify_bundle(export(vm.store, record.run_id).data)
        for one in {vm, other}:
            await one.close()
        return over

    turns = 0
    while not play(main(turns)):
        turns += 1
    assert turns > 1
