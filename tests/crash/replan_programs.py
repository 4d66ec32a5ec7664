"""A run that is stopped by its budget, and gone on with by a plan that has an agent: what is killed.

    python replan_programs.py DIRECTORY

Does what is left to be done, from wherever a process before it died. `CRASH_AT=n` as in `crash_programs`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import crash_programs
from crash_programs import TOOLS, Conversing, Watched, append, boundary, step

from nano_vm import Completion, ExecutionVM, NotFoundError, Planner, RunStatus, Trace, replan_on_interrupt

FIRST = {
    "name": "first",
    "max_steps": 2,
    "steps": [step("keyed", "A"), step("reconcilable", "B"), step("keyed", "N")],
}
PLAN = {
    "name": "next",
    "steps": [
        step("transactional", "C"),
        {
            "id": "ask",
            "type": "agent",
            "prompt": "do it, for $A",
            "tools": ["pure", "reconcilable", "keyed", "transactional"],
            "max_turns": 5,
        },
        step("keyed", "Z"),
    ],
}  # fmt: skip
EFFECTS = {"old": {"A", "B"}, "old~1": {"C", "R", "T", "K", "Z"}}


class Plans:
    """Writes the plan; how often it was asked is counted outside."""

    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
        boundary("before the plan")
        append("planned", "once")
        boundary("after the plan")
        return Completion(text=json.dumps(PLAN))


async def recovered(vm: ExecutionVM, run_id: str) -> Trace:
    """A run that seems to wait for an outcome may have died as it was about to find it out."""
    while await vm.recover() or vm.trace(run_id).status is RunStatus.RUNNING:
        pass
    return vm.trace(run_id)


async def go_on(vm: ExecutionVM) -> None:
    try:
        await recovered(vm, "old")
    except NotFoundError:
        await vm.run(FIRST, trace_id="old")
    trace = await replan_on_interrupt(vm, Planner(Plans(), vm.tools), "old", "finish it")
    await recovered(vm, trace.trace_id)


def main() -> None:
    crash_programs.PLACE = place = Path(sys.argv[1])
    (place / "keys").mkdir(exist_ok=True)
    store = Watched(place / "runs.db", durability="normal")
    asyncio.run(go_on(ExecutionVM(llm=Conversing(), tools=TOOLS, store=store)))
    (place / "boundaries").write_text(str(crash_programs._boundaries))


if __name__ == "__main__":
    main()
