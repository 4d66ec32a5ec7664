"""nano-vm itself, through its public API alone."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

if importlib.util.find_spec("nano_vm") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import workloads as w
from harness import Measured, Slice, WorkNotDone, probe_durability, run_driver, time_programs

from nano_vm import ExecutionVM, Program, SqliteStore

# The in-memory store keeps every run. A new engine now and then keeps the benchmark from measuring a heap of
# half a million finished runs; making it is part of the timed work.
VM_LIFETIME = 500


def tools_of(tools: w.Tools) -> dict[str, Any]:
    return {
        "add_one": tools.add_one,
        "add_one_sync": tools.add_one_sync,
        "lookup": tools.lookup,
        "refund": tools.refund,
        "notify": tools.notify,
        "reject": tools.reject,
        "tick": tools.tick,
        "done": tools.done,
    }


async def close(thing: object) -> None:
    """Close an engine or a store by whichever of the usual names it has."""
    for name in ("aclose", "close"):
        method = getattr(thing, name, None)
        if method is not None:
            outcome = method()
            if inspect.isawaitable(outcome):
                await outcome
            return


def succeeded(trace: Any) -> Any:
    if trace.status != "SUCCESS":
        raise WorkNotDone(f"a run ended {trace.status}: {getattr(trace, 'error', None)}")
    return trace.final_output


async def in_memory(turn: Slice, program_dict: dict[str, Any], context: dict[str, Any]) -> Measured:
    tools = w.Tools()
    functions = tools_of(tools)
    program = Program.from_dict(program_dict)
    vm = ExecutionVM(llm=None, tools=functions)
    age = 0

    async def once() -> object:
        nonlocal vm, age
        age += 1
        if age > VM_LIFETIME:
            await close(vm)
            vm, age = ExecutionVM(llm=None, tools=functions), 1
        tools.count = 0
        output = succeeded(await vm.run(program, context=context))
        return sum(output.values()) if isinstance(output, dict) else output

    measured = await time_programs(turn, tools, once)
    await close(vm)
    return measured


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


def open_store(turn: Slice) -> Any:
    durability = str(turn.workload.sync).lower()
    if turn.options.url:
        from nano_vm import PostgresStore

        return PostgresStore(turn.options.url, durability)
    return SqliteStore(str(turn.database), durability)


async def durable(turn: Slice) -> Measured:
    return await on_disk(turn, w.w2_program(), {"x": 0})


async def durable_loop(turn: Slice) -> Measured:
    limit = turn.workload.loop_limit
    return await on_disk(turn, w.w3_program(limit), {"limit": limit})


async def durable_fan_out(turn: Slice) -> Measured:
    return await on_disk(turn, w.w6_program(), {"x": 0})


async def on_disk(turn: Slice, program_dict: dict[str, Any], context: dict[str, Any]) -> Measured:
    tools = w.Tools()
    program = Program.from_dict(program_dict)
    store = open_store(turn)
    vm = ExecutionVM(llm=None, tools=tools_of(tools), store=store)

    async def once() -> object:
        tools.count = 0
        output = succeeded(await vm.run(program, context=context))
        return sum(output.values()) if isinstance(output, dict) else output

    await probe_durability(turn, once)
    measured = await time_programs(turn, tools, once)
    await close(vm)
    return measured


async def suspend_resume(turn: Slice) -> Measured:
    """Closing an engine closes its store, so only W5_reopen closes the first one; W5 leaves it be."""
    reopen = turn.workload.key == "W5_reopen"
    tools = w.Tools()
    functions = {"add_one": tools.add_one}
    program = Program.from_dict(w.w5_program())
    store = open_store(turn)

    async def once() -> object:
        nonlocal store
        vm = ExecutionVM(llm=None, tools=functions, store=store)
        trace = await vm.run(program, context={"x": 0})
        if trace.status != "SUSPENDED":
            raise WorkNotDone(f"a run that should wait is {trace.status}")
        if reopen:
            await close(vm)
            store = open_store(turn)
        fresh = ExecutionVM(llm=None, tools=functions, store=store)
        return succeeded(await fresh.resume(trace.trace_id, w.EVENT))

    measured = await time_programs(turn, tools, once)
    await close(store)
    return measured


def version() -> str:
    import nano_vm

    return str(getattr(nano_vm, "__version__", "checkout"))


DRIVERS = {
    "W1": refund,
    "W2": twenty,
    "W2_sync": twenty_sync,
    "W3_100": loop,
    "W3_1000": loop,
    "W3_10000": loop,
    "W3_full_100": durable_loop,
    "W4_full_seq": durable,
    "W4_full_100": durable,
    "W4_normal_seq": durable,
    "W4_normal_100": durable,
    "W5": suspend_resume,
    "W5_reopen": suspend_resume,
    "W6": fan_out,
    "W6_full": durable_fan_out,
}

POSTGRES = {key: DRIVERS[key] for key in ("W4_full_seq", "W4_full_100", "W4_normal_100", "W5", "W6_full")}

if __name__ == "__main__":
    raise SystemExit(run_driver("nano_vm", version(), {"": DRIVERS, "postgres": POSTGRES}))
