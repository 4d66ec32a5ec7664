"""Verifying a run: its chain, its payloads, every transition, and what its record claims (SPEC §5, P5,
P6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import InputError, VerificationError
from nano_vm.journal.entry import GENESIS, Entry, is_closed, open_event, read_facts
from nano_vm.journal.fold import OnTransition, check_verdicts, take
from nano_vm.journal.forms import check_form
from nano_vm.journal.lanes import Lanes
from nano_vm.journal.ledger import Ledger
from nano_vm.journal.port import RunRecord
from nano_vm.journal.reading import SUCCEEDED, ChainReader
from nano_vm.journal.recall import Notes, Recall
from nano_vm.journal.standing import Standing, standing
from nano_vm.journal.stretch import Learnt, Stretch, Watcher, stretch_from
from nano_vm.kernel.events import Event, RunStarted
from nano_vm.kernel.state import RunStatus, Stage, State, snapshot
from nano_vm.program.compiled import CompiledProgram

KEYED = "hmac-sha256:"  # of a digest that only who has the subject's key can compute
_ENDED = Stage.ENDED
_NAMED_MAX = 20  # decisions that are named one by one


class Verified(NamedTuple):
    """A run that verifies: its state, and what was checked, in order, as (name, detail)."""

    state: State
    steps: list[tuple[str, str]]


# Which step of `verify_run` an error belongs to, where its code alone says so.
_CHECK_OF = {
    "COMMITMENT_MISMATCH": "commitments",
    "PAYLOAD_MISSING": "commitments",
    "VERDICTS": "verdicts",
    "TERMINAL": "ending",
}


def verify_run(
    program: CompiledProgram,
    record: RunRecord | None,
    entries: Sequence[Entry],
    run_id: str | None = None,
    *,
    on_transition: OnTransition | None = None,
    ledger: Ledger | None = None,
    notes: Notes | None = None,
    watchers: Sequence[Watcher] = (),
) -> Verified:
    """Check everything that can be checked of one run without its store.

    The steps, each reported when it has passed:

    1. `chain`: every entry has its digest, its place and the digest of the entry before it, in canonical
       form.
    2. `commitments`: every payload is there, in canonical form, and the one committed to.
    3. `transitions`: the kernel takes every entry, from the start, under this program.
    4. `verdicts`: every condition comes out as recorded.
    5. `closed`: payloads that cannot be read are erased, and an entry says so, or are sealed; which decisions rest on
       them and were taken as recorded (left out where every payload can be read).
    6. `ending`: nothing but annex entries follows a terminal status.
    7. `record`: the record agrees with the journal (left out without a record).

    Args:
        record: the run's record, when there is one; the journal then has to be of the record's run.
        entries: all entries of the run.
        run_id: the run it has to be, where there is no record; by default the first entry's word is taken.
        on_transition: as in `fold`, for whoever wants to know more of a run than that it verifies.
        ledger: keeps the step results.
        notes: what whoever has the keys noted of values that are sealed here (`notes.record`).
        watchers: what else is held against the transitions, in step 3.

    Raises:
        VerificationError: what `verify_entry` and `fold` raise, and RECORD_MISMATCH (facts: `field`).
            `facts["seq"]` is the first bad entry where one is to blame, `facts["check"]` the step that
            failed and `facts["passed"]` the steps before it.
    """
    steps: list[tuple[str, str]] = []
    check = "chain"
    try:
        if record is not None:
            run_id = record.run_id
        elif run_id is None:
            run_id = read_facts(entries[0]).run if entries else ""
        if not entries:
            raise VerificationError("CHAIN_BROKEN", "the journal is empty", facts={"seq": 0})
        reader = ChainReader(run_id)
        recall = _closed(program, entries, notes)
        claimed = record.length if record is not None else 0
        replay = _Replay(program, run_id, claimed, on_transition, ledger, recall, watchers)
        replay.take_all(entries, reader)
        steps.append(("chain", f"{len(entries)} entries, head {entries[-1].digest}"))
        steps.append(("commitments", f"{reader.payloads} payloads"))
        if recall is not None:
            _check_gone(recall, entries)
        check = "transitions"
        if replay.failure is not None:
            raise replay.failure
        state = replay.state
        if state.fork_seq > state.seq:
            raise VerificationError(
                "REPLAY_MISMATCH",
                "the run shares more with the one it was forked from than it has",
                facts={"seq": 0, "code": "MALFORMED"},
            )
        # The digest of a state with private values in it would tell them to whoever guesses well.
        tells = program.sealed or state.labels is not None
        stands = "" if tells else f", state {_digest_of(state)}"
        steps.append(("transitions", f"{state.seq} taken{stands}"))
        steps.append(("verdicts", f"{replay.verdicts} agree"))
        if state.fork_seq:
            told = f"the first {state.fork_seq} events are of the run that it was forked from"
            steps.append(("shared", f"{told}: what was decided there is verified there"))
        if recall is not None:
            steps.append(("closed", _say_closed(recall)))
        steps.append(("ending", replay.ending()))
        check = "record"
        if record is not None:
            _check_record(program, record, entries, state, replay.then)
            steps.append(("record", f"{record.status} as of {record.length} entries"))
    except VerificationError as error:
        error.facts["check"] = _CHECK_OF.get(str(error.facts.get("code", error.code)), check)
        error.facts["passed"] = [list(step) for step in steps]
        raise
    return Verified(state, steps)


def refold(
    program: CompiledProgram,
    run_id: str,
    entries: Sequence[Entry],
    watchers: Sequence[Watcher] = (),
    ledger: Ledger | None = None,
) -> State | None:
    """What `fold` with `verify` comes to, for a fraction of its cost where a journal is plain. None where payloads
    cannot be read, or something is wrong: ask `fold`."""
    replay = _Replay(program, run_id, 0, None, ledger, watchers=watchers)
    try:
        if _closed(program, entries, None) is not None:
            return None
        replay.take_all(entries, ChainReader(run_id))
    except VerificationError:
        return None
    return replay.state if replay.failure is None else None


def _closed(program: CompiledProgram, entries: Sequence[Entry], notes: Notes | None) -> Recall | None:
    """What is known of payloads that cannot be read; None when all can be."""
    try:
        if not any(
            b'"key":"' in entry.facts and is_closed(entry, read_facts(entry))
            for entry in entries
            if not entry.salt
        ):
            return None
        return Recall(program, entries, notes)
    except VerificationError:
        return None  # whoever reads the chain says which entry is the first bad one


def _digest_of(state: State) -> str:
    try:
        return canonical.digest(snapshot(state))
    except InputError:
        # Each of the numbers can be written, and what they add up to cannot.
        raise VerificationError(
            "REPLAY_MISMATCH", "the run comes to numbers that no run can come to"
        ) from None


def _check_gone(recall: Recall, entries: Sequence[Entry]) -> None:
    """A payload that is gone was erased, and an entry says so.

    Raises:
        VerificationError: PAYLOAD_MISSING.
    """
    erased = set(recall.erased)
    for seq in recall.closed:
        if entries[seq].payload is None and seq not in erased:
            raise VerificationError(
                "PAYLOAD_MISSING", f"entry {seq}: its payload is gone", facts={"seq": seq}
            )


def _say_closed(recall: Recall) -> str:
    sealed = len(recall.closed) - len(recall.erased)
    steps = sorted({f"`{one.step}` at entry {one.seq}" for one in recall.unchecked if one.step})
    shown = ", ".join(steps[:_NAMED_MAX]) + (", …" if len(steps) > _NAMED_MAX else "")
    rest = f"no longer re-checkable: {shown}" if steps else "no decision rests on them"
    return f"{len(recall.erased)} payloads erased, {sealed} sealed; {rest}"


class _Replay:
    """One replay: the state, and how it stood after `claimed` entries, which is what the record describes."""

    def __init__(
        self,
        program: CompiledProgram,
        run_id: str,
        claimed: int,
        on_transition: OnTransition | None,
        ledger: Ledger | None = None,
        recall: Recall | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.watchers = watchers
        self.recall = recall
        self.program = program if recall is None else recall.program
        self.on_transition = on_transition
        self.ledger = ledger
        self.failure: VerificationError | None = None
        self.stretch: Stretch | None = None
        self.is_between = (
            False  # nothing has been opened since the last event, and nobody looks at each transition
        )
        self.learnt = Learnt(self.program, run_id)
        self.claimed = claimed
        self.state = State(run=run_id)
        self.lanes = Lanes(self.program, self.state, watchers, ledger)
        self.then: Standing | None = None
        self.length = 0
        self.ended = 0
        self.verdicts = 0

    def take_all(self, entries: Sequence[Entry], reader: ChainReader) -> None:
        length = len(entries)
        while reader.length < length:
            entry = entries[reader.length]
            if not entry.facts.endswith(SUCCEEDED) or not self._read_successes(entries, reader):
                self.take(entry, reader.take(entry))
        self.leave_stretch()

    def _read_successes(self, entries: Sequence[Entry], reader: ChainReader) -> bool:
        """Take the next entries by their bytes, as far as they are plain successes; False when it takes none."""
        if self.is_between and self.lanes.are_open():
            before = reader.length
            self.lanes.read(entries, self._stop(entries), reader)
            if reader.length > before:
                self._count(reader.length - before)
            return reader.length > before
        return self._goes_plainly() and self.read(entries, reader)

    def _stop(self, entries: Sequence[Entry]) -> int:
        """How far may be read at once: the record is held against how the run stood after what it claims."""
        return self.claimed if self.length < self.claimed < len(entries) else len(entries)

    def _goes_plainly(self) -> bool:
        """Whether a plain stretch is open or can be opened here."""
        if self.is_between:
            self.is_between = False
            self.stretch = stretch_from(self.program, self.state, self.watchers, self.learnt)
        return self.stretch is not None

    def read(self, entries: Sequence[Entry], reader: ChainReader) -> bool:
        """Take the next entries by their bytes, as far as the stretch goes; False when it takes none."""
        stretch: Stretch = self.stretch  # type: ignore[assignment]
        left = stretch.read(entries, self._stop(entries), reader, self.ledger)
        taken = reader.length - self.length
        if not taken:
            return False
        self.verdicts += stretch.verdicts
        stretch.verdicts = 0
        if not stretch.is_open:
            self.stretch = None
        if left is not None:
            # Something is wrong, or rides with it that is not plain: the entry is read the usual way, which asks
            # whether what has not been compared is in canonical form, and the rest is taken so.
            again = ChainReader(reader.run)
            again.head, again.length = left.prev, left.entry.seq
            self._take_rest(again.take(left.entry), left.verdicts, left.entry)
        self._count(taken)
        return True

    def _take_rest(self, events: Sequence[Event], verdicts: list[Any], entry: Entry) -> None:
        """What `read` has left of the events."""
        try:
            check_verdicts(events[0], verdicts, entry.seq)
            self.verdicts += len(verdicts)
            if len(events) > 1:
                self._one_by_one(events[1:], entry)
        except VerificationError as failure:
            self.failure, self.stretch, self.is_between = failure, None, False

    def take(self, entry: Entry, events: Sequence[Event]) -> None:
        """Take an entry's events. A failure is kept: it is told when the whole chain has been found sound."""
        if self.failure is not None:
            return
        try:
            self.leave_stretch()
            self._one_by_one(events, entry)
        except VerificationError as failure:
            self.failure, self.stretch, self.is_between = failure, None, False
            return
        self._count()

    def _count(self, entries: int = 1) -> None:
        self.length += entries
        if self.length == self.claimed:
            self.leave_stretch()
            self.then = standing(self.program, self.state)

    def _one_by_one(self, events: Sequence[Event], entry: Entry) -> None:
        state = self.state
        recall = self.recall
        if recall is not None:
            events = recall.events(entry, read_facts(entry))
        for event in events:
            check_form(self.program, state, entry, event)
            for watcher in self.watchers:
                watcher.before(entry, event, state)
            if recall is None:
                take(self.program, state, event, entry.seq)
            else:
                recall.take(take, state, event, entry.seq)
            for watcher in self.watchers:
                watcher.after(entry, event, state)
            if state.verdicts:
                self.verdicts += len(state.verdicts)
            if self.ledger is not None:
                self.ledger.record(entry, event, state)
            if self.on_transition is not None:
                self.on_transition(entry, event, state)
        if state.stage is _ENDED and not self.ended:
            self.ended = entry.seq + 1
        self.is_between = self.on_transition is None and recall is None

    def leave_stretch(self) -> None:
        if self.stretch is not None:
            self.stretch.leave()
            self.stretch = None

    def ending(self) -> str:
        status = self.state.status
        if not self.ended:
            return f"{status}, not ended"
        return f"{status} at entry {self.ended - 1}, {self.length - self.ended} annex entries after it"


