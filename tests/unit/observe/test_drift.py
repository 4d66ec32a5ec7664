"""Drift: what is learned, what an alarm means, and that nothing but the runs decides."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from nano_vm.observe.baseline import Baseline, learn
from nano_vm.observe.changepoint import ChangePoints
from nano_vm.observe.drift import DriftMonitor, Health, Report, calibrate
from nano_vm.observe.trajectory import Move, Trajectory
from unit.runtime.runtime_stage import refused


def runs(count: int, seed: int, *, retries: float = 0.05, fails: float = 0.0) -> list[Trajectory]:
    """Runs of a small program with a choice, and a step that is sometimes tried again."""
    chance = Random(seed)
    found = []
    for number in range(count):
        path = ["look", "decide"]
        if chance.random() < 0.5:
            path.append("pay")
            while chance.random() < retries:
                path.append("pay")
        else:
            path.append("refuse")
        failed = chance.random() < fails
        if not failed:
            path.append("notify")
        moves = tuple(Move(activity=name) for name in path)
        status = "FAILED" if failed else "SUCCESS"
        found.append(
            Trajectory(id=f"{seed}-{number}", source="test", program="p", moves=moves, status=status)
        )
    return found


def watch(baseline: Baseline, watched: list[Trajectory]) -> DriftMonitor:
    monitor = DriftMonitor(baseline)
    for run in watched:
        monitor.observe(run)
    return monitor


@pytest.mark.parametrize(("lives", "tolerated"), [(6, 1), pytest.param(48, 6, marks=pytest.mark.campaign)])
def test_false_alarms_are_as_rare_as_stated_and_changes_are_found(lives: int, tolerated: int) -> None:
    """Programs' lives of 1,000 runs: 5 % of them may alarm. Two of six, or seven of 48, would be unlikely (3 %)."""
    alarms = 0
    delays = []
    for seed in range(lives):
        baseline = learn(runs(150, seed))
        monitor = DriftMonitor(baseline)
        alarms += any(monitor.observe(run) is not Health.STABLE for run in runs(1_000, 1_000 + seed))
        drifted = DriftMonitor(baseline)
        for delay, run in enumerate(runs(300, 2_000 + seed, retries=0.4), 1):
            if drifted.observe(run) is not Health.STABLE:
                delays.append(delay)
                break
    assert alarms <= tolerated
    assert 12 * len(delays) >= 11 * lives
    assert sorted(delays)[lives // 2] <= 100


def test_a_drift_is_told_with_its_evidence() -> None:
    changes: list[Report] = []
    monitor = DriftMonitor(learn(runs(150, 1)), on_change=changes.append)
    for run in [*runs(200, 2), *runs(100, 3, retries=0.6)]:
        monitor.observe(run)
    report = monitor.report()
    assert report.health is not Health.STABLE
    assert report.alarm is not None
    assert report.alarm.startswith("3-")
    assert report.since is not None
    assert report.changed > 0.95
    assert (report.evidence[0]["from"], report.evidence[0]["to"]) == ("pay", "pay")
    assert report.evidence[0]["seen"] > 3 * report.evidence[0]["expected"]
    assert changes[0].health is not Health.STABLE
    assert json.loads(json.dumps(report.to_dict()))["health"] == report.health.value


def test_runs_that_come_to_fail_are_a_degradation() -> None:
    monitor = watch(learn(runs(150, 1)), runs(60, 2, fails=0.3))
    report = monitor.report()
    assert report.health is Health.DEGRADED
    assert report.success[0] < 0.9 < report.success[1]
    assert any(row["to"] == "(FAILED)" for row in report.evidence)


def test_one_strange_run_is_no_drift_and_well_again_is_well() -> None:
    baseline = learn(runs(150, 1))
    strange = Trajectory(id="s", source="test", moves=tuple(Move(activity=f"x{n}") for n in range(50)))
    monitor = watch(baseline, [*runs(20, 2), strange])
    assert monitor.health is Health.STABLE
    for _ in range(20):
        monitor.observe(strange)
    assert monitor.health is Health.DEGRADED
    for run in runs(200, 3):
        monitor.observe(run)
    assert monitor.health is Health.STABLE


def test_a_change_for_the_better_is_no_drift() -> None:
    monitor = watch(learn(runs(150, 1, retries=0.5)), runs(200, 2, retries=0.0))
    assert monitor.health is Health.STABLE


def test_the_same_runs_give_the_same_report() -> None:
    baseline = learn(runs(100, 1))
    again = Baseline.from_bytes(baseline.to_bytes())
    watched = runs(150, 2, retries=0.3)
    assert watch(baseline, watched).report() == watch(again, watched).report()


def test_a_program_without_choices_does_not_alarm_at_nothing() -> None:
    same = [
        Trajectory(id=f"{n}", source="t", moves=(Move(activity="a"),), status="SUCCESS") for n in range(300)
    ]
    monitor = watch(learn(same[:100]), same)
    assert monitor.report().health is Health.STABLE


def test_a_baseline_of_few_runs_is_none() -> None:
    with refused("SMALL_BASELINE"):
        calibrate(learn(runs(19, 1)))
    for wrong in ({"false_alarm": 0.0}, {"false_alarm": 1.0}, {"horizon": 0}, {"slack": -1.0}):
        with refused("USAGE"):
            calibrate(learn(runs(20, 1)), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: [],
        lambda plain: {**plain, "format": 2},
        lambda plain: {**plain, "runs": "many"},
        lambda plain: {**plain, "counts": {"a": {"b": -1}}},
        lambda plain: {**plain, "scores": [None]},
    ],
)
def test_a_file_that_is_no_baseline_is_refused(change: Any) -> None:
    plain = json.loads(learn(runs(20, 1)).to_bytes())
    with refused("BAD_BASELINE"):
        Baseline.from_bytes(json.dumps(change(plain)).encode())
    for data in (b"", b"\xff", b"[" * 100_000, b"{}"):
        with refused("BAD_BASELINE"):
            Baseline.from_bytes(data)


