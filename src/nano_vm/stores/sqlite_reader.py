"""Everything a SQLite store reads, on a connection of its own: readers never wait for writers.

Rows are checked as they are read: a record or message against its seal, a program and a blob against its
hash. What does not match is STORE_DAMAGED. Entries are handed out as they are, for `verify_entry` to judge.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nano_vm import canonical
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import DEFAULT_TENANT, Mail, RunQuery, RunRecord
from nano_vm.stores import rules
from nano_vm.stores.segments import Segment, unpack
from nano_vm.stores.sqlite_errors import FAILURES, translate

T = TypeVar("T")

_RECORD = """run_id, tenant, program_hash, program_name, key, inputs_digest, parent, status, outcome, waits,
    wake_at_ms, created_at_ms, updated_at_ms, length, head, owner, fence, lease_until_ms, seal"""
_MAIL = "mail_id, kind, body, posted_at_ms, answer, seal"
# A position in the order of commits: the segment's row, and how many of its entries have been seen.
_CURSOR_SHIFT = 16

_decode_waits = msgspec.json.Decoder(list[dict[str, Any]]).decode


class Reader:
    """Queries. Safe to call from any thread."""

    def __init__(self, con: sqlite3.Connection, path: Path) -> None:
        self._con = con
        self._path = path
        self._lock = threading.Lock()

    def query(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._lock:
                return work(self._con)
        except FAILURES as error:
            raise translate(error, self._path) from error

    def close(self) -> None:
        with self._lock:
            self._con.close()

    # --- journal ------------------------------------------------------------------------------------------
    def read(self, run_id: str, start: int, limit: int | None, tenant: str | None = None) -> list[Entry]:
        return self.query(lambda con: self._read(con, run_id, start, limit, tenant))

    def _read(
        self, con: sqlite3.Connection, run_id: str, start: int, limit: int | None, tenant: str | None
    ) -> list[Entry]:
        no = run_number(con, run_id, tenant)
        start = max(start, 0)
        stop = 1 << 62 if limit is None else start + max(limit, 0)
        rows = con.execute(
            """SELECT seq, digests, facts, payloads FROM nvm_segments WHERE run = ?1 AND seq < ?3
                AND seq >= coalesce((SELECT max(seq) FROM nvm_segments WHERE run = ?1 AND seq <= ?2), 0)
                ORDER BY seq""",
            (no, start, stop),
        )
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
        self, con: sqlite3.Connection, cursor: int, limit: int, tenant: str | None
    ) -> tuple[int, list[tuple[str, Entry]]]:
        n, seen = cursor >> _CURSOR_SHIFT, cursor & ((1 << _CURSOR_SHIFT) - 1)
        rows = con.execute(
            """SELECT s.n, r.run_id, s.seq, s.digests, s.facts, s.payloads FROM nvm_segments s
                JOIN nvm_runs r ON r.no = s.run WHERE s.n >= ?1 AND (?3 IS NULL OR r.tenant = ?3)
                ORDER BY s.n LIMIT ?2""",
            (n, limit + 1, tenant),
        )
        found: list[tuple[str, Entry]] = []
        find = blob_finder(con)
        for row_n, run_id, *columns in rows:
            entries = unpack(run_id, Segment(*columns), find)
            skip = seen if row_n == n else 0
            taken = entries[skip : skip + limit - len(found)]
            if taken:
                found += [(run_id, entry) for entry in taken]
                cursor = (row_n << _CURSOR_SHIFT) | (skip + len(taken))
            if len(found) >= limit:
                break
        return cursor, found

    def holding(self, fragment: bytes) -> list[str]:
        sql = """SELECT r.run_id FROM nvm_runs r WHERE EXISTS
            (SELECT 1 FROM nvm_segments s WHERE s.run = r.no AND instr(s.facts, ?) > 0) ORDER BY r.no"""
        return self.query(lambda con: [run_id for (run_id,) in con.execute(sql, (fragment,))])

    # --- records ------------------------------------------------------------------------------------------
    def record(self, run_id: str, tenant: str | None = None) -> RunRecord:
        return self.query(lambda con: find_record(con, run_id, tenant))

    def records(self, query: RunQuery) -> list[RunRecord]:
        conditions, values = ["1"], list[object]()
        for column in ("tenant", "status", "program_name"):
            value = getattr(query, column)
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        if query.parent == "":
            conditions.append("parent IS NULL")
        elif query.parent is not None:
            conditions.append("parent = ?")
            values.append(query.parent)

        def work(con: sqlite3.Connection) -> list[tuple[Any, ...]]:
            if query.after is not None:
                conditions.append("no < ?")
                values.append(run_number(con, query.after))
            where = " AND ".join(conditions)
            sql = f"SELECT {_RECORD} FROM nvm_runs WHERE {where} ORDER BY no DESC LIMIT ?"
            return con.execute(sql, (*values, max(query.limit, 0))).fetchall()

        return [to_record(row) for row in self.query(work)]

    def find_key(self, tenant: str, program_name: str, key: str) -> RunRecord | None:
        sql = f"SELECT {_RECORD} FROM nvm_runs WHERE tenant = ? AND program_name = ? AND key = ?"
        row = self.query(lambda con: con.execute(sql, (tenant, program_name, key)).fetchone())
        return None if row is None else to_record(row)

    def takeable(self, now_ms: int, tenant: str | None = None) -> list[tuple[str, str | None, int]]:
        """(run id, owner, lease_until_ms) of top-level runs that may be in need of an owner, oldest first."""
        # Left alone SQLite looks at everything that is suspended, which may be most of what is stored.
        sql = """SELECT run_id, owner, lease_until_ms FROM nvm_runs WHERE parent IS NULL AND no IN (
            SELECT no FROM nvm_runs WHERE status = 'RUNNING'
            UNION SELECT no FROM nvm_runs INDEXED BY nvm_runs_held WHERE status = 'SUSPENDED' AND owner IS NOT NULL
            UNION SELECT no FROM nvm_runs INDEXED BY nvm_runs_timer
                WHERE status = 'SUSPENDED' AND wake_at_ms > 0 AND wake_at_ms <= ?1
            UNION SELECT m.run FROM nvm_mail m INDEXED BY nvm_mail_open CROSS JOIN nvm_runs r ON r.no = m.run
                WHERE m.answer IS NULL AND r.status = 'SUSPENDED'
            ) AND (?2 IS NULL OR tenant = ?2) ORDER BY no"""
        return self.query(lambda con: con.execute(sql, (now_ms, tenant)).fetchall())

    # --- programs -----------------------------------------------------------------------------------------
    def program(self, program_hash: str) -> bytes:
        sql = "SELECT body FROM nvm_programs WHERE hash = ?"
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
        sql, values = "SELECT hash FROM nvm_names WHERE name = ?", (name,)
        if tenant != DEFAULT_TENANT:
            sql, values = "SELECT hash FROM nvm_tenant_names WHERE name = ? AND tenant = ?", (name, tenant)  # type: ignore[assignment]
        row = self.query(lambda con: con.execute(sql, values).fetchone())
        return None if row is None else row[0]

    def programs(self, tenant: str | None = None) -> list[tuple[str, str, int]]:
        if tenant is not None:
            names = "SELECT 'default' AS tenant, name, hash FROM nvm_names UNION ALL SELECT * FROM nvm_tenant_names"
            sql = f"""SELECT n.name, n.hash, p.stored_at_ms FROM ({names}) n JOIN nvm_programs p ON p.hash = n.hash
                WHERE n.tenant = ? ORDER BY n.name"""
            return self.query(lambda con: con.execute(sql, (tenant,)).fetchall())
        sql = "SELECT name, hash, stored_at_ms FROM nvm_programs ORDER BY name, n"
        return self.query(lambda con: con.execute(sql).fetchall())

    # --- mail ---------------------------------------------------------------------------------------------
    def mail(self, run_id: str) -> list[Mail]:
        sql = f"SELECT {_MAIL} FROM nvm_mail WHERE run = ? AND answer IS NULL ORDER BY n"
        rows = self.query(lambda con: con.execute(sql, (run_number(con, run_id),)).fetchall())
        return [to_mail(run_id, row) for row in rows]

    def answered(self, run_id: str, mail_id: str) -> bytes | None:
        mail = self.query(lambda con: find_mail(con, run_id, run_number(con, run_id), mail_id))
        return None if mail is None else mail.answer


def run_number(con: sqlite3.Connection, run_id: str, tenant: str | None = None) -> int:
    sql = "SELECT no FROM nvm_runs WHERE run_id = ?1 AND (?2 IS NULL OR tenant = ?2)"
    row = con.execute(sql, (run_id, tenant)).fetchone()
    if row is None:
        raise rules.run_not_found(run_id)
    no: int = row[0]
    return no


def change_owner(
    con: sqlite3.Connection, record: RunRecord, owner: str | None, fence: int, until_ms: int
) -> None:
    """Write the ownership of a run, in the transaction in which `record` was read."""
    seal = rules.seal_record(
        rules.seal_origin(record), record, rules.encode_waits(record.waits), owner, fence
    )
    con.execute(
        "UPDATE nvm_runs SET owner = ?, fence = ?, lease_until_ms = ?, seal = ? WHERE run_id = ?",
        (owner, fence, until_ms, seal, record.run_id),
    )


def find_record(con: sqlite3.Connection, run_id: str, tenant: str | None = None) -> RunRecord:
    sql = f"SELECT {_RECORD} FROM nvm_runs WHERE run_id = ?1 AND (?2 IS NULL OR tenant = ?2)"
    row = con.execute(sql, (run_id, tenant)).fetchone()
    if row is None:
        raise rules.run_not_found(run_id)
    return to_record(row)


def find_mail(con: sqlite3.Connection, run_id: str, no: int, mail_id: str) -> Mail | None:
    row = con.execute(f"SELECT {_MAIL} FROM nvm_mail WHERE run = ? AND mail_id = ?", (no, mail_id)).fetchone()
    return None if row is None else to_mail(run_id, row)


def to_mail(run_id: str, row: Iterable[Any]) -> Mail:
    mail_id, kind, body, posted_at_ms, answer, seal = row
    mail = Mail(mail_id=mail_id, kind=kind, body=body, posted_at_ms=posted_at_ms, answer=answer)
    sound = isinstance(body, bytes) and isinstance(answer, bytes | None)
    if not sound or rules.seal_mail(run_id, mail) != seal:
        raise rules.damaged(f"a message of run `{run_id}` was changed", run_id=run_id, mail_id=mail_id)
    return mail


def to_record(row: tuple[Any, ...]) -> RunRecord:
    record, sound = read_record(row)
    if not sound:
        raise rules.damaged(f"the record of run `{record.run_id}` was changed", run_id=record.run_id)
    return record


def read_record(row: tuple[Any, ...]) -> tuple[RunRecord, bool]:
    """A record, and whether it is the one that was sealed."""
    (
        run_id,
        tenant,
        program_hash,
        program_name,
        key,
        inputs_digest,
        parent,
        status,
        outcome,
        waits,
        wake_at_ms,
        created_at_ms,
        updated_at_ms,
        length,
        head,
        owner,
        fence,
        lease_until_ms,
        seal,
    ) = row
    try:
        waiting = _decode_waits(waits)
    except (msgspec.DecodeError, TypeError, UnicodeError):
        waiting = []
    record = RunRecord(
        run_id=run_id,
        tenant=tenant,
        program_hash=program_hash,
        program_name=program_name,
        key=key,
        inputs_digest=inputs_digest,
        parent=parent,
        status=status,
        outcome=outcome,
        waits=waiting,
        wake_at_ms=wake_at_ms,
        created_at_ms=created_at_ms,
        updated_at_ms=updated_at_ms,
        length=length,
        head=head,
        owner=owner,
        fence=fence,
        lease_until_ms=lease_until_ms,
    )
    encoded = waits.encode() if isinstance(waits, str) else b""
    return record, rules.seal_record(rules.seal_origin(record), record, encoded, owner, fence) == seal


def blob_finder(con: sqlite3.Connection) -> Callable[[bytes], bytes | None]:
    """Finds payloads by their SHA-256, and none that is not what its digest says."""

    def find(digest: bytes) -> bytes | None:
        row = con.execute("SELECT body FROM nvm_blobs WHERE digest = ?", (digest,)).fetchone()
        if row is None or sha256(row[0]).digest() != digest:
            return None
        body: bytes = row[0]
        return body

    return find
