"""The suite for a store whose data several owners share."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from msgspec.structs import replace

from nano_vm import canonical
from nano_vm.errors import ConflictError
from nano_vm.journal.entry import GENESIS, Chain, Entry
from nano_vm.journal.port import LEASE_MS, JournalStore, Mail, Pause
from nano_vm.journal.reading import verify_entry
from nano_vm.kernel.events import TimerFired
from nano_vm.testing.store_conformance.alone import StoreConformance
from nano_vm.testing.store_conformance.check import on_two_stores
from nano_vm.testing.store_conformance.draft import NOW, Draft, refusal, settle


class SharedStoreConformance(StoreConformance):
    """Further promises of a store whose data several owners share; `open_store` gives a new owner each
    time."""

    WRITERS_WAIT = True
    """Whether there is one writer at a time, so that all others wait for an open transaction."""

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
    async def test_a_claim_of_what_was_free_is_the_claim_of_one(
        self, one: JournalStore, two: JournalStore
    ) -> None:
        draft = Draft("r1")
        await settle(one.create(draft.record, draft.entries(1)))
        known = one.record("r1")
        assert two.claim("r1", NOW) == 1
        assert one.claim("r1", NOW, known) is None  # what it knows is not so any more
        two.release("r1", 1)
        known = one.record("r1")
        assert one.claim("r1", NOW, known) == 2
        assert one.claim("r1", NOW, known) is None
        assert one.claim("r1", NOW) is None
        mine, theirs = Draft("r1"), Draft("r1")
        for other in (mine, theirs):
            other.chain = Chain("r1", 1, draft.chain.head)
        fence = two.claim("r1", NOW)
        if fence is None:  # the claim is written
            await settle(one.append("r1", 2, mine.entries(1)))
        else:  # it would have been with what comes now
            assert fence == 2
            await settle(two.append("r1", fence, theirs.entries(1)))
            with refusal("LEASE_LOST", run_id="r1", unclaimed=True):
                await settle(one.append("r1", 2, mine.entries(1), mine.update("SUCCESS", release=True)))
            one.release("r1", 2)
            assert (two.record("r1").owner, two.record("r1").status) == (two.owner, "RUNNING")
        assert len(one.read("r1")) == 2

    @on_two_stores
    async def test_a_claim_is_kept_as_long_as_its_lease(self, one: JournalStore, two: JournalStore) -> None:
        draft = Draft("r1")
        await settle(one.create(draft.record, draft.entries(1)))
        assert one.claim("r1", NOW, one.record("r1")) == 1
        assert one.renew(["r1"], NOW) == []
        assert two.claim("r1", NOW) is None
        assert one.claim("r1", NOW + LEASE_MS) == 2  # another engine on the same store, and another fence
        with refusal("LEASE_LOST"):
            await settle(one.append("r1", 1, draft.entries(1)))
        one.release("r1", 2)
        assert one.claim("r1", NOW, one.record("r1")) == 3
        assert one.claim("r1", NOW + LEASE_MS) == 4  # the one before was never written
        one.release("r1", 3)
        assert two.claim("r1", NOW + LEASE_MS) is None

    @on_two_stores
    async def test_a_claim_that_is_given_back_leaves_the_run_free(
        self, one: JournalStore, two: JournalStore
    ) -> None:
        draft = Draft("r1")
        await settle(one.create(draft.record, draft.entries(1)))
        assert one.claim("r1", NOW, one.record("r1")) == 1
        one.release("r1", 7)  # not the fence of the claim
        assert one.claim("r1", NOW) is None
        one.release("r1", 1)
        fence = two.claim("r1", NOW, two.record("r1"))
        assert fence is not None
        with refusal("LEASE_LOST"):
            await settle(one.append("r1", 1, draft.entries(1)))
        assert len(two.read("r1")) == 1

    @on_two_stores
    async def test_nothing_is_annexed_to_a_run_that_is_claimed(
        self, one: JournalStore, two: JournalStore
    ) -> None:
        draft = Draft("r1")
        await settle(one.create(draft.record, draft.entries(1)))
        assert one.claim("r1", NOW, one.record("r1")) == 1

        def build(length: int, head: str) -> list[Entry]:
            event = TimerFired(at_ms=NOW, attempt=1, occurrence=1, step="late")
            return [Chain("r1", length, head).seal(event, b"", None)]

        with refusal("LEASE_LOST"):
            await settle(one.annex("r1", build))
        mine = draft.entries(1)
        (refused,) = await asyncio.gather(settle(two.annex("r1", build)), return_exceptions=True)
        if isinstance(refused, ConflictError):  # the claim is written
            await settle(one.append("r1", 1, mine))
        else:
            with refusal("JOURNAL_CONFLICT", unclaimed=True):
                await settle(one.append("r1", 1, mine))
        assert len(one.read("r1")) == 2

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
    async def test_names_and_pauses_of_others_are_seen_at_once(
        self, one: JournalStore, two: JournalStore
    ) -> None:
        bodies = [b'{"name":"p"}', b'{"name":"p","steps":[]}']
        hashes = [canonical.digest(body) for body in bodies]
        pause = Pause(tenant="default", program="p", paused=True, reason="", by="", at_ms=NOW)
        for mine, other in ((one, two), (two, one), (one, one)):
            mine.put_program(hashes[0], "p", bodies[0], NOW)
            assert (mine.program_named("p"), other.program_named("p")) == (hashes[0], hashes[0])
            other.put_program(hashes[1], "p", bodies[1], NOW)
            assert (mine.program_named("p"), other.program_named("p")) == (hashes[1], hashes[1])
            assert mine.program_named("p", "acme") is None
            assert mine.pauses() == other.pauses() == []
            other.mark_pause(pause)
            assert mine.pauses() == other.pauses("default") == [pause]
            assert mine.pauses("acme") == []
            mine.mark_pause(replace(pause, paused=False))
            assert mine.pauses() == other.pauses() == []

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
    async def test_an_open_transaction_is_seen_by_nobody_and_keeps_no_reader_waiting(
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
            if self.WRITERS_WAIT:
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not waiting.done()
                assert len(two.read("r2")) == 1
            else:
                await waiting
                assert len(two.read("r2")) == 2
            assert len(two.read("r1")) == 1
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
