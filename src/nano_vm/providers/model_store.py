"""What models leave behind, in a SQLite file of its own: the records of providers, and cached answers.

It is not part of the evidence and may be deleted at any time: then breakers are closed and the cache is empty. The file
is made and brought up to date on opening, by numbered migrations. Many processes may share it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nano_vm.errors import StoreError
from nano_vm.providers.health import Health
from nano_vm.runtime.arguments import check_path

APPLICATION_ID = 0x6E564D6D  # "nVMm"
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE providers (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE answers (
            key TEXT PRIMARY KEY,
            body BLOB NOT NULL,
            made_at_ms INTEGER NOT NULL,
            used_at_ms INTEGER NOT NULL
        )""",
        "CREATE INDEX answers_used ON answers (used_at_ms)",
    ),
)
CACHE_BYTES_MAX = 256 * 1024 * 1024
BUSY_TIMEOUT_MS = 2_000
_SWEEP_EVERY = 256  # writes between two looks at the size
# Python raises the second when SQLite quotes damaged text in the first.
_FAILURES = (sqlite3.Error, UnicodeDecodeError)
_T = TypeVar("_T")
_decode_health = msgspec.json.Decoder(Health).decode


class ModelStore:
    """A file for a pool's `memory` and a cache's answers.

    Args:
        path: the file; made when it is missing.
        cache_bytes_max: what the cached answers may take; those that were not used longest go first.
        now_ms: the time, for tests.

    Once open, it fails nobody: where the file cannot be read or written any more, records are kept in memory and the
    cache is empty.

    Raises:
        StoreError: STORE_FOREIGN, STORE_NEWER, STORE_IO when the file cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cache_bytes_max: int = CACHE_BYTES_MAX,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        check_path("path", path)
        self._path = Path(path)
        self._cache_bytes_max = cache_bytes_max
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._lock = threading.Lock()
        self._known: dict[str, Health] = {}  # as of the last time that the file could be read
        self._writes = 0
        self._con = _open(self._path)

    def __enter__(self) -> ModelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._path

    def close(self) -> None:
        with self._lock:
            self._con.close()

    # --- records of providers (`health.Memory`) ---------------------------------------------------------------

    def load(self) -> dict[str, Health]:
        """The records by provider."""
        rows = self._try(
            lambda con: con.execute("SELECT name, body FROM providers WHERE typeof(body) = 'text'").fetchall()
        )
        if rows is not None:
            self._known = {name: _health(body) for name, body in rows}
        return dict(self._known)

    def update(self, provider: str, change: Callable[[Health], Health]) -> Health:
        """Change a record, in one transaction."""

        def work(con: sqlite3.Connection) -> Health:
            con.execute("BEGIN IMMEDIATE")
            try:
                row = con.execute(
                    "SELECT body FROM providers WHERE name = ? AND typeof(body) = 'text'", (provider,)
                ).fetchone()
                changed = change(Health() if row is None else _health(row[0]))
                body = msgspec.json.encode(changed).decode()
                con.execute(
                    "INSERT INTO providers VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?2",
                    (provider, body),
                )
                con.execute("COMMIT")
                return changed
            except BaseException:
                if con.in_transaction:
                    con.execute("ROLLBACK")
                raise

        changed = self._try(work)
        if changed is None:
            changed = change(self._known.get(provider, Health()))
        self._known[provider] = changed
        return changed

    def forget_providers(self) -> None:
        """Forget what is known of providers: all circuits are closed."""
        self._try(lambda con: con.execute("DELETE FROM providers"))
        self._known.clear()

    # --- cached answers (`cache.Answers`) ---------------------------------------------------------------------

    async def get(self, key: str, made_after_ms: int) -> bytes | None:
        """The answer under `key`, if it was made later than that."""

        def work(con: sqlite3.Connection) -> Any:
            row = con.execute(
                """SELECT body, used_at_ms FROM answers WHERE key = ? AND made_at_ms > ?
                    AND typeof(body) = 'blob' AND typeof(used_at_ms) = 'integer'""",
                (key, made_after_ms),
            ).fetchone()
            now = self._now_ms()
            if row is not None and now - row[1] > 60_000:  # to the minute is enough, and saves a write
                con.execute("UPDATE answers SET used_at_ms = ? WHERE key = ?", (now, key))
            return row

        row = self._try(work)
        return None if row is None else bytes(row[0])

    async def put(self, key: str, body: bytes) -> None:
        """Keep an answer; the newest one stands."""
        now = self._now_ms()
        self._try(
            lambda con: con.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, body, now, now)
            )
        )
        self._writes += 1
        if self._writes % _SWEEP_EVERY == 1:
            self._try(self._sweep)

    async def drop(self, key: str) -> None:
        """Forget an answer."""
        self._try(lambda con: con.execute("DELETE FROM answers WHERE key = ?", (key,)))

    def clear(self) -> None:
        """Forget all answers; nothing of them is left in the file."""
        self._try(lambda con: con.execute("DELETE FROM answers"))
        self._try(lambda con: con.execute("PRAGMA wal_checkpoint(TRUNCATE)"))

    def size(self) -> tuple[int, int]:
        """How many answers there are, and their bytes."""
        row = self._try(
            lambda con: con.execute("SELECT count(*), total(length(body)) FROM answers").fetchone()
        )
        return (0, 0) if row is None else (row[0], int(row[1]))

    def _sweep(self, con: sqlite3.Connection) -> None:
        total = con.execute("SELECT total(length(body)) FROM answers").fetchone()[0]
        while total > self._cache_bytes_max:
            gone = con.execute(
                "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY used_at_ms, key LIMIT 64)"
                " RETURNING length(body)"
            ).fetchall()
            total -= sum(row[0] for row in gone)
            if not gone:
                return

    def _try(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        try:
            with self._lock:
                return work(self._con)
        except _FAILURES:
            return None


def _health(body: str) -> Health:
    try:
        return _decode_health(body)
    except msgspec.DecodeError:
        return Health()  # another version's, or damaged: it is learned again


def _open(path: Path) -> sqlite3.Connection:
    try:
        con = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _unusable(path, "STORE_IO", "cannot be opened") from error
    try:
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "synchronous=NORMAL",
            "secure_delete=ON",
            "trusted_schema=OFF",
        ):
            con.execute("PRAGMA " + pragma)
        application = con.execute("PRAGMA application_id").fetchone()[0]
        empty = not con.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != APPLICATION_ID and not (empty and application == 0):
            raise _unusable(path, "STORE_FOREIGN", "is not a file of model answers")
        con.execute("PRAGMA journal_mode=WAL")
        _migrate(con, path)
        return con
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        con.close()
        foreign = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB
        named = getattr(error, "sqlite_errorname", "its schema is damaged")
        code, what = (
            ("STORE_FOREIGN", "is not a database") if foreign else ("STORE_IO", f"cannot be used: {named}")
        )
        raise _unusable(path, code, what) from error
    except BaseException:
        con.close()
        raise


def _migrate(con: sqlite3.Connection, path: Path) -> None:
    con.execute("BEGIN IMMEDIATE")
    try:
        version: int = con.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise _unusable(path, "STORE_NEWER", "was made by a newer nano-vm")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                con.execute(statement)
        if version < len(MIGRATIONS):
            con.execute(f"PRAGMA application_id={APPLICATION_ID}")
            con.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
        con.execute("COMMIT")
    except BaseException:
        if con.in_transaction:
            con.execute("ROLLBACK")
        raise


def _unusable(path: Path, code: str, what: str) -> StoreError:
    return StoreError(
        code,
        f"`{path}` {what}",
        help="it holds providers' records and cached answers only: name another file, or delete it",
        facts={"path": str(path)},
    )
