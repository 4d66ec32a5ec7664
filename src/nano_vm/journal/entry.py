"""Journal entries: what is stored of an event, and how entries are chained (SPEC §5, `spec/journal.md`).

The facts of an entry are the canonical JSON object

    {"commitment": "sha256:…", "event": {…}, "prev": "sha256:…", "run": "…", "seq": 7, "type": "StepSucceeded"}

and its digest is SHA-256 over exactly those bytes, which the next entry names as `prev`. `commitment` is there when the event has a
payload: SHA-256 over a 16-byte random salt followed by the payload's canonical bytes. Salt and payload are stored
beside the facts, so they can be destroyed without touching the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import VerificationError
from nano_vm.kernel.events import EVENT_TYPES, Event

SALT_BYTES = 16
GENESIS = "sha256:" + "0" * 64  # `prev` of the first entry of every run

_encode = msgspec.json.Encoder().encode


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One stored entry.

    `facts` are the hashed bytes, `digest` is "sha256:<hex>" of them. `payload` is None when the event has none or when
    it has been erased (then the facts still hold its commitment).
    """

    seq: int
    digest: str
    facts: bytes
    salt: bytes = b""
    payload: bytes | None = None


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The decoded envelope of an entry; `event` is still encoded."""

    event: msgspec.Raw
    prev: str
    run: str
    seq: int
    type: str
    commitment: str | None = None


_decode_facts = msgspec.json.Decoder(Facts).decode
_EVENT_DECODERS: dict[str, Callable[[bytes | msgspec.Raw], Any]] = {
    name: msgspec.json.Decoder(kind).decode for name, kind in EVENT_TYPES.items()
}


class Chain:
    """The growing end of one run's chain: `length` entries so far, the last with digest `head`.

    Sealing one entry costs one digest over its facts and one over its payload, however long the chain is.
    """

    __slots__ = ("_run", "head", "length", "run")

    def __init__(self, run: str, length: int = 0, head: str = GENESIS) -> None:
        self.run = run
        self.length = length
        self.head = head
        # Encoded once: a run id is any text, and its JSON form is the same in every entry.
        self._run = _encode(run).decode("ascii") if run.isascii() else canonical.encode(run).decode()

    def seal(self, event: Event, salt: bytes, payload: bytes | None) -> Entry:
        """Chain `event` to the head and return its entry.

        Args:
            event: its `payload` field is left out of the facts, whatever it holds.
            salt: 16 fresh random bytes when there is a payload; ignored without one.
            payload: canonical bytes of the event's payload, or None when it has none.
        """
        held = event.payload if hasattr(event, "payload") else UNSET
        if held is not UNSET:
            event.payload = UNSET  # type: ignore[union-attr]
            body = _encode(event)
            event.payload = held  # type: ignore[union-attr]
        else:
            body = _encode(event)
        seq = self.length
        tail = f',"prev":"{self.head}","run":{self._run},"seq":{seq},"type":"{event.type}"}}'.encode()
        if payload is None:
            salt = b""
            facts = b'{"event":' + body + tail
        else:
            commitment = sha256(salt + payload).hexdigest()
            facts = b'{"commitment":"sha256:%b","event":%b%b' % (commitment.encode(), body, tail)
        digest = "sha256:" + sha256(facts).hexdigest()
        self.head = digest
        self.length = seq + 1
        return Entry(seq, digest, facts, salt, payload)


def read_facts(entry: Entry) -> Facts:
    """Decode the envelope of an entry.

    Raises:
        VerificationError: JOURNAL_MALFORMED.
    """
    try:
        return _decode_facts(entry.facts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VerificationError(
            "JOURNAL_MALFORMED",
            f"the facts of entry {entry.seq} cannot be read: {error}",
            facts={"seq": entry.seq},
        ) from None


def open_event(entry: Entry, facts: Facts | None = None) -> Event:
    """The event an entry holds; an erased payload is `UNSET`.

    Raises:
        VerificationError: JOURNAL_MALFORMED.
    """
    facts = facts or read_facts(entry)
    decoder = _EVENT_DECODERS.get(facts.type)
    if decoder is None:
        raise VerificationError(
            "JOURNAL_MALFORMED",
            f"entry {entry.seq} has the unknown type `{facts.type}`",
            facts={"seq": entry.seq},
        )
    try:
        event: Event = decoder(facts.event)
        if entry.payload is not None:
            event.payload = canonical.decode(entry.payload)  # type: ignore[union-attr]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError) as error:
        raise VerificationError(
            "JOURNAL_MALFORMED",
            f"entry {entry.seq} ({facts.type}) cannot be read: {error}",
            facts={"seq": entry.seq},
        ) from None
    return event


def verify_entry(entry: Entry, run: str, prev: str) -> Facts:
    """Check one entry against its place in the chain and return its facts.

    Raises:
        VerificationError: DIGEST_MISMATCH, CHAIN_BROKEN or COMMITMENT_MISMATCH, naming the entry in `facts["seq"]`.
    """
    if "sha256:" + sha256(entry.facts).hexdigest() != entry.digest:
        raise _broken("DIGEST_MISMATCH", "the facts do not have the stored digest", entry.seq)
    facts = read_facts(entry)
    if facts.seq != entry.seq or facts.prev != prev or facts.run != run:
        raise _broken("CHAIN_BROKEN", "it does not follow the entry before it", entry.seq)
    if entry.payload is not None:
        if facts.commitment != "sha256:" + sha256(entry.salt + entry.payload).hexdigest():
            raise _broken("COMMITMENT_MISMATCH", "the payload is not the one committed to", entry.seq)
        if len(entry.salt) != SALT_BYTES:
            raise _broken("COMMITMENT_MISMATCH", "the salt is not 16 bytes long", entry.seq)
    return facts


def _broken(code: str, what: str, seq: int) -> VerificationError:
    return VerificationError(code, f"entry {seq}: {what}", facts={"seq": seq})
