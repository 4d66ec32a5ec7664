"""Databases for processes that are killed and for work that is timed: a SQLite file, or in a PostgreSQL database a
schema that was made for it and is dropped again.

Runs that were in such a database before are in other schemas: nothing here can reach them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from nano_vm.errors import NanoVMError, StoreError
from nano_vm.stores.sqlite import Durability, SqliteStore

if TYPE_CHECKING:
    import psycopg

    from nano_vm.stores.postgres import PostgresStore

    OpenStore: TypeAlias = SqliteStore | PostgresStore

ADDRESS_VARIABLE: Final = "NANO_VM_TRIAL_ADDRESS"
"""Where a process is told the address of its schema: unlike its arguments, its environment is nobody else's to read."""

_LOCKED_MAX_S: Final = 60  # what killed processes have left on its way holds locks until it is through


class Database(Protocol):
    """What the processes of a trial work on together."""

    kind: str
    environment: dict[str, str]
    """What a process has to be started with, for `database_at` to find it."""

    def open(self, durability: Durability) -> OpenStore:
        """A store object on it."""

    def values(self, count: int) -> str:
        """So many placeholders, as a tool writes them."""

    def rows(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        """What a tool's table holds, past every store; nothing when there is no such table."""

    def stored_bytes(self) -> int: ...

    def log_bytes(self) -> int:
        """Of a write-ahead log of its own."""


class SqliteFile:
    """A file. Implements `Database`."""

    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {ADDRESS_VARIABLE: ""}

    def open(self, durability: Durability) -> SqliteStore:
        return SqliteStore(self.path, durability)

    def values(self, count: int) -> str:
        return ", ".join("?" * count)

    def rows(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with closing(sqlite3.connect(self.path)) as con:
            try:
                return con.execute(f"SELECT {columns} FROM {table}").fetchall()
            except sqlite3.OperationalError:
                return []  # no such tool has been called

    def stored_bytes(self) -> int:
        return self.path.stat().st_size

    def log_bytes(self) -> int:
        log = Path(f"{self.path}-wal")
        return log.stat().st_size if log.exists() else 0


class PostgresSchema:
    """A schema; `address` leads to it. Implements `Database`."""

    kind = "postgresql"

    def __init__(self, address: str) -> None:
        self.address = address
        self.environment = {ADDRESS_VARIABLE: address}

    def open(self, durability: Durability) -> PostgresStore:
        from nano_vm.stores.postgres import PostgresStore

        return PostgresStore(self.address, durability)

    def values(self, count: int) -> str:
        return ", ".join(["%s"] * count)

    def rows(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        with _session(self.address) as con:
            if con.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
                return []
            return con.execute(f"SELECT {columns} FROM {table}".encode()).fetchall()

    def stored_bytes(self) -> int:
        sql = """SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
            FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
            WHERE s.nspname = current_schema() AND c.relkind = 'r'"""
        with _session(self.address) as con:
            return int(con.execute(sql.encode()).fetchall()[0][0])

    def log_bytes(self) -> int:
        return 0  # it is the server's, of all its databases


def database_at(place: Path) -> Database:
    """The database of this process: the schema that it was told of when it was started, else a file in `place`."""
    address = os.environ.get(ADDRESS_VARIABLE)
    return PostgresSchema(address) if address else SqliteFile(place / "runs.db")


class Files:
    """Makes a file for every trial. Implements `Grounds`."""

    name = kind = "sqlite"

    def fresh(self, place: Path, tables: Sequence[str] = ()) -> contextlib.AbstractContextManager[Database]:
        return contextlib.nullcontext(SqliteFile(place / "runs.db"))


class Schemas:
    """Makes a schema for every trial, in a PostgreSQL database. Implements `Grounds`.

    Args:
        address: of the database. A search path in it is left alone: no schema that was there before is used.
        purpose: a part of the names of the schemas: `nano_vm_<purpose>_<random>`.

    Raises:
        InputError: USAGE when it is no address. RuntimeFault: EXTRA_MISSING.
    """

    kind = "postgresql"

    def __init__(self, address: str, purpose: str) -> None:
        from nano_vm.stores.postgres.connection import Address

        self.name = Address(address).name
        self._address = address
        self._purpose = purpose

    @contextlib.contextmanager
    def fresh(self, place: Path | None = None, tables: Sequence[str] = ()) -> Iterator[PostgresSchema]:
        """A schema that nobody else has, with `tables` for tools in it: two sessions that make one table at the same
        time would be in each other's way.

        Raises:
            StoreError: STORE_READ_ONLY when the user may make no schemas; STORE_IO, STORE_LOCKED.
        """
        schema = f"nano_vm_{self._purpose}_{secrets.token_hex(8)}"
        self._make(schema)
        made = PostgresSchema(_within(self._address, schema))
        try:
            with _session(made.address) as con:
                for table in tables:
                    con.execute(table.encode())
            yield made
        except BaseException:
            with contextlib.suppress(NanoVMError):  # what has happened before is what people want to know
                self._drop(schema)
            raise
        self._drop(schema)

    def _make(self, schema: str) -> None:
        try:
            with _session(self._address) as con:
                con.execute(f"CREATE SCHEMA {schema}".encode())  # fails if there is one, whoever made it
        except StoreError as error:
            if error.facts.get("sqlstate") != "42501":
                raise
            raise StoreError(
                "STORE_READ_ONLY",
                f"the user may make no schema in the database `{self.name}`",
                help="work that breaks things on purpose is done in a schema of its own, never beside runs that are "
                "there: GRANT CREATE ON DATABASE, or name another database",
                facts=error.facts,
            ) from error

    def _drop(self, schema: str) -> None:
        from nano_vm.stores.postgres.store import lock_directory

        with _session(self._address) as con:
            con.execute(f"SET lock_timeout = '{_LOCKED_MAX_S}s'".encode())
            number = None
            if con.execute("SELECT to_regclass(%s)", (f"{schema}.nvm_meta",)).fetchone() != (None,):
                sql = f"SELECT value FROM {schema}.nvm_meta WHERE name = 'store'"
                number = con.execute(sql.encode()).fetchone()
            con.execute(f"DROP SCHEMA {schema} CASCADE".encode())
        if number is not None:
            shutil.rmtree(lock_directory(number[0]), ignore_errors=True)


class Grounds(Protocol):
    """Makes databases for trials: of which `kind`, and where, without secrets."""

    kind: str
    name: str

    def fresh(self, place: Path, tables: Sequence[str] = ()) -> contextlib.AbstractContextManager[Database]:
        """An empty database, which is gone afterwards. `place` is a directory of the trial's own. `tables`: statements
        that make what tools write."""


@contextlib.contextmanager
def _session(address: str) -> Iterator[psycopg.Connection[Any]]:
    """Past every store. Raises StoreError."""
    import psycopg

    from nano_vm.stores.postgres.connection import Address
    from nano_vm.stores.postgres.errors import translated

    where = Address(address)
    with translated(where.name), psycopg.connect(where.conninfo, autocommit=True) as con:
        yield con


def _within(address: str, schema: str) -> str:
    """The address, with `schema` as the whole search path."""
    from psycopg import conninfo

    given = conninfo.conninfo_to_dict(address)
    options = given.get("options") or os.environ.get("PGOPTIONS", "")
    return conninfo.make_conninfo(address, options=f"{options} -csearch_path={schema}".strip())
