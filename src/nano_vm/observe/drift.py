"""Drift over runs: does a program still go as it went when it went well?

Every run is reduced to two numbers and held against the baseline's own runs: its mean surprisal, which rises when runs
do what they seldom did, and its length, which rises when they do more and more of what they always did - a run that
goes round in a usual circle surprises nobody. Each is watched by a one-sided CUSUM whose threshold is made from the
baseline for half of a stated false-alarm rate: these decide. Bayesian change-point detection on the surprisal says how
sure one may be. None of them knows a clock: the same runs in the same order give the same report.
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
from nano_vm.observe.baseline import Baseline, length_of
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
    standard deviations. `length_…` are the same of log2(1 + moves); a threshold of 0 says that lengths are not watched,
    since the baseline was made before they were kept.
    """

    mean: float
    deviation: float
    slack: float
    threshold: float
    false_alarm: float
    horizon: int
    length_mean: float = 0.0
    length_deviation: float = 1.0
    length_threshold: float = 0.0


def calibrate(
    baseline: Baseline, *, false_alarm: float = 0.05, horizon: int = 1_000, slack: float = 0.5
) -> Calibration:
    """The thresholds of the CUSUMs for a false-alarm rate, which they share: the quantile of the maximum over stretches
    of `horizon` runs drawn, with replacement, from the baseline's own - each held against a baseline that was drawn in
    the same way, for another one would have had another mean.

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
    share = false_alarm / 2 if baseline.lengths else false_alarm
    mean, deviation, threshold = _threshold(scores, share, horizon, slack)
    lengths = _threshold(baseline.lengths, share, horizon, slack) if baseline.lengths else (0.0, 1.0, 0.0)
    return Calibration(
        mean=mean,
        deviation=deviation,
        slack=slack,
        threshold=threshold,
        false_alarm=false_alarm,
        horizon=horizon,
        length_mean=lengths[0],
        length_deviation=lengths[1],
        length_threshold=lengths[2],
    )


def _threshold(
    scores: list[float], false_alarm: float, horizon: int, slack: float
) -> tuple[float, float, float]:
    """(mean, standard deviation, threshold) for one number of every run."""
    # What was seen hardly ever in n runs may come as often as in 3 of n more (the rule of three): healthy runs that the
    # baseline happens to show too few of must not alarm.
    scores = [*scores, *[max(scores)] * RARE]
    mean, deviation = _moments(scores)
    chance = Random(SEED)
    peaks = []
    for _ in range(REPLICATES):
        drawn_mean, drawn_deviation = _moments(chance.choices(scores, k=len(scores)))
        steps = [min((score - drawn_mean) / drawn_deviation, CLIPPED) - slack for score in scores]
        level = peak = 0.0
        for step in chance.choices(steps, k=horizon):
            level += step
            if level < 0.0:
                level = 0.0
            elif level > peak:
                peak = level
        peaks.append(peak)
    peaks.sort()
    quantile = peaks[min(int((1 - false_alarm) * REPLICATES), REPLICATES - 1)]
    return mean, deviation, max(quantile, THRESHOLD_MIN)


def _moments(scores: list[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return mean, max(sqrt(variance), DEVIATION_MIN)


class Cusum:
    """The sum of what runs exceed the baseline by, in standard deviations, less the slack; never below 0. There is an
    alarm while it has gone over the threshold and has not come back to 0."""

    def __init__(self, mean: float, deviation: float, slack: float, threshold: float) -> None:
        self.level = 0.0
        self.threshold = threshold
        self.alarm: str | None = None  # the run at which it began
        self.began = 0  # how many runs had been seen when the change began
        self._mean, self._deviation, self._slack = mean, deviation, slack
        self._zero = 0

    def standard(self, score: float) -> float:
        return (score - self._mean) / self._deviation

    def take(self, score: float, run: str, runs: int) -> None:
        """One more run, the `runs`-th."""
        step = min(self.standard(score), CLIPPED) - self._slack
        # It does not grow without end, or nobody would see that things are well again.
        self.level = min(max(0.0, self.level + step), 2 * self.threshold)
        if self.level == 0.0:
            self._zero = runs
            self.alarm = None  # it has passed
        elif self.level > self.threshold and self.alarm is None:
            self.alarm, self.began = run, self._zero


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor says, and why.

    Attributes:
        runs: monitored so far. surprisal: their mean in bits, of those since the change if there was one.
        cusum, threshold: in standard deviations; alarm: the run at which the first went over the second, or the same of
            the length did. instrument: which of them did first: "surprisal" or "length".
        changed: the probability of a change among the monitored runs; since: the run at which it probably began.
        shift: how far the runs since then lie from the baseline, in standard deviations of what alarmed.
        success: (share of runs that succeeded since then, share in the baseline).
        evidence: the moves that surprise most: {"from", "to", "bits", "expected", "seen"}, `bits` being their share of
            the mean surprisal above the baseline's, `expected` and `seen` how often the move follows.
        moves: the mean length of the runs in moves (geometric), as `surprisal`; length_cusum, length_threshold.
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
    instrument: str | None = None
    moves: float = 0.0
    expected_moves: float = 0.0
    length_cusum: float = 0.0
    length_threshold: float = 0.0

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
        made = self.calibration
        self._surprisal = Cusum(made.mean, made.deviation, made.slack, made.threshold)
        self._length = Cusum(made.length_mean, made.length_deviation, made.slack, made.length_threshold)
        for score in baseline.scores[-MEMORY:]:
            self._changes.observe(_clip(self._surprisal.standard(score)))
        self._recent: list[tuple[Trajectory, float]] = []
        self._runs = 0

    @property
    def levels(self) -> tuple[float, float]:
        """The sums of surprisal and of length as they stand; over the report's thresholds they are alarms."""
        return self._surprisal.level, self._length.level

    def observe(self, trajectory: Trajectory) -> Health:
        """Take one more run, in the order in which they were started."""
        score = self.baseline.surprisal(trajectory)
        self._runs += 1
        self._recent.append((trajectory, score))
        del self._recent[:-RECENT_MAX]
        self._changes.observe(_clip(self._surprisal.standard(score)))
        self._surprisal.take(score, trajectory.id, self._runs)
        if self._length.threshold:
            self._length.take(length_of(trajectory), trajectory.id, self._runs)
        health = self._judge()
        if health is not self.health:
            self.health = health
            if self._on_change is not None:
                self._on_change(self.report())
        return health

    def changed(self) -> float:
        """The probability that the mean surprisal has changed since the monitoring began."""
        return self._changes.since(self._runs)

    def _alarmed(self) -> Cusum | None:
        """The sum that has alarmed, of two the one whose change began first."""
        found = [one for one in (self._surprisal, self._length) if one.alarm is not None]
        return min(found, key=lambda one: one.began, default=None)

    def _judge(self) -> Health:
        if self._alarmed() is None:
            return Health.STABLE
        now = self._now()
        much = self._shift(now) >= SHIFT_DEGRADED or _fails_more(now, self.baseline)
        return Health.DEGRADED if much else Health.DRIFTING

    def _now(self) -> list[tuple[Trajectory, float]]:
        """The monitored runs that are taken to belong to what is now."""
        alarmed = self._alarmed()
        count = self._runs if alarmed is None else self._runs - alarmed.began
        return self._recent[-count:] if count else []

    def _shift(self, now: list[tuple[Trajectory, float]]) -> float:
        """How far these runs lie from the baseline, by what alarmed: the greater when both did."""
        if not now:
            return 0.0
        shifts = []
        if self._length.alarm is None or self._surprisal.alarm is not None:
            shifts.append(sum(self._surprisal.standard(score) for _, score in now) / len(now))
        if self._length.alarm is not None:
            shifts.append(sum(self._length.standard(length_of(run)) for run, _ in now) / len(now))
        return max(shifts)

    def report(self) -> Report:
        """How things stand."""
        now = self._now()
        changed = self.health is not Health.STABLE
        alarmed = self._alarmed()
        succeeded = sum(trajectory.status in ("", "SUCCESS") for trajectory, _ in now)
        baseline, made = self.baseline, self.calibration
        lengths = [length_of(trajectory) for trajectory, _ in now]
        return Report(
            health=self.health,
            runs=self._runs,
            surprisal=sum(score for _, score in now) / len(now) if now else 0.0,
            expected=made.mean,
            cusum=self._surprisal.level,
            threshold=self._surprisal.threshold,
            alarm=None if alarmed is None else alarmed.alarm,
            changed=self.changed(),
            since=now[0][0].id if changed and now else None,
            shift=self._shift(now),
            success=(
                succeeded / len(now) if now else 0.0,
                baseline.successes / baseline.runs if baseline.runs else 0.0,
            ),
            evidence=_evidence(baseline, [trajectory for trajectory, _ in now]) if changed else [],
            calibration=made,
            instrument=None if alarmed is None else ("length" if alarmed is self._length else "surprisal"),
            moves=2 ** (sum(lengths) / len(lengths)) - 1 if lengths else 0.0,
            expected_moves=2**made.length_mean - 1 if made.length_threshold else 0.0,
            length_cusum=self._length.level,
            length_threshold=self._length.threshold,
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
