"""Declarative DAGs: telling the dependents of a settled step."""

from __future__ import annotations

from nano_vm.kernel.labels import bind
from nano_vm.kernel.state import Settled, State, StepStatus
from nano_vm.program.compiled import CompiledProgram, CompiledStep

_SKIPPED = StepStatus.SKIPPED


def settle_edges(
    program: CompiledProgram, state: State, step: CompiledStep, result: str, todo: list[int]
) -> None:
    """Tell the dependents of a settled step.

    A step whose dependencies have all settled runs if at least one of them was taken; else it is skipped, and
    so on along its own edges. A step that `on_error: skip` skipped counts as done: its author said to go on.

    Args:
        result: "done", "then", "otherwise" or "failure".
    """
    queue: list[tuple[CompiledStep, str]] = [(step, result)]
    steps, unmet, taken = program.steps, state.unmet, state.taken
    for settled, how in queue:
        for edge in settled.edges:
            target = edge.target
            if how != "skipped" and (edge.when == how or (edge.when == "done" and how != "failure")):
                taken[target] = True
            unmet[target] -= 1
            if unmet[target]:
                continue
            if taken[target]:
                todo.append(target)
                continue
            skipped = steps[target]
            state.occurrences[target] = 1
            state.settled.append(Settled(target, 1, -1, _SKIPPED, None, "", 0, state.now_ms, False))
            if skipped.output_slot >= 0:
                # A key shared with the branch that was taken is left alone.
                state.slots[skipped.output_slot] = None
                if state.labels is not None:
                    bind(state, skipped.output_slot, 0)
            queue.append((skipped, "skipped"))
