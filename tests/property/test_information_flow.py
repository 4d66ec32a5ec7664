"""Information flow (SPEC §9): the proof before a run and the enforcement in it agree, and neither lets the attacker in.

Random programs run on the real engine among enemies (`flow_worlds`). Whatever is wrong with the labels shows in what
arrives at a protected parameter; whatever is wrong with the proof, in a run that is stopped though it was called safe.
To rerun a seed: `python -c "from property.flow_worlds import play; print(play(SEED))"` in tests/.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from property.flow_worlds import Verdict, play

SEEDS = range(220)


def campaign(
    seeds: range, stop: Callable[[Verdict], bool] = lambda verdict: False
) -> list[tuple[int, Verdict]]:
    found = []
    for seed in seeds:
        verdict = play(seed)
        if verdict is not None:
            found.append((seed, verdict))
            if stop(verdict):
                break
    return found


def wrong(verdict: Verdict) -> bool:
    return verdict.breach or verdict.disagree


def test_the_proof_and_the_enforcement_agree_and_nothing_gets_through() -> None:
    found = campaign(SEEDS)
    assert [(seed, verdict) for seed, verdict in found if wrong(verdict)] == []
    verdicts = [verdict for _, verdict in found]
    # Programs of every kind were among them, or nothing has been shown.
    assert len(verdicts) > 150
    assert sum(verdict.safe and verdict.paid > 0 for verdict in verdicts) > 8
    assert sum(verdict.blocked for verdict in verdicts) > 30
    assert sum(not verdict.safe for verdict in verdicts) > 60


@pytest.mark.campaign
def test_the_proof_and_the_enforcement_agree_in_many_programs() -> None:
    assert [(seed, verdict) for seed, verdict in campaign(range(10_000, 14_000)) if wrong(verdict)] == []
