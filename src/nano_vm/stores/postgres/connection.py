"""A connection to PostgreSQL with our settings, which can be made anew when it was lost."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import psycopg
from psycopg import conninfo, pq

from nano_vm.errors import InputError, StoreError
from nano_vm.stores.postgres.errors import FAILURES, translate, translated

A = TypeVar("A")
T = TypeVar("T")

_PARAMETER = re.compile(r"\?([0-9]+)")
# Parameters of an address that say where the tables are, or are needed to get there.
_SHOWN = ("hostaddr", "service", "sslmode", "sslrootcert", "target_session_attrs")
_SEARCH_PATH = re.compile(r"(?:-c *|--)search_path=((?:[^ \\]|\\.)+)")
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.02, 0.5
_ATTEMPTS = 5  # of what another transaction stood in the way of, or a session was lost under
_CONFLICTS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
_ROLE = "current_setting('session_replication_role')"  # triggers do not fire in that of a replica
_SINCE = "extract(epoch FROM backend_start)::text"  # a process number may be given again
_SELF = f"pg_backend_pid(), (SELECT {_SINCE} FROM pg_stat_activity WHERE pid = pg_backend_pid())"
_END = (
    f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = $1 AND {_SINCE} = $2".encode()
)
# A peer that has vanished without a word is noticed after a minute or so, instead of hours.
_DEFAULTS = {
    "application_name": "nano-vm",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}


class NotCommitted(psycopg.OperationalError):
    """The session was lost, and with it what was to be committed."""


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
        self.database = _file_name(given)


def _file_name(given: dict[str, Any]) -> str:
    """What files that belong to the tables are named after: the database and, where the address names one, the search
    path. Two stores in one database share no vault: who is erased from one would be lost to the other."""
    name = str(given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "postgres")
    paths = _SEARCH_PATH.findall(str(given.get("options") or os.environ.get("PGOPTIONS", "")))
    if paths and paths[-1] != "public":
        name = f"{name}.{paths[-1]}"
    fit = _UNFIT.sub("_", name)
    return fit if fit == name else f"{fit}-{sha256(name.encode()).hexdigest()[:8]}"


def _without_secrets(given: dict[str, Any]) -> str:
    """An address of the same tables, made of what is known to be no secret. Commands that people are shown have it."""
    host, port = (str(given.get(name) or "") for name in ("host", "port"))
    asked = {name: given[name] for name in _SHOWN if given.get(name)}
    if "/" in host or "," in host + port:
        asked |= {name: value for name, value in (("host", host), ("port", port)) if value}
        host = port = ""
    found = _SEARCH_PATH.findall(str(given.get("options") or ""))
    if found:
        asked["options"] = f"-csearch_path={found[-1]}"
    user = f"{quote(given['user'], safe='')}@" if given.get("user") else ""
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    query = f"?{urlencode(asked, safe='/,', quote_via=quote)}" if asked else ""
    return f"postgresql://{user}{place}/{quote(given.get('dbname') or '', safe='')}{query}"


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
        self._undone = 0
        self.raw, self._session = self._connect()

    def _connect(self) -> tuple[psycopg.Connection[Any], tuple[int, str]]:
        """A session, and what tells it from every other."""
        raw = psycopg.connect(
            self._address.conninfo, autocommit=True, cursor_factory=psycopg.RawCursor, prepare_threshold=2
        )
        try:
            sets = ", ".join(
                f"set_config('{name}', '{value}', false)" for name, value in self._settings.items()
            )
            row = raw.execute(f"SELECT {sets}, {_ROLE}, {_SELF}".encode()).fetchone()
            assert row is not None
            if row[-3] == "replica":
                raise StoreError(
                    "STORE_UNGUARDED",
                    f"a session in `{self._address.name}` has the guards of our tables turned off",
                    help="session_replication_role is `replica`: take that out of the address (PGOPTIONS), or ALTER "
                    "ROLE, or DATABASE, … RESET session_replication_role",
                    facts={"path": self._address.name},
                )
        except BaseException:
            raw.close()
            raise
        return raw, (row[-2], row[-1])

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        return self.raw.execute(dollars(sql).encode(), parameters or None)

    @contextlib.contextmanager
    def pipeline(self) -> Iterator[None]:
        """What is executed inside goes to the server in one way. The block's own error counts, not the one that leaving
        a pipeline adds to it: the driver would write that one to its log, and alarm people about what is dealt with
        here."""
        failure: psycopg.Error | None = None
        try:
            with self.raw.pipeline():
                try:
                    yield
                except psycopg.Error as error:
                    failure = error
        except psycopg.Error as error:
            raise failure or error from None
        if failure is not None:
            raise failure

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
                # A pipeline that failed may have left the driver with statements that the server never prepared. It
                # forgets them all when it sees a ROLLBACK - of a text that it has not seen before.
                self._undone += 1
                self.raw.execute(f"ROLLBACK -- {self._undone}".encode())

    # --- when the session is lost ---------------------------------------------------------------------------
    def restore(self) -> None:
        """Make the session anew, if it is lost. The old one has ended then: nothing that it was asked for is still to
        come, and its locks are free. Raises psycopg.Error when it cannot be had in time."""
        if self.is_lost:
            _persist(self._replace, self._patience_ms)

    def _replace(self, deadline: float) -> None:
        raw, session = self._connect()
        try:
            # The server may not have noticed that the old one has nobody at its other end.
            pause = _PAUSE_FIRST_S / 10
            while raw.execute(_END, self._session).fetchone() != (0,):
                if time.monotonic() + pause > deadline:
                    raise psycopg.OperationalError("a session that was lost does not end")
                time.sleep(pause)
                pause = min(pause * 2, _PAUSE_MAX_S)
        except BaseException:
            raw.close()
            raise
        self.raw, self._session = raw, session

    def _repeated(self, work: Callable[[], T]) -> T:
        """`work()`, on a new session as often as one is lost under it. For what may be done twice."""
        for left in reversed(range(_ATTEMPTS)):
            self.restore()
            try:
                return work()
            except psycopg.Error:
                self.undo()
                if not left or not self.is_lost:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def again(self, work: Callable[[], T]) -> T:
        """`_repeated`. Raises: what `work` raises; our errors for those of the database."""
        try:
            return self._repeated(work)
        except FAILURES as error:
            self.undo()
            raise translate(error, self._address.name) from error

    # --- transactions ---------------------------------------------------------------------------------------
    def transact(
        self,
        opening: Callable[[], A],
        work: Callable[[A], T],
        closing: Callable[[T], None],
        landed: Callable[[], bool],
        undone: Callable[[], None] = lambda: None,
    ) -> T:
        """A transaction; again when another one stood in its way, or the session was lost before the commit. It is
        `work(opening())`, and then `closing` of what `work` gives.

        Args:
            opening: statements that are sent with the BEGIN, in one way to the server; their results are there for
                `work`.
            closing: statements that are sent with the COMMIT.
            landed: as for `commit`.
            undone: called when all this has been undone, or nobody knows.

        Raises: what the three raise, and psycopg.Error.
        """
        for left in reversed(range(_ATTEMPTS)):
            self.restore()
            try:
                with self.pipeline():
                    self.execute("BEGIN")
                    opened = opening()
                result = work(opened)
                self.commit(landed, functools.partial(closing, result))
                return result
            except BaseException as error:
                self.undo()
                undone()
                if not left or not (self.is_lost or isinstance(error, (NotCommitted, *_CONFLICTS))):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def commit(self, landed: Callable[[], bool], closing: Callable[[], None] = lambda: None) -> None:
        """Commit what is open.

        Args:
            landed: asks the database whether it was committed, after the answer did not come.
            closing: statements that are sent with the COMMIT.

        Raises:
            NotCommitted: it was not, and will not be.
            psycopg.Error: neither, but for a session that was lost and cannot be had again: nobody knows then.
        """
        try:
            with self.pipeline():
                closing()
                self.execute("COMMIT")
        except psycopg.Error as error:
            if not self.is_lost:
                raise
            if not self.ask(landed):
                raise NotCommitted("the connection was lost before the commit") from error

    def ask(self, landed: Callable[[], bool]) -> bool:
        """`landed()`, after the session was lost."""
        return self._repeated(landed)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(psycopg.Error):
            self.raw.close()


def session(address: Address, settings: dict[str, str], patience_ms: int) -> PostgresConnection:
    """A session. A server that cannot be reached may be about to start again, and is tried for `patience_ms`. Raises
    StoreError, and InputError USAGE."""
    with translated(address.name):
        return _persist(lambda _: PostgresConnection(address, settings, patience_ms), patience_ms)


def _persist(work: Callable[[float], T], patience_ms: int) -> T:
    """`work(deadline)`, again while the server cannot be reached. Raises psycopg.Error."""
    deadline = time.monotonic() + patience_ms / 1000
    pause = _PAUSE_FIRST_S
    while True:
        try:
            return work(deadline)
        except psycopg.OperationalError as error:
            if error.sqlstate is not None and not error.sqlstate.startswith("57P"):
                raise  # it answers, and refuses
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 2, _PAUSE_MAX_S)