def test_change_points_are_found_where_they_are() -> None:
    chance = Random(7)
    changes = ChangePoints()
    for _ in range(500):
        changes.observe(chance.gauss(0, 1))
    assert changes.since(400) < 0.5
    for _ in range(50):
        changes.observe(chance.gauss(1.5, 1))
    assert changes.since(100) > 0.99
    assert changes.since(30) < 0.5  # and not later than they were


def rounds(count: int, seed: int, again: float) -> list[Trajectory]:
    """Runs that go round in a circle until it is done: `again` is the probability of one more round."""
    chance = Random(seed)
    found = []
    for number in range(count):
        path = ["ask"]
        while chance.random() < again:
            path.append("ask")
        moves = tuple(Move(activity=name) for name in path)
        found.append(Trajectory(id=f"{seed}-{number}", source="test", moves=moves, status="SUCCESS"))
    return found


def test_going_round_in_a_usual_circle_is_noticed_by_the_length() -> None:
    """Each further round is what mostly comes next: it surprises less and less, and never ends."""
    baseline = learn(rounds(150, 1, again=0.8))
    blind = DriftMonitor(Baseline.from_bytes(baseline.to_bytes()), calibrate(baseline))
    blind._length.threshold = 0.0  # as without lengths
    monitor = DriftMonitor(baseline)
    for run in rounds(200, 2, again=0.97):
        monitor.observe(run)
        blind.observe(run)
    report = monitor.report()
    assert report.health is not Health.STABLE
    assert report.instrument == "length"
    assert report.moves > 2 * report.expected_moves
    assert report.length_cusum > report.length_threshold
    assert report.surprisal < report.expected
    assert report.shift > 0
    assert (report.evidence[0]["from"], report.evidence[0]["to"]) == ("ask", "ask")
    assert blind.health is Health.STABLE


def test_healthy_rounds_raise_no_alarm() -> None:
    alarms = 0
    for seed in range(4):
        monitor = DriftMonitor(learn(rounds(150, seed, again=0.8)))
        alarms += any(monitor.observe(run) is not Health.STABLE for run in rounds(600, 100 + seed, again=0.8))
    assert alarms <= 1


def test_a_baseline_from_before_lengths_were_kept_watches_surprisal_alone() -> None:
    plain = json.loads(learn(runs(100, 1)).to_bytes())
    del plain["lengths"]
    old = Baseline.from_bytes(json.dumps(plain).encode())
    calibration = calibrate(old)
    assert calibration.length_threshold == 0.0
    monitor = watch(old, runs(300, 3, retries=0.4))
    assert monitor.health is not Health.STABLE
    assert monitor.report().instrument == "surprisal"
    assert monitor.report().expected_moves == 0.0


def test_the_rate_of_false_alarms_is_shared_by_both() -> None:
    baseline = learn(runs(150, 1, retries=0.3))
    alone = Baseline.from_bytes(baseline.to_bytes())
    alone.lengths = []
    assert calibrate(baseline).threshold == calibrate(alone, false_alarm=0.025).threshold
    assert calibrate(baseline).threshold > calibrate(alone, false_alarm=0.2).threshold
