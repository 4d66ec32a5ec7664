"""`nano-vm chaos`: real processes, real kills, effects counted outside - and a judge that notices a broken engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nano_vm.cli.main import main
from nano_vm.testing.chaos.campaign import SCENARIOS, Figures, run_campaign, run_round

SHORT = ("duplicate_execution", "mid_step_crash", "suspend_resume_races", "model_noise")


def named(name: str):
    return next(one for one in SCENARIOS if one.name == name)


def test_there_are_the_thirteen_scenarios() -> None:
    assert len({one.name for one in SCENARIOS}) == 13


@pytest.mark.parametrize("name", SHORT)
def test_no_promise_is_broken(name: str, tmp_path: Path) -> None:
    figures = Figures(name=name)
    run_round(named(name), tmp_path, 1, figures)
    assert figures.violations == []
    assert figures.runs == named(name).runs
    assert figures.events > figures.runs
    assert figures.effects > 0


@pytest.mark.campaign
@pytest.mark.parametrize("name", [one.name for one in SCENARIOS])
def test_no_promise_is_broken_in_many_rounds(name: str) -> None:
    (figures,) = run_campaign([name], seed=7, events=20_000, seconds=300)
    assert figures.violations == []
    assert figures.events > 0


def test_a_broken_engine_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of the scenario runs an engine that repeats unknown outcomes blindly."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "from nano_vm.runtime import intents\n"
        "from nano_vm.runtime.tooling import EFFECTS\n"
        "intents.REPEATABLE = frozenset(EFFECTS)\n"
    )
    monkeypatch.syspath_prepend(str(broken))
    figures = Figures(name="timeout_drift")
    run_round(named("timeout_drift"), tmp_path / "place", 1, figures)
    assert any(violation.startswith("P4: hanging `slow`") for violation in figures.violations)


def test_the_command_tells_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "budget_storm", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["scenarios"]
    assert row["statuses"] == {"BUDGET_EXCEEDED": 40}
    assert row["violations"] == []


def test_simulations_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "simulate", "--seeds", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["broken"] == []
    assert told["transitions"] > 0


def test_an_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "mid_step_crahs"]) == 2
