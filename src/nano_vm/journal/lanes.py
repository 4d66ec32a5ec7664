"""The successes of lanes that others follow: compared as they are written, and taken without the generality they do not
need.

Most entries about a parallel or a map are the success of a tool in one of its lanes while others are under way: what
the lane yields is noted, and nothing else happens. `succeed_lane` is `apply` of it. The last lane, with which the run
goes on, lanes that begin with the success of another, failures, and whatever is written in any other way are left to
`apply`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.journal.entry import SALT_BYTES, Entry
from nano_vm.journal.ledger import Ledger
from nano_vm.journal.plain import AT, HEAD, LAST
from nano_vm.journal.reading import ChainReader
from nano_vm.journal.stretch import Watcher
from nano_vm.kernel.state import Activity, Phase, Settled, Stage, State, StepStatus, activity_key
from nano_vm.kernel.together import succeed_lane
from nano_vm.program.compiled import CompiledProgram, CompiledStep, Kind

_STARTED, _GROUP, _GOING = Phase.STARTED, Phase.GROUP, Stage.GOING
_TOOL = Kind.TOOL
_GROUPS = (Kind.PARALLEL, Kind.MAP)
_SUCCESS = StepStatus.SUCCESS
_NUMBER = rb"(0|[1-9]\d{0,14})"
# From the time of a success to what links its entry to the one before.
_LANE = re.compile(
    rb'%b,"attempt":%b,(?:"item":%b,)?"occurrence":%b,"step":"([^"\\]+)"\},"prev":"'
    % (_NUMBER, _NUMBER, _NUMBER, _NUMBER)
).match
_HEAD, _AT, _LAST = HEAD.encode(), AT.encode(), LAST.encode()
_PREV = len(b'},"prev":"')
_AT_PLACE = len(HEAD) + 64 + len(AT)


class Lanes:
    """Takes successes of lanes out of a run's journal.

    Args:
        state: the run's, changed in place; it is as `apply` leaves it after every entry.
        watchers: are told what has succeeded.
        ledger: keeps the results, where one is given.
    """

    __slots__ = ("_ledger", "_program", "_state", "_watchers", "_worth")

    def __init__(
        self, program: CompiledProgram, state: State, watchers: Sequence[Watcher], ledger: Ledger | None
    ) -> None:
        self._program = program
        self._state = state
        self._watchers = watchers
        self._ledger = ledger
        self._worth: dict[int, bool] = {}  # by step index, whether it is a lane that can be taken

    def are_open(self) -> bool:
        """Whether there are lanes under way, with another one beside the next to succeed, and all they yield is
        trusted."""
        state = self._state
        if len(state.active) < 3 or state.stage is not _GOING or state.grants or state.fork_seq:
            return False
        return state.labels is None or not any(state.labels)

    def read(self, entries: Sequence[Entry], stop: int, reader: ChainReader) -> None:
        """Take the entries that come next, as far as each is the success of a lane that others follow.

        Args:
            entries: all of the journal.
            stop: the first of them that is not to be read.
            reader: is moved on.
        """
        head, place, seq = reader.head.encode(), reader.place, reader.length
        for seq in range(reader.length, stop):
            entry = entries[seq]
            written, payload, salt = entry.facts, entry.payload, entry.salt
            if payload is None or len(salt) != SALT_BYTES or entry.seq != seq:
                break
            found = _LANE(written, _AT_PLACE)
            if found is None:
                break
            at, attempt, item, occurrence, step_id = found.groups()
            lane = self._lane(step_id, item, int(attempt), int(occurrence))
            if lane is None:
                break
            start = b"%b%b%b" % (_HEAD, sha256(salt + payload).hexdigest().encode(), _AT)
            end = found.end() - _PREV
            digest = "sha256:" + sha256(written).hexdigest()
            if (
                digest != entry.digest
                or not written.startswith(start)
                or written[end:] != b'},"prev":"%b%b%d%b' % (head, place, seq, _LAST)
            ):
                break
            try:
                value = canonical.decode_canonical(payload)
            except InputError:
                break
            self._take(lane, value, int(at))
            head = digest.encode()
        else:
            seq = stop
        reader.payloads += seq - reader.length
        reader.length, reader.head = seq, head.decode()

    def _lane(self, step_id: bytes, item: bytes | None, attempt: int, occurrence: int) -> Activity | None:
        """The lane that is under way, if this is its attempt and its success is all that happens with it."""
        program, active = self._program, self._state.active
        index = program.step_index.get(step_id.decode(errors="replace"))
        if index is None or not (self._worth.get(index) or self._is_worth(index)):
            return None
        key = index if item is None else activity_key(index, int(item))
        lane = active.get(key)
        if lane is None or lane.attempt != attempt or lane.occurrence != occurrence:
            return None
        parent = active[program.steps[index].parent]
        group = parent.group
        if group is None or parent.phase is not _GROUP or group.queue or group.active < 2:
            return None
        if lane.phase is not _STARTED or lane.label or key in self._state.parked:
            return None
        if lane.reserved_tokens or lane.reserved_cost_nanousd:
            return None  # of a tool only somebody who writes whole journals says so
        return lane

    def _is_worth(self, index: int) -> bool:
        step = self._program.steps[index]
        self._worth[index] = found = _is_lane(self._program, step)
        return found

    def _take(self, lane: Activity, value: object, at_ms: int) -> None:
        program, state = self._program, self._state
        parent = state.active[program.steps[lane.step].parent]
        assert parent.group is not None
        succeed_lane(program, state, parent.group, lane, value, at_ms)
        if self._watchers or self._ledger is not None:
            settled = Settled(
                lane.step,
                lane.occurrence,
                lane.item,
                _SUCCESS,
                value,
                "",
                lane.attempt,
                lane.entered_ms,
                False,
            )
            for watcher in self._watchers:
                watcher.passed((), (settled,))
            if self._ledger is not None:
                self._ledger.settle(settled, state)


def _is_lane(program: CompiledProgram, step: CompiledStep) -> bool:
    """Whether a step is a lane of a parallel or a map, a tool with nothing to undo it, and labels nothing."""
    if step.parent < 0 or step.kind is not _TOOL or step.compensation is not None or step.adds:
        return False
    return program.steps[step.parent].kind in _GROUPS
