"""How journal entries lie in a row: one *segment* per append, whatever the database.

A segment is the unit of writing. The two or three entries of one append share a row, because a row per entry
was measured at 0.75-0.8 of the throughput (`benchmarks/layout.py`). Its columns:

    seq       sequence number of the first entry
    digests   32 bytes per entry: SHA-256 of its facts. Their number is the number of entries
    facts     the canonical facts, joined by newlines (canonical JSON never contains one): SQL can read them
    payloads  NULL when no entry has one; else, per entry, a 5-byte head, the salt, and the payload

The head is little-endian `<IB`: the size of what follows the salt, and a tag: bit 0 - there is a payload; bit
1 - it is a blob, and what follows is its SHA-256; bits 2-7 - the length of the salt (a payload that carries
its salt inside has none here).

Digests are stored although they follow from the facts, so that an edited byte is blamed on the entry that
holds it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple, TypeAlias

from nano_vm.errors import StoreError, VerificationError
from nano_vm.journal.entry import SALT_BYTES, Entry
from nano_vm.journal.port import BLOB_BYTES_MIN

DIGEST_BYTES = 32
SEGMENT_ENTRIES_MAX = 256  # a longer append becomes several segments, so that reading a slice stays a slice

_HEAD = struct.Struct("<IB")
_pack_head = _HEAD.pack
_NO_PAYLOAD = _pack_head(0, 0)
_PRESENT, _BLOB = 1, 2
_SALT_MAX = 63
_SALTED = SALT_BYTES << 2 | _PRESENT
_DIGEST_CHARS = len("sha256:") + 2 * DIGEST_BYTES
# Rows are written as bytearrays: sqlite3 binds these as they are. For `bytes` it looks for an adapter every time, which
# takes a third of an insert.
Row: TypeAlias = tuple[bytearray, bytearray, bytearray]
unhex = bytearray.fromhex
_join = bytearray().join


class Segment(NamedTuple):
    """The columns of one row, in table order."""

    seq: int
    digests: bytes
    facts: bytes
    payloads: bytes | None


def pack(entries: Sequence[Entry], blobs: dict[bytes, bytes]) -> list[Segment]:
    """Segments holding `entries` (consecutive, at least one); payloads above `BLOB_BYTES_MIN` go to `blobs`.

    Raises:
        VerificationError: JOURNAL_MALFORMED for an entry that was not made by `Chain.seal`.
    """
    if len(entries) <= SEGMENT_ENTRIES_MAX:
        return [_pack_one(entries, blobs)]
    return [
        _pack_one(entries[start : start + SEGMENT_ENTRIES_MAX], blobs)
        for start in range(0, len(entries), SEGMENT_ENTRIES_MAX)
    ]


def pack_lone(entry: Entry) -> Row | None:
    """Digests, facts and payloads of a segment of one entry, the most common one; None where `pack` has to look
    closer."""
    payload, salt, facts, digest = entry.payload, entry.salt, entry.facts, entry.digest
    if (
        payload is None
        or len(salt) != SALT_BYTES
        or len(payload) > BLOB_BYTES_MIN
        or len(digest) != _DIGEST_CHARS
        or b"\n" in facts
    ):
        return None
    try:
        return unhex(digest[7:]), bytearray(facts), pack_payload(salt, payload)
    except ValueError:
        return None


def pack_payload(salt: bytes, payload: bytes) -> bytearray:
    """Payloads of a segment of one entry, for a payload that is no blob."""
    return _join((_pack_head(len(payload), _SALTED), salt, payload))


def _pack_one(entries: Sequence[Entry], blobs: dict[bytes, bytes]) -> Segment:
    facts = b"\n".join([entry.facts for entry in entries])
    try:
        digests = bytes.fromhex("".join([entry.digest[7:] for entry in entries]))
    except ValueError:
        digests = b""
    if len(digests) != DIGEST_BYTES * len(entries) or facts.count(b"\n") != len(entries) - 1:
        raise _malformed(entries[0].seq)
    parts: list[bytes] = []
    empty = True
    for entry in entries:
        payload, salt = entry.payload, entry.salt
        if payload is None and not salt:
            parts.append(_NO_PAYLOAD)
            continue
        empty = False
        tag = len(salt) << 2
        if len(salt) > _SALT_MAX:
            raise _malformed(entry.seq)
        if payload is None:
            payload = b""
        else:
            tag |= _PRESENT
            if len(payload) > BLOB_BYTES_MIN:
                tag |= _BLOB
                digest = sha256(payload).digest()
                blobs[digest] = payload
                payload = digest
        parts += (_pack_head(len(payload), tag), salt, payload)
    return Segment(entries[0].seq, digests, facts, None if empty else b"".join(parts))


def unpack(run_id: str, segment: Segment, blob: Callable[[bytes], bytes | None]) -> list[Entry]:
    """The entries of a segment; `blob` finds a payload by its SHA-256.

    Raises:
        StoreError: STORE_DAMAGED (facts: run_id, seq) when the row cannot be read or a blob is missing.
            Whether the entries say what they said is not asked here: that is `verify_entry`.
    """
    seq, digests, facts, payloads = segment
    if not (isinstance(digests, bytes) and isinstance(facts, bytes) and isinstance(payloads, bytes | None)):
        raise damaged_segment(run_id, seq, "its columns have the wrong type")
    lines = facts.split(b"\n")
    count = len(lines)
    if len(digests) != count * DIGEST_BYTES:
        raise damaged_segment(run_id, seq, "its digests and its facts differ in number")
    hexed = digests.hex()
    if payloads is None:
        return [
            Entry(seq + i, "sha256:" + hexed[64 * i : 64 * i + 64], facts) for i, facts in enumerate(lines)
        ]
    entries: list[Entry] = []
    at = 0
    for i, line in enumerate(lines):
        if at + 5 > len(payloads):
            raise damaged_segment(run_id, seq + i, "its payloads are cut off")
        size, tag = _HEAD.unpack_from(payloads, at)
        at += 5
        end_of_salt = at + (tag >> 2)
        salt = payloads[at:end_of_salt]
        at = end_of_salt + size
        payload: bytes | None = payloads[end_of_salt:at]
        if tag & _BLOB:
            payload = blob(payload or b"") if tag & _PRESENT else None
            if payload is None:
                raise damaged_segment(run_id, seq + i, "its blob is missing")
        elif not tag & _PRESENT:
            if size:
                raise damaged_segment(run_id, seq + i, "its payload is marked as absent")
            payload = None
        entries.append(Entry(seq + i, "sha256:" + hexed[64 * i : 64 * i + 64], line, salt, payload))
    if at != len(payloads):
        raise damaged_segment(run_id, seq, "its payloads have the wrong length")
    return entries


def blob_digests(payloads: bytes | None) -> list[bytes]:
    """The SHA-256 of every blob that a segment's payloads refer to; a broken column gives those before the
    break."""
    found: list[bytes] = []
    at = 0
    while payloads is not None and at + 5 <= len(payloads):
        size, tag = _HEAD.unpack_from(payloads, at)
        start = at + 5 + (tag >> 2)
        at = start + size
        if tag & _BLOB:
            found.append(payloads[start:at])
    return found


def damaged_segment(run_id: str, seq: int, what: str) -> StoreError:
    return StoreError(
        "STORE_DAMAGED",
        f"entry {seq} of run `{run_id}` cannot be read: {what}",
        help="restore the database from a back-up",
        facts={"run_id": run_id, "seq": seq},
    )


def _malformed(seq: int) -> VerificationError:
    return VerificationError(
        "JOURNAL_MALFORMED", f"entry {seq} is not a sealed journal entry", facts={"seq": seq}
    )
