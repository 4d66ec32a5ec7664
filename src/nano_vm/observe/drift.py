"""Drift over runs: does a program still go as it went when it went well?

Every run is reduced to one number, its mean surprisal under a baseline, and held against the baseline's own runs. Two
instruments watch these numbers: a one-sided CUSUM whose threshold is made from the baseline for a stated false-alarm
rate - it alone decides - and Bayesian change-point detection, which says how sure one may be. Neither knows a clock:
the same runs in the same order give the same report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from math import comb, log2, sqrt
from random import Random
from typing import Any

import msgspec

from nano_vm.errors import InputError
from nano_vm.observe.baseline import Baseline
from nano_vm.observe.changepoint import ChangePoints
from nano_vm.observe.trajectory import Trajectory

RUNS_MIN = 20  # that a baseline is made of
DEVIATION_MIN = 0.05  # bits: programs without any choice would else alarm at nothing
THRESHOLD_MIN = 5.0  # standard deviations, for baselines that show hardly any
REPLICATES = 400  # simulated stretches of healthy runs that the threshold is made from
SEED = 20_120_229
RARE = 3
CLIPPED = 4.0  # standard deviations that one run counts for at most: however strange, alone it is no drift
SHIFT_DEGRADED = 2.0  # standard deviations
SUCCESS_SIGNIFICANCE = 0.01
MEMORY = 400  # scores of the baseline that the change-point detector begins with
EVIDENCE_MAX = 5
RECENT_MAX = 1_000  # runs that are kept for evidence


class Health(StrEnum):
    """How runs go, compared with the baseline."""

    STABLE = "STABLE"
    DRIFTING = "DRIFTING"  # they have begun to go another way
    DEGRADED = "DEGRADED"  # and much so, or they have come to fail


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What an alarm means. With probability `1 - false_alarm` there is none in `horizon` runs that go as the baseline's
    did - as far as its runs show, and if runs do not depend on one another.

    `mean` and `deviation` are of the mean surprisal of its runs, in bits; `slack` (k) and `threshold` (h) are in
    standard deviations.
    """

    mean: float
    deviation: float
    slack: float
    threshold: float
    false_alarm: float
    horizon: int


def calibrate(
    baseline: Baseline, *, false_alarm: float = 0.05, horizon: int = 1_000, slack: float = 0.5
) -> Calibration:
    """The threshold of the CUSUM for a false-alarm rate: the quantile of its maximum over stretches of `horizon` runs
    drawn, with replacement, from the baseline's own - each held against a baseline that was drawn in the same way, for
    another one would have had another mean.

    Raises:
        InputError: SMALL_BASELINE, USAGE.
    """
    if not 0 < false_alarm < 1 or not 1 <= horizon <= 100_000 or not 0 <= slack <= 10:
        raise InputError(
            "USAGE",
            "the false-alarm rate lies between 0 and 1, the horizon between 1 and 100000 runs, k between 0 and 10",
            help="--false-alarm 0.05 --horizon 1000",
        )
    scores = baseline.scores
    if len(scores) < RUNS_MIN:
        raise InputError(
            "SMALL_BASELINE",
            f"the baseline has {len(scores)} runs, and {RUNS_MIN} are the least",
            help="take more runs into it, or wait for them",
        )
    # What was seen hardly ever in n runs may come as often as in 3 of n more (the rule of three): healthy runs that the
    # baseline happens to show too few of must not alarm.
    scores = [*scores, *[max(scores)] * RARE]
    mean, deviation = _moments(scores)
    chance = Random(SEED)
    peaks = []
    for _ in range(REPLICATES):
        drawn_mean, drawn_deviation = _moments(chance.choices(scores, k=len(scores)))
        level = peak = 0.0
        for score in chance.choices(scores, k=horizon):
            level += min((score - drawn_mean) / drawn_deviation, CLIPPED) - slack
            if level < 0.0:
                level = 0.0
            elif level > peak:
                peak = level
        peaks.append(peak)
    peaks.sort()
    quantile = peaks[min(int((1 - false_alarm) * REPLICATES), REPLICATES - 1)]
    threshold = max(quantile, THRESHOLD_MIN)
    return Calibration(
        mean=mean,
        deviation=deviation,
        slack=slack,
        threshold=threshold,
        false_alarm=false_alarm,
        horizon=horizon,
    )


