"""The suite for a store that one process has to itself."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from nano_vm.journal.port import JournalStore, Mail, RunQuery
from nano_vm.testing.store_conformance.check import on_one_store
from nano_vm.testing.store_conformance.draft import NOW, Draft, refusal, settle
from nano_vm.testing.store_conformance.journal import JournalConformance
from nano_vm.testing.store_conformance.records import RecordConformance
from nano_vm.testing.store_conformance.transactions import TransactionConformance


class StoreConformance(JournalConformance, RecordConformance, TransactionConformance):
    """The promises that a store keeps alone. Derive, and say in `open_store` how one is made."""

    @on_one_store
    async def test_one_process_alone_sees_no_changes_by_others(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        await settle(store.append("r1", 1, draft.entries(1)))
        assert store.changed() is False
        assert store.integrity() == []

    def test_calls_without_an_event_loop_are_finished_when_they_return(self, tmp_path: Path) -> None:
        with contextlib.closing(self.open_store(tmp_path)) as store:
            draft = Draft("r1", store.owner)
            assert store.create(draft.record, draft.entries(1)) is None
            assert store.append("r1", 1, draft.entries(2)) is None
            with refusal("LEASE_LOST"):
                store.append("r1", 2, draft.entries(1))
            assert len(store.read("r1")) == 3

    def test_a_store_outlives_an_event_loop(self, tmp_path: Path) -> None:
        with contextlib.closing(self.open_store(tmp_path)) as store:
            draft = Draft("r1", store.owner)

            async def leave_behind() -> None:
                store.create(draft.record, draft.entries(1))  # not awaited; the loop ends

            async def go_on() -> None:
                await settle(store.append("r1", 1, draft.entries(1)))

            asyncio.run(leave_behind())
            asyncio.run(go_on())
            assert len(store.read("r1")) == 2

    def test_a_closed_store_refuses_everything(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        draft = Draft("r1", store.owner)
        store.create(draft.record, draft.entries(1))
        store.close()
        store.close()
        letter = Mail(mail_id="m", kind="event", body=b"", posted_at_ms=NOW)
        for call in (
            lambda: store.create(draft.record, []),
            lambda: store.append("r1", 1, draft.entries(1)),
            lambda: store.annex("r1", lambda length, head: []),
            lambda: store.read("r1"),
            lambda: store.tail(0),
            lambda: store.record("r1"),
            lambda: store.records(RunQuery()),
            lambda: store.find_key("default", "refund", "k"),
            lambda: store.put_program("sha256:1", "p", b"", NOW),
            lambda: store.program("sha256:1"),
            lambda: store.program_named("p"),
            lambda: store.programs(),
            lambda: store.claim("r1", NOW),
            lambda: store.renew(["r1"], NOW),
            lambda: store.release("r1", 1),
            lambda: store.claimable(NOW),
            lambda: store.bind_action("k", "sha256:1", "r1"),
            lambda: store.post("r1", letter),
            lambda: store.mail("r1"),
            lambda: store.answer("r1", "m", b""),
            lambda: store.answered("r1", "m"),
            lambda: store.changed(),
            lambda: store.transaction(),
            lambda: store.integrity(),
        ):
            with refusal("STORE_CLOSED"):
                call()
