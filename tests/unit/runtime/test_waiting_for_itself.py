"""A call that would wait for the end of its own run is refused: neither would ever end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nano_vm import RunStatus, RuntimeFault
from unit.runtime.runtime_stage import Opener, play, program, tool_step

BEFORE = tool_step("before", "leaf", args={"x": "1"})
ACT = tool_step("act", "act", args={"x": "$run.id"})
FLOWS = {
    "first": program(ACT, tool_step("end", "leaf", args={"x": "1"})),
    "later": program(BEFORE, ACT, tool_step("end", "leaf", args={"x": "1"})),
    "together": program(
        BEFORE, {"id": "g", "type": "parallel", "parallel_steps": [ACT, {**BEFORE, "id": "b"}]}
    ),
}


async def leaf(x: str) -> str:
    return x


@pytest.mark.parametrize("way", ["cancel", "resume", "in a run of its own"])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_tool_that_would_wait_for_its_own_run_is_refused(opener: Opener, flow: str, way: str) -> None:
    codes: list[str] = []

    async def wait_for(run_id: str) -> str:
        try:
            await (vm.resume(run_id, 1, name="go") if way == "resume" else vm.cancel(run_id))
        except RuntimeFault as error:
            codes.append(error.code)
        return run_id

    inner = program(tool_step("wait", "inner", args={"run_id": "$of"}))

    async def act(x: str) -> str:
        if way == "in a run of its own":
            await vm.run(inner, {"of": x})
            return x
        return await wait_for(x)

    vm = opener(tools={"act": act, "leaf": leaf, "inner": wait_for})

    async def main() -> None:
        trace = await vm.run(FLOWS[flow])
        assert (trace.status, trace.error, codes) == (RunStatus.SUCCESS, None, ["WAITS_FOR_ITSELF"])
        vm.verify(trace.trace_id)

    play(main())


@pytest.mark.parametrize("flow", FLOWS)
def test_a_tool_may_have_its_own_run_cancelled_without_waiting_for_it(opener: Opener, flow: str) -> None:
    cancelling: list[asyncio.Task[Any]] = []

    async def act(x: str) -> str:
        cancelling.append(asyncio.create_task(vm.cancel(x)))
        return x

    async def slow(x: str) -> str:
        if cancelling:
            await asyncio.sleep(0)
        return x

    vm = opener(tools={"act": act, "leaf": slow})

    async def main() -> None:
        trace = await vm.run(FLOWS[flow])
        await asyncio.gather(*cancelling, return_exceptions=True)
        # The run may have ended before it was told.
        assert trace.status in (RunStatus.CANCELLED, RunStatus.SUCCESS)
        vm.verify(trace.trace_id)

    play(main())
