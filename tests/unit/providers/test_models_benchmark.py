"""benchmarks/models.py works, tiny: its questions have answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_benchmark_of_model_calls_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "models.py"), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["median"] for row in json.loads(done.stdout)}
    assert set(rows) == {"adapter", "pool", "hit", "hit_ms", "switch", "switch_ms", "many"}
    assert all(value > 0 for value in rows.values())
