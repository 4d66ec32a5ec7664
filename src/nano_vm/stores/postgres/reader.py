"""What a PostgreSQL store reads, on a session of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from nano_vm.stores.postgres.connection import PostgresConnection
from nano_vm.stores.postgres.locks import DECIDED, LAST, ON_ITS_WAY, class_of
from nano_vm.stores.reader import Reader
from nano_vm.stores.rows import Connection

T = TypeVar("T")


class PostgresReader(Reader):
    def __init__(self, con: PostgresConnection, store: int) -> None:
        self._con = con
        self._mark = class_of(ON_ITS_WAY, store)
        self._lock = threading.Lock()

    def query(self, work: Callable[[Connection], T]) -> T:
        with self._lock:
            return self._con.again(lambda: work(self._con))

    def close(self) -> None:
        with self._lock:
            self._con.close()

    def holding(self, fragment: bytes) -> list[str]:
        sql = """SELECT r.run_id FROM nvm_runs r WHERE EXISTS
            (SELECT FROM nvm_segments s WHERE s.run = r.no AND position(?1::bytea IN s.facts) > 0) ORDER BY r.no"""
        return self.query(lambda con: [run_id for (run_id,) in con.execute(sql, (fragment,))])

    def takeable(self, now_ms: int, tenant: str | None = None) -> list[tuple[str, str | None, int]]:
        sql = """SELECT run_id, owner, lease_until_ms FROM nvm_runs WHERE parent IS NULL AND no IN (
            SELECT no FROM nvm_runs WHERE status = 'RUNNING'
            UNION SELECT no FROM nvm_runs WHERE status = 'SUSPENDED' AND owner IS NOT NULL
            UNION SELECT no FROM nvm_runs
                WHERE status = 'SUSPENDED' AND wake_at_ms > 0 AND wake_at_ms <= ?1
            UNION SELECT m.run FROM nvm_mail m JOIN nvm_runs r ON r.no = m.run
                WHERE m.answer IS NULL AND r.status = 'SUSPENDED'
            ) AND coalesce(?2, tenant) = tenant ORDER BY no"""
        return self.query(lambda con: con.execute(sql, (now_ms, tenant)).fetchall())

    def owners_in_use(self) -> set[str]:
        sql = """SELECT owner FROM nvm_runs WHERE status = 'RUNNING' AND owner IS NOT NULL
            UNION SELECT owner FROM nvm_runs WHERE status = 'SUSPENDED' AND owner IS NOT NULL"""
        return {row[0] for row in self.query(lambda con: con.execute(sql).fetchall())}

    def decided(self, con: Connection) -> int:
        last = con.execute(LAST).fetchone()[0]
        found: int = con.execute(DECIDED, (self._mark, last)).fetchone()[0]
        return found

    def commits_of_others(self, owner: str) -> tuple[int, int, int]:
        """Changes whenever another store has committed something. (The epoch is that of the youngest: a store that
        comes may have committed as much as one that went.)"""
        sql = """SELECT coalesce(sum(commits), 0)::bigint, count(*), coalesce(max(epoch), 0) FROM nvm_writers
            WHERE owner <> ?1"""

        def work(con: Connection) -> tuple[int, int, int]:
            commits, stores, epoch = con.execute(sql, (owner,)).fetchone()
            return commits, stores, epoch

        return self.query(work)
