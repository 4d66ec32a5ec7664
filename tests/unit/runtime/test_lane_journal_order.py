"""The short way of driving (`runtime.lane`) writes a journal that verifies, whatever the run begins with."""

from __future__ import annotations

from itertools import product

import pytest

from nano_vm import ExecutionVM, MemoryStore, tool


@tool(effect="pure")
async def look(x: int) -> int:
    return x


@tool(effect="idempotent")
async def act(x: int) -> int:
    return x


@pytest.mark.parametrize("tools", list(product(["look", "act"], repeat=3)), ids="-".join)
def test_every_order_of_pure_steps_and_effects_verifies(tools: tuple[str, ...]) -> None:
    steps = [
        {"id": f"s{index}", "type": "tool", "tool": name, "args": {"x": index}}
        for index, name in enumerate(tools)
    ]
    vm = ExecutionVM(tools=[look, act], store=MemoryStore())
    trace = vm.run_sync({"name": "order", "steps": steps})
    vm.verify(trace.trace_id)
    assert trace.events[0].type == "RunStarted"
    assert [(step.id, step.output) for step in trace.steps] == [("s0", 0), ("s1", 1), ("s2", 2)]
