"""Checkpoints of the store's log as signed notes (C2SP tlog-checkpoint and signed-note), with Ed25519.

nano-vm/log-5f0c…            the log's origin
1024                         its size
CsUYapGGPo4dkMgIAUqom…       its root

— nano-vm/log-5f0c… Az3grl…  the signature over the three lines
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from nano_vm.errors import InputError, VerificationError
from nano_vm.evidence.keys import PublicKey, SigningKey

NOTE_BYTES_MAX = 64 * 1024
SIGNATURES_MAX = 64
_ED25519 = b"\x01"
_ORIGIN = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


class Checkpoint(NamedTuple):
    """The head of a log: its first `size` leaves have this root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What is signed: three lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


class Note(NamedTuple):
    """A checkpoint as read, with its signatures as (name, key hash, signature)."""

    checkpoint: Checkpoint
    signatures: tuple[tuple[str, bytes, bytes], ...]


def check_origin(origin: str) -> str:
    """Raises InputError USAGE."""
    if not _ORIGIN.fullmatch(origin):
        raise InputError(
            "USAGE", "an origin is a text without spaces and `+`", help="for example example.com/payments-log"
        )
    return origin


def key_hash(name: str, key: PublicKey) -> bytes:
    """The four bytes that a signature names its key by."""
    return sha256(name.encode() + b"\n" + _ED25519 + key.raw).digest()[:4]


def verifier_key(name: str, key: PublicKey) -> str:
    """The key as other tools take it: `name+hash+base64`."""
    body = base64.b64encode(_ED25519 + key.raw).decode()
    return f"{name}+{key_hash(name, key).hex()}+{body}"


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The signed note; the signature has the name of the origin."""
    text = checkpoint.text
    signed = key_hash(checkpoint.origin, key.public) + key.sign(text.encode())
    return f"{text}\n— {checkpoint.origin} {base64.b64encode(signed).decode()}\n"


def parse_note(note: str) -> Note:
    """Read a note without verifying it.

    Raises:
        VerificationError: NOTE_MALFORMED.
    """
    text, blank, tail = note.partition("\n\n")
    lines = text.split("\n")
    if len(note) > NOTE_BYTES_MAX or not blank or not tail.endswith("\n"):
        raise _malformed("it is no signed note")
    if len(lines) != 3 or not _ORIGIN.fullmatch(lines[0]) or not _SIZE.fullmatch(lines[1]):
        raise _malformed("its text is no checkpoint")
    root = _base64(lines[2])
    if len(root) != 32:
        raise _malformed("its root is no SHA-256")
    signatures: list[tuple[str, bytes, bytes]] = []
    for line in tail[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        name, _, signature = rest.partition(" ")
        signed = _base64(signature)
        if dash != "—" or not _ORIGIN.fullmatch(name) or len(signed) < 5 or len(signatures) >= SIGNATURES_MAX:
            raise _malformed("a signature line cannot be read")
        signatures.append((name, signed[:4], signed[4:]))
    return Note(Checkpoint(lines[0], int(lines[1]), root), tuple(signatures))


def verify_note(note: str, keys: Sequence[PublicKey]) -> tuple[Checkpoint, PublicKey]:
    """The checkpoint, and which of `keys` has signed it under the log's own name.

    Signatures by others (witnesses) are left to those who know their keys.

    Raises:
        VerificationError: NOTE_MALFORMED; SIGNER_UNKNOWN when none of the keys is named; SIGNATURE_INVALID.
        RuntimeFault: EXTRA_MISSING.
    """
    parsed = parse_note(note)
    origin = parsed.checkpoint.origin
    for name, hashed, signature in parsed.signatures:
        if name != origin:
            continue
        for key in keys:
            if key_hash(name, key) == hashed:
                key.verify(signature, parsed.checkpoint.text.encode())
                return parsed.checkpoint, key
    raise VerificationError(
        "SIGNER_UNKNOWN",
        f"the checkpoint of `{origin}` is signed by none of the keys that are expected",
        help="`nano-vm keys trust` keeps a key; --key FILE names one",
        facts={"origin": origin},
    )


def _base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("it holds something that is not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise _malformed("it is not written as it should be")
    return raw


def _malformed(what: str) -> VerificationError:
    return VerificationError("NOTE_MALFORMED", f"the checkpoint cannot be read: {what}")
