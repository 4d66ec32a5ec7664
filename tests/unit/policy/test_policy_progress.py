"""What a run has met of what policies require."""

from __future__ import annotations

from typing import Any

import pytest

from nano_vm.compiler import compile_program
from nano_vm.kernel.events import ValuesChanged
from nano_vm.kernel.state import Activity, Phase, Settled, State, StepStatus
from nano_vm.policy.progress import Progress
from nano_vm.program.model import Program

FLOW: dict[str, Any] = {
    "name": "p",
    "max_steps": 9,
    "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}},
    "steps": [
        {"id": "check", "type": "tool", "tool": "check", "args": {"n": "$n"}},
        {"id": "again", "type": "condition", "condition": "$n > 5", "then": "check", "otherwise": "end"},
        {"id": "end", "type": "tool", "tool": "check", "args": {"n": "$n"}, "is_terminal": True},
    ],
}


@pytest.mark.parametrize("along", [True, False], ids=["in a stretch", "one by one"])
def test_what_had_begun_with_other_values_does_not_count_once(along: bool) -> None:
    progress = Progress(compile_program(Program.from_dict(FLOW)))
    state = State(run="run")
    state.active = {0: Activity(step=0, occurrence=1, phase=Phase.STARTED)}
    progress.passed([0])
    assert progress.done == {"step:check", "tool:check"}
    progress.follow(ValuesChanged(at_ms=0, names=["n"], payload={"n": 9}), state)
    assert progress.done == frozenset()

    def succeed(occurrence: int) -> None:
        if along:
            progress.passed([0])
        else:
            progress.note([Settled(0, occurrence, -1, StepStatus.SUCCESS, 1, "", 1, 0, False)])

    succeed(1)
    assert progress.done == frozenset()
    succeed(2)
    assert progress.done == {"step:check", "tool:check"}


def test_what_has_settled_one_by_one_is_not_waited_for_in_a_stretch() -> None:
    progress = Progress(compile_program(Program.from_dict(FLOW)))
    state = State(run="run")
    state.active = {0: Activity(step=0, occurrence=1, phase=Phase.STARTED)}
    progress.follow(ValuesChanged(at_ms=0, names=["n"], payload={"n": 9}), state)
    progress.note([Settled(0, 1, -1, StepStatus.SUCCESS, 1, "", 1, 0, False)])
    progress.passed([0])
    assert progress.done == {"step:check", "tool:check"}
