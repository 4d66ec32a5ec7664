"""Forks: time travel that repeats nothing of what it shares, whatever the other run had under way."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from runtime_stage import Counter, Opener, play, program, refused, sound, tool_step, wait_step

from nano_vm import ExecutionVM, NotFoundError, RunStatus, Trace, tool
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle


def test_a_fork_shares_the_prefix_and_repeats_nothing(opener: Opener) -> None:
    count = Counter()

    def act(name: str, n: int) -> int:
        count(name)
        return n + 1

    steps = [
        tool_step("a", args={"name": "a", "n": "$n"}, output_key="x"),
        {"id": "c", "type": "condition", "condition": "$x > 5", "then": "big", "otherwise": "small"},
        tool_step("big", args={"name": "big", "n": "$x"}, is_terminal=True),
        tool_step("small", args={"name": "small", "n": "$x"}, is_terminal=True),
    ]
    vm = opener(tools={"act": act})

    async def main() -> None:
        source = await vm.run(program(*steps), {"n": 1})
        assert source.path == ["a", "c", "small"]
        fork = await vm.fork(source.trace_id, "c", {"x": 9})
        assert (fork.path, fork.final_output) == (["a", "c", "big"], 10)
        assert count.effects == ["a", "small", "big"]
        later = await vm.fork(source.trace_id, "small", {"x": 4})
        assert later.final_output == 5
        again = await vm.fork(source.trace_id, "a")
        assert again.trace_hash == source.trace_hash
        for trace in (source, fork, later, again):
            sound(vm, trace)
        with refused("UNKNOWN_STEP"):
            await vm.fork(source.trace_id, "big")
        with refused("UNKNOWN_VALUE"):
            await vm.fork(source.trace_id, "small", {"nope": 1})

    play(main())


def _after(step: dict[str, Any], *others: str) -> dict[str, Any]:
    return {**step, "depends_on": list(others)}


async def _until_done(vm: ExecutionVM, run_id: str, step_id: str) -> None:
    while True:
        with contextlib.suppress(NotFoundError):
            step = vm.trace(run_id).step(step_id)
            if step is not None and step.finished_at_ms is not None:
                return
        await asyncio.sleep(0)


SLOW_BESIDE = [
    _after(tool_step("slow", "slow")),
    _after(tool_step("quick", "quick")),
    _after(tool_step("next", "quick"), "quick"),
]


@pytest.mark.parametrize("effect", ["irreversible", "idempotent", "pure"])
def test_a_call_that_the_other_run_waits_for(opener: Opener, effect: str) -> None:
    """The fork is not told what comes of it: as after a crash it is repeated where that does no harm."""

    async def main() -> None:
        gate, calls = asyncio.Event(), Counter()

        @tool(effect=effect)
        async def slow() -> str:
            calls("slow")
            await gate.wait()
            return "done"

        async def quick() -> int:
            return 1

        vm = opener(tools=[slow, quick])
        driving = asyncio.create_task(vm.run(program(*SLOW_BESIDE), trace_id="source"))
        await _until_done(vm, "source", "next")
        forking = asyncio.create_task(vm.fork("source", "next", new_trace_id="fork"))
        for _ in range(20):
            await asyncio.sleep(0)
        gate.set()
        source, fork = await driving, await forking
        assert source.status is RunStatus.SUCCESS
        if effect == "irreversible":
            assert [(wait.kind, wait.step) for wait in fork.waiting] == [("outcome", "slow")]
            assert calls.effects == ["slow"]
            fork = await vm.resolve("fork", "slow", "succeeded", "done")
        assert fork.status is RunStatus.SUCCESS
        assert fork.trace_hash == source.trace_hash
        sound(vm, source)
        sound(vm, fork)

    play(main())


KID = program(tool_step("before", "note"), wait_step("w"), tool_step("after", "note"), name="kid")


def _bundled(vm: ExecutionVM, trace: Trace) -> list[str]:
    made = export(vm.store, trace.trace_id)
    verify_bundle(made.data)
    return made.runs


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "at work"])
def test_children_of_the_other_run_stay_its_own(opener: Opener, waits: bool) -> None:
    async def main() -> None:
        notes, gate = Counter(), asyncio.Event()

        async def note() -> int:
            notes("note")
            if not waits:
                await gate.wait()
            return 1

        async def quick() -> int:
            return 1

        call = {"id": "call", "type": "call", "program": "kid", "inputs": {}}
        steps = [
            _after(call),
            _after(tool_step("quick", "quick")),
            _after(tool_step("next", "quick"), "quick"),
        ]
        vm = opener(tools=[note, quick])
        vm.save_program(KID)
        driving = asyncio.create_task(vm.run(program(*steps), trace_id="source"))
        await _until_done(vm, "source", "next")
        if waits:
            assert (await driving).status is RunStatus.SUSPENDED
        forking = asyncio.create_task(vm.fork("source", "next", new_trace_id="fork"))
        while len(notes.effects) < 2:
            await asyncio.sleep(0)
        gate.set()
        for trace in (await forking, await driving):
            assert [wait.kind for wait in trace.waiting] == ["child"]
            assert _bundled(vm, trace) == [trace.trace_id, f"{trace.trace_id}/call.1.1"]
        assert notes.effects == ["note"] * 2
        for name in ("fork", "source"):
            trace = await vm.resume(name, {"x": 1}, step="call/w")
            assert trace.status is RunStatus.SUCCESS
            assert _bundled(vm, trace) == [name, f"{name}/call.1.1"]
            sound(vm, trace)
        assert notes.effects == ["note"] * 4

    play(main())


def test_a_child_that_has_ended_is_shared(opener: Opener) -> None:
    async def main() -> None:
        notes = Counter()

        async def note() -> int:
            notes("note")
            return 1

        call = {"id": "call", "type": "call", "program": "kid", "inputs": {}}
        vm = opener(tools=[note])
        vm.save_program(program(tool_step("only", "note"), name="kid"))
        await vm.run(program(call, tool_step("next", "note")), trace_id="source")
        fork = await vm.fork("source", "next", new_trace_id="fork")
        assert _bundled(vm, fork) == ["fork", "source/call.1.1"]
        assert notes.effects == ["note"] * 3

    play(main())
