"""A transactional tool's own transaction: its writes and the journal entries about them commit together.

The tool may read everything and write its own tables. It cannot end the transaction or begin another: its connection
lets only certain statements through, one at a time, and triggers keep it from writing tables named `nvm_…`. This guards
against mistakes: a tool is trusted code.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NoReturn

import psycopg
from psycopg import pq

from nano_vm.errors import StoreError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import RunUpdate
from nano_vm.stores.postgres import fence
from nano_vm.stores.postgres.batch import PostgresBatch
from nano_vm.stores.postgres.connection import PostgresConnection
from nano_vm.stores.postgres.errors import translated, unreachable
from nano_vm.stores.postgres.locks import MARK
from nano_vm.stores.postgres.writer import Writer
from nano_vm.stores.turnstile import Turnstile, begun_in_thread, inside_tool
from nano_vm.stores.work import Work

_TOOK_TOO_LONG = "25P03"  # idle_in_transaction_session_timeout
_COMMENT = re.compile(r"\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/", re.DOTALL)
_ALLOWED = re.compile(
    r"(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE|SAVEPOINT|RELEASE"
    r"|ROLLBACK\s+(?:WORK\s+|TRANSACTION\s+)?TO"
    r"|CREATE\s+(?:UNLOGGED\s+)?TABLE|CREATE\s+(?:UNIQUE\s+)?INDEX)\b",
    re.IGNORECASE,
)


class LentCursor:
    """Results of a statement, as psycopg's cursor gives them."""

    def __init__(self, connection: LentConnection, cursor: psycopg.Cursor[Any]) -> None:
        self.connection = connection
        self._cursor = cursor

    def execute(self, query: str, params: Any = None) -> LentCursor:
        self.connection.check(query)
        with self.connection.noting():
            # Binary results are asked for because then the server takes one statement at a time.
            self._cursor.execute(query.encode(), params, binary=True)
        return self

    def executemany(self, query: str, params_seq: Any) -> LentCursor:
        self.connection.check(query)
        with self.connection.noting():
            self._cursor.executemany(query.encode(), params_seq)
        return self

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def fetchmany(self, size: int = 0) -> list[Any]:
        return self._cursor.fetchmany(size)

    def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def description(self) -> Any:
        return self._cursor.description


class LentConnection:
    """As much of a psycopg connection as a tool may use, for as long as its transaction is open."""

    __slots__ = ("_raw", "refused")

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw: psycopg.Connection[Any] | None = raw
        self.refused = ""  # what the last statement that failed came to

    def cursor(self) -> LentCursor:
        return LentCursor(self, psycopg.Cursor(self._open()))

    def execute(self, query: str, params: Any = None) -> LentCursor:
        return self.cursor().execute(query, params)

    def executemany(self, query: str, params_seq: Any) -> LentCursor:
        return self.cursor().executemany(query, params_seq)

    def check(self, query: str) -> None:
        self._open()
        at = 0
        while (skipped := _COMMENT.match(query, at)) is not None:
            at = skipped.end()
        if not _ALLOWED.match(query, at):
            _refuse(f"the statement `{query[at : at + 20].split(maxsplit=1)[0] if query[at:] else ''}`")

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            self.refused = error.sqlstate or ""
            raise

    def commit(self) -> NoReturn:
        _refuse("commit")

    def rollback(self) -> NoReturn:
        _refuse("rollback")

    def close(self) -> NoReturn:
        _refuse("close")

    def end(self) -> None:
        """It is not the tool's any more."""
        self._raw = None

    def _open(self) -> psycopg.Connection[Any]:
        if self._raw is None:
            raise psycopg.ProgrammingError("the transaction of this tool has ended")
        return self._raw


def _refuse(what: str) -> NoReturn:
    raise psycopg.ProgrammingError(f"a tool cannot use {what}: its transaction belongs to the store")


