"""Stores named by a string, as processes are told where to write: a path, or a postgresql:// address."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from nano_vm.stores.postgres import PostgresStore
from nano_vm.stores.sqlite import SqliteStore

KINDS = ("sqlite", "postgres")


def fresh_place(kind: str, directory: Path) -> str:
    """Where a new store of a kind may be made."""
    if kind == "sqlite":
        return str(directory / "journal.db")
    from postgres_server import fresh_url

    return fresh_url()


def store_class(place: str) -> Any:
    return PostgresStore if place.startswith("postgresql://") else SqliteStore


def open_store(place: str, durability: str = "full", **options: Any) -> Any:
    return store_class(place)(place, durability, **options)


def values(place: str, count: int) -> str:
    """So many placeholders, as a tool writes them."""
    return ", ".join(["%s" if place.startswith("postgresql://") else "?"] * count)


def let_pass(place: str) -> None:
    """Wait for the commits that a dead process has left on their way: a server does not die with its client."""
    if place.startswith("postgresql://"):
        import psycopg

        with psycopg.connect(place) as con:
            con.execute("SELECT FROM nvm_writers FOR UPDATE")


def rows(place: str, table: str, columns: str) -> list[tuple[Any, ...]]:
    """What a table of a tool's holds, past every store; nothing when there is no such table."""
    sql = f"SELECT {columns} FROM {table} ORDER BY {columns}"
    if place.startswith("postgresql://"):
        import psycopg

        with psycopg.connect(place) as con:
            if con.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
                return []
            return con.execute(sql.encode()).fetchall()
    lite = sqlite3.connect(place)
    try:
        if not lite.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            return []
        return lite.execute(sql).fetchall()
    finally:
        lite.close()
