"""Who calls under a key that another process is at work for waits for its result."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

from nano_vm import ExecutionVM, Program
from nano_vm.journal.port import RunRecord
from nano_vm.runtime import starting
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.loop import SimulatedClock, SimulatedLoop, run

HOUR_MS = 3_600_000
PROGRAM = Program.from_dict({"name": "slow", "steps": [{"id": "act", "type": "tool", "tool": "act"}]})


def test_it_looks_less_often_the_longer_it_has_waited(tmp_path: Path) -> None:
    looked: list[float] = []
    calls = 0

    async def act() -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(HOUR_MS / 1_000)
        return "done"

    class Watched(SqliteStore):
        def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
            looked.append(loop.time())
            return super().claim(run_id, now_ms, known)

    async def main() -> None:
        clock = SimulatedClock(loop)
        first = ExecutionVM(tools=[act], store=SqliteStore(tmp_path / "runs.db", "normal"), clock=clock)
        second = ExecutionVM(tools=[act], store=Watched(tmp_path / "runs.db", "normal"), clock=clock)
        working = asyncio.ensure_future(first.run(PROGRAM, idempotency_key="k", trace_id="r"))
        await asyncio.sleep(1)
        trace = await second.run(PROGRAM, idempotency_key="k")
        assert (trace.trace_id, trace.final_output, calls) == ("r", "done", 1)
        assert trace.trace_id == (await working).trace_id
        await first.close()
        await second.close()

    loop = SimulatedLoop()
    run(main(), loop)
    pauses = [after - before for before, after in pairwise(looked)]
    assert pauses[0] < 2 * starting.POLL_S
    assert len(looked) < HOUR_MS / 1_000 / starting.POLL_MAX_S + 200
