"""`spec/vectors/receipt.json`: what a journal comes to, read from nothing but the vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nano_vm import canonical
from nano_vm.evidence.bundle import compile_stored, without_values
from nano_vm.evidence.narrative import narrative
from nano_vm.evidence.receipt import receipt, receipt_bytes
from nano_vm.evidence.sign import statement
from nano_vm.journal.entry import Entry
from nano_vm.journal.replay import verify_run
from nano_vm.journal.trace import Trace

FILE = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "receipt.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))["receipts"]


def journal(vector: dict[str, Any]) -> list[Entry]:
    found = []
    for seq, part in enumerate(vector["entries"]):
        facts = part["facts"].encode()
        payload = part["payload"].encode() if "payload" in part else None
        found.append(Entry(seq, canonical.digest(facts), facts, bytes.fromhex(part.get("salt", "")), payload))
    return found


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_journal_comes_to_this_receipt(vector: dict[str, Any]) -> None:
    program = compile_stored(canonical.encode(vector["program"]))
    entries = journal(vector)
    verify_run(program, None, entries, vector["run"])
    trace = Trace(program, vector["run"], lambda: entries)
    made = receipt(trace)
    assert made == vector["receipt"]
    assert canonical.digest(receipt_bytes(trace)) == vector["receipt_digest"]
    assert canonical.digest_value(without_values(made)) == vector["disclosed_digest"]
    assert canonical.digest(statement(made, [(vector["run"], trace.head)])) == vector["statement_digest"]
    assert narrative(made).splitlines() == vector["narrative"]


def test_every_kind_of_run_is_there() -> None:
    assert {vector["receipt"]["health"]["verdict"] for vector in VECTORS} == {"GOOD", "STRAINED", "BAD"}
    assert {vector["receipt"]["status"] for vector in VECTORS} >= {"SUCCESS", "FAILED", "SUSPENDED"}
