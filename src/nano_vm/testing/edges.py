"""The edges of a program, read off its source: a second opinion on where a run may go (P1).

This is deliberately not the kernel's code, and knows nothing of the compiled form: a few lines that follow SPEC §2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Settled, StepStatus
from nano_vm.program.compiled import CompiledProgram

END = ""


class Edges:
    """Follows one run along its program.

    Invariant: in list order the top-level steps that settle form a path; in a DAG a step begins after everything it
    depends on has settled, and then only if at least one of these leads to it.
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._steps: Sequence[Mapping[str, Any]] = source["steps"]
        self._place = {step["id"]: number for number, step in enumerate(self._steps)}
        self._dag = any("depends_on" in step for step in self._steps)
        self._expected: set[str] | None = {self._steps[0]["id"]} if self._steps else set()
        self._settled: set[str] = set()
        self._targets = self._wired() if self._dag else {}
        self._left = dict.fromkeys(self._place, 0)  # how many of those that it waits for have not settled
        for targets in self._targets.values():
            for target in targets:
                self._left[target] += 1
        self._roots = {name for name, left in self._left.items() if not left}
        self._taken: set[str] = set()

    def broken_by(
        self, event: ev.Event, settled: Sequence[tuple[int, Settled]], program: CompiledProgram
    ) -> str | None:
        """What is wrong with where the run has gone, or None."""
        wrong = self._begins_too_early(event)
        if wrong is not None:
            return wrong
        for index, one in settled:
            step = program.steps[index]
            if step.id not in self._place or step.parent >= 0:
                continue
            if not self._dag and not self._leads_to(step.id):
                return f"`{step.id}` was reached over no edge"
            self._settled.add(step.id)
            if not self._dag:
                self._expected = self._after(step.id, one)
                continue
            is_passed_by = one.status is StepStatus.SKIPPED and not one.attempts
            wrong = self._comes_wrongly(step.id, is_passed_by)
            if wrong is not None:
                return wrong
            self._tell(step.id, one, is_passed_by)
        return None

    def _wired(self) -> dict[str, dict[str, str]]:
        """By step, who waits for it, and for which of its results: done, then, otherwise or failed."""
        targets: dict[str, dict[str, str]] = {name: {} for name in self._place}
        for step in self._steps:
            for needed in step.get("depends_on", ()):
                targets[needed][step["id"]] = "done"
        for step in self._steps:
            own = targets[step["id"]]
            if step["type"] == "condition":
                branches = {step[way]: way for way in ("otherwise", "then") if way in step}
                own |= (
                    branches if len(set(branches)) > 1 or len(step.keys() & {"then", "otherwise"}) < 2 else {}
                )
            elif "on_failure" in step:
                own[step["on_failure"]] = "failed"
        return targets

    def _comes_wrongly(self, name: str, is_passed_by: bool) -> str | None:
        if self._left[name]:
            return f"`{name}` did not wait for all that it depends on"
        if is_passed_by is (name in self._roots or name in self._taken):
            return f"`{name}` was {'left out, and' if is_passed_by else 'taken, and no'} edge leads to it"
        return None

    def _tell(self, name: str, one: Settled, is_passed_by: bool) -> None:
        """What has settled is told to who waits for it."""
        if self._steps[self._place[name]]["type"] == "condition":
            result = "then" if one.output else "otherwise"
        else:
            result = "failed" if one.status is StepStatus.FAILED else "done"
        for target, wanted in self._targets[name].items():
            self._left[target] -= 1
            if not is_passed_by and (wanted == result or (wanted == "done" and result != "failed")):
                self._taken.add(target)

    def _leads_to(self, name: str) -> bool:
        return self._expected is None or name in self._expected

    def _begins_too_early(self, event: ev.Event) -> str | None:
        if not self._dag or type(event) not in (ev.StepStarted, ev.ChildStarted):
            return None
        name = getattr(event, "step", "")
        if name not in self._place:
            return None
        for needed in self._steps[self._place[name]].get("depends_on", ()):
            if needed not in self._settled:
                return f"`{name}` began before `{needed}` had settled"
        return self._comes_wrongly(name, False)

    def _after(self, name: str, settled: Settled) -> set[str]:
        step = self._steps[self._place[name]]
        if step["type"] == "condition":
            if settled.status is not StepStatus.SUCCESS:
                return set()
            target = step.get("then" if settled.output else "otherwise")
            return {self._following(name) if target == "continue" else target} if target else set()
        if settled.status is StepStatus.FAILED:
            return {step["on_failure"]} if "on_failure" in step else set()
        if "next_step" in step:
            return {step["next_step"]}
        return set() if step.get("is_terminal") else {self._following(name)}

    def _following(self, name: str) -> str:
        place = self._place[name] + 1
        return self._steps[place]["id"] if place < len(self._steps) else END
