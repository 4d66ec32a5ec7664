"""One write transaction of the PostgreSQL store. Whatever its size it takes a few statements: each is a way to the
server and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import RunRecord
from nano_vm.stores.batch import LOAD_RUN, Batch, OwnedRun, Start, draw_up
from nano_vm.stores.postgres.connection import PostgresConnection
from nano_vm.stores.postgres.errors import FAILURES
from nano_vm.stores.rows import RUN_COLUMNS
from nano_vm.stores.work import Work

_TEXT, _INTEGER, _BYTES = "text", "bigint", "bytea"
_RUN_TYPES = (*[_TEXT] * 10, *[_INTEGER] * 4, *[_TEXT] * 2, *[_INTEGER] * 2, *[_BYTES] * 2)
_RUN_ARRAYS = ", ".join(f"?{number}::{kind}[]" for number, kind in enumerate(_RUN_TYPES, 1))
_INSERT_RUNS = f"""INSERT INTO nvm_runs ({RUN_COLUMNS})
    SELECT {", ".join(f"u.c{number}" for number in range(1, len(_RUN_TYPES) + 1))}
    FROM unnest({_RUN_ARRAYS}) WITH ORDINALITY
        AS u({", ".join(f"c{number}" for number in range(1, len(_RUN_TYPES) + 1))}, place) ORDER BY u.place
    ON CONFLICT DO NOTHING RETURNING run_id, no"""
_LOAD_RUNS = LOAD_RUN.replace("SELECT ", "SELECT run_id, ", 1).replace(
    "run_id = ?1", "run_id = ANY(?1::text[])"
)
_INSERT_BLOBS = """INSERT INTO nvm_blobs (digest, body)
    SELECT * FROM unnest(?1::bytea[], ?2::bytea[]) ON CONFLICT (digest) DO NOTHING"""
_ROWS = """unnest(?1::bigint[], ?2::bigint[], ?3::bytea[], ?4::bytea[], ?5::bytea[])
    WITH ORDINALITY AS u(run, seq, digests, facts, payloads, place)"""
_INSERT_SEGMENTS = f"""INSERT INTO nvm_segments (run, seq, digests, facts, payloads)
    SELECT u.run, u.seq, u.digests, u.facts, u.payloads
    FROM {_ROWS} ORDER BY u.place"""
# The same for runs of an owner that has lost none meanwhile; else it is refused, for `run` is never NULL.
_INSERT_OWNED = f"""INSERT INTO nvm_segments (run, seq, digests, facts, payloads)
    SELECT CASE WHEN w.found THEN u.run END, u.seq, u.digests, u.facts, u.payloads
    FROM {_ROWS},
        (SELECT EXISTS (SELECT FROM nvm_writers WHERE owner = ?6 AND epoch = ?7) AS found) w ORDER BY u.place"""
_UPDATE_TYPES = (*[_TEXT] * 3, *[_INTEGER] * 3, _TEXT, _BYTES, _TEXT, "boolean", _INTEGER)
_UPDATE_RUNS = f"""UPDATE nvm_runs r SET status = u.status, outcome = u.outcome, waits = u.waits,
        wake_at_ms = u.wake_at_ms, updated_at_ms = u.updated_at_ms, length = u.length, head = u.head, seal = u.seal,
        owner = u.owner, lease_until_ms = CASE WHEN u.released THEN 0 ELSE r.lease_until_ms END
    FROM unnest({", ".join(f"?{number}::{kind}[]" for number, kind in enumerate(_UPDATE_TYPES, 1))})
        AS u(status, outcome, waits, wake_at_ms, updated_at_ms, length, head, seal, owner, released, no)
    WHERE r.no = u.no"""

Prepared: TypeAlias = tuple[Any, Any]
"""The cursors of what was asked for the new runs, and for the others."""


class PostgresBatch(Batch):
    failures = FAILURES

    def __init__(self, con: PostgresConnection, owner: str, known: dict[str, OwnedRun]) -> None:
        super().__init__(con, owner, known)
        self._database = con
        self._starts: dict[int, Start] = {}
        self._made: dict[str, int] = {}

    # --- before the works are looked at one by one ----------------------------------------------------------
    def prepare(self, works: Sequence[Work]) -> Prepared:
        """Make the new runs of `works`, and load the others, in one statement each. May be part of a pipeline."""
        wanted: dict[str, Start] = {}
        for work in works:
            record = work.record
            if record is not None and record.run_id not in wanted:
                try:
                    start = draw_up(record, work.entries, self._owner)
                except NanoVMError:
                    continue  # to be refused when it is its turn
                wanted[record.run_id] = self._starts[id(record)] = start
        made = loaded = None
        if wanted:
            rows = zip(*(start.row for start in wanted.values()), strict=True)
            made = self._database.execute(_INSERT_RUNS, [list(column) for column in rows])
        others = {work.run_id for work in works if work.record is None and work.build is None}
        if others:
            loaded = self._database.execute(_LOAD_RUNS, (sorted(others),))
        return made, loaded

    def take(self, prepared: Prepared) -> None:
        """What the statements of `prepare` gave."""
        made, loaded = prepared
        if made is not None:
            self._made = dict(made.fetchall())
        if loaded is not None:
            for run_id, no, owner, fence, origin, length in loaded.fetchall():
                if owner == self._owner:
                    self._known[run_id] = OwnedRun(no, fence, length, origin)

    def start_of(self, record: RunRecord, entries: Sequence[Entry]) -> Start:
        return self._starts.pop(id(record), None) or super().start_of(record, entries)

    def insert_run(self, row: tuple[object, ...]) -> int | None:
        return self._made.pop(str(row[0]), None)

    def _annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> None:
        # First of all, so that what is read after it is what was committed before: nobody claims or annexes meanwhile.
        self._database.execute("SELECT FROM nvm_runs WHERE run_id = ?1 FOR NO KEY UPDATE", (run_id,))
        super()._annex(run_id, build)

    # ---------------------------------------------------------------------------------------------------------
    def add_known(self, work: Work) -> bool:
        """`append` at the end of a run that is known; False for anything else, and nothing is done."""
        if work.record is not None or work.build is not None:
            return False
        if self.add_lone(work):
            return True
        run = self._known.get(work.run_id)
        if run is None or run.fence != work.fence or work.packed is not None:
            return False
        entries = work.entries
        if not entries or entries[0].seq != run.length:
            return False
        self.append(work.run_id, work.fence, entries, work.update)
        return True

    def statements(self, owner: str, epoch: int) -> list[tuple[str, Sequence[Any]]]:
        """What `execute` would write, refused when the owner has lost a run that it believes to own."""
        return self._gathered(_INSERT_OWNED, (owner, epoch))

    def execute(self) -> None:
        for sql, parameters in self._gathered(_INSERT_SEGMENTS, ()):
            self._database.execute(sql, parameters)

    def _gathered(self, insert: str, beside: Sequence[Any]) -> list[tuple[str, Sequence[Any]]]:
        found: list[tuple[str, Sequence[Any]]] = []
        if self._blobs:
            digests = sorted(self._blobs)  # two who add the same ones wait for each other, not in a ring
            found.append((_INSERT_BLOBS, (digests, [self._blobs[digest] for digest in digests])))
            self._blobs = {}
        if self._segments:
            columns = [list(column) for column in zip(*self._segments, strict=True)]
            found.append((insert, (*columns, *beside)))
            self._segments = []
        if self._updates:
            last = {update[-1]: update for update in self._updates}
            columns = [list(column) for column in zip(*last.values(), strict=True)]
            columns[9] = [bool(released) for released in columns[9]]
            found.append((_UPDATE_RUNS, columns))
            self._updates = []
        return found
