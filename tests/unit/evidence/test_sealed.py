"""Evidence of runs with private values: sealed in bundles, absent from receipts, and gone from both when erased."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from test_bundle import body_of, refused, resealed

from nano_vm import ExecutionVM, MockLLMAdapter, Program, SqliteStore, Vault
from nano_vm.evidence.bundle import export, export_steps
from nano_vm.evidence.envelope import envelope_lines
from nano_vm.evidence.keys import KeyFiles, SigningKey
from nano_vm.evidence.receipt import receipt, receipt_bytes
from nano_vm.evidence.verify import verify_bundle
from nano_vm.vault.kek import make_key_file

NAME = "Ada Lovelace of St James"
PROGRAM = Program.from_dict(
    {
        "name": "letter",
        "subject": "$who",
        "inputs": {
            "type": "object",
            "properties": {"who": {"type": "string", "private": True}, "n": {"type": "integer"}},
            "required": ["who", "n"],
        },
        "steps": [
            {"id": "write", "type": "tool", "tool": "echo", "args": {"x": "Dear $who"}},
            {
                "id": "known",
                "type": "condition",
                "condition": "'Ada' in '$who'",
                "then": "send",
                "otherwise": "stop",
            },
            {"id": "send", "type": "tool", "tool": "echo", "args": {"x": "$n"}, "is_terminal": True},
            {"id": "stop", "type": "tool", "tool": "echo", "args": {"x": 0}, "is_terminal": True},
        ],
    }
)


def echo(x: object) -> object:
    return x


@pytest.fixture
def vm(tmp_path: Path) -> ExecutionVM:
    path = tmp_path / "runs.db"
    make_key_file(tmp_path / "runs.db.key")
    store = SqliteStore(path, durability="normal")
    machine = ExecutionVM(
        llm=MockLLMAdapter("yes"), tools={"echo": echo}, store=store, vault=Vault.beside(path)
    )
    machine.run_sync(PROGRAM, context={"who": NAME, "n": 5}, trace_id="r1")
    return machine


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return KeyFiles(tmp_path / "signing").generate("issuer")


def test_a_bundle_of_private_values_verifies_without_showing_them(vm: ExecutionVM, key: SigningKey) -> None:
    for signer in (None, key):
        data = export(vm.store, "r1", key=signer, opened=vm.read).data
        assert NAME.encode() not in data
        verified = verify_bundle(data, [key.public] if signer else [])
        assert verified.receipt == receipt(vm.trace("r1"))
        (closed,) = [check for check in verified.checks if check.name == "closed"]
        assert closed.warns
        assert "`known`" in closed.detail


def test_after_an_erasure_the_bundle_still_verifies_and_says_what_is_gone(vm: ExecutionVM) -> None:
    before = receipt(vm.trace("r1"))
    asyncio.run(vm.erase(subject=NAME, reason="asked", by="ana"))
    data = export(vm.store, "r1", opened=vm.read).data
    verified = verify_bundle(data)
    assert NAME.encode() not in data
    assert {"closed", "erased"} <= {check.name for check in verified.checks if check.warns}
    after = receipt(vm.trace("r1"))
    assert verified.receipt == after
    assert (after["replayable"], before["replayable"]) == (False, True)
    assert after["erased"]
    for name in ("trace_hash", "outcome_hash"):
        assert after["hashes"][name] == before["hashes"][name]
    for name in ("status", "path", "steps", "health", "cost_nanousd", "events", "refused"):
        assert after[name] == before[name]


def test_receipts_and_envelopes_of_private_runs_hold_nothing_private(vm: ExecutionVM) -> None:
    trace = vm.trace("r1")
    assert NAME.encode() not in receipt_bytes(trace)
    assert NAME.encode() not in b"".join(envelope_lines(trace))


def test_a_disclosure_of_a_private_step_keeps_it_sealed(vm: ExecutionVM, key: SigningKey) -> None:
    data = export_steps(vm.store, "r1", ["write", "send"], key=key, opened=vm.read).data
    assert NAME.encode() not in data
    verify_bundle(data, [key.public])


def test_every_changed_byte_of_a_signed_bundle_with_sealed_values_is_found(
    vm: ExecutionVM, key: SigningKey
) -> None:
    """The ciphertext proves itself to whoever has its key only; to others the signature vouches for it."""
    body = b"\n".join(body_of(export(vm.store, "r1", key=key, opened=vm.read).data))
    choose = random.Random(11)
    for place in range(0, len(body), 3):
        edited = bytearray(body)
        edited[place] ^= choose.choice((1, 2, 4, 8, 16, 32, 64, 128))
        refused(resealed(bytes(edited).split(b"\n")), key.public)
