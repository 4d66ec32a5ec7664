"""The one connection through which a SQLite store writes, and who may use it when.

Three parties want it: the group commit (on the event loop, or in its thread), calls that write at once (from
any thread), and - on a connection of its own, but with the same database lock - a tool's transaction, which
may stay open across awaits. `lock` guards the connection; `tool_open` tells that a tool's transaction holds
the database's write lock, so that nobody in this process runs into it.
"""

from __future__ import annotations

import copy
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from nano_vm.errors import NanoVMError, StoreError
from nano_vm.journal.entry import Chain, seal_each
from nano_vm.journal.plain import Success
from nano_vm.stores import rules
from nano_vm.stores.batch import OwnedRun, attempt, lone_row, seal_plain
from nano_vm.stores.claims import Claim
from nano_vm.stores.segments import pack_payload, unhex
from nano_vm.stores.sqlite_batch import INSERT_OWNED, SqliteBatch
from nano_vm.stores.sqlite_errors import FAILURES, translate
from nano_vm.stores.sqlite_schema import is_busy
from nano_vm.stores.work import Work

T = TypeVar("T")

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.000_5, 0.01


_OWNER = "SELECT owner, fence FROM nvm_runs WHERE run_id = ?"
_FULL = 2  # PRAGMA synchronous: sync the disk in every commit


