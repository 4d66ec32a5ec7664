"""The programs that are killed: run in a child process, which dies where its environment says.

    python crash_programs.py MODE DIRECTORY PROGRAM RUNS DURABILITY [ADDRESS]

MODE `run` starts runs, `recover` takes them up until nothing can be done without somebody's help. They are in
`runs.db` in the directory, or in the PostgreSQL database at the address. Effects are
counted outside of the process's control: each is one line, appended with O_APPEND in one write, or one file.
`CRASH_AT=n` kills the process with SIGKILL at the n-th boundary: before and after each commit of the journal, and
before and after each effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from nano_vm import (
    Completion,
    ExecutionVM,
    MockLLMAdapter,
    Reconciled,
    SqliteStore,
    ToolCall,
    ToolContext,
    tool,
)
from store_places import PostgresStore, values

PLACE = Path(".")
ADDRESS = ""
_boundaries = 0
_crash_at = int(os.environ.get("CRASH_AT", "0"))


def boundary(name: str) -> None:
    """One place where the process may die."""
    global _boundaries
    _boundaries += 1
    if _boundaries == _crash_at:
        os.kill(os.getpid(), signal.SIGKILL)


def append(file: str, line: str) -> None:
    handle = os.open(PLACE / file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(handle, line.encode() + b"\n")
    os.close(handle)


def effect(step: str, run: str, key: str) -> None:
    boundary(f"before {step}")
    append("effects", json.dumps([run, step, key]))
    boundary(f"after {step}")


class Boundaries:
    """What makes the commits of a store boundaries."""

    def create(self, *args: Any) -> Any:
        return self._around(super().create, args)  # type: ignore[misc]

    def append(self, *args: Any) -> Any:
        return self._around(super().append, args)  # type: ignore[misc]

    def append_plain(self, *args: Any) -> Any:
        return self._around(super().append_plain, args)  # type: ignore[misc]

    def _around(self, write: Callable[..., Awaitable[None] | None], args: Sequence[Any]) -> Any:
        boundary("before commit")
        durable = write(*args)
        if durable is None:
            boundary("after commit")
            return None

        async def waited() -> None:
            await durable
            boundary("after commit")

        return waited()


class Watched(Boundaries, SqliteStore): ...


class WatchedPostgres(Boundaries, PostgresStore): ...


# --- tools ----------------------------------------------------------------------------------------------------


@tool
async def irreversible(name: str, ctx: ToolContext) -> str:
    effect(name, ctx.trace_id, ctx.idempotency_key)
    return name


@tool
def blocking(name: str, ctx: ToolContext) -> str:
    effect(name, ctx.trace_id, ctx.idempotency_key)
    return name


@tool(effect="keyed")
async def keyed(name: str, ctx: ToolContext) -> str:
    """A server that honours keys: the effect happens once per key, however often it is asked for."""
    boundary(f"before {name}")
    draft = PLACE / f"draft-{os.getpid()}-{ctx.idempotency_key}"
    draft.write_text(json.dumps([ctx.trace_id, name, ctx.idempotency_key]))
    with contextlib.suppress(FileExistsError):
        os.link(draft, PLACE / "keys" / ctx.idempotency_key)  # the effect and its key in one
    boundary(f"after {name}")
    return name


def find_out(name: str, ctx: ToolContext) -> Reconciled:
    boundary(f"before reconciling {name}")
    text = (PLACE / "effects").read_text() if (PLACE / "effects").exists() else ""
    done = any(json.loads(line)[2] == ctx.idempotency_key for line in text.splitlines())
    return Reconciled.succeeded(name) if done else Reconciled.not_executed()


@tool(effect="reconcilable", reconcile=find_out)
async def reconcilable(name: str, ctx: ToolContext) -> str:
    effect(name, ctx.trace_id, ctx.idempotency_key)
    return name


@tool(effect="transactional")
async def transactional(name: str, ctx: ToolContext) -> str:
    con = ctx.transaction.connection
    con.execute("CREATE TABLE IF NOT EXISTS effects (run TEXT, step TEXT)")
    boundary(f"before {name}")
    con.execute(f"INSERT INTO effects VALUES ({values(ADDRESS, 2)})", (ctx.trace_id, name))
    boundary(f"after {name}")
    return name


@tool(effect="pure")
def pure(name: str) -> str:
    return name


@tool(effect="keyed")
async def flaky(name: str, ctx: ToolContext) -> str:
    """Fails twice, whoever asks; the attempts are counted outside."""
    boundary(f"before {name}")
    append("attempts", ctx.trace_id)
    tries = (PLACE / "attempts").read_text().split().count(ctx.trace_id)
    boundary(f"after {name}")
    if tries < 3:
        raise ValueError("not yet")
    return name


TOOLS = [irreversible, blocking, keyed, reconcilable, transactional, pure, flaky]


def step(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "type": "tool", "tool": kind, "args": {"name": name}, **fields}


def three(kind: str) -> dict[str, Any]:
    return {"name": kind, "steps": [step(kind, "A"), step(kind, "B"), step(kind, "C")]}


PROGRAMS: dict[str, dict[str, Any]] = {
    **{kind: three(kind) for kind in ("irreversible", "blocking", "keyed", "reconcilable", "transactional")},
    "mixed": {
        "name": "mixed",
        "steps": [
            step("pure", "P"),
            {"id": "ask", "type": "llm", "prompt": "go on?", "allowed_outputs": ["yes", "no"]},
            {"id": "c", "type": "condition", "condition": "$ask.output == 'yes'", "then": "g", "otherwise": "no"},
            {
                "id": "g",
                "type": "parallel",
                "parallel_steps": [step("keyed", "K"), step("transactional", "T"), step("reconcilable", "R")],
            },
            {"id": "m", "type": "map", "over": [1, 2, 3],
             "step": {"id": "each", "type": "tool", "tool": "keyed", "args": {"name": "M${index}"}}},
            step("transactional", "Z", is_terminal=True),
            step("pure", "no", is_terminal=True),
        ],
    },
    "saga": {
        "name": "saga",
        "steps": [
            step("reconcilable", "A", compensate={"tool": "keyed", "args": {"name": "undo-A"}}),
            step("transactional", "B", compensate={"tool": "transactional", "args": {"name": "undo-B"}}),
            step("pure", "end", is_terminal=True, final_status="FAILED"),
        ],
    },
    "parent": {
        "name": "parent",
        "steps": [
            step("reconcilable", "A"),
            {"id": "call", "type": "call", "program": "child", "inputs": {}},
            step("keyed", "Z"),
        ],
    },
    "agent": {
        "name": "agent",
        "steps": [
            {
                "id": "ask",
                "type": "agent",
                "prompt": "do it",
                "tools": ["pure", "reconcilable", "keyed", "transactional"],
                "max_turns": 5,
            },
            step("keyed", "Z"),
        ],
    },
    "child": {
        "name": "child",
        "steps": [step("reconcilable", "X"), step("transactional", "Y"), step("keyed", "W")],
    },
    "retry": {
        "name": "retry",
        "steps": [
            step("flaky", "F", on_error="retry", max_retries=9,
                 retry={"initial": 0.01, "factor": 1, "cap": 0.01, "jitter": False}),
            step("irreversible", "A"),
        ],
    },
}  # fmt: skip


class Conversing:
    """Proposes effects and things it may not do, whatever it is asked. Its answers depend on the conversation alone;
    how often it was asked for each is counted outside."""

    def __init__(self) -> None:
        self.plan = (
            (call("pure", "P"), call("reconcilable", "R"), call("irreversible", "X"), call("keyed", 5)),
            (call("transactional", "T"), call("keyed", "K")),
        )

    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
        turn = sum(message["role"] == "assistant" for message in messages)
        boundary(f"before turn {turn}")
        append("asked", str(turn))
        boundary(f"after turn {turn}")
        if "tools" not in params:
            return Completion(text="yes")
        if turn < len(self.plan):
            return Completion(tool_calls=self.plan[turn])
        told = [message["content"] for message in messages if message["role"] == "tool"]
        return Completion(text=json.dumps(told))


def call(name: str, argument: Any) -> ToolCall:
    return ToolCall(f"call-{argument}", name, json.dumps({"name": argument}))


async def run(vm: ExecutionVM, name: str, runs: int) -> None:
    vm.save_program(PROGRAMS["child"])
    await asyncio.gather(*(vm.run(PROGRAMS[name], trace_id=f"r{number}") for number in range(runs)))


async def recover(vm: ExecutionVM) -> None:
    while await vm.recover():
        pass


def main() -> None:
    global PLACE, ADDRESS
    mode, place, name, runs, durability = sys.argv[1:6]
    PLACE, ADDRESS = Path(place), "".join(sys.argv[6:])
    (PLACE / "keys").mkdir(exist_ok=True)
    kept = "full" if durability == "full" else "normal"
    store = WatchedPostgres(ADDRESS, kept) if ADDRESS else Watched(PLACE / "runs.db", durability=kept)
    vm = ExecutionVM(llm=Conversing() if name == "agent" else MockLLMAdapter("yes"), tools=TOOLS, store=store)
    append("ready", mode)
    asyncio.run(run(vm, name, int(runs)) if mode == "run" else recover(vm))
    (PLACE / "boundaries").write_text(str(_boundaries))


if __name__ == "__main__":
    main()
