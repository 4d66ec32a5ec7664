"""`nano-vm drift` and `trace --metrics`: what they say, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, SqliteStore, tool
from nano_vm.cli.main import main


@pytest.fixture
def database(tmp_path: Path) -> str:
    @tool(effect="pure")
    def act(n: int) -> int:
        return n

    file = tmp_path / "runs.db"
    step = {"id": "a", "type": "tool", "tool": "act", "args": {"n": "$n"}}
    vm = ExecutionVM(tools=[act], store=SqliteStore(file, durability="normal"))
    for n in range(44):
        vm.run_sync({"name": "p", "steps": [step]}, {"n": n}, trace_id=f"r{n}")
    vm.store.close()
    return str(file)


def spoken(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_runs_are_held_against_a_baseline(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = str(tmp_path / "p.baseline")
    assert main(["drift", "p", "--store", database, "--save", kept, "--json"]) == 0
    said = spoken(capsys)
    assert (said["health"], said["baseline_runs"], said["runs"]) == ("STABLE", 22, 22)
    assert (
        main(["drift", said["program"]["hash"], "--store", database, "--baseline", kept, "--check", "--json"])
        == 0
    )
    assert spoken(capsys)["runs"] == 44
    assert main(["trace", "r1", "--metrics", "--baseline", kept, "--store", database, "--json"]) == 0
    measured = spoken(capsys)
    assert measured["mean_surprisal"] > 0
    assert measured["normalized_entropy"] == 0.0


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (["nobody"], "RUN_NOT_FOUND", 2),
        (["p", "--baseline-runs", "5"], "SMALL_BASELINE", 2),
        (["p", "--baseline-runs", "45"], "SMALL_BASELINE", 2),
        (["p", "--false-alarm", "2"], "USAGE", 2),
        (["p", "--horizon", "0"], "USAGE", 2),
        (["p", "--limit", "0"], "USAGE", 2),
        (["p", "--baseline", "nowhere"], "BASELINE_FILE", 1),
        (["p", "--baseline", __file__], "BAD_BASELINE", 2),
        (["p", "--baseline", "x", "--save", "y"], "USAGE", 2),
        (["p", "--save", "no/such/place"], "BASELINE_FILE", 1),
    ],
)
def test_what_cannot_be_done_is_said(
    database: str, capsys: pytest.CaptureFixture[str], words: list[str], code: str, exit_code: int
) -> None:
    assert main(["drift", *words, "--store", database, "--json"]) == exit_code
    assert spoken(capsys)["error"]["code"] == code
