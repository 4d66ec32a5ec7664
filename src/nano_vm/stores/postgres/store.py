"""A `JournalStore` in PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import stat
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, TypeVar

from nano_vm.errors import InputError, StoreError
from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.plain import Success
from nano_vm.journal.port import BLOB_BYTES_MIN, LEASE_MS, Durable, RunRecord, RunUpdate, Transaction
from nano_vm.runtime.arguments import check_count, check_text
from nano_vm.stores import rules
from nano_vm.stores.owners import OwnerLock
from nano_vm.stores.postgres.connection import Address, PostgresConnection, session
from nano_vm.stores.postgres.errors import translated
from nano_vm.stores.postgres.fence import is_to_sweep, sweep
from nano_vm.stores.postgres.group import GroupCommit
from nano_vm.stores.postgres.integrity import examine
from nano_vm.stores.postgres.reader import PostgresReader
from nano_vm.stores.postgres.schema import open_database
from nano_vm.stores.postgres.tool import Sessions, tool_transaction
from nano_vm.stores.postgres.writer import Desk, Writer
from nano_vm.stores.rows import Connection
from nano_vm.stores.sql_store import SqlStore
from nano_vm.stores.turnstile import Turnstile
from nano_vm.stores.work import Work

T = TypeVar("T")
Durability = Literal["full", "normal"]


class PostgresJournalStore(SqlStore):
    """A `JournalStore` in a PostgreSQL database, which any number of processes on any number of machines may share.

    Args:
        url: a libpq connection string, `postgresql://user@host:5432/database`. What it leaves out comes from the usual
            variables (PGHOST, PGPASSWORD, …) and ~/.pgpass. The tables lie in the first schema of the search path,
            so `?options=-csearch_path%3Druns` keeps several stores in one database. It needs sessions of its own: no
            pooler that hands them out by transaction.
        durability: "full" waits for the server's disk in every commit; "normal" does not, and a crash of the server may
            take the last commits (`synchronous_commit`).
        busy_timeout_ms: how long a call waits for locks, and for a server that cannot be reached, before it raises.
        create: make the tables if there are none.

    Raises:
        InputError: USAGE, STORE_NOT_FOUND.
        StoreError: STORE_NEWER, STORE_DAMAGED, STORE_READ_ONLY, STORE_LOCKED, STORE_FULL, STORE_IO,
            STORE_UNGUARDED for a session in which triggers do not fire.

    A worker that lost its lease cannot append (SPEC §6): see `fence`. Owners of this machine and user are provably
    dead when they are; of others only the lease tells. In a process forked from the one that opened the store,
    every call raises STORE_CLOSED.
    """

    alone = False  # a hint that the SQLite store takes; here the commit is on its way meanwhile

    def __init__(
        self, url: str, durability: Durability = "full", busy_timeout_ms: int = 5_000, *, create: bool = True
    ) -> None:
        check_text("url", url, needed=True)
        check_count("busy_timeout_ms", busy_timeout_ms)
        if durability not in ("full", "normal"):
            raise InputError(
                "USAGE", f"unknown durability `{durability}`", help='use durability="full" or "normal"'
            )
        self._address = address = Address(url)
        settings = {
            "client_encoding": "UTF8",
            # How what is sent is read: where a role or a database has others, other bytes would be stored.
            "standard_conforming_strings": "on",
            "array_nulls": "on",
            "default_transaction_isolation": "read committed",
            "synchronous_commit": "on" if durability == "full" else "off",
            "lock_timeout": str(busy_timeout_ms),
            # A process that is stopped in the middle of a commit keeps nobody waiting for ever.
            "idle_in_transaction_session_timeout": str(max(60_000, busy_timeout_ms)),
        }
        self._connect = functools.partial(session, address, settings, busy_timeout_ms)
        with contextlib.ExitStack() as opened:

            def another() -> PostgresConnection:
                con = self._connect()
                opened.callback(con.close)
                return con

            first = another()
            number = open_database(first, address, create=create)
            self.identity = f"{number:x}"  # also of what is restored from a back-up
            super().__init__(OwnerLock(lock_directory(number)), PostgresReader(first, number))
            name = self._lock.name
            self._writer = Writer(another(), address.name, name, number)
            self._desk = Desk(another(), address.name, name, number)
            opened.pop_all()
        self._group = GroupCommit(self._writer)
        self._turnstile = Turnstile()
        self._tools = Sessions(self._connect)
        self._seen = self._reader.commits_of_others(name)
        self._dropped = weakref.finalize(
            self, _close_all, os.getpid(), first, self._writer.con, self._desk.con, self._tools
        )
        self._dropped.atexit = False
        self._sweep()

    def __enter__(self) -> PostgresJournalStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    _reader: PostgresReader

    @property
    def path(self) -> str:
        """The address, without secrets."""
        return self._address.name

    # --- journal ------------------------------------------------------------------------------------------
    def create(self, record: RunRecord, entries: Sequence[Entry]) -> Durable:
        rules.check_owner(record, self._lock.name)
        self._check_open()
        if record.owner is not None:
            self._lock.hold()
        return self._group.submit(Work(record.run_id, entries, record=record))

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> Durable:
        self._check_open()
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
        self._check_open()
        return self._group.submit(Work(run_id, fence=fence, plain=(chain, success, salt)), loop)

    def annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> Durable:
        self._check_open()
        return self._group.submit(Work(run_id, build=build))

    # --- ownership ----------------------------------------------------------------------------------------
    def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
        self._check_open()
        self._group.drain()  # what we are about to let go is ours no more
        # Whoever waits for a run asks again and again: as long as it is another's, that is a read and no transaction.
        if not self._is_free(self._reader.record(run_id), now_ms):
            return None
        return super().claim(run_id, now_ms)

    def renew(self, run_ids: Sequence[str], now_ms: int) -> list[str]:
        if not run_ids:
            return []
        sql = """UPDATE nvm_runs SET lease_until_ms = greatest(lease_until_ms, ?1)
            WHERE run_id = ANY(?2::text[]) AND owner = ?3 RETURNING run_id"""

        def work(con: Connection) -> list[str]:
            # Whoever holds the row of its store in nvm_writers is alone with the runs of that store.
            con.execute("SELECT FROM nvm_writers WHERE owner = ?1 FOR UPDATE", (self._lock.name,))
            ours = {row[0] for row in con.execute(sql, (now_ms + LEASE_MS, list(run_ids), self._lock.name))}
            return [run_id for run_id in run_ids if run_id not in ours]

        return self._write(work)

    def changed(self) -> bool:
        self._check_open()
        seen = self._reader.commits_of_others(self._lock.name)
        if seen == self._seen:
            return False
        self._seen = seen
        return True

    # --- the rest -----------------------------------------------------------------------------------------
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction for one transactional tool, on a session of its own: appends of other runs go on meanwhile.

        Its connection takes what psycopg takes: `execute(sql, (value,))` with `%s` for values, reads, DML and CREATE
        TABLE/INDEX on tables that are not ours, savepoints. Transactions of one store follow one another.

        Raises:
            StoreError: STORE_LOCKED when begun inside another transaction of this store.
        """
        self._check_open()
        return tool_transaction(self._writer, self._tools, self._turnstile)

    def integrity(self) -> list[str]:
        """Examine the schema and every row's own proof. Takes time in proportion to the size of the database."""
        self._check_open()
        with contextlib.closing(self._connect()) as con, translated(self._address.name):
            return examine(con)

    def close(self) -> None:
        """As the port says. A second call is a no-op."""
        if self._closed or self._is_fork:
            return
        try:
            self._group.close()
        finally:
            self._closed = True
            self._dropped.detach()
            owned = self._owners_in_use()
            self._close_connections()
            self._lock.let_go(remove=self._lock.name not in owned)

    @property
    def at_work(self) -> bool:
        """Whether a thread of the store's own is committing."""
        return self._group.at_work

    def abandon(self) -> None:
        """Leave the store as the death of the process would: what has been gathered and not committed is lost, runs
        stay owned by an owner that is provably dead. For simulations; everything else calls `close`. A second call is a
        no-op."""
        if self._closed or self._is_fork:
            return
        self._closed = True
        self._group.forget()
        self._dropped.detach()
        self._close_connections()
        self._lock.let_go(remove=False)

    # --- inside -------------------------------------------------------------------------------------------
    def _close_connections(self) -> None:
        with self._writer.lock:
            self._writer.con.close()
        self._desk.con.close()
        self._tools.close()
        self._reader.close()

    def _write(self, work: Callable[[Connection], T], *alone: str, synced: bool = True) -> T:
        self._check_open()
        self._group.drain()
        return self._desk.write(work, alone)

    def _settled(self, con: Connection, run_id: str, wanted: Callable[[RunRecord], bool]) -> RunRecord | None:
        return self._desk.settled(con, run_id, wanted)

    def _disowned(self, run_id: str) -> None:
        """Nothing to do: the epoch of its owner tells."""

    def _sweep(self) -> None:
        super()._sweep()
        in_use = self._owners_in_use() | {self._lock.name}
        if self._reader.query(lambda con: is_to_sweep(con, in_use)):
            self._desk.write(lambda con: sweep(con, in_use), ())


def lock_directory(number: int) -> Path:
    """Where the life signs of owners on this machine lie; nobody but this user may have a say there."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    parent = Path(tempfile.gettempdir()) / f"nano-vm-{user}"
    try:
        parent.mkdir(mode=0o700, exist_ok=True)
        found = parent.lstat()
        if os.name == "posix" and (
            found.st_uid != user or found.st_mode & 0o022 or stat.S_ISLNK(found.st_mode)
        ):
            # Somebody else made it: let leases alone decide, in a place that nobody else knows.
            parent = Path(tempfile.mkdtemp(prefix="nano-vm-"))
    except OSError as error:
        raise StoreError(
            "STORE_IO",
            f"the locks of owners cannot be kept in `{parent}`: {error.strerror}",
            help="make it a directory of yours, or name another place in TMPDIR",
        ) from error
    return parent / f"owners-{number:x}"


def _close_all(process: int, *connections: PostgresConnection | Sessions) -> None:
    # A child that closes what it has inherited would end the sessions of its parent.
    if os.getpid() == process:
        for con in connections:
            con.close()


PostgresStore = PostgresJournalStore