def _check_record(
    program: CompiledProgram,
    record: RunRecord,
    entries: Sequence[Entry],
    state: State,
    then: Standing | None,
) -> None:
    start = open_event(entries[0])
    assert type(start) is RunStarted  # the kernel takes nothing else first
    parent = None if start.parent is UNSET else start.parent.get("run")
    _agree("program_hash", record.program_hash, start.program)
    _agree("program_name", record.program_name, program.name)
    _agree("parent", record.parent, parent)
    if record.inputs_digest and not record.inputs_digest.startswith(KEYED):
        inputs = entries[0].payload
        _agree("inputs_digest", record.inputs_digest, canonical.digest(b"{}" if inputs is None else inputs))
    if record.length > len(entries):
        raise VerificationError(
            "RECORD_MISMATCH",
            f"the record speaks of {record.length} entries, the journal ends after {len(entries)}",
            facts={"field": "length", "seq": len(entries)},
        )
    if then is None:
        # Nothing has been claimed of the journal yet: the run has only been created, whatever it has come to since.
        _agree("length", record.length, 0)
        _agree("head", record.head or GENESIS, GENESIS)
        then = Standing(RunStatus.RUNNING.value, None, [], 0)
    else:
        _agree("head", record.head, entries[record.length - 1].digest)
    # Of one that is called RUNNING whoever drives it, or takes it up, will say what it has come to.
    if record.status != RunStatus.RUNNING:
        _agree("status", record.status, state.status.value)
    _agree("status", record.status, then.status)
    _agree("outcome", record.outcome, then.outcome)
    _agree("waits", record.waits, then.waits)
    _agree("wake_at_ms", record.wake_at_ms, then.wake_at_ms)


def _agree(field: str, recorded: object, found: object) -> None:
    if recorded != found:
        raise VerificationError(
            "RECORD_MISMATCH",
            f"the record's `{field}` is not what the journal says",
            facts={"field": field},
        )
