"""The sessions through which a PostgreSQL store writes: one for appends, one for everything else. How they are kept
from runs that the store has lost: see `fence`."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import psycopg

from nano_vm.errors import NanoVMError
from nano_vm.journal.port import RunRecord
from nano_vm.stores.batch import OwnedRun, attempt, seal_plain
from nano_vm.stores.postgres import fence
from nano_vm.stores.postgres.batch import PostgresBatch, Prepared
from nano_vm.stores.postgres.connection import PostgresConnection
from nano_vm.stores.postgres.errors import FAILURES, translate, translated
from nano_vm.stores.postgres.locks import MARK, ON_ITS_WAY, class_of, number_of
from nano_vm.stores.rows import Connection, find_record
from nano_vm.stores.work import Work

T = TypeVar("T")


class Writer:
    """Appends. `lock` guards the session, and what is known of owned runs."""

    def __init__(self, con: PostgresConnection, place: str, owner: str, store: int) -> None:
        self.con = con
        self.place = place
        self.owner = owner
        self.mark = class_of(ON_ITS_WAY, store)
        self.lock = threading.Lock()
        self.known: dict[str, OwnedRun] = {}
        self._epoch = -1
        self._number = 0  # of the last transaction
        self._lent = 0

    def next_lent(self) -> int:
        """The number of a tool's transaction. They follow one another."""
        self._lent += 1
        return self._lent

    def commit(self, works: Sequence[Work]) -> None:
        """Commit the works together, in their order. The outcome of each is in its `error`. The caller holds `lock`."""
        try:
            seal_plain(works)
            if not self._commit_known(works):
                self._commit_any(works)
        except BaseException as error:
            self._forget()
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

    def _forget(self) -> None:
        self.known.clear()
        self._epoch = -1  # a server that has crashed may give it to somebody else

    def _landed(self) -> bool:
        return fence.landed(self.con, self.owner, fence.APPENDED, self._number)

    def _commit_known(self, works: Sequence[Work]) -> bool:
        """Appends at the end of runs that are known, which nearly all are: in one way to the server and back. False,
        and nothing is done, when there are others, and when a run was lost."""
        con, known = self.con, self.known
        if con.is_lost or not all(work.run_id in known and work.record is None for work in works):
            return False
        batch = PostgresBatch(con, self.owner, known)
        try:
            if all(batch.add_known(work) for work in works):
                self._in_one_go(batch.statements(self.owner, self._epoch))
                batch.committed()
                return True
        except (NanoVMError, psycopg.Error) as error:
            con.undo()
            if con.is_lost:
                self._forget()
                return con.ask(self._landed)
            if not isinstance(error, NanoVMError | psycopg.IntegrityError | psycopg.OperationalError):
                raise
        self._forget()
        return False

    def _in_one_go(self, statements: Iterable[tuple[str, Sequence[object]]]) -> None:
        con = self.con
        self._number += 1
        with con.pipeline():
            con.execute("BEGIN")
            con.execute(fence.GO_ON, (self.owner, self._epoch, self._number))
            con.execute(MARK, (self.mark,))
            for sql, parameters in statements:
                con.execute(sql, parameters)
            con.execute("COMMIT")

    def _commit_any(self, works: Sequence[Work]) -> None:
        con = self.con

        def open_() -> tuple[PostgresBatch, Any, Prepared]:
            for work in works:
                work.error = None
            self._number += 1
            entered = fence.enter(con, self.owner, fence.APPENDED, self._number)
            con.execute(MARK, (self.mark,))
            batch = PostgresBatch(con, self.owner, self.known)
            return batch, entered, batch.prepare(works)

        def write(opened: tuple[PostgresBatch, Any, Prepared]) -> PostgresBatch:
            batch, entered, prepared = opened
            (epoch,) = entered.fetchone()
            if epoch != self._epoch:
                self.known.clear()
                self._epoch = epoch
            batch.take(prepared)
            attempt(batch, works)
            return batch

        con.transact(open_, write, PostgresBatch.execute, self._landed, self._forget).committed()

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
        self._number = 0  # of the last transaction

    def write(self, work: Callable[[Connection], T], alone: Sequence[str]) -> T:
        """As `SqlStore._write`; always synced: a server that forgets who owns a run does not end the owner."""
        con = self.con
        locks = sorted({number_of(name, self._store) for name in alone})

        def open_() -> None:
            con.execute("SET LOCAL synchronous_commit = on")
            for lock in locks:
                con.execute("SELECT pg_advisory_xact_lock(?1)", (lock,))

        def enter(_: T) -> None:
            self._number += 1
            fence.enter(con, self._owner, fence.SETTLED, self._number)

        def landed() -> bool:
            return fence.landed(con, self._owner, fence.SETTLED, self._number)

        with self._lock, translated(self._place):
            return con.transact(open_, lambda _: work(con), enter, landed)

    def settled(self, con: Connection, run_id: str, wanted: Callable[[RunRecord], bool]) -> RunRecord | None:
        """As `SqlStore._settled`, inside a transaction of ours."""
        record = find_record(con, run_id)
        if not wanted(record):
            return None  # without keeping its owner from writing
        held_by = record.owner
        if held_by is not None:
            # In one order, so that two who take runs from each other do not wait in a ring.
            fence.hold(con, sorted({self._owner, held_by}))
        record = find_record(con, run_id, lock=" FOR NO KEY UPDATE")
        if record.owner != held_by or not wanted(record):
            return None  # somebody else was faster
        if held_by is not None:
            fence.taken_from(con, held_by)
        return record
