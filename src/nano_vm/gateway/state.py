"""What the gateway itself has to remember: names of programs by tenant, tokens, pins of remote tools, its keys.

It lies beside the journal, in a file of its own that only its owner may read: a copy of the journal's database carries
no token, and nothing here is evidence.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nano_vm.errors import StoreError
from nano_vm.stores.rules import unpaired_surrogate

SUFFIX = ".gateway"
VERSION = 1
_WAIT_S = 10.0

_TABLES = (
    """CREATE TABLE names (
        tenant TEXT NOT NULL, name TEXT NOT NULL, hash TEXT NOT NULL,
        saved_at_ms INTEGER NOT NULL, saved_by TEXT NOT NULL, hidden INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (tenant, name)
    ) WITHOUT ROWID""",
    # Every program a tenant has ever brought: what it may reach by hash.
    "CREATE TABLE programs (tenant TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (tenant, hash)) WITHOUT ROWID",
    """CREATE TABLE tokens (
        id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, principal TEXT NOT NULL, tenant TEXT NOT NULL,
        roles TEXT NOT NULL, label TEXT NOT NULL, created_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL,
        revoked_at_ms INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID""",
    """CREATE TABLE pins (
        server TEXT NOT NULL, tool TEXT NOT NULL, digest TEXT NOT NULL, definition TEXT NOT NULL,
        offered TEXT, offered_definition TEXT, accepted_at_ms INTEGER NOT NULL, accepted_by TEXT NOT NULL,
        PRIMARY KEY (server, tool)
    ) WITHOUT ROWID""",
    "CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    # Runs that somebody takes step by step: nobody else is to drive them on.
    "CREATE TABLE held (run_id TEXT PRIMARY KEY) WITHOUT ROWID",
)


class GatewayState:
    """The file beside the database. Calls are short; any thread may make them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            new = not Path(path).exists()
            if new:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._con = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            self._con.execute("PRAGMA journal_mode = WAL")
            self._con.execute("PRAGMA synchronous = FULL")
            self._con.execute("PRAGMA secure_delete = ON")
            self._migrate()
            for name in (path, f"{path}-wal", f"{path}-shm"):
                if os.path.exists(name) and os.stat(name).st_mode & 0o077:
                    os.chmod(name, 0o600)
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error

    def _migrate(self) -> None:
        with self.write() as con:
            version = con.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise StoreError(
                    "STORE_NEWER",
                    f"`{self.path}` was made by a newer nano-vm",
                    help="use that version, or a newer one",
                )
            if version == 0:
                if con.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise StoreError(
                        "STORE_FOREIGN",
                        f"`{self.path}` is not a gateway file",
                        help="move it away; the gateway makes a new one",
                    )
                for statement in _TABLES:
                    con.execute(statement)
                con.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that other processes do not interleave with."""
        with self._lock:
            try:
                self._con.execute("BEGIN IMMEDIATE")
                try:
                    yield self._con
                except BaseException:
                    self._con.execute("ROLLBACK")
                    raise
                self._con.execute("COMMIT")
            except sqlite3.Error as error:
                raise _unusable(self.path, error) from error

    def read(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._con.execute(sql, values).fetchall()
            except UnicodeEncodeError:
                raise unpaired_surrogate() from None
            except sqlite3.Error as error:
                raise _unusable(self.path, error) from error

    def close(self) -> None:
        with self._lock:
            self._con.close()

    # --- programs -----------------------------------------------------------------------------------------

    def save_name(self, tenant: str, name: str, program_hash: str, by: str) -> None:
        with self.write() as con:
            con.execute("INSERT OR IGNORE INTO programs VALUES (?, ?)", (tenant, program_hash))
            con.execute(
                "INSERT INTO names VALUES (?1, ?2, ?3, ?4, ?5, 0) ON CONFLICT (tenant, name) "
                "DO UPDATE SET hash = ?3, saved_at_ms = ?4, saved_by = ?5, hidden = 0",
                (tenant, name, program_hash, _now_ms(), by),
            )

    def hide_name(self, tenant: str, name: str, program_hash: str, by: str) -> None:
        with self.write() as con:
            con.execute(
                "INSERT INTO names VALUES (?1, ?2, ?3, ?4, ?5, 1) ON CONFLICT (tenant, name) DO UPDATE SET hidden = 1",
                (tenant, name, program_hash, _now_ms(), by),
            )

    def name(self, tenant: str, name: str) -> tuple[str, bool] | None:
        """(hash, hidden) of a name of the tenant."""
        rows = self.read("SELECT hash, hidden FROM names WHERE tenant = ? AND name = ?", (tenant, name))
        return (rows[0][0], bool(rows[0][1])) if rows else None

    def names(self, tenant: str) -> list[tuple[str, str, int, str, bool]]:
        """(name, hash, saved_at_ms, saved_by, hidden), by name."""
        sql = "SELECT name, hash, saved_at_ms, saved_by, hidden FROM names WHERE tenant = ? ORDER BY name"
        return [(*row[:4], bool(row[4])) for row in self.read(sql, (tenant,))]

    def add_program(self, tenant: str, program_hash: str) -> None:
        if not self.has_program(tenant, program_hash):
            with self.write() as con:
                con.execute("INSERT OR IGNORE INTO programs VALUES (?, ?)", (tenant, program_hash))

    def has_program(self, tenant: str, program_hash: str) -> bool:
        return bool(self.read("SELECT 1 FROM programs WHERE tenant = ? AND hash = ?", (tenant, program_hash)))

    # --- pins of remote tools -----------------------------------------------------------------------------

    def pinned(self, server: str) -> dict[str, tuple[str, str]]:
        """Tool -> (digest, definition) as accepted."""
        rows = self.read("SELECT tool, digest, definition FROM pins WHERE server = ?", (server,))
        return {tool: (digest, definition) for tool, digest, definition in rows}

    def pin(self, server: str, tool: str, digest: str, definition: str) -> None:
        with self.write() as con:
            con.execute(
                "INSERT OR IGNORE INTO pins VALUES (?, ?, ?, ?, NULL, NULL, ?, 'first use')",
                (server, tool, digest, definition, _now_ms()),
            )

    def offer(self, server: str, tool: str, digest: str | None, definition: str) -> None:
        known = self.read("SELECT offered FROM pins WHERE server = ? AND tool = ?", (server, tool))
        if not known or known[0][0] == digest:
            return
        with self.write() as con:
            con.execute(
                "UPDATE pins SET offered = ?, offered_definition = ? WHERE server = ? AND tool = ?",
                (digest, None if digest is None else definition, server, tool),
            )

    def pins(self) -> list[dict[str, Any]]:
        """All pins, with what the server offers instead where that differs."""
        rows = self.read(
            "SELECT server, tool, digest, definition, offered, offered_definition, accepted_at_ms, accepted_by "
            "FROM pins ORDER BY server, tool"
        )
        names = ("server", "tool", "digest", "definition", "offered", "offered_definition")
        return [
            {**dict(zip(names, row, strict=False)), "accepted_at_ms": row[6], "accepted_by": row[7]}
            for row in rows
        ]

    def accept(self, server: str, tool: str | None, by: str) -> list[str]:
        """Take the offered definitions of a server (or of one tool) as the accepted ones: their names."""
        with self.write() as con:
            rows = con.execute(
                "SELECT tool FROM pins WHERE server = ? AND offered IS NOT NULL AND (?2 IS NULL OR tool = ?2) "
                "ORDER BY tool",
                (server, tool),
            ).fetchall()
            for (name,) in rows:
                con.execute(
                    "UPDATE pins SET digest = offered, definition = offered_definition, offered = NULL, "
                    "offered_definition = NULL, accepted_at_ms = ?, accepted_by = ? WHERE server = ? AND tool = ?",
                    (_now_ms(), by, server, name),
                )
        return [name for (name,) in rows]

    # --- held runs ----------------------------------------------------------------------------------------

    def hold(self, run_id: str) -> None:
        with self.write() as con:
            con.execute("INSERT OR IGNORE INTO held VALUES (?)", (run_id,))

    def let_go(self, run_id: str) -> None:
        if self.is_held(run_id):
            with self.write() as con:
                con.execute("DELETE FROM held WHERE run_id = ?", (run_id,))

    def is_held(self, run_id: str) -> bool:
        return bool(self.read("SELECT 1 FROM held WHERE run_id = ?", (run_id,)))

    def held(self) -> set[str]:
        return {row[0] for row in self.read("SELECT run_id FROM held")}

    # --- keys ---------------------------------------------------------------------------------------------

    def secret(self, name: str) -> bytes:
        """A key of 32 bytes, made the first time it is asked for; all gateways on the file share it."""
        rows = self.read("SELECT value FROM secrets WHERE name = ?", (name,))
        if not rows:
            with self.write() as con:
                con.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, secrets.token_bytes(32)))
            rows = self.read("SELECT value FROM secrets WHERE name = ?", (name,))
        value: bytes = rows[0][0]
        return value


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _unusable(path: str, error: Exception) -> StoreError:
    text = str(error).lower()
    code = "STORE_LOCKED" if "locked" in text or "busy" in text else "STORE_IO"
    if "not a database" in text or "malformed" in text:
        return StoreError(
            "STORE_FOREIGN",
            f"`{path}` is not a gateway file",
            help="move it away; the gateway makes a new one",
        )
    return StoreError(code, f"the gateway's file `{path}` cannot be used", help="see that it can be written")
