"""A transactional tool's own transaction in memory: its writes and the journal entries about them are there together.

The database is one of SQLite's in memory, and its connection allows what that of the SQLite store allows.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from nano_vm.errors import StoreError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import RunUpdate
from nano_vm.stores import rules
from nano_vm.stores.guarded import GuardedConnection
from nano_vm.stores.turnstile import Turnstile, inside_tool

if TYPE_CHECKING:
    from nano_vm.stores.memory import MemoryJournalStore


class ToolTransaction:
    """What the tool is given. Appends are kept back until it is done; ownership is checked twice, when they are made
    and when it is done."""

    def __init__(self, store: MemoryJournalStore, con: GuardedConnection) -> None:
        self._store = store
        self._con = con
        self._held: dict[str, tuple[int, list[Entry]]] = {}
        self._updates: list[tuple[str, RunUpdate]] = []

    @property
    def connection(self) -> Any:
        return self._con

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> None:
        run = self._store._owned(run_id, fence, entries)
        _, held = self._held.get(run_id, (fence, []))

        def stored(start: int, stop: int) -> list[str]:
            return [entry.digest for entry in (run.entries + held)[start:stop]]

        fresh = rules.admit(run_id, run.length + len(held), entries, stored)
        self._held[run_id] = (fence, [*held, *fresh])
        if update is not None:
            self._updates.append((run_id, update))

    def finish(self) -> None:
        store = self._store
        store._check_open()
        self._con.take_back()
        if not self._con.in_transaction:
            raise StoreError(
                "STORE_IO",
                "the tool's transaction was rolled back by the database",
                help="do not use OR ROLLBACK in a tool's statements",
            )
        with store._lock:
            for run_id, (fence, entries) in self._held.items():
                run = store._owned(run_id, fence, entries)
                rules.admit(run_id, run.length, entries, run.digests)
            self._con.execute("COMMIT")
            for run_id, (fence, entries) in self._held.items():
                run = store._owned(run_id, fence, entries)
                store._extend(run, rules.admit(run_id, run.length, entries, run.digests))
            for run_id, update in self._updates:
                store._run(run_id).apply(update)


class ToolDatabase:
    """The database of one store, made when a tool first asks for it. One tool at a time has it."""

    def __init__(self) -> None:
        self._turnstile = Turnstile()
        self._con: GuardedConnection | None = None
        self._closed = False

    @contextlib.asynccontextmanager
    async def transaction(self, store: MemoryJournalStore) -> AsyncIterator[ToolTransaction]:
        await self._turnstile.enter()
        try:
            con = self._con
            if con is None:
                con = self._con = sqlite3.connect(
                    ":memory:", isolation_level=None, check_same_thread=False, factory=GuardedConnection
                )
            con.take_back()
            con.execute("BEGIN IMMEDIATE")
            con.lend()
            transaction = ToolTransaction(store, con)
            token = self._turnstile.mark_inside()
            try:
                yield transaction
                transaction.finish()
            finally:
                with contextlib.suppress(ValueError):  # closed in another context than it was begun in
                    inside_tool.reset(token)
                if not self._closed:
                    con.take_back()
                    if con.in_transaction:
                        con.execute("ROLLBACK")
                    con.lend()  # a tool that kept it finds it closed for business
        finally:
            self._turnstile.leave()

    def close(self) -> None:
        self._closed = True
        con, self._con = self._con, None
        if con is not None:
            con.take_back()
            con.close()
