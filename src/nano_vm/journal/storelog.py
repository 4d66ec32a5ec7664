"""The store's log: one leaf for the start of every run, for its end, and for every annex after it (SPEC §5).

The leaves follow from the journals in the order their entries were committed, so nothing has to be written for them
beside the journals, and no crash can part the two. A run that has vanished, or was replaced by another of its id,
changes the root over the leaves; a checkpoint kept elsewhere says so. `spec/journal.md` is normative.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.journal import merkle
from nano_vm.journal.entry import Entry, read_facts

START, FINISH, ANNEX = "start", "finish", "annex"


class LogLeaf(msgspec.Struct, frozen=True, gc=False):
    """Entry `seq` of run `run` has this digest, and is its start, its end, or an annex to it."""

    digest: str
    kind: str
    run: str
    seq: int

    def to_dict(self) -> dict[str, Any]:
        return {"digest": self.digest, "kind": self.kind, "run": self.run, "seq": self.seq}

    @property
    def hash(self) -> bytes:
        """The leaf hash: of the canonical bytes of `to_dict`."""
        return merkle.leaf_hash(canonical.encode(self.to_dict()))


class LogFold:
    """Reads entries of all runs in the order they were committed, and tells which of them are leaves."""

    def __init__(self) -> None:
        self._ended: set[str] = set()

    def take(self, run_id: str, entry: Entry) -> list[LogLeaf]:
        """The leaves of one entry: none for most, two for a run that begins and ends in one entry.

        Raises:
            VerificationError: JOURNAL_MALFORMED.
        """
        found = []
        if entry.seq == 0:
            found.append(LogLeaf(entry.digest, START, run_id, 0))
        if run_id in self._ended:
            found.append(LogLeaf(entry.digest, ANNEX, run_id, entry.seq))
        # Looked for in the bytes first: most entries end nothing, and need not be read.
        elif b'"RunFinished"' in entry.facts and _ends(entry):
            self._ended.add(run_id)
            found.append(LogLeaf(entry.digest, FINISH, run_id, entry.seq))
        return found


def _ends(entry: Entry) -> bool:
    facts = read_facts(entry)
    return facts.type == "RunFinished" or any(rider.type == "RunFinished" for rider in facts.then)
