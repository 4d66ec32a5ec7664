"""Merkle trees as RFC 9162 section 2.1 defines them, over SHA-256.

Leaves and inner nodes are hashed under different prefixes (0x00 and 0x01), and a tree whose size is no power
of two is split at the largest power of two below it - nothing is duplicated, so no two lists of leaves share
a root.

All functions take *leaf hashes* (`leaf_hash(data)`, 32 bytes), are iterative, and cost O(n) at most; proofs
have O(log n) nodes. `spec/journal.md` is normative, `spec/vectors/journal.json` holds examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from nano_vm.errors import VerificationError

EMPTY_ROOT = sha256(b"").digest()
"""Root of the tree without leaves: SHA-256 of nothing (RFC 9162 section 2.1.1)."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256 over 0x00 and `data`."""
    return sha256(b"\x00" + data).digest()


def leaf_hashes(leaves: Iterable[bytes]) -> list[bytes]:
    """`leaf_hash` of each."""
    return [sha256(b"\x00" + leaf).digest() for leaf in leaves]


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 over 0x01 and the hashes of both children."""
    return sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Root of the tree over these leaves, in this order; `EMPTY_ROOT` without any."""
    if not leaf_hashes:
        return EMPTY_ROOT
    level = list(leaf_hashes)
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def _parents(level: Sequence[bytes]) -> list[bytes]:
    """The level above: an odd last node goes up as it is, which gives the same tree as the RFC's split."""
    above = [
        sha256(b"\x01" + level[place] + level[place + 1]).digest() for place in range(0, len(level) - 1, 2)
    ]
    if len(level) % 2:
        above.append(level[-1])
    return above


class MerkleTree:
    """A tree that only grows, kept as the roots of its complete subtrees (O(log n) memory).

    Appending hashes the leaf's own ancestors that become complete, one per append on average; nothing before
    it is hashed again.
    """

    __slots__ = ("_peaks", "size")

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self.size = 0
        # Largest subtree first; their sizes are the powers of two in `size`.
        self._peaks: list[bytes] = []
        for leaf in leaf_hashes:
            self.append(leaf)

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash at the end."""
        peaks = self._peaks
        size = self.size
        while size & 1:
            leaf = node_hash(peaks.pop(), leaf)
            size >>= 1
        peaks.append(leaf)
        self.size += 1

    @property
    def root(self) -> bytes:
        """Root over all leaves so far; costs O(log n)."""
        if not self._peaks:
            return EMPTY_ROOT
        hashed = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            hashed = node_hash(peak, hashed)
        return hashed


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The nodes that lead from leaf `index` (0-based) to the root, lowest first (RFC 9162 section 2.1.3.1).

    Raises:
        IndexError: there is no such leaf.
    """
    if not 0 <= index < len(leaf_hashes):
        raise IndexError(f"no leaf {index} in a tree of {len(leaf_hashes)}")
    proof: list[bytes] = []
    level: Sequence[bytes] = leaf_hashes
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append(level[sibling])
        level = _parents(level)
        index >>= 1
    return proof


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root_hash: bytes) -> bytes:
    """Check that `leaf` is leaf `index` of the tree of `size` leaves with this root (RFC 9162 section
    2.1.3.2).

    Returns:
        The verified root.

    Raises:
        VerificationError: PROOF_INVALID.
    """
    if not 0 <= index < size:
        raise _invalid("the leaf is not in a tree of that size")
    here, last = index, size - 1
    hashed = leaf
    for node in proof:
        if last == 0:
            raise _invalid("the proof is longer than the tree is high")
        if here & 1 or here == last:
            hashed = node_hash(node, hashed)
            while not here & 1 and here:
                here >>= 1
                last >>= 1
        else:
            hashed = node_hash(hashed, node)
        here >>= 1
        last >>= 1
    if last or hashed != root_hash:
        raise _invalid("the inclusion proof does not lead to the root")
    return root_hash


def consistency_proof(leaf_hashes: Sequence[bytes], size: int) -> list[bytes]:
    """The nodes that show that the tree over the first `size` leaves is a prefix of this one (RFC 9162
    section 2.1.4.1). Empty when `size` is 0 or all leaves.

    Raises:
        IndexError: the tree has fewer leaves.
    """
    if not 0 <= size <= len(leaf_hashes):
        raise IndexError(f"no prefix of {size} leaves in a tree of {len(leaf_hashes)}")
    if size in (0, len(leaf_hashes)):
        return []
    proof: list[bytes] = []
    low, high = 0, len(leaf_hashes)
    known = True  # the subtree in hand is the old tree itself, whose root the verifier has
    while size < high:
        split = low + _split(high - low)
        if size <= split:
            proof.append(root(leaf_hashes[split:high]))
            high = split
        else:
            proof.append(root(leaf_hashes[low:split]))
            low = split
            known = False
    if not known:
        proof.append(root(leaf_hashes[low:high]))
    proof.reverse()
    return proof


def _split(size: int) -> int:
    """The largest power of two below `size` (at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def verify_consistency(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bytes:
    """Check that the tree with `new_root` only adds leaves to the one with `old_root` (RFC 9162 section
    2.1.4.2).

    Returns:
        The verified new root.

    Raises:
        VerificationError: PROOF_INVALID.
    """
    if not 0 <= old_size <= new_size:
        raise _invalid("the old tree is larger than the new one")
    if old_size in (0, new_size):
        known = EMPTY_ROOT if old_size == 0 else new_root
        if proof or old_root != known:
            raise _invalid("the trees are not the same")
        return new_root
    nodes = list(proof)
    if old_size & (old_size - 1) == 0:
        nodes.insert(0, old_root)  # a complete tree is a node of the new one and not repeated in the proof
    if not nodes:
        raise _invalid("the proof is empty")
    here, last = old_size - 1, new_size - 1
    while here & 1:
        here >>= 1
        last >>= 1
    old_hash = new_hash = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            raise _invalid("the proof is longer than the tree is high")
        if here & 1 or here == last:
            old_hash = node_hash(node, old_hash)
            new_hash = node_hash(node, new_hash)
            while not here & 1 and here:
                here >>= 1
                last >>= 1
        else:
            new_hash = node_hash(new_hash, node)
        here >>= 1
        last >>= 1
    if last or old_hash != old_root or new_hash != new_root:
        raise _invalid("the consistency proof does not lead to both roots")
    return new_root


def _invalid(what: str) -> VerificationError:
    return VerificationError("PROOF_INVALID", what)
