"""A store that is locked is waited for once: by the store itself, or, where one of our own tools locks it, by us."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, SqliteStore
from nano_vm.errors import ConflictError, StoreError
from nano_vm.journal.port import LEASE_MS
from nano_vm.runtime import recovery
from nano_vm.runtime.patience import patiently
from nano_vm.testing.clock import VirtualClock


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


def test_who_waited_for_the_store_takes_over_no_run_that_somebody_here_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cancellations of a run that has ended: both are refused by it, whenever the first one gets to the store."""
    pauses: list[int] = []

    async def later(call: Callable[[], Any]) -> Any:
        for _ in range(pauses.pop(0) if pauses else 0):
            await asyncio.sleep(0)
        return call()

    async def main() -> None:
        vm = ExecutionVM(store=SqliteStore(tmp_path / "runs.db", durability="normal"))
        await vm.run({"name": "p", "steps": [{"id": "w", "type": "wait", "event": "go"}]}, trace_id="r")
        await vm.cancel("r")
        monkeypatch.setattr(recovery, "patiently", later)
        for pause in range(12):
            pauses[:] = [pause]
            told = await asyncio.gather(vm.cancel("r"), vm.cancel("r"), return_exceptions=True)
            assert [getattr(error, "code", error) for error in told] == ["TERMINAL", "TERMINAL"]
            assert vm.store.record("r").owner is None
        await vm.close()

    asyncio.run(main())


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


def test_a_run_whose_lease_ran_out_while_it_was_taken_up_is_driven_by_the_last_to_take_it(
    tmp_path: Path,
) -> None:
    calls: list[str] = []

    async def act() -> None:
        calls.append("act")
        await asyncio.sleep(0)

    steps = [{"id": "w", "type": "wait", "seconds": 1}, {"id": "a", "type": "tool", "tool": "act"}]

    async def main() -> None:
        clock = VirtualClock(auto=False)
        vm = ExecutionVM(
            tools=[act], store=SqliteStore(tmp_path / "runs.db", durability="normal"), clock=clock
        )
        async with vm:
            await vm.run({"name": "p", "steps": steps}, trace_id="r")
            first = await recovery.take_over(vm, "r")
            clock.advance(LEASE_MS)
            second = await recovery.take_over(vm, "r")
            assert first is not None
            assert second is not None
            lost, done = await asyncio.gather(vm.drive(first), vm.drive(second), return_exceptions=True)
            assert isinstance(lost, ConflictError)
            assert (lost.code, done, calls, vm.live) == ("LEASE_LOST", None, ["act"], {})
            assert vm.trace("r").status.value == "SUCCESS"
            vm.verify("r")

    asyncio.run(main())
