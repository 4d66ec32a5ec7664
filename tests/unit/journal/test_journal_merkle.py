"""RFC 9162 trees, against the RFC's recursive definitions and published roots."""

from __future__ import annotations

from hashlib import sha256

import pytest

from nano_vm.errors import VerificationError
from nano_vm.journal import merkle
from nano_vm.journal.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

SIZES = range(1, 34)

# The test tree of the Certificate Transparency implementations: leaves, and the root after each.
PUBLISHED = [
    ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
    ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
    ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
    ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
    ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
    ("5051525354555657", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
    ("606162636465666768696a6b6c6d6e6f", "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
]


# --- the RFC, word for word
# -----------------------------------------------------------------------------------


def split(size):
    k = 1
    while k * 2 < size:
        k *= 2
    return k


def mth(leaves):
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(index, leaves):
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*path(index, leaves[:k]), mth(leaves[k:])]
    return [*path(index - k, leaves[k:]), mth(leaves[:k])]


def subproof(size, leaves, known):
    if size == len(leaves):
        return [] if known else [mth(leaves)]
    k = split(len(leaves))
    if size <= k:
        return [*subproof(size, leaves[:k], known), mth(leaves[k:])]
    return [*subproof(size - k, leaves[k:], False), mth(leaves[:k])]


def some(size):
    return [leaf_hash(bytes([number])) for number in range(size)]


# --- roots
# ----------------------------------------------------------------------------------------------------


def test_the_published_tree_has_its_published_roots():
    tree = MerkleTree()
    assert tree.root == root([]) == EMPTY_ROOT == sha256(b"").digest()
    leaves = []
    for data, expected in PUBLISHED:
        leaves.append(leaf_hash(bytes.fromhex(data)))
        tree.append(leaves[-1])
        assert (root(leaves).hex(), tree.root.hex()) == (expected, expected)


@pytest.mark.parametrize("size", SIZES)
def test_roots_follow_the_recursive_definition(size):
    leaves = some(size)
    assert root(leaves) == mth(leaves) == MerkleTree(leaves).root
    assert MerkleTree(leaves).size == size


def test_duplicating_the_last_leaf_gives_another_root():
    a, b, c = some(3)
    assert root([a, b, c]) != root([a, b, c, c])


def test_a_node_cannot_pass_for_a_leaf():
    a, b = some(2)
    assert leaf_hash(a + b) != node_hash(a, b)


def test_a_very_large_tree_needs_no_stack():
    leaves = [b"%032d" % number for number in range(100_000)]
    assert root(leaves) == MerkleTree(leaves).root


def test_appending_hashes_no_more_than_one_node_per_leaf_on_average(monkeypatch):
    calls = 0

    def counted(left, right):
        nonlocal calls
        calls += 1
        return node_hash(left, right)

    monkeypatch.setattr(merkle, "node_hash", counted)
    tree = MerkleTree()
    for leaf in some(200) * 5:
        tree.append(leaf)
    assert calls < tree.size


# --- proofs
# ---------------------------------------------------------------------------------------------------


def test_the_rfc_example_tree_has_the_proofs_of_its_text():
    """RFC 9162 section 2.1.5, in its own letters."""
    a, b, c, d, e, f, j = some(7)
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l_ = node_hash(g, h), node_hash(i, j)
    leaves = [a, b, c, d, e, f, j]
    assert root(leaves) == node_hash(k, l_)
    assert inclusion_proof(leaves, 0) == [b, h, l_]
    assert inclusion_proof(leaves, 3) == [c, g, l_]
    assert inclusion_proof(leaves, 4) == [f, j, k]
    assert inclusion_proof(leaves, 6) == [i, k]
    assert consistency_proof(leaves, 3) == [c, d, g, l_]
    assert consistency_proof(leaves, 4) == [l_]
    assert consistency_proof(leaves, 6) == [i, j, k]


@pytest.mark.parametrize("size", SIZES)
def test_every_inclusion_proof_is_the_rfcs_and_verifies(size):
    leaves = some(size)
    for index in range(size):
        proof = inclusion_proof(leaves, index)
        assert proof == path(index, leaves)
        assert verify_inclusion(leaves[index], index, size, proof, root(leaves)) == root(leaves)


@pytest.mark.parametrize("size", SIZES)
def test_every_consistency_proof_is_the_rfcs_and_verifies(size):
    leaves = some(size)
    for old in range(1, size + 1):
        proof = consistency_proof(leaves, old)
        assert proof == subproof(old, leaves, True)
        assert verify_consistency(old, size, root(leaves[:old]), root(leaves), proof) == root(leaves)


def refused(verify, *args):
    with pytest.raises(VerificationError) as caught:
        verify(*args)
    return caught.value.code == "PROOF_INVALID"


@pytest.mark.parametrize("size", range(1, 14))
def test_a_changed_inclusion_proof_is_refused(size):
    leaves = some(size)
    top = root(leaves)
    for index in range(size):
        proof = inclusion_proof(leaves, index)
        assert refused(verify_inclusion, leaf_hash(b"other"), index, size, proof, top)
        assert refused(verify_inclusion, leaves[index], index, size, proof, leaf_hash(b"other"))
        assert refused(verify_inclusion, leaves[index], index, size, [*proof, leaves[0]], top)
        assert refused(verify_inclusion, leaves[index], size, size, proof, top)
        assert refused(verify_inclusion, leaves[index], -1, size, proof, top)
        for wrong in range(size):
            if wrong != index:
                assert refused(verify_inclusion, leaves[index], wrong, size, proof, top)
        for place in range(len(proof)):
            assert refused(
                verify_inclusion, leaves[index], index, size, proof[:place] + proof[place + 1 :], top
            )
            other = [*proof[:place], leaf_hash(b"other"), *proof[place + 1 :]]
            assert refused(verify_inclusion, leaves[index], index, size, other, top)


@pytest.mark.parametrize("size", range(2, 14))
def test_a_changed_consistency_proof_is_refused(size):
    leaves = some(size)
    top = root(leaves)
    for old in range(1, size):
        before, proof = root(leaves[:old]), consistency_proof(leaves, old)
        assert refused(verify_consistency, old, size, leaf_hash(b"other"), top, proof)
        assert refused(verify_consistency, old, size, before, leaf_hash(b"other"), proof)
        assert refused(verify_consistency, old, size, before, top, [*proof, leaves[0]])
        assert refused(verify_consistency, size + 1, size, before, top, proof)
        for place in range(len(proof)):
            assert refused(verify_consistency, old, size, before, top, proof[:place] + proof[place + 1 :])
            other = [*proof[:place], leaf_hash(b"other"), *proof[place + 1 :]]
            assert refused(verify_consistency, old, size, before, top, other)
        assert refused(verify_consistency, old, size, before, top, [])


def test_nothing_and_everything_are_consistent_without_a_proof():
    leaves = some(5)
    top = root(leaves)
    assert consistency_proof(leaves, 0) == consistency_proof(leaves, 5) == []
    assert verify_consistency(0, 5, EMPTY_ROOT, top, []) == top
    assert verify_consistency(5, 5, top, top, []) == top
    assert refused(verify_consistency, 0, 5, top, top, [])
    assert refused(verify_consistency, 5, 5, EMPTY_ROOT, top, [])
    assert refused(verify_consistency, 5, 5, top, top, [top])


def test_proofs_of_what_is_not_there_are_the_callers_mistake():
    with pytest.raises(IndexError):
        inclusion_proof(some(3), 3)
    with pytest.raises(IndexError):
        consistency_proof(some(3), 4)
