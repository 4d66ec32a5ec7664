"""Windows: the measures of runs taken so many at a time, each against a limit that the baseline itself sets.

A drift monitor says *that* something has changed; windows show *what*, measure by measure, over time. The limit of a
measure is a quantile of what windows of the baseline's own runs come to, so that it adapts to how much they vary: no
fixed number is right for every program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Any

import msgspec

from nano_vm.errors import InputError
from nano_vm.observe.baseline import Baseline, measured
from nano_vm.observe.drift import RARE, RUNS_MIN
from nano_vm.observe.trajectory import Trajectory

SIZE = 50
SIZE_MAX = 10_000
REPLICATES = 1_000
SEED = 20_030_101


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The runs from `first` to `last`, in the order in which they were started: the mean of each measure over them, and
    those that are `over` their limits. The last window may be smaller; then it is not held against the limits."""

    first: str
    last: str
    runs: int
    values: dict[str, float]
    over: list[str]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the means of windows of `size` runs exceed, in any measure, with the probability `false_alarm` a window
    when runs go as the baseline's did."""

    size: int
    false_alarm: float
    values: dict[str, float]


def limits(baseline: Baseline, *, size: int = SIZE, false_alarm: float = 0.01) -> Limits:
    """The limits of a baseline's measures. The rate is shared out among them evenly. A measure that hardly ever was
    other than 0 in n runs may be so three times as often (the rule of three): as for the drift monitor.

    Raises:
        InputError: SMALL_BASELINE, also for one that was made before measures were kept; USAGE.
    """
    if not 1 <= size <= SIZE_MAX or not 0 < false_alarm < 1:
        raise InputError(
            "USAGE",
            f"a window has 1 to {SIZE_MAX} runs, and the false-alarm rate lies between 0 and 1",
            help="--windows 50",
        )
    if not baseline.measures or baseline.runs < RUNS_MIN:
        raise InputError(
            "SMALL_BASELINE",
            f"the baseline keeps the measures of no {RUNS_MIN} runs",
            help="learn one from more runs, with this version",
        )
    share = false_alarm / len(baseline.measures)
    place = min(int((1 - share) * REPLICATES), REPLICATES - 1)
    found = {}
    for name, values in sorted(baseline.measures.items()):
        chance = Random(SEED)
        drawn_from = [*values, *[max(values)] * RARE]
        means = sorted(sum(chance.choices(drawn_from, k=size)) / size for _ in range(REPLICATES))
        found[name] = means[place]
    return Limits(size=size, false_alarm=false_alarm, values=found)


def windows(baseline: Baseline, runs: Iterable[Trajectory], held_to: Limits) -> Iterator[Window]:
    """The windows of a sequence of runs, one after the other."""
    gathered: list[tuple[str, dict[str, float]]] = []
    for run in runs:
        gathered.append((run.id, measured(run, baseline)))
        if len(gathered) == held_to.size:
            yield _window(gathered, held_to)
            gathered = []
    if gathered:
        yield _window(gathered, held_to)


def _window(gathered: Sequence[tuple[str, dict[str, float]]], held_to: Limits) -> Window:
    count = len(gathered)
    values = {name: sum(one[name] for _, one in gathered) / count for name in held_to.values}
    whole = count == held_to.size
    # Sums of floats differ in their last bits with their order: what equals the limit is not over it.
    over = [name for name, value in values.items() if whole and value > held_to.values[name] + 1e-9]
    return Window(first=gathered[0][0], last=gathered[-1][0], runs=count, values=values, over=over)


def to_dict(found: Sequence[Window], held_to: Limits) -> dict[str, Any]:
    """As JSON has it."""
    return {"limits": msgspec.to_builtins(held_to), "windows": [msgspec.to_builtins(one) for one in found]}
