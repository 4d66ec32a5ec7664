"""The benchmark of prompt injections runs on a task of its own, so it cannot rot; its figures are what guards do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_of_injections_runs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "injection.py"), "--quick", "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["guard"]: row for row in json.loads(out.read_text())["table"]}
    figures = {
        guard: (row["broken"], row["useful"], row["asked"], row["refused"]) for guard, row in rows.items()
    }
    assert figures == {
        "unprotected": (1, 1, 0, 0),
        "allow-list": (1, 1, 0, 0),
        "labels": (0, 0, 0, 0),
        "approvals": (0, 1, 2, 1),
        "waved": (1, 1, 2, 0),
    }
