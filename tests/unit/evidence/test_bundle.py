"""Bundles: what is exported verifies, alone and offline; whatever is changed in one is found and named."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evidence_runs import (
    APPROVAL,
    INNER,
    KINDS,
    OUTER,
    POLICY,
    REFUND,
    family,
    machine,
    refund,
    shaky,
    tell,
    waiting,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm import ExecutionVM, RejectedError, SqliteStore, canonical
from nano_vm.errors import NanoVMError, NotFoundError, VerificationError
from nano_vm.evidence.bundle import Exported, export, export_steps
from nano_vm.evidence.keys import KeyFiles, PublicKey, SigningKey
from nano_vm.evidence.receipt import receipt
from nano_vm.evidence.sign import sign, statement
from nano_vm.evidence.verify import VerifiedBundle, verify_bundle
from nano_vm.journal.entry import GENESIS, Chain, Entry, open_events
from nano_vm.kernel.events import UNSET, ChildFinished

SOURCES = Path(__file__).resolve().parents[3] / "src"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return KeyFiles(tmp_path_factory.mktemp("keys")).generate("issuer")


def exported(kind: str, key: SigningKey | None = None) -> Exported:
    vm, run = KINDS[kind]()
    return export(vm.store, run, key=key)


def resealed(lines: list[bytes]) -> bytes:
    """The lines under an end that fits them, as whoever changes a bundle would write it."""
    body = b"".join(line + b"\n" for line in lines)
    return body + canonical.encode({"end": canonical.digest(body), "lines": body.count(b"\n")}) + b"\n"


def body_of(data: bytes) -> list[bytes]:
    return data.splitlines()[:-1]


def rechained(data: bytes, change: Callable[[int, dict[str, Any]], object]) -> bytes:
    """The bundle of one run with its facts changed, and its digests made anew as whoever changes them would make
    them."""
    lines = body_of(data)
    first = next(number for number, line in enumerate(lines) if line.startswith(b'{"entries":')) + 1
    (count,) = [canonical.decode(line)["entries"] for line in lines if line.startswith(b'{"entries":')]
    head = GENESIS
    for place in range(first, first + count):
        line = json.loads(lines[place])
        change(place - first, line["facts"])
        facts = written({**line["facts"], "prev": head})
        head = canonical.digest(facts)
        rest = b""
        if "payload" in line:
            rest = b',"payload":%b,"salt":"%b"' % (written(line["payload"]), line["salt"].encode())
        lines[place] = b'{"digest":"%b","facts":%b%b}' % (head.encode(), facts, rest)
    return resealed(lines)


def written(value: Any) -> bytes:
    """Canonical JSON also of what may not be written so."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def refused(data: bytes, *keys: PublicKey) -> NanoVMError:
    """The error that verifying these bytes ends in; it has to be one that says: not verified."""
    with pytest.raises(NanoVMError) as raised:
        verify_bundle(data, keys)
    assert raised.value.exit_code == 5, raised.value
    assert raised.value.facts["check"]
    return raised.value


# --- what verifies ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_exported_verifies(kind: str, signed: bool, key: SigningKey) -> None:
    vm, run = KINDS[kind]()
    made = export(vm.store, run, key=key if signed else None)
    verified = verify_bundle(made.data, [key.public] if signed else [])
    assert verified.receipt == receipt(vm.trace(run))
    assert verified.signer == (key.public if signed else None)
    names = [check.name for check in verified.checks]
    assert names[:2] == ["container", "programs"]
    assert names[-1] == "signature"
    for name in ("chain", "commitments", "transitions", "verdicts", "ending"):
        assert names.count(name) == len(made.runs)
    assert ("log" in names) == signed
    assert export(vm.store, run, key=key if signed else None).data == made.data


def test_children_come_along() -> None:
    made = exported("family")
    assert made.runs == ["outer-1", "outer-1/first.1.1", "outer-1/lane.1.0.1", "outer-1/lane.1.1.1"]


def test_verifying_needs_no_store_no_runtime_and_no_network(tmp_path: Path, key: SigningKey) -> None:
    (tmp_path / "b").write_bytes(exported("family", key).data)
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        banned = ("nano_vm.runtime", "nano_vm.stores", "nano_vm.providers", "nano_vm.tools", "nano_vm.vm",
                  "sqlite3", "asyncio", "httpx", "http", "ssl", "urllib.request")
        if any(name == b or name.startswith(b + ".") for b in banned):
            raise ModuleNotFoundError(name)
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.fork", "sqlite3.")):
        raise RuntimeError(event)
