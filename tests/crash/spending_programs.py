"""A model call that is paid for, in a process that dies on the way: see `test_spending_kill.py`.

    python spending_programs.py DIRECTORY

`CRASH_AT=n` kills the process at the n-th boundary: before and after each commit, each counting, and the call.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import crash_programs
from approval_programs import Everything
from crash_programs import append, boundary

from nano_vm import Completion, ExecutionVM, SqliteStore, Usage

WORST, ACTUAL = 100_000_000, 20_000_000  # nano-dollars
FLOW = {"name": "spend", "steps": [
    {"id": "m", "type": "llm", "prompt": "go on?", "params": {"max_tokens": 100}},
    {"id": "n", "type": "llm", "prompt": "and now?", "params": {"max_tokens": 100}},
]}  # fmt: skip
LIMIT = {"max_cost_usd": 5, "per": ["principal", "day"]}
POLICY = {"policy": "p", "rules": [{"id": "spend", "models": ["default"], "limits": [LIMIT]}]}


class Priced:
    """A tenth of a dollar at most, a fiftieth in the end. Calls are counted outside."""

    def price(self, model: str | None) -> tuple[float, float]:
        return 0, WORST / 100

    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
        boundary("before the call")
        append("asked", "once")
        boundary("after the call")
        return Completion(text="yes", usage=Usage(cost_usd=ACTUAL / 1e9))


def machine(place: Path, store: SqliteStore) -> ExecutionVM:
    crash_programs.PLACE = place
    return ExecutionVM(Priced(), store=store, policy=POLICY)


def main() -> None:
    place = Path(sys.argv[1])
    vm = machine(place, Everything(place / "runs.db", durability="normal"))
    asyncio.run(vm.run(FLOW, trace_id="r0", principal={"id": "ana", "roles": []}))
    (place / "boundaries").write_text(str(crash_programs._boundaries))


if __name__ == "__main__":
    main()
