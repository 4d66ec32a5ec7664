"""llm-nano-vm 0.8.9: no journal; its cursor for suspended runs lives in memory."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import workloads as w
from harness import Measured, Slice, WorkNotDone, run_driver, time_programs
from nano_vm.models import Program
from nano_vm.vm import ExecutionVM, InMemoryCursorRepository, WebhookEvent


def tools_of(tools: w.Tools) -> dict[str, Any]:
    async def pending() -> str:
        return "PENDING"

    return {
        "add_one": tools.add_one,
        "add_one_sync": tools.add_one_sync,
        "lookup": tools.lookup,
        "refund": tools.refund,
        "notify": tools.notify,
        "reject": tools.reject,
        "tick": tools.tick,
        "done": tools.done,
        "pending": pending,
    }


def succeeded(trace: Any) -> Any:
    if trace.status.value != "success":
        raise WorkNotDone(f"a run ended {trace.status}: {trace.error}")
    return trace.final_output


async def in_memory(turn: Slice, program_dict: dict[str, Any], context: dict[str, Any]) -> Measured:
    tools = w.Tools()
    program = Program.from_dict(program_dict)
    vm = ExecutionVM(llm=None, tools=tools_of(tools))

    async def once() -> object:
        tools.count = 0
        output = succeeded(await vm.run(program, context=context))
        return sum(output.values()) if isinstance(output, dict) else output

    return await time_programs(turn, tools, once)


async def refund(turn: Slice) -> Measured:
    return await in_memory(turn, w.w1_program(), {"order_id": 7})


async def twenty(turn: Slice) -> Measured:
    return await in_memory(turn, w.w2_program(), {"x": 0})


async def twenty_sync(turn: Slice) -> Measured:
    return await in_memory(turn, w.w2_program("add_one_sync"), {"x": 0})


async def loop(turn: Slice) -> Measured:
    limit = turn.workload.loop_limit
    return await in_memory(turn, w.w3_program(limit), {"limit": limit})


async def fan_out(turn: Slice) -> Measured:
    return await in_memory(turn, w.w6_program(), {"x": 0})


async def suspend_resume(turn: Slice) -> Measured:
    """Not durable: the cursor repository is a dict that both engine objects share."""
    turn.checks["durable"] = False
    tools = w.Tools()
    functions = tools_of(tools)
    program_dict = w.w5_program()
    # It has no wait step; a tool that answers PENDING suspends, and the payload is bound to `__webhook__`.
    program_dict["steps"][1] = {"id": "hold", "type": "tool", "tool": "pending", "next_step": "after"}
    program_dict["steps"][2]["args"] = {"x": 41}
    program = Program.from_dict(program_dict)
    cursors = InMemoryCursorRepository()

    async def once() -> object:
        trace = await ExecutionVM(llm=None, tools=functions, cursor_repository=cursors).run(program, {"x": 0})
        if trace.status.value != "suspended":
            raise WorkNotDone(f"a run that should wait is {trace.status}")
        fresh = ExecutionVM(llm=None, tools=functions, cursor_repository=cursors)
        return succeeded(await fresh.resume_with_program(WebhookEvent(trace.trace_id, w.EVENT), program))

    return await time_programs(turn, tools, once)


DRIVERS = {
    "W1": refund,
    "W2": twenty,
    "W2_sync": twenty_sync,
    "W3_100": loop,
    "W3_1000": loop,
    "W3_10000": loop,
    "W5": suspend_resume,
    "W6": fan_out,
}

if __name__ == "__main__":
    raise SystemExit(run_driver("llm_nano_vm", version("llm-nano-vm"), {"": DRIVERS}))
