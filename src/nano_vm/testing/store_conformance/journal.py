"""The promises about journals: entries, payloads, annexes, the tail and the log that is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import GENESIS, Chain, Entry
from nano_vm.journal.port import BLOB_BYTES_MIN, LEASE_MS, Durable, JournalStore
from nano_vm.journal.reading import verify_entry
from nano_vm.journal.storelog import LogFold
from nano_vm.kernel.events import EventRefused, RunFinished, TimerFired
from nano_vm.testing.store_conformance.check import Conformance, on_one_store
from nano_vm.testing.store_conformance.draft import NOW, Draft, refusal, settle


class JournalConformance(Conformance):
    """A journal is kept as it was written, in order, by whoever owns the run."""

    # --- journal ------------------------------------------------------------------------------------------
    @on_one_store
    async def test_a_created_run_reads_back_as_it_was_written(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner, tenant="acme", inputs_digest="sha256:1", parent="r0", outcome="x")
        entries = draft.entries(3)
        await settle(store.create(draft.record, entries))
        assert store.read("r1") == entries
        record = store.record("r1")
        assert (record.owner, record.fence, record.lease_until_ms) == (store.owner, 1, NOW + LEASE_MS)
        assert (record.tenant, record.inputs_digest, record.parent) == ("acme", "sha256:1", "r0")
        assert (record.status, record.outcome, record.waits) == ("RUNNING", "x", [])

    @on_one_store
    async def test_a_run_without_an_owner_is_free_and_takes_no_appends(self, store: JournalStore) -> None:
        draft = Draft("r1")
        await settle(store.create(draft.record, draft.entries(1)))
        assert (store.record("r1").owner, store.record("r1").fence) == (None, 0)
        more = draft.entries(1)
        for fence in (0, 1, -1):
            with refusal("LEASE_LOST", run_id="r1"):
                await settle(store.append("r1", fence, more))
        assert store.claim("r1", NOW) == 1
        await settle(store.append("r1", 1, more))
        assert len(store.read("r1")) == 2

    @on_one_store
    async def test_a_run_cannot_be_created_for_somebody_else(self, store: JournalStore) -> None:
        with refusal("USAGE"):
            await settle(store.create(Draft("r1", "somebody").record, []))

    @on_one_store
    async def test_run_ids_and_keys_are_taken_once(self, store: JournalStore) -> None:
        first = Draft("r1", store.owner, key="order-7")
        await settle(store.create(first.record, first.entries(1)))
        with refusal("RUN_EXISTS", run_id="r1"):
            await settle(store.create(Draft("r1", store.owner).record, []))
        with refusal("RUN_EXISTS", run_id="r1"):
            await settle(store.create(Draft("r2", store.owner, key="order-7").record, []))
        with refusal("RUN_NOT_FOUND"):
            store.record("r2")
        await settle(store.create(Draft("r3", store.owner, key="order-7", tenant="other").record, []))
        await settle(store.create(Draft("r4", store.owner, key="order-7", program_name="other").record, []))
        assert len(store.read("r1")) == 1
        found = store.find_key("default", "refund", "order-7")
        assert found is not None
        assert found.run_id == "r1"
        assert store.find_key("default", "refund", "order-8") is None

    @on_one_store
    async def test_appends_are_read_in_order_and_in_slices(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        entries = draft.entries(2)
        await settle(store.create(draft.record, entries))
        for size in (1, 3, 2, 1):
            entries += (fresh := draft.entries(size))
            await settle(store.append("r1", 1, fresh))
        assert store.read("r1") == entries
        for start in range(len(entries) + 2):
            for limit in (None, 0, 1, 3, 100):
                stop = None if limit is None else start + limit
                assert store.read("r1", start, limit) == entries[start:stop]
        prev = GENESIS
        for entry in store.read("r1"):
            verify_entry(entry, "r1", prev)
            prev = entry.digest

    @on_one_store
    async def test_an_append_of_a_thousand_entries_is_one_append(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        await settle(store.append("r1", 1, draft.entries(1_000)))
        found = store.read("r1")
        assert [entry.seq for entry in found] == list(range(1_001))
        assert store.read("r1", 254, 5) == found[254:259]
        assert store.read("r1", 998, 50) == found[998:]

    @on_one_store
    async def test_an_unknown_run_is_not_found(self, store: JournalStore) -> None:
        with refusal("RUN_NOT_FOUND", run_id="r1"):
            store.read("r1")
        with refusal("RUN_NOT_FOUND", run_id="r1"):
            store.record("r1")
        with refusal("RUN_NOT_FOUND", run_id="r1"):
            await settle(store.append("r1", 1, Draft("r1").entries(1)))
        with refusal("RUN_NOT_FOUND", run_id="r1"):
            await settle(store.annex("r1", lambda length, head: []))
        with refusal("RUN_NOT_FOUND", run_id="r1"):
            store.claim("r1", NOW)

    @on_one_store
    async def test_appending_the_same_again_is_a_no_op(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        entries = draft.entries(4)
        await settle(store.create(draft.record, entries[:1]))
        await settle(store.append("r1", 1, entries[1:3]))
        await settle(store.append("r1", 1, entries[1:3]))
        await settle(store.append("r1", 1, entries[:2]))
        assert store.read("r1") == entries[:3]
        await settle(store.append("r1", 1, entries[2:]))  # one that is there, one that is not
        assert store.read("r1") == entries

    @on_one_store
    async def test_another_entry_at_a_taken_place_is_a_hard_stop(self, store: JournalStore) -> None:
        draft, other = Draft("r1", store.owner), Draft("r1", store.owner)
        entries, foreign = draft.entries(3), other.entries(4, payload=b'{"amount":6}')
        await settle(store.create(draft.record, entries))
        with refusal("JOURNAL_CONFLICT", run_id="r1", seq=1):
            await settle(store.append("r1", 1, foreign[1:]))
        with refusal("JOURNAL_CONFLICT", run_id="r1", seq=2):
            await settle(store.append("r1", 1, [entries[1], foreign[2], foreign[3]]))
        assert store.read("r1") == entries

    @on_one_store
    async def test_a_gap_is_a_hard_stop(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        entries = draft.entries(5)
        with refusal("JOURNAL_CONFLICT", run_id="r1", seq=1):
            await settle(store.create(draft.record, entries[1:]))
        await settle(store.create(draft.record, entries[:1]))
        with refusal("JOURNAL_CONFLICT", run_id="r1", seq=2):
            await settle(store.append("r1", 1, entries[2:]))
        with refusal("JOURNAL_CONFLICT", run_id="r1", seq=3):
            await settle(store.append("r1", 1, [entries[1], entries[3]]))
        assert store.read("r1") == entries[:1]

    @on_one_store
    async def test_a_record_changes_together_with_its_journal(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        waits = [{"kind": "event", "name": "paid", "step": "wait"}]
        fresh = draft.entries(2)
        update = draft.update("SUSPENDED", waits=waits, wake_at_ms=NOW + 9, outcome="open", release=True)
        await settle(store.append("r1", 1, fresh, update))
        record = store.record("r1")
        assert (record.status, record.outcome, record.waits) == ("SUSPENDED", "open", waits)
        assert (record.wake_at_ms, record.updated_at_ms) == (NOW + 9, NOW + 3)
        assert (record.length, record.head) == (3, draft.chain.head)
        assert (record.owner, record.fence, record.lease_until_ms) == (None, 1, 0)
        with refusal("LEASE_LOST", run_id="r1", seq=3):
            await settle(store.append("r1", 1, draft.entries(1)))
        assert len(store.read("r1")) == 3

    @on_one_store
    async def test_a_refused_append_changes_no_record(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        entries = draft.entries(3)
        await settle(store.create(draft.record, entries[:1]))
        with refusal("JOURNAL_CONFLICT"):
            await settle(store.append("r1", 1, entries[2:], draft.update("SUCCESS", release=True)))
        with refusal("LEASE_LOST"):
            await settle(store.append("r1", 2, entries[1:], draft.update("SUCCESS", release=True)))
        record = store.record("r1")
        assert (record.status, record.owner, record.length) == ("RUNNING", store.owner, 0)

    @on_one_store
    async def test_records_are_copies(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        draft.record.status = "FAILED"
        store.record("r1").waits.append({"kind": "event"})
        assert (store.record("r1").status, store.record("r1").waits) == ("RUNNING", [])

    @on_one_store
    async def test_one_failing_append_does_not_disturb_the_others(self, store: JournalStore) -> None:
        drafts = [Draft(f"r{number}", store.owner) for number in range(6)]
        for draft in drafts:
            await settle(store.create(draft.record, draft.entries(1)))

        async def append(draft: Draft, fence: int, skip: int) -> str:
            try:
                await settle(store.append(draft.run_id, fence, draft.entries(2)[skip:]))
            except NanoVMError as error:
                return error.code
            return "durable"

        calls = ((1, 0), (2, 0), (1, 0), (1, 1), (1, 0), (7, 0))
        answers = await asyncio.gather(*(append(d, *call) for d, call in zip(drafts, calls, strict=True)))
        assert answers == ["durable", "LEASE_LOST", "durable", "JOURNAL_CONFLICT", "durable", "LEASE_LOST"]
        assert [len(store.read(draft.run_id)) for draft in drafts] == [3, 1, 3, 1, 3, 1]

    @on_one_store
    async def test_calls_take_effect_in_the_order_in_which_they_were_made(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        entries = draft.entries(6)
        pending = [
            store.create(draft.record, entries[:2]),
            store.append("r1", 1, entries[2:4]),
            store.append("r1", 1, entries[4:]),
        ]
        store.release("r1", 1)  # comes after what was called before it
        for durable in pending:
            await settle(durable)
        assert store.read("r1") == entries
        assert store.record("r1").owner is None

    @on_one_store
    async def test_an_append_outlives_its_waiter(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        fresh = draft.entries(1)

        async def append() -> None:
            await settle(store.append("r1", 1, fresh))

        waiter = asyncio.create_task(append())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        await settle(store.append("r1", 1, draft.entries(1)))
        assert [entry.seq for entry in store.read("r1")] == [0, 1, 2]

    @on_one_store
    async def test_runs_are_found_by_what_their_facts_hold(self, store: JournalStore) -> None:
        for name in ("r1", "r2", "r3"):
            draft = Draft(name)
            await settle(store.create(draft.record, draft.entries(2)))
        assert store.holding(b'"run":"r2"') == ["r2"]
        assert store.holding(b'"run":"') == ["r1", "r2", "r3"]
        assert store.holding(b"nothing has this") == []

    @on_one_store
    async def test_an_annex_goes_to_the_true_end_of_a_free_run(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(2)))
        with refusal("LEASE_LOST", run_id="r1"):
            await settle(store.annex("r1", lambda length, head: draft.entries(1)))
        await settle(store.append("r1", 1, draft.entries(1), draft.update("SUCCESS", release=True)))
        seen: list[tuple[int, str]] = []

        def build(length: int, head: str) -> list[Entry]:
            seen.append((length, head))
            chain = Chain("r1", length, head)
            return [chain.seal(TimerFired(at_ms=NOW, attempt=1, occurrence=1, step="late"), b"", None)]

        await asyncio.gather(*(settle(store.annex("r1", build)) for _ in range(3)))
        entries = store.read("r1")
        assert len(entries) == 6
        assert sorted(set(seen)) == [(at, entries[at - 1].digest) for at in (3, 4, 5)]
        prev = GENESIS
        for entry in entries:
            verify_entry(entry, "r1", prev)
            prev = entry.digest
        assert store.record("r1").status == "SUCCESS"
        assert store.record("r1").owner is None

    @on_one_store
    async def test_an_annex_that_cannot_be_built_writes_nothing(self, store: JournalStore) -> None:
        draft = Draft("r1")
        entries = draft.entries(3)
        await settle(store.create(draft.record, entries[:1]))

        def fail(length: int, head: str) -> list[Entry]:
            raise LookupError

        outcome = await asyncio.gather(_call(lambda: store.annex("r1", fail)), return_exceptions=True)
        assert isinstance(outcome[0], LookupError)
        with refusal("JOURNAL_CONFLICT"):
            await settle(store.annex("r1", lambda length, head: entries[2:]))
        assert store.read("r1") == entries[:1]

    # --- payloads -----------------------------------------------------------------------------------------
    @on_one_store
    async def test_every_payload_comes_back_byte_for_byte(self, store: JournalStore) -> None:
        draft = Draft("run with ünïcode \u2028 and 'quotes' \"", store.owner)
        large, larger = b'"' + b"x" * (BLOB_BYTES_MIN - 2) + b'"', b'"' + b"y" * (BLOB_BYTES_MIN - 1) + b'"'
        entries = draft.entries(1, payload=None)
        for payload in (b"null", b'"\\n"', '"\U0001f600"'.encode(), large, larger, larger):
            entries += draft.entries(1, payload)
        entries += draft.entries(1, b"\x00\n\xff ciphertext \n", salt=b"")  # carries its salt inside
        entries += draft.entries(1, b"\n" * (BLOB_BYTES_MIN + 1), salt=b"")
        entries += draft.entries(2, payload=None)
        await settle(store.create(draft.record, entries[:5]))
        await settle(store.append(draft.run_id, 1, entries[5:]))
        assert store.read(draft.run_id) == entries
        assert [entry for _, entry in store.tail(0)[1]] == entries
        assert store.integrity() == []

    # --- tail ---------------------------------------------------------------------------------------------
    @on_one_store
    async def test_the_tail_shows_all_runs_in_the_order_of_their_commits(self, store: JournalStore) -> None:
        assert store.tail(0)[1] == []
        one, two = Draft("r1", store.owner), Draft("r2", store.owner)
        expected: list[tuple[str, Entry]] = []
        for draft, size in ((one, 3), (two, 1), (one, 2), (two, 4), (one, 1)):
            fresh = draft.entries(size)
            expected += [(draft.run_id, entry) for entry in fresh]
            if draft.chain.length == size:
                await settle(store.create(draft.record, fresh))
            else:
                await settle(store.append(draft.run_id, 1, fresh))
        for limit in (1, 2, 3, 4, 100):
            cursor, seen = 0, []
            while True:
                cursor, page = store.tail(cursor, limit)
                if not page:
                    break
                assert len(page) <= limit
                seen += page
            assert seen == expected
        fresh = one.entries(1)
        await settle(store.append("r1", 1, fresh))
        assert store.tail(cursor)[1] == [("r1", fresh[0])]

    @on_one_store
    async def test_the_log_has_every_start_end_and_annex_in_the_order_of_their_commits(
        self, store: JournalStore
    ) -> None:
        """The tail is what the store's log is made of: the same, in the same order, whenever it is asked."""
        one, two = Draft("one", store.owner), Draft("two", store.owner)
        await settle(store.create(one.record, one.entries(1)))
        await settle(store.create(two.record, two.entries(2)))
        finish = two.chain.seal(RunFinished(at_ms=NOW, status="SUCCESS"), b"", None)
        await settle(store.append("two", 1, [finish], two.update("SUCCESS", release=True)))
        await settle(store.append("one", 1, one.entries(3)))

        def late(length: int, head: str) -> list[Entry]:
            refused = EventRefused(at_ms=NOW, code="TERMINAL", event_id="e")
            return [Chain("two", length, head).seal(refused, b"", None)]

        await settle(store.annex("two", late))
        finish = one.chain.seal(RunFinished(at_ms=NOW, status="FAILED"), b"", None)
        await settle(store.append("one", 1, [finish], one.update("FAILED", release=True)))
        expected = [
            ("one", "start", 0),
            ("two", "start", 0),
            ("two", "finish", 2),
            ("two", "annex", 3),
            ("one", "finish", 4),
        ]
        for page in (1, 2, 1_000):
            fold, cursor, leaves = LogFold(), 0, []
            while True:
                cursor, found = store.tail(cursor, page)
                leaves += [leaf for run, entry in found for leaf in fold.take(run, entry)]
                if len(found) < page:
                    break
            assert [(leaf.run, leaf.kind, leaf.seq) for leaf in leaves] == expected
            assert all(store.read(leaf.run)[leaf.seq].digest == leaf.digest for leaf in leaves)


async def _call(call: Callable[[], Durable]) -> None:
    await settle(call())
