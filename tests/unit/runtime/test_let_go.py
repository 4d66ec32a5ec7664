"""Nothing of a run that is not driven any more waits for the garbage collector: all of it goes when the last who held
it does."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from types import TracebackType
from typing import Any

import pytest

from nano_vm import ExecutionVM, MemoryStore, MockLLMAdapter, tool
from nano_vm.runtime.driver import Run


@tool(effect="keyed")
async def act(x: int) -> int:
    return x


@tool(effect="keyed")
def called(x: int, ctx: Any) -> int:
    return x


@tool(effect="irreversible")
def fail(x: int) -> int:
    raise ValueError("no")


def _tool(name: str, step_id: str = "a") -> dict[str, Any]:
    return {"id": step_id, "type": "tool", "tool": name, "args": {"x": "$x"}}


PROGRAMS: dict[str, list[dict[str, Any]]] = {
    "tools": [_tool("act"), _tool("called", "b")],
    "model": [{"id": "m", "type": "llm", "prompt": "Is it $x?"}, _tool("act")],
    "parallel": [{"id": "p", "type": "parallel", "parallel_steps": [_tool("act"), _tool("called", "b")]}],
    "wait": [_tool("act"), {"id": "w", "type": "wait", "event": "go"}],
    "failure": [_tool("act"), _tool("fail", "b")],
}
POLICIES: dict[str, Any] = {
    "free": None,
    "names": {"policy": "p", "tools": ["*"], "models": ["*"]},
    "arguments": {
        "policy": "p",
        "models": ["*"],
        "rules": [{"id": "r", "tools": ["*"], "when": "$args.x > 0"}],
    },
}


def _tell_tales() -> list[Any]:
    return [thing for thing in gc.get_objects() if type(thing) in (Run, TracebackType)]


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "general"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("steps", PROGRAMS.values(), ids=PROGRAMS)
def test_runs_leave_nothing_for_the_garbage_collector(
    steps: list[dict[str, Any]], policy: Any, lane: bool
) -> None:
    inputs = {"type": "object", "properties": {"x": {"type": "integer"}}}
    program = {"name": "p", "inputs": inputs, "steps": steps}

    async def main() -> int:
        vm = ExecutionVM(
            llm=MockLLMAdapter("yes"), tools=[act, called, fail], store=MemoryStore(), policy=policy
        )
        vm.lane = lane
        async with vm:
            for _ in range(2):
                await vm.run(program, {"x": 1})
            gc.collect()
            gc.disable()
            others = {id(thing) for thing in _tell_tales()}
            try:
                for _ in range(3):
                    await vm.run(program, {"x": 1})
                for _ in range(
                    50
                ):  # the loop, and the thread of a tool, hold something of the last one a while
                    await asyncio.sleep(0)
                    held = sum(id(thing) not in others for thing in _tell_tales())
                    if not held:
                        break
                return held
            finally:
                gc.enable()

    assert asyncio.run(main()) == 0


@pytest.mark.parametrize("steps", PROGRAMS.values(), ids=PROGRAMS)
def test_an_engine_that_nobody_uses_any_more_goes_at_once(steps: list[dict[str, Any]]) -> None:
    program = {"name": "p", "steps": steps}

    async def main() -> object:
        vm = ExecutionVM(llm=MockLLMAdapter("yes"), tools=[act, called, fail], store=MemoryStore())
        await vm.run(program, {"x": 1})
        gone = weakref.ref(vm)
        gc.disable()
        try:
            del vm
            for _ in range(100_000):  # the thread of a tool holds something of the last one a while
                if gone() is None:
                    break
                await asyncio.sleep(0)
            return gone()  # the look that its run has asked for is still to come
        finally:
            gc.enable()

    assert asyncio.run(main()) is None


def test_the_threads_of_an_engine_that_nobody_uses_any_more_end() -> None:
    def tool_threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "nano-vm-tool"}

    async def main() -> set[threading.Thread]:
        before, made = tool_threads(), set()
        for _ in range(3):
            vm = ExecutionVM(tools=[called], store=MemoryStore())
            vm.lane = False
            await vm.run({"name": "p", "steps": [_tool("called")]}, {"x": 1})
            made |= tool_threads() - before
        return made

    made = asyncio.run(main())
    assert len(made) == 3
    for thread in made:
        thread.join(60)
    assert not any(thread.is_alive() for thread in made)
