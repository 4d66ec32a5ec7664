"""Killed between a reservation and its settling, a limit on money never counts less than was spent (P10)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import spending_programs
from spending_programs import ACTUAL, WORST, machine
from test_kill import MODULES, finish

from nano_vm import SqliteStore
from nano_vm.kernel.events import PolicyDecided

SOURCE = Path(spending_programs.__file__).resolve()


def spend(place: Path, crash_at: int = 0) -> int:
    place.mkdir()
    environment = {**os.environ, "CRASH_AT": str(crash_at), "PYTHONPATH": MODULES}
    argv = [sys.executable, str(SOURCE), str(place)]
    return finish(subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE))


def settled(place: Path) -> tuple[int, int]:
    """How often the model was asked, and what the limit has counted, once everything that can be has been done."""
    store = SqliteStore(place / "runs.db")
    try:
        vm = machine(place, store)
        while asyncio.run(vm.recover()):
            pass
        if vm.runs():
            trace = vm.trace("r0")
            vm.verify("r0")
            assert trace.status.value == "SUCCESS"
        else:  # it had not come so far as to be a run
            asyncio.run(vm.run(spending_programs.FLOW, trace_id="r1", principal={"id": "ana", "roles": []}))
            trace = vm.trace("r1")
        key = next(e.counts[0][0] for e in trace.events if type(e) is PolicyDecided and e.counts)
        return len((place / "asked").read_text().split()), store.counted([key], "")[0]
    finally:
        store.close()


def kill_at(tmp_path: Path, places: list[int]) -> None:
    for at in places:
        assert spend(tmp_path / f"at{at}", at) == -signal.SIGKILL
        asked, counted = settled(tmp_path / f"at{at}")
        assert 2 <= asked <= 3  # one that was in flight is asked once more, and paid for
        assert counted >= asked * ACTUAL, at
        # What nobody saw the end of stands at its worst; two calls of the run itself were settled, or one of them was.
        assert counted <= 3 * WORST, at


def boundaries_of(tmp_path: Path) -> int:
    assert spend(tmp_path / "whole") == 0
    assert settled(tmp_path / "whole") == (2, 2 * ACTUAL)
    return int((tmp_path / "whole" / "boundaries").read_text())


def test_killed_between_reservation_and_bill_nothing_is_undercounted(tmp_path: Path) -> None:
    total = boundaries_of(tmp_path)
    kill_at(tmp_path, sorted(random.Random(4).sample(range(1, total + 1), 3)))


@pytest.mark.campaign
def test_every_boundary_between_reservation_and_bill(tmp_path: Path) -> None:
    kill_at(tmp_path, list(range(1, boundaries_of(tmp_path) + 1)))
