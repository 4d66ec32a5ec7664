"""Programs that are paused: nothing of them begins, what has begun goes on, and nobody forgets who said so."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from nano_vm import CapabilityDeniedError, ExecutionVM, Program, SqliteStore
from nano_vm.runtime.pausing import LOOK_MS
from nano_vm.stores.tenants import TenantStore
from nano_vm.testing.clock import VirtualClock
from unit.runtime.runtime_stage import refused

STEPS: list[dict[str, Any]] = [{"id": "a", "type": "tool", "tool": "act"}]
WAITS: list[dict[str, Any]] = [{"id": "w", "type": "wait", "event": "go"}, *STEPS]


def machine(store: Any = None, **options: Any) -> ExecutionVM:
    return ExecutionVM(tools={"act": lambda: 1}, store=store, **options)


def program(name: str = "p", steps: list[dict[str, Any]] = STEPS) -> Program:
    return Program.from_dict({"name": name, "steps": steps})


@pytest.mark.parametrize("by_hash", [False, True])
def test_no_run_of_a_paused_program_begins(by_hash: bool) -> None:
    async def main() -> None:
        vm = machine()
        await vm.run(program())
        await vm.pause(program().hash if by_hash else "p", "too many retries", by="ana")
        for begin in (vm.run, vm.start):
            with pytest.raises(CapabilityDeniedError) as caught:
                await begin(program())
            assert caught.value.code == "PROGRAM_PAUSED"
            assert caught.value.facts["by"] == "ana"
            assert caught.value.retryable
        with refused("PROGRAM_PAUSED"):
            async for _ in vm.stream(program()):
                pass
        assert (await vm.run(program("q"))).status == "SUCCESS"
        assert len(vm.runs()) == 2
        await vm.lift_pause(program().hash if by_hash else "p", "mended", by="ana")
        assert (await vm.run(program())).status == "SUCCESS"

    asyncio.run(main())


def test_another_version_is_another_program_when_the_hash_is_paused() -> None:
    async def main() -> None:
        vm = machine()
        await vm.pause(program().hash)
        other = Program.from_dict({"name": "p", "version": "2", "steps": STEPS})
        assert (await vm.run(other)).status == "SUCCESS"

    asyncio.run(main())


def test_what_has_begun_goes_on() -> None:
    async def main() -> None:
        vm = machine()
        trace = await vm.run(program(steps=WAITS), trace_id="r")
        await vm.pause("p")
        assert (await vm.resume("r", {})).status == "SUCCESS"
        with refused("PROGRAM_PAUSED"):
            await vm.fork(trace.trace_id, "a")

    asyncio.run(main())


def test_the_call_of_a_running_parent_is_no_new_run() -> None:
    async def main() -> None:
        vm = machine()
        vm.save_program(program("child"))
        steps = [{"id": "w", "type": "wait", "event": "go"}, {"id": "c", "type": "call", "program": "child"}]
        await vm.run(program("parent", steps), trace_id="r")
        await vm.pause("child")
        assert (await vm.resume("r", {})).status == "SUCCESS"

    asyncio.run(main())


def test_who_asks_again_with_a_key_gets_the_first_result() -> None:
    async def main() -> None:
        vm = machine()
        first = await vm.run(program(), idempotency_key="k")
        await vm.pause("p")
        assert (await vm.run(program(), idempotency_key="k")).trace_id == first.trace_id
        with refused("PROGRAM_PAUSED"):
            await vm.run(program(), idempotency_key="l")

    asyncio.run(main())


def test_another_engine_heeds_it_within_half_a_second(tmp_path: Path) -> None:
    async def main() -> None:
        clock = VirtualClock()
        one = machine(SqliteStore(tmp_path / "runs.db", durability="normal"), clock=clock)
        other = machine(SqliteStore(tmp_path / "runs.db", durability="normal"), clock=clock)
        await other.run(program())
        await one.pause("p")
        with refused("PROGRAM_PAUSED"):
            await one.run(program())
        clock.advance(LOOK_MS)
        with refused("PROGRAM_PAUSED"):
            await other.run(program())
        await other.lift_pause("p")
        assert (await other.run(program())).status == "SUCCESS"
        clock.advance(-10 * LOOK_MS)  # a clock that is set back is no reason not to look
        await one.lift_pause("p")
        assert (await one.run(program())).status == "SUCCESS"
        one.store.close()
        other.store.close()

    asyncio.run(main())


def test_a_pause_outlives_the_process_and_its_history_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"

    async def main() -> None:
        async with machine(SqliteStore(path)) as vm:
            await vm.pause("p", "first", by="ana")
            await vm.lift_pause("p", "second", by="eve")
            await vm.pause("p", "third", by="ana")

    asyncio.run(main())
    with SqliteStore(path) as store:
        (pause,) = machine(store).paused()
        assert (pause.program, pause.reason, pause.by) == ("p", "third", "ana")
        assert store.integrity() == []
    con = sqlite3.connect(path)
    assert [row[0] for row in con.execute("SELECT reason FROM nvm_pauses ORDER BY n")] == [
        "first",
        "second",
        "third",
    ]
    for change in (
        "DELETE FROM nvm_pauses",
        "UPDATE nvm_pauses SET paused = 0",
        "REPLACE INTO nvm_pauses SELECT * FROM nvm_pauses",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            con.execute(change)
    con.close()


def test_only_who_may_act_may_pause() -> None:
    async def main() -> None:
        vm = machine(access="required")
        for by in (None, {"id": "vic", "roles": ["viewer"]}):
            with refused("CAPABILITY_DENIED"):
                await vm.pause("p", by=by)
        ana = {"id": "ana", "roles": ["operator"]}
        await vm.pause("p", by=ana)
        assert [one.by for one in vm.paused(principal=ana)] == ["ana"]
        with refused("CAPABILITY_DENIED"):
            vm.paused()

    asyncio.run(main())


def test_a_tenant_pauses_its_own_runs_alone() -> None:
    async def main() -> None:
        vm = machine()
        await vm.pause("p", by={"id": "ana", "tenant": "acme"})
        assert (await vm.run(program())).status == "SUCCESS"
        with refused("PROGRAM_PAUSED"):
            await vm.run(program(), tenant="acme")
        assert [one.tenant for one in vm.paused()] == ["acme"]
        assert vm.paused(tenant="bolt") == []
        apart = machine(TenantStore(vm.store, "bolt"))
        await apart.pause("p")
        assert [one.tenant for one in apart.paused()] == ["bolt"]
        with refused("PROGRAM_PAUSED"):
            await apart.run(program())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "reason"), [("", ""), ("x" * 201, ""), ("p", "x" * 1_001), (7, ""), ("p", 7)]
)
def test_what_is_no_name_or_reason_is_refused(name: Any, reason: Any) -> None:
    with refused("USAGE"):
        asyncio.run(machine().pause(name, reason))
