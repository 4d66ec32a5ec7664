"""The studio's benchmark, tiny."""

from __future__ import annotations

import importlib.util
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "studio.py"


def test_the_benchmark_of_the_studio_runs_and_measures_all_that_is_read() -> None:
    spec = importlib.util.spec_from_file_location("studio_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(["--runs", "30", "--steps", "40", "--rounds", "1", "--no-browser", "--json"])
    assert len(found["reading_ms"]) == 8
    assert found["browser_ms"] is None
