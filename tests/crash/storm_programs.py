"""One busy process over one database: runs of every kind of effect, waits, timers, retries and child runs at once.

    python storm_programs.py MODE DIRECTORY FIRST COUNT

MODE `run` starts runs `rFIRST` … and gives the waiting ones their event; `recover` takes up what it finds until nothing
can be done without somebody's help. Effects are counted outside: one line per effect, appended in one write.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from nano_vm import ExecutionVM, MockLLMAdapter, NanoVMError, Reconciled, SqliteStore, ToolContext, tool

PLACE = Path(".")


def append(file: str, line: str) -> None:
    handle = os.open(PLACE / file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(handle, line.encode() + b"\n")
    os.close(handle)


def effect(kind: str, ctx: ToolContext) -> str:
    append("effects", json.dumps([kind, ctx.trace_id, ctx.step, ctx.idempotency_key]))
    return ctx.step


@tool
async def irreversible(ctx: ToolContext) -> str:
    await asyncio.sleep(0.001)
    return effect("irreversible", ctx)


@tool
def blocking(ctx: ToolContext) -> str:
    return effect("irreversible", ctx)


@tool(effect="idempotent")
async def idempotent(ctx: ToolContext) -> str:
    return effect("idempotent", ctx)


@tool(effect="keyed")
async def keyed(ctx: ToolContext) -> str:
    """A server that honours keys: key and effect appear together, in one atomic link, or not at all."""
    draft = PLACE / "keys" / f".{ctx.idempotency_key}.{os.getpid()}"
    draft.write_text(json.dumps(["keyed", ctx.trace_id, ctx.step, ctx.idempotency_key]))
    try:
        os.link(draft, PLACE / "keys" / ctx.idempotency_key)
    except FileExistsError:
        pass
    draft.unlink()
    return ctx.step


def find_out(ctx: ToolContext) -> Reconciled:
    text = (PLACE / "effects").read_text() if (PLACE / "effects").exists() else ""
    done = any(json.loads(line)[3] == ctx.idempotency_key for line in text.splitlines())
    return Reconciled.succeeded(ctx.step) if done else Reconciled.not_executed()


@tool(effect="reconcilable", reconcile=find_out)
async def reconcilable(ctx: ToolContext) -> str:
    return effect("reconcilable", ctx)


@tool(effect="transactional")
async def transactional(ctx: ToolContext) -> str:
    con = ctx.transaction.connection
    con.execute("CREATE TABLE IF NOT EXISTS effects (run TEXT, step TEXT)")
    con.execute("INSERT INTO effects VALUES (?, ?)", (ctx.trace_id, ctx.step))
    return ctx.step


TOOLS = [irreversible, blocking, idempotent, keyed, reconcilable, transactional]


def step(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "type": "tool", "tool": kind, **fields}


CHILD = {
    "name": "child",
    "steps": [step("reconcilable", "X"), step("transactional", "Y"), step("keyed", "W")],
}
STORM = {
    "name": "storm",
    "steps": [
        step("keyed", "A"),
        {"id": "pause", "type": "wait", "seconds": 0.01},
        {"id": "g", "type": "parallel",
         "parallel_steps": [step("reconcilable", "R"), step("transactional", "T"), step("idempotent", "I")]},
        {"id": "c", "type": "call", "program": "child", "inputs": {}},
        {"id": "go", "type": "wait", "event": "go"},
        {"id": "m", "type": "map", "over": [1, 2, 3], "step": step("keyed", "M")},
        step("irreversible", "N"),
        step("blocking", "B"),
        step("transactional", "Z"),
    ],
}  # fmt: skip


async def run(vm: ExecutionVM, first: int, count: int) -> None:
    vm.save_program(CHILD)
    names = [f"r{number}" for number in range(first, first + count)]
    await asyncio.gather(*(vm.run(STORM, trace_id=name) for name in names))
    await recover(vm)


async def recover(vm: ExecutionVM) -> None:
    """Until nothing is left but what needs somebody; events are given again, as a sender that heard nothing would."""
    idle = 0
    while idle < 3:
        done = await vm.recover()
        given = await asyncio.gather(*(give(vm, record) for record in vm.runs(limit=100_000)))
        idle = 0 if done or any(given) else idle + 1
        await asyncio.sleep(0.02)


async def give(vm: ExecutionVM, record: Any) -> bool:
    """Give a waiting run its event; whether there is anything to be done with it."""
    if record.parent is not None or record.status not in ("SUSPENDED", "RUNNING"):
        return False
    kinds = {wait.kind for wait in vm.trace(record.run_id).waiting}
    if "event" in kinds:
        try:
            await vm.resume(record.run_id, {"ok": True}, event_id=f"go-{record.run_id[1:]}")
        except NanoVMError as error:
            if error.code not in ("NOT_WAITING", "TERMINAL", "DUPLICATE"):  # somebody else was faster
                raise
    return record.status == "RUNNING" or bool(kinds & {"event", "timer"})


def main() -> None:
    global PLACE
    mode, place, first, count = sys.argv[1:5]
    PLACE = Path(place)
    (PLACE / "keys").mkdir(exist_ok=True)
    store = SqliteStore(PLACE / "runs.db", durability="normal")
    vm = ExecutionVM(llm=MockLLMAdapter("yes"), tools=TOOLS, store=store)
    append(f"ready-{first}", mode)
    asyncio.run(run(vm, int(first), int(count)) if mode == "run" else recover(vm))


if __name__ == "__main__":
    main()
