"""P6: whatever is done to a stored journal is found, and the entry is named."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm.errors import VerificationError
from nano_vm.journal.fold import fold
from nano_vm.journal.replay import verify_run
from nano_vm.kernel.state import snapshot
from unit.journal.journal_runs import refund_run, ridden_refund, ridden_saga, saga_run, trace_of, wide_run

RUNS = [refund_run(), wide_run(), saga_run(), ridden_refund(), ridden_saga()]
FOREIGN = refund_run(seed=99, run_id="run-99").entries

runs = st.sampled_from(RUNS)


def first_bad(run, entries):
    """Where the verifiers, which have to agree, see the first bad entry; None when they see none."""
    seen = [
        failure_of(lambda: fold(run.program, run.state.run, entries, verify=True)),
        failure_of(lambda: verify_run(run.program, None, entries, run.state.run)),
    ]
    if seen == [None, None]:
        return None
    assert [(error.exit_code, error.facts["seq"]) for error in seen] == [(5, seen[0].facts["seq"])] * 2
    return seen[0].facts["seq"]


def failure_of(verify):
    try:
        verify()
    except VerificationError as error:
        return error
    return None


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.state.run)
def test_nothing_is_found_in_a_sound_journal(run):
    assert first_bad(run, run.entries) is None


def replaced(run, at, **fields):
    entries = list(run.entries)
    entries[at] = msgspec.structs.replace(entries[at], **fields)
    return entries


@settings(max_examples=200, deadline=None)
@given(run=runs, data=st.data())
def test_any_change_of_one_byte_is_found(run, data):
    at = data.draw(st.integers(0, len(run.entries) - 1))
    fields = ["facts", "digest"] + (["salt", "payload"] if run.entries[at].payload is not None else [])
    field = data.draw(st.sampled_from(fields))
    held = getattr(run.entries[at], field)
    place = data.draw(st.integers(0, len(held) - 1))
    if field == "digest":
        other = data.draw(st.characters(codec="ascii").filter(lambda c: c != held[place]))
        changed = held[:place] + other + held[place + 1 :]
    else:
        other = data.draw(st.integers(0, 255).filter(lambda b: b != held[place]))
        changed = held[:place] + bytes([other]) + held[place + 1 :]
    assert first_bad(run, replaced(run, at, **{field: changed})) == at


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.state.run)
def test_every_single_bit_of_the_first_entries_counts(run):
    for at in range(3):
        for field in ("facts", "salt", "payload"):
            held = getattr(run.entries[at], field) or b""
            for place in range(len(held)):
                changed = held[:place] + bytes([held[place] ^ 1]) + held[place + 1 :]
                with pytest.raises(VerificationError) as caught:
                    fold(run.program, run.state.run, replaced(run, at, **{field: changed}), verify=True)
                assert caught.value.facts["seq"] == at


@settings(max_examples=100, deadline=None)
@given(run=runs, data=st.data())
def test_bytes_cut_off_or_added_are_found(run, data):
    at = data.draw(st.integers(0, len(run.entries) - 1))
    field = data.draw(st.sampled_from(["facts", "salt", "payload"]))
    held = getattr(run.entries[at], field)
    changed = data.draw(
        st.binary(max_size=40) | st.sampled_from([b" ", b"null"]).map(lambda b: (held or b"") + b)
    )
    if changed == (held or b""):
        return
    assert first_bad(run, replaced(run, at, **{field: changed})) == at


@settings(max_examples=100, deadline=None)
@given(run=runs, data=st.data())
def test_a_dropped_entry_is_found(run, data):
    at = data.draw(st.integers(0, len(run.entries) - 2))
    size = data.draw(st.integers(1, len(run.entries) - 1 - at))
    assert first_bad(run, run.entries[:at] + run.entries[at + size :]) == at


@settings(max_examples=100, deadline=None)
@given(run=runs, data=st.data())
def test_an_inserted_entry_is_found(run, data):
    at = data.draw(st.integers(0, len(run.entries)))
    alien = data.draw(st.sampled_from([*run.entries, *FOREIGN]))
    if at < len(run.entries) and alien == run.entries[at]:
        at += 1  # the same entry twice: the second is the one too many
    assert first_bad(run, [*run.entries[:at], alien, *run.entries[at:]]) == at


@settings(max_examples=100, deadline=None)
@given(run=runs, data=st.data())
def test_swapped_entries_are_found(run, data):
    one, two = sorted(
        data.draw(st.lists(st.integers(0, len(run.entries) - 1), min_size=2, max_size=2, unique=True))
    )
    entries = list(run.entries)
    entries[one], entries[two] = entries[two], entries[one]
    assert first_bad(run, entries) == one
    # With their numbers put right as well.
    entries[one] = msgspec.structs.replace(entries[one], seq=one)
    entries[two] = msgspec.structs.replace(entries[two], seq=two)
    assert first_bad(run, entries) == one


@settings(max_examples=60, deadline=None)
@given(run=runs, data=st.data())
def test_a_part_taken_from_another_entry_is_found(run, data):
    at = data.draw(st.integers(0, len(run.entries) - 1))
    other = data.draw(st.sampled_from([*run.entries, *FOREIGN]))
    fields = data.draw(
        st.sampled_from(
            [("salt",), ("payload",), ("salt", "payload"), ("facts",), ("facts", "digest"), ("digest",)]
        )
    )
    taken = {field: getattr(other, field) for field in fields}
    if all(getattr(run.entries[at], field) == value for field, value in taken.items()):
        return
    assert first_bad(run, replaced(run, at, **taken)) == at


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(2, 2**32),
    make=st.sampled_from([refund_run, wide_run, saga_run, ridden_refund, ridden_saga]),
)
def test_other_salts_give_other_heads_and_the_same_hashes(seed, make):
    one, two = make(), make(seed=seed)
    assert one.chain.head != two.chain.head
    a, b = trace_of(one), trace_of(two)
    assert (a.trace_hash, a.outcome_hash, a.state_snapshots) == (
        b.trace_hash,
        b.outcome_hash,
        b.state_snapshots,
    )
    assert a.disclosure_root != b.disclosure_root
    assert snapshot(one.state) == snapshot(two.state)
