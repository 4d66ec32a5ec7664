"""What is wrong with the rows of a database of ours, apart from the journals, which prove themselves.

One sentence per problem; each kind of database adds what only it can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from nano_vm import canonical
from nano_vm.errors import StoreError
from nano_vm.stores import rules
from nano_vm.stores.rows import Connection, blob_finder, read_record, to_mail
from nano_vm.stores.segments import DIGEST_BYTES, Segment, blob_digests, unpack

C = TypeVar("C", bound=Connection)

PROBLEMS_MAX = 100  # a broken page can break thousands of rows


def examined(
    con: C, checks: Iterable[Callable[[C], Iterator[str]]], failures: tuple[type[Exception], ...]
) -> list[str]:
    """What the checks find, at most `PROBLEMS_MAX`; `failures` are what the database raises."""
    unreadable: tuple[type[Exception], ...] = (*failures, StoreError, TypeError, ValueError, AttributeError)
    problems: list[str] = []
    for check in checks:
        try:
            for problem in check(con):
                problems.append(problem)
                if len(problems) >= PROBLEMS_MAX:
                    return problems
        except unreadable as error:
            why = str(error).partition("\n")[0]
            problems.append(f"{check.__name__.removeprefix('_')}: cannot be read ({why})")
    return problems


def programs(con: Connection) -> Iterator[str]:
    for hash_, name, stored_at_ms, body, seal in con.execute(
        "SELECT hash, name, stored_at_ms, body, seal FROM nvm_programs ORDER BY n"
    ):
        if not isinstance(body, bytes) or canonical.digest(body) != hash_:
            yield f"programs: `{hash_}` is not what its hash says"
        elif rules.seal_program(hash_, name, stored_at_ms) != seal:
            yield f"programs: the name or time of `{hash_}` was changed"
    for name, hash_ in con.execute(
        """SELECT a.name, a.hash FROM nvm_names a LEFT JOIN nvm_programs p ON p.hash = a.hash
            WHERE p.name IS NULL OR p.name <> a.name"""
    ):
        yield f"programs: the name `{name}` means `{hash_}`, which was stored under another name"


def policies(con: Connection) -> Iterator[str]:
    for hash_, body in con.execute("SELECT hash, body FROM nvm_policies ORDER BY n"):
        if not isinstance(body, bytes) or canonical.digest(body) != hash_:
            yield f"policies: `{hash_}` is not what its hash says"


def records(con: Connection) -> Iterator[str]:
    for no, origin, *row in con.execute(
        """SELECT no, origin, run_id, tenant, program_hash, program_name, key, inputs_digest, parent,
            status, outcome, waits, wake_at_ms, created_at_ms, updated_at_ms, length, head,
            owner, fence, lease_until_ms, seal FROM nvm_runs ORDER BY no"""
    ):
        record, sound = read_record(tuple(row))
        if not sound or origin != rules.seal_origin(record):
            yield f"records: the record of run `{record.run_id}` (row {no}) was changed"


def actions(con: Connection) -> Iterator[str]:
    for key, digest, run_id, seal in con.execute(
        "SELECT key, digest, run_id, seal FROM nvm_actions ORDER BY key"
    ):
        if rules.seal_action(key, digest, run_id) != seal:
            yield f"actions: what the key `{key}` was used for was changed"


def mail(con: Connection) -> Iterator[str]:
    for run_id, *row in con.execute(
        """SELECT r.run_id, m.mail_id, m.kind, m.body, m.posted_at_ms, m.answer, m.seal
            FROM nvm_mail m JOIN nvm_runs r ON r.no = m.run ORDER BY m.n"""
    ):
        try:
            to_mail(run_id, row)
        except (StoreError, TypeError):
            yield f"mail: a message of run `{run_id}` was changed"


def segments(con: Connection) -> Iterator[str]:
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


def blobs(con: Connection) -> Iterator[str]:
    used: set[bytes] = set()
    for (payloads,) in con.execute("SELECT payloads FROM nvm_segments WHERE payloads IS NOT NULL"):
        used.update(blob_digests(payloads))
    find = blob_finder(con)
    for (digest,) in con.execute("SELECT digest FROM nvm_blobs ORDER BY n").fetchall():
        if find(digest) is None:
            yield f"blobs: {bytes(digest).hex()} is not what its digest says"
        elif digest not in used:
            yield f"blobs: {bytes(digest).hex()} belongs to no entry"
