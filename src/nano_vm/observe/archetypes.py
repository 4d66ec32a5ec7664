"""Archetypes: the families that the runs of a program fall into, and a baseline for each of them.

A program does several kinds of work: orders that are paid and orders that are refused go other ways by design, and a
run is unusual only among its own kind. Families are found in the runs themselves. What counts is a run's *skeleton* -
its activities in the order of their first visits - because repetitions are what drift looks like, and a run must not
change its family by going wrong. A mixture of Markov chains over skeletons is fitted by classification EM; how many
families there are, the Bayesian information criterion says: two kinds of work that part at a branch and share nothing
after it are one family, since a single chain tells them apart as well. No chance is involved: the same runs give the
same families.

Source: Cadez, Heckerman, Meek, Smyth and White, "Model-based clustering and visualization of navigation patterns on a
web site", 2003.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import erfc, exp, lgamma, log, log2, sqrt
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.observe.baseline import FORMAT, Baseline, learn, read_file
from nano_vm.observe.drift import RUNS_MIN, Calibration, DriftMonitor, Health, Report, calibrate
from nano_vm.observe.graph import END, START
from nano_vm.observe.trajectory import Trajectory
from nano_vm.runtime.arguments import check_all, check_count

FAMILIES_MAX = 8
SKELETON_MAX = 200  # activities of a run that are looked at
ROUNDS_MAX = 30
SMOOTHING = 0.5
NAME_ACTIVITIES = 6
RECENT = 500  # runs that the present mix of work is judged by

Skeleton = tuple[str, ...]


def skeleton(trajectory: Trajectory) -> Skeleton:
    """The activities of a run in the order of their first visits, with how it ended."""
    found = tuple(dict.fromkeys(trajectory.path))[:SKELETON_MAX]
    return (*found, trajectory.ending)


class Family(msgspec.Struct, kw_only=True):
    """One archetype: `share` of the baseline's runs; `chain` counts the transitions of their skeletons."""

    name: str
    share: float
    chain: dict[str, dict[str, int]]
    baseline: Baseline


