"""A transactional tool's own transaction: its writes and the journal entries about them commit together."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from nano_vm.errors import StoreError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import RunUpdate
from nano_vm.stores import rules
from nano_vm.stores.batch import OwnedRun
from nano_vm.stores.guarded import GuardedConnection
from nano_vm.stores.sqlite_batch import SqliteBatch
from nano_vm.stores.sqlite_errors import translate
from nano_vm.stores.sqlite_group import GroupCommit
from nano_vm.stores.sqlite_schema import connect
from nano_vm.stores.sqlite_writer import Writer, begin
from nano_vm.stores.turnstile import Turnstile, begun_in_thread, inside_tool


class ToolTransaction:
    """What the tool is given. Implements the port's `Transaction`."""

    def __init__(self, con: GuardedConnection, writer: Writer) -> None:
        self._con = con
        self._writer = writer
        self.known: dict[str, OwnedRun] = {}

    @property
    def connection(self) -> Any:
        """A sqlite3.Connection: any reads, INSERT, UPDATE and DELETE on tables of one's own, CREATE TABLE and
        INDEX."""
        return self._con

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> None:
        self._con.take_back()
        try:
            batch = SqliteBatch(self._con, self._writer.owner, self.known)
            batch.append(run_id, fence, entries, update)
            batch.execute()
        except sqlite3.Error as error:
            raise translate(error, self._writer.path) from error
        finally:
            self._con.lend()

    def finish(self) -> None:
        self._con.take_back()
        if self._writer.closed:
            raise rules.closed()
        if not self._con.in_transaction:
            raise StoreError(
                "STORE_IO",
                "the tool's transaction was rolled back by the database",
                help="do not use OR ROLLBACK in a tool's statements",
                facts={"path": str(self._writer.path)},
            )
        try:
            self._con.execute("COMMIT")
        except sqlite3.Error as error:
            raise translate(error, self._writer.path) from error


@contextlib.asynccontextmanager
async def tool_transaction(
    writer: Writer, group: GroupCommit, turnstile: Turnstile, synchronous: str
) -> AsyncIterator[ToolTransaction]:
    """One transaction from BEGIN IMMEDIATE to COMMIT, or to ROLLBACK when the body raises.

    Meanwhile the group commit of this process gathers and waits; other processes wait for their busy
    time-out.
    """
    await turnstile.enter()
    try:
        await asyncio.sleep(0)  # what is scheduled to be committed in this tick need not wait for the tool
        thread = threading.get_ident()
        con = await begun_in_thread(
            # In a thread, since somebody else may hold the database's write lock. Until it is done nobody else may come
            # through: the next one would hold the writer's lock and wait for one that we could not give back.
            lambda: _begin(writer, synchronous, thread),
            lambda begun: _close(writer, begun, []),
        )
        transaction = ToolTransaction(con, writer)
        try:
            token = turnstile.mark_inside()
            con.lend()
            try:
                yield transaction
            finally:
                # A generator may be closed in another context than it was begun in.
                with contextlib.suppress(ValueError):
                    inside_tool.reset(token)
            transaction.finish()
        finally:
            _close(writer, con, list(transaction.known))
            group.resume()
    finally:
        turnstile.leave()


def _begin(writer: Writer, synchronous: str, thread: int) -> GuardedConnection:
    con = None
    with writer.lock:
        try:
            con = connect(
                writer.path,
                synchronous=synchronous,
                busy_timeout_ms=writer.busy_timeout_ms,
                factory=GuardedConnection,
            )
            begin(con, writer.busy_timeout_ms)
        except sqlite3.Error as error:
            if con is not None:
                con.close()
            raise translate(error, writer.path) from error
        writer.tool_open, writer.tool_thread = True, thread
    return cast(GuardedConnection, con)


def _close(writer: Writer, con: GuardedConnection, appended: list[str]) -> None:
    con.take_back()
    with contextlib.suppress(sqlite3.Error):
        if con.in_transaction:
            con.execute("ROLLBACK")
    with contextlib.suppress(sqlite3.Error):
        con.close()
    with writer.lock:
        for run_id in appended:
            writer.known.pop(run_id, None)  # their journals have grown behind the writer's back
        writer.tool_open = False
        writer.lock.notify_all()
