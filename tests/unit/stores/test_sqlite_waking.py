"""After a group commit its waiters go on without a handle of the loop each: they notice nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from nano_vm import NanoVMError, SqliteStore
from nano_vm.testing.store_conformance import Draft, settle

OWN: ContextVar[int] = ContextVar("OWN", default=-1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "runs.db") as opened:
        yield opened


async def made(store: SqliteStore, count: int) -> list[Draft]:
    drafts = [Draft(f"r{number}", store.owner) for number in range(count)]
    for draft in drafts:
        await settle(store.create(draft.record, draft.entries(1)))
    return drafts


def test_each_goes_on_in_its_own_task_and_context_in_the_order_of_the_appends(store: SqliteStore) -> None:
    seen: list[tuple[int, int, bool]] = []

    async def append(number: int, draft: Draft) -> None:
        OWN.set(number)
        mine = asyncio.current_task()
        await settle(store.append(draft.run_id, 1, draft.entries(1)))
        seen.append((number, OWN.get(), asyncio.current_task() is mine))

    async def main() -> None:
        drafts = await made(store, 5)
        await asyncio.gather(*[append(number, draft) for number, draft in enumerate(drafts)])
        assert [len(store.read(draft.run_id)) for draft in drafts] == [2] * 5

    asyncio.run(main())
    assert seen == [(number, number, True) for number in range(5)]
    assert OWN.get() == -1


def test_who_is_refused_who_has_left_and_who_is_waited_for_twice_are_told_as_well(store: SqliteStore) -> None:
    async def main() -> None:
        drafts = await made(store, 4)
        refused, left, twice, plain = [
            store.append(draft.run_id, 7 if number == 0 else 1, draft.entries(1))
            for number, draft in enumerate(drafts)
        ]
        assert isinstance(left, asyncio.Future)
        left.cancel()
        outcomes = await asyncio.gather(
            *map(settle, [refused, left, twice, twice, plain]), return_exceptions=True
        )
        assert isinstance(outcomes[0], NanoVMError)
        assert outcomes[0].code == "LEASE_LOST"
        assert isinstance(outcomes[1], asyncio.CancelledError)
        assert outcomes[2:] == [None] * 3
        # Whoever has left had its entry written all the same.
        assert [len(store.read(draft.run_id)) for draft in drafts] == [1, 2, 2, 2]

    asyncio.run(main())


def test_a_waiter_that_stops_the_loop_keeps_none_of_the_others_waiting(store: SqliteStore) -> None:
    told: list[int] = []

    async def append(number: int, draft: Draft) -> None:
        await settle(store.append(draft.run_id, 1, draft.entries(1)))
        told.append(number)
        if number == 1:
            raise KeyboardInterrupt

    async def main() -> list[asyncio.Task[Any]]:
        drafts = await made(store, 4)
        return [asyncio.ensure_future(append(number, draft)) for number, draft in enumerate(drafts)]

    with asyncio.Runner() as runner:
        tasks = runner.run(main())
        loop = runner.get_loop()
        together = asyncio.gather(*tasks)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(together)
        assert told == [0, 1]
        loop.run_until_complete(asyncio.gather(tasks[2], tasks[3]))
        assert isinstance(together.exception(), KeyboardInterrupt)
    assert told == [0, 1, 2, 3]