class Writer:
    """Write transactions.

    What is known of owned runs is kept between them. Ownership can change only through a commit of somebody
    else, so a transaction begins by comparing `PRAGMA data_version`, and, if that has moved, the count of
    changes of ownership that a trigger keeps: the fence check costs nothing while nobody takes runs over.
    """

    def __init__(self, con: sqlite3.Connection, path: Path, owner: str, busy_timeout_ms: int) -> None:
        self.con = con
        self.path = path
        self.owner = owner
        self.busy_timeout_ms = busy_timeout_ms
        self.known: dict[str, OwnedRun] = {}
        self.claims: dict[str, Claim] = {}  # of runs that are ours as soon as they add something
        self.lock = threading.Condition(threading.Lock())
        self.closed = False
        self.tool_open = False
        self.tool_thread = 0
        self._data_version = -1
        self._ownership = -1
        self._changed_version = self.data_version()
        self._synchronous: int = con.execute("PRAGMA synchronous").fetchone()[0]
        con.execute("PRAGMA busy_timeout=0")  # from here on we wait by ourselves, see `begin`
        self._cursor = con.cursor()  # for statements that follow one another all the time

    # --- transactions -------------------------------------------------------------------------------------
    def write(self, work: Callable[[sqlite3.Connection], T], synced: bool = True) -> T:
        """Run `work` in a transaction of its own and commit it; waits for others up to the busy time-out.

        Not `synced`, the commit outlives the process, but a machine that loses its power may forget it, unless a
        later commit is synced. It is for ownership: whoever owned a run is gone then.

        Raises: what `work` raises (nothing is written then), and StoreError.
        """
        with self.lock:
            self.wait_for_tool()
            if synced or self._synchronous < _FULL:
                return self._write(work)
            self.con.execute("PRAGMA synchronous=NORMAL")
            try:
                return self._write(work)
            finally:
                self.con.execute(f"PRAGMA synchronous={self._synchronous}")

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._begin(self.busy_timeout_ms)
        try:
            result = work(self.con)
            self.con.execute("COMMIT")
        except BaseException as error:
            self._undo()
            if isinstance(error, FAILURES):
                raise translate(error, self.path) from error
            raise
        return result

    def try_commit(self, works: Sequence[Work], patience_ms: int) -> bool:
        """Commit the works together; False (and nothing done) when the database stays locked for
        `patience_ms`.

        The caller holds `lock`. The outcome of each work is in its `error`.
        """
        try:
            self._begin(patience_ms)
        except StoreError as error:
            if error.code == "STORE_LOCKED" and patience_ms < self.busy_timeout_ms:
                return False
            _fail(works, error)
            return True
        batch = SqliteBatch(self.con, self.owner, self.known, self.claims)
        try:
            seal_plain(works)
            attempt(batch, works)
            batch.execute()
            self.con.execute("COMMIT")
        except BaseException as error:
            self._undo()
            if isinstance(error, sqlite3.IntegrityError) and len(works) > 1:
                # The database refused a row that our checks let through. Find out whose it was.
                for work in works:
                    work.error = None
                for work in works:
                    self.try_commit((work,), self.busy_timeout_ms)
                return True
            _fail(works, self._meaning(works, error))
            if not isinstance(error, Exception):
                raise
            return True
        batch.committed()
        return True

    def try_append(self, work: Work) -> bool:
        """`try_commit` of one entry that its run's owner adds at the end. False, and nothing is done, for anything
        else, when the database is locked, and when the run is not ours any more.

        The caller holds `lock`.
        """
        run = self.known.get(work.run_id)
        if run is None or run.fence != work.fence or work.update is not None:
            return False
        seal_plain((work,))
        row = lone_row(work, run.length)
        if row is None:
            return False
        try:
            return self._add(run, row)
        except BaseException as error:
            work.error = error
            if not isinstance(error, Exception):
                raise
            return True

    def try_append_plain(self, run_id: str, fence: int, chain: Chain, success: Success, salt: bytes) -> bool:
        """`try_append` of a success that is to be sealed: nearly every commit of a run that is alone. Between two waits
        for the disk all that runs comes from memory, so this does without a `Work`.

        Raises:
            StoreError: it could not be written.
        """
        run = self.known.get(run_id)
        seq, head = chain.length, chain.head
        if run is None or run.fence != fence or run.length != seq:
            return False
        ((_, digest, facts),) = seal_each(((chain, success, salt),))
        row = seq, unhex(digest), bytearray(facts), pack_payload(salt, success[2])
        added = False
        try:
            added = self._add(run, row)
        finally:
            if not added:
                chain.length, chain.head = seq, head
        return added

    def _add(self, run: OwnedRun, row: tuple[object, ...]) -> bool:
        """Add a segment of one entry in a transaction of its own. False, and nothing is done, when the database is
        locked, and when the run is not ours any more."""
        try:
            self._cursor.execute(INSERT_OWNED, (run.no, run.fence, self.owner, *row))
        except sqlite3.IntegrityError:
            self._undo()  # somebody else has it, or has written to it: `try_commit` looks, and says what is wrong
            return False
        except BaseException as error:
            self._undo()
            if isinstance(error, sqlite3.Error) and is_busy(error):
                return False
            if isinstance(error, FAILURES):
                raise translate(error, self.path) from error
            raise
        run.length += 1
        return True

    # --- claims -------------------------------------------------------------------------------------------
    def claim(self, claim: Claim) -> bool:
        """Claim a run with what it adds next. False when it is not free any more."""
        run_id = claim.record.run_id
        with self.lock:
            if self.closed:
                raise rules.closed()
            if run_id in self.known or run_id in self.claims:
                return False
            try:
                row = self._cursor.execute(_OWNER, (run_id,)).fetchone()
            except FAILURES as error:
                raise translate(error, self.path) from error
            if row != (None, claim.fence - 1):
                return False
            self.claims[run_id] = claim
            return True

    def give_back(self, run_id: str, fence: int) -> bool:
        """Let a run go that has added nothing; False when it has, or is none of ours."""
        with self.lock:
            claim = self.claims.get(run_id)
            if claim is None or claim.fence != fence:
                return False
            del self.claims[run_id]
            return True

    # --- waiting ------------------------------------------------------------------------------------------
    def wait_for_tool(self) -> None:
        """Wait until no tool's transaction is open; the caller holds `lock`.

        Raises:
            StoreError: STORE_LOCKED at once in the thread whose event loop must end that transaction,
                elsewhere after the busy time-out.
        """
        if self.closed:
            raise rules.closed()
        if not self.tool_open:
            return
        elsewhere = self.tool_thread != threading.get_ident()
        if elsewhere and self.lock.wait_for(
            lambda: self.closed or not self.tool_open, self.busy_timeout_ms / 1000
        ):
            if self.closed:
                raise rules.closed()
            return
        raise StoreError(
            "STORE_LOCKED",
            "a tool's transaction is open in this process",
            help="try again when the tool is done, and keep transactional tools short",
            facts={"path": str(self.path)},
        )

    def wait_until_tool_ends(self) -> bool:
        """For a thread that nothing waits for but the queue itself; the caller holds `lock`. False when the
        store was closed meanwhile."""
        self.lock.wait_for(lambda: self.closed or not self.tool_open)
        return not self.closed

    def close(self) -> None:
        """Close the connection. Whoever waits for a tool's transaction is let go; the tool cannot commit."""
        with self.lock:
            self.closed = True
            self.con.close()
            self.lock.notify_all()

    def _begin(self, patience_ms: int) -> None:
        try:
            begin(self.con, patience_ms)
            self._look_for_others()
        except FAILURES as error:
            if self.con.in_transaction:
                self._undo()
            raise translate(error, self.path) from error

    def _look_for_others(self) -> None:
        version = self.con.execute("PRAGMA data_version").fetchone()[0]
        if version != self._data_version:
            self._data_version = version
            ownership = self.con.execute("SELECT value FROM nvm_meta WHERE name = 'ownership'").fetchone()
            if ownership != self._ownership:
                self._ownership = ownership
                self.known.clear()

    def _undo(self) -> None:
        self.known.clear()
        try:
            if self.con.in_transaction:
                self.con.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # SQLite has rolled back by itself; the first error is the one to tell

    def _meaning(self, works: Sequence[Work], error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.IntegrityError):
            entries = works[0].entries
            return rules.journal_conflict(
                works[0].run_id, entries[0].seq if entries else 0, "the database refused the row"
            )
        if isinstance(error, FAILURES):
            return translate(error, self.path)
        return error

    # --- watching others ----------------------------------------------------------------------------------
    def data_version(self) -> int:
        try:
            version: int = self.con.execute("PRAGMA data_version").fetchone()[0]
        except FAILURES as error:
            raise translate(error, self.path) from error
        return version

    def version_now(self) -> int | None:
        """`data_version`; None while a commit of ours is under way and the answer would have to wait for it."""
        if self.closed or not self.lock.acquire(blocking=False):
            return None
        try:
            return None if self.closed else self.data_version()
        finally:
            self.lock.release()

    def changed(self) -> bool:
        """Whether anybody else has committed since the last call; True also when a commit of ours is under
        way and the answer would have to wait for it."""
        version = self.version_now()
        if version is None:
            return True
        if version == self._changed_version:
            return False
        self._changed_version = version
        return True


def begin(con: sqlite3.Connection, patience_ms: int) -> None:
    """BEGIN IMMEDIATE, tried again for `patience_ms`. SQLite's own busy handler pauses up to 100 ms at a time
    and so loses against writers that commit often; ours pauses 10 ms at most."""
    deadline = 0.0
    pause = _PAUSE_FIRST_S
    while True:
        try:
            con.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            now = time.monotonic()
            deadline = deadline or now + patience_ms / 1000
            if now + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 1.5, _PAUSE_MAX_S)


def _fail(works: Sequence[Work], error: BaseException) -> None:
    """The commit failed, and with it all that was not refused before."""
    for work in works:
        if work.error is None:
            # A copy each: an exception that is raised in many tasks gathers all their tracebacks.
            work.error = copy.copy(error) if isinstance(error, NanoVMError) else error
