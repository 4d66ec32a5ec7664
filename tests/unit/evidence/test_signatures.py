"""Signed receipts and checkpoints, checked with other people's tools."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from evidence_runs import refund
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError as TheirVerificationError
from securesystemslib.signer import SSlibKey

from nano_vm.errors import InputError, NotFoundError, RuntimeFault, VerificationError
from nano_vm.evidence.keys import KeyFiles, PublicKey, parse_public, read_public
from nano_vm.evidence.note import Checkpoint, parse_note, sign_checkpoint, verifier_key, verify_note
from nano_vm.evidence.receipt import receipt
from nano_vm.evidence.sign import PAYLOAD_TYPE, RECEIPT_TYPE, open_envelope, pae, sign, statement


@pytest.fixture
def files(tmp_path: Path) -> KeyFiles:
    return KeyFiles(tmp_path / "keys")


def signed(files: KeyFiles) -> tuple[dict[str, Any], PublicKey]:
    key = files.generate("issuer")
    vm, run = refund()
    trace = vm.trace(run)
    return sign(statement(receipt(trace), [(run, trace.head)]), key), key.public


# --- receipts --------------------------------------------------------------------------------------------------------
def test_securesystemslib_verifies_a_receipt(files: KeyFiles) -> None:
    envelope, public = signed(files)
    theirs = Envelope.from_dict(deepcopy(envelope))  # it changes what it is given
    key = SSlibKey(public.keyid, "ed25519", "ed25519", {"public": public.raw.hex()})
    theirs.verify([key], 1)
    assert theirs.payload_type == PAYLOAD_TYPE
    assert theirs.pae() == pae(theirs.payload)
    envelope["payload"] = base64.b64encode(theirs.payload.replace(b"refund-1", b"refund-2")).decode()
    with pytest.raises(TheirVerificationError):
        Envelope.from_dict(envelope).verify([key], 1)


def test_openssl_verifies_a_receipt(files: KeyFiles, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    envelope, public = signed(files)
    message, signature, pem = tmp_path / "m", tmp_path / "s", tmp_path / "p"
    message.write_bytes(pae(base64.b64decode(envelope["payload"])))
    signature.write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    pem.write_text(public.pem)
    words = [
        openssl,
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        str(pem),
        "-rawin",
        "-in",
        str(message),
        "-sigfile",
    ]
    assert subprocess.run([*words, str(signature)], capture_output=True).returncode == 0
    message.write_bytes(message.read_bytes() + b" ")
    assert subprocess.run([*words, str(signature)], capture_output=True).returncode != 0


def test_node_verifies_a_receipt(files: KeyFiles) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    envelope, public = signed(files)
    code = """
const crypto = require("crypto");
const [envelope, pem] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const body = Buffer.from(envelope.payload, "base64");
const head = `DSSEv1 ${envelope.payloadType.length} ${envelope.payloadType} ${body.length} `;
const good = crypto.verify(null, Buffer.concat([Buffer.from(head), body]), pem,
  Buffer.from(envelope.signatures[0].sig, "base64"));
