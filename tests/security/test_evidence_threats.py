"""Attacks on evidence by somebody who can write the whole database and knows how nano-vm works."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from nano_vm import ExecutionVM, Program, SqliteStore, VerificationError
from nano_vm.evidence.log import Log
from nano_vm.evidence.note import Checkpoint
from nano_vm.journal.port import RunQuery

PROGRAM = Program.from_dict(
    {"name": "pay", "steps": [{"id": "pay", "type": "tool", "tool": "pay", "args": {"amount": "$amount"}}]}
)


def runs(path: Path, *amounts: int, first: int = 0) -> None:
    with SqliteStore(path, durability="normal") as store:
        vm = ExecutionVM(tools={"pay": lambda amount: {"paid": amount}}, store=store)
        for number, amount in enumerate(amounts):
            vm.run_sync(PROGRAM, context={"amount": amount}, trace_id=f"r{first + number}")


def checkpoint(path: Path) -> Checkpoint:
    with SqliteStore(path) as store:
        return Log(store).checkpoint()


def rewrite(path: Path, *statements: str, close_ranks: bool = False) -> None:
    """Run statements with no trigger in the way, and leave everything else as it was; with `close_ranks` number the
    rows anew, so that no number is missing."""
    con = sqlite3.connect(path, isolation_level=None)
    triggers = con.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        con.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        con.execute(statement)
    if close_ranks:
        for table, number in (("nvm_segments", "n"), ("nvm_runs", "no")):
            rows = con.execute(f"SELECT {number} FROM {table} ORDER BY {number}").fetchall()
            for place, (old,) in enumerate(rows, 1):
                con.execute(f"UPDATE {table} SET {number} = ? WHERE {number} = ?", (place, old))
                if table == "nvm_runs":
                    con.execute("UPDATE nvm_segments SET run = ? WHERE run = ?", (place, old))
    for _, sql in triggers:
        con.execute(sql)
    con.close()


def everything_else_is_satisfied(path: Path) -> bool:
    """Whether the database and each run in it verify: the attack leaves nothing that the file itself shows."""
    with SqliteStore(path) as store:
        vm = ExecutionVM(store=store)
        for record in store.records(RunQuery()):
            vm.verify(record.run_id)
        return store.integrity() == []


def is_found(path: Path, old: Checkpoint) -> None:
    with SqliteStore(path) as store, pytest.raises(VerificationError) as raised:
        Log(store).consistency(old)
    assert raised.value.code == "CHECKPOINT_MISMATCH"
    assert raised.value.exit_code == 5


def gone(run: str) -> tuple[str, str]:
    return (
        f"DELETE FROM nvm_segments WHERE run = (SELECT no FROM nvm_runs WHERE run_id = '{run}')",
        f"DELETE FROM nvm_runs WHERE run_id = '{run}'",
    )


@pytest.mark.parametrize("run", ["r0", "r1", "r2"])
def test_a_run_that_vanished_is_found_against_an_earlier_checkpoint(tmp_path: Path, run: str) -> None:
    path = tmp_path / "runs.db"
    runs(path, 1, 2, 3)
    old = checkpoint(path)
    rewrite(path, *gone(run), close_ranks=True)
    assert everything_else_is_satisfied(path)
    is_found(path, old)
    runs(path, 4, 5, first=7)
    is_found(path, old)


@pytest.mark.parametrize("run", ["r0", "r1"])
def test_a_run_that_was_deleted_leaves_a_gap_that_needs_no_checkpoint(tmp_path: Path, run: str) -> None:
    """Rows are numbered without gaps. Only whoever numbers all of them anew, or deletes the last, hides a deletion."""
    path = tmp_path / "runs.db"
    runs(path, 1, 2, 3)
    rewrite(path, *gone(run))
    with SqliteStore(path) as store:
        assert [problem.split(":")[0] for problem in store.integrity()] == ["runs", "segments"]


def test_a_run_that_was_replaced_is_found_against_an_earlier_checkpoint(tmp_path: Path) -> None:
    """The same run id with another amount, made by nano-vm itself, in the very rows of the old one."""
    path, other = tmp_path / "runs.db", tmp_path / "other.db"
    runs(path, 1, 2, 3)
    old = checkpoint(path)
    runs(other, 1, 2_000, 3)
    rewrite(
        path,
        f"ATTACH '{other}' AS other",
        "UPDATE nvm_segments SET digests = o.digests, facts = o.facts, payloads = o.payloads "
        "FROM other.nvm_segments o WHERE o.n = nvm_segments.n AND o.run = 2",
        "DELETE FROM nvm_runs WHERE no = 2",
        "INSERT INTO nvm_runs SELECT * FROM other.nvm_runs WHERE no = 2",
        "DETACH other",
    )
    assert everything_else_is_satisfied(path)
    is_found(path, old)


def test_a_whole_history_that_was_exchanged_is_found(tmp_path: Path) -> None:
    path, other = tmp_path / "runs.db", tmp_path / "other.db"
    runs(path, 1, 2, 3)
    old = checkpoint(path)
    runs(other, 1, 2, 3, 4)
    is_found(other, old)


def test_a_back_up_that_is_older_than_the_checkpoint_is_found(tmp_path: Path) -> None:
    path, copy = tmp_path / "runs.db", tmp_path / "copy.db"
    runs(path, 1)
    with SqliteStore(path) as store:
        store.backup(copy)
    runs(path, 2, first=1)
    is_found(copy, checkpoint(path))


@pytest.mark.parametrize(
    "grow",
    [
        lambda path: None,
        lambda path: runs(path, 4, 5, first=3),
        lambda path: annex(path, "r1"),
    ],
)
def test_a_log_that_only_grew_is_consistent(tmp_path: Path, grow: Callable[[Path], None]) -> None:
    path = tmp_path / "runs.db"
    runs(path, 1, 2, 3)
    old = checkpoint(path)
    grow(path)
    with SqliteStore(path) as store:
        Log(store).consistency(old)


def annex(path: Path, run: str) -> None:
    import asyncio

    from nano_vm.errors import NanoVMError

    with SqliteStore(path) as store:
        vm = ExecutionVM(tools={"pay": lambda amount: 0}, store=store)
        before = len(Log(store))
        with pytest.raises(NanoVMError):
            asyncio.run(vm.resume(run, {}, event_id="late", name="late"))
        assert [leaf.kind for leaf in Log(store).leaves[before:]] == ["annex"]
