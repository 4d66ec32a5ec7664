"""What is undone, read off a program's source and a run's journal: a second opinion on sagas (P1, P4, P10).

What has succeeded is undone when the run does not succeed, in reverse order, once, when nothing is under way any more,
with the arguments that its program says; what is not is named. A finished child's is undone by its parent. Like `edges`
this is deliberately not the kernel's code; it follows SPEC §2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.state import COMPENSATION_KEY, Settled, State, StepStatus
from nano_vm.program.compiled import CompiledProgram
from nano_vm.testing.arguments import Arguments, agrees

Wrong: TypeAlias = tuple[str, str]
Place: TypeAlias = tuple[str, int, int | None]
_FAILURES_MAX: Final = 3
_WAIT_MS: Final = 1_000  # at least, before it is tried again


class Done(NamedTuple):
    """Something that has happened and can be undone."""

    place: Place
    tool: str
    args: Any


class Undoing:
    """Follows one run. `arguments` follows the values of the same run.

    Invariant: `done` is what is still to be undone if the run does not succeed, the latest last.
    """

    def __init__(self, source: Mapping[str, Any], arguments: Arguments) -> None:
        self._arguments = arguments
        self._undo: dict[str, Mapping[str, Any]] = {}
        for step in source["steps"]:
            lanes = [*step.get("parallel_steps", ()), *([step["step"]] if "step" in step else ())]
            self._undo |= {one["id"]: one["compensate"] for one in [step, *lanes] if "compensate" in one}
        self.done: list[Done] = []
        self._undone: set[Place] = set()
        self._unknown: set[str] = set()
        self._failures = 0
        self._not_before_ms = 0
        self._final = False

    def broken_by(
        self,
        event: ev.Event,
        settled: Sequence[tuple[int, Settled]],
        program: CompiledProgram,
        state: State,
        child: Sequence[Done] | None = None,
    ) -> Wrong | None:
        """The promise, and what is wrong with what is undone; or None. To be asked after `arguments` has noted the
        event. `child`: what a child that has finished had done, where that is known."""
        for index, one in settled:
            name = program.steps[index].id
            if name in self._undo and one.status is StepStatus.SUCCESS:
                self._note(name, one)
            if name in self._undo and one.status is StepStatus.UNKNOWN:
                self._unknown.add(name)
        match event:
            case ev.ChildFinished() if event.status == "SUCCESS":
                return self._take_over(event, child)
            case ev.CompensationStarted():
                return self._begins(event, state)
            case ev.CompensationSucceeded():
                self._undone.add(_place_of(event))
            case ev.OutcomeResolved() if event.compensation is True and event.resolution == "succeeded":
                self._undone.add(self.done[-1].place)
            case ev.OutcomeResolved() if event.compensation is True:
                # Where somebody vouches for it that it may be done again, that is no failure.
                self._failures += event.resolution == "failed" or event.by != "operator"
            case ev.CompensationFailed():
                return self._failed(event, state)
            case ev.RunFinished():
                return self._ends(event, state)
            case _:
                pass
        return None

    def wrong(
        self, step: str, occurrence: int, item: int | None, tool: str, given: Mapping[str, Any]
    ) -> str | None:
        """What is wrong with the call that undoes a step, or None."""
        place = (step, occurrence, item)
        found = next((one for one in self.done if one.place == place), None)
        if found is None:
            return f"`{step}` is undone, and has not happened"
        if found.tool != tool:
            return f"`{step}` is undone by `{tool}`"
        return (
            None
            if agrees(found.args, given)
            else f"`{step}` is undone with other arguments than its program says"
        )

    def _note(self, name: str, one: Settled) -> None:
        compensate, item = self._undo[name], None if one.item < 0 else one.item
        args = self._arguments.rendered_in(name, compensate.get("args", {}), item)
        self.done.append(Done((name, one.occurrence, item), compensate["tool"], args))

    def _take_over(self, event: ev.ChildFinished, child: Sequence[Done] | None) -> Wrong | None:
        told = event.payload.get("compensations", ()) if type(event.payload) is dict else ()
        if child is not None and [one.tool for one in child] != [one["tool"] for one in told]:
            return "P1", f"what the child of `{event.step}` has done could not be undone through it"
        way = event.step if event.occurrence == 1 else f"{event.step}.{event.occurrence}"
        if event.item is not UNSET:
            way = f"{event.step}.{event.occurrence}.{event.item}"
        for one in told:
            item = None if one["item"] < 0 else one["item"]
            self.done.append(
                Done((f"{way}/{one['step']}", one["occurrence"], item), one["tool"], one["args"])
            )
        return None

    def _begins(self, event: ev.CompensationStarted, state: State) -> Wrong | None:
        place = _place_of(event)
        if any(key != COMPENSATION_KEY for key in state.active):
            return "P1", f"`{event.step}` is undone while something is under way"
        if place in self._undone:
            return "P4", f"`{event.step}` is undone twice"
        while self.done and self.done[-1].place != place:
            left = self.done.pop()
            self._failures, self._not_before_ms, self._final = 0, 0, False
            if left.place not in self._undone and left.place[0] not in state.incomplete:
                return "P1", f"`{event.step}` is undone before `{left.place[0]}`, which came after it"
        if not self.done:
            return "P1", f"`{event.step}` is undone, and nothing of it is left"
        if self._final:
            return "P4", f"`{event.step}` is undone again after it has failed for good"
        if state.now_ms < self._not_before_ms:
            return "P1", f"`{event.step}` is undone again too early"
        return None

    def _failed(self, event: ev.CompensationFailed, state: State) -> Wrong | None:
        self._failures += 1
        self._not_before_ms = state.now_ms + _WAIT_MS
        self._final = not event.retryable
        goes_on = COMPENSATION_KEY in state.active
        if goes_on and self._failures >= _FAILURES_MAX:
            return "P10", f"`{event.step}` is to be undone more often than {_FAILURES_MAX} times"
        if not goes_on and event.retryable and self._failures == 1:
            return "P1", f"undoing `{event.step}` is given up after one failure"
        return None

    def _ends(self, event: ev.RunFinished, state: State) -> Wrong | None:
        if event.status == "SUCCESS":
            return ("P1", "something was undone in a run that has succeeded") if self._undone else None
        named = set(() if event.incomplete is UNSET else event.incomplete)
        left = {one.place[0] for one in self.done if one.place not in self._undone} | self._unknown
        if left - named:
            return "P1", f"`{min(left - named)}` was neither undone nor named as incomplete"
        return None


def _place_of(event: Any) -> Place:
    return event.step, event.occurrence, None if event.item is UNSET else event.item


__all__ = ["Done", "Undoing"]
