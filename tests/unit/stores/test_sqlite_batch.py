"""A group of any size is written whole, in the order of its works, and one that is refused harms no other."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from nano_vm.errors import NanoVMError
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import Draft, settle


@pytest.mark.parametrize("count", [1, 24, 25, 26, 50, 63])
def test_groups_of_any_size_are_written(tmp_path: Path, count: int) -> None:
    async def scenario(store: SqliteStore) -> None:
        drafts = [Draft(f"r{number}", store.owner) for number in range(count)]
        await asyncio.gather(*(settle(store.create(draft.record, draft.entries(2))) for draft in drafts))
        kept = {draft.record.run_id: draft.entries(3) for draft in drafts}
        appends = [settle(store.append(run_id, 1, entries)) for run_id, entries in kept.items()]
        await asyncio.gather(*appends)
        for run_id, entries in kept.items():
            assert store.read(run_id, 2) == entries

    with SqliteStore(tmp_path / "journal.db") as store:
        asyncio.run(scenario(store))
        assert store.integrity() == []


@pytest.mark.parametrize("refused", [0, 24, 25, 59])
def test_a_row_that_the_database_refuses_is_the_only_one(tmp_path: Path, refused: int) -> None:
    """What the store believes of a run is not so: somebody has added an entry to its journal by hand."""
    path = tmp_path / "journal.db"

    async def scenario(store: SqliteStore) -> None:
        drafts = [Draft(f"r{number}", store.owner) for number in range(60)]
        await asyncio.gather(*(settle(store.create(draft.record, draft.entries(1))) for draft in drafts))
        by_hand = sqlite3.connect(path)
        by_hand.execute(
            "INSERT INTO nvm_segments SELECT NULL, run, 1, digests, facts, NULL FROM nvm_segments WHERE run = "
            "(SELECT no FROM nvm_runs WHERE run_id = ?)",
            (f"r{refused}",),
        )
        by_hand.commit()
        by_hand.close()
        appends = [settle(store.append(draft.record.run_id, 1, draft.entries(1))) for draft in drafts]
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            if number == refused:
                assert isinstance(outcome, NanoVMError)
                assert outcome.code == "JOURNAL_CONFLICT"
            else:
                assert outcome is None
                assert len(store.read(f"r{number}")) == 2

    with SqliteStore(path) as store:
        asyncio.run(scenario(store))
