"""A storm of kills over one database that keeps growing, and two processes that recover at the same time (P1, P3, P4,
P10). Runs of all effect classes wait, sleep, retry and call children meanwhile; effects are counted outside."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import storm_programs

from nano_vm import ExecutionVM, SqliteStore

SOURCE = Path(storm_programs.__file__).resolve()
ROOT = SOURCE.parents[2]
TIMEOUT_S = 240


def launch(mode: str, place: Path, first: int = 0, count: int = 0) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    argv = [sys.executable, str(SOURCE), mode, str(place), str(first), str(count)]
    return subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes], *allowed: int) -> None:
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode in (0, *allowed), errors.decode()[-3_000:]


def kill_soon(process: subprocess.Popen[bytes], ready: Path, seconds: float) -> None:
    while not ready.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    finish(process, -signal.SIGKILL)


def check(place: Path) -> Counter[str]:
    store = SqliteStore(place / "runs.db")
    assert store.integrity() == []
    vm = ExecutionVM(tools=storm_programs.TOOLS, store=store)
    effects: Counter[tuple[str, str, str, str]] = Counter()
    if (place / "effects").exists():
        effects.update(tuple(json.loads(line)) for line in (place / "effects").read_text().splitlines())
    keys = [file for file in (place / "keys").iterdir() if not file.name.startswith(".")]
    effects.update(tuple(json.loads(file.read_text())) for file in keys)
    con = sqlite3.connect(place / "runs.db")
    if con.execute("SELECT 1 FROM sqlite_master WHERE name = 'effects'").fetchone():
        effects.update(("transactional", *row, "") for row in con.execute("SELECT run, step FROM effects"))
    con.close()
    twice = {what: count for what, count in effects.items() if count > 1 and what[0] != "idempotent"}
    assert not twice, twice
    happened = Counter((run, name) for _, run, name, _ in effects)
    statuses: Counter[str] = Counter()
    for record in vm.runs(limit=100_000):
        vm.verify(record.run_id)
        trace = vm.trace(record.run_id)
        statuses[record.status] += 1
        assert record.status in ("SUCCESS", "SUSPENDED"), (record.run_id, record.status)
        if record.status == "SUSPENDED":
            kinds = {wait.kind for wait in trace.waiting}
            assert kinds == {"outcome"}, (record.run_id, kinds)
        else:
            names = "ARTINBZ" if record.parent is None else "XYW"
            missing = [name for name in names if not happened[record.run_id, name]]
            assert not missing, (record.run_id, missing)
        finished = Counter(
            (event.step, event.occurrence, event.item)
            for event in trace.events
            if event.type == "StepSucceeded"
        )
        assert all(count == 1 for count in finished.values()), record.run_id
    store.close()
    return statuses


def storm(place: Path, kills: int, seed: int, runs: int) -> Counter[str]:
    draw = random.Random(seed)
    (place / "keys").mkdir()
    for number in range(kills):
        first = number * runs
        worker = launch("run", place, first, runs)
        kill_soon(worker, place / f"ready-{first}", draw.random() * 0.4)
        if number % 5 == 4:  # also while two take up what is there
            pair = [launch("recover", place, 10**6 + number), launch("recover", place, 10**7 + number)]
            kill_soon(pair[0], place / f"ready-{10**6 + number}", draw.random() * 0.4)
            kill_soon(pair[1], place / f"ready-{10**7 + number}", draw.random() * 0.4)
    pair = [launch("recover", place, 10**8 + n) for n in range(2)]
    for worker in pair:
        finish(worker)
    finish(launch("recover", place, 10**8 + 2))
    return check(place)


def test_a_short_storm(tmp_path: Path) -> None:
    statuses = storm(tmp_path, kills=4, seed=int(os.environ.get("NANO_VM_SEED", "7")), runs=6)
    assert statuses["SUCCESS"] > 0


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_storm_of_fifty_kills(tmp_path: Path, seed: int) -> None:
    assert storm(tmp_path, kills=50, seed=seed, runs=8)["SUCCESS"] > 0
