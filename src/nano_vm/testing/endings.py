"""How a run may end, and what it may have spent by then, read off a program's source: a second opinion on P1 and P10.

Like `edges` this is deliberately not the kernel's code; it follows SPEC §2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nano_vm import canonical
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus, Settled, Stage, State, StepStatus
from nano_vm.program.compiled import CompiledProgram

_STEPS_MAX: Final = 10_000  # where a program says nothing
_ANSWERS: Final = (ev.StepSucceeded, ev.StepFailed, ev.ModelTurned)
_ATTEMPTS: Final = (ev.StepStarted, ev.ChildStarted, ev.StepSucceeded, ev.StepFailed)


class Endings:
    """Follows one run.

    Invariant: `_last` is the top-level step that has settled last, in the list's order of things.
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._steps: dict[str, Mapping[str, Any]] = {step["id"]: step for step in source["steps"]}
        self._final = source["steps"][-1]["id"] if source["steps"] else ""
        self._dag = any("depends_on" in step for step in source["steps"])
        self._attempts_max = source.get("max_steps", _STEPS_MAX)
        self._attempts: set[tuple[Any, ...]] = set()
        self._spent = 0  # steps, beside attempts
        self._tokens = 0
        self._reserved: dict[tuple[Any, ...], int] = {}  # tokens, by what is under way
        self.beyond = 0  # tokens that answers took beyond what was reserved for them: nobody knew
        self._cost_nanousd = 0
        self._tokens_max = source.get("max_tokens")
        self._stalled_max = source.get("max_stalled_steps")
        self._stalled = 0
        self._yielded: dict[str, bytes] = {}
        self._duration_ms_max = int(source.get("max_duration_seconds", 0) * 1_000)
        self._used_ms = 0
        self._before: tuple[int, bool] | None = (
            None  # when the last transition was, and whether the run waited then
        )
        self._active: set[tuple[int, int]] = set()  # keys and occurrences
        self._settled: set[str] = set()
        self._unhandled: set[str] = set()  # what has failed, and nobody goes on with it
        self._last: tuple[Mapping[str, Any], Settled] | None = None
        self._cancelled = False

    def broken_by(
        self,
        event: ev.Event,
        settled: Sequence[tuple[int, Settled]],
        program: CompiledProgram,
        state: State,
    ) -> tuple[str, str] | None:
        """The promise, and what is wrong with how the run goes to its end; or None."""
        late_before, stalled_before = self._is_late(state), self._is_stalled()
        for index, one in settled:
            step = program.steps[index]
            if one.error == "UNASSIGNED_REFERENCE":
                return "P1", f"`{step.id}` refers to what has no value, and its program was checked"
            if step.parent < 0 and step.id in self._steps:
                self._note(self._steps[step.id], one)
        found = self._count(event, state) or self._goes_on(state, late_before, stalled_before)
        if found is not None:
            return found
        match event:
            case ev.StepStarted() if event.effect == "model" and self._tokens_max is not None:
                if not event.reserved_tokens:
                    return "P10", f"`{event.step}` asks a model, and nothing was reserved for it"
            case ev.RunCancelled():
                self._cancelled = True
            case ev.RunFinished():
                wrong = self._ends_wrongly(event)
                return None if wrong is None else ("P1", wrong)
            case _:
                pass
        return None

    def _note(self, step: Mapping[str, Any], one: Settled) -> None:
        self._settled.add(step["id"])
        self._last = step, one
        if one.status is StepStatus.FAILED and "on_failure" not in step:
            self._unhandled.add(step["id"])
        if step["type"] in ("condition", "parallel", "map"):
            self._spent += one.attempts > 0
        if step["type"] == "wait":
            self._stalled = 0
        elif step["type"] != "condition" and one.status is not StepStatus.FAILED and one.attempts:
            written = canonical.encode(one.output)
            self._stalled = self._stalled + 1 if self._yielded.get(step["id"]) == written else 0
            self._yielded[step["id"]] = written

    def _is_late(self, state: State) -> bool:
        """Count the time up to now, but for that in which the run waited; whether it is more than there was."""
        before = self._before
        if before is not None and not before[1]:
            self._used_ms += state.now_ms - before[0]
        self._before = state.now_ms, state.status is RunStatus.SUSPENDED
        return bool(self._duration_ms_max) and self._used_ms > self._duration_ms_max

    def _is_stalled(self) -> bool:
        return self._stalled_max is not None and self._stalled >= self._stalled_max

    def _count(self, event: ev.Event, state: State) -> tuple[str, str] | None:
        """Count what is spent, from below: the kernel may count more, never less."""
        if type(event) in _ATTEMPTS:
            place = (event.step, event.occurrence, event.item, event.attempt)  # type: ignore[union-attr]
            self._attempts.add(place)
        if type(event) is ev.StepStarted or type(event) is ev.ChildStarted:
            self._reserved[event.step, event.occurrence, event.item] = event.reserved_tokens or 0
        if type(event) is ev.ChildFinished:
            self._spent += event.steps
            self._take(event, event.tokens or 0)
        elif type(event) in _ANSWERS:
            self._take(event, (event.tokens_in or 0) + (event.tokens_out or 0))  # type: ignore[union-attr]
            self._cost_nanousd += event.cost_nanousd or 0  # type: ignore[union-attr]
        if len(self._attempts) + self._spent > min(self._attempts_max, state.steps_max):
            return "P10", f"{len(self._attempts) + self._spent} steps under a budget of {self._attempts_max}"
        if state.tokens < self._tokens or state.cost_nanousd < self._cost_nanousd:
            return "P10", "less was counted than models say they took"
        return None

    def _take(self, event: Any, tokens: int) -> None:
        self._tokens += tokens
        self.beyond += max(0, tokens - self._reserved.pop((event.step, event.occurrence, event.item), 0))

    def _goes_on(self, state: State, is_late: bool, was_stalled: bool) -> tuple[str, str] | None:
        """Nothing new begins when time is up, or when nothing has changed for too long."""
        active = {(key, one.occurrence) for key, one in state.active.items()}
        begun, self._active = active - self._active, active
        if state.stage is not Stage.GOING:
            return None  # what is undone has its own budget
        if begun and is_late:
            return "P10", f"something begins after {self._used_ms} ms of {self._duration_ms_max}"
        if begun and was_stalled and self._is_stalled():
            return "P10", f"something begins after {self._stalled} steps that changed nothing"
        return None

    def _ends_wrongly(self, event: ev.RunFinished) -> str | None:
        succeeded = event.status == "SUCCESS"
        if self._cancelled and event.status != "CANCELLED":
            return f"{event.status}, and the run was cancelled"
        if self._dag:
            if succeeded and self._unhandled:
                return f"SUCCESS after the failure of `{min(self._unhandled)}`"
            left = set(self._steps) - self._settled
            return f"SUCCESS, and `{min(left)}` has not settled" if succeeded and left else None
        if self._last is None or self._cancelled:
            return "SUCCESS before any step has settled" if succeeded and self._steps else None
        step, settled = self._last
        if settled.status is StepStatus.FAILED:
            if event.status == "FAILED" and "on_failure" in step:
                return f"`{step['id']}` has failed, and `{step['on_failure']}` was left out"
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
