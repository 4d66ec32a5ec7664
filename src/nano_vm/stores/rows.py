"""What the rows of a database mean, whatever the database: records, messages, blobs.

Rows are checked as they are read: a record or message against its seal, a blob against its hash. What does not match is
STORE_DAMAGED.

SQL that several databases share numbers its parameters (`?1`, `?2`): each connection turns these into what its
database takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Protocol

import msgspec

from nano_vm.journal.port import Mail, RunRecord
from nano_vm.stores import rules

RECORD = """run_id, tenant, program_hash, program_name, key, inputs_digest, parent, status, outcome, waits,
    wake_at_ms, created_at_ms, updated_at_ms, length, head, owner, fence, lease_until_ms, seal"""
MAIL = "m.mail_id, m.kind, m.body, m.posted_at_ms, m.answer, m.seal"
RUN_COLUMNS = """run_id, tenant, program_hash, program_name, key, inputs_digest, parent,
    status, outcome, waits, wake_at_ms, created_at_ms, updated_at_ms, length, head, owner, fence,
    lease_until_ms, origin, seal"""

_decode_waits = msgspec.json.Decoder(list[dict[str, Any]]).decode


class Connection(Protocol):
    """As much of a database connection as shared queries need. What `execute` gives can be iterated, and has
    `fetchone`, `fetchall` and `rowcount`."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any: ...


def run_number(con: Connection, run_id: str, tenant: str | None = None) -> int:
    sql = "SELECT no FROM nvm_runs WHERE run_id = ?1 AND coalesce(?2, tenant) = tenant"
    row = con.execute(sql, (run_id, tenant)).fetchone()
    if row is None:
        raise rules.run_not_found(run_id)
    no: int = row[0]
    return no


def find_record(con: Connection, run_id: str, tenant: str | None = None, *, lock: str = "") -> RunRecord:
    """A run's record; `lock` ends the query."""
    sql = f"SELECT {RECORD} FROM nvm_runs WHERE run_id = ?1 AND coalesce(?2, tenant) = tenant{lock}"
    row = con.execute(sql, (run_id, tenant)).fetchone()
    if row is None:
        raise rules.run_not_found(run_id)
    return to_record(row)


_CHANGE_OWNER = "UPDATE nvm_runs SET owner = ?1, fence = ?2, lease_until_ms = ?3, seal = ?4 WHERE run_id = ?5"
# Of a run that nobody has had since its record was read: a record changes with its owner, and by its owner, alone.
TAKE_FREE = _CHANGE_OWNER + " AND owner IS NULL AND fence = ?2 - 1"


def change_owner(con: Connection, record: RunRecord, owner: str | None, fence: int, until_ms: int) -> None:
    """Write the ownership of a run, in the transaction in which `record` was read."""
    con.execute(_CHANGE_OWNER, ownership(record, owner, fence, until_ms))


def ownership(record: RunRecord, owner: str | None, fence: int, until_ms: int) -> tuple[object, ...]:
    """The values of `TAKE_FREE`."""
    seal = rules.seal_record(
        rules.seal_origin(record), record, rules.encode_waits(record.waits), owner, fence
    )
    return owner, fence, until_ms, seal, record.run_id


def find_mail(con: Connection, run_id: str, no: int, mail_id: str) -> Mail | None:
    sql = f"SELECT {MAIL} FROM nvm_mail m WHERE m.run = ?1 AND m.mail_id = ?2"
    row = con.execute(sql, (no, mail_id)).fetchone()
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


def blob_finder(con: Connection) -> Callable[[bytes], bytes | None]:
    """Finds payloads by their SHA-256, and none that is not what its digest says."""

    def find(digest: bytes) -> bytes | None:
        row = con.execute("SELECT body FROM nvm_blobs WHERE digest = ?1", (digest,)).fetchone()
        if row is None or sha256(row[0]).digest() != digest:
            return None
        body: bytes = row[0]
        return body

    return find
