"""Folding and verifying whole journals."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from nano_vm import canonical
from nano_vm.errors import VerificationError
from nano_vm.journal import entry as entry_module
from nano_vm.journal.entry import GENESIS, Chain, Entry, open_event, open_events
from nano_vm.journal.fold import fold, fold_chain
from nano_vm.journal.port import RunRecord
from nano_vm.journal.replay import verify_run
from nano_vm.journal.standing import standing
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus, snapshot
from unit.journal.journal_runs import (
    Driver,
    loop,
    loop_run,
    refund,
    refund_run,
    ridden_refund,
    ridden_saga,
    saga_run,
    wide_run,
)

RUNS = [refund_run, wide_run, saga_run, ridden_refund, ridden_saga]


def resealed(run, events):
    """The journal of these events, chained anew: what somebody who rewrites everything would store."""
    chain = Chain(run.state.run)
    entries = []
    for event in events:
        held = getattr(event, "payload", msgspec.UNSET)
        payload = None if held is msgspec.UNSET else canonical.encode(held)
        entries.append(chain.seal(event, bytes(16), payload))
    return entries


def events_of(run):
    return [open_event(entry) for entry in run.entries]


def record_of(run, **fields):
    now = standing(run.program, run.state)
    known = {
        "run_id": run.state.run,
        "program_hash": run.program.hash,
        "program_name": run.program.name,
        "inputs_digest": canonical.digest(run.entries[0].payload),
        "created_at_ms": 0,
        "updated_at_ms": 0,
        "length": len(run.entries),
        "head": run.chain.head,
        **msgspec.structs.asdict(now),
    }
    return RunRecord(**{**known, **fields})


def failure(call, *args, **kwargs):
    with pytest.raises(VerificationError) as caught:
        call(*args, **kwargs)
    return caught.value


# --- fold
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", RUNS)
def test_a_folded_journal_is_the_state_the_run_was_in_at_every_entry(make):
    run = make()
    folded = fold_chain(run.program, run.state.run, run.entries, verify=True)
    assert snapshot(folded.state) == snapshot(run.state)
    assert (folded.chain.length, folded.chain.head) == (run.chain.length, run.chain.head)


@pytest.mark.parametrize("make", RUNS)
def test_folding_twice_gives_identical_bytes(make):
    run = make()
    once, twice = (snapshot(fold(run.program, run.state.run, run.entries)) for _ in range(2))
    assert once == twice


def test_a_run_goes_on_from_any_prefix_of_its_journal_to_the_same_entries():
    whole = refund_run()
    events = events_of(whole)
    for length in range(len(whole.entries)):
        state, chain = fold_chain(whole.program, "run-1", whole.entries[:length], verify=True)
        assert state.run == "run-1"
        for place in range(length, len(events)):
            salt, payload = whole.entries[place].salt, whole.entries[place].payload
            assert chain.seal(events[place], salt, payload) == whole.entries[place]


def test_what_rides_with_an_event_is_a_transition_of_its_own():
    run, apart = ridden_refund(), refund_run()
    heard = []
    folded = fold_chain(
        run.program,
        run.state.run,
        run.entries,
        verify=True,
        on_transition=lambda entry, event, state: heard.append((entry.seq, event.type)),
    )
    assert [kind for _, kind in heard] == [event.type for event in events_of(apart)]
    assert heard[:2] == [(0, "RunStarted"), (0, "StepStarted")]
    assert heard[-2:] == [(len(run.entries) - 1, "StepSucceeded"), (len(run.entries) - 1, "RunFinished")]
    assert folded.chain.length == len(run.entries) < len(apart.entries) == folded.state.seq


def test_a_rider_that_the_kernel_would_not_take_is_named_by_its_entry():
    run = ridden_refund()
    chain = Chain(run.state.run)
    entries = []
    for place, entry in enumerate(run.entries):
        event, *then = open_events(entry)
        entries.append(chain.seal(event, entry.salt, entry.payload, [*then, *then] if place == 1 else then))
    error = failure(verify_run, run.program, None, entries)
    assert (error.code, error.facts["seq"], error.facts["check"]) == ("REPLAY_MISMATCH", 1, "transitions")


def test_no_entries_fold_into_the_empty_state():
    state, chain = fold_chain(refund(), "run-1", [])
    assert (state.seq, state.run, chain.length, chain.head) == (0, "run-1", 0, GENESIS)


def test_every_transition_is_heard_with_what_it_settled():
    run = refund_run()
    heard = []
    fold(
        run.program,
        "run-1",
        run.entries,
        on_transition=lambda entry, event, state: heard.append(
            (entry.seq, event.type, [run.program.steps[s.step].id for s in state.settled])
        ),
    )
    assert [seq for seq, _, _ in heard] == list(range(len(run.entries)))
    assert [settled for _, _, settled in heard if settled] == [["lookup"], ["classify", "decide"], ["pay"]]


def test_a_transition_that_the_kernel_would_not_take_is_named():
    run = refund_run()
    events = events_of(run)
    forged = resealed(run, [*events[:3], *events[4:]])
    error = failure(fold, run.program, "run-1", forged, verify=True)
    assert (error.code, error.facts["seq"]) == ("REPLAY_MISMATCH", 3)
    assert error.facts["code"] in ("OUT_OF_ORDER", "STALE_ATTEMPT")


def test_another_program_does_not_pass():
    run = refund_run()
    error = failure(fold, loop(3), "run-1", run.entries)
    assert (error.code, error.facts["seq"], error.facts["code"]) == ("REPLAY_MISMATCH", 0, "MISMATCH")


@pytest.mark.parametrize("verdicts", [msgspec.UNSET, [], [["decide", 1, False]], [["decide", 1, True]] * 2])
def test_a_verdict_that_comes_out_otherwise_is_named(verdicts):
    run = refund_run()
    events = events_of(run)
    at = next(i for i, event in enumerate(events) if getattr(event, "verdicts", msgspec.UNSET))
    events[at].verdicts = verdicts
    error = failure(fold, run.program, "run-1", resealed(run, events), verify=True)
    assert (error.code, error.facts["seq"], error.facts["code"]) == ("REPLAY_MISMATCH", at, "VERDICTS")


def test_a_verdict_where_no_condition_was_is_named():
    run = refund_run()
    events = events_of(run)
    events[2].verdicts = [["decide", 1, True]]
    error = failure(fold, run.program, "run-1", resealed(run, events))
    assert (error.facts["seq"], error.facts["code"]) == (2, "VERDICTS")


def test_without_verify_neither_chain_nor_commitments_are_looked_at():
    run = refund_run()
    entries = [msgspec.structs.replace(entry, salt=bytes(16)) for entry in run.entries]
    assert snapshot(fold(run.program, "run-1", entries)) == snapshot(run.state)
    assert failure(fold, run.program, "run-1", entries, verify=True).code == "COMMITMENT_MISMATCH"


@pytest.mark.parametrize("times", [10, 1_000])
def test_sealing_hashes_each_entry_once_and_never_the_past(monkeypatch, times):
    run = loop_run(times)
    events = events_of(run)
    calls = []

    def counted(data=b""):
        calls.append(len(data))
        return hashlib.sha256(data)

    monkeypatch.setattr(entry_module, "sha256", counted)
    chain = Chain("run-loop")
    for entry, event in zip(run.entries, events, strict=True):
        assert chain.seal(event, entry.salt, entry.payload) == entry
    payloads = [entry.payload for entry in run.entries if entry.payload is not None]
    assert len(calls) == len(run.entries) + len(payloads)
    assert sum(calls) == sum(len(e.facts) for e in run.entries) + sum(16 + len(p) for p in payloads)


# --- verify_run
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", RUNS)
def test_a_sound_run_passes_every_check_in_order(make):
    run = make()
    verified = verify_run(run.program, record_of(run), run.entries)
    assert [name for name, _ in verified.steps] == [
        "chain",
        "commitments",
        "transitions",
        "verdicts",
        "ending",
        "record",
    ]
    assert snapshot(verified.state) == snapshot(run.state)
    assert [name for name, _ in verify_run(run.program, None, run.entries).steps][-1] == "ending"


def test_an_empty_journal_does_not_verify():
    assert failure(verify_run, refund(), None, []).code == "CHAIN_BROKEN"


def test_the_first_bad_entry_is_named_whatever_is_wrong_with_it():
    run = refund_run()
    entries = list(run.entries)
    entries[6] = msgspec.structs.replace(entries[6], digest=GENESIS)
    entries[4] = msgspec.structs.replace(entries[4], salt=bytes(16))
    error = failure(verify_run, run.program, None, entries)
    assert (error.code, error.facts["seq"], error.facts["check"]) == ("COMMITMENT_MISMATCH", 4, "commitments")
    assert error.facts["passed"] == []


def test_facts_and_payloads_have_to_be_canonical():
    run = refund_run()
    loose = run.entries[0].payload.replace(b":", b": ", 1)
    entry = Chain("run-1").seal(open_event(run.entries[0]), run.entries[0].salt, loose)
    error = failure(verify_run, run.program, None, [entry])
    assert (error.code, error.facts["seq"], error.facts["check"]) == ("JOURNAL_MALFORMED", 0, "chain")
    facts = run.entries[0].facts.replace(b'"event":', b'"event" :')
    big = canonical.encode({"at_ms": 1, "program": "p", "principal": {"n": 1e300}}).replace(
        b"1e+300", b"9" * 40
    )
    for event in (b'{"at_ms":1,"program":"p","verdicts":[]  }', big):
        text = b'{"event":%b,"prev":"%b","run":"run-1","seq":0,"type":"RunStarted"}' % (
            event,
            GENESIS.encode(),
        )
        forged = Entry(0, canonical.digest(text), text)
        assert failure(verify_run, run.program, None, [forged]).code == "JOURNAL_MALFORMED"
    loose_facts = msgspec.structs.replace(run.entries[0], facts=facts, digest=canonical.digest(facts))
    assert failure(verify_run, run.program, None, [loose_facts]).code == "JOURNAL_MALFORMED"


def test_a_failed_check_says_which_and_what_passed_before():
    run = refund_run()
    events = events_of(run)
    at = next(i for i, event in enumerate(events) if getattr(event, "verdicts", msgspec.UNSET))
    events[at].verdicts = [["decide", 1, False]]
    error = failure(verify_run, run.program, None, resealed(run, events))
    assert error.facts["check"] == "verdicts"
    assert [name for name, _ in error.facts["passed"]] == ["chain", "commitments"]
    error = failure(verify_run, run.program, None, resealed(run, [*events_of(run)[:3], events[4]]))
    assert error.facts["check"] == "transitions"


def test_only_annex_entries_follow_the_end():
    run = refund_run()
    claimed = record_of(run)
    refused = ev.EventRefused(at_ms=run.now_ms + 1, code="TERMINAL", event_id="late", payload={"a": 1})
    assert run.send(refused) is None
    assert run.send(ev.RunAdopted(at_ms=run.now_ms + 2, fence=2)) is None
    verify_run(run.program, claimed, run.entries)
    verify_run(run.program, record_of(run), run.entries)
    entries = list(run.entries)
    late = ev.EventReceived(at_ms=run.now_ms + 3, event_id="later")
    entries.append(run.chain.seal(late, bytes(16), None))
    error = failure(verify_run, run.program, claimed, entries)
    assert (error.code, error.facts["check"], error.facts["seq"]) == (
        "REPLAY_MISMATCH",
        "ending",
        len(entries) - 1,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "FAILED"),
        ("status", "RUNNING"),
        ("outcome", "refused"),
        ("outcome", None),
        ("waits", [{"kind": "event"}]),
        ("wake_at_ms", 5),
        ("head", GENESIS),
        ("head", ""),
        ("length", 10_000),
        ("length", 0),
        ("program_name", "other"),
        ("program_hash", GENESIS),
        ("inputs_digest", GENESIS),
        ("parent", "run-0"),
    ],
)
def test_a_record_that_says_otherwise_is_refused(field, value):
    run = refund_run()
    error = failure(verify_run, run.program, record_of(run, **{field: value}), run.entries)
    assert (error.code, error.facts["check"]) == ("RECORD_MISMATCH", "record")
    if field != "length":
        assert error.facts["field"] == field


def test_a_record_without_an_inputs_digest_claims_none():
    run = refund_run()
    verify_run(run.program, record_of(run, inputs_digest=""), run.entries)


def test_inputs_that_are_absent_are_an_empty_object():
    run = Driver(loop(0), "run-1", {"count": lambda args: 1})
    assert run.send(ev.RunStarted(at_ms=run.now_ms, program=run.program.hash)) is None
    run.go()
    digest = canonical.digest(b"{}")
    now = {**msgspec.structs.asdict(standing(run.program, run.state)), "inputs_digest": digest}
    record = RunRecord(
        run_id="run-1",
        program_hash=run.program.hash,
        program_name="loop",
        created_at_ms=0,
        updated_at_ms=0,
        length=len(run.entries),
        head=run.chain.head,
        **now,
    )
    verify_run(run.program, record, run.entries)


def test_a_record_of_another_run_is_refused():
    run = refund_run()
    error = failure(verify_run, run.program, record_of(run, run_id="run-9"), run.entries)
    assert (error.code, error.facts["seq"]) == ("CHAIN_BROKEN", 0)


def test_a_journal_cut_short_is_missed_by_its_record():
    run = refund_run()
    error = failure(verify_run, run.program, record_of(run), run.entries[:-1])
    assert (error.code, error.facts["field"], error.facts["seq"]) == (
        "RECORD_MISMATCH",
        "length",
        len(run.entries) - 1,
    )


def test_a_record_describes_the_journal_as_of_its_length():
    run = loop_run(3)
    state = fold(run.program, "run-loop", run.entries[:4])
    early = record_of(run, status="RUNNING", outcome=None, length=4, head=run.entries[3].digest)
    assert state.status is RunStatus.RUNNING
    verify_run(run.program, early, run.entries[:6])
    # Its driver may have died before it could say that the run has ended; whoever takes it up says so.
    verify_run(run.program, early, run.entries)
    # Nobody takes up what is said to have ended, or to wait.
    for status in ("SUCCESS", "SUSPENDED"):
        record = record_of(run, status=status, outcome=None, length=4, head=run.entries[3].digest)
        assert failure(verify_run, run.program, record, run.entries[:6]).facts["field"] == "status"
        assert failure(verify_run, run.program, record, run.entries).facts["field"] == "status"


def test_a_record_that_claims_nothing_yet_is_that_of_a_running_run():
    run = loop_run(3)
    for entries in (run.entries[:2], run.entries):
        verify_run(run.program, record_of(run, status="RUNNING", outcome=None, length=0, head=""), entries)
    for status in ("SUCCESS", "SUSPENDED"):
        record = record_of(run, status=status, outcome=None, length=0, head="")
        assert failure(verify_run, run.program, record, run.entries).facts["field"] == "status"


def test_the_parent_in_the_record_is_the_one_of_the_journal():
    child = Driver(loop(2), "p/sub.1.1", {"count": lambda args: 5})
    child.start({}, parent={"run": "p", "step": "sub", "occurrence": 1}, budgets={}, depth=1).go()
    verify_run(child.program, record_of(child, parent="p"), child.entries)
    assert failure(verify_run, child.program, record_of(child), child.entries).facts["field"] == "parent"
