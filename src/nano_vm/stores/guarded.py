"""A SQLite connection that can be lent to a tool.

The tool may read everything and write its own tables. It cannot end the transaction, begin another, attach
files, change settings or touch tables named `nvm_…`: SQLite's authorizer refuses these when a statement is
compiled, and the methods that would do the same are closed. Should the transaction end all the same (`INSERT
OR ROLLBACK`), the connection refuses every further statement, so nothing can be written outside of it.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NoReturn

OWN_PREFIX = "nvm_"

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
