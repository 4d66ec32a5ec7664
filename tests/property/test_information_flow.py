"""Information flow (SPEC §9): the proof before a run and the enforcement in it agree, and neither lets the attacker in.

Random programs run on the real engine among enemies (`flow_worlds`). Whatever is wrong with the labels shows in what
arrives at a protected parameter; whatever is wrong with the proof, in a run that is stopped though it was called safe.
To rerun a seed: `python -c "from property.flow_worlds import play; print(play(SEED))"` in tests/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nano_vm.compiler import lower
from nano_vm.expr import guards
from nano_vm.kernel import outside, settle
from nano_vm.policy import pins, taint
from nano_vm.runtime import compilations
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


def _nothing(*_: Any, **__: Any) -> None:
    return None


MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "the proof forgets that a name is bound anew": (pins, "_without", lambda found, slots: found),
    "the proof takes any way's guard for all ways'": (pins, "_along_dependencies", None),
    "the proof takes a child's word": (
        taint.Analysis,
        "_call_output",
        lambda self, step, action, pins, made: 0,
    ),
    "the proof overlooks compensations": (taint.Analysis, "_protected", None),
    "an `or` pins what one side pins": (guards, "_common", guards._all),
    "a model's text is trusted": (lower, "_adds", lambda step: 0),
    "the answer to a pending tool is trusted": (outside, "take_answer", _nothing),
    "what is said about a failure is trusted": (settle, "failure_label", lambda step, activity: 0),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_gate_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, broken = MUTATIONS[name]
    if attribute == "_protected":
        real = taint.Analysis._protected

        def broken(self: Any, step: Any, tool: str, args: Any, field: str, found: Any) -> Any:
            return iter(()) if field != "args" else real(self, step, tool, args, field, found)

    elif attribute == "_along_dependencies":

        def broken(program: Any, found: Any) -> None:
            every = {pin for step in program.steps for pin in getattr(step.action, "pins_then", ())}
            found[:] = [frozenset(every)] * len(found)

    monkeypatch.setattr(owner, attribute, broken)
    monkeypatch.setattr(compilations, "_compiled", {})
    assert any(wrong(verdict) for _, verdict in campaign(range(1500), stop=wrong))
