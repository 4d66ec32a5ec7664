"""A store that is locked is waited for once: by the store itself, or, where one of our own tools locks it, by us."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from nano_vm import ExecutionVM, SqliteStore
from nano_vm.errors import StoreError
from nano_vm.runtime.patience import patiently


def _locked(calls: list[int], until: int, **facts: str) -> None:
    calls.append(1)
    if len(calls) < until:
        raise StoreError("STORE_LOCKED", "somebody is busy", facts=facts)


def test_the_lock_of_a_tool_of_ours_is_waited_for() -> None:
    calls: list[int] = []
    asyncio.run(patiently(lambda: _locked(calls, 4)))
    assert len(calls) == 4


def test_the_lock_of_somebody_else_is_told_at_once() -> None:
    calls: list[int] = []
    with pytest.raises(StoreError) as refused:
        asyncio.run(patiently(lambda: _locked(calls, 4, sqlite="SQLITE_BUSY")))
    assert (refused.value.code, len(calls)) == ("STORE_LOCKED", 1)


def test_a_database_that_stays_locked_refuses_a_run_and_a_resume(tmp_path: Path) -> None:
    program = {"name": "p", "steps": [{"id": "w", "type": "wait", "event": "go"}]}
    path = tmp_path / "runs.db"
    with SqliteStore(path, busy_timeout_ms=20) as store:
        vm = ExecutionVM(store=store)
        waiting = vm.run_sync(program, trace_id="waits")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for act in (lambda: vm.run(program), lambda: vm.resume("waits", {"n": 1})):
                with pytest.raises(StoreError) as refused:
                    asyncio.run(act())  # type: ignore[arg-type]
                assert refused.value.code == "STORE_LOCKED"
            other.execute("ROLLBACK")
        assert asyncio.run(vm.resume("waits", {"n": 1})).status == "SUCCESS"
        assert waiting.status == "SUSPENDED"