class ToolTransaction:
    """What the tool is given. Implements the port's `Transaction`."""

    def __init__(self, con: PostgresConnection, writer: Writer) -> None:
        self._con = con
        self._writer = writer
        self._lent = LentConnection(con.raw)
        self._number: str = con.execute("SELECT pg_current_xact_id()::text").fetchone()[0]
        self._works: list[Work] = []
        con.execute("SET LOCAL nvm.lent = on")

    @property
    def connection(self) -> Any:
        """A `LentConnection`: `execute`, `executemany` and `cursor` as in psycopg, with `%s` for values."""
        return self._lent

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> None:
        # Written at the very end: from then on until the commit nobody else appends to runs of this store.
        self._works.append(Work(run_id, entries, fence, update))

    def finish(self) -> None:
        """Write the entries and commit. Raises psycopg.Error, and what the port says for `append`."""
        self.end()
        con, writer = self._con, self._writer
        if con.raw.info.transaction_status is not pq.TransactionStatus.INTRANS:
            raise _ended(writer.place)
        if con.execute("SELECT pg_current_xact_id_if_assigned()::text").fetchone()[0] != self._number:
            raise _ended(writer.place)
        con.execute("SET LOCAL nvm.lent = off")
        number = writer.next_lent()
        fence.enter(con, writer.owner, fence.LENT, number)
        if self._works:
            con.execute(MARK, (writer.mark,))
            batch = PostgresBatch(con, writer.owner, {})
            batch.take(batch.prepare(self._works))
            for work in self._works:
                batch.append(work.run_id, work.fence, work.entries, work.update)
            batch.execute()
        con.commit(lambda: fence.landed(con, writer.owner, fence.LENT, number))

    def end(self) -> None:
        self._lent.end()

    def loss(self) -> StoreError | None:
        """The session was lost under the tool, which can do nothing about it: then its failure is none of the tool's.
        One that was ended because the tool took too long is."""
        if not self._con.is_lost or self._lent.refused == _TOOK_TOO_LONG:
            return None
        return unreachable(self._writer.place, self._lent.refused or "OperationalError")

    @property
    def appended(self) -> list[str]:
        return [work.run_id for work in self._works]


def _ended(place: str) -> StoreError:
    return StoreError(
        "STORE_IO",
        "the tool's transaction was rolled back by the database",
        help="a statement failed in it: use a savepoint around what may fail",
        facts={"path": place},
    )


class Sessions:
    """The session for tools: one, since their transactions follow one another. Kept from one to the next."""

    def __init__(self, connect: Callable[[], PostgresConnection]) -> None:
        self._connect = connect
        self._idle: PostgresConnection | None = None
        self._closed = False

    def begin(self) -> PostgresConnection:
        """A session with an open transaction."""
        con, self._idle = self._idle, None
        if con is None:
            con = self._connect()
        try:
            con.again(lambda: con.execute("BEGIN"))
        except BaseException:
            con.close()
            raise
        return con

    def give_back(self, con: PostgresConnection) -> None:
        """Whatever is open is rolled back."""
        con.undo()
        with contextlib.suppress(psycopg.Error):
            con.restore()  # the server may keep a lost session, and its locks, for ever
        if self._closed or con.is_lost:
            con.close()
        else:
            self._idle = con

    def close(self) -> None:
        self._closed = True
        if self._idle is not None:
            self._idle.close()


@contextlib.asynccontextmanager
async def tool_transaction(
    writer: Writer, sessions: Sessions, turnstile: Turnstile
) -> AsyncIterator[ToolTransaction]:
    """One transaction from BEGIN to COMMIT, or to ROLLBACK when the body raises."""
    await turnstile.enter()
    try:
        con = await begun_in_thread(sessions.begin, sessions.give_back)
        transaction: ToolTransaction | None = None
        try:
            with translated(writer.place):
                transaction = ToolTransaction(con, writer)
            token = turnstile.mark_inside()
            try:
                yield transaction
            except Exception as error:
                loss = transaction.loss()
                if loss is None:
                    raise
                raise loss from error
            finally:
                # A generator may be closed in another context than it was begun in.
                with contextlib.suppress(ValueError):
                    inside_tool.reset(token)
            with translated(writer.place):
                transaction.finish()
        finally:
            if transaction is not None:
                transaction.end()
            sessions.give_back(con)
            with writer.lock:
                for run_id in () if transaction is None else transaction.appended:
                    writer.known.pop(run_id, None)  # their journals have grown behind the writer's back
    finally:
        turnstile.leave()
