"""How a run may end, and what it may have spent by then, read off a program's source: a second opinion on P1 and P10.

Like `edges` this is deliberately not the kernel's code; it follows SPEC §2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Settled, StepStatus
from nano_vm.program.compiled import CompiledProgram

_STEPS_MAX = 10_000  # where a program says nothing


class Endings:
    """Follows one run.

    Invariant: `_last` is the top-level step that has settled last, in the list's order of things.
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._steps: dict[str, Mapping[str, Any]] = {step["id"]: step for step in source["steps"]}
        self._final = source["steps"][-1]["id"] if source["steps"] else ""
        self._dag = any("depends_on" in step for step in source["steps"])
        self._attempts_max = source.get("max_steps", _STEPS_MAX)
        self._attempts: set[tuple[str, int, Any, int]] = set()
        self._settled: set[str] = set()
        self._last: tuple[Mapping[str, Any], Settled] | None = None
        self._cancelled = False

    def broken_by(
        self, event: ev.Event, settled: Sequence[tuple[int, Settled]], program: CompiledProgram
    ) -> tuple[str, str] | None:
        """The promise, and what is wrong with how the run goes to its end; or None."""
        for index, one in settled:
            step = program.steps[index]
            if one.error == "UNASSIGNED_REFERENCE":
                return "P1", f"`{step.id}` refers to what has no value, and its program was checked"
            if step.parent < 0 and step.id in self._steps:
                self._settled.add(step.id)
                self._last = self._steps[step.id], one
        match event:
            case ev.StepStarted():
                self._attempts.add((event.step, event.occurrence, event.item, event.attempt))
                if len(self._attempts) > self._attempts_max:
                    return "P10", f"{len(self._attempts)} attempts under a budget of {self._attempts_max}"
            case ev.RunCancelled():
                self._cancelled = True
            case ev.RunFinished():
                wrong = self._ends_wrongly(event)
                return None if wrong is None else ("P1", wrong)
            case _:
                pass
        return None

    def _ends_wrongly(self, event: ev.RunFinished) -> str | None:
        succeeded = event.status == "SUCCESS"
        if self._dag:
            left = set(self._steps) - self._settled
            return f"SUCCESS, and `{min(left)}` has not settled" if succeeded and left else None
        if self._last is None or self._cancelled:
            return "SUCCESS before any step has settled" if succeeded and self._steps else None
        step, settled = self._last
        if settled.status is StepStatus.FAILED:
            return f"SUCCESS after the failure of `{step['id']}`" if succeeded else None
        ends = "next_step" not in step and (step.get("is_terminal") or step["id"] == self._final)
        if not ends or step["type"] == "condition":
            return f"SUCCESS after `{step['id']}`, which is no end" if succeeded and not ends else None
        wanted = step.get("final_status", "SUCCESS")
        if settled.status is StepStatus.SUCCESS and event.status not in (wanted, "BUDGET_EXCEEDED"):
            return f"`{step['id']}` ends the run in {wanted}, and it has ended in {event.status}"
        outcome = getattr(event, "outcome", None) or None
        if event.status == wanted and outcome != step.get("outcome") and step.get("is_terminal"):
            return (
                f"`{step['id']}` names its outcome {step.get('outcome')}, and the run has ended in {outcome}"
            )
        return None


__all__ = ["Endings"]
