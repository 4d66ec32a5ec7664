"""What is wrong with a SQLite database of ours, apart from the journals, which prove themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from nano_vm import canonical
from nano_vm.errors import StoreError
from nano_vm.stores import rules
from nano_vm.stores.rows import blob_finder, read_record, to_mail
from nano_vm.stores.segments import DIGEST_BYTES, Segment, blob_digests, unpack
from nano_vm.stores.sqlite_schema import expected_schema, schema_of

PROBLEMS_MAX = 100  # a broken page can break thousands of rows


def examine(con: sqlite3.Connection) -> list[str]:
    """One sentence per problem, at most `PROBLEMS_MAX`; empty when the database is sound.

    Looked at: SQLite's own structures, our schema with its guards, references between tables, that segments
    follow one another and can be read, and the seal or hash of every record, message, program and blob.
    """
    problems: list[str] = []
    con.execute("BEGIN")  # one moment for all checks
    try:
        for check in (
            _file,
            _schema,
            _references,
            _programs,
            _records,
            _ownership,
            _actions,
            _policies,
            _mail,
            _segments,
            _gaps,
            _blobs,
        ):
            try:
                for problem in check(con):
                    problems.append(problem)
                    if len(problems) >= PROBLEMS_MAX:
                        return problems
            except (sqlite3.Error, StoreError, TypeError, ValueError, AttributeError) as error:
                problems.append(f"{check.__name__[1:]}: cannot be read ({error})")
    finally:
        if con.in_transaction:
            con.execute("ROLLBACK")
    return problems


def _file(con: sqlite3.Connection) -> Iterator[str]:
    for (line,) in con.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})").fetchall():
        if line != "ok":
            yield f"file: {line}"


def _schema(con: sqlite3.Connection) -> Iterator[str]:
    found, expected = schema_of(con), expected_schema()
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"schema: `{name}` is missing"
        elif name not in expected:
            yield f"schema: `{name}` is not ours"
        elif found[name] != expected[name]:
            yield f"schema: `{name}` was changed"


def _references(con: sqlite3.Connection) -> Iterator[str]:
    for table, row, parent, _ in con.execute("PRAGMA foreign_key_check").fetchall():
        if str(table).startswith("nvm_"):
            yield f"references: row {row} of {table} points to a missing row of {parent}"


def _programs(con: sqlite3.Connection) -> Iterator[str]:
    for hash_, name, stored_at_ms, body, seal in con.execute(
        "SELECT hash, name, stored_at_ms, body, seal FROM nvm_programs ORDER BY n"
    ):
        if not isinstance(body, bytes) or canonical.digest(body) != hash_:
            yield f"programs: `{hash_}` is not what its hash says"
        elif rules.seal_program(hash_, name, stored_at_ms) != seal:
            yield f"programs: the name or time of `{hash_}` was changed"
    for name, hash_ in con.execute(
        """SELECT a.name, a.hash FROM nvm_names a LEFT JOIN nvm_programs p ON p.hash = a.hash
            WHERE p.name IS NOT a.name"""
    ):
        yield f"programs: the name `{name}` means `{hash_}`, which was stored under another name"


def _policies(con: sqlite3.Connection) -> Iterator[str]:
    for hash_, body in con.execute("SELECT hash, body FROM nvm_policies ORDER BY n"):
        if not isinstance(body, bytes) or canonical.digest(body) != hash_:
            yield f"policies: `{hash_}` is not what its hash says"


def _records(con: sqlite3.Connection) -> Iterator[str]:
    for no, origin, *row in con.execute(
        """SELECT no, origin, run_id, tenant, program_hash, program_name, key, inputs_digest, parent,
            status, outcome, waits, wake_at_ms, created_at_ms, updated_at_ms, length, head,
            owner, fence, lease_until_ms, seal FROM nvm_runs ORDER BY no"""
    ):
        record, sound = read_record(tuple(row))
        if not sound or origin != rules.seal_origin(record):
            yield f"records: the record of run `{record.run_id}` (row {no}) was changed"


def _ownership(con: sqlite3.Connection) -> Iterator[str]:
    for (run_id,) in con.execute(
        "SELECT run_id FROM nvm_runs WHERE (owner IS NULL) IS NOT (lease_until_ms IS 0) ORDER BY no"
    ):
        yield f"ownership: the lease of run `{run_id}` was changed"
    # A run begins with fence 0, or 1 when it has an owner, and every claim counts in both places.
    for runs, claims, counted in con.execute(
        """SELECT count(*), coalesce(sum(fence), 0),
            (SELECT value FROM nvm_meta WHERE name = 'ownership') FROM nvm_runs"""
    ):
        if not isinstance(counted, int) or not claims - runs <= counted <= claims:
            yield "ownership: the count of claims was changed"


def _actions(con: sqlite3.Connection) -> Iterator[str]:
    for key, digest, run_id, seal in con.execute(
        "SELECT key, digest, run_id, seal FROM nvm_actions ORDER BY key"
    ):
        if rules.seal_action(key, digest, run_id) != seal:
            yield f"actions: what the key `{key}` was used for was changed"


def _mail(con: sqlite3.Connection) -> Iterator[str]:
    for run_id, *row in con.execute(
        """SELECT r.run_id, m.mail_id, m.kind, m.body, m.posted_at_ms, m.answer, m.seal
            FROM nvm_mail m JOIN nvm_runs r ON r.no = m.run ORDER BY m.n"""
    ):
        try:
            to_mail(run_id, row)
        except (StoreError, TypeError):
            yield f"mail: a message of run `{run_id}` was changed"


def _segments(con: sqlite3.Connection) -> Iterator[str]:
    find = blob_finder(con)
    last, end = None, 0
    for run, run_id, *columns in con.execute(
        """SELECT s.run, coalesce(r.run_id, '?'), s.seq, s.digests, s.facts, s.payloads FROM nvm_segments s
            LEFT JOIN nvm_runs r ON r.no = s.run ORDER BY s.run, s.seq"""
    ):
        segment = Segment(*columns)
        if run != last:
            last, end = run, 0
        if segment.seq != end:
            yield f"segments: run `{run_id}` has no entry {end}"
        try:
            unpack(run_id, segment, find)
        except (StoreError, TypeError, AttributeError) as error:
            what = error.message if isinstance(error, StoreError) else f"row at {segment.seq} cannot be read"
            yield f"segments: {what}"
        end = segment.seq + len(segment.digests) // DIGEST_BYTES


def _gaps(con: sqlite3.Connection) -> Iterator[str]:
    """Rows are numbered from 1 as they are added, and none is ever deleted: a number that is missing was one."""
    for table, number in (("nvm_runs", "no"), ("nvm_segments", "n")):
        for before, after in con.execute(
            f"""SELECT coalesce(previous, 0), number FROM (SELECT {number} AS number,
                lag({number}) OVER (ORDER BY {number}) AS previous FROM {table})
                WHERE number IS NOT coalesce(previous, 0) + 1"""
        ):
            yield f"{table[4:]}: rows {before + 1} to {after - 1} are gone"


def _blobs(con: sqlite3.Connection) -> Iterator[str]:
    used: set[bytes] = set()
    for (payloads,) in con.execute("SELECT payloads FROM nvm_segments WHERE payloads IS NOT NULL"):
        used.update(blob_digests(payloads))
    find = blob_finder(con)
    for (digest,) in con.execute("SELECT digest FROM nvm_blobs ORDER BY n").fetchall():
        if find(digest) is None:
            yield f"blobs: {bytes(digest).hex()} is not what its digest says"
        elif digest not in used:
            yield f"blobs: {bytes(digest).hex()} belongs to no entry"
