"""Folding a plain stretch of a journal through the kernel's lane.

Most entries of most journals are the success of a plain tool and the intent of the next one. The lane takes these
transitions as `apply` would (`nano_vm.kernel.lane`), at a fraction of the cost. What it is given here is compared with
the entry first; whatever differs in any way is left to `apply`, which says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.journal.entry import SALT_BYTES, Entry
from nano_vm.journal.ledger import Ledger
from nano_vm.journal.plain import AT, END, HEAD, LAST, encode_verdicts, intent_of, success_of
from nano_vm.journal.reading import ChainReader, is_number, read_intent
from nano_vm.kernel.events import Event, StepStarted, StepSucceeded
from nano_vm.kernel.lane import begin, is_plain, lane, walk
from nano_vm.kernel.state import Activity, Phase, State
from nano_vm.program.compiled import CompiledProgram

_END, _LAST = END.removesuffix("sha256:").encode(), LAST.encode()
_START = b"%b%%b%b%%b%%b%%b%b%%b%%b%%d" % (HEAD.encode(), AT.encode(), _END)
_VERDICTS = b',"verdicts":'
_AT_PLACE = len(HEAD) + 64 + len(AT)


class Left(NamedTuple):
    """An entry whose success has been taken, and led to `verdicts`; whether they are as recorded, and what rides with
    it, has still to be looked at. `prev` is the digest of the entry before it."""

    entry: Entry
    prev: str
    verdicts: list[Any]


class Stretch:
    """A walk through plain steps. While it is open, `state` is not what it says: `leave` first.

    `verdicts` is how many were found to be as recorded by `read`.
    """

    __slots__ = (
        "_activity",
        "_effect",
        "_entered_ms",
        "_expected",
        "_index",
        "_intents",
        "_least_ms",
        "_occurrence",
        "_program",
        "_started",
        "_state",
        "_walk",
        "verdicts",
    )

    def __init__(self, program: CompiledProgram, state: State, activity: Activity, started: bool) -> None:
        self.verdicts = 0
        self._program = program
        self._state = state
        self._activity = activity
        self._started = started
        self._effect = activity.effect
        # Formats of what is expected: a success for the number of its occurrence, an intent for its time as well.
        self._expected: tuple[dict[int, bytes], dict[int, bytes]] = {}, {}
        self._intents: dict[int, tuple[bytes, str]] = {}
        activity.effect = (
            ""  # the lane moves this activity on from step to step; what is not begun has no effect yet
        )
        self._least_ms = state.now_ms  # of the intent: a success before it is not plain
        self._entered_ms = activity.entered_ms
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

    def read(
        self, entries: Sequence[Entry], stop: int, reader: ChainReader, ledger: Ledger | None
    ) -> Left | None:
        """Take the entries that come next, as far as each is a plain success and the intent of what follows it, or a
        plain success alone. Nothing of them is parsed but the payload: their bytes are compared with what they have to
        be. The first that is anything else is for `reader.take` and `take`.

        Args:
            entries: all of the journal.
            stop: the first of them that is not to be read.
            ledger: who keeps the results.

        Returns:
            what is left to be done about the last entry that was taken, if anything is.
        """
        assert self._walk is not None
        go_on, seq, head, place = self._walk.send, reader.length, reader.head, reader.place
        index, occurrence, started = self._index, self._occurrence, self._started
        least_ms, steps, intents = self._least_ms, self._program.steps, self._intents
        pure, effects = self._expected
        salt_bytes = SALT_BYTES
        at, at_ms = b",", 0  # no time at all
        left: Left | None = None
        is_over = False
        for seq in range(reader.length, stop):
            entry = entries[seq]
            written, payload, salt = entry.facts, entry.payload, entry.salt
            if payload is None or len(salt) != salt_bytes or entry.seq != seq:
                break
            if not written.startswith(at, _AT_PLACE):
                at = written[_AT_PLACE : written.find(b",", _AT_PLACE)]
                if not is_number(at):
                    break
                at_ms = int(at)
            if at_ms < least_ms:
                break
            format = effects.get(index) if started else pure.get(index)
            expected = (format or self._expect(index, started)) % occurrence
            verdicts_at = _AT_PLACE + len(at) + len(expected)
            told = b""
            if written.startswith(_VERDICTS, verdicts_at):
                told = written[verdicts_at : written.find(_END, verdicts_at)]
            commitment = sha256(salt + payload).hexdigest().encode()
            start = _START % (commitment, at, expected, told, head.encode(), place, seq)
            digest = "sha256:" + sha256(written).hexdigest()
            if digest != entry.digest or not written.startswith(start):
                break
            try:
                value = canonical.decode_canonical(payload)
            except InputError:
                break
            # From here on the success is taken.
            step, done = steps[index], occurrence
            verdicts: list[Any] | None
            try:
                index, occurrence, _, verdicts = go_on((value, at_ms, 2 if started else 1))
            except StopIteration:
                self._walk, is_over = None, True
                verdicts = self._state.verdicts
            if ledger is not None:
                ledger.succeed(step, done, value, payload, self._entered_ms, at_ms)
                ledger.decide(verdicts or [], at_ms, self._state if is_over else None)
                self._entered_ms = at_ms
            tail = written[len(start) :]
            prev, head = head, digest
            seq, started, least_ms = seq + 1, False, at_ms
            if told == (_VERDICTS + encode_verdicts(verdicts) if verdicts else b""):
                if tail != _LAST and not is_over:
                    known = intents.get(index)
                    if known is not None and tail == known[0] % (at, occurrence):
                        started, self._effect = True, known[1]
                    elif (begun_ms := self._begun(tail, index, occurrence)) >= 0:
                        started, least_ms = True, max(at_ms, begun_ms)
                if started or tail == _LAST:
                    if verdicts:
                        self.verdicts += len(verdicts)
                    if not is_over:
                        continue
                    break
            left = Left(entry, prev, verdicts or [])
            break
        reader.payloads += seq - reader.length
        reader.length, reader.head = seq, head
        self._index, self._occurrence, self._started, self._least_ms = index, occurrence, started, least_ms
        if left is not None:
            self.leave()
        return left

    def _expect(self, index: int, started: bool) -> bytes:
        """The members of a success as they have to be written, but for the number of the occurrence."""
        before, after = (
            success_of(self._program.steps[index].id, not started, 7).removesuffix(END).split("7", 1)
        )
        made = self._expected[started][index] = b"%b%%d%b" % (before.encode(), after.encode())
        return made

    def _begun(self, tail: bytes, index: int, occurrence: int) -> int:
        """When (epoch ms) the intent that rides with a success was noted, if it is the plain one of what the walk has
        come to, and then it is taken; else -1."""
        found = read_intent(tail)
        if found is None:
            return -1
        begun, effect = found
        before, after = intent_of(self._program.steps[index].id, effect, 7)
        between, end = after.split("7", 1)
        format = b"%b%%b%b%%d%b" % (before.encode(), between.encode(), end.encode())
        if tail != format % (begun, occurrence):
            return -1
        self._intents[index] = format, effect
        self._effect = effect
        return int(begun)

    def leave(self) -> None:
        """Bring `state` up to date and go no further."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None
            if self._started:
                begin(self._state, self._activity, self._effect)
                self._state.now_ms = max(self._state.now_ms, self._least_ms)

    def _fits(self, event: Event) -> bool:
        """Whether this is the success that the lane waits for, and says nothing more."""
        if type(event) is not StepSucceeded or event.at_ms < self._least_ms:
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
        self._started, self._effect, self._least_ms = True, effect, at_ms
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
