"""Windows: what has changed, measure by measure, against limits that the baseline sets."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from nano_vm.cli.main import main
from nano_vm.observe import eventlog
from nano_vm.observe.baseline import Baseline, learn, measured
from nano_vm.observe.trajectory import Move, Trajectory
from nano_vm.observe.windows import Limits, limits, windows
from unit.runtime.runtime_stage import refused


def runs(
    count: int, seed: int, *, retries: float = 0.1, fails: float = 0.0, refused: float = 0.0
) -> list[Trajectory]:
    chance = Random(seed)
    found = []
    for number in range(count):
        moves = [Move(activity="look", finished_at_ms=number * 1_000)]
        while chance.random() < retries:
            moves.append(Move(activity="pay", failed=True))
        moves.append(Move(activity="pay"))
        failed = chance.random() < fails
        found.append(
            Trajectory(
                id=f"{seed}-{number}",
                source="made",
                program="p",
                moves=tuple(moves),
                actions=("a",) * len(moves),
                status="FAILED" if failed else "SUCCESS",
                violations=int(chance.random() < refused),
                transitions=10,
                started_at_ms=number * 1_000,
            )
        )
    return found


def over(found: list[Trajectory], baseline: Baseline, held_to: Limits) -> list[list[str]]:
    return [window.over for window in windows(baseline, found, held_to)]


def test_a_window_of_healthy_runs_is_within_the_limits() -> None:
    baseline = learn(runs(300, 1))
    held_to = limits(baseline)
    alarms = [bool(names) for seed in range(10) for names in over(runs(500, 100 + seed), baseline, held_to)]
    assert len(alarms) == 100
    assert sum(alarms) <= 4  # 1 % a window, stated


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"retries": 0.5}, {"failed_moves", "mean_surprisal", "moves", "transition_entropy"}),
        ({"fails": 0.3}, {"failed", "mean_surprisal"}),
        ({"refused": 0.5}, {"violation_rate"}),
    ],
)
def test_what_has_changed_is_named(change: dict[str, float], expected: set[str]) -> None:
    baseline = learn(runs(300, 1))
    found = over(runs(200, 2, **change), baseline, limits(baseline))
    assert len(found) == 4
    for names in found:
        assert expected <= set(names)
    unrelated = {"rollback_density"} | ({"violation_rate"} - expected)
    assert all(not unrelated & set(names) for names in found)


def test_windows_follow_one_another_and_the_last_may_be_small() -> None:
    baseline = learn(runs(100, 1))
    found = list(windows(baseline, runs(130, 2), limits(baseline, size=50)))
    assert [(one.first, one.last, one.runs) for one in found] == [
        ("2-0", "2-49", 50),
        ("2-50", "2-99", 50),
        ("2-100", "2-129", 30),
    ]
    assert found[-1].over == []
    assert found[0].values["moves"] == sum(len(run.moves) for run in runs(130, 2)[:50]) / 50


def test_larger_windows_have_tighter_limits() -> None:
    baseline = learn(runs(200, 1))
    small, large = limits(baseline, size=10).values, limits(baseline, size=200).values
    assert large["moves"] < small["moves"]
    mean = sum(baseline.measures["moves"]) / baseline.runs
    assert large["moves"] > mean


def test_the_same_baseline_gives_the_same_limits_also_from_its_file() -> None:
    baseline = learn(runs(60, 1))
    assert limits(baseline) == limits(Baseline.from_bytes(baseline.to_bytes()))
    assert set(limits(baseline).values) == set(measured(runs(1, 3)[0], baseline))


def test_what_cannot_be_made_windows_of_is_said() -> None:
    baseline = learn(runs(60, 1))
    for size in (0, 10_001):
        with refused("USAGE"):
            limits(baseline, size=size)
    with refused("USAGE"):
        limits(baseline, false_alarm=0)
    with refused("SMALL_BASELINE"):
        limits(learn(runs(19, 1)))
    old = json.loads(baseline.to_bytes())
    del old["measures"]
    with refused("SMALL_BASELINE"):
        limits(Baseline.from_bytes(json.dumps(old).encode()))


def test_the_command_line_shows_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.jsonl"
    later = runs(200, 2, retries=0.6)
    shifted = [
        Trajectory(
            id=run.id, source=run.source, program="p", moves=run.moves, status=run.status,
            started_at_ms=run.started_at_ms + 10**9, transitions=10,
        )
        for run in later
    ]  # fmt: skip
    file.write_text("".join(eventlog.jsonl([*runs(200, 1), *shifted])), encoding="utf-8")
    words = ["drift", str(file), "--from", "jsonl", "--baseline-runs", "150", "--windows"]
    assert main([*words, "50", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["limits"]["size"] == 50
    assert [bool(window["over"]) for window in said["windows"]] == [False, True, True, True, True]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "windows of 50 runs" in shown
    assert "moves" in shown
    assert main([*words, "0", "--json"]) == 2
    assert main([*words, "--archetypes", "--json"]) == 2
    capsys.readouterr()
