"""The benchmark of watching runs still works; without telemetry nothing of it is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("opentelemetry.sdk")


def test_the_benchmark_of_telemetry_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "telemetry.py"), "--quick"],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] == []
    assert {row["way"] for row in found["rows"]} >= {
        "off",
        "closed",
        "spans",
        "spans+logs",
        "prometheus",
        "drift",
    }
    assert set(found["costs"]) >= {"trajectories", "measures", "drift", "archetypes"}
