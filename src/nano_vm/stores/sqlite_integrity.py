"""What is wrong with a SQLite database of ours, apart from the journals, which prove themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from nano_vm.stores.integrity import (
    PROBLEMS_MAX,
    actions,
    blobs,
    examined,
    mail,
    policies,
    programs,
    records,
    segments,
)
from nano_vm.stores.sqlite_schema import expected_schema, schema_of


def examine(con: sqlite3.Connection) -> list[str]:
    """One sentence per problem, at most `PROBLEMS_MAX`; empty when the database is sound.

    Looked at: SQLite's own structures, our schema with its guards, references between tables, that segments
    follow one another and can be read, and the seal or hash of every record, message, program and blob.
    """
    con.execute("BEGIN")  # one moment for all checks
    try:
        checks = (
            _file,
            _schema,
            _references,
            programs,
            records,
            _ownership,
            actions,
            policies,
            mail,
            segments,
            _gaps,
            blobs,
        )
        return examined(con, checks, (sqlite3.Error,))
    finally:
        if con.in_transaction:
            con.execute("ROLLBACK")


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


def _gaps(con: sqlite3.Connection) -> Iterator[str]:
    """Rows are numbered from 1 as they are added, and none is ever deleted: a number that is missing was one."""
    for table, number in (("nvm_runs", "no"), ("nvm_segments", "n")):
        for before, after in con.execute(
            f"""SELECT coalesce(previous, 0), number FROM (SELECT {number} AS number,
                lag({number}) OVER (ORDER BY {number}) AS previous FROM {table})
                WHERE number IS NOT coalesce(previous, 0) + 1"""
        ):
            yield f"{table[4:]}: rows {before + 1} to {after - 1} are gone"
