"""What every journal store must keep, as tests that anybody can run over a store of their own.

    from nano_vm.testing.store_conformance import SharedStoreConformance

    class TestMyStore(SharedStoreConformance):
        def open_store(self, place):                # called several times with the same place: several owners
            return MyStore(place / "journal.db")

pytest collects the inherited tests. A store that lives in one process only derives from `StoreConformance`.
Nothing here needs pytest itself; a test's only argument is pytest's `tmp_path`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import GENESIS, Chain, Entry
from nano_vm.journal.port import (
    BLOB_BYTES_MIN,
    LEASE_MS,
    MAIL_MAX,
    Durable,
    JournalStore,
    Mail,
    Pause,
    RunQuery,
    RunRecord,
    RunUpdate,
)
from nano_vm.journal.reading import verify_entry
from nano_vm.journal.storelog import LogFold
from nano_vm.kernel.events import EventRefused, RunFinished, TimerFired

__all__ = ["Draft", "SharedStoreConformance", "StoreConformance", "refusal", "settle"]

NOW = 1_790_000_000_000


class Draft:
    """A run in the making: its record, and a chain that seals as many entries as a test wants."""

    def __init__(self, run_id: str, owner: str | None = None, **fields: Any) -> None:
        self.run_id = run_id
        self.chain = Chain(run_id)
        self.record = RunRecord(
            run_id=run_id,
            program_hash=fields.pop("program_hash", canonical.digest(b"{}")),
            program_name=fields.pop("program_name", "refund"),
            created_at_ms=NOW,
            updated_at_ms=NOW,
            owner=owner,
            **fields,
        )

    def entries(
        self, count: int, payload: bytes | None = b'{"amount":5}', salt: bytes | None = None
    ) -> list[Entry]:
        """The next `count` entries; a salt that depends on the place makes them the same in every run of a
        test."""
        sealed = []
        for _ in range(count):
            seq = self.chain.length
            event = TimerFired(at_ms=NOW + seq, attempt=1, occurrence=seq + 1, step="wait")
            drawn = sha256(f"{self.run_id} {seq}".encode()).digest()[:16] if salt is None else salt
            sealed.append(self.chain.seal(event, drawn, payload))
        return sealed

    def update(self, status: str = "RUNNING", *, release: bool = False, **fields: Any) -> RunUpdate:
        """An update that describes the chain as it stands."""
        return RunUpdate(
            status=status,
            updated_at_ms=NOW + self.chain.length,
            length=self.chain.length,
            head=self.chain.head,
            release=release,
            **fields,
        )


async def settle(durable: Durable) -> None:
    """Wait until what a call has promised is durable."""
    if durable is not None:
        await durable


@contextlib.contextmanager
def refusal(code: str, **facts: Any) -> Iterator[None]:
    """The block must raise a nano-vm error with this code and these facts."""
    caught: NanoVMError | None = None
    try:
        yield
    except NanoVMError as error:
        caught = error
    if caught is None:
        raise AssertionError(f"expected {code}, nothing was raised")
    found = {name: caught.facts.get(name) for name in facts}
    assert (caught.code, found) == (code, facts), f"expected {code} {facts}, got {caught!r} {caught.facts}"


Check = Callable[..., Awaitable[None]]


def on_one_store(check: Check) -> Callable[[Any, Path], None]:
    """Make an async check of a store a test."""

    def test(self: StoreConformance, tmp_path: Path) -> None:
        with contextlib.closing(self.open_store(tmp_path)) as store:
            asyncio.run(_bounded(check(self, store)))

    return _named(test, check)


def on_two_stores(check: Check) -> Callable[[Any, Path], None]:
    """Make an async check of two stores on the same data a test."""

    def test(self: StoreConformance, tmp_path: Path) -> None:
        with contextlib.ExitStack() as stack:
            stores = [stack.enter_context(contextlib.closing(self.open_store(tmp_path))) for _ in range(2)]
            asyncio.run(_bounded(check(self, *stores)))

    return _named(test, check)


async def _bounded(check: Awaitable[None]) -> None:
    # Not a promise about speed: a store that never answers should fail its test, not hang it.
    async with asyncio.timeout(60):
        await check


def _named(test: Callable[[Any, Path], None], check: Check) -> Callable[[Any, Path], None]:
    test.__name__, test.__qualname__, test.__doc__ = check.__name__, check.__qualname__, check.__doc__
    return test


class StoreConformance:
    """The promises that a store keeps alone. Derive, and say in `open_store` how one is made."""

    def open_store(self, place: Path) -> JournalStore:
        """A store on the data in the directory `place`."""
        raise NotImplementedError

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

    # --- records ------------------------------------------------------------------------------------------
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

    @on_one_store
    async def test_records_are_listed_newest_first_and_filtered(self, store: JournalStore) -> None:
        plan: list[tuple[str, dict[str, Any]]] = [
            ("a", {"tenant": "acme"}),
            ("b", {"program_name": "dunning"}),
            ("c", {"parent": "a"}),
            ("d", {"parent": "a", "tenant": "acme", "status": "SUCCESS"}),
            ("e", {"parent": "b"}),
        ]
        for run_id, fields in plan:
            await settle(store.create(Draft(run_id, **fields).record, []))

        def listed(**query: Any) -> str:
            return "".join(record.run_id for record in store.records(RunQuery(**query)))

        assert listed() == "edcba"
        assert listed(limit=2) == "ed"
        assert listed(limit=2, after="d") == "cb"
        assert listed(after="a") == ""
        assert listed(tenant="acme") == "da"
        assert listed(status="SUCCESS") == "d"
        assert listed(program_name="dunning") == "b"
        assert listed(parent="a") == "dc"
        assert listed(parent="") == "ba"
        assert listed(parent="", tenant="acme") == "a"
        with refusal("RUN_NOT_FOUND"):
            listed(after="z")

    # --- programs -----------------------------------------------------------------------------------------
    @on_one_store
    async def test_programs_are_kept_by_hash_and_names_mean_the_last(self, store: JournalStore) -> None:
        bodies = [b'{"name":"p","v":1}', b'{"name":"p","v":2}', b'{"name":"a"}']
        hashes = [canonical.digest(body) for body in bodies]
        for number, name in enumerate("ppa"):
            store.put_program(hashes[number], name, bodies[number], NOW + number)
        assert [store.program(program) for program in hashes] == bodies
        assert (store.program_named("p"), store.program_named("a")) == (hashes[1], hashes[2])
        store.put_program(hashes[0], "p", bodies[0], NOW + 9)  # there already; but the name moves
        assert store.program_named("p") == hashes[0]
        assert store.programs() == [
            ("a", hashes[2], NOW + 2),
            ("p", hashes[0], NOW),
            ("p", hashes[1], NOW + 1),
        ]
        assert store.program_named("z") is None
        with refusal("PROGRAM_NOT_FOUND"):
            store.program(canonical.digest(b"nothing"))
        with refusal("USAGE"):
            store.put_program(hashes[0], "q", b"not what the hash says", NOW)

    # --- ownership ----------------------------------------------------------------------------------------
    @on_one_store
    async def test_a_claim_waits_for_the_lease_and_raises_the_fence(self, store: JournalStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        assert store.claim("r1", NOW + LEASE_MS - 1) is None
        assert store.renew(["r1"], NOW + 10) == []
        assert store.claim("r1", NOW + LEASE_MS) is None
        assert store.claim("r1", NOW + 10 + LEASE_MS) == 2
        with refusal("LEASE_LOST", run_id="r1", seq=1):
            await settle(store.append("r1", 1, draft.entries(1)))
        draft.chain = Chain("r1", 1, store.read("r1")[0].digest)
        await settle(store.append("r1", 2, draft.entries(1)))
        store.release("r1", 1)  # not ours any more under that fence
        assert store.record("r1").owner == store.owner
        store.release("r1", 2)
        store.release("r1", 2)
        assert (store.record("r1").owner, store.record("r1").fence) == (None, 2)
        assert store.renew(["r1", "r9"], NOW) == ["r1", "r9"]
        assert store.claim("r1", NOW) == 3

    @on_one_store
    async def test_claimable_runs_are_those_that_nobody_minds(self, store: JournalStore) -> None:
        plan: list[tuple[str, str | None, dict[str, Any]]] = [
            ("free", None, {}),
            ("owned", store.owner, {}),
            ("child", None, {"parent": "free"}),
            ("done", None, {"status": "SUCCESS"}),
            ("waiting", None, {"status": "SUSPENDED"}),
            ("mailed", None, {"status": "SUSPENDED"}),
            ("answered", None, {"status": "SUSPENDED"}),
            ("due", None, {"status": "SUSPENDED", "wake_at_ms": NOW + 5}),
            ("held", store.owner, {"status": "SUSPENDED", "wake_at_ms": NOW + 5}),
            ("later", None, {"status": "SUSPENDED", "wake_at_ms": NOW + 6}),
            ("begun", store.owner, {"status": "SUSPENDED"}),
        ]
        for run_id, owner, fields in plan:
            await settle(store.create(Draft(run_id, owner, **fields).record, []))
        for run_id in ("mailed", "answered", "done", "waiting"):
            if run_id != "waiting":
                store.post(run_id, Mail(mail_id="m", kind="event", body=b"1", posted_at_ms=NOW))
        store.answer("answered", "m", b"2")
        assert store.claimable(NOW + 5) == ["free", "mailed", "due"]
        assert store.claimable(NOW + 5, limit=2) == ["free", "mailed"]
        assert store.claimable(NOW + LEASE_MS) == ["free", "owned", "mailed", "due", "held", "later", "begun"]

    # --- actions ------------------------------------------------------------------------------------------
    @on_one_store
    async def test_an_actions_key_is_bound_once_and_for_ever(self, store: JournalStore) -> None:
        store.bind_action("tenant/charge/7", "sha256:a", "r1")
        store.bind_action("tenant/charge/7", "sha256:a", "r2")  # the same action from another run
        store.bind_action("tenant/charge/8", "sha256:b", "r2")
        for run_id in ("r1", "r3"):
            with refusal("ACTION_CONFLICT", run_id="r1"):
                store.bind_action("tenant/charge/7", "sha256:b", run_id)

    # --- mail ---------------------------------------------------------------------------------------------
    @on_one_store
    async def test_mail_is_kept_until_it_is_answered(self, store: JournalStore) -> None:
        await settle(store.create(Draft("r1").record, []))
        await settle(store.create(Draft("r2").record, []))
        letters = [
            Mail(mail_id=f"m{number}", kind="event", body=b"%d" % number, posted_at_ms=NOW + number)
            for number in range(3)
        ]
        for letter in letters:
            store.post("r1", letter)
        store.post("r1", letters[1])  # the same again
        store.post("r2", letters[0])  # an id belongs to its run
        assert store.mail("r1") == letters
        with refusal("MAIL_CONFLICT", run_id="r1", mail_id="m1"):
            store.post("r1", Mail(mail_id="m1", kind="event", body=b"x", posted_at_ms=NOW))
        with refusal("MAIL_CONFLICT"):
            store.post("r1", Mail(mail_id="m1", kind="cancel", body=b"1", posted_at_ms=NOW))
        assert store.answered("r1", "m1") is None
        store.answer("r1", "m1", b"taken")
        store.answer("r1", "m1", b"too late")
        assert store.answered("r1", "m1") == b"taken"
        assert [letter.mail_id for letter in store.mail("r1")] == ["m0", "m2"]
        store.post("r1", letters[1])  # answered long ago, still the same message
        with refusal("MAIL_CONFLICT"):
            store.post("r1", Mail(mail_id="m1", kind="event", body=b"x", posted_at_ms=NOW))
        assert store.answered("r1", "m9") is None
        with refusal("MAIL_NOT_FOUND"):
            store.answer("r1", "m9", b"")

    @on_one_store
    async def test_mail_for_nobody_and_too_much_mail_are_refused(self, store: JournalStore) -> None:
        for call in (
            lambda: store.post("r9", Mail(mail_id="m", kind="event", body=b"", posted_at_ms=NOW)),
            lambda: store.mail("r9"),
            lambda: store.answer("r9", "m", b""),
            lambda: store.answered("r9", "m"),
        ):
            with refusal("RUN_NOT_FOUND", run_id="r9"):
                call()
        await settle(store.create(Draft("r1").record, []))
        for number in range(MAIL_MAX):
            store.post("r1", Mail(mail_id=f"m{number}", kind="event", body=b"", posted_at_ms=NOW))
        last = Mail(mail_id="last", kind="event", body=b"", posted_at_ms=NOW)
        with refusal("MAIL_FULL", run_id="r1", limit=MAIL_MAX):
            store.post("r1", last)
        store.answer("r1", "m0", b"ok")
        store.post("r1", last)

    # --- policies -----------------------------------------------------------------------------------------

    @on_one_store
    async def test_a_policy_is_kept_by_its_hash(self, store: JournalStore) -> None:
        body = canonical.encode({"ast": {}, "policy": {"policy": "p"}})
        digest = canonical.digest(body)
        with refusal("POLICY_NOT_FOUND"):
            store.policy(digest)
        store.put_policy(digest, body, NOW)
        store.put_policy(digest, body, NOW + 1)
        assert store.policy(digest) == body
        with refusal("USAGE"):
            store.put_policy(digest, body + b" ", NOW)

    # --- pauses -------------------------------------------------------------------------------------------

    @on_one_store
    async def test_the_last_word_about_a_program_counts(self, store: JournalStore) -> None:
        assert store.pauses() == []
        first = Pause(tenant="default", program="p", paused=True, reason="why", by="ana", at_ms=NOW)
        other = Pause(tenant="acme", program="p", paused=True, at_ms=NOW + 1)
        store.mark_pause(first)
        store.mark_pause(other)
        assert store.pauses() == [first, other]
        assert store.pauses("acme") == [other]
        store.mark_pause(msgspec.structs.replace(first, paused=False, at_ms=NOW + 2))
        assert store.pauses() == [other]
        again = msgspec.structs.replace(first, reason="again", at_ms=NOW + 3)
        store.mark_pause(again)
        assert store.pauses() == [other, again]

    @on_one_store
    async def test_what_would_exceed_a_limit_is_not_counted_at_all(self, store: JournalStore) -> None:
        assert store.count("a1", [("calls", 1, 2), ("sum", 60, 100)], NOW) == [0, 0]
        assert store.count("a2", [("calls", 1, 2), ("sum", 41, 100)], NOW) is None
        assert store.counted(["calls", "sum", "other"], "a2") == [1, 60, 0]
        assert store.count("a2", [("calls", 1, 2), ("sum", 40, 100)], NOW) == [1, 60]
        assert store.counted(["calls", "sum"], "") == [2, 100]
        assert store.count("a3", [("calls", 1, 2)], NOW) is None
        assert store.count("a3", [("calls", -1, 2), ("sum", 0, 100)], NOW) == [2, 100]
        assert store.counted(["calls", "sum"], "a1") == [0, 40]

    @on_one_store
    async def test_an_action_is_counted_once(self, store: JournalStore) -> None:
        for _ in range(3):
            assert store.count("a1", [("calls", 1, 1)], NOW) == [0]
        assert store.counted(["calls"], "a1") == [0]
        assert store.counted(["calls"], "a2") == [1]

    # --- tenants ------------------------------------------------------------------------------------------
    @on_one_store
    async def test_runs_of_other_tenants_are_as_if_they_did_not_exist(self, store: JournalStore) -> None:
        for run_id, tenant in (("a1", "a"), ("b1", "b"), ("a2", "a")):
            draft = Draft(run_id, tenant=tenant)
            await settle(store.create(draft.record, draft.entries(2)))
        assert store.record("a1", "a").tenant == "a"
        assert len(store.read("a1", tenant="a")) == 2
        for run_id in ("b1", "nobody"):
            with refusal("RUN_NOT_FOUND"):
                store.record(run_id, "a")
            with refusal("RUN_NOT_FOUND"):
                store.read(run_id, tenant="a")
        assert [record.run_id for record in store.records(RunQuery(tenant="a"))] == ["a2", "a1"]
        assert store.claimable(NOW, tenant="b") == ["b1"]
        cursor, found = store.tail(0, tenant="a")
        assert {run_id for run_id, _ in found} == {"a1", "a2"}
        assert store.tail(cursor, tenant="a")[1] == []
        later = Draft("a3", tenant="a")
        await settle(store.create(later.record, later.entries(1)))
        assert [run_id for run_id, _ in store.tail(cursor, tenant="a")[1]] == ["a3"]

    @on_one_store
    async def test_a_name_means_to_a_tenant_what_that_tenant_put_under_it(self, store: JournalStore) -> None:
        bodies = [canonical.encode({"program": number}) for number in range(3)]
        ours, theirs, everybodys = [canonical.digest(body) for body in bodies]
        store.put_program(ours, "p", bodies[0], NOW, "a")
        store.put_program(theirs, "p", bodies[1], NOW, "b")
        store.put_program(everybodys, "p", bodies[2], NOW)
        assert (store.program_named("p", "a"), store.program_named("p", "b")) == (ours, theirs)
        assert (store.program_named("p"), store.program_named("p", "c")) == (everybodys, None)
        assert [(name, program) for name, program, _ in store.programs("a")] == [("p", ours)]

    # --- transactions -------------------------------------------------------------------------------------
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

    # --- the rest -----------------------------------------------------------------------------------------
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


async def _call(call: Callable[[], Durable]) -> None:
    await settle(call())


class SharedStoreConformance(StoreConformance):
    """Further promises of a store whose data several owners share; `open_store` gives a new owner each
    time."""

    LIVENESS = True
    """Whether the store can tell that an owner on this machine is gone, without waiting for its lease."""

    def test_a_store_remembers(self, tmp_path: Path) -> None:
        draft = Draft("r1", key="k")
        entries = draft.entries(3)
        body = b'{"name":"p"}'
        with contextlib.closing(self.open_store(tmp_path)) as store:
            store.create(draft.record, entries)
            store.put_program(canonical.digest(body), "p", body, NOW)
            store.post("r1", Mail(mail_id="m", kind="event", body=b"1", posted_at_ms=NOW))
            before = (store.record("r1"), store.mail("r1"), store.tail(0))
        with contextlib.closing(self.open_store(tmp_path)) as store:
            assert store.read("r1") == entries
            assert (store.record("r1"), store.mail("r1"), store.tail(0)) == before
            assert store.program(canonical.digest(body)) == body
            assert store.integrity() == []

    @on_two_stores
    async def test_a_live_owner_keeps_its_run_until_the_lease_ends(
        self, one: JournalStore, two: JournalStore
    ) -> None:
        assert one.owner != two.owner
        draft = Draft("r1", one.owner)
        await settle(one.create(draft.record, draft.entries(1)))
        assert two.claim("r1", NOW) is None
        assert two.claimable(NOW) == []
        with refusal("LEASE_LOST"):
            await settle(two.append("r1", 1, draft.entries(1)))
        assert two.claimable(NOW + LEASE_MS) == ["r1"]
        assert two.claim("r1", NOW + LEASE_MS) == 2

    @on_two_stores
    async def test_a_worker_that_lost_its_lease_cannot_append(
        self, one: JournalStore, two: JournalStore
    ) -> None:
        drafts = [Draft(run_id, one.owner) for run_id in ("r1", "r2")]
        for draft in drafts:
            await settle(one.create(draft.record, draft.entries(1)))
            await settle(one.append(draft.run_id, 1, draft.entries(1)))
        assert two.claim("r1", NOW + LEASE_MS) == 2
        heirs = Chain("r1", 2, drafts[0].chain.head)
        adopted = heirs.seal(TimerFired(at_ms=NOW, attempt=1, occurrence=1, step="adopted"), b"", None)
        stale = drafts[0].entries(1)
        with refusal("LEASE_LOST", run_id="r1", seq=2):
            await settle(one.append("r1", 1, stale))
        await settle(two.append("r1", 2, [adopted]))
        with refusal("LEASE_LOST", run_id="r1", seq=2):
            await settle(one.append("r1", 1, stale, drafts[0].update("SUCCESS", release=True)))
        with refusal("LEASE_LOST"):
            async with one.transaction() as transaction:
                transaction.append("r1", 1, stale)
        assert one.renew(["r1", "r2"], NOW + LEASE_MS) == ["r1"]
        one.release("r1", 1)
        assert (two.record("r1").owner, two.record("r1").status) == (two.owner, "RUNNING")
        assert len(two.read("r1")) == 3
        await settle(one.append("r2", 1, drafts[1].entries(1)))  # the other run is still ours

    def test_a_dead_owners_runs_are_taken_over_at_once(self, tmp_path: Path) -> None:
        if not self.LIVENESS:
            return
        with contextlib.closing(self.open_store(tmp_path)) as two:
            one = self.open_store(tmp_path)
            draft = Draft("r1", one.owner)
            one.create(draft.record, draft.entries(1))
            assert two.claimable(NOW) == []
            one.close()
            assert two.claimable(NOW) == ["r1"]
            assert two.claim("r1", NOW) == 2
            assert two.append("r1", 2, draft.entries(1)) is None

    @on_two_stores
    async def test_changes_by_another_owner_are_noticed(self, one: JournalStore, two: JournalStore) -> None:
        one.changed()
        draft = Draft("r1", two.owner)
        await settle(two.create(draft.record, draft.entries(1)))
        assert one.changed() is True
        assert one.changed() is False
        one.post("r1", Mail(mail_id="m", kind="event", body=b"1", posted_at_ms=NOW))
        assert one.changed() is False
        assert [letter.mail_id for letter in two.mail("r1")] == ["m"]
        two.answer("r1", "m", b"done")
        assert one.changed() is True
        assert one.answered("r1", "m") == b"done"

    @on_two_stores
    async def test_both_owners_annex_to_the_same_run(self, one: JournalStore, two: JournalStore) -> None:
        draft = Draft("r1")
        await settle(one.create(draft.record, draft.entries(1)))

        def build(length: int, head: str) -> list[Entry]:
            event = TimerFired(at_ms=NOW, attempt=1, occurrence=1, step="late")
            return [Chain("r1", length, head).seal(event, b"", None)]

        await asyncio.gather(*(settle(store.annex("r1", build)) for store in (one, two, one, two)))
        prev = GENESIS
        for entry in one.read("r1"):
            verify_entry(entry, "r1", prev)
            prev = entry.digest
        assert len(one.read("r1")) == 5

    @on_two_stores
    async def test_writers_wait_for_another_owners_transaction_and_readers_do_not(
        self, one: JournalStore, two: JournalStore
    ) -> None:
        draft, other = Draft("r1", one.owner), Draft("r2", two.owner)
        await settle(one.create(draft.record, draft.entries(1)))
        await settle(two.create(other.record, other.entries(1)))

        async def append() -> None:
            await settle(two.append("r2", 1, other.entries(1)))

        async with one.transaction() as transaction:
            transaction.append("r1", 1, draft.entries(1))
            waiting = asyncio.create_task(append())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not waiting.done()
            assert len(two.read("r1")) == 1
            assert len(two.read("r2")) == 1
        await waiting
        assert (len(two.read("r1")), len(two.read("r2"))) == (2, 2)

    @on_two_stores
    async def test_two_owners_write_side_by_side(self, one: JournalStore, two: JournalStore) -> None:
        async def drive(store: JournalStore, name: str) -> list[Entry]:
            draft = Draft(name, store.owner)
            entries = draft.entries(1)
            await settle(store.create(draft.record, entries))
            for _ in range(5):
                entries += (fresh := draft.entries(2))
                await settle(store.append(name, 1, fresh))
            return entries

        stores = [one, two] * 5
        written = await asyncio.gather(*(drive(store, f"r{n}") for n, store in enumerate(stores)))
        for number, entries in enumerate(written):
            assert one.read(f"r{number}") == entries
        assert one.integrity() == []
