"""P7 where an erasure was cut and whoever comes next cannot undo what its runs did: it is left to a process that can,
for a while, and nothing of the subject is readable meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from begun_erasures import begin_erasure
from nano_vm import ExecutionVM, SqliteStore, Vault, tool
from nano_vm.errors import InputError
from nano_vm.runtime.erasure import UNDO_WAIT_MS
from nano_vm.testing.clock import VirtualClock
from nano_vm.vault.kek import make_key_file
from unit.runtime.runtime_stage import play, refused, tool_step, wait_step

NAME, OTHER = "Ada Lovelace of St James", "Charles Babbage of Marylebone"
PLAIN: dict[str, Any] = {
    "name": "plain",
    "subject": "$who",
    "inputs": {
        "type": "object",
        "properties": {"who": {"type": "string", "private": True}},
        "required": ["who"],
    },
    "steps": [tool_step("a", "echo", args={"x": "$who"}), wait_step("w")],
}
UNDONE = {
    **PLAIN,
    "name": "undone",
    "steps": [
        tool_step("a", "echo", args={"x": "$who"}, compensate={"tool": "undo", "args": {"x": "$who"}}),
        wait_step("w"),
    ],
}
Machine = Callable[..., ExecutionVM]


@pytest.fixture
def undone() -> list[str]:
    return []


@pytest.fixture
def machine(tmp_path: Path, clock: VirtualClock, undone: list[str]) -> Iterator[Machine]:
    """Opens machines on one store, as in as many processes, each with the tools that are named."""
    make_key_file(tmp_path / "runs.db.key")
    stores = []

    @tool(effect="idempotent")
    def echo(x: str) -> str:
        return x

    @tool(effect="idempotent")
    def undo(x: str) -> None:
        undone.append(x)

    tools = {"echo": echo, "undo": undo}

    def opened(*names: str) -> ExecutionVM:
        store = SqliteStore(tmp_path / "runs.db", durability="normal")
        stores.append(store)
        vault = Vault.beside(tmp_path / "runs.db")
        return ExecutionVM(tools=[tools[name] for name in names], store=store, vault=vault, clock=clock)

    yield opened
    for store in stores:
        store.close()


def cut(vm: ExecutionVM, subject: str = NAME, ago_ms: int = 0) -> None:
    """Somebody begins an erasure and dies."""
    assert vm.vault is not None
    at_ms = vm.clock.now_ms() - ago_ms
    begin_erasure(vm.vault, subject=subject, reason="asked", by={"id": "ana"}, at_ms=at_ms)


def stages(vm: ExecutionVM) -> list[str]:
    assert vm.vault is not None
    return [one.stage for one in vm.vault.all_erasures()]


def standing(vm: ExecutionVM, *names: str) -> list[str]:
    return [vm.store.record(name).status for name in names]


def test_an_erasure_is_left_to_a_process_that_can_undo_what_its_runs_did(
    machine: Machine, undone: list[str], tmp_path: Path
) -> None:
    async def main() -> None:
        able, unable = machine("echo", "undo"), machine("echo")
        for flow, who, name in ((UNDONE, NAME, "undone"), (PLAIN, NAME, "plain"), (PLAIN, OTHER, "other")):
            await able.run(flow, {"who": who}, trace_id=name)
        await able.recover()  # it has looked for what is left of erasures
        cut(able)
        cut(able, OTHER)
        for _ in range(2):
            with pytest.raises(InputError) as raised:
                await unable.recover()
            facts = {"run_id": "undone", "program": "undone", "tools": ["undo"]}
            assert (raised.value.code, raised.value.facts) == ("TOOLS_MISSING", facts)
            # What could be done without is done.
            assert standing(able, "undone", "plain", "other") == ["SUSPENDED", "CANCELLED", "CANCELLED"]
            assert stages(able) == ["begun", "done"]
            for vm in (able, unable):
                with refused("NO_KEYS"):
                    await vm.resume("undone", 1)
                assert NAME not in repr([entry.payload for entry in vm.read("undone")])
        assert undone == []
        await able.recover()
        assert (undone, stages(able)) == ([NAME], ["done", "done"])
        trace = able.trace("undone")
        assert (trace.status, trace.incomplete_compensations) == ("CANCELLED", [])
        for name in ("undone", "plain", "other"):
            able.verify(name)
        await unable.recover()
        held = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        assert NAME.encode() not in held

    play(main())


@pytest.mark.parametrize("sign", [1, -1], ids=["late", "by a clock that goes wrong"])
def test_nobody_waits_for_ever_for_tools_that_nobody_has(
    machine: Machine, undone: list[str], sign: int
) -> None:
    async def main() -> None:
        able, unable = machine("echo", "undo"), machine("echo")
        await able.run(UNDONE, {"who": NAME}, trace_id="early")
        await able.run(UNDONE, {"who": OTHER}, trace_id="late")
        cut(able, NAME, sign * (UNDO_WAIT_MS - 1))
        cut(able, OTHER, sign * UNDO_WAIT_MS)
        with refused("TOOLS_MISSING"):
            await unable.complete_erasures()
        assert (standing(able, "early", "late"), stages(able)) == (
            ["SUSPENDED", "CANCELLED"],
            ["begun", "done"],
        )
        assert (able.trace("late").incomplete_compensations, undone) == (["a"], [])
        able.verify("late")

    play(main())


@pytest.mark.parametrize("how", ["again", "complete"])
def test_whoever_says_that_an_erasure_is_to_be_done_waits_for_no_tools(machine: Machine, how: str) -> None:
    async def main() -> None:
        able, unable = machine("echo", "undo"), machine("echo")
        await able.run(UNDONE, {"who": NAME}, trace_id="r")
        cut(able)
        if how == "again":
            receipt = await unable.erase(subject=NAME, reason="asked", by="ana")
        else:
            (receipt,) = await unable.replay_erasures()
        assert (receipt["stage"], receipt["runs"]) == ("done", ["r"])
        assert able.trace("r").incomplete_compensations == ["a"]
        able.verify("r")

    play(main())


def test_a_run_that_is_driven_where_the_tools_are_needs_none_elsewhere(
    machine: Machine, undone: list[str]
) -> None:
    async def main() -> None:
        able, unable = machine("echo", "undo"), machine("echo")
        begun, gate = asyncio.Event(), asyncio.Event()

        @tool(effect="idempotent")
        async def echo(x: str) -> str:
            begun.set()
            await gate.wait()
            return x

        able.register_tool("echo", echo)
        driving = asyncio.create_task(able.run(UNDONE, {"who": NAME}, trace_id="r"))
        await begun.wait()
        cut(able)
        completing = asyncio.create_task(unable.complete_erasures())
        while not able.store.mail("r"):
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(completing, driving)
        assert (undone, stages(able), standing(able, "r")) == ([NAME], ["done"], ["CANCELLED"])
        able.verify("r")

    play(main())


def test_a_run_that_its_driver_left_at_work_is_left_for_want_of_any_of_its_tools(
    machine: Machine, undone: list[str]
) -> None:
    async def main() -> None:
        able, unable = machine("echo", "undo"), machine("undo")
        await able.start(
            {**UNDONE, "steps": [tool_step("b", "echo", args={"x": "$who"}), *UNDONE["steps"]]},
            {"who": NAME},
            trace_id="r",
        )
        await able.step("r")
        cut(able)
        with pytest.raises(InputError) as raised:
            await unable.complete_erasures()
        assert raised.value.facts["tools"] == ["echo"]
        assert standing(able, "r") == ["RUNNING"]
        await able.complete_erasures()
        assert (undone, standing(able, "r")) == ([], ["CANCELLED"])
        able.verify("r")

    play(main())
