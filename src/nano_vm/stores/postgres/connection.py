"""A connection to PostgreSQL with our settings, which can be made anew when it was lost."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo, pq

from nano_vm.errors import InputError
from nano_vm.stores.postgres.errors import FAILURES, translate, translated

T = TypeVar("T")

_PARAMETER = re.compile(r"\?([0-9]+)")
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.02, 0.5
# A peer that has vanished without a word is noticed after a minute or so, instead of hours.
_DEFAULTS = {
    "application_name": "nano-vm",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}


class Address:
    """Where a database is: the connection string, and how it is named to people.

    Raises:
        InputError: USAGE when it is not a connection string.
    """

    def __init__(self, url: str) -> None:
        try:
            given: dict[str, Any] = conninfo.conninfo_to_dict(url)
            self.conninfo = conninfo.make_conninfo(**{**_DEFAULTS, **given})
        except psycopg.Error:
            # What is wrong with it may be its password.
            raise InputError(
                "USAGE",
                "the address of the database is not a connection string",
                help="postgresql://user@host:5432/database, and the password in PGPASSWORD or ~/.pgpass",
            ) from None
        self.name = _without_secrets(given)
        name = given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "postgres"
        self.database = _UNFIT.sub("_", str(name))  # fit to be part of a file's name


def _without_secrets(given: dict[str, Any]) -> str:
    host = str(given.get("host") or given.get("hostaddr") or "")
    user = f"{given['user']}@" if given.get("user") else ""
    port = f":{given['port']}" if given.get("port") else ""
    database = given.get("dbname") or ""
    if host.startswith("/"):
        return f"postgresql://{user}/{database}?host={host}"
    return f"postgresql://{user}{host}{port}/{database}"


@functools.lru_cache(512)
def dollars(sql: str) -> str:
    return _PARAMETER.sub(r"$\1", sql)


class PostgresConnection:
    """Statements on one session, in autocommit; whoever uses it sees to it that nobody else does at the same time.

    Args:
        settings: configuration of the session.
        patience_ms: how long a lost connection is tried to be made again.
    """

    def __init__(self, address: Address, settings: dict[str, str], patience_ms: int) -> None:
        self._address = address
        self._settings = settings
        self._patience_ms = patience_ms
        self._closed = False
        self.raw = self._connect()

    def _connect(self) -> psycopg.Connection[Any]:
        raw = psycopg.connect(
            self._address.conninfo, autocommit=True, cursor_factory=psycopg.RawCursor, prepare_threshold=2
        )
        try:
            sets = ", ".join(
                f"set_config('{name}', '{value}', false)" for name, value in self._settings.items()
            )
            raw.execute(f"SELECT {sets}".encode())
        except BaseException:
            raw.close()
            raise
        return raw

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        return self.raw.execute(dollars(sql).encode(), parameters or None)

    @property
    def is_lost(self) -> bool:
        """Whether the session is gone, though nobody closed it."""
        return not self._closed and self.raw.closed

    @property
    def in_transaction(self) -> bool:
        return self.raw.info.transaction_status is not pq.TransactionStatus.IDLE

    def undo(self) -> None:
        """Roll back what is open, if anything is."""
        with contextlib.suppress(psycopg.Error):
            if not self.raw.closed and self.in_transaction:
                self.raw.execute(b"ROLLBACK")

    def restore(self) -> None:
        """Make the session anew, if it is lost. Raises psycopg.Error when it cannot be had in time."""
        deadline = time.monotonic() + self._patience_ms / 1000
        pause = _PAUSE_FIRST_S
        while self.is_lost:
            try:
                self.raw = self._connect()
            except psycopg.OperationalError as error:
                if error.sqlstate is not None and not error.sqlstate.startswith("57P"):
                    raise  # it answers, and refuses
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, _PAUSE_MAX_S)

    def again(self, work: Callable[[], T]) -> T:
        """`work()`; once more on a new session when it was lost under it. For what may be done twice.

        Raises: what `work` raises; our errors for those of the database.
        """
        try:
            self.restore()
            try:
                return work()
            except psycopg.OperationalError:
                self.undo()
                if not self.is_lost:
                    raise
                self.restore()
                return work()
        except FAILURES as error:
            self.undo()
            raise translate(error, self._address.name) from error

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(psycopg.Error):
            self.raw.close()


def session(address: Address, settings: dict[str, str], patience_ms: int) -> PostgresConnection:
    """Raises StoreError, and InputError USAGE."""
    with translated(address.name):
        return PostgresConnection(address, settings, patience_ms)
