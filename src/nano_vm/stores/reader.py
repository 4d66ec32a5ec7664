"""Everything that a store reads from its database, but for the few queries that each database says in its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from nano_vm import canonical
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import DEFAULT_TENANT, Mail, RunQuery, RunRecord
from nano_vm.stores import rules
from nano_vm.stores.rows import (
    MAIL,
    RECORD,
    Connection,
    blob_finder,
    find_mail,
    find_record,
    run_number,
    to_mail,
    to_record,
)
from nano_vm.stores.segments import Segment, unpack

T = TypeVar("T")

# A position in the order of commits: the segment's row, and how many of its entries have been seen.
CURSOR_SHIFT = 16
ROW_MAX = 1 << 62


class Reader:
    """Queries, on a connection that writers do not wait for. Safe to call from any thread."""

    def query(self, work: Callable[[Connection], T]) -> T:
        """What `work` finds; it may be called again when the connection was lost. Raises StoreError."""
        raise NotImplementedError

    def holding(self, fragment: bytes) -> list[str]:
        """As the port says."""
        raise NotImplementedError

    def takeable(self, now_ms: int, tenant: str | None = None) -> list[tuple[str, str | None, int]]:
        """(run id, owner, lease_until_ms) of top-level runs that may be in need of an owner, oldest first."""
        raise NotImplementedError

    def owners_in_use(self) -> set[str]:
        """Who owns runs that have not ended."""
        raise NotImplementedError

    def decided(self, con: Connection) -> int:
        """No row of the journal with this number, or a smaller one, is still on its way to be committed."""
        return ROW_MAX

    def close(self) -> None:
        raise NotImplementedError

    # --- journal ------------------------------------------------------------------------------------------
    def read(self, run_id: str, start: int, limit: int | None, tenant: str | None = None) -> list[Entry]:
        return self.query(lambda con: self._read(con, run_id, start, limit, tenant))

    def _read(
        self, con: Connection, run_id: str, start: int, limit: int | None, tenant: str | None
    ) -> list[Entry]:
        start = max(start, 0)
        stop = ROW_MAX if limit is None else start + max(limit, 0)
        rows = con.execute(
            """SELECT s.seq, s.digests, s.facts, s.payloads FROM nvm_runs r LEFT JOIN nvm_segments s ON s.run = r.no
                AND s.seq < ?3 AND s.seq >= coalesce(
                    (SELECT max(seq) FROM nvm_segments WHERE run = r.no AND seq <= ?2), 0)
                WHERE r.run_id = ?1 AND coalesce(?4, r.tenant) = r.tenant ORDER BY s.seq""",
            (run_id, start, stop, tenant),
        ).fetchall()
        if not rows:
            raise rules.run_not_found(run_id)
        if rows[0][0] is None:
            return []
        entries: list[Entry] = []
        find = blob_finder(con)
        for row in rows:
            found = unpack(run_id, Segment(*row), find)
            if found[0].seq < start or found[-1].seq >= stop:
                found = [entry for entry in found if start <= entry.seq < stop]
            entries += found
        return entries

    def tail(self, cursor: int, limit: int, tenant: str | None = None) -> tuple[int, list[tuple[str, Entry]]]:
        return self.query(lambda con: self._tail(con, cursor, limit, tenant))

    def _tail(
        self, con: Connection, cursor: int, limit: int, tenant: str | None
    ) -> tuple[int, list[tuple[str, Entry]]]:
        n, seen = cursor >> CURSOR_SHIFT, cursor & ((1 << CURSOR_SHIFT) - 1)
        rows = con.execute(
            """SELECT s.n, r.run_id, s.seq, s.digests, s.facts, s.payloads FROM nvm_segments s
                JOIN nvm_runs r ON r.no = s.run WHERE s.n >= ?1 AND s.n <= ?4 AND coalesce(?3, r.tenant) = r.tenant
                ORDER BY s.n LIMIT ?2""",
            (n, limit + 1, tenant, self.decided(con)),
        )
        found: list[tuple[str, Entry]] = []
        find = blob_finder(con)
        for row_n, run_id, *columns in rows:
            entries = unpack(run_id, Segment(*columns), find)
            skip = seen if row_n == n else 0
            taken = entries[skip : skip + limit - len(found)]
            if taken:
                found += [(run_id, entry) for entry in taken]
                cursor = (row_n << CURSOR_SHIFT) | (skip + len(taken))
            if len(found) >= limit:
                break
        return cursor, found

    # --- records ------------------------------------------------------------------------------------------
    def record(self, run_id: str, tenant: str | None = None) -> RunRecord:
        return self.query(lambda con: find_record(con, run_id, tenant))

    def records(self, query: RunQuery) -> list[RunRecord]:
        wanted: list[tuple[str, object]] = [
            (f"{column} =", getattr(query, column))
            for column in ("tenant", "status", "program_name")
            if getattr(query, column) is not None
        ]
        if query.parent:
            wanted.append(("parent =", query.parent))

        def work(con: Connection) -> list[tuple[Any, ...]]:
            last = [] if query.after is None else [("no <", run_number(con, query.after))]
            filters = [*wanted, *last]
            conditions = [f"{what} ?{number}" for number, (what, _) in enumerate(filters, 1)]
            if query.parent == "":
                conditions.append("parent IS NULL")
            where = "WHERE " + " AND ".join(conditions) if conditions else ""
            sql = f"SELECT {RECORD} FROM nvm_runs {where} ORDER BY no DESC LIMIT ?{len(filters) + 1}"
            rows: list[tuple[Any, ...]]
            rows = con.execute(sql, (*(value for _, value in filters), max(query.limit, 0))).fetchall()
            return rows

        return [to_record(row) for row in self.query(work)]

    def find_key(self, tenant: str, program_name: str, key: str) -> RunRecord | None:
        sql = f"SELECT {RECORD} FROM nvm_runs WHERE tenant = ?1 AND program_name = ?2 AND key = ?3"
        row = self.query(lambda con: con.execute(sql, (tenant, program_name, key)).fetchone())
        return None if row is None else to_record(row)

    # --- programs -----------------------------------------------------------------------------------------
    def program(self, program_hash: str) -> bytes:
        sql = "SELECT body FROM nvm_programs WHERE hash = ?1"
        row = self.query(lambda con: con.execute(sql, (program_hash,)).fetchone())
        if row is None:
            raise rules.program_not_found(program_hash)
        body: bytes = row[0]
        if canonical.digest(body) != program_hash:
            raise rules.damaged(
                f"the program `{program_hash}` is not what its hash says", program=program_hash
            )
        return body

    def program_named(self, name: str, tenant: str = DEFAULT_TENANT) -> str | None:
        sql, values = "SELECT hash FROM nvm_names WHERE name = ?1", (name,)
        if tenant != DEFAULT_TENANT:
            sql, values = "SELECT hash FROM nvm_tenant_names WHERE name = ?1 AND tenant = ?2", (name, tenant)  # type: ignore[assignment]
        row = self.query(lambda con: con.execute(sql, values).fetchone())
        return None if row is None else row[0]

    def programs(self, tenant: str | None = None) -> list[tuple[str, str, int]]:
        if tenant is not None:
            names = "SELECT 'default' AS tenant, name, hash FROM nvm_names UNION ALL SELECT * FROM nvm_tenant_names"
            sql = f"""SELECT n.name, n.hash, p.stored_at_ms FROM ({names}) n JOIN nvm_programs p ON p.hash = n.hash
                WHERE n.tenant = ?1 ORDER BY n.name"""
            return self.query(lambda con: con.execute(sql, (tenant,)).fetchall())
        sql = "SELECT name, hash, stored_at_ms FROM nvm_programs ORDER BY name, n"
        return self.query(lambda con: con.execute(sql).fetchall())

    # --- mail ---------------------------------------------------------------------------------------------
    def mail(self, run_id: str) -> list[Mail]:
        sql = f"""SELECT {MAIL} FROM nvm_runs r LEFT JOIN nvm_mail m ON m.run = r.no AND m.answer IS NULL
            WHERE r.run_id = ?1 ORDER BY m.n"""
        rows = self.query(lambda con: con.execute(sql, (run_id,)).fetchall())
        if not rows:
            raise rules.run_not_found(run_id)
        return [to_mail(run_id, row) for row in rows if row[0] is not None]

    def answered(self, run_id: str, mail_id: str) -> bytes | None:
        mail = self.query(lambda con: find_mail(con, run_id, run_number(con, run_id), mail_id))
        return None if mail is None else mail.answer
