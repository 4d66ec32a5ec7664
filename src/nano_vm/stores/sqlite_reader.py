"""What a SQLite store reads, on a connection of its own: readers never wait for writers."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nano_vm.errors import InputError
from nano_vm.stores.reader import Reader
from nano_vm.stores.rows import Connection
from nano_vm.stores.sqlite_errors import FAILURES, translate

T = TypeVar("T")


class SqliteReader(Reader):
    def __init__(self, con: sqlite3.Connection, path: Path) -> None:
        self._con = con
        self._path = path
        self._lock = threading.Lock()

    def query(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._lock:
                return work(self._con)
        except FAILURES as error:
            raise translate(error, self._path) from error
        except UnicodeEncodeError as error:  # nothing has such a name
            raise InputError(
                "USAGE", "a name or a key is no Unicode text", help="leave out lone surrogates"
            ) from error

    def close(self) -> None:
        with self._lock:
            self._con.close()

    def holding(self, fragment: bytes) -> list[str]:
        sql = """SELECT r.run_id FROM nvm_runs r WHERE EXISTS
            (SELECT 1 FROM nvm_segments s WHERE s.run = r.no AND instr(s.facts, ?) > 0) ORDER BY r.no"""
        return self.query(lambda con: [run_id for (run_id,) in con.execute(sql, (fragment,))])

    def takeable(self, now_ms: int, tenant: str | None = None) -> list[tuple[str, str | None, int]]:
        # Left alone SQLite looks at everything that is suspended, which may be most of what is stored.
        sql = """SELECT run_id, owner, lease_until_ms FROM nvm_runs WHERE parent IS NULL AND no IN (
            SELECT no FROM nvm_runs WHERE status = 'RUNNING'
            UNION SELECT no FROM nvm_runs INDEXED BY nvm_runs_held WHERE status = 'SUSPENDED' AND owner IS NOT NULL
            UNION SELECT no FROM nvm_runs INDEXED BY nvm_runs_timer
                WHERE status = 'SUSPENDED' AND wake_at_ms > 0 AND wake_at_ms <= ?1
            UNION SELECT m.run FROM nvm_mail m INDEXED BY nvm_mail_open CROSS JOIN nvm_runs r ON r.no = m.run
                WHERE m.answer IS NULL AND r.status = 'SUSPENDED'
            ) AND coalesce(?2, tenant) = tenant ORDER BY no"""
        return self.query(lambda con: con.execute(sql, (now_ms, tenant)).fetchall())

    def owners_in_use(self) -> set[str]:
        # One index each: runs that wait with nobody owning them may be many.
        sql = """SELECT owner FROM nvm_runs WHERE status = 'RUNNING' AND owner IS NOT NULL
            UNION SELECT owner FROM nvm_runs INDEXED BY nvm_runs_held
            WHERE status = 'SUSPENDED' AND owner IS NOT NULL"""
        return {row[0] for row in self.query(lambda con: con.execute(sql).fetchall())}
