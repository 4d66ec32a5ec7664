"""The benchmark of the drift detector still runs, on generated runs and on an event log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from nano_vm.observe import eventlog
from nano_vm.observe.trajectory import Move, Trajectory

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "drift.py"), "--quick", *words],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout.splitlines()[-1])


def test_the_benchmark_of_drift_runs() -> None:
    assert {row["failing"] for row in run()["rows"]} == {0.05, 0.1, 0.2, 0.4}


def test_the_benchmark_of_drift_takes_a_log(tmp_path: Path) -> None:
    cases = [
        Trajectory(
            id=str(number),
            source="made",
            moves=tuple(
                Move(activity=name, finished_at_ms=1_000 * number + 1)
                for name in ("a", "b" if number % 3 else "c", "d")
            ),
        )
        for number in range(300)
    ]
    file = tmp_path / "log.xes"
    file.write_text("".join(eventlog.xes(cases)), encoding="utf-8")
    rows = run("--log", str(file))["rows"]
    assert rows[0]["share"] == 0
    assert rows[-1] == {
        "log": "log.xes",
        "baseline": 60,
        "disturbance": "as recorded",
        "first_alarm": None,
        "evidence": None,
    }
    assert any(row.get("found") for row in rows)
    assert len(run("--log", str(file), "--archetypes")["rows"]) == len(rows)
