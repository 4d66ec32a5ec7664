"""Receipts are functions of the trace (P12) and hold nothing that can be erased."""

from __future__ import annotations

import subprocess
import sys

import pytest
import rfc8785
from evidence_runs import KINDS, approved, refund, shaky, waiting

from nano_vm import TraceAnalyzer, canonical
from nano_vm.evidence.narrative import narrative
from nano_vm.evidence.receipt import receipt, receipt_bytes
from nano_vm.journal.entry import Entry
from nano_vm.journal.trace import Trace


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_journal_alone_gives_the_same_bytes_again(kind: str) -> None:
    vm, run = KINDS[kind]()
    first = receipt_bytes(vm.trace(run))
    copies = [Entry(e.seq, e.digest, e.facts, e.salt, e.payload) for e in vm.store.read(run)]
    again = Trace(vm.load_program(vm.store.record(run).program_hash), run, lambda: copies)
    assert receipt_bytes(again) == first
    assert TraceAnalyzer(again).receipt_bytes() == first
    assert rfc8785.dumps(receipt(again)) == first


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_the_bytes_do_not_depend_on_the_process(seed: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from evidence_runs import shaky\n"
        "from nano_vm.evidence.receipt import receipt_bytes\n"
        "vm, run = shaky()\n"
        "sys.stdout.buffer.write(receipt_bytes(vm.trace(run)))\n"
    )
    here = __file__.rpartition("/")[0]
    path = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code, here], env=path, capture_output=True, check=True).stdout
    vm, run = shaky()
    assert out == receipt_bytes(vm.trace(run))


def test_a_receipt_holds_no_input_output_or_message() -> None:
    vm, run = refund()
    text = receipt_bytes(vm.trace(run)).decode() + TraceAnalyzer(vm.trace(run)).narrative()
    for value in ("A-1001", '"paid"', "Refund 41", '"yes"'):
        assert value not in text
    vm, run = shaky()
    assert "secret reason" not in receipt_bytes(vm.trace(run)).decode()


def test_what_happened_is_told() -> None:
    vm, run = shaky()
    made = receipt(vm.trace(run))
    assert (made["status"], made["path"], made["retries"], made["compensated"]) == (
        "FAILED",
        ["try", "fail"],
        2,
        1,
    )
    assert made["error"] == {"step": "fail", "type": "TOOL_ERROR"}
    assert [(step["step"], step["attempts"], step["status"]) for step in made["troubled"]] == [
        ("try", 3, "SUCCESS"),
        ("fail", 1, "FAILED"),
    ]
    assert made["health"] == {
        "reasons": ["RUN_FAILED", "STEP_FAILED", "RETRIED", "COMPENSATED"],
        "verdict": "BAD",
    }
    assert (made["resumable"], made["replayable"]) == (False, True)


def test_who_came_from_outside_is_told_and_who_was_refused() -> None:
    vm, run = approved()
    made = receipt(vm.trace(run))
    assert [(e["seq"], e["principal"]["id"], e["step"]) for e in made["events"]] == [(4, "bob", "ask")]
    assert [(e["seq"], e["principal"]["id"], e["code"]) for e in made["refused"]] == [
        (3, "eve", "NOT_APPROVER"),
        (6, "bob", "TERMINAL"),
    ]
    assert made["health"]["verdict"] == "STRAINED"


def test_a_run_that_waits_is_resumable_and_named() -> None:
    vm, run = waiting()
    made = receipt(vm.trace(run))
    assert made["resumable"]
    assert made["finished_at_ms"] is None
    assert [(wait["kind"], wait["step"]) for wait in made["waiting"]] == [("approval", "ask")]


def test_a_good_run_has_nothing_to_report() -> None:
    vm, run = refund()
    assert receipt(vm.trace(run))["health"] == {"reasons": [], "verdict": "GOOD"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_narrative_is_made_of_the_receipt_alone(kind: str) -> None:
    vm, run = KINDS[kind]()
    trace = vm.trace(run)
    kept = canonical.decode(receipt_bytes(trace))
    text = narrative(kept)
    assert text == TraceAnalyzer(trace).narrative()
    for fact in (run, trace.program_name, trace.head, trace.trace_hash, *trace.path):
        assert fact in text
    assert all(line.endswith(".") for line in text.splitlines())


def test_a_missing_payload_makes_the_run_less_than_replayable() -> None:
    """The receipt of a journal that has lost a payload says which, and stays readable."""
    vm, run = waiting()
    entries = vm.store.read(run)
    program = vm.load_program(vm.store.record(run).program_hash)
    lost = max(entry.seq for entry in entries if entry.payload is not None)
    gone = [e if e.seq != lost else Entry(e.seq, e.digest, e.facts) for e in entries]
    made = receipt(Trace(program, run, lambda: gone))
    assert (made["erased"], made["replayable"]) == ([lost], False)
