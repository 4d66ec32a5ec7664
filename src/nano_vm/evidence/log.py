"""The store's log as a tree: its root for checkpoints, and proofs against them."""

from __future__ import annotations

from collections.abc import Iterator

from nano_vm.errors import NotFoundError, VerificationError
from nano_vm.evidence.note import Checkpoint
from nano_vm.journal import merkle
from nano_vm.journal.port import JournalStore
from nano_vm.journal.storelog import LogFold, LogLeaf

PAGE = 2_000
ORIGIN = "nano-vm/log-"  # of a log that nobody has named


def leaves(store: JournalStore) -> Iterator[LogLeaf]:
    """All leaves of the log, in order."""
    fold = LogFold()
    cursor = 0
    while True:
        cursor, page = store.tail(cursor, PAGE)
        for run_id, entry in page:
            yield from fold.take(run_id, entry)
        if len(page) < PAGE:
            return


class Log:
    """The log as it is now: leaves and their hashes."""

    def __init__(self, store: JournalStore) -> None:
        # A view of one tenant's runs is a log of its own.
        self.tenant: str | None = getattr(store, "tenant", None)
        self.leaves = list(leaves(store))
        self.hashes = [leaf.hash for leaf in self.leaves]

    def __len__(self) -> int:
        return len(self.leaves)

    @property
    def origin(self) -> str:
        """What the log is called when nobody names it: after its first leaf, so that two databases never share a
        name."""
        first = self.hashes[0] if self.hashes else merkle.EMPTY_ROOT
        whose = "" if self.tenant is None else f"/{self.tenant}"
        return f"{ORIGIN}{first.hex()[:16]}{whose}"

    def checkpoint(self, origin: str | None = None) -> Checkpoint:
        return Checkpoint(origin or self.origin, len(self.hashes), merkle.root(self.hashes))

    def last_of(self, run_id: str, length: int | None = None) -> int:
        """Index of the last leaf of a run, or of its first `length` entries.

        Raises:
            NotFoundError: RUN_NOT_FOUND.
        """
        for index in range(len(self.leaves) - 1, -1, -1):
            leaf = self.leaves[index]
            if leaf.run == run_id and (length is None or leaf.seq < length):
                return index
        raise NotFoundError("RUN_NOT_FOUND", f"the log knows no run `{run_id}`", facts={"run_id": run_id})

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Proof that leaf `index` is in the tree of the first `size` leaves."""
        return merkle.inclusion_proof(self.hashes[:size], index)

    def consistency(self, old: Checkpoint) -> list[bytes]:
        """Proof that the log only grew since `old`.

        Raises:
            VerificationError: CHECKPOINT_MISMATCH (facts: size, length) when the log is not what `old` says it was: a
                run has vanished, or was changed or replaced.
        """
        if old.origin.startswith(ORIGIN) and old.origin != self.origin:
            raise _mismatch(old, len(self.hashes), f"this is `{self.origin}`, and that was `{old.origin}`")
        if old.size > len(self.hashes):
            raise _mismatch(old, len(self.hashes), f"it has {len(self.hashes)} leaves left")
        if merkle.root(self.hashes[: old.size]) != old.root:
            raise _mismatch(old, len(self.hashes), "its first leaves are others")
        return merkle.consistency_proof(self.hashes, old.size)


def _mismatch(old: Checkpoint, length: int, what: str) -> VerificationError:
    return VerificationError(
        "CHECKPOINT_MISMATCH",
        f"the log is not the one that had {old.size} leaves when the checkpoint was made: {what}",
        help="a run has vanished, or was changed or replaced; compare with a back-up",
        facts={"size": old.size, "length": length, "origin": old.origin},
    )
