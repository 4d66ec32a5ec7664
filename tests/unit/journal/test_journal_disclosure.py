"""Showing single entries."""

from __future__ import annotations

import msgspec
import pytest

from nano_vm import canonical
from nano_vm.errors import VerificationError
from nano_vm.journal.disclosure import disclose, disclosure_leaf, disclosure_root, verify_disclosure
from nano_vm.journal.entry import GENESIS, Entry
from unit.journal.journal_runs import refund_run


def code_of(call, *args):
    with pytest.raises(VerificationError) as caught:
        call(*args)
    return caught.value.code


def changed(shown, **fields):
    return msgspec.structs.replace(shown, entry=msgspec.structs.replace(shown.entry, **fields))


def test_every_entry_can_be_shown_alone():
    run = refund_run()
    root = disclosure_root(run.entries)
    for shown in disclose(run.entries, *range(len(run.entries))):
        assert verify_disclosure(shown, "run-1", root) is shown.entry
        without = changed(shown, payload=None, salt=b"")
        assert verify_disclosure(without, "run-1", root) is without.entry


def test_what_is_shown_otherwise_does_not_verify():
    run = refund_run()
    root = disclosure_root(run.entries)
    (shown,) = disclose(run.entries, 2)
    (other,) = disclose(run.entries, 4)
    assert code_of(verify_disclosure, changed(shown, payload=b"1"), "run-1", root) == "COMMITMENT_MISMATCH"
    assert code_of(verify_disclosure, shown, "run-2", root) == "CHAIN_BROKEN"
    assert code_of(verify_disclosure, shown, "run-1", GENESIS) == "PROOF_INVALID"
    assert code_of(verify_disclosure, shown, "run-1", "sha256:zz") == "PROOF_INVALID"
    moved = msgspec.structs.replace(shown, entry=other.entry)
    assert code_of(verify_disclosure, moved, "run-1", root) == "PROOF_INVALID"


def test_facts_cannot_be_put_around_a_payload_that_was_committed_to():
    run = refund_run()
    root = disclosure_root(run.entries)
    (shown,) = disclose(run.entries, 2)
    facts = shown.entry.facts.replace(b'"step":"lookup"', b'"step":"refund"')
    assert facts != shown.entry.facts
    forged = changed(shown, facts=facts, digest=canonical.digest(facts))
    assert code_of(verify_disclosure, forged, "run-1", root) == "PROOF_INVALID"


def test_the_root_changes_with_any_salt():
    assert disclosure_root(refund_run().entries) != disclosure_root(refund_run(seed=2).entries)


def test_an_entry_that_is_not_there_cannot_be_shown():
    with pytest.raises(IndexError):
        disclose(refund_run().entries, 1_000)


def test_digests_that_cannot_be_read_are_malformed():
    facts = canonical.encode(
        {"commitment": "sha256:zz", "event": {}, "prev": "", "run": "", "seq": 0, "type": "StepStarted"}
    )
    entry = Entry(0, canonical.digest(facts), facts)
    assert code_of(disclosure_leaf, entry) == "JOURNAL_MALFORMED"
