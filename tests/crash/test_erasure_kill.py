"""`kill -9` in the middle of erasures: whoever comes next completes them, and nothing is ever readable again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nano_vm import ExecutionVM, SqliteStore, Vault
from nano_vm.kernel.events import Erased
from nano_vm.vault.kek import make_key_file

PEOPLE = [f"person number {n} of the register" for n in range(6)]
ROOT = Path(__file__).resolve().parents[2]

ERASES = """
import asyncio, sys
from nano_vm import ExecutionVM, SqliteStore, Vault
place, people = sys.argv[1], sys.argv[2:]
store = SqliteStore(place)
vm = ExecutionVM(store=store, vault=Vault.beside(place))
print("ready", flush=True)
for person in people:
    asyncio.run(vm.erase(subject=person, reason="asked", by="ana"))
    print("erased", flush=True)
"""

PROGRAM = {
    "name": "p",
    "subject": "$who",
    "inputs": {"type": "object", "properties": {"who": {"type": "string", "private": True}}, "required": ["who"]},
    "steps": [
        {"id": "a", "type": "tool", "tool": "split", "args": {"who": "$who"}},
        {"id": "m", "type": "map", "over": "$a.output", "max_items": 9,
         "step": {"id": "one", "type": "tool", "tool": "echo", "args": {"x": "$item"}}},
    ],
}  # fmt: skip


def split(who: str) -> list[str]:
    return who.split()


def echo(x: str) -> str:
    return x


def engine(path: Path) -> tuple[SqliteStore, ExecutionVM]:
    store = SqliteStore(path)
    return store, ExecutionVM(tools=[split, echo], store=store, vault=Vault.beside(path))


@pytest.mark.parametrize("seed", range(3))
def test_an_erasure_killed_at_any_moment_is_completed(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "runs.db"
    make_key_file(tmp_path / "runs.db.key")
    store, vm = engine(path)
    hashes = [
        vm.run_sync(PROGRAM, {"who": person}, trace_id=f"r{n}").trace_hash for n, person in enumerate(PEOPLE)
    ]
    store.close()

    child = subprocess.Popen(
        [sys.executable, "-c", ERASES, str(path), *PEOPLE],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    for _ in range(seed):
        assert child.stdout.readline() == b"erased\n"
    # In the middle of the next erasure, wherever it has come to by now.
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    child.stdout.close()

    store, vm = engine(path)
    begun = {erasure.target for erasure in vm.vault.all_erasures()} if vm.vault is not None else set()
    asyncio.run(vm.recover())
    erased = []
    for n in range(len(PEOPLE)):
        trace = vm.trace(f"r{n}")
        told = [event for event in trace.events if type(event) is Erased]
        assert len(told) <= 1
        assert trace.trace_hash == hashes[n]
        vm.verify(f"r{n}")
        if told:
            erased.append(n)
            assert PEOPLE[n] not in repr(trace.to_dict())
    assert len(erased) == len(begun)
    for n in range(len(PEOPLE)):
        if n not in erased:
            assert asyncio.run(vm.erase(subject=PEOPLE[n], reason="asked", by="ana"))["stage"] == "done"
    store.close()
    held = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    for person in PEOPLE:
        assert person.encode() not in held
    assert [file.name for file in (tmp_path / "runs.db.keys" / "keys").iterdir()] == ["index"]