sys.meta_path.insert(0, Blocked())
sys.addaudithook(watch)
from nano_vm.cli.main import main
sys.exit(main(["verify", sys.argv[1], "--key", sys.argv[2]]))
"""
    (tmp_path / "k.pub").write_text(key.public.pem)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b"), str(tmp_path / "k.pub")],
        env={"PYTHONPATH": str(SOURCES), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- what is found ---------------------------------------------------------------------------------------------------
def small(key: SigningKey) -> bytes:
    """A signed bundle of a short run that is not alone in its log: everything a bundle may hold is there."""
    vm, run = waiting()
    vm.run_sync(APPROVAL, trace_id="approval-2")
    return export(vm.store, run, key=key).data


def test_every_changed_byte_is_found(key: SigningKey) -> None:
    data = small(key)
    for place in range(len(data)):
        for change in (1, 0x20, 0x80):
            edited = bytearray(data)
            edited[place] ^= change
            refused(bytes(edited), key.public)


def test_every_changed_byte_is_found_by_what_the_bundle_says_itself(key: SigningKey) -> None:
    """Whoever changes a byte and mends the end is found too, by the first check that the byte matters to."""
    data = small(key)
    codes = set()
    lines = body_of(data)
    body = b"\n".join(lines)
    choose = random.Random(5)
    for place in range(len(body)):
        edited = bytearray(body)
        edited[place] ^= choose.choice((1, 2, 4, 8, 16, 32, 64, 128))
        codes.add(refused(resealed(bytes(edited).split(b"\n")), key.public).code)
    assert {
        "BUNDLE_MALFORMED",
        "DIGEST_MISMATCH",
        "COMMITMENT_MISMATCH",
        "PROGRAM_CHANGED",
        "RECEIPT_MISMATCH",
    } <= codes
    assert {"SIGNATURE_INVALID", "CHECKPOINT_MISMATCH", "PROOF_INVALID"} <= codes


def test_every_changed_byte_is_found_without_a_signature() -> None:
    body = b"\n".join(body_of(exported("waiting").data))
    choose = random.Random(6)
    for place in range(len(body)):
        edited = bytearray(body)
        edited[place] ^= choose.choice((1, 2, 4, 8, 16, 32, 64, 128))
        refused(resealed(bytes(edited).split(b"\n")))


def test_every_truncation_is_found(key: SigningKey) -> None:
    data = small(key)
    for length in range(len(data)):
        refused(data[:length], key.public)
    lines = body_of(data)
    for count in range(len(lines)):
        refused(resealed(lines[:count]), key.public)


def test_a_line_that_is_moved_dropped_or_doubled_is_found(key: SigningKey) -> None:
    for kind in ("family", "shaky"):
        lines = body_of(exported(kind, key).data)
        for place in range(len(lines)):
            refused(resealed(lines[:place] + lines[place + 1 :]), key.public)
            refused(resealed([*lines[: place + 1], lines[place], *lines[place + 1 :]]), key.public)
        for place in range(len(lines) - 1):
            swapped = [*lines]
            swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
            refused(resealed(swapped), key.public)


def test_two_bundles_do_not_make_one(key: SigningKey) -> None:
    """Every line of one in the place of every line of the other that differs."""
    one, other = body_of(exported("refund", key).data), body_of(exported("waiting", key).data)
    for place in range(len(one)):
        for line in other:
            if line != one[place]:
                refused(resealed([*one[:place], line, *one[place + 1 :]]), key.public)
    for cut in range(1, len(one)):
        refused(resealed(one[:cut] + other[cut:]), key.public)


def test_a_journal_of_the_same_program_does_not_take_anothers_place(key: SigningKey) -> None:
    lines = body_of(exported("refund", key).data)
    vm, _ = refund()
    vm.run_sync(REFUND, context={"amount": 42}, trace_id="refund-2")
    others = body_of(export(vm.store, "refund-2").data)
    spliced = [others[place] if place < len(others) - 1 else line for place, line in enumerate(lines)]
    spliced[0] = lines[0]
    refused(resealed(spliced), key.public)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_damage_is_found(data: st.DataObject) -> None:
    whole = exported("refund").data
    edited = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(edited) - 1))
        cut = data.draw(st.integers(0, 8))
        edited[at : at + cut] = data.draw(st.binary(max_size=8))
    if bytes(edited) == whole:
        return
    refused(bytes(edited))
    mended = resealed(bytes(edited).split(b"\n")[:-2])
    if mended != whole:
        refused(mended)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"{}", b"null", b"\xff\xfe", b'{"bundle":"nano-vm"', b'{"bundle":"nano-vm",\n' * 3, b"[" * 100_000,
     b'{"bundle":"nano-vm",' + b"[" * 100_000 + b"\n"],
)  # fmt: skip
def test_what_is_no_bundle_is_said_to_be_none(data: bytes) -> None:
    assert refused(data).code == "BUNDLE_MALFORMED"


@pytest.mark.parametrize("kind", ["refund", "family", "waiting"])
def test_a_run_without_sealed_values_comes_with_nothing_noted_of_any(kind: str) -> None:
    """Nobody would look at it: whatever it said would stand in a bundle that verifies."""
    lines = body_of(exported(kind).data)
    for place, line in enumerate(lines):
        if line.startswith(b'{"entries":'):
            noted = {**canonical.decode(line), "recall": {"0": {"p": {"value": "approved by the board"}}}}
            error = refused(resealed([*lines[:place], canonical.encode(noted), *lines[place + 1 :]]))
            assert (error.code, error.facts["line"]) == ("BUNDLE_MALFORMED", place + 1)


def test_whitespace_that_says_nothing_is_found() -> None:
    lines = body_of(exported("refund").data)
    for place, line in enumerate(lines):
        for text in (
            line + b" ",
            b" " + line,
            line.replace(b":", b": ", 1),
            line.replace(b",", b", ", 1),
            line + b"\r",
        ):
            changed = [*lines]
            changed[place] = text
            assert refused(resealed(changed)).exit_code == 5


@pytest.mark.parametrize("number", [2**53, 10**400, -(2**53)], ids=["over", "far over", "under"])
@pytest.mark.parametrize("kind", ["refund", "shaky", "denied", "approved"])
def test_numbers_that_are_not_read_alike_everywhere_are_malformed(kind: str, number: int) -> None:
    data = exported(kind).data
    places = sum(line.startswith(b'{"digest":') for line in body_of(data))
    for place in range(places):

        def exceed(seq: int, facts: dict[str, Any], place: int = place) -> None:
            if seq == place:
                facts["event"]["at_ms"] = number

        error = refused(rechained(data, exceed))
        assert (error.code, error.facts["seq"]) == ("JOURNAL_MALFORMED", place)


def test_numbers_that_add_up_to_what_cannot_be_written_are_found() -> None:
    def exceed(seq: int, facts: dict[str, Any]) -> None:
        if "attempt" in facts["event"]:
            facts["event"]["cost_nanousd"] = canonical.INT_MAX

    assert refused(rechained(exported("shaky").data, exceed)).code in ("JOURNAL_MALFORMED", "REPLAY_MISMATCH")

    def paid(seq: int, facts: dict[str, Any]) -> None:
        if facts["type"] in ("StepSucceeded", "StepFailed") and facts["event"]["step"] == "judge":
            facts["event"]["tokens_in"] = facts["event"]["tokens_out"] = canonical.INT_MAX

    assert refused(rechained(exported("refund").data, paid)).code == "REPLAY_MISMATCH"


def test_facts_from_outside_are_nested_no_deeper_than_values() -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]

    def nest(seq: int, facts: dict[str, Any]) -> None:
        if facts["type"] == "RunStarted":
            facts["event"]["principal"] = {"id": "ana", "roles": deep}

    assert refused(rechained(exported("refund").data, nest)).code == "JOURNAL_MALFORMED"


def test_the_first_bad_entry_is_named() -> None:
    lines = body_of(exported("shaky").data)
    vm, run = shaky()
    bad = [e for e in vm.store.read(run) if b'"retryable":true' in e.facts][1]
    at = next(place for place, line in enumerate(lines) if bad.digest.encode() in line[:90])
    lines[at] = lines[at].replace(b'"retryable":true', b'"retryable":false')
    error = refused(resealed(lines))
    assert (error.code, error.facts["seq"], error.facts["run"]) == ("DIGEST_MISMATCH", bad.seq, run)
    assert error.facts["check"] == "chain"
    assert [name for name, _ in error.facts["passed"]] == ["container", "programs"]


# --- children --------------------------------------------------------------------------------------------------------
def test_a_child_that_ended_cannot_be_left_out_or_exchanged() -> None:
    vm, run = family()
    whole = body_of(export(vm.store, run).data)
    heads = [place for place, line in enumerate(whole) if line.startswith(b'{"entries":')]
    last_child = whole[: heads[-1]] + [line for line in whole if line.startswith(b'{"receipt":')]
    assert refused(resealed(last_child)).code == "CHILD_MISMATCH"
    vm.run_sync(INNER, trace_id="stray")
    stray = [
        line
        for line in body_of(export(vm.store, "stray").data)
        if line.startswith((b'{"entries"', b'{"digest"'))
    ]
    with_stray = [*whole[:-1], *stray, whole[-1]]
    assert refused(resealed(with_stray)).code == "CHILD_MISMATCH"


def test_children_that_never_began_are_no_part_of_it() -> None:
    made = exported("unborn")
    assert made.runs == ["unborn-1", "unborn-1/lane.1.1.1"]


def test_a_run_is_cancelled_at_any_turn_of_the_loop(tmp_path: Path) -> None:
    async def ended_after(turns: int) -> bool:
        with SqliteStore(tmp_path / f"{turns}.db", durability="normal") as store:
            vm = ExecutionVM(tools={"tell": tell}, store=store)
            vm.save_program(INNER)
            driving = asyncio.create_task(vm.run(OUTER, trace_id="outer-1"))
            while vm.live_here("outer-1") is None:
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            with contextlib.suppress(RejectedError):  # it has ended
                await vm.cancel("outer-1")
            trace = await driving
            made = export(store, "outer-1")
            assert verify_bundle(made.data).receipt["status"] == trace.status
            unborn.append(any(b'"head":""' in entry.facts for entry in store.read("outer-1")))
            return trace.status == "SUCCESS"

    unborn: list[bool] = []
    turns = 0
    while not asyncio.run(ended_after(turns)):
        turns += 1
    assert not any(unborn)  # a child that is stopped before its first step is there as well


def test_a_child_that_is_said_not_to_have_begun_was_no_success() -> None:
    vm, run = family()
    forged = []
    chain = Chain(run)
    for entry in vm.store.read(run):
        event, *then = open_events(entry)
        if type(event) is ChildFinished:
            event.head = ""
        forged.append(chain.seal(event, entry.salt, entry.payload, then))
    vm.store._runs[run].entries[:] = forged
    assert refused(export(vm.store, run).data).code == "CHILD_MISMATCH"


# --- policies --------------------------------------------------------------------------------------------------------
def test_decisions_are_made_again_from_the_policies_in_the_bundle(key: SigningKey) -> None:
    made = exported("governed", key)
    verified = verify_bundle(made.data, [key.public])
    (decided,) = [check for check in verified.checks if check.name == "decisions"]
    assert decided.detail.startswith("3 ")
    assert verified.receipt["decisions"] == {"allow": 2, "ask": 1}
    lines = body_of(made.data)
    without = [line for line in lines if not line.startswith(b'{"policy"')]
    assert refused(resealed(without), key.public).code == "POLICY_UNKNOWN"
    twice = [line for line in lines for _ in range(2 if line.startswith(b'{"policy"') else 1)]
    assert refused(resealed(twice), key.public).code == "POLICY_UNKNOWN"


def test_a_policy_that_would_have_decided_otherwise_is_found() -> None:
    """The same hash cannot be had; but a history made under no policy, claiming one, can be written."""
    vm, run = KINDS["governed"]()
    entries = vm.store.read(run)
    other = machine(
        {**POLICY, "rules": [{"id": "none", "tools": ["pay"], "decision": "deny"}, *POLICY["rules"][2:]]}
    )
    policy = other.policy
    assert policy is not None
    chain = Chain(run)
    forged = []
    for entry in entries:
        event, *then = open_events(entry)
        for part in (event, *then):
            if getattr(part, "policy", UNSET) is not UNSET:
                part.policy = policy.hash
        forged.append(chain.seal(event, entry.salt, entry.payload, then))
    vm.store._runs[run].entries[:] = forged
    vm.store.put_policy(policy.hash, policy.canonical, 0)
    with pytest.raises(VerificationError) as raised:
        verify_bundle(export(vm.store, run).data)
    assert raised.value.code == "REPLAY_MISMATCH"


# --- signatures ------------------------------------------------------------------------------------------------------
def test_a_key_that_came_with_the_bundle_proves_nothing_about_the_signer(key: SigningKey) -> None:
    verified = verify_bundle(small(key))
    check = verified.checks[-1]
    assert (verified.signer, check.name, check.warns) == (None, "signature", True)


def test_a_signature_of_somebody_else_is_no_pass(key: SigningKey, tmp_path: Path) -> None:
    mallory = KeyFiles(tmp_path).generate("mallory")
    assert refused(small(mallory), key.public).code == "SIGNER_UNKNOWN"
    assert verify_bundle(small(mallory), [key.public, mallory.public]).signer == mallory.public


def test_a_signature_that_was_taken_off_is_missed(key: SigningKey) -> None:
    data = exported("waiting").data
    assert refused(data, key.public).code == "SIGNATURE_MISSING"
    assert verify_bundle(data, [key.public], accept_unsigned=True).signer is None
    lines = body_of(small(key))
    without = [line for line in lines if not line.startswith(b'{"envelope"')]
    assert refused(resealed(without)).code == "BUNDLE_MALFORMED"


def test_a_signature_does_not_fit_another_bundle(key: SigningKey) -> None:
    one, other = body_of(exported("refund", key).data), body_of(exported("waiting", key).data)
    assert refused(resealed([*one[:-1], other[-1]]), key.public).code == "SIGNATURE_INVALID"


def test_a_signed_receipt_is_verified_by_itself(key: SigningKey, tmp_path: Path) -> None:
    vm, run = refund()
    trace = vm.trace(run)
    data = canonical.encode(sign(statement(receipt(trace), [(run, trace.head)]), key))
    verified = verify_bundle(data + b"\n", [key.public])
    assert (verified.kind, verified.run, verified.signer) == ("receipt", run, key.public)
    assert verified.receipt == receipt(trace)
    assert refused(data).code == "SIGNER_UNKNOWN"
    assert refused(data, KeyFiles(tmp_path).generate("other").public).code == "SIGNER_UNKNOWN"
    choose = random.Random(9)
    for place in range(len(data)):
        edited = bytearray(data)
        edited[place] ^= choose.choice((1, 2, 4, 8, 16, 32, 64, 128))
        refused(bytes(edited), key.public)
    for junk in (b'{"payload":', b'{"payload":1}', b'{"payload":' + b"[" * 5_000):
        refused(junk, key.public)


# --- chosen steps ----------------------------------------------------------------------------------------------------
@pytest.fixture
def shown(key: SigningKey) -> tuple[Exported, VerifiedBundle]:
    vm, run = refund()
    made = export_steps(vm.store, run, ["judge"], key=key)
    return made, verify_bundle(made.data, [key.public])


def test_chosen_steps_are_shown_and_no_others(shown: tuple[Exported, VerifiedBundle]) -> None:
    made, verified = shown
    assert verified.kind == "disclosure"
    text = made.data.decode()
    assert '"payload":"yes"' in text
    assert "A-1001" not in text
    assert '"amount":41' not in text
    assert text.count('"salt":') == 1


def test_chosen_steps_come_without_digests_that_confirm_a_guess(
    shown: tuple[Exported, VerifiedBundle],
) -> None:
    """`trace_hash` and `outcome_hash` have no salt: with them, a step that is not shown could be guessed at."""
    vm, run = refund()
    trace = vm.trace(run)
    text = shown[0].data.decode()
    envelope = canonical.decode(body_of(shown[0].data)[-1])["envelope"]
    text += base64.b64decode(envelope["payload"]).decode()
    assert trace.trace_hash not in text
    assert trace.outcome_hash not in text
    assert trace.head in text


def test_every_changed_byte_of_a_disclosure_is_found(key: SigningKey) -> None:
    vm, run = refund()
    data = export_steps(vm.store, run, ["judge"], key=key).data
    body = b"\n".join(body_of(data))
    choose = random.Random(8)
    for place in range(len(body)):
        edited = bytearray(body)
        edited[place] ^= choose.choice((1, 2, 4, 8, 16, 32, 64, 128))
        refused(resealed(bytes(edited).split(b"\n")), key.public)


def test_a_step_that_the_run_did_not_come_to_cannot_be_shown() -> None:
    vm, run = refund()
    for step in ("refuse", "nothing"):
        with pytest.raises(NotFoundError) as raised:
            export_steps(vm.store, run, [step])
        assert raised.value.code == "UNKNOWN_STEP"


# --- bad stores ------------------------------------------------------------------------------------------------------
def test_what_does_not_verify_is_not_made_to_look_as_if_it_did() -> None:
    """A journal that was changed in the store can be exported or not; its bundle does not verify."""
    vm, run = waiting()
    entries = vm.store._runs[run].entries
    place = max(entry.seq for entry in entries if entry.payload is not None)
    entry = entries[place]
    entries[place] = Entry(entry.seq, entry.digest, entry.facts, entry.salt, b'"lied"')
    with pytest.raises(VerificationError) as raised:
        verify_bundle(export(vm.store, run).data)
    assert raised.value.code == "COMMITMENT_MISMATCH"
