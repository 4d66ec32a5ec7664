"""A legal hold and an erasure are decided against each other before anything is done: one of them wins, whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import postgres_server
from nano_vm import (
    CapabilityDeniedError,
    ExecutionVM,
    InputError,
    NanoVMError,
    PostgresStore,
    SqliteStore,
    Vault,
    tool,
)
from nano_vm.runtime.erasure import STOP_WAIT_MS
from nano_vm.vault.kek import make_key_file

BY = {"id": "ana"}
WAITS = {
    "name": "waits",
    "subject": "$who",
    "inputs": {
        "type": "object",
        "properties": {"who": {"type": "string", "private": True}},
        "required": ["who"],
    },
    "steps": [
        {
            "id": "act",
            "type": "tool",
            "tool": "echo",
            "args": {"x": "$who"},
            "compensate": {"tool": "undo", "args": {"x": "$who"}},
        },
        {"id": "w", "type": "wait", "event": "go"},
    ],
}
Open = Callable[..., ExecutionVM]


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Makes engines as other processes would have them, on one store and one vault."""
    make_key_file(tmp_path / "runs.db.key")
    url = postgres_server.fresh_url() if request.param == "postgres" else ""
    stores: list[Any] = []

    def make(undo: Callable[[str], Any] = lambda x: x, **options: Any) -> ExecutionVM:
        store = PostgresStore(url) if url else SqliteStore(tmp_path / "runs.db", durability="normal")
        stores.append(store)

        @tool(effect="idempotent")
        def echo(x: str) -> str:
            return x

        tools = {"echo": echo, "undo": undo}
        return ExecutionVM(store=store, vault=Vault.beside(tmp_path / "runs.db"), tools=tools, **options)

    yield make
    for store in stores:
        store.close()


def vault(vm: ExecutionVM) -> Vault:
    assert vm.vault is not None
    return vm.vault


async def erase(vm: ExecutionVM, who: str) -> dict[str, Any]:
    return await vm.erase(subject=who, reason="asked", by=BY)


def test_a_hold_that_comes_while_runs_are_being_stopped_is_refused_and_the_erasure_goes_on(
    opened: Open,
) -> None:
    """It was taken, and the erasure refused, when the runs had been cancelled already."""
    holder, refused, seen = opened(), [], []

    def undo(x: str) -> str:
        seen.append(x)
        with pytest.raises(InputError) as caught:
            vault(holder).hold(subject="Ada", reason="case 7", by={"id": "law"})
        refused.append(caught.value.code)
        return x

    vm = opened(undo)

    async def main() -> dict[str, Any]:
        await vm.run(WAITS, {"who": "Ada"}, trace_id="r")
        return await erase(vm, "Ada")

    receipt = asyncio.run(main())
    assert (refused, seen) == (["ERASURE_BEGUN"], ["Ada"])  # what was undone could still be read
    assert (receipt["stage"], receipt["runs"]) == ("done", ["r"])
    assert vm.store.record("r").status == "CANCELLED"
    assert vm.verify("r")


def test_of_holds_and_erasures_that_race_one_wins_whole(opened: Open) -> None:
    eraser, holder = opened(), opened()
    names = [f"person-{number}" for number in range(20)]

    async def begin() -> None:
        for name in names:
            await eraser.run(WAITS, {"who": name}, trace_id=name)

    asyncio.run(begin())
    outcomes: dict[str, list[str]] = {name: ["", ""] for name in names}
    gate = threading.Barrier(2)

    def holds() -> None:
        for name in names:
            gate.wait(60)
            try:
                vault(holder).hold(subject=name, reason="case 7", by={"id": "law"})
            except NanoVMError as error:
                outcomes[name][0] = error.code

    async def erases() -> None:
        for name in names:
            gate.wait(60)
            try:
                await erase(eraser, name)
            except CapabilityDeniedError as error:
                outcomes[name][1] = error.code

    other = threading.Thread(target=holds)
    other.start()
    asyncio.run(erases())
    other.join()
    for name, (held, erased) in outcomes.items():
        status = eraser.store.record(name).status
        if held == "":
            if erased == "":  # the hold is of what may come: it came when everything was done
                assert status == "CANCELLED"
            else:
                assert (erased, status) == ("ERASURE_HELD", "SUSPENDED")
                assert eraser.trace(name).step("act").output == name  # type: ignore[union-attr]
        else:
            assert (held, erased, status) == ("ERASURE_BEGUN", "", "CANCELLED")


def test_an_erasure_that_was_cut_while_it_stopped_runs_is_completed(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = opened()
    asyncio.run(vm.run(WAITS, {"who": "Ada"}, trace_id="r"))
    vault(vm).announce_erasure(subject="Ada", reason="asked", by=BY)  # and its process died
    assert vm.trace("r").step("act").output == "Ada"  # type: ignore[union-attr]
    with pytest.raises(InputError) as caught:
        vault(vm).hold(subject="Ada", reason="case 7", by={"id": "law"})
    assert caught.value.code == "ERASURE_BEGUN"
    undone: list[str] = []
    asyncio.run(opened(lambda x: undone.append(x)).recover())
    assert (undone, [one.stage for one in vault(vm).all_erasures()]) == (["Ada"], ["done"])
    assert vm.store.record("r").status == "CANCELLED"


def test_an_engine_that_has_looked_leaves_an_announced_erasure_to_its_process_for_a_while(
    opened: Open,
) -> None:
    vm = opened()
    asyncio.run(vm.run(WAITS, {"who": "Ada"}, trace_id="r"))
    asyncio.run(vm.recover())
    now = vm.clock.now_ms()
    vault(vm).announce_erasure(subject="Ada", reason="asked", by=BY, at_ms=now)
    asyncio.run(vm.recover())
    assert [one.stage for one in vault(vm).all_erasures()] == ["stopping"]
    vm.clock.now_ms = lambda: now + STOP_WAIT_MS + 1  # type: ignore[method-assign]
    asyncio.run(vm.recover())
    assert [one.stage for one in vault(vm).all_erasures()] == ["done"]
