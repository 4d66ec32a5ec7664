"""One write transaction of the SQLite store."""

from __future__ import annotations

import sqlite3
from itertools import chain

from nano_vm.stores.batch import HOLDER, Batch, OwnedRun
from nano_vm.stores.rows import RUN_COLUMNS

_INSERT_RUN = f"INSERT INTO nvm_runs ({RUN_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
INSERT_SEGMENT = "INSERT INTO nvm_segments (run, seq, digests, facts, payloads) VALUES (?,?,?,?,?)"
# Many rows in one statement take four fifths of the time that they take one by one.
_ROWS = 25
_INSERT_SEGMENTS = INSERT_SEGMENT + ",(?,?,?,?,?)" * (_ROWS - 1)
# One for a run that is still owned as said; for another one it is refused, for `run` is never NULL.
INSERT_OWNED = """INSERT INTO nvm_segments (run, seq, digests, facts, payloads) VALUES (
    (SELECT no FROM nvm_runs WHERE no = ? AND fence = ? AND owner = ?), ?, ?, ?, ?)"""
_UPDATE_RUN = """UPDATE nvm_runs SET status=?, outcome=?, waits=?, wake_at_ms=?, updated_at_ms=?, length=?,
    head=?, seal=?, owner=?, lease_until_ms=iif(?, 0, lease_until_ms) WHERE no=?"""


class SqliteBatch(Batch):
    failures = (sqlite3.Error,)

    def __init__(self, con: sqlite3.Connection, owner: str, known: dict[str, OwnedRun]) -> None:
        super().__init__(con, owner, known)
        self._database = con

    def insert_run(self, row: tuple[object, ...]) -> int | None:
        try:
            return self._database.execute(_INSERT_RUN, row).lastrowid
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
            rest = len(rows) % _ROWS
            for at in range(0, len(rows) - rest, _ROWS):
                values = list(chain.from_iterable(rows[at : at + _ROWS]))
                self._database.execute(_INSERT_SEGMENTS, values)
            if rest:
                self._database.executemany(INSERT_SEGMENT, rows[-rest:])
            self._segments = []
        if self._updates:
            self._database.executemany(_UPDATE_RUN, self._updates)
            self._updates = []
