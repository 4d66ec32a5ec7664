"""Evidence of runs with private values: sealed in bundles, absent from receipts, and gone from both when erased."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from test_bundle import body_of, rechained, refused, resealed

from nano_vm import (
    Completion,
    ExecutionVM,
    MockLLMAdapter,
    Program,
    SqliteStore,
    ToolCall,
    Vault,
    canonical,
)
from nano_vm.errors import NanoVMError
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


@pytest.mark.parametrize("verdict", [[], 1, None, ["known"], ["known", 1, True, True]])
def test_what_is_no_verdict_is_none_of_what_is_gone(vm: ExecutionVM, verdict: Any) -> None:
    asyncio.run(vm.erase(subject=NAME, reason="asked", by="ana"))

    def exchange(seq: int, facts: dict[str, Any]) -> None:
        if "verdicts" in facts["event"]:
            facts["event"]["verdicts"] = [verdict]

    error = refused(rechained(export(vm.store, "r1", opened=vm.read).data, exchange))
    assert error.code == "REPLAY_MISMATCH"


def nested(depth: int) -> list[Any]:
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    return deep


LETTERS = Program.from_dict(
    {
        "name": "letters",
        "subject": "$who",
        "inputs": {
            "type": "object",
            "properties": {"who": {"type": "string", "private": True}, "n": {"type": "number", "private": True}},
        },
        "steps": [
            {"id": "some", "type": "tool", "tool": "echo", "args": {"x": ["$who"]}},
            {"id": "each", "type": "map", "over": "$some.output", "max_items": 3,
             "step": {"id": "one", "type": "tool", "tool": "echo", "args": {"x": "$item"}}},
            {"id": "rest", "type": "wait", "seconds": "$n"},
            {"id": "ask", "type": "agent", "prompt": "Anything for $who?", "tools": ["echo"]},
        ],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    "note",
    [
        {"d": [2**50]},
        {"d": [-1, None, {}]},
        {"d": 1},
        {"d": None},
        {"d": {}},
        {"p": {"feedback": 2**50}},
        {"p": {"who": [nested(200)]}},
        {"p": nested(300)},
        [],
    ],
)
def test_notes_of_an_erasure_that_nobody_makes_are_found(tmp_path: Path, note: Any) -> None:
    """Instead of being believed, or taken for how much memory to fill."""
    calls = (ToolCall("1", "echo", '{"x": 1}'),)
    with SqliteStore(tmp_path / "runs.db", durability="normal") as store:
        llm = MockLLMAdapter([Completion(tool_calls=calls), "no"])
        machine = ExecutionVM(llm, {"echo": echo}, store, vault=Vault.in_memory())
        asyncio.run(machine.run(LETTERS, {"who": NAME, "n": 0}, trace_id="r1"))
        asyncio.run(machine.erase(subject=NAME, reason="asked", by="ana"))
        data = export(store, "r1", opened=machine.read).data
    assert verify_bundle(data).receipt["status"] == "SUCCESS"
    closed = [n for n, line in enumerate(entries_of(data)) if "key" in line["facts"]]
    for place in closed:

        def exchange(seq: int, facts: dict[str, Any], place: int = place) -> None:
            if facts["type"] == "Erased":
                facts["event"]["recall"] = {**facts["event"].get("recall", {}), str(place): note}

        assert exit_code_of(rechained(data, exchange)) in (0, 5)  # what nobody looks at says nothing

    def propose(seq: int, facts: dict[str, Any]) -> None:
        if facts["type"] == "Erased":
            facts["event"].pop("recall", None)
        if "proposals" in facts["event"]:
            facts["event"]["proposals"] = 2**50

    refused(rechained(data, propose))


def exit_code_of(data: bytes) -> int:
    try:
        verify_bundle(data)
    except NanoVMError as error:
        return error.exit_code
    return 0


def entries_of(data: bytes) -> list[dict[str, Any]]:
    return [canonical.decode(line) for line in body_of(data) if line.startswith(b'{"digest":')]
