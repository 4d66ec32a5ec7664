"""Programs and tools that the runtime's tests are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nano_vm import ExecutionVM, NanoVMError, Trace, tool

Opener = Callable[..., ExecutionVM]


def tool_step(step_id: str, tool: str = "act", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "tool", "tool": tool, **fields}


def wait_step(step_id: str, event: str = "go", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "wait", "event": event, **fields}


def program(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": fields.pop("name", "p"), "steps": list(steps), **fields}


def numbered(*tools: str) -> list[dict[str, Any]]:
    """Steps `s0`, `s1`, … each of which hands its number to its tool (of `counted_tools`)."""
    return [tool_step(f"s{at}", name, args={"x": at}) for at, name in enumerate(tools)]


# What every driver meets: tools in a row and together, some of which wait.
ORDINARY = {
    "in a row": program(*numbered("at_once", "later", "look", "at_once")),
    "together": program(
        {"id": "g", "type": "parallel", "parallel_steps": numbered("at_once", "later", "look")},
        tool_step("end", "later", args={"x": 9}),
    ),
}


def counted_tools(calls: dict[Any, int]) -> list[Any]:
    """Two tools with effects, counted by name and argument, one of which waits; and a pure one that waits."""

    async def at_once(x: int) -> int:
        calls["at_once", x] += 1
        return x

    async def later(x: int) -> int:
        calls["later", x] += 1
        await asyncio.sleep(0)
        return x

    @tool(effect="pure")
    async def look(x: int) -> int:
        await asyncio.sleep(0)
        return x

    return [at_once, later, look]


def play(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine; one that hangs fails instead."""

    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await main

    return asyncio.run(bounded())


class refused:  # reads as a clause: `with refused("TERMINAL")`
    """The block must raise an error with this code."""

    def __init__(self, code: str) -> None:
        self._code = code
        self._expectation = pytest.raises(NanoVMError)

    def __enter__(self) -> None:
        self._raised = self._expectation.__enter__()

    def __exit__(self, *exc: Any) -> bool:
        suppressed = bool(self._expectation.__exit__(*exc))
        assert self._raised.value.code == self._code, self._raised.value
        return suppressed


class Counter:
    """Counts the effects that happened, by name."""

    def __init__(self) -> None:
        self.effects: list[Any] = []

    def __call__(self, effect: Any) -> None:
        self.effects.append(effect)

    def count(self, effect: Any) -> int:
        return self.effects.count(effect)


def kinds(trace: Trace) -> list[str]:
    """The journal, as event types."""
    return [event.type for event in trace.events]


def sound(vm: ExecutionVM, trace: Trace) -> None:
    """What every finished or parked run owes: its journal verifies, nobody owns it, and a SUSPENDED one says why."""
    vm.verify(trace.trace_id)
    record = vm.store.record(trace.trace_id)
    assert record.owner is None
    assert record.status == trace.status.value
    if record.status == "SUSPENDED":
        assert record.waits
