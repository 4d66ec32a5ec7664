"""What a run has met of what policies require: gathered from what its transitions settle, live or in a fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nano_vm.journal.entry import Entry
from nano_vm.kernel.events import Event, PolicyDecided, ValuesChanged
from nano_vm.kernel.life import begun_before
from nano_vm.kernel.state import Settled, State, StepStatus
from nano_vm.policy.tally import Tally
from nano_vm.program.compiled import CompiledProgram, CompiledStep, Kind, ModelAction, ToolAction, WaitAction


class Progress:
    """The requirements that are met, as `Request.done` has them, and what the run's own limits have counted."""

    __slots__ = ("_begun", "_done", "_early", "_frozen", "_over", "_passed", "_tally", "program")

    def __init__(self, program: CompiledProgram) -> None:
        self.program = program
        self._tally: Tally | None = None
        self._done: set[str] = set()
        self._frozen: frozenset[str] | None = None
        self._passed: list[int] = []  # looked up when somebody asks
        self._begun: frozenset[tuple[int, int, int]] = frozenset()  # with values that have been changed since
        self._over: frozenset[tuple[int, int, int]] = frozenset()  # of these, the ones that have succeeded
        self._early = False  # the next event is of the run that a fork has left

    @property
    def tally(self) -> Tally:
        """What the run's own limits have counted."""
        tally = self._tally
        if tally is None:
            tally = self._tally = Tally()
        return tally

    def follow(self, event: Event, state: State) -> None:
        """Take note of an event that has been applied."""
        if type(event) is PolicyDecided:
            self.tally.note(event)
        if type(event) is ValuesChanged:
            if event.names:
                self._forget(event, state)
            return
        if self._early:
            self._early = False
            self._begun |= {(result.step, result.occurrence, result.item) for result in state.settled}
        self.note(state.settled)

    def _forget(self, event: ValuesChanged, state: State) -> None:
        """What was met was met with other values: nothing of it counts, nor what comes of what had begun with them."""
        self._done.clear()
        self._passed.clear()
        self._frozen = None
        self._early = event.early is True
        begun = begun_before(self.program, state)
        self._begun = frozenset((one.step, one.occurrence, one.item) for one in begun)

    def note(self, settled: Iterable[Settled]) -> None:
        """Take note of what a transition settled. Only real successes count: no substitute for an answer, no step
        that was passed over, and no approval that was refused."""
        for result in settled:
            if result.status is not StepStatus.SUCCESS or result.substituted:
                continue
            step = self.program.steps[result.step]
            begun = result.step, result.occurrence, result.item
            if self._begun and begun in self._begun:
                self._over |= {begun}
                continue
            action = step.action
            if step.kind is Kind.CONDITION:
                continue  # that something was asked is no reason to allow anything
            if type(action) is WaitAction and action.approvers:
                answer = result.output
                if type(answer) is not dict or answer.get("approved") is not True:
                    continue
            self._done.add(f"step:{step.id}")
            if type(action) is ToolAction:
                self._done.add(f"tool:{action.tool}")
            self._frozen = None

    def passed(self, indexes: Iterable[int]) -> None:
        """Take note of steps of tools and models that have succeeded, by index."""
        if self._begun:
            indexes = [index for index in indexes if not self._had_begun(index)]
        self._passed += indexes
        self._frozen = None

    def _had_begun(self, index: int) -> bool:
        """Whether the success of a step outside groups is that of its occurrence that had begun with other values.
        There is one at most, and it comes first."""
        for begun in self._begun - self._over:
            if begun[0] == index and begun[2] < 0:
                self._over |= {begun}
                return True
        return False

    @property
    def done(self) -> frozenset[str]:
        for index in self._passed:
            step = self.program.steps[index]
            if type(step.action) is ToolAction or type(step.action) is ModelAction:
                self._done.add(f"step:{step.id}")
            if type(step.action) is ToolAction:
                self._done.add(f"tool:{step.action.tool}")
        self._passed.clear()
        if self._frozen is None:
            self._frozen = frozenset(self._done)
        return self._frozen


class Noting:
    """Watches a fold (`nano_vm.journal.stretch.Watcher`) for a run's progress, and takes every decision as it is."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def before(self, entry: Entry, event: Event, state: State) -> None:
        """Nothing is held against it."""

    def after(self, entry: Entry, event: Event, state: State) -> None:
        self.progress.follow(event, state)

    def allows(self, event: PolicyDecided, step: CompiledStep, args: Any, state: State) -> bool:
        return True

    def passed(self, steps: Sequence[int], settled: Sequence[Settled]) -> None:
        self.progress.passed(steps)
        self.progress.note(settled)
