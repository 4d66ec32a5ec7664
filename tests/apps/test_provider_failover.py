"""apps/provider_failover, run as its readers run it: real servers, a real kill in the middle of a request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "apps" / "provider_failover" / "run.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}


def call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


def result(*options: str) -> Any:
    done = call(str(APP), *options, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_run_ends_the_same_way_whether_the_primary_degrades_dies_or_stays(tmp_path: Path) -> None:
    found = result("--both", "--store", str(tmp_path))
    none, retry, hard = found["runs"]
    assert [run["status"] for run in found["runs"]] == ["SUCCESS"] * 3
    assert [run["decision"] for run in found["runs"]] == ["approve"] * 3
    assert found["trace_hash_equal_retry_hard"] is True
    assert found["outcome_hash_equal_all"] is True
    assert retry["trace_hash"] == hard["trace_hash"] != none["trace_hash"]
    assert (none["provider_final"], none["switches"]) == ("primary", [])
    assert retry["provider_final"] == hard["provider_final"] == "backup"
    assert [(s["step"], s["reason"], s["attempts"]) for s in retry["switches"]] == [
        ("decide", "RetryLimitExceeded", 3),
        ("letter", "ProviderUnavailable", 0),  # its circuit is open by then
    ]
    assert [(s["step"], s["reason"], s["attempts"]) for s in hard["switches"]] == [
        ("decide", "ProviderUnavailable", 1),
        ("letter", "ProviderUnavailable", 1),
    ]
    assert [run["primary_killed"] for run in found["runs"]] == [False, False, True]
    # The command line explains it, and proves it.
    store = ("--store", str(tmp_path / "runs.db"))
    same = call("-m", "nano_vm.cli", "diff", retry["trace_id"], hard["trace_id"], *store, "--json")
    explained = json.loads(same.stdout)
    assert explained["differences"] == []
    assert explained["providers"]["a"]["final"] == explained["providers"]["b"]["final"] == "backup"
    assert len(explained["providers"]["a"]["switch_events"]) == 2
    other = json.loads(
        call("-m", "nano_vm.cli", "diff", none["trace_id"], hard["trace_id"], *store, "--json").stdout
    )
    assert [difference["step"] for difference in other["differences"]] == ["letter"]
    assert other["execution_equivalent"] is True
    assert call("-m", "nano_vm.cli", "verify", "--all", *store).returncode == 0
    shown = call("-m", "nano_vm.cli", "trace", retry["trace_id"], *store)
    assert "RetryLimitExceeded" in shown.stdout


def test_scored_routing_leaves_the_slow_and_the_failing(tmp_path: Path) -> None:
    found = result("--scored")
    assert [run["status"] for run in found["runs"]] == ["SUCCESS"] * 6
    by_name = {row["name"]: row for row in found["providers"]}
    assert by_name["alpha"]["circuit"] == "OPEN"
    assert by_name["alpha"]["failed"] == 3
    assert found["runs"][0]["answered"][0] == "gamma"  # the cheapest, until it is known to be slow
    assert "alpha" not in found["runs"][-1]["answered"]
    assert sum(run["switches"] for run in found["runs"]) == 1
    assert found["providers"][-1]["name"] == "alpha"
