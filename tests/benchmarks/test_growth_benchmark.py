"""The growth curves are drawn, so the benchmark cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_curve_is_drawn(tmp_path: Path) -> None:
    report = tmp_path / "growth.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "growth.py"), "--quick", "--json", str(report)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    curves = json.loads(report.read_text())["curves"]
    assert {one["curve"] for one in curves} == {"steps", "turns", "runs", "payload", "journal"}
    assert all(one["ratios"][str(one["base"])] == 1 for one in curves)


def test_a_curve_that_grows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import growth

    grows = growth.curve("runs", "time", 1, {1: 2.0, 10: 2.0, 100: 3.0}, 1.2)
    assert (grows["ratios"], grows["flat"]) == ({"1": 1.0, "10": 1.0, "100": 1.5}, False)
    assert growth.curve("runs", "time", 1, {1: 2.0, 100: 2.2}, 1.2)["flat"] is True
    assert growth.curve("runs", "time", 1, {1: 2.0}, 1.2)["flat"] is None
    assert "GROWS" in growth.table([grows])
