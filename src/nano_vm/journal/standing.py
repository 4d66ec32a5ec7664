"""What a run's record says of its state: the projection that listing and waking go by.

The runtime writes it with an append, verification computes it again from the journal; both call `standing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from nano_vm.kernel.state import State
from nano_vm.kernel.transition import waiting
from nano_vm.program.compiled import CompiledProgram


class Standing(msgspec.Struct, frozen=True):
    """The fields of a `RunRecord` that follow from the state; `waits` is empty unless the run is
    SUSPENDED."""

    status: str
    outcome: str | None
    waits: list[dict[str, Any]]
    wake_at_ms: int


def standing(program: CompiledProgram, state: State) -> Standing:
    """How the run stands.

    `wake_at_ms` is the earliest timer of anything in progress, children's waits included (a child is woken
    through its parent); 0 without one and once the run has ended.
    """
    status = state.status
    if status.is_terminal:
        return Standing(status.value, state.outcome, [], 0)
    waits = [wait.to_dict() for wait in waiting(program, state)]
    due = [activity.due_ms for activity in state.active.values() if activity.due_ms]
    for activity in state.active.values():
        due.extend(_due(activity.waits or ()))
    return Standing(status.value, None, waits, min(due, default=0))


def _due(waits: Iterable[dict[str, Any]]) -> list[int]:
    """Timers of a child's waits, and of its children's."""
    found: list[int] = []
    todo = list(waits)
    while todo:
        wait = todo.pop()
        if wait.get("due_ms"):
            found.append(wait["due_ms"])
        todo.extend(wait.get("waits", ()))
    return found
