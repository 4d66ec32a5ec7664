"""P3 on the short way: a run that is alone commits without waiting for the loop, and still before every effect."""

import asyncio
import sqlite3
from collections.abc import Awaitable
from pathlib import Path

import pytest

from nano_vm import ExecutionVM, SqliteStore
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Entry, open_events
from nano_vm.journal.plain import ALONE, success_of
from nano_vm.kernel.events import StepStarted
from nano_vm.testing.store_conformance import Draft, settle

STEPS = 6


@pytest.mark.parametrize("runs", [1, 12])
def test_an_intent_is_in_the_file_before_its_effect_begins(tmp_path: Path, runs: int) -> None:
    path = tmp_path / "runs.db"
    found: list[tuple[str, bool]] = []
    hints: list[bool] = []

    with SqliteStore(path, durability="normal") as writer, SqliteStore(path) as reader:

        async def act(run: str, place: int) -> int:
            hints.append(writer.alone)
            events = [event for entry in reader.read(run) for event in open_events(entry)]
            intents = [event.step for event in events if type(event) is StepStarted]
            found.append((run, intents == [f"s{number}" for number in range(place + 1)]))
            return place

        steps = [
            {"id": f"s{place}", "type": "tool", "tool": "act", "args": {"run": "$run.id", "place": place}}
            for place in range(STEPS)
        ]
        vm = ExecutionVM(tools={"act": act}, store=writer)

        async def main() -> list[str]:
            program = {"name": "alone", "steps": steps}
            await vm.run(program, trace_id="before")  # a run that was alone says nothing of those that follow
            hints.clear()
            found.clear()
            traces = await asyncio.gather(*[vm.run(program, trace_id=f"r{number}") for number in range(runs)])
            return [trace.status.value for trace in traces]

        assert asyncio.run(main()) == ["SUCCESS"] * runs
        assert len(found) == runs * STEPS
        assert all(durable for _, durable in found)
        assert any(hints) == (runs == 1), "one run takes the short way, many are committed in groups"
        for number in range(runs):
            vm.verify(f"r{number}")


async def add(store: SqliteStore, draft: Draft, value: bytes = b"1") -> None:
    """A success at the end of the run's journal, on the short way where that is open."""
    success = "1", success_of("s", False, 1), value, *ALONE
    await settle(store.append_plain("r", 1, draft.chain, success, b"s" * 16, asyncio.get_running_loop()))


async def refused(adding: Awaitable[None]) -> str:
    try:
        await adding
    except NanoVMError as error:
        return error.code
    return ""


async def alone(store: SqliteStore) -> Draft:
    draft = Draft("r", store.owner)
    await settle(store.create(draft.record, draft.entries(1)))
    store.alone = True
    await add(store, draft)
    assert len(store.read("r")) == 2
    return draft


def test_the_short_way_seals_what_the_other_seals(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore, short: bool) -> list[Entry]:
        draft = await alone(store)
        store.alone = short
        for value in (b"2", b'"' + b"x" * 70_000 + b'"', b"3"):  # the large one is a blob
            await add(store, draft, value)
        entries = store.read("r")
        assert draft.chain.head == entries[-1].digest
        return entries

    with SqliteStore(tmp_path / "a.db") as one, SqliteStore(tmp_path / "b.db") as other:
        assert asyncio.run(scenario(one, True)) == asyncio.run(scenario(other, False))
        assert one.integrity() == []


def test_who_is_alone_waits_for_another_process(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"

    async def scenario(store: SqliteStore) -> None:
        draft = await alone(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        adding = asyncio.ensure_future(add(store, draft))
        while not store.at_work:
            await asyncio.sleep(0)
        assert len(store.read("r")) == 2
        other.execute("COMMIT")
        other.close()
        await adding
        assert [entry.seq for entry in store.read("r")] == [0, 1, 2]
        assert draft.chain.head == store.read("r")[-1].digest

    with SqliteStore(path) as store:
        asyncio.run(scenario(store))


@pytest.mark.parametrize(
    ("by_hand", "code"),
    [
        ("UPDATE nvm_runs SET fence = 2, owner = 'somebody'", "LEASE_LOST"),
        (
            "INSERT INTO nvm_segments SELECT NULL, run, 2, digests, facts, NULL FROM nvm_segments WHERE seq = 0",
            "JOURNAL_CONFLICT",
        ),
        ("DROP TABLE nvm_segments", "STORE_DAMAGED"),
    ],
)
def test_who_is_alone_is_told_what_is_wrong(tmp_path: Path, by_hand: str, code: str) -> None:
    path = tmp_path / "runs.db"

    async def scenario(store: SqliteStore) -> None:
        draft = await alone(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute(by_hand)
        other.close()
        assert await refused(add(store, draft)) == code

    with SqliteStore(path) as store:
        asyncio.run(scenario(store))


def test_who_is_alone_goes_on_when_the_disk_has_room_again(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        draft = await alone(store)
        con = store._writer.con
        pages = con.execute("PRAGMA page_count").fetchone()[0]
        con.execute(f"PRAGMA max_page_count={pages}")
        length, code = 1, ""
        while not code:
            length += 1
            code = await refused(add(store, draft, b'"' + b"x" * 1_000 + b'"'))
        assert code == "STORE_FULL"
        assert draft.chain.length == len(store.read("r")) == length
        con.execute("PRAGMA max_page_count=1000000")
        await add(store, draft)
        assert draft.chain.head == store.read("r")[-1].digest
        assert store.integrity() == []

    with SqliteStore(tmp_path / "runs.db") as store:
        asyncio.run(scenario(store))
