"""Information flow (SPEC §9): the proof before a run and the enforcement in it agree, and neither lets the attacker in.

Random programs run on the real engine among enemies (`flow_worlds`). Whatever is wrong with the labels shows in what
arrives at a protected parameter; whatever is wrong with the proof, in a run that is stopped though it was called safe.
To rerun a seed: `python -c "from property.flow_worlds import play; print(play(SEED))"` in tests/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from nano_vm.compiler import lower
from nano_vm.kernel import outside, settle
from nano_vm.policy import pins
from nano_vm.runtime import compilations
from property.flow_worlds import Verdict, play

SEEDS = range(60)


def campaign(
    seeds: Iterable[int], stop: Callable[[Verdict], bool] = lambda verdict: False, **worlds: bool
) -> list[tuple[int, Verdict]]:
    found = []
    for seed in seeds:
        verdict = play(seed, **worlds)
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
    assert len(verdicts) > 45
    assert sum(verdict.safe and verdict.paid > 0 for verdict in verdicts) > 2
    assert sum(verdict.blocked for verdict in verdicts) > 8
    assert sum(not verdict.safe for verdict in verdicts) > 16


@pytest.mark.campaign
def test_the_proof_and_the_enforcement_agree_in_many_programs() -> None:
    assert [(seed, verdict) for seed, verdict in campaign(range(10_000, 14_000)) if wrong(verdict)] == []


def test_they_agree_where_models_have_hands() -> None:
    """Agents propose protected values, feed on what tools and children tell them, and hand it on."""
    found = campaign(range(60), agents=True)
    assert [(seed, verdict) for seed, verdict in found if wrong(verdict)] == []
    verdicts = [verdict for _, verdict in found]
    assert sum(verdict.safe and verdict.paid > 0 for verdict in verdicts) > 1
    assert sum(verdict.blocked for verdict in verdicts) > 10


@pytest.mark.parametrize("agents", [False, True])
def test_they_agree_where_somebody_is_asked(agents: bool) -> None:
    """With an approval of every payment, no step and no proposal is stopped that the proof let pass."""
    found = campaign(range(30), agents=agents, asks=True)
    assert [(seed, verdict) for seed, verdict in found if wrong(verdict)] == []
    assert sum(verdict.safe and verdict.paid > 0 for _, verdict in found) > 5


@pytest.mark.campaign
@pytest.mark.parametrize("asks", [False, True])
def test_they_agree_in_many_programs_with_agents(asks: bool) -> None:
    found = campaign(range(20_000, 22_000), agents=True, asks=asks)
    assert [(seed, verdict) for seed, verdict in found if wrong(verdict)] == []


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _any_way(program: Any, found: list[Any]) -> None:
    every = {pin for step in program.steps for pin in getattr(step.action, "pins_then", ())}
    found[:] = [frozenset(every)] * len(found)


# What is broken, how, and a seed that is known to show it: found by looking through the seeds from 0 on.
MUTATIONS: dict[str, tuple[Any, str, Any, int]] = {
    "the proof takes one way's guard for all ways'": (pins, "_along_dependencies", _any_way, 8),
    "a model's text is trusted": (lower, "_adds", lambda step: 0, 57),
    "the answer to a pending tool is trusted": (outside, "take_answer", _nothing, 262),
    "what is said about a failure is trusted": (settle, "failure_label", lambda step, activity: 0, 55),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_gate_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, broken, seed = MUTATIONS[name]
    monkeypatch.setattr(owner, attribute, broken)
    monkeypatch.setattr(compilations, "_compiled", {})
    assert any(wrong(verdict) for _, verdict in campaign([seed, *range(300)], stop=wrong))
