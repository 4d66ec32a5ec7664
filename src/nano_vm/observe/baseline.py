"""A baseline: how runs of a program go when they go well, as a Markov model of moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log2
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.observe.measures import (
    PATH_MAX,
    normalized_entropy,
    path_variance,
    rollback_density,
    tool_churn,
    transition_entropy,
    violation_rate,
)
from nano_vm.observe.trajectory import Count, Trajectory
from nano_vm.runtime.arguments import check_all

FORMAT = 1
SMOOTHING = 0.5  # what every possible move counts as having been seen, and one that nobody thought of
VARIANTS_MAX = 50  # paths that are kept, the most frequent ones
STATES_MAX = 100_000
_HELD = "held"  # in how many rows each move stands; no part of what is kept
FILE_BYTES_MAX = 64 * 1024 * 1024


def read_file(data: bytes, header: str) -> dict[str, Any]:
    """What a file of ours holds, whose format stands under `header`. Raises ValueError, msgspec.DecodeError."""
    if len(data) > FILE_BYTES_MAX:
        raise ValueError("too large")
    plain = msgspec.json.decode(data)
    if type(plain) is not dict or plain.pop(header, None) != FORMAT:
        raise ValueError("another format")
    return plain


class Baseline(msgspec.Struct, kw_only=True, dict=True):
    """Counts of moves over healthy runs of one program.

    Attributes:
        counts: state -> next move -> how often; `possible`: what the graph lets follow, seen or not.
        variants: the most frequent paths, each with its count.
        scores: mean surprisal of the runs it was learned from, each under a model learned from the others; empty
            until it is calibrated. lengths: `length_of` the same runs. measures: by name, what `measured` says of them.
    """

    program: str = ""
    name: str = ""
    runs: Count = 0
    successes: Count = 0
    counts: dict[str, dict[str, Count]] = {}
    possible: dict[str, list[str]] = {}
    variants: list[tuple[list[str], Count]] = []
    scores: list[float] = []
    lengths: list[float] = []
    measures: dict[str, list[float]] = {}

    def probability(self, state: str, following: str) -> float:
        """P(following | state): (n + 1/2) / (N + (K + 1)/2), N moves having been seen from the state, n of them this
        one; K is how many moves are known to be possible there, and one share is for whatever is not. From a state that
        nobody has heard of: 1 / (V + 1), V being how many moves are known at all."""
        seen = self.counts.get(state, {})
        known = len(seen.keys() | set(self.possible.get(state, ())))
        if not known:
            return 1 / (self._vocabulary() + 1)
        total = sum(seen.values())
        return (seen.get(following, 0) + SMOOTHING) / (total + SMOOTHING * (known + 1))

    def _vocabulary(self) -> int:
        held = self.__dict__.get(_HELD)
        if held is None:
            rows = [*self.counts.values(), *self.possible.values()]
            held = self.__dict__[_HELD] = Counter(following for row in rows for following in row)
        return len(held)

    def surprisal(self, trajectory: Trajectory) -> float:
        """Mean surprisal in bits per move: the mean of -log2 P(next | present) over the path, its end included."""
        pairs = trajectory.pairs()
        return -sum(log2(self.probability(*pair)) for pair in pairs) / len(pairs)

    def add(self, trajectory: Trajectory) -> None:
        """Count one run."""
        self._count(trajectory, 1)

    def _count(self, trajectory: Trajectory, times: int) -> None:
        self.runs += times
        self.successes += times * (trajectory.status in ("", "SUCCESS"))
        held: Counter[str] | None = self.__dict__.get(_HELD)
        for state, following in trajectory.pairs():
            row = self.counts.setdefault(state, {})
            before = len(row)
            row[following] = row.get(following, 0) + times
            if not row[following]:
                del row[following]
            if held is not None and len(row) != before:
                held[following] += len(row) - before
                if not held[following]:
                    del held[following]

    def without(self, trajectory: Trajectory) -> _Without:
        """This baseline as if that run had not been seen; to be used as a context."""
        return _Without(self, trajectory)

    # --- as a file ------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical.encode({"format": FORMAT, **msgspec.to_builtins(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Baseline:
        """The baseline that `to_bytes` wrote.

        Raises:
            InputError: BAD_BASELINE.
        """
        try:
            found: Baseline = msgspec.convert(read_file(data, "format"), cls)
            if len(found.counts) > STATES_MAX or any(
                count < 1 for row in found.counts.values() for count in row.values()
            ):
                raise ValueError("counts")
        except (ValueError, msgspec.MsgspecError, RecursionError):
            raise InputError(
                "BAD_BASELINE",
                "the file is no baseline of this version",
                help="write one with `nano-vm drift PROGRAM --save FILE`",
            ) from None
        return found


class _Without:
    def __init__(self, baseline: Baseline, trajectory: Trajectory) -> None:
        self._baseline = baseline
        self._trajectory = trajectory

    def __enter__(self) -> Baseline:
        self._baseline._count(self._trajectory, -1)
        return self._baseline

    def __exit__(self, *_: Any) -> None:
        self._baseline._count(self._trajectory, 1)


def length_of(trajectory: Trajectory) -> float:
    """How long a run was: log2(1 + moves). Twice as long is one more, whatever usual is."""
    return log2(1 + len(trajectory.moves))


def learn(trajectories: Sequence[Trajectory]) -> Baseline:
    """A baseline of these runs, all of one program, calibrated: every run is scored by what the others have taught.
    Raises InputError USAGE for what are no trajectories."""
    check_all("trajectories", trajectories, Trajectory, "[TraceAnalyzer(trace).trajectory]")
    baseline = Baseline()
    if trajectories:
        baseline.program, baseline.name = trajectories[0].program, trajectories[0].name
    for trajectory in trajectories:
        for state, following in trajectory.graph.items():
            baseline.possible.setdefault(state, list(following))
        baseline.add(trajectory)
    baseline.variants = _variants(trajectories)
    for trajectory in trajectories:
        with baseline.without(trajectory) as others:
            found = measured(trajectory, others)
        baseline.scores.append(found["mean_surprisal"])
        baseline.lengths.append(length_of(trajectory))
        for name, value in found.items():
            baseline.measures.setdefault(name, []).append(value)
    return baseline


def measured(trajectory: Trajectory, baseline: Baseline) -> dict[str, float]:
    """The measures of a run that windows are made of: of each more is worse."""
    moves = len(trajectory.moves)
    return {
        "failed": float(trajectory.status not in ("", "SUCCESS")),
        "failed_moves": sum(move.failed for move in trajectory.moves) / moves if moves else 0.0,
        "mean_surprisal": baseline.surprisal(trajectory),
        "moves": float(moves),
        "normalized_entropy": normalized_entropy(trajectory),
        "path_variance": path_variance(trajectory.path, baseline.variants),
        "rollback_density": rollback_density(trajectory),
        "tool_churn": tool_churn(trajectory),
        "transition_entropy": transition_entropy(trajectory.pairs()),
        "violation_rate": violation_rate(trajectory),
    }


def _variants(trajectories: Iterable[Trajectory]) -> list[tuple[list[str], int]]:
    paths = Counter(tuple(trajectory.path[:PATH_MAX]) for trajectory in trajectories)
    frequent = sorted(paths.items(), key=lambda item: (-item[1], item[0]))[:VARIANTS_MAX]
    return [(list(path), count) for path, count in frequent]


learn_baseline = learn  # its public name
