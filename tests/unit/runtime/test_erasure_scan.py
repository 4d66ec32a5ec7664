"""Whoever recovers looks through the journals for erasures once, and from there on where it was left off - unless the
store is not the one it was."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from runtime_stage import program, tool_step

from nano_vm import ExecutionVM, SqliteStore
from nano_vm.vault.kek import LocalKey, make_key_file
from nano_vm.vault.local import Vault

PRIVATE = program(
    tool_step("a", args={"effect": "$n"}),
    inputs={"type": "object", "properties": {"n": {"private": True}, "who": {"private": True}}},
    subject="$who",
)
ERASURE: dict[str, Any] = {"reason": "asked", "by": "dpo"}


class Counting(SqliteStore):
    """Counts the entries that are read in order, and the passes over everything."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_in_order = self.passes = 0

    def tail(self, *args: Any, **kwargs: Any) -> Any:
        cursor, found = super().tail(*args, **kwargs)
        self.read_in_order += len(found)
        return cursor, found

    def holding(self, fragment: bytes) -> list[str]:
        self.passes += 1
        return super().holding(fragment)


@pytest.fixture
def key(tmp_path: Path) -> LocalKey:
    return make_key_file(tmp_path / "key")


def machine(place: Path, key: LocalKey) -> ExecutionVM:
    vault = Vault.beside(place / "runs.db", key=key)
    return ExecutionVM(tools={"act": lambda effect: effect}, store=Counting(place / "runs.db"), vault=vault)


def live(vm: ExecutionVM, who: str, trace_id: str) -> None:
    vm.run_sync(PRIVATE, {"n": f"secret of {who}", "who": who}, trace_id=trace_id)


def counted(vm: ExecutionVM) -> tuple[int, int]:
    store: Any = vm.store
    return store.read_in_order, store.passes


def test_what_was_looked_at_is_not_looked_at_again(tmp_path: Path, key: LocalKey) -> None:
    vm = machine(tmp_path, key)
    for number in range(20):
        live(vm, f"s{number}", f"r{number}")
    for number in range(3):
        asyncio.run(vm.erase(subject=f"s{number}", **ERASURE))
    asyncio.run(vm.recover())
    vm.store.close()
    again = machine(tmp_path, key)
    asyncio.run(again.recover())
    whole, passes = counted(again)
    assert passes == 0
    live(again, "new", "new")
    again.store.close()
    third = machine(tmp_path, key)
    asyncio.run(third.recover())
    entries = len(third.read("new"))
    few, passes = counted(third)
    assert (few, passes) == (whole + entries, 0)  # the last batch once more, to see that it is still there
    third.store.close()


def test_a_store_that_came_back_is_looked_through_from_the_start(tmp_path: Path, key: LocalKey) -> None:
    vm = machine(tmp_path, key)
    live(vm, "s", "r")
    vm.store.backup(tmp_path / "copy.db")
    asyncio.run(vm.erase(subject="s", **ERASURE))
    live(vm, "other", "r2")
    asyncio.run(vm.recover())
    vm.store.close()
    for left in tmp_path.glob("runs.db*"):
        if not left.is_dir():
            left.unlink()
    shutil.copy(tmp_path / "copy.db", tmp_path / "runs.db")
    restored = machine(tmp_path, key)
    assert all("Erased" not in event.type for event in restored.trace("r").events)
    asyncio.run(restored.recover())
    assert [event.type for event in restored.trace("r").events][-1] == "Erased"
    restored.store.close()


def test_a_store_that_came_back_from_before_an_erasure_and_after_the_mark_is_told_again(
    tmp_path: Path, key: LocalKey
) -> None:
    """The last entry that had been looked at was in the back-up, and the runs of the erasure were before it."""
    vm = machine(tmp_path, key)
    live(vm, "s", "r")
    asyncio.run(vm.recover())
    vm.store.backup(tmp_path / "copy.db")
    asyncio.run(vm.erase(subject="s", **ERASURE))
    vm.store.close()
    for left in tmp_path.glob("runs.db*"):
        if not left.is_dir():
            left.unlink()
    shutil.copy(tmp_path / "copy.db", tmp_path / "runs.db")
    restored = machine(tmp_path, key)
    asyncio.run(restored.recover())
    assert [event.type for event in restored.trace("r").events][-1] == "Erased"
    assert restored.verify("r")
    restored.store.close()


def test_keys_that_came_back_learn_what_journals_tell(tmp_path: Path, key: LocalKey) -> None:
    vm = machine(tmp_path, key)
    live(vm, "s", "r")
    asyncio.run(vm.recover())
    shutil.copytree(tmp_path / "runs.db.keys", tmp_path / "kept")
    asyncio.run(vm.erase(subject="s", **ERASURE))
    asyncio.run(vm.recover())
    vm.store.close()
    shutil.rmtree(tmp_path / "runs.db.keys")
    shutil.copytree(tmp_path / "kept", tmp_path / "runs.db.keys")
    back = machine(tmp_path, key)
    asyncio.run(back.recover())
    assert back.trace("r").final_output == "[REDACTED_TOMBSTONE]"
    back.store.close()


@pytest.mark.parametrize("mark", [b"", b"{}", b"\xff", b'{"before":-1,"count":1,"cursor":5,"digest":"x"}'])
def test_a_mark_that_says_nothing_is_no_mark(tmp_path: Path, key: LocalKey, mark: bytes) -> None:
    vm = machine(tmp_path, key)
    live(vm, "s", "r")
    vm.vault.set_mark("all", mark)
    asyncio.run(vm.recover())
    assert counted(vm)[0] == len(vm.read("r"))
    vm.store.close()
