"""The benchmark of labels runs, so it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_of_labels_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "governance.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "labels and decisions over neither" in done.stdout
