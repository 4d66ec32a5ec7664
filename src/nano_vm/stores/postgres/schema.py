"""Opening a database: whose it is, in what state, and bringing its schema up to date."""

from __future__ import annotations

import secrets

from nano_vm.errors import InputError, StoreError
from nano_vm.stores.postgres.connection import Address, PostgresConnection
from nano_vm.stores.postgres.locks import MIGRATION, number_of
from nano_vm.stores.postgres.migrations import MIGRATIONS, VERSION

SERVER_VERSION_MIN = 130_000


def open_database(con: PostgresConnection, address: Address, *, create: bool) -> int:
    """Make sure that the first schema of the search path holds our tables in their present version; the number that
    tells this store from any other.

    Many processes may do this at the same time: the schema appears in one transaction. A session that is lost meanwhile
    is made anew, for as long as the connection has patience.

    Raises:
        InputError: STORE_NOT_FOUND, without `create`, when there are no tables of ours.
        StoreError: STORE_NEWER, STORE_DAMAGED, STORE_READ_ONLY, STORE_IO.
    """
    return con.again(lambda: _open(con, address, create=create))


def _open(con: PostgresConnection, address: Address, *, create: bool) -> int:
    server = con.raw.info.server_version
    if server < SERVER_VERSION_MIN:
        raise StoreError(
            "STORE_IO",
            f"the server of `{address.name}` is PostgreSQL {server // 10_000}",
            help="nano-vm needs PostgreSQL 13 or newer",
            facts={"path": address.name, "version": server},
        )
    version = _version(con)
    if version == 0 and not create:
        raise InputError(
            "STORE_NOT_FOUND",
            f"there are no runs in `{address.name}`",
            help="`nano-vm run` makes its tables; or name another database, or another schema, with --store",
            facts={"path": address.name},
        )
    if version < VERSION:
        con.execute("BEGIN")
        con.execute("SELECT pg_advisory_xact_lock(?1)", (number_of(MIGRATION),))
        version = _version(con)  # somebody may have been faster
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                con.execute(statement)
        if version == 0:
            con.execute("INSERT INTO nvm_meta VALUES ('store', ?1)", (secrets.randbits(62),))
            con.execute("INSERT INTO nvm_meta VALUES ('version', 0)")
        con.execute("UPDATE nvm_meta SET value = ?1 WHERE name = 'version'", (VERSION,))
        con.execute("COMMIT")
    elif version > VERSION:
        raise StoreError(
            "STORE_NEWER",
            f"the database `{address.name}` has schema version {version}, this nano-vm knows {VERSION}",
            help="update nano-vm",
            facts={"path": address.name, "version": version, "known": VERSION},
        )
    row = con.execute("SELECT value FROM nvm_meta WHERE name = 'store'").fetchone()
    if row is None:
        raise _damaged(address)
    number: int = row[0]
    return number


def _version(con: PostgresConnection) -> int:
    """The version of the schema; 0 when there is none."""
    schema = con.execute("SELECT current_schema()").fetchone()[0]
    if schema is None:
        raise InputError(
            "USAGE",
            "the search path of the database names no schema that exists",
            help="make it with CREATE SCHEMA, or leave `search_path` out of the address",
        )
    names = {
        name
        for (name,) in con.execute(
            """SELECT c.relname::text FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
                WHERE s.nspname = current_schema() AND c.relname IN ('nvm_meta', 'nvm_runs', 'nvm_segments')"""
        )
    }
    if not names:
        return 0
    if len(names) < 3:
        raise StoreError(
            "STORE_DAMAGED", "tables of ours are missing in the database", help="restore it from a back-up"
        )
    row = con.execute("SELECT value FROM nvm_meta WHERE name = 'version'").fetchone()
    if row is None or row[0] < 1:
        raise StoreError(
            "STORE_DAMAGED", "the database does not say its version", help="restore it from a back-up"
        )
    version: int = row[0]
    return version


def _damaged(address: Address) -> StoreError:
    return StoreError(
        "STORE_DAMAGED",
        f"the database `{address.name}` is damaged",
        help="restore it from a back-up",
        facts={"path": address.name},
    )
