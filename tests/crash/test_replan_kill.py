"""kill -9 at the boundaries of a run, of the planner that goes on with it, and of the plan it wrote."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import crash_programs
import pytest
import replan_programs
from test_kill import MODULES, answers, effects

from nano_vm import ExecutionVM, SqliteStore

SOURCE = Path(replan_programs.__file__).resolve()


def drive(place: Path, crash_at: int = 0) -> int:
    environment = {**os.environ, "CRASH_AT": str(crash_at), "PYTHONPATH": MODULES}
    done = subprocess.run(
        [sys.executable, str(SOURCE), str(place)], env=environment, stderr=subprocess.PIPE, timeout=120
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


def check(place: Path, killed: int) -> None:
    done = effects(place)
    assert all(count == 1 for count in done.values()), done
    missing = {(run, name) for run, names in replan_programs.EFFECTS.items() for name in names} ^ set(done)
    assert missing <= (
        {("old", "B")} if killed else set()
    )  # an attempt that is repeated counts against `max_steps`
    planned = (place / "planned").read_text().split()
    assert len(planned) <= 1 + killed  # a plan that nobody had begun to run is written again
    assert sum(answers(place).values()) <= 3 + killed
    with SqliteStore(place / "runs.db") as store:
        vm = ExecutionVM(tools=crash_programs.TOOLS, store=store)
        asked = {record.run_id for record in vm.runs(program="planning")}
        assert 1 <= len(asked) <= 1 + killed
        assert {record.run_id for record in vm.runs()} - asked == {"old", "old~1"}
        old, new = vm.trace("old"), vm.trace("old~1")
        assert (old.status.value, new.status.value) == ("BUDGET_EXCEEDED", "SUCCESS")
        assert new.replanned == {"run": "old", "head": old.head, "program": old.program_hash, "number": 1}
        for trace in (old, new):
            vm.verify(trace.trace_id)


@pytest.mark.parametrize("part", [None, *(pytest.param(n, marks=pytest.mark.campaign) for n in range(8))])
def test_a_plan_that_goes_on_with_a_run_repeats_nothing_wherever_it_is_killed(
    tmp_path: Path, part: int | None
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert drive(whole) == 0
    check(whole, 0)
    total = int((whole / "boundaries").read_text())
    rng = random.Random(str(part))
    for at in range(1 + part, total + 1, 8) if part is not None else rng.sample(range(1, total + 1), 3):
        place = tmp_path / f"at{at}"
        place.mkdir()
        killed = 0
        for crash_at in (at, 1 + rng.randrange(total), 0):  # once, perhaps again, and to the end
            killed += drive(place, crash_at) == -signal.SIGKILL
        check(place, killed)
