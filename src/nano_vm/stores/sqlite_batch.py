"""One write transaction of the SQLite store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from itertools import chain

from nano_vm.journal.entry import Entry
from nano_vm.stores import rules
from nano_vm.stores.batch import HOLDER, Batch, OwnedRun
from nano_vm.stores.claims import Claim
from nano_vm.stores.rows import RUN_COLUMNS

INSERT_RUN = f"INSERT INTO nvm_runs ({RUN_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
INSERT_SEGMENT = "INSERT INTO nvm_segments (run, seq, digests, facts, payloads) VALUES (?,?,?,?,?)"
# Many rows in one statement take four fifths of the time that they take one by one.
ROWS = 25
INSERT_SEGMENTS = INSERT_SEGMENT + ",(?,?,?,?,?)" * (ROWS - 1)
# One for a run that is still owned as said; for another one it is refused, for `run` is never NULL.
INSERT_OWNED = """INSERT INTO nvm_segments (run, seq, digests, facts, payloads) VALUES (
    (SELECT no FROM nvm_runs WHERE no = ? AND fence = ? AND owner = ?), ?, ?, ?, ?)"""
UPDATE_RUN = """UPDATE nvm_runs SET status=?, outcome=?, waits=?, wake_at_ms=?, updated_at_ms=?, length=?,
    head=?, seal=?, owner=?, lease_until_ms=iif(?, 0, lease_until_ms) WHERE no=?"""


# And whose it is now.
TAKE_RUN = UPDATE_RUN.replace("lease_until_ms=iif(?, 0, lease_until_ms)", "fence=?, lease_until_ms=?")


class SqliteBatch(Batch):
    """
    Args:
        claims: of runs that are taken with what they add.
    """

    failures = (sqlite3.Error,)

    def __init__(
        self,
        con: sqlite3.Connection,
        owner: str,
        known: dict[str, OwnedRun],
        claims: dict[str, Claim] | None = None,
    ) -> None:
        super().__init__(con, owner, known)
        self._database = con
        self._claims = {} if claims is None else claims
        self._taken: dict[int, Claim] = {}  # by row number, until it is written
        self._claimed: list[str] = []

    def insert_run(self, row: tuple[object, ...]) -> int | None:
        try:
            return self._database.execute(INSERT_RUN, row).lastrowid
        except sqlite3.IntegrityError:
            if self._con.execute(HOLDER, (row[0], row[1], row[3], row[4])).fetchone() is None:
                raise
            return None

    def execute(self) -> None:
        if self._blobs:
            for digest, body in self._blobs.items():
                if (
                    self._database.execute("SELECT 1 FROM nvm_blobs WHERE digest = ?", (digest,)).fetchone()
                    is None
                ):
                    self._database.execute(
                        "INSERT INTO nvm_blobs (digest, body) VALUES (?,?)", (digest, body)
                    )
            self._blobs = {}
        if self._segments:
            rows = self._segments
            rest = len(rows) % ROWS
            for at in range(0, len(rows) - rest, ROWS):
                values = list(chain.from_iterable(rows[at : at + ROWS]))
                self._database.execute(INSERT_SEGMENTS, values)
            if rest:
                self._database.executemany(INSERT_SEGMENT, rows[-rest:])
            self._segments = []
        if self._taken:
            self._take()
        if self._updates:
            self._database.executemany(UPDATE_RUN, self._updates)
            self._updates = []

    def _take(self) -> None:
        """Write whose the claimed runs are now, in one statement with what becomes of them."""
        others = []
        for row in self._updates:
            claim = self._taken.pop(row[-1], None)  # type: ignore[call-overload]
            if claim is None:
                others.append(row)
            else:
                *update, release, no = row
                until_ms = 0 if release else claim.until_ms
                self._database.execute(TAKE_RUN, (*update, claim.fence, until_ms, no))
        self._updates = others
        for claim in self._taken.values():
            claim.take(self._database, self._owner)
        self._taken.clear()

    def committed(self) -> None:
        super().committed()
        for run_id in self._claimed:
            self._claims.pop(run_id, None)

    def _load(self, run_id: str, length: int) -> OwnedRun:
        claim = self._claims.get(run_id)
        if claim is None:
            return super()._load(run_id, length)
        no, owner, fence, origin, stored = self._row(run_id)
        if owner is not None or fence != claim.fence - 1:
            raise rules.lease_lost(run_id, length, unclaimed=True)
        if length != stored:
            what = f"the journal has {stored} entries"
            raise rules.journal_conflict(run_id, length, what, unclaimed=True)
        self._taken[no] = claim
        self._claimed.append(run_id)
        run = self._known[run_id] = OwnedRun(no, claim.fence, stored, origin)
        return run

    def _annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> None:
        if run_id in self._claims:
            raise rules.lease_lost(run_id)
        super()._annex(run_id, build)
