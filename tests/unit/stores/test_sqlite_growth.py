"""What operators and workers ask all the time costs the same however much is stored: counted in instructions of
SQLite's virtual machine, which no other load on the machine changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nano_vm.journal.port import RunQuery
from nano_vm.stores.migrations import MIGRATIONS, VERSION
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import NOW, Draft

FEW, MANY = 20, 400
WAITS = [{"attempt": 1, "event": "go", "kind": "event", "occurrence": 1, "step": "go"}]


def filled(path: Path, count: int) -> SqliteStore:
    """`count` runs that wait for an event and are nobody's, one of them of a program and a tenant of its own."""
    store = SqliteStore(path, durability="normal")
    for number in range(count):
        rare = {"program_name": "rare", "tenant": "rare"} if number == 0 else {}
        draft = Draft(f"r{number}", status="SUSPENDED", waits=WAITS, key=f"k{number}", **rare)
        store.create(draft.record, draft.entries(3))
    return store


def instructions(store: SqliteStore, work: Callable[[SqliteStore], Any]) -> int:
    """How many instructions the database takes for `work`."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    store._reader.query(lambda con: con.set_progress_handler(tick, 1))
    try:
        work(store)
    finally:
        store._reader.query(lambda con: con.set_progress_handler(None, 0))
    return count


@pytest.mark.parametrize(
    "work",
    [
        lambda store: store.claimable(NOW),
        lambda store: store._owners_in_use(),
        lambda store: store.record("r7"),
        lambda store: store.read("r7"),
        lambda store: store.find_key("default", "refund", "k7"),
        lambda store: store.records(RunQuery(limit=10)),
        lambda store: store.records(RunQuery(limit=10, after="r9")),
        lambda store: store.records(RunQuery(limit=10, status="SUSPENDED")),
        lambda store: store.records(RunQuery(limit=10, status="FAILED")),
        lambda store: store.records(RunQuery(limit=10, program_name="rare")),
        lambda store: store.records(RunQuery(limit=10, tenant="rare")),
        lambda store: store.tail(0, 10),
    ],
    ids=[
        "claimable",
        "owners",
        "record",
        "read",
        "key",
        "newest",
        "page",
        "status",
        "none",
        "program",
        "tenant",
        "tail",
    ],
)
def test_it_costs_the_same_however_many_runs_wait(work: Callable[[SqliteStore], Any], tmp_path: Path) -> None:
    with filled(tmp_path / "few.db", FEW) as few, filled(tmp_path / "many.db", MANY) as many:
        assert 0 < instructions(many, work) <= 1.1 * instructions(few, work)


def test_work_is_still_found_among_many_that_wait(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with filled(path, FEW) as store:
        dead = Draft("dead", owner=store.owner)
        store.create(dead.record, dead.entries(1))
        store.append("dead", 1, dead.entries(1), dead.update("SUSPENDED", waits=WAITS))
        timer = Draft("timer", status="SUSPENDED", waits=WAITS, wake_at_ms=NOW + 5)
        store.create(timer.record, timer.entries(1))
        store.abandon()
    with SqliteStore(path) as store:
        assert store.claimable(NOW) == ["dead"]
        assert store.claimable(NOW + 5) == ["dead", "timer"]


def test_a_database_of_the_version_before_gets_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    filled(path, 3).close()
    con = sqlite3.connect(path)
    for statement in MIGRATIONS[4]:
        con.execute(f"DROP INDEX {statement.split()[2]}")
    con.execute("DROP TABLE nvm_pauses")  # of the migration after that
    con.execute("PRAGMA user_version=4")
    con.commit()
    con.close()
    with SqliteStore(path) as store:
        assert store.claimable(NOW) == []
        assert [record.run_id for record in store.records(RunQuery(program_name="rare"))] == ["r0"]
        assert store.integrity() == []
    con = sqlite3.connect(path)
    assert con.execute("PRAGMA user_version").fetchone() == (VERSION,)
    con.close()
