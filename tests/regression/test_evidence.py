"""Evidence that could be changed without anybody noticing, and records that grew with the past."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest
from regression_stage import Tools, program, run, tool_step

from nano_vm import ExecutionVM, NanoVMError, SqliteStore, Trace
from nano_vm.journal.entry import Entry
from nano_vm.journal.merkle import leaf_hash, root
from nano_vm.journal.replay import verify_run

DATA = program(tool_step("pay", args={"amount": "$amount"}), tool_step("mail"))
TOOLS = {"pay": lambda amount: {"paid": amount}, "mail": lambda: "sent"}


def journal(amount: int = 5) -> tuple[ExecutionVM, Trace]:
    vm = ExecutionVM(tools=TOOLS)
    return vm, run(vm, DATA, {"amount": amount})


def rejected(vm: ExecutionVM, trace: Trace, entries: list[Entry]) -> bool:
    _, compiled = vm.compile(DATA)
    try:
        verify_run(compiled, vm.store.record(trace.trace_id), entries)
    except NanoVMError:
        return True
    return False


def test_no_entry_can_be_changed_dropped_repeated_or_moved() -> None:
    vm, trace = journal()
    entries = list(trace.entries)
    assert len(entries) > 2
    assert not rejected(vm, trace, entries)
    for place in range(len(entries)):
        assert rejected(vm, trace, entries[:place] + entries[place + 1 :])
        assert rejected(vm, trace, [*entries[: place + 1], *entries[place:]])
        for name in Entry.__struct_fields__:
            value = getattr(entries[place], name)
            changed: object = None
            if isinstance(value, bytes) and value:
                changed = bytes([value[0] ^ 1]) + value[1:]
            elif isinstance(value, str) and value:
                changed = value[:-1] + ("0" if value[-1] != "0" else "1")
            if changed is not None:
                forged = msgspec.structs.replace(entries[place], **{name: changed})
                assert rejected(vm, trace, [*entries[:place], forged, *entries[place + 1 :]]), name
    assert rejected(vm, trace, [entries[0], *reversed(entries[1:])])


@pytest.mark.parametrize("column", ["status", "head", "inputs_digest", "outcome", "length"])
def test_a_changed_record_is_found(tmp_path: Path, column: str) -> None:
    path = tmp_path / "r.db"
    with SqliteStore(path) as store:
        ExecutionVM(tools=TOOLS, store=store).run_sync(DATA, {"amount": 5}, trace_id="r", idempotency_key="k")
    value = {"length": 1, "status": "FAILED"}.get(column, "sha256:" + "0" * 64)
    con = sqlite3.connect(path)
    for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        con.execute(f"DROP TRIGGER {name}")
    con.execute(f"UPDATE nvm_runs SET {column} = ?", (value,))
    con.commit()
    con.close()
    with pytest.raises(NanoVMError), SqliteStore(path) as store:
        ExecutionVM(tools=TOOLS, store=store).verify("r")


def test_another_amount_is_another_hash() -> None:
    (_, five), (_, six), (_, again) = journal(5), journal(6), journal(5)
    assert five.trace_hash == again.trace_hash != six.trace_hash
    assert five.outcome_hash == again.outcome_hash


def test_a_doubled_last_leaf_changes_the_root() -> None:
    leaves = [leaf_hash(text) for text in (b"a", b"b", b"c")]
    assert root(leaves) != root([*leaves, leaves[-1]])


def test_the_record_of_a_step_does_not_grow_with_the_past() -> None:
    data = program(*(tool_step(f"s{number:04}", "act") for number in range(1_000)))
    vm = ExecutionVM(tools=Tools("act"))
    sizes = [len(msgspec.msgpack.encode(entry)) for entry in run(vm, data).entries]
    assert max(sizes[900:-1]) <= max(sizes[2:102]) + 16
