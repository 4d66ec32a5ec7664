"""The sessions through which a PostgreSQL store writes: one for appends, one for everything else.

Whoever writes locks the row of its store in nvm_writers until the commit, and whoever takes a run from a store locks
that store's row first. So an append and the loss of its run never overlap, and `lost` in that row tells the owner
that what it keeps of its runs is not true any more.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import psycopg

from nano_vm.errors import NanoVMError
from nano_vm.journal.port import RunRecord
from nano_vm.stores.batch import OwnedRun, Work, attempt, seal_plain
from nano_vm.stores.postgres.batch import PostgresBatch, is_same_start
from nano_vm.stores.postgres.connection import PostgresConnection
from nano_vm.stores.postgres.errors import FAILURES, translate
from nano_vm.stores.postgres.locks import MARK, ON_ITS_WAY, class_of, number_of
from nano_vm.stores.rows import Connection, find_record

T = TypeVar("T")

_ENTER = """INSERT INTO nvm_writers (owner, commits) VALUES (?1, 1)
    ON CONFLICT (owner) DO UPDATE SET commits = nvm_writers.commits + 1 RETURNING epoch"""
_GO_ON = "UPDATE nvm_writers SET commits = commits + 1 WHERE owner = ?1 AND epoch = ?2"
_BE_KNOWN = "INSERT INTO nvm_writers (owner) SELECT * FROM unnest(?1::text[]) ON CONFLICT DO NOTHING"
_HOLD = "SELECT FROM nvm_writers WHERE owner = ANY(?1::text[]) ORDER BY owner FOR UPDATE"
_TAKEN_FROM = "UPDATE nvm_writers SET epoch = nextval('nvm_epochs') WHERE owner = ?1"
_ATTEMPTS = 5  # of a transaction that stood in another one's way
_CONFLICTS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


def enter(con: Connection, owner: str, mark: int) -> int:
    """At the beginning of what appends in a transaction; the epoch of the store."""
    epoch: int = con.execute(_ENTER, (owner,)).fetchone()[0]
    con.execute(MARK, (mark,))
    return epoch


class Writer:
    """Appends. `lock` guards the session, and what is known of owned runs."""

    def __init__(self, con: PostgresConnection, place: str, owner: str, store: int) -> None:
        self.con = con
        self.place = place
        self.owner = owner
        self.mark = class_of(ON_ITS_WAY, store)
        self.lock = threading.Lock()
        self.known: dict[str, OwnedRun] = {}
        self.epoch = -1

    def commit(self, works: Sequence[Work]) -> None:
        """Commit the works together, in their order. The outcome of each is in its `error`. The caller holds `lock`."""
        try:
            seal_plain(works)
            if self._commit_known(works):
                return
            self._commit_any(works)
        except BaseException as error:
            self.known.clear()
            self.con.undo()
            if len(works) > 1 and isinstance(
                error, psycopg.IntegrityError | psycopg.DataError | UnicodeEncodeError
            ):
                # The database refused a row that our checks let through. Find out whose it was.
                for work in works:
                    work.error = None
                for work in works:
                    self.commit((work,))
                return
            self._fail(works, error)
            if not isinstance(error, Exception):
                raise

    def _commit_known(self, works: Sequence[Work]) -> bool:
        """Appends at the end of runs that are known, which nearly all are: in one way to the server and back. False,
        and nothing is done, when there are others, and when a run was lost."""
        known = self.known
        if self.con.is_lost or not all(work.run_id in known and work.record is None for work in works):
            return False
        batch = PostgresBatch(self.con, self.owner, known)
        try:
            if all(batch.add_known(work) for work in works):
                self._in_one_go(batch.statements(self.owner, self.epoch))
                batch.committed()
                return True
        except (NanoVMError, psycopg.IntegrityError, psycopg.OperationalError):
            self.con.undo()
        known.clear()
        return False

    def _in_one_go(self, statements: Iterable[tuple[str, Sequence[object]]]) -> None:
        con = self.con
        with con.raw.pipeline():
            con.execute("BEGIN")
            con.execute(_GO_ON, (self.owner, self.epoch))
            con.execute(MARK, (self.mark,))
            for sql, parameters in statements:
                con.execute(sql, parameters)
            con.execute("COMMIT")

    def _commit_any(self, works: Sequence[Work]) -> None:
        again = False
        for left in reversed(range(_ATTEMPTS)):
            for work in works:
                work.error = None
            try:
                self.con.restore()
                self._transaction(works, again)
                return
            except _CONFLICTS:
                if not left:
                    raise
            except psycopg.OperationalError:
                if not left or not self.con.is_lost:
                    raise
                again = (
                    True  # nobody knows whether it was committed: what is there already is not written again
                )
            self.con.undo()
            self.known.clear()

    def _transaction(self, works: Sequence[Work], again: bool) -> None:
        con = self.con
        batch = PostgresBatch(con, self.owner, self.known)
        with con.raw.pipeline():
            con.execute("BEGIN")
            entered = con.execute(_ENTER, (self.owner,))
            con.execute(MARK, (self.mark,))
            prepared = batch.prepare(works)
            (epoch,) = entered.fetchone()
            if epoch != self.epoch:
                self.epoch = epoch
                self.known.clear()
            batch.take(prepared)
        attempt(batch, works)
        if again:
            for work in works:
                taken = isinstance(work.error, NanoVMError) and work.error.code == "RUN_EXISTS"
                if taken and work.record is not None and is_same_start(con, work, self.owner):
                    work.error = None
        with con.raw.pipeline():
            batch.execute()
            con.execute("COMMIT")
        batch.committed()

    def _fail(self, works: Sequence[Work], error: BaseException) -> None:
        """The commit failed, and with it all that was not refused before."""
        meaning = translate(error, self.place) if isinstance(error, FAILURES) else error
        for work in works:
            if work.error is None:
                # A copy each: an exception that is raised in many tasks gathers all their tracebacks.
                work.error = copy.copy(meaning) if isinstance(meaning, NanoVMError) else meaning


class Desk:
    """Transactions of their own, for all that is not an append. Safe to call from any thread."""

    def __init__(self, con: PostgresConnection, place: str, owner: str, store: int) -> None:
        self.con = con
        self._place = place
        self._owner = owner
        self._store = store
        self._lock = threading.Lock()

    def write(self, work: Callable[[Connection], T], alone: Sequence[str]) -> T:
        """As `SqlStore._write`; always synced: a server that forgets who owns a run does not end the owner."""
        with self._lock:
            for left in reversed(range(_ATTEMPTS)):
                try:
                    return self.con.again(lambda: self._transaction(work, alone))
                except NanoVMError as error:
                    self.con.undo()
                    if not left or not isinstance(error.__cause__, _CONFLICTS):
                        raise
                except BaseException:
                    self.con.undo()
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _transaction(self, work: Callable[[Connection], T], alone: Sequence[str]) -> T:
        con = self.con
        with con.raw.pipeline():
            con.execute("BEGIN")
            con.execute("SET LOCAL synchronous_commit = on")
            for number in sorted({number_of(name, self._store) for name in alone}):
                con.execute("SELECT pg_advisory_xact_lock(?1)", (number,))
        result = work(con)
        with con.raw.pipeline():
            con.execute(_ENTER, (self._owner,))
            con.execute("COMMIT")
        return result

    def settled(self, con: Connection, run_id: str, wanted: Callable[[RunRecord], bool]) -> RunRecord | None:
        """As `SqlStore._settled`, inside a transaction of ours."""
        record = find_record(con, run_id)
        if not wanted(record):
            return None  # without keeping its owner from writing
        held_by = record.owner
        if held_by is not None:
            # In one order, so that two who take runs from each other do not wait in a ring.
            stores = sorted({self._owner, held_by})
            con.execute(_BE_KNOWN, (stores,))
            con.execute(_HOLD, (stores,))
        record = find_record(con, run_id, lock=" FOR NO KEY UPDATE")
        if record.owner != held_by or not wanted(record):
            return None  # somebody else was faster
        if held_by is not None:
            con.execute(_TAKEN_FROM, (held_by,))
        return record


def sweep(con: Connection, in_use: set[str], owner: str) -> None:
    """Forget stores that own nothing. One that lives is entered anew when it writes."""
    con.execute("DELETE FROM nvm_writers WHERE owner <> ALL(?1::text[])", (sorted({*in_use, owner}),))
