"""The SQLite store: one file, many processes, every commit on disk before anybody hears of it.

How it fits together: `sqlite_schema` opens files, `sqlite_writer` owns the write connection, `sqlite_batch`
turns appends into rows, `sqlite_group` commits what one tick of the event loop has gathered, `sqlite_tool`
lends a transaction to a tool, `sqlite_reader` reads, `sqlite_integrity` examines, `owners` knows who is
alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, TypeVar

from nano_vm.errors import InputError, StoreError
from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.plain import Success
from nano_vm.journal.port import BLOB_BYTES_MIN, LEASE_MS, Durable, RunRecord, RunUpdate, Transaction
from nano_vm.runtime.arguments import check_count, check_path
from nano_vm.stores import rules, sql_store, sqlite_integrity
from nano_vm.stores.claims import Claim
from nano_vm.stores.owners import OwnerLock
from nano_vm.stores.remembered import Remembered
from nano_vm.stores.rows import Connection, find_record
from nano_vm.stores.sql_store import SqlStore
from nano_vm.stores.sqlite_errors import FAILURES, translate
from nano_vm.stores.sqlite_group import GroupCommit
from nano_vm.stores.sqlite_reader import SqliteReader
from nano_vm.stores.sqlite_schema import connect, open_database, sync_directory
from nano_vm.stores.sqlite_tool import tool_transaction
from nano_vm.stores.sqlite_writer import Writer
from nano_vm.stores.turnstile import Turnstile, inside_tool, refuse_inside
from nano_vm.stores.work import Work

__all__ = ["SqliteJournalStore", "SqliteStore"]

T = TypeVar("T")
Durability = Literal["full", "normal"]


def _close_all(*connections: sqlite3.Connection) -> None:
    for con in connections:
        with contextlib.suppress(sqlite3.Error):
            con.close()


class SqliteJournalStore(SqlStore):
    """A `JournalStore` in a SQLite file.

    Args:
        path: the file; made when it is missing, in a directory that exists. Beside it lie `<path>-wal`,
            `<path>-shm` and, while runs are owned, `<path>-owners/`.
        durability: "full" syncs the disk in every commit; "normal" survives the death of the process, but a
            power loss may take the last commits.
        busy_timeout_ms: how long a call waits for other processes before it raises STORE_LOCKED. An append
            holds the event loop up for 3 ms of it at most; other writing calls wait where they are called.

    Raises:
        InputError: USAGE.
        StoreError: STORE_FOREIGN, STORE_NEWER, STORE_DAMAGED, STORE_READ_ONLY, STORE_LOCKED, STORE_FULL,
            STORE_IO.

    Writing calls other than `create`, `append` and `annex` first commit what these have gathered, and raise
    STORE_LOCKED at once when a tool's transaction is open in the same event loop. In a process forked from
    the one that opened the store, every call raises STORE_CLOSED.
    """

    def __init__(
        self, path: str | os.PathLike[str], durability: Durability = "full", busy_timeout_ms: int = 5_000
    ) -> None:
        check_path("path", path)
        check_count("busy_timeout_ms", busy_timeout_ms)
        if durability not in ("full", "normal"):
            raise InputError(
                "USAGE", f"unknown durability `{durability}`", help='use durability="full" or "normal"'
            )
        self._path = Path(os.path.abspath(path)) if str(path) != ":memory:" else Path(path)
        self._synchronous = "FULL" if durability == "full" else "NORMAL"
        self._busy_timeout_ms = busy_timeout_ms
        first = open_database(self._path, busy_timeout_ms=busy_timeout_ms)
        super().__init__(OwnerLock(Path(f"{self._path}-owners")), SqliteReader(first, self._path))
        try:
            self._writer = Writer(self._connect(), self._path, self._lock.name, busy_timeout_ms)
        except BaseException as error:
            first.close()
            if isinstance(error, FAILURES):
                raise translate(error, self._path) from error
            raise
        self._group = GroupCommit(self._writer)
        self._remembered = Remembered(self._writer.version_now)
        self._turnstile = Turnstile()
        # Python 3.13 warns of connections that nobody closes, and whoever drops a store cannot close its connections.
        self._dropped = weakref.finalize(self, _close_all, first, self._writer.con)
        self._dropped.atexit = False
        self._sweep()

    def __enter__(self) -> SqliteJournalStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def alone(self) -> bool:
        """Whoever drives a single run sets this, and its appends are committed at once: there is no group to wait
        for. Where others were in the last group it stays unset. A wrong hint costs a group its commit, nothing else."""
        return self._group.alone

    @alone.setter
    def alone(self, alone: bool) -> None:
        self._group.alone = alone and self._group.lone

    # --- journal ------------------------------------------------------------------------------------------
    def create(self, record: RunRecord, entries: Sequence[Entry]) -> Durable:
        rules.check_owner(record, self._lock.name)
        if record.owner is not None and not self._lock.is_held:
            self._check_open()
            self._lock.hold()
        return self._submit(Work(record.run_id, entries, record=record))

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> Durable:
        if self._closed or sql_store.forks != self._forks:
            self._check_open()
        if self._writer.tool_open and inside_tool.get():
            refuse_inside(self._turnstile)
        return self._group.submit(Work(run_id, entries, fence, update))

    def append_plain(
        self,
        run_id: str,
        fence: int,
        chain: Chain,
        success: Success,
        salt: bytes,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Durable:
        """`append` of a success at the end of a chain. It is sealed when it is written, together with those of other
        runs; the chain has to be left alone until then. `loop`: the one that runs here, where that is known."""
        if len(success[2]) > BLOB_BYTES_MIN:
            return self.append(run_id, fence, chain.seal_successes((success,), (salt,)))
        if self._closed or sql_store.forks != self._forks:
            self._check_open()
        if self._writer.tool_open and inside_tool.get():
            refuse_inside(self._turnstile)
        if self._group.append_alone(run_id, fence, chain, success, salt, loop):
            return None
        return self._group.submit(Work(run_id, fence=fence, plain=(chain, success, salt)), loop)

    def annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> Durable:
        return self._submit(Work(run_id, build=build))

    # --- ownership ----------------------------------------------------------------------------------------
    def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
        self._check_open()
        if known is not None and known.owner is None:
            self._lock.hold()
            claim = Claim(known, known.fence + 1, now_ms + LEASE_MS)
            if self._writer.claim(claim):
                return claim.fence
        held = self._writer.claims.get(run_id)
        if held is not None:
            if now_ms < held.until_ms:
                return None
            # Written after all: nobody else may get its fence.
            self._write(lambda con: held.take(con, self._lock.name), synced=False)
            self._disowned(run_id)
        return super().claim(run_id, now_ms)

    def release(self, run_id: str, fence: int) -> None:
        self._check_open()
        self._group.drain()
        if not self._writer.give_back(run_id, fence):
            super().release(run_id, fence)

    def renew(self, run_ids: Sequence[str], now_ms: int) -> list[str]:
        if not run_ids:
            return []
        sql = "UPDATE nvm_runs SET lease_until_ms = max(lease_until_ms, ?1) WHERE run_id = ?2 AND owner = ?3"

        until, owner = now_ms + LEASE_MS, self._lock.name

        def is_lost(con: Connection, run_id: str) -> bool:
            claim = self._writer.claims.pop(run_id, None)  # it is written now, or never
            if claim is not None:
                return not claim.take(con, owner, until)
            return con.execute(sql, (until, run_id, owner)).rowcount == 0  # type: ignore[no-any-return]

        return self._write(lambda con: [run_id for run_id in run_ids if is_lost(con, run_id)])

    def changed(self) -> bool:
        self._check_open()
        return self._writer.changed()

    # --- the rest -----------------------------------------------------------------------------------------
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction for one transactional tool. Keep it short: writers wait for it.

        Its connection takes reads, DML and CREATE TABLE/INDEX on tables that are not ours; everything else
        that could end or widen the transaction is refused by SQLite's authorizer. Transactions of one store
        follow one another.

        Raises:
            StoreError: STORE_LOCKED when begun inside another transaction of this store.
        """
        self._check_open()
        return tool_transaction(self._writer, self._group, self._turnstile, self._synchronous)

    def integrity(self) -> list[str]:
        """Examine the file and every row's own proof. Takes time in proportion to the size of the
        database."""
        self._check_open()
        try:
            # A connection of its own: the examination may take long, and readers go on meanwhile.
            with contextlib.closing(self._connect()) as con:
                return sqlite_integrity.examine(con)
        except FAILURES as error:
            raise translate(error, self._path) from error

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the database, as of one moment, to a new file, while others go on writing.

        Raises:
            StoreError: STORE_IO when the file exists; STORE_FULL, STORE_READ_ONLY.
        """
        self._check_open()
        target = Path(os.path.abspath(path))
        if target.exists():
            raise StoreError(
                "STORE_IO",
                f"the back-up `{target}` exists already",
                help="name a new file",
                facts={"path": str(target)},
            )
        partial = target.with_name(target.name + ".partial")
        try:
            with contextlib.closing(self._connect()) as source:
                with contextlib.closing(sqlite3.connect(partial)) as copy:
                    copy.execute("PRAGMA synchronous=FULL")
                    source.backup(copy, pages=-1)
                os.link(partial, target)  # unlike a rename, never replaces a file
                sync_directory(target.parent)
        except FileExistsError:
            raise StoreError(
                "STORE_IO", f"the back-up `{target}` exists already", help="name a new file"
            ) from None
        except FAILURES as error:
            raise translate(error, target) from error
        except OSError as error:
            raise StoreError(
                "STORE_IO", f"the back-up `{target}` cannot be made: {error.strerror}"
            ) from error
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(OSError):
                    os.unlink(f"{partial}{suffix}")

    def close(self) -> None:
        """As the port says. A tool's transaction that is still open is rolled back. A second call is a
        no-op."""
        if self._closed or self._is_fork:
            return
        try:
            if not self._writer.tool_open:
                self._group.drain()
        finally:
            self._closed = True
            self._dropped.detach()
            owned = self._owners_in_use()
            self._writer.close()
            self._group.close()
            self._reader.close()
            self._lock.let_go(remove=self._lock.name not in owned)

    @property
    def at_work(self) -> bool:
        """Whether a thread of the store's own is committing."""
        return self._group.at_work

    def abandon(self) -> None:
        """Leave the store as the death of the process would: what has been gathered and not committed is lost, an
        open tool's transaction is rolled back, runs stay owned by an owner that is provably dead. For simulations;
        everything else calls `close`. A second call is a no-op."""
        if self._closed or self._is_fork:
            return
        self._closed = True
        self._group.forget()
        self._writer.close()
        self._group.close()
        self._reader.close()
        self._lock.let_go(remove=False)

    # --- inside -------------------------------------------------------------------------------------------
    def _connect(self) -> sqlite3.Connection:
        return connect(self._path, synchronous=self._synchronous, busy_timeout_ms=self._busy_timeout_ms)

    def _submit(self, work: Work) -> Durable:
        self._check_open()
        if self._writer.tool_open and inside_tool.get():
            refuse_inside(self._turnstile)
        return self._group.submit(work)

    def _write(self, work: Callable[[Connection], T], *alone: str, synced: bool = True) -> T:
        self._check_open()
        self._group.drain()
        return self._writer.write(work, synced)  # SQLite lets one write at a time

    def _lasting(self, key: tuple[str, ...], read: Callable[[], T]) -> T:
        return self._remembered.ask(key, read)

    def _forget_lasting(self) -> None:
        self._remembered.forget()

    def _settled(self, con: Connection, run_id: str, wanted: Callable[[RunRecord], bool]) -> RunRecord | None:
        if run_id in self._writer.claims:
            return None  # of somebody here, who has not added anything
        record = find_record(con, run_id)
        return record if wanted(record) else None

    def _disowned(self, run_id: str) -> None:
        self._writer.known.pop(run_id, None)
        self._writer.claims.pop(run_id, None)


SqliteStore = SqliteJournalStore
