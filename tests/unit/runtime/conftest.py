"""A virtual machine on every store, with virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_stage import Opener

from nano_vm import ExecutionVM, MemoryStore, SqliteStore
from nano_vm.testing.clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(params=["memory", "sqlite"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, clock: VirtualClock) -> Iterator[Opener]:
    """Opens machines that share one store: a second one stands for another process.

    What durability "full" adds is a pragma of SQLite's, and nothing above the store can see it: the promises of the
    store are tested under both (tests/conformance), and what waits for them under the quicker one.
    """
    memory = MemoryStore()
    opened: list[Any] = [memory]

    def open_vm(**options: Any) -> ExecutionVM:
        store: Any = memory
        if request.param != "memory":
            store = SqliteStore(tmp_path / "runs.db", durability="normal")
        opened.append(store)
        options.setdefault("clock", clock)
        return ExecutionVM(store=store, **options)

    yield open_vm
    for store in opened:
        store.close()
