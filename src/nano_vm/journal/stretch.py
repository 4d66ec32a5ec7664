"""Folding a plain stretch of a journal through the kernel's lane.

Most entries of most journals are the success of a plain tool and the intent of the next one. The lane takes these
transitions as `apply` would (`nano_vm.kernel.lane`), at a fraction of the cost. What it is given here is compared with
the entry first; whatever differs in any way is left to `apply`, which says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from msgspec import UNSET

from nano_vm.journal.plain import END, success_of
from nano_vm.journal.reading import Taken
from nano_vm.kernel.events import Event, StepStarted, StepSucceeded
from nano_vm.kernel.lane import begin, is_plain, lane, walk
from nano_vm.kernel.state import Activity, Phase, State
from nano_vm.program.compiled import CompiledProgram


class Stretch:
    """A walk through plain steps. While it is open, `state` is not what it says: `leave` first."""

    __slots__ = (
        "_activity",
        "_at_ms",
        "_effect",
        "_expected",
        "_index",
        "_names",
        "_occurrence",
        "_program",
        "_started",
        "_state",
        "_walk",
    )

    def __init__(self, program: CompiledProgram, state: State, activity: Activity, started: bool) -> None:
        self._program = program
        self._state = state
        self._activity = activity
        self._started = started
        self._effect = activity.effect
        self._expected: dict[tuple[int, bool], bytes] = {}  # formats for the number of an occurrence
        self._names: dict[int, bytes] = {}
        activity.effect = (
            ""  # the lane moves this activity on from step to step; what is not begun has no effect yet
        )
        self._at_ms = state.now_ms  # of the intent: a success before it is not plain
        self._walk: Generator[Any, Any, None] | None = walk(program, state, activity)
        self._index, self._occurrence, _, _ = next(self._walk)

    @property
    def is_open(self) -> bool:
        return self._walk is not None

    def take(self, events: Sequence[Event]) -> tuple[int, list[Any]]:
        """Take what is plain of an entry's events.

        Returns:
            how many of the events were taken, from the first, and the verdicts that the first of them led to. When it
            is fewer than all the stretch is over, and `state` is as of the last event taken.
        """
        event = events[0]
        if not self._fits(event):
            self.leave()
            return 0, []
        assert self._walk is not None
        assert type(event) is StepSucceeded
        value = None if event.payload is UNSET else event.payload
        taken = (value, event.at_ms, 2 if self._started else 1)
        self._started = False
        try:
            self._index, self._occurrence, _, verdicts = self._walk.send(taken)
        except StopIteration:
            self._walk = None
            return 1, self._state.verdicts
        plain = is_plain(self._program.steps[self._index])
        if plain and len(events) == 2 and self._begins(events[1]):
            return 2, verdicts or []
        if not plain or len(events) > 1:
            self.leave()
        return 1, verdicts or []

    @property
    def expected(self) -> bytes:
        """The encoded members of the success that comes next, as `ChainReader.take_success` wants them."""
        known = self._expected.get((self._index, self._started))
        if known is None:
            step = self._program.steps[self._index].id
            # Two halves around the number of the occurrence.
            halves = success_of(step, not self._started, 7).removesuffix(END).split("7", 1)
            known = self._expected[self._index, self._started] = b"%b%%d%b" % (
                halves[0].encode(),
                halves[1].encode(),
            )
        return known % self._occurrence

    def take_success(self, taken: Taken) -> tuple[list[Any] | None, bool]:
        """`take` of an entry that the reader has found to be the success that is expected.

        Returns:
            the verdicts that it led to, and whether the intent that rode with it, if one did, has been taken. Without
            verdicts nothing was taken at all.
        """
        value, at_ms, _, intent = taken
        if at_ms < self._at_ms:
            return None, False
        events = 2 if self._started else 1
        self._started = False
        try:
            self._index, self._occurrence, _, verdicts = self._walk.send((value, at_ms, events))  # type: ignore[union-attr]
        except StopIteration:
            self._walk = None
            return self._state.verdicts, False
        if intent is None:
            return verdicts or [], False
        # What the walk comes to is plain.
        begun_ms, effect, occurrence, step = intent
        index = self._index
        name = self._names.get(index)
        if name is None:
            name = self._names[index] = f'"step":"{self._program.steps[index].id}"'.encode()
        if step == name and occurrence == b'"occurrence":%d' % self._occurrence:
            self._started, self._effect, self._at_ms = True, effect, begun_ms
            return verdicts or [], True
        self.leave()
        return verdicts or [], False

    def leave(self) -> None:
        """Bring `state` up to date and go no further."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None
            if self._started:
                begin(self._state, self._activity, self._effect)
                self._state.now_ms = max(self._state.now_ms, self._at_ms)

    def _fits(self, event: Event) -> bool:
        """Whether this is the success that the lane waits for, and says nothing more."""
        if type(event) is not StepSucceeded or event.at_ms < self._at_ms:
            return False
        plain = StepSucceeded(
            at_ms=event.at_ms,
            attempt=1,
            occurrence=self._occurrence,
            payload=event.payload,
            pure=UNSET if self._started else True,
            step=self._program.steps[self._index].id,
            verdicts=event.verdicts,
        )
        return event == plain

    def _begins(self, event: Event) -> bool:
        """Whether this is the plain intent of what the lane has come to; then it is taken."""
        if type(event) is not StepStarted or event.effect is UNSET:
            return False
        effect, at_ms = event.effect, event.at_ms
        step = self._program.steps[self._index].id
        if event != StepStarted(
            at_ms=at_ms, attempt=1, effect=effect, occurrence=self._occurrence, step=step
        ):
            return False
        self._started, self._effect, self._at_ms = True, effect, at_ms
        return True


def stretch_from(program: CompiledProgram, state: State) -> Stretch | None:
    """The plain stretch that begins here, if one does: all that is in progress is a plain tool at its first attempt."""
    if len(state.active) != 1 or state.governed or state.labels is not None:
        return None  # in a governed run every dispatch has its decision
    (activity,) = state.active.values()
    if activity.step < 0 or not is_plain(program.steps[activity.step]):
        return None
    if activity.phase is Phase.READY:
        return Stretch(program, state, activity, False) if lane(program, state) is not None else None
    if activity.phase is not Phase.STARTED or activity.reserved_tokens or activity.reserved_cost_nanousd:
        return None
    if not activity.effect:
        return None
    # The lane begins before the intent, and `begin` takes it again.
    activity.phase = Phase.READY
    state.ready[activity.step] = None
    state.seq -= 1
    if lane(program, state) is not None:
        return Stretch(program, state, activity, True)
    begin(state, activity, activity.effect)
    return None