def _moments(scores: list[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return mean, max(sqrt(variance), DEVIATION_MIN)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor says, and why.

    Attributes:
        runs: monitored so far. surprisal: their mean in bits, of those since the change if there was one.
        cusum, threshold: in standard deviations; alarm: the run at which the first went over the second.
        changed: the probability of a change among the monitored runs; since: the run at which it probably began.
        shift: how far the runs since then lie from the baseline, in standard deviations.
        success: (share of runs that succeeded since then, share in the baseline).
        evidence: the moves that surprise most: {"from", "to", "bits", "expected", "seen"}, `bits` being their share of
            the mean surprisal above the baseline's, `expected` and `seen` how often the move follows.
    """

    health: Health
    runs: int
    surprisal: float
    expected: float
    cusum: float
    threshold: float
    alarm: str | None
    changed: float
    since: str | None
    shift: float
    success: tuple[float, float]
    evidence: list[dict[str, Any]]
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


class DriftMonitor:
    """Watches the runs of one program.

    Args:
        baseline: of runs that went well (`learn`).
        calibration: see `calibrate`; made with its defaults when left out.
        on_change: is told the report whenever the health changes: to alert somebody, or to stop starting runs.

    Raises:
        InputError: SMALL_BASELINE.
    """

    def __init__(
        self,
        baseline: Baseline,
        calibration: Calibration | None = None,
        on_change: Callable[[Report], None] | None = None,
    ) -> None:
        self.baseline = baseline
        self.calibration = calibration if calibration is not None else calibrate(baseline)
        self.health = Health.STABLE
        self._on_change = on_change
        self._changes = ChangePoints()
        for score in baseline.scores[-MEMORY:]:
            self._changes.observe(_clip(self._standard(score)))
        self._recent: list[tuple[Trajectory, float]] = []
        self._cusum = 0.0
        self._zero = 0  # how many runs had been seen when the sum was last 0: a change began after them
        self._runs = 0
        self._alarm: str | None = None
        self._began = 0

    def _standard(self, score: float) -> float:
        return (score - self.calibration.mean) / self.calibration.deviation

    def observe(self, trajectory: Trajectory) -> Health:
        """Take one more run, in the order in which they were started."""
        score = self.baseline.surprisal(trajectory)
        standard = self._standard(score)
        self._runs += 1
        self._recent.append((trajectory, score))
        del self._recent[:-RECENT_MAX]
        self._changes.observe(_clip(standard))
        step = min(standard, CLIPPED) - self.calibration.slack
        # It does not grow without end, or nobody would see that things are well again.
        self._cusum = min(max(0.0, self._cusum + step), 2 * self.calibration.threshold)
        if self._cusum == 0.0:
            self._zero = self._runs
        elif self._cusum > self.calibration.threshold and self._alarm is None:
            self._alarm, self._began = trajectory.id, self._zero
        if self._alarm is not None and self._cusum == 0.0:
            self._alarm = None  # it has passed
        health = self._judge()
        if health is not self.health:
            self.health = health
            if self._on_change is not None:
                self._on_change(self.report())
        return health

    def _changed(self) -> float:
        return self._changes.since(self._runs)

    def _since(self) -> int:
        """How many of the monitored runs are taken to belong to what is now."""
        return self._runs if self._alarm is None else self._runs - self._began

    def _judge(self) -> Health:
        if self._alarm is None:
            return Health.STABLE
        now = self._now()
        much = self._shift(now) >= SHIFT_DEGRADED or _fails_more(now, self.baseline)
        return Health.DEGRADED if much else Health.DRIFTING

    def _now(self) -> list[tuple[Trajectory, float]]:
        count = self._since()
        return self._recent[-count:] if count else []

    def _shift(self, now: list[tuple[Trajectory, float]]) -> float:
        return sum(self._standard(score) for _, score in now) / len(now) if now else 0.0

    def report(self) -> Report:
        """How things stand."""
        now = self._now()
        changed = self.health is not Health.STABLE
        succeeded = sum(trajectory.status in ("", "SUCCESS") for trajectory, _ in now)
        baseline = self.baseline
        return Report(
            health=self.health,
            runs=self._runs,
            surprisal=sum(score for _, score in now) / len(now) if now else 0.0,
            expected=self.calibration.mean,
            cusum=self._cusum,
            threshold=self.calibration.threshold,
            alarm=self._alarm,
            changed=self._changed(),
            since=now[0][0].id if changed and now else None,
            shift=self._shift(now),
            success=(
                succeeded / len(now) if now else 0.0,
                baseline.successes / baseline.runs if baseline.runs else 0.0,
            ),
            evidence=_evidence(baseline, [trajectory for trajectory, _ in now]) if changed else [],
            calibration=self.calibration,
        )


def _clip(standard: float) -> float:
    return max(-CLIPPED, min(standard, CLIPPED))


def _fails_more(now: list[tuple[Trajectory, float]], baseline: Baseline) -> bool:
    """Whether so few successes would be seen by chance in fewer than one of a hundred cases."""
    runs = len(now)
    if not runs or not baseline.runs:
        return False
    succeeded = sum(trajectory.status in ("", "SUCCESS") for trajectory, _ in now)
    # Of few runs that all went well one does not learn that none can fail.
    share = (baseline.successes + 0.5) / (baseline.runs + 1)
    tail = sum(comb(runs, k) * share**k * (1 - share) ** (runs - k) for k in range(succeeded + 1))
    return tail < SUCCESS_SIGNIFICANCE


def _evidence(baseline: Baseline, now: Iterable[Trajectory]) -> list[dict[str, Any]]:
    seen: Counter[tuple[str, str]] = Counter()
    states: Counter[str] = Counter()
    for trajectory in now:
        for pair in trajectory.pairs():
            seen[pair] += 1
            states[pair[0]] += 1
    total = sum(seen.values())
    rows = []
    for (state, following), count in seen.items():
        expected = baseline.probability(state, following)
        frequency = count / states[state]
        # What this move adds to the surprisal, less what it would add if it came as often as it should.
        bits = -(count / total - states[state] / total * expected) * log2(expected)
        rows.append({"from": state, "to": following, "bits": bits, "expected": expected, "seen": frequency})
    rows.sort(key=lambda row: (-float(str(row["bits"])), str(row["from"]), str(row["to"])))
    return [row for row in rows[:EVIDENCE_MAX] if float(str(row["bits"])) > 0]
