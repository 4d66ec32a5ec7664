"""The SQLite store: one file, many processes, every commit on disk before anybody hears of it.

How it fits together: `sqlite_schema` opens files, `sqlite_writer` owns the write connection, `sqlite_batch`
turns appends into rows, `sqlite_group` commits what one tick of the event loop has gathered, `sqlite_tool`
lends a transaction to a tool, `sqlite_reader` reads, `sqlite_integrity` examines, `owners` knows who is
alive.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, TypeVar

from nano_vm import canonical
from nano_vm.errors import InputError, NotFoundError, StoreError
from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.plain import Success
from nano_vm.journal.port import (
    BLOB_BYTES_MIN,
    DEFAULT_TENANT,
    LEASE_MS,
    Durable,
    Mail,
    Pause,
    RunQuery,
    RunRecord,
    RunUpdate,
    Transaction,
)
from nano_vm.stores import rules, sqlite_integrity, sqlite_pauses, sqlite_policies
from nano_vm.stores.guarded import Turnstile, inside_tool, refuse_inside
from nano_vm.stores.owners import OwnerLock
from nano_vm.stores.sqlite_batch import Work
from nano_vm.stores.sqlite_errors import FAILURES, translate
from nano_vm.stores.sqlite_group import GroupCommit
from nano_vm.stores.sqlite_reader import Reader, change_owner, find_mail, find_record, run_number
from nano_vm.stores.sqlite_schema import connect, open_database
from nano_vm.stores.sqlite_tool import tool_transaction
from nano_vm.stores.sqlite_writer import Writer

__all__ = ["SqliteJournalStore", "SqliteStore"]

T = TypeVar("T")
Durability = Literal["full", "normal"]


_forks = 0  # how often this process is a fork: cheaper to look at than the process id


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _close_all(*connections: sqlite3.Connection) -> None:
    for con in connections:
        with contextlib.suppress(sqlite3.Error):
            con.close()


class SqliteJournalStore:
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
        if durability not in ("full", "normal"):
            raise InputError(
                "USAGE", f"unknown durability `{durability}`", help='use durability="full" or "normal"'
            )
        self._path = Path(os.path.abspath(path)) if str(path) != ":memory:" else Path(path)
        self._synchronous = "FULL" if durability == "full" else "NORMAL"
        self._busy_timeout_ms = busy_timeout_ms
        self._forks = _forks
        self._closed = False
        first = open_database(self._path, busy_timeout_ms=busy_timeout_ms)
        self._lock = OwnerLock(Path(f"{self._path}-owners"))
        self._reader = Reader(first, self._path)
        try:
            self._writer = Writer(self._connect(), self._path, self._lock.name, busy_timeout_ms)
        except BaseException as error:
            first.close()
            if isinstance(error, FAILURES):
                raise translate(error, self._path) from error
            raise
        self._group = GroupCommit(self._writer)
        self.driven: set[int] = (
            set()
        )  # the runs that engines of this process drive now; each has a mark of its own
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
    def owner(self) -> str:
        return self._lock.name

    @property
    def shared(self) -> bool:
        return True

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
        if self._closed or _forks != self._forks:
            self._check_open()
        if self._writer.tool_open and inside_tool.get():
            refuse_inside(self._turnstile)
        return self._group.submit(Work(run_id, entries, fence, update))

    def append_plain(self, run_id: str, fence: int, chain: Chain, success: Success, salt: bytes) -> Durable:
        """`append` of a success at the end of a chain. It is sealed when it is written, together with those of other
        runs; the chain has to be left alone until then."""
        if len(success[2]) > BLOB_BYTES_MIN:
            return self.append(run_id, fence, chain.seal_successes((success,), (salt,)))
        if self._closed or _forks != self._forks:
            self._check_open()
        if self._writer.tool_open and inside_tool.get():
            refuse_inside(self._turnstile)
        return self._group.submit(Work(run_id, fence=fence, plain=(chain, success, salt)))

    def annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> Durable:
        return self._submit(Work(run_id, build=build))

    def read(
        self, run_id: str, start: int = 0, limit: int | None = None, tenant: str | None = None
    ) -> list[Entry]:
        self._check_open()
        return self._reader.read(run_id, start, limit, tenant)

    def tail(
        self, cursor: int, limit: int = 1_000, tenant: str | None = None
    ) -> tuple[int, list[tuple[str, Entry]]]:
        self._check_open()
        return self._reader.tail(cursor, limit, tenant)

    def holding(self, fragment: bytes) -> list[str]:
        self._check_open()
        return self._reader.holding(fragment)

    # --- records ------------------------------------------------------------------------------------------
    def record(self, run_id: str, tenant: str | None = None) -> RunRecord:
        self._check_open()
        return self._reader.record(run_id, tenant)

    def records(self, query: RunQuery) -> list[RunRecord]:
        self._check_open()
        return self._reader.records(query)

    def find_key(self, tenant: str, program_name: str, key: str) -> RunRecord | None:
        self._check_open()
        return self._reader.find_key(tenant, program_name, key)

    # --- programs -----------------------------------------------------------------------------------------
    def put_program(
        self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int, tenant: str = DEFAULT_TENANT
    ) -> None:
        """As the port says. Raises InputError USAGE when the hash is not that of the bytes."""
        self._check_open()
        if self._reader.program_named(name, tenant) != program_hash:
            self._put_program(program_hash, name, canonical_bytes, now_ms, tenant)

    def keep_program(self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int) -> None:
        """Keep a program as `put_program` does, but leave what the name means as it is."""
        self._check_open()
        try:
            self._reader.program(program_hash)
        except NotFoundError:
            self._put_program(program_hash, name, canonical_bytes, now_ms, None)

    def _put_program(
        self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int, tenant: str | None
    ) -> None:
        if canonical.digest(canonical_bytes) != program_hash:
            raise InputError(
                "USAGE", f"`{program_hash}` is not the hash of the program", facts={"name": name}
            )
        seal = rules.seal_program(program_hash, name, now_ms)

        def work(con: sqlite3.Connection) -> None:
            if con.execute("SELECT 1 FROM nvm_programs WHERE hash = ?", (program_hash,)).fetchone() is None:
                con.execute(
                    "INSERT INTO nvm_programs (hash, name, stored_at_ms, body, seal) VALUES (?,?,?,?,?)",
                    (program_hash, name, now_ms, canonical_bytes, seal),
                )
            if tenant == DEFAULT_TENANT:
                con.execute(
                    "INSERT INTO nvm_names VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET hash = ?2",
                    (name, program_hash),
                )
            elif tenant is not None:
                con.execute(
                    """INSERT INTO nvm_tenant_names VALUES (?1, ?2, ?3)
                        ON CONFLICT (tenant, name) DO UPDATE SET hash = ?3""",
                    (tenant, name, program_hash),
                )

        self._write(work)

    def program(self, program_hash: str) -> bytes:
        self._check_open()
        return self._reader.program(program_hash)

    def program_named(self, name: str, tenant: str = DEFAULT_TENANT) -> str | None:
        self._check_open()
        return self._reader.program_named(name, tenant)

    def programs(self, tenant: str | None = None) -> list[tuple[str, str, int]]:
        self._check_open()
        return self._reader.programs(tenant)

    # --- ownership ----------------------------------------------------------------------------------------
    def claim(self, run_id: str, now_ms: int) -> int | None:
        self._check_open()
        self._lock.hold()

        def work(con: sqlite3.Connection) -> int | None:
            record = find_record(con, run_id)
            owner = record.owner
            if owner is not None and now_ms < record.lease_until_ms and not self._lock.is_dead(owner):
                return None
            fence = record.fence + 1
            change_owner(con, record, self._lock.name, fence, now_ms + LEASE_MS)
            self._writer.known.pop(run_id, None)
            return fence

        return self._write(work, synced=False)

    def renew(self, run_ids: Sequence[str], now_ms: int) -> list[str]:
        if not run_ids:
            return []
        sql = "UPDATE nvm_runs SET lease_until_ms = max(lease_until_ms, ?) WHERE run_id = ? AND owner = ?"

        def work(con: sqlite3.Connection) -> list[str]:
            until = now_ms + LEASE_MS
            return [
                run_id
                for run_id in run_ids
                if con.execute(sql, (until, run_id, self._lock.name)).rowcount == 0
            ]

        return self._write(work)

    def release(self, run_id: str, fence: int) -> None:
        def work(con: sqlite3.Connection) -> None:
            try:
                record = find_record(con, run_id)
            except NotFoundError:
                return
            if (record.owner, record.fence) == (self._lock.name, fence):
                change_owner(con, record, None, fence, 0)
                self._writer.known.pop(run_id, None)

        self._write(work)

    def claimable(self, now_ms: int, limit: int = 100, tenant: str | None = None) -> list[str]:
        self._check_open()
        dead: dict[str, bool] = {}
        found: list[str] = []
        for run_id, owner, lease_until_ms in self._reader.takeable(now_ms, tenant):
            if len(found) >= limit:
                break
            if owner is not None and now_ms < lease_until_ms:
                if owner not in dead:
                    dead[owner] = self._lock.is_dead(owner)
                if not dead[owner]:
                    continue
            found.append(run_id)
        return found

    # --- actions ------------------------------------------------------------------------------------------
    def bind_action(self, key: str, digest: str, run_id: str) -> None:
        def work(con: sqlite3.Connection) -> tuple[str, str]:
            sql = "SELECT digest, run_id, seal FROM nvm_actions WHERE key = ?"
            held = con.execute(sql, (key,)).fetchone()
            if held is None:
                seal = rules.seal_action(key, digest, run_id)
                con.execute("INSERT INTO nvm_actions VALUES (?,?,?,?)", (key, digest, run_id, seal))
                return digest, run_id
            bound, holder, seal = held
            if rules.seal_action(key, bound, holder) != seal:
                raise rules.damaged("what an action's key is bound to was changed", key=key)
            return bound, holder

        bound, holder = self._write(work)
        if bound != digest:
            raise rules.action_conflict(holder)

    # --- policies -----------------------------------------------------------------------------------------
    def put_policy(self, policy_hash: str, body: bytes, now_ms: int) -> None:
        rules.check_policy(policy_hash, body)
        self._write(lambda con: sqlite_policies.put_policy(con, policy_hash, body, now_ms))

    def policy(self, policy_hash: str) -> bytes:
        self._check_open()
        return self._reader.query(lambda con: sqlite_policies.find_policy(con, policy_hash))

    def mark_pause(self, pause: Pause) -> None:
        self._write(lambda con: sqlite_pauses.mark(con, pause))

    def pauses(self, tenant: str | None = None) -> list[Pause]:
        self._check_open()
        return self._reader.query(lambda con: sqlite_pauses.find(con, tenant))

    def counted(self, keys: Sequence[str], action: str) -> list[int]:
        self._check_open()
        return self._reader.query(lambda con: sqlite_policies.counted(con, keys, action))

    def count(self, action: str, wanted: Sequence[tuple[str, int, int]], now_ms: int) -> list[int] | None:
        return self._write(lambda con: sqlite_policies.count(con, action, wanted, now_ms))

    # --- mail ---------------------------------------------------------------------------------------------
    def post(self, run_id: str, mail: Mail) -> None:
        def work(con: sqlite3.Connection) -> None:
            no = run_number(con, run_id)
            held = find_mail(con, run_id, no, mail.mail_id)
            if held is not None:
                rules.same_mail(run_id, held, mail)
                return
            count = con.execute("SELECT count(*) FROM nvm_mail WHERE run = ? AND answer IS NULL", (no,))
            rules.check_mailbox(run_id, count.fetchone()[0])
            con.execute(
                """INSERT INTO nvm_mail (run, mail_id, kind, body, posted_at_ms, answer, seal)
                    VALUES (?,?,?,?,?,?,?)""",
                (
                    no,
                    mail.mail_id,
                    mail.kind,
                    mail.body,
                    mail.posted_at_ms,
                    mail.answer,
                    rules.seal_mail(run_id, mail),
                ),
            )

        self._write(work)

    def mail(self, run_id: str) -> list[Mail]:
        self._check_open()
        return self._reader.mail(run_id)

    def answer(self, run_id: str, mail_id: str, answer: bytes) -> None:
        """The first answer stands. Raises NotFoundError RUN_NOT_FOUND or MAIL_NOT_FOUND."""

        def work(con: sqlite3.Connection) -> None:
            no = run_number(con, run_id)
            held = find_mail(con, run_id, no, mail_id)
            if held is None:
                raise rules.mail_not_found(run_id, mail_id)
            if held.answer is not None:
                return
            done = Mail(
                mail_id=mail_id,
                kind=held.kind,
                body=held.body,
                posted_at_ms=held.posted_at_ms,
                answer=answer,
            )
            con.execute(
                "UPDATE nvm_mail SET answer = ?, seal = ? WHERE run = ? AND mail_id = ?",
                (answer, rules.seal_mail(run_id, done), no, mail_id),
            )

        self._write(work)

    def answered(self, run_id: str, mail_id: str) -> bytes | None:
        self._check_open()
        return self._reader.answered(run_id, mail_id)

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
        if self._closed or _forks != self._forks:
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
        if self._closed or _forks != self._forks:
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

    def _check_open(self) -> None:
        if self._closed:
            raise rules.closed()
        if _forks != self._forks:
            # SQLite's locks do not cross a fork: the two processes would corrupt the file together.
            raise rules.closed("the store was opened before a fork")

    def _submit(self, work: Work) -> Durable:
        self._check_open()
        if self._writer.tool_open and inside_tool.get():
            refuse_inside(self._turnstile)
        return self._group.submit(work)

    def _write(self, work: Callable[[sqlite3.Connection], T], synced: bool = True) -> T:
        self._check_open()
        self._group.drain()
        return self._writer.write(work, synced)

    def _owners_in_use(self) -> set[str]:
        # One index each: runs that wait with nobody owning them may be many.
        sql = """SELECT owner FROM nvm_runs WHERE status = 'RUNNING' AND owner IS NOT NULL
            UNION SELECT owner FROM nvm_runs INDEXED BY nvm_runs_held
            WHERE status = 'SUSPENDED' AND owner IS NOT NULL"""
        try:
            rows = self._reader.query(lambda con: con.execute(sql).fetchall())
        except StoreError:
            return {self._lock.name}  # cannot tell: keep the file, it only says that we are gone
        return {row[0] for row in rows}

    def _sweep(self) -> None:
        if self._lock.directory.is_dir():
            self._lock.sweep(self._owners_in_use())


SqliteStore = SqliteJournalStore
