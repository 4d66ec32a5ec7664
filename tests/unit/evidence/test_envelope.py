"""Governance envelopes are a projection of the journal that only grows."""

from __future__ import annotations

import json

import pytest
from evidence_runs import KINDS, approved, refund, shaky

from nano_vm import TraceAnalyzer, canonical
from nano_vm.evidence.envelope import envelope_lines, envelopes
from nano_vm.journal.entry import read_facts
from nano_vm.journal.trace import Trace


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_there_is_one_for_every_step_that_succeeded_and_no_other(kind: str) -> None:
    vm, run = KINDS[kind]()
    trace = vm.trace(run)
    found = envelopes(trace)
    named = sorted((e["step_id"], e["occurrence"], e.get("item", -1)) for e in found)
    taken = sorted(
        (step.id, step.occurrence, -1 if step.item is None else step.item)
        for step in trace.steps
        if step.status.value == "SUCCESS"
    )
    assert named == taken
    assert {e["execution_id"] for e in found} == {run}
    assert TraceAnalyzer(trace).envelopes() == found
    assert [canonical.decode(line) for line in envelope_lines(trace)] == found


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_longer_journal_only_adds_to_them(kind: str) -> None:
    vm, run = KINDS[kind]()
    entries = vm.store.read(run)
    program = vm.load_program(vm.store.record(run).program_hash)
    whole = envelopes(Trace(program, run, lambda: entries))
    for length in range(1, len(entries) + 1):
        part = envelopes(Trace(program, run, lambda length=length: entries[:length]))
        assert part == whole[: len(part)]


def test_they_hold_no_value() -> None:
    vm, run = refund()
    text = b"".join(envelope_lines(vm.trace(run))).decode()
    for value in ("A-1001", "paid", "yes", ":41", "Refund"):
        assert value not in text


def test_each_names_the_commitment_that_a_disclosure_proves() -> None:
    vm, run = refund()
    entries = vm.store.read(run)
    for envelope in envelopes(vm.trace(run)):
        if "commitment" in envelope["payload"]:
            assert read_facts(entries[envelope["seq"]]).commitment == envelope["payload"]["commitment"]
    assert [e["payload"]["type"] for e in envelopes(vm.trace(run))] == ["string", "boolean", "object"]
    assert sum("commitment" in e["payload"] for e in envelopes(vm.trace(run))) == 2


def test_the_snapshot_is_that_of_the_trace() -> None:
    for kind in (refund, approved, shaky):
        vm, run = kind()
        trace = vm.trace(run)
        digests = {trace.steps[index].id: digest for index, digest in trace.state_snapshots}
        for envelope in envelopes(trace):
            assert envelope["snapshot_hash"] == digests[envelope["step_id"]]


def test_the_bytes_are_json() -> None:
    vm, run = refund()
    for line in envelope_lines(vm.trace(run)):
        assert json.loads(line)["policy_hash"] is None
