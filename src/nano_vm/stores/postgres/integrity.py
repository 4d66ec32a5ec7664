"""What is wrong with a PostgreSQL database of ours, apart from the journals, which prove themselves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg

from nano_vm.stores.integrity import (
    actions,
    blobs,
    examined,
    mail,
    policies,
    programs,
    records,
    segments,
)
from nano_vm.stores.postgres.connection import PostgresConnection, dollars
from nano_vm.stores.postgres.migrations import GUARDED
from nano_vm.stores.rows import Connection

_ROWS = 1_000  # that are held at a time


class _Streaming:
    """A connection whose results are read while they come: tables may be larger than memory."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw = raw
        self._open: list[psycopg.RawServerCursor[Any]] = []

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        if parameters:
            return self._raw.execute(dollars(sql).encode(), parameters)
        cursor = psycopg.RawServerCursor(self._raw, f"nvm_{len(self._open)}")
        self._open.append(cursor)
        cursor.itersize = _ROWS
        return cursor.execute(sql.encode())

    def apart(self, check: Callable[[Connection], Iterator[str]]) -> Callable[[_Streaming], Iterator[str]]:
        """The check, whose failure leaves the others the transaction that all of them read in."""

        @functools.wraps(check)
        def checked(stream: _Streaming) -> Iterator[str]:
            self._raw.execute(b"SAVEPOINT nvm_check")
            try:
                yield from check(stream)
            except psycopg.Error:
                self._raw.execute(b"ROLLBACK TO SAVEPOINT nvm_check")
                raise

        return checked

    def close(self) -> None:
        for cursor in self._open:
            with contextlib.suppress(psycopg.Error):
                cursor.close()


def examine(con: PostgresConnection) -> list[str]:
    """One sentence per problem; empty when the database is sound.

    Looked at: that our guards are in place, that segments follow one another and can be read, and the seal or hash of
    every record, message, program and blob. The server's own structures are looked at by `pg_amcheck`.
    """
    con.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")  # one moment for all checks
    try:
        checks = (_guards, programs, records, _ownership, actions, policies, mail, segments, blobs)
        with contextlib.closing(_Streaming(con.raw)) as stream:
            return examined(stream, [stream.apart(check) for check in checks], (psycopg.Error,))
    finally:
        con.undo()


def _guards(con: Connection) -> Iterator[str]:
    found = {
        (table, trigger): enabled
        for table, trigger, enabled in con.execute(
            """SELECT c.relname::text, t.tgname::text, t.tgenabled::text FROM pg_trigger t
                JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace s ON s.oid = c.relnamespace
                WHERE s.nspname = current_schema() AND NOT t.tgisinternal"""
        )
    }
    for table, trigger in GUARDED:
        if found.get((table, trigger)) not in ("O", "A"):
            yield f"schema: the guard `{trigger}` of {table} is missing"


def _ownership(con: Connection) -> Iterator[str]:
    for (run_id,) in con.execute(
        "SELECT run_id FROM nvm_runs WHERE (owner IS NULL) <> (lease_until_ms = 0) ORDER BY no"
    ):
        yield f"ownership: the lease of run `{run_id}` was changed"
