"""The promises about all that a store keeps beside journals."""

from __future__ import annotations

from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.journal.entry import Chain
from nano_vm.journal.port import LEASE_MS, MAIL_MAX, JournalStore, Mail, Pause, RunQuery
from nano_vm.testing.store_conformance.check import Conformance, on_one_store
from nano_vm.testing.store_conformance.draft import NOW, Draft, refusal, settle


class RecordConformance(Conformance):
    """Records, programs, ownership, actions, mail, policies, pauses, limits and tenants."""

    # --- records ------------------------------------------------------------------------------------------
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

    # --- limits -------------------------------------------------------------------------------------------
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
