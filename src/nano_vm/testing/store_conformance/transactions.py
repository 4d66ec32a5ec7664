"""The promises about transactions that a tool shares with its journal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from nano_vm.journal.port import JournalStore
from nano_vm.testing.store_conformance.check import Conformance, on_one_store
from nano_vm.testing.store_conformance.draft import Draft, refusal, settle


class TransactionConformance(Conformance):
    """A tool's writes and its entries are kept together or not at all, whatever the tool does."""

    @on_one_store
    async def test_a_tools_writes_and_entries_commit_together(self, store: JournalStore) -> None:
        draft = await self._ledger(store)
        async with store.transaction() as transaction:
            transaction.connection.execute("INSERT INTO ledger VALUES (1)")
            transaction.append("r1", 1, draft.entries(1))
            transaction.append("r1", 1, draft.entries(2), draft.update("SUSPENDED"))
            assert len(store.read("r1")) == 1  # nothing is seen before the commit
        assert await self._ledger_rows(store) == [(1,)]
        assert len(store.read("r1")) == 4
        assert store.record("r1").status == "SUSPENDED"
        await settle(store.append("r1", 1, draft.entries(1)))
        assert [entry.seq for entry in store.read("r1")] == list(range(5))

    @on_one_store
    async def test_a_failing_tool_leaves_nothing(self, store: JournalStore) -> None:
        draft = await self._ledger(store)
        entries = draft.entries(3)

        async def fail() -> None:
            async with store.transaction() as transaction:
                transaction.connection.execute("INSERT INTO ledger VALUES (1)")
                transaction.append("r1", 1, entries[:1])
                raise LookupError

        outcome = await asyncio.gather(fail(), return_exceptions=True)
        assert isinstance(outcome[0], LookupError)
        for fence, bad, code in ((2, entries[:1], "LEASE_LOST"), (1, entries[1:], "JOURNAL_CONFLICT")):
            with refusal(code, run_id="r1"):
                async with store.transaction() as transaction:
                    transaction.connection.execute("INSERT INTO ledger VALUES (2)")
                    transaction.append("r1", fence, bad)
        assert await self._ledger_rows(store) == []
        assert len(store.read("r1")) == 1
        await settle(store.append("r1", 1, entries))

    @on_one_store
    async def test_a_tool_cannot_end_or_widen_its_transaction(self, store: JournalStore) -> None:
        await self._ledger(store)
        attempts: list[Callable[[Any], object]] = [
            lambda con: con.execute("COMMIT"),
            lambda con: con.execute("ROLLBACK"),
            lambda con: con.commit(),
            lambda con: con.rollback(),
            lambda con: con.close(),
            lambda con: con.executescript("SELECT 1"),
            lambda con: con.set_authorizer(None),
            lambda con: con.execute("ATTACH ':memory:' AS other"),
            lambda con: con.execute("PRAGMA synchronous=OFF"),
            lambda con: con.execute("DROP TABLE ledger"),
            lambda con: con.cursor().execute("END"),
            lambda con: setattr(con, "isolation_level", None),
        ]
        for attempt in attempts:
            with contextlib.suppress(LookupError):
                async with store.transaction() as transaction:
                    con = transaction.connection
                    con.execute("INSERT INTO ledger VALUES (1)")
                    # Some of these are refused, some do nothing; none may let the row survive.
                    with contextlib.suppress(Exception):
                        attempt(con)
                    raise LookupError
            assert await self._ledger_rows(store) == []

    @on_one_store
    async def test_a_transaction_that_the_database_ended_writes_nothing_more(
        self, store: JournalStore
    ) -> None:
        draft = await self._ledger(store)
        with refusal("STORE_IO"):
            async with store.transaction() as transaction:
                con = transaction.connection
                con.execute("INSERT INTO ledger VALUES (1)")
                for _ in range(2):  # the second would be committed by itself, were it let through
                    with contextlib.suppress(Exception):
                        con.execute("INSERT OR ROLLBACK INTO ledger VALUES (1)")
                with contextlib.suppress(Exception):
                    con.execute("INSERT INTO ledger VALUES (2)")
        with contextlib.suppress(Exception):
            con.execute("INSERT INTO ledger VALUES (3)")  # kept beyond its transaction
        assert await self._ledger_rows(store) == []
        assert len(store.read("r1")) == 1
        await settle(store.append("r1", 1, draft.entries(1)))

    @on_one_store
    async def test_appends_wait_for_a_tool_and_then_go_through(self, store: JournalStore) -> None:
        draft = await self._ledger(store)
        others = [Draft(f"o{number}", store.owner) for number in range(3)]
        for other in others:
            await settle(store.create(other.record, other.entries(1)))

        async def append(other: Draft) -> None:
            await settle(store.append(other.run_id, 1, other.entries(2)))

        async def tool() -> None:
            async with store.transaction() as transaction:
                for _ in range(20):
                    await asyncio.sleep(0)  # the others run meanwhile
                transaction.append("r1", 1, draft.entries(1))

        await asyncio.gather(tool(), *(append(other) for other in others))
        assert [len(store.read(other.run_id)) for other in others] == [3, 3, 3]
        assert len(store.read("r1")) == 2

    @on_one_store
    async def test_transactions_follow_one_another(self, store: JournalStore) -> None:
        await self._ledger(store)
        inside = 0

        async def tool(number: int) -> None:
            nonlocal inside
            async with store.transaction() as transaction:
                inside += 1
                assert inside == 1
                await asyncio.sleep(0)
                transaction.connection.execute("INSERT INTO ledger VALUES (?)", (number,))
                inside -= 1

        tasks = [asyncio.create_task(tool(number)) for number in range(8)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await self._ledger_rows(store) == [(n,) for n in range(8) if n != 3]

    @on_one_store
    async def test_a_tool_that_would_wait_for_itself_is_told(self, store: JournalStore) -> None:
        await self._ledger(store)
        async with store.transaction():
            with refusal("STORE_LOCKED"):
                async with store.transaction():
                    pass
        async with store.transaction():
            pass

    async def _ledger(self, store: JournalStore) -> Draft:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        async with store.transaction() as transaction:
            transaction.connection.execute("CREATE TABLE ledger (amount INTEGER UNIQUE)")
        return draft

    async def _ledger_rows(self, store: JournalStore) -> list[tuple[int]]:
        async with store.transaction() as transaction:
            rows: list[tuple[int]] = transaction.connection.execute(
                "SELECT amount FROM ledger ORDER BY amount"
            ).fetchall()
        return rows
