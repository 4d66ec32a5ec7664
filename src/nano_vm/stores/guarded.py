"""A database connection that can be lent to a tool, and the turnstile in front of it.

The tool may read everything and write its own tables. It cannot end the transaction, begin another, attach
files, change settings or touch tables named `nvm_…`: SQLite's authorizer refuses these when a statement is
compiled, and the methods that would do the same are closed. Should the transaction end all the same (`INSERT
OR ROLLBACK`), the connection refuses every further statement, so nothing can be written outside of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
from collections import deque
from typing import Any, NoReturn

from nano_vm.errors import StoreError

OWN_PREFIX = "nvm_"

inside_tool: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar(
    "nano_vm_inside_tool", default=frozenset()
)

_READS = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_RECURSIVE,
        sqlite3.SQLITE_SAVEPOINT,  # nested in our transaction, it can only undo what the tool itself did
    }
)
_WRITES = frozenset(
    {
        sqlite3.SQLITE_INSERT,
        sqlite3.SQLITE_UPDATE,
        sqlite3.SQLITE_DELETE,
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_REINDEX,  # part of creating an index
    }
)


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, by: str | None
) -> int:
    if action in _READS:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION:
        return sqlite3.SQLITE_DENY if second == "load_extension" else sqlite3.SQLITE_OK
    if action in _WRITES:
        names = (first or "", (second or "") if action == sqlite3.SQLITE_CREATE_INDEX else "")
        if not any(name.lower().startswith(OWN_PREFIX) for name in names):
            return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


class GuardedCursor(sqlite3.Cursor):
    """A cursor that works only while the transaction is open."""

    def execute(self, *args: Any) -> GuardedCursor:
        self._check()
        super().execute(*args)
        return self

    def executemany(self, *args: Any) -> GuardedCursor:
        self._check()
        super().executemany(*args)
        return self

    def executescript(self, *args: Any) -> NoReturn:
        _refuse("executescript")

    def _check(self) -> None:
        con = self.connection
        if isinstance(con, GuardedConnection) and con.is_lent and not con.in_transaction:
            raise sqlite3.ProgrammingError("the transaction of this tool has ended")


class GuardedConnection(sqlite3.Connection):
    """A connection that is either ours (`is_lent` False) or a tool's."""

    is_lent: bool = False

    def lend(self) -> None:
        super().set_authorizer(_authorize)
        self.is_lent = True

    def take_back(self) -> None:
        self.is_lent = False
        super().set_authorizer(None)

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(GuardedCursor)

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def commit(self) -> None:
        self._only_ours("commit")
        super().commit()

    def rollback(self) -> None:
        self._only_ours("rollback")
        super().rollback()

    def close(self) -> None:
        self._only_ours("close")
        super().close()

    def executescript(self, *args: Any) -> NoReturn:
        _refuse("executescript")

    def set_authorizer(self, *args: Any) -> NoReturn:
        _refuse("set_authorizer")

    def setconfig(self, *args: Any) -> NoReturn:
        _refuse("setconfig")

    def blobopen(self, *args: Any, **options: Any) -> NoReturn:
        _refuse("blobopen")  # writes past triggers and authorizer

    def deserialize(self, *args: Any, **options: Any) -> NoReturn:
        _refuse("deserialize")

    def enable_load_extension(self, *args: Any) -> NoReturn:
        _refuse("enable_load_extension")

    def __enter__(self) -> NoReturn:
        _refuse("with connection")  # it would commit at the end of the block

    def _only_ours(self, method: str) -> None:
        if self.is_lent:
            _refuse(method)


def _refuse(method: str) -> NoReturn:
    raise sqlite3.ProgrammingError(f"a tool cannot call `{method}`: its transaction belongs to the store")


class Turnstile:
    """Lets one tool's transaction in at a time, in order, from any number of event loops."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait for our turn.

        Raises:
            StoreError: STORE_LOCKED in the context of a transaction that is inside: it would wait for itself.
        """
        refuse_inside(self)
        with self._mutex:
            if not self._busy:
                self._busy = True
                return
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with self._mutex:
                was_waiting = turn in self._waiting
                if was_waiting:
                    self._waiting.remove(turn)
            if not was_waiting:
                self.leave()  # our turn had come already: pass it on
            raise

    def leave(self) -> None:
        with self._mutex:
            while self._waiting:
                turn = self._waiting.popleft()
                loop = turn.get_loop()
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_let_in, turn)
                    return
            self._busy = False

    def mark_inside(self) -> contextvars.Token[frozenset[int]]:
        """Remember in this context, and in tasks started from it, that a transaction is open."""
        return inside_tool.set(inside_tool.get() | {id(self)})


def refuse_inside(turnstile: Turnstile) -> None:
    """Raises StoreError STORE_LOCKED in the context of an open transaction of this store."""
    if id(turnstile) in inside_tool.get():
        raise StoreError(
            "STORE_LOCKED",
            "a transactional tool cannot wait for its own store",
            help="write through the transaction it was given, and start runs outside of it",
        )


def _let_in(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
