"""P6 tamper evidence: journals, records and bundles are changed on purpose, and every change has to be found.

What is changed may be a byte, or an entry that is lost, doubled, moved, foreign or linked elsewhere; or somebody writes
the rest of the journal anew, so that nothing but what the record, the receipt or another run says of it is against him.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Final, TypeAlias

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError, NotFoundError
from nano_vm.evidence import container
from nano_vm.evidence.bundle import export
from nano_vm.evidence.container import Contents
from nano_vm.evidence.verify import verify_bundle
from nano_vm.journal.entry import GENESIS, Entry
from nano_vm.journal.fold import fold
from nano_vm.journal.port import JournalStore, RunRecord
from nano_vm.journal.replay import verify_run
from nano_vm.program.compiled import CompiledProgram

Broken: TypeAlias = Callable[[str, str, str], None]
Edit: TypeAlias = Callable[[dict[str, Any]], None]
_TRIES: Final = 4  # for each journal
_BUNDLE_TRIES: Final = 2
_FIELDS: Final[dict[str, Any]] = {
    "program_name": "another",
    "parent": "another",
    "inputs_digest": GENESIS,
    "head": GENESIS,
    "outcome": "another",
    "program_hash": GENESIS,
}


class Tampering:
    """Changes what is there of one simulation.

    Args:
        draw: chooses what is changed.
        broken: told (promise, run, what) of changes that nobody finds.
    """

    def __init__(self, draw: random.Random, broken: Broken) -> None:
        self._draw = draw
        self._broken = broken

    # --- a journal, and its record ----------------------------------------------------------------------------
    def journal(
        self, program: CompiledProgram, record: RunRecord, entries: list[Entry], others: Sequence[Entry]
    ) -> None:
        """Change a journal that verifies. `others` are entries of another run."""
        for _ in range(_TRIES):
            place = self._draw.randrange(len(entries))
            what = self._draw.choice(
                ["flip", "flip", "lose", "double", "swap", "foreign", "digest", "relink", "cut"]
            )
            changed = self._changed(what, entries, place, others)
            if changed is None or changed == entries:
                continue
            if what == "relink":
                claims = msgspec.structs.replace(record, head=changed[record.length - 1].digest)
                self._found(what, program, claims, changed, place)
            else:
                self._found(what, program, record, changed, place)
            if what not in ("cut", "lose") or len(changed) > place:
                self._not_folded(what, program, record.run_id, changed, place)
        self._record(program, record, entries)

    def _changed(
        self, what: str, entries: list[Entry], place: int, others: Sequence[Entry]
    ) -> list[Entry] | None:
        """The journal with one change; None where that cannot be made there."""
        changed, entry = list(entries), entries[place]
        match what:
            case "flip":
                changed[place] = self._flipped(entry)
            case "lose" if len(entries) > 1:
                changed.pop(place)
            case "double":
                changed.insert(place, entry)
            case "swap" if place:
                changed[place - 1 : place + 1] = entry, entries[place - 1]
            case "foreign" if place < len(others):
                changed[place] = others[place]
            case "digest":
                changed[place] = msgspec.structs.replace(entry, digest=GENESIS)
            case "relink" if place:
                return written_anew(entries, place, lambda facts: facts.update(prev=GENESIS))
            case "cut" if place:
                return entries[:place]
            case _:
                return None
        return changed

    def _flipped(self, entry: Entry) -> Entry:
        if entry.payload and entry.salt and self._draw.random() < 0.5:
            if self._draw.random() < 0.3:
                return msgspec.structs.replace(entry, salt=self._flip(entry.salt))
            return msgspec.structs.replace(entry, payload=self._flip(entry.payload))
        return msgspec.structs.replace(entry, facts=self._flip(entry.facts))

    def _flip(self, data: bytes) -> bytes:
        place = self._draw.randrange(len(data))
        return data[:place] + bytes([data[place] ^ (1 << self._draw.randrange(8))]) + data[place + 1 :]

    def _found(
        self, what: str, program: CompiledProgram, record: RunRecord, entries: list[Entry], place: int
    ) -> None:
        try:
            verify_run(program, record, entries)
        except NanoVMError:
            return
        self._broken("P6", record.run_id, f"a change of entry {place} was not found: {what}")

    def _not_folded(
        self, what: str, program: CompiledProgram, run_id: str, entries: list[Entry], place: int
    ) -> None:
        """Nobody goes on with it either."""
        try:
            fold(program, run_id, entries, verify=True)
        except NanoVMError:
            return
        self._broken("P6", run_id, f"a run is gone on with whose entry {place} was changed: {what}")

    def _record(self, program: CompiledProgram, record: RunRecord, entries: list[Entry]) -> None:
        fields: dict[str, Any] = {**_FIELDS, "length": record.length + len(entries)}
        fields["status"] = "FAILED" if record.status == "SUCCESS" else "SUCCESS"
        if not record.inputs_digest or not record.inputs_digest.startswith("sha256:"):
            del fields["inputs_digest"]
        name = self._draw.choice(sorted(fields))
        changed = msgspec.structs.replace(record, **{name: fields[name]})
        try:
            verify_run(program, changed, entries)
        except NanoVMError:
            return
        self._broken("P6", record.run_id, f"a record with another `{name}` was not found")

    # --- a bundle ---------------------------------------------------------------------------------------------
    def bundle(self, store: JournalStore, run_id: str, opened: Callable[[str], list[Entry]]) -> None:
        """Change what is exported of a run, so that it is a bundle like any other, and says something else."""
        data = export(store, run_id, opened=opened).data
        for _ in range(_BUNDLE_TRIES):
            contents = container.read(data)
            what = self._draw.choice([*_CHANGES])
            if not _CHANGES[what](contents, self._draw):
                continue
            try:
                verify_bundle(container.write(contents))
            except NanoVMError:
                continue
            self._broken("P6", run_id, f"a bundle says something else, and verifies: {what}")


def written_anew(entries: Sequence[Entry], place: int, edit: Edit) -> list[Entry]:
    """The journal as somebody would write it who has changed the facts of one entry and links all that follow."""
    changed = list(entries[:place])
    for entry in entries[place:]:
        facts = canonical.decode(entry.facts)
        if entry.seq == place:
            edit(facts)
        else:
            facts["prev"] = changed[-1].digest
        written = canonical.encode(facts)
        digest = "sha256:" + sha256(written).hexdigest()
        changed.append(msgspec.structs.replace(entry, facts=written, digest=digest))
    return changed


def _rewrite(contents: Contents, journal: int, place: int, edit: Edit) -> bool:
    run, entries = contents.journals[journal]
    contents.journals[journal] = run, written_anew(entries, place, edit)
    return contents.journals[journal][1] != entries


def _receipt(contents: Contents, draw: random.Random) -> bool:
    told = canonical.decode(contents.receipt)
    told["status"] = "SUCCESS" if told["status"] == "FAILED" else "FAILED"
    contents.receipt = canonical.encode(told)
    return True


def _time(contents: Contents, draw: random.Random) -> bool:
    """The end of the run, or of a called one, comes later."""

    def later(facts: dict[str, Any]) -> None:
        facts["event"]["at_ms"] += 1

    journal = draw.randrange(len(contents.journals))
    return _rewrite(contents, journal, len(contents.journals[journal][1]) - 1, later)


def _payload(contents: Contents, draw: random.Random) -> bool:
    """Something else was put in, or came out, and all is written anew."""
    _, entries = contents.journals[0]
    places = [entry.seq for entry in entries if entry.payload and entry.salt]
    if not places:
        return False
    place = draw.choice(places)
    forged = canonical.encode({"x": 1, "sure": "forged"})
    commitment = "sha256:" + sha256(entries[place].salt + forged).hexdigest()
    _rewrite(contents, 0, place, lambda facts: facts.update(commitment=commitment))
    run, entries = contents.journals[0]
    entries[place] = msgspec.structs.replace(entries[place], payload=forged)
    contents.journals[0] = run, entries
    return True


def _fact(names: Sequence[str], value: Callable[[Any], Any]) -> Callable[[Contents, random.Random], bool]:
    """Some event says something else under one of the names."""

    def change(contents: Contents, draw: random.Random) -> bool:
        found = []
        for number, (_, entries) in enumerate(contents.journals):
            for entry in entries:
                facts = canonical.decode(entry.facts)
                events = [facts["event"], *(rider["event"] for rider in facts.get("then", ()))]
                found += [
                    (number, entry.seq, at, name)
                    for at, event in enumerate(events)
                    for name in names
                    if name in event
                ]
        if not found:
            return False
        number, place, at, name = draw.choice(found)

        def edit(facts: dict[str, Any]) -> None:
            event = facts["then"][at - 1]["event"] if at else facts["event"]
            event[name] = value(event[name])

        return _rewrite(contents, number, place, edit)

    return change


def _child(contents: Contents, draw: random.Random) -> bool:
    if len(contents.journals) < 2:
        return False
    contents.journals.pop(draw.randrange(1, len(contents.journals)))
    return True


def _policy(contents: Contents, draw: random.Random) -> bool:
    if not contents.policies:
        return False
    contents.policies.pop()
    return True


def _program(contents: Contents, draw: random.Random) -> bool:
    stored = canonical.decode(contents.programs[0])
    stored["program"]["description"] = "another"
    contents.programs[0] = canonical.encode(stored)
    return True


def _last(contents: Contents, draw: random.Random) -> bool:
    run, entries = contents.journals[0]
    contents.journals[0] = run, entries[:-1]
    return len(entries) > 1


_CHANGES: Final[dict[str, Callable[[Contents, random.Random], bool]]] = {
    "the receipt": _receipt,
    "when a run has ended": _time,
    "what a payload was": _payload,
    "a verdict": _fact(
        ["verdicts"], lambda verdicts: [[*verdicts[0][:2], not verdicts[0][2]], *verdicts[1:]]
    ),
    "a verdict less": _fact(["verdicts"], lambda verdicts: verdicts[:-1]),
    "the rule of a decision": _fact(["rule"], lambda rule: f"{rule}-not"),
    "a decision": _fact(["decision"], lambda decision: "allow" if decision != "allow" else "deny"),
    "what was counted": _fact(["counts"], lambda counts: [[key, old, new + 1] for key, old, new in counts]),
    "an effect's attempt": _fact(["attempt"], lambda attempt: attempt + 1),
    "a label": _fact(["label"], lambda label: 0 if label > 1 else label + 2),
    "a status": _fact(["status"], lambda status: "SUCCESS" if status == "FAILED" else "FAILED"),
    "a called run is gone": _child,
    "a policy is gone": _policy,
    "another program": _program,
    "the end is gone": _last,
}


def others_of(store: JournalStore, run_id: str, runs: Sequence[str]) -> list[Entry]:
    """Entries of another run than this one; none where there is none."""
    for other in runs:
        if other != run_id:
            try:
                return store.read(other)
            except NotFoundError:
                continue
    return []


__all__ = ["Tampering", "others_of", "written_anew"]