class Archetypes(msgspec.Struct, kw_only=True):
    """The families of a program, the most frequent first. `runs`: what they were learned from."""

    program: str = ""
    name: str = ""
    runs: int = 0
    families: list[Family] = []

    def of(self, trajectory: Trajectory) -> int:
        """The family that a run most probably belongs to."""
        found = skeleton(trajectory)
        vocabulary = len({name for family in self.families for row in family.chain.values() for name in row})
        chains = {place: family.chain for place, family in enumerate(self.families)}
        shares = {place: log2(family.share) for place, family in enumerate(self.families)}
        return _likeliest(found, chains, shares, vocabulary)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical.encode({"archetypes": FORMAT, **msgspec.to_builtins(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Archetypes:
        """What `to_bytes` wrote.

        Raises:
            InputError: BAD_BASELINE.
        """
        try:
            found: Archetypes = msgspec.convert(read_file(data, "archetypes"), cls)
            if not found.families or any(not 0 < family.share <= 1 for family in found.families):
                raise ValueError("families")
            for family in found.families:
                Baseline.from_bytes(family.baseline.to_bytes())
        except (ValueError, msgspec.MsgspecError, RecursionError, InputError):
            raise InputError(
                "BAD_BASELINE",
                "the file holds no archetypes of this version",
                help="write one with `nano-vm drift PROGRAM --archetypes --save FILE`",
            ) from None
        return found


def learn_archetypes(trajectories: Sequence[Trajectory], *, most: int = FAMILIES_MAX) -> Archetypes:
    """The families of these runs, all of one program, with their baselines. Every family has at least `RUNS_MIN` runs:
    whatever is rarer belongs to the family that it is likest.

    Args:
        most: how many families there are at most.

    Raises:
        InputError: SMALL_BASELINE; USAGE for a `most` that is none, and for what are no trajectories.
    """
    check_all("trajectories", trajectories, Trajectory, "[TraceAnalyzer(trace).trajectory]")
    check_count("most", most)
    if not 1 <= most <= FAMILIES_MAX:
        raise InputError("USAGE", f"there are 1 to {FAMILIES_MAX} families", help=f"most={FAMILIES_MAX}")
    if len(trajectories) < RUNS_MIN:
        raise InputError(
            "SMALL_BASELINE",
            f"there are {len(trajectories)} runs, and {RUNS_MIN} are the least",
            help="take more runs into it, or wait for them",
        )
    skeletons = [skeleton(trajectory) for trajectory in trajectories]
    counts = Counter(skeletons)
    vocabulary = len({name for found in counts for name in found})
    best: dict[Skeleton, int] = dict.fromkeys(counts, 0)
    best_score = _criterion(best, counts, vocabulary)
    for families in range(2, most + 1):
        found = _fit(counts, families, vocabulary)
        if len(set(found.values())) < families:
            break  # there are no more that are large enough
        score = _criterion(found, counts, vocabulary)
        if score < best_score:
            best, best_score = found, score
    members: dict[int, list[Trajectory]] = {}
    for trajectory, found_skeleton in zip(trajectories, skeletons, strict=True):
        members.setdefault(best[found_skeleton], []).append(trajectory)
    ordered = sorted(members.values(), key=lambda runs: (-len(runs), skeleton(runs[0])))
    total = len(trajectories)
    return Archetypes(
        program=trajectories[0].program,
        name=trajectories[0].name,
        runs=total,
        families=[
            Family(
                name=_name_of(runs),
                share=len(runs) / total,
                chain=_chain(Counter(skeleton(run) for run in runs)),
                baseline=learn(runs),
            )
            for runs in ordered
        ],
    )


def _fit(counts: Counter[Skeleton], families: int, vocabulary: int) -> dict[Skeleton, int]:
    """Classification EM from skeletons that lie far apart. A family that falls below RUNS_MIN runs is dissolved."""
    found = _nearest(counts, _seeds(counts, families))
    for _ in range(ROUNDS_MAX):
        sizes: Counter[int] = Counter()
        for one, family in found.items():
            sizes[family] += counts[one]
        large = [family for family, size in sizes.items() if size >= RUNS_MIN]
        if not large:
            return dict.fromkeys(counts, 0)
        total = sum(sizes[family] for family in large)
        chains = {
            family: _chain(Counter({one: counts[one] for one, held in found.items() if held == family}))
            for family in sorted(large)
        }
        shares = {family: log2(sizes[family] / total) for family in chains}
        moved = {one: _likeliest(one, chains, shares, vocabulary) for one in counts}
        if moved == found:
            break
        found = moved
    return found


def _likeliest(
    one: Skeleton, chains: dict[int, dict[str, dict[str, int]]], shares: dict[int, float], vocabulary: int
) -> int:
    scores = {
        family: shares[family] + _likelihood(one, chain, vocabulary) for family, chain in chains.items()
    }
    return max(scores, key=lambda family: (scores[family], -family))


def _seeds(counts: Counter[Skeleton], families: int) -> list[Skeleton]:
    """The most frequent skeleton, and then always the one that lies farthest from all before, by frequency."""
    names = sorted(counts, key=lambda one: (-counts[one], one))
    seeds = [names[0]]
    while len(seeds) < min(families, len(names)):
        far = max(
            (one for one in names if one not in seeds),
            key=lambda one: (min(_distance(one, seed) for seed in seeds) * counts[one], one),
        )
        seeds.append(far)
    return seeds


def _nearest(counts: Counter[Skeleton], seeds: list[Skeleton]) -> dict[Skeleton, int]:
    return {
        one: min(range(len(seeds)), key=lambda place: (_distance(one, seeds[place]), place)) for one in counts
    }


def _distance(one: Skeleton, other: Skeleton) -> float:
    """Jaccard distance of the sets of transitions."""
    first, second = set(pairwise((START, *one))), set(pairwise((START, *other)))
    return 1 - len(first & second) / len(first | second)


def _chain(counts: Counter[Skeleton]) -> dict[str, dict[str, int]]:
    chain: dict[str, dict[str, int]] = {}
    for one, times in counts.items():
        for state, following in pairwise((START, *one)):
            row = chain.setdefault(state, {})
            row[following] = row.get(following, 0) + times
    return chain


def _likelihood(one: Skeleton, chain: dict[str, dict[str, int]], vocabulary: int) -> float:
    """log2 of the probability of a skeleton; every transition that could be counts as seen half a time."""
    total = 0.0
    for state, following in pairwise((START, *one)):
        row = chain.get(state, {})
        seen = sum(row.values())
        total += log2((row.get(following, 0) + SMOOTHING) / (seen + SMOOTHING * (vocabulary + 1)))
    return total


def _criterion(found: dict[Skeleton, int], counts: Counter[Skeleton], vocabulary: int) -> float:
    """The Bayesian information criterion in bits: less is better. A transition that was seen is a parameter."""
    runs = counts.total()
    groups: dict[int, Counter[Skeleton]] = {}
    for one, family in found.items():
        groups.setdefault(family, Counter())[one] = counts[one]
    likelihood, parameters = 0.0, len(groups) - 1
    for group in groups.values():
        chain = _chain(group)
        parameters += sum(len(row) for row in chain.values())
        share = log2(group.total() / runs)
        likelihood += sum(
            times * (share + _likelihood(one, chain, vocabulary)) for one, times in group.items()
        )
    return parameters * log2(runs) - 2 * likelihood


def _name_of(runs: Sequence[Trajectory]) -> str:
    """A family is called after its most frequent skeleton."""
    ((one, _),) = sorted(
        Counter(skeleton(run) for run in runs).items(), key=lambda item: (-item[1], item[0])
    )[:1]
    shown = list(one[:NAME_ACTIVITIES]) + (["…"] if len(one) > NAME_ACTIVITIES + 1 else [])
    if one[-1] != END:
        shown.append(one[-1])
    return " > ".join(name for name in shown if name != END) or END


def _chi_square_tail(value: float, freedom: int) -> float:
    """The probability that a chi-square variable with these degrees of freedom exceeds the value: Q(a, x) by its
    recurrence in a, from Q(1/2, x) = erfc(sqrt x) or Q(1, x) = exp(-x)."""
    half = value / 2
    a = 0.5 if freedom % 2 else 1.0
    tail = erfc(sqrt(half)) if freedom % 2 else exp(-half)
    while a < freedom / 2:
        tail += exp(a * log(half) - half - lgamma(a + 1)) if half else 0.0
        a += 1
    return min(tail, 1.0)


# --- watching ---------------------------------------------------------------------------------------------------------


class FamilyReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one family does: its `share` of the monitored runs, what it was in the baseline, and its own report."""

    name: str
    share: float
    expected_share: float
    report: Report


class ArchetypeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The worst health of any family, and all of them. `mix` is the probability that families would be as unlike the
    baseline's, by chance, as they are among the newest runs (at most `RECENT`); it bears on no health, since that
    another kind of work comes in is nothing wrong with how it is done."""

    health: Health
    runs: int
    families: list[FamilyReport]
    mix: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @property
    def worst(self) -> FamilyReport:
        """The family that does worst."""
        order = list(Health)
        return max(self.families, key=lambda one: (order.index(one.report.health), one.report.shift))


class ArchetypeMonitor:
    """Watches the runs of one program, each among its own kind.

    Every family has a monitor with its share of the false-alarm rate and of the horizon, so that the stated rate holds
    for all of them together.

    Args:
        archetypes: of runs that went well (`learn_archetypes`).
        false_alarm, horizon, slack: see `calibrate`.
        on_change: is told whenever the worst health changes.
    """

    def __init__(
        self,
        archetypes: Archetypes,
        *,
        false_alarm: float = 0.05,
        horizon: int = 1_000,
        slack: float = 0.5,
        on_change: Callable[[ArchetypeReport], None] | None = None,
    ) -> None:
        self.archetypes = archetypes
        self.health = Health.STABLE
        self._on_change = on_change
        count = len(archetypes.families)
        self.monitors: list[DriftMonitor] = []
        for family in archetypes.families:
            calibration: Calibration = calibrate(
                family.baseline,
                false_alarm=false_alarm / count,
                horizon=max(1, round(horizon * family.share)),
                slack=slack,
            )
            self.monitors.append(DriftMonitor(family.baseline, calibration))
        self._seen = [0] * count
        self._recent: list[int] = []

    def observe(self, trajectory: Trajectory) -> Health:
        """Take one more run, in the order in which they were started."""
        place = self.archetypes.of(trajectory)
        self._seen[place] += 1
        self._recent.append(place)
        del self._recent[:-RECENT]
        self.monitors[place].observe(trajectory)
        order = list(Health)
        health = max((monitor.health for monitor in self.monitors), key=order.index)
        if health is not self.health:
            self.health = health
            if self._on_change is not None:
                self._on_change(self.report())
        return health

    def _mix(self) -> float:
        """The p-value of Pearson's test that the newest runs and the baseline's fall into families alike."""
        now = [self._recent.count(place) for place in range(len(self.monitors))]
        before = [family.baseline.runs for family in self.archetypes.families]
        new, old = sum(now), sum(before)
        if not new or len(now) < 2:
            return 1.0
        statistic = 0.0
        for seen, had in zip(now, before, strict=True):
            share = (seen + had) / (new + old)
            statistic += (seen - new * share) ** 2 / (new * share) + (had - old * share) ** 2 / (old * share)
        return _chi_square_tail(statistic, len(now) - 1)

    def report(self) -> ArchetypeReport:
        """How things stand."""
        runs = sum(self._seen)
        return ArchetypeReport(
            health=self.health,
            runs=runs,
            mix=self._mix(),
            families=[
                FamilyReport(
                    name=family.name,
                    share=seen / runs if runs else 0.0,
                    expected_share=family.share,
                    report=monitor.report(),
                )
                for family, monitor, seen in zip(
                    self.archetypes.families, self.monitors, self._seen, strict=True
                )
            ],
        )
