"""Verifying a run: its chain, its payloads, every transition, and what its record claims (SPEC §5, P5,
P6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import InputError, VerificationError
from nano_vm.journal.entry import (
    GENESIS,
    Chain,
    Entry,
    Facts,
    open_event,
    open_events,
    read_facts,
    verify_entry,
)
from nano_vm.journal.fold import take
from nano_vm.journal.port import RunRecord
from nano_vm.journal.standing import Standing, standing
from nano_vm.kernel.events import RunStarted
from nano_vm.kernel.state import State, snapshot
from nano_vm.program.compiled import CompiledProgram


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
    program: CompiledProgram, record: RunRecord | None, entries: Sequence[Entry], run_id: str | None = None
) -> Verified:
    """Check everything that can be checked of one run without its store.

    The steps, each reported when it has passed:

    1. `chain`: every entry has its digest, its place and the digest of the entry before it, in canonical
       form.
    2. `commitments`: every payload is there, in canonical form, and the one committed to.
    3. `transitions`: the kernel takes every entry, from the start, under this program.
    4. `verdicts`: every condition comes out as recorded.
    5. `ending`: nothing but annex entries follows a terminal status.
    6. `record`: the record agrees with the journal (left out without a record).

    Args:
        record: the run's record, when there is one; the journal then has to be of the record's run.
        entries: all entries of the run.
        run_id: the run it has to be, where there is no record; by default the first entry's word is taken.

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
        payloads = _verify_entries(run_id, entries)
        steps.append(("chain", f"{len(entries)} entries, head {entries[-1].digest}"))
        steps.append(("commitments", f"{payloads} payloads"))
        check = "transitions"
        replay = _Replay(program, run_id, record.length if record is not None else 0)
        for entry in entries:
            replay.take(entry)
        state = replay.state
        steps.append(("transitions", f"{state.seq} taken, state {canonical.digest(snapshot(state))}"))
        steps.append(("verdicts", f"{replay.verdicts} agree"))
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


def _verify_entries(run_id: str, entries: Sequence[Entry]) -> int:
    """Chain and commitments together, so that what is reported is the first bad entry."""
    if not entries:
        raise VerificationError("CHAIN_BROKEN", "the journal is empty", facts={"seq": 0})
    head = GENESIS
    payloads = 0
    for seq, entry in enumerate(entries):
        facts: Facts = verify_entry(entry, run_id, head, seq)
        if not _is_canonical(run_id, head, entry, facts):
            raise VerificationError(
                "JOURNAL_MALFORMED",
                f"entry {seq}: a {facts.type} that is not in canonical form",
                facts={"seq": seq},
            )
        payloads += entry.payload is not None
        head = entry.digest
    return payloads


def _is_canonical(run_id: str, head: str, entry: Entry, facts: Facts) -> bool:
    """Whether the entry is written as it has to be: bytes that other readers might understand otherwise (a
    name twice, say) are no evidence."""
    event, *then = open_events(entry, facts)
    try:
        sealed = Chain(run_id, entry.seq, head).seal(event, entry.salt, entry.payload, then)
    except InputError:
        return False
    return sealed == entry and (entry.payload is None or canonical.is_canonical(entry.payload))


class _Replay:
    """One replay: the state, and how it stood after `claimed` entries, which is what the record describes."""

    def __init__(self, program: CompiledProgram, run_id: str, claimed: int) -> None:
        self.program = program
        self.claimed = claimed
        self.state = State(run=run_id)
        self.then: Standing | None = None
        self.length = 0
        self.ended = 0
        self.verdicts = 0

    def take(self, entry: Entry) -> None:
        state = self.state
        for event in open_events(entry):
            take(self.program, state, event, entry.seq)
            self.verdicts += len(state.verdicts)
        self.length += 1
        if not self.ended and state.status.is_terminal:
            self.ended = self.length
        if self.length == self.claimed:
            self.then = standing(self.program, state)

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
    if record.inputs_digest:
        inputs = entries[0].payload
        _agree("inputs_digest", record.inputs_digest, canonical.digest(b"{}" if inputs is None else inputs))
    if record.length > len(entries):
        raise VerificationError(
            "RECORD_MISMATCH",
            f"the record speaks of {record.length} entries, the journal ends after {len(entries)}",
            facts={"field": "length", "seq": len(entries)},
        )
    now = standing(program, state)
    if then is None:
        # Nothing has been claimed of the journal yet: the run has only been created.
        _agree("length", record.length, 0)
        _agree("head", record.head or GENESIS, GENESIS)
        then = now
    else:
        _agree("head", record.head, entries[record.length - 1].digest)
    _agree("status", record.status, now.status)
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
