"""The measures of a trajectory.

Each is a function of the trajectory (and of a baseline) alone; `docs/guides/analysis.md` gives formula, unit, range and
a worked example of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log2

from nano_vm.observe.trajectory import Trajectory

UNCALIBRATED_BITS = 2.5  # the fixed rule of old: absolute, and right for no program in particular
PATH_MAX = 2_000  # moves that path distances look at


def rollback_density(trajectory: Trajectory) -> float:
    """R: undone steps per move that was made. 0 when nothing was done."""
    return _ratio(trajectory.rollbacks, len(trajectory.moves))


def tool_churn(trajectory: Trajectory) -> float:
    """C: the share of tool calls that repeat an earlier one, the same tool with the same arguments. In [0, 1)."""
    calls = len(trajectory.actions)
    return _ratio(calls - len(set(trajectory.actions)), calls)


def violation_rate(trajectory: Trajectory) -> float:
    """V: refused requests per journaled event. In [0, 1]."""
    return _ratio(trajectory.violations, trajectory.transitions)


def transition_entropy(pairs: Iterable[tuple[str, str]]) -> float:
    """H(A|S) in bits: how uncertain the next move is when the present one is known. Over (state, next) pairs."""
    joint = Counter(pairs)
    states: Counter[str] = Counter()
    for (state, _), count in joint.items():
        states[state] += count
    total = sum(joint.values())
    return _clean(
        -sum(count / total * log2(count / states[state]) for (state, _), count in joint.items())
        if total
        else 0.0
    )


def normalized_entropy(trajectory: Trajectory) -> float:
    """H(A|S) by the most that the graph allows: the mean of log2(out-degree) over the states visited. In [0, 1].

    Where the program's graph is not known, what was seen to follow counts as what may.
    """
    pairs = trajectory.pairs()
    degrees: dict[str, set[str]] = {}
    for state, following in pairs:
        degrees.setdefault(state, set(trajectory.graph.get(state, ()))).add(following)
    most = sum(log2(len(degrees[state])) for state, _ in pairs) / len(pairs)
    return min(transition_entropy(pairs) / most, 1.0) if most else 0.0


def absolute_entropy(trajectory: Trajectory) -> float:
    """The entropy, in bits, of the transitions taken together, whatever state they start from. It grows with the length
    of any path, however regular: the fixed rule of 2.5 bits is about this one."""
    pairs = Counter(trajectory.pairs())
    total = sum(pairs.values())
    return _clean(-sum(count / total * log2(count / total) for count in pairs.values()))


def path_variance(path: Sequence[str], baseline: Iterable[tuple[Sequence[str], int]]) -> float:
    """The mean edit distance to the paths of a baseline, each divided by the length of the longer path and weighted by
    how often that path was seen. In [0, 1]; 0 for an empty baseline."""
    distance = weight = 0.0
    ours = list(path[:PATH_MAX])
    for other, count in baseline:
        theirs = list(other[:PATH_MAX])
        longest = max(len(ours), len(theirs))
        distance += count * (_edits(ours, theirs) / longest if longest else 0.0)
        weight += count
    return distance / weight if weight else 0.0


def _edits(first: list[str], second: list[str]) -> int:
    """Levenshtein: the fewest insertions, deletions and replacements that make one of the other."""
    if first == second:
        return 0
    row = list(range(len(second) + 1))
    for place, one in enumerate(first, 1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(second, 1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (one != other)),
            )
    return row[-1]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _clean(bits: float) -> float:
    return bits if bits > 0 else 0.0  # never -0.0
