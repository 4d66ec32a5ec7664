"""Signed receipts: a DSSE 1.0.2 envelope over an in-toto Statement v1, with Ed25519.

The statement's subjects are the run and the child runs it rests on, each with the SHA-256 of its last journal entry,
which stands for the whole journal; its predicate is the receipt. Other people's tools verify it: nothing in it is ours
but the predicate.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from nano_vm import canonical
from nano_vm.errors import VerificationError
from nano_vm.evidence.keys import PublicKey, SigningKey

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
RECEIPT_TYPE = "urn:nano-vm:receipt:v1"
DISCLOSURE_TYPE = "urn:nano-vm:disclosure:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
CONTENTS_NAME, CHECKPOINT_NAME = "/contents", "/checkpoint"  # no run has such an id
_PREFIX = "sha256:"


def statement(
    receipt: dict[str, Any],
    heads: Sequence[tuple[str, str]],
    predicate_type: str = RECEIPT_TYPE,
    *,
    contents: str | None = None,
    checkpoint: str | None = None,
) -> bytes:
    """Canonical bytes of the statement.

    Args:
        heads: (run id, digest of its last entry), the receipt's run first.
        predicate_type: DISCLOSURE_TYPE for the receipt of chosen steps.
        contents: of a bundle, the digest of all that it holds before the receipt: what nothing else in it proves, as
            the ciphertext of a sealed value, is then vouched for.
        checkpoint: of a bundle that has one, the signed note that the runs are proved to stand under, so that it
            cannot be left out without being missed.
    """
    subjects = list(heads)
    if contents is not None:
        subjects.append((CONTENTS_NAME, contents))
    if checkpoint is not None:
        subjects.append((CHECKPOINT_NAME, canonical.digest(checkpoint.encode())))
    return canonical.encode(
        {
            "_type": STATEMENT_TYPE,
            "predicate": receipt,
            "predicateType": predicate_type,
            "subject": [
                {"digest": {"sha256": digest.removeprefix(_PREFIX)}, "name": name}
                for name, digest in subjects
            ],
        }
    )


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, key: SigningKey) -> dict[str, Any]:
    """The envelope around `payload`, as a JSON object."""
    signature = key.sign(pae(payload))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key.public.keyid, "sig": base64.b64encode(signature).decode()}],
    }


def open_envelope(envelope: Any, key: PublicKey) -> bytes:
    """The payload of an envelope that carries one signature, made with `key`.

    Raises:
        VerificationError: SIGNATURE_INVALID, also for an envelope that is none. RuntimeFault: EXTRA_MISSING.
    """
    if not isinstance(envelope, dict) or set(envelope) != {"payload", "payloadType", "signatures"}:
        raise _invalid("this is no envelope")
    signatures = envelope["signatures"]
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise _invalid("the envelope holds no in-toto statement")
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise _invalid("an envelope has one signature")
    signature = signatures[0]
    if set(signature) != {"keyid", "sig"} or signature["keyid"] != key.keyid:
        raise _invalid("the signature names another key")
    payload = _bytes(envelope["payload"])
    key.verify(_bytes(signature["sig"]), pae(payload))
    return payload


def _bytes(text: Any) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise _invalid("the envelope holds something that is not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise _invalid("the envelope is not written as it should be")
    return raw


def _invalid(what: str) -> VerificationError:
    return VerificationError("SIGNATURE_INVALID", what)