const statement = JSON.parse(body);
process.exit(good && statement._type === "https://in-toto.io/Statement/v1" ? 0 : 1);
"""
    given = json.dumps([envelope, public.pem]).encode()
    assert subprocess.run([node, "-e", code], input=given, capture_output=True).returncode == 0


def test_the_statement_is_an_in_toto_statement_about_the_journal(files: KeyFiles) -> None:
    envelope, public = signed(files)
    held = json.loads(open_envelope(envelope, public))
    vm, run = refund()
    trace = vm.trace(run)
    assert set(held) == {"_type", "predicate", "predicateType", "subject"}
    assert (held["_type"], held["predicateType"]) == ("https://in-toto.io/Statement/v1", RECEIPT_TYPE)
    assert held["subject"] == [{"name": run, "digest": {"sha256": trace.head.removeprefix("sha256:")}}]
    assert held["predicate"] == receipt(trace)


@pytest.mark.parametrize(
    "damage",
    [
        lambda e: e.update(payload=e["payload"][:-4] + "AAA="),
        lambda e: e.update(payload=e["payload"] + "="),
        lambda e: e.update(payloadType="text/plain"),
        lambda e: e.update(more=1),
        lambda e: e.pop("payload"),
        lambda e: e.update(signatures=[]),
        lambda e: e.update(signatures=e["signatures"] * 2),
        lambda e: e["signatures"][0].update(keyid="0" * 64),
        lambda e: e["signatures"][0].update(sig="AAAA"),
        lambda e: e["signatures"][0].update(sig=7),
    ],
)
def test_a_damaged_envelope_is_no_signature(files: KeyFiles, damage: Any) -> None:
    envelope, public = signed(files)
    damage(envelope)
    with pytest.raises(VerificationError) as raised:
        open_envelope(envelope, public)
    assert raised.value.code == "SIGNATURE_INVALID"


# --- key files -------------------------------------------------------------------------------------------------------
def test_a_private_key_is_for_its_owner_alone(files: KeyFiles) -> None:
    key = files.generate("mine")
    path = files.directory / "mine.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
    assert files.signing("mine").public == key.public
    assert path.read_text().splitlines()[1] not in repr(key)
    os.chmod(path, 0o640)
    with pytest.raises(RuntimeFault) as raised:
        files.signing("mine")
    assert raised.value.code == "KEY_PERMISSIONS"


def test_a_key_is_never_overwritten(files: KeyFiles) -> None:
    first = files.generate("mine").public
    for again in (lambda: files.generate("mine"), lambda: files.trust("mine", first)):
        with pytest.raises(InputError) as raised:
            again()
        assert raised.value.code == "KEY_EXISTS"
    assert files.public("mine") == first


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "a b", "x" * 65, "-x", "é", "a\n"])
def test_a_name_stays_in_its_directory(files: KeyFiles, name: str) -> None:
    with pytest.raises(InputError) as raised:
        files.generate(name)
    assert raised.value.code == "KEY_NAME"


def test_which_key_signs_is_said_or_clear(files: KeyFiles) -> None:
    with pytest.raises(NotFoundError) as none:
        files.signing()
    assert none.value.code == "KEY_NOT_FOUND"
    files.generate("one")
    assert files.signing().name == "one"
    files.generate("two")
    with pytest.raises(InputError) as several:
        files.signing()
    assert several.value.code == "KEY_NAME"


def test_trusted_keys_are_kept_apart_from_own(files: KeyFiles, tmp_path: Path) -> None:
    theirs = KeyFiles(tmp_path / "theirs").generate("issuer").public
    files.generate("mine")
    files.trust("them", theirs)
    assert files.names() == [("mine", True), ("them", False)]
    with pytest.raises(NotFoundError):
        files.signing("them")
    files.distrust("them")
    assert files.names() == [("mine", True)]
    with pytest.raises(InputError):
        files.distrust("mine")


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "00" * 31]
)
def test_what_is_no_key_is_refused(files: KeyFiles, tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(RuntimeFault) as raised:
        read_public(tmp_path / "k")
    assert raised.value.code == "KEY_FILE"
    (files.directory).mkdir(mode=0o700)
    path = files.directory / "bad.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(RuntimeFault) as raised:
        files.signing("bad")
    assert raised.value.code == "KEY_FILE"


def test_a_public_key_is_read_in_each_of_its_forms(files: KeyFiles) -> None:
    key = files.generate("mine").public
    for text in (key.pem, key.text, key.raw.hex()):
        assert parse_public(text).raw == key.raw


def test_openssl_reads_our_key_files(files: KeyFiles) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    key = files.generate("mine").public
    out = subprocess.run(
        [openssl, "pkey", "-in", str(files.directory / "mine.key"), "-pubout"],
        capture_output=True,
        check=True,
    ).stdout
    assert out.decode() == key.pem


# --- checkpoints -----------------------------------------------------------------------------------------------------
CHECKPOINT = Checkpoint("example.com/log", 42, bytes(range(32)))


def test_a_checkpoint_is_a_signed_note(files: KeyFiles) -> None:
    key = files.generate("log")
    note = sign_checkpoint(CHECKPOINT, key)
    origin, size, root, blank, line = note.removesuffix("\n").split("\n")
    assert (origin, size, root, blank) == (
        "example.com/log",
        "42",
        base64.b64encode(bytes(range(32))).decode(),
        "",
    )
    assert line.startswith("— example.com/log ")
    assert verify_note(note, [key.public]) == (CHECKPOINT, key.public)
    hashed, signature = parse_note(note).signatures[0][1:]
    name, hexed, body = verifier_key("example.com/log", key.public).split("+", 2)
    assert (name, hexed, base64.b64decode(body)) == (
        "example.com/log",
        hashed.hex(),
        b"\x01" + key.public.raw,
    )
    theirs = SSlibKey("0", "ed25519", "ed25519", {"public": key.public.raw.hex()})
    from securesystemslib.signer import Signature

    theirs.verify_signature(Signature("0", signature.hex()), f"{origin}\n{size}\n{root}\n".encode())


def test_a_note_with_a_witness_still_verifies(files: KeyFiles) -> None:
    key, witness = files.generate("log"), files.generate("witness")
    note = sign_checkpoint(CHECKPOINT, key)
    other = sign_checkpoint(CHECKPOINT._replace(origin="witness.example/w"), witness).splitlines()[-1]
    assert verify_note(note + other + "\n", [key.public])[0] == CHECKPOINT


def test_every_changed_character_of_a_note_is_found(files: KeyFiles) -> None:
    key = files.generate("log")
    note = sign_checkpoint(CHECKPOINT, key)
    for place, character in enumerate(note):
        for other in ("A" if character != "A" else "B", " ", "\n", ""):
            if other == character:
                continue
            changed = note[:place] + other + note[place + 1 :]
            with pytest.raises(VerificationError) as raised:
                verify_note(changed, [key.public])
            assert raised.value.code in ("NOTE_MALFORMED", "SIGNATURE_INVALID", "SIGNER_UNKNOWN")


def test_a_checkpoint_of_another_log_or_key_is_not_this_one(files: KeyFiles, tmp_path: Path) -> None:
    key = files.generate("log")
    other = KeyFiles(tmp_path / "other").generate("log")
    with pytest.raises(VerificationError) as raised:
        verify_note(sign_checkpoint(CHECKPOINT, other), [key.public])
    assert raised.value.code == "SIGNER_UNKNOWN"
