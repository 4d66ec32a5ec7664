"""The benchmark of verifying still runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_of_verifying_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "verify.py"), "--quick"],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 22  # a title, plain journals of three sizes, others of two
