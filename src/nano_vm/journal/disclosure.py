"""The disclosure tree: showing single entries of a journal without the others (SPEC §5, `spec/journal.md`).

One leaf per entry, in order: the 32 bytes of the entry's digest, followed by the 32 bytes of its commitment
when it has a payload. A proof therefore binds a shown payload to its entry, and the entry to its place; what
it shows of the neighbours are hashes over digests that depend on salts never shown.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Sequence

import msgspec

from nano_vm.errors import VerificationError
from nano_vm.journal import merkle
from nano_vm.journal.entry import Entry, read_facts
from nano_vm.journal.reading import verify_shown

_PREFIX = len("sha256:")
_HEAD, _AFTER = b'{"commitment":"sha256:', b'","event":'
_BEFORE, _PLACE = len(_HEAD), len(_HEAD) + 64


class Disclosure(msgspec.Struct, frozen=True, kw_only=True):
    """One entry and the proof that it is number `entry.seq` of a journal of `size` entries.

    The entry may come without salt and payload: then only its facts are shown.
    """

    entry: Entry
    size: int
    proof: tuple[bytes, ...]


def disclosure_leaf(entry: Entry) -> bytes:
    """The leaf hash of an entry.

    Raises:
        VerificationError: JOURNAL_MALFORMED.
    """
    written = entry.facts
    if written.startswith(_HEAD) and written.startswith(_AFTER, _PLACE):
        commitment: bytes | str | None = written[_BEFORE:_PLACE]  # where canonical facts have it
    else:
        commitment = read_facts(entry).commitment
        if commitment is not None:
            commitment = commitment[_PREFIX:]
    try:
        data = unhexlify(entry.digest[_PREFIX:])
        if commitment is not None:
            data += unhexlify(commitment)
    except ValueError:
        raise VerificationError(
            "JOURNAL_MALFORMED",
            f"entry {entry.seq}: a digest cannot be read",
            facts={"seq": entry.seq},
        ) from None
    return merkle.leaf_hash(data)


def disclosure_root(entries: Sequence[Entry]) -> str:
    """Root ("sha256:…") of the disclosure tree."""
    return "sha256:" + merkle.root([disclosure_leaf(entry) for entry in entries]).hex()


def disclose(entries: Sequence[Entry], *seqs: int) -> list[Disclosure]:
    """The entries numbered `seqs` with their proofs.

    Raises:
        IndexError: there is no such entry.
    """
    leaves = [disclosure_leaf(entry) for entry in entries]
    return [
        Disclosure(entry=entries[seq], size=len(leaves), proof=tuple(merkle.inclusion_proof(leaves, seq)))
        for seq in seqs
    ]


def verify_disclosure(disclosure: Disclosure, run: str, root: str) -> Entry:
    """Check a disclosed entry against the root of its run's disclosure tree; returns the entry.

    Raises:
        VerificationError: JOURNAL_MALFORMED, DIGEST_MISMATCH, CHAIN_BROKEN (of another run or place),
            COMMITMENT_MISMATCH or PROOF_INVALID.
    """
    entry = disclosure.entry
    verify_shown(entry, run)
    try:
        root_hash = bytes.fromhex(root.removeprefix("sha256:"))
    except ValueError:
        raise VerificationError("PROOF_INVALID", "the root cannot be read") from None
    merkle.verify_inclusion(disclosure_leaf(entry), entry.seq, disclosure.size, disclosure.proof, root_hash)
    return entry
