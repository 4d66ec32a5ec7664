"""Runs `spec/vectors/journal.json`, twice: with the implementation, and with an independent checker that
knows nothing but SHA-256, a JSON parser and the text of `spec/journal.md`."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from nano_vm.errors import VerificationError
from nano_vm.journal import merkle
from nano_vm.journal.disclosure import Disclosure, disclosure_root, verify_disclosure
from nano_vm.journal.entry import Chain, Entry, open_events
from nano_vm.journal.fold import fold
from nano_vm.journal.replay import verify_run
from nano_vm.journal.trace import Trace
from unit.journal.journal_runs import refund, saga, wide
from unit.journal.journal_vectors import vectors

VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/journal.json").read_text("utf-8"))
JOURNALS = {vector["run"]: vector for vector in VECTORS["journals"]}
PROGRAMS = {"refund": refund(), "wide": wide(), "saga": saga()}

trees = pytest.mark.parametrize("vector", VECTORS["trees"], ids=lambda v: str(len(v["leaves"])))
journals = pytest.mark.parametrize("vector", VECTORS["journals"], ids=lambda v: v["run"])
tampered = pytest.mark.parametrize("vector", VECTORS["tampered"], ids=lambda v: v["what"])


# --- the independent checker: hashlib and json, nothing else
# --------------------------------------------------


class Bad(Exception):
    def __init__(self, code, seq):
        super().__init__(code, seq)
        self.code, self.seq = code, seq


def digest(data):
    return "sha256:" + sha256(data).hexdigest()


def plain(value):
    """Canonical bytes, for values without large numbers and keys without astral characters."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


MEMBERS = {"event", "prev", "run", "seq", "type"}
RIDERS = {"StepStarted", "ChildStarted", "CompensationStarted", "RunFinished"}


def check_journal(run, entries):
    """Steps 1 to 7 of the text; gives the head."""
    if not entries:
        raise Bad("CHAIN_BROKEN", 0)
    head = "sha256:" + "0" * 64
    for number, entry in enumerate(entries):
        text = entry["facts"].encode()
        if digest(text) != entry["digest"]:
            raise Bad("DIGEST_MISMATCH", number)
        facts = json.loads(text)
        if set(facts) - {"commitment", "then"} != MEMBERS:
            raise Bad("JOURNAL_MALFORMED", number)
        if facts.get("then") == [] or "payload" in facts["event"]:
            raise Bad("JOURNAL_MALFORMED", number)
        for rider in facts.get("then", []):
            if set(rider) != {"event", "type"} or rider["type"] not in RIDERS or "payload" in rider["event"]:
                raise Bad("JOURNAL_MALFORMED", number)
        if (entry["seq"], facts["seq"], facts["run"], facts["prev"]) != (number, number, run, head):
            raise Bad("CHAIN_BROKEN", number)
        salt, payload = bytes.fromhex(entry["salt"]), entry["payload"]
        if payload is None:
            if "commitment" in facts:
                raise Bad("PAYLOAD_MISSING", number)
            if salt:
                raise Bad("COMMITMENT_MISMATCH", number)
        elif facts.get("commitment") != digest(salt + payload.encode()) or len(salt) != 16:
            raise Bad("COMMITMENT_MISMATCH", number)
        if plain(facts) != text or (payload is not None and plain(json.loads(payload)) != payload.encode()):
            raise Bad("JOURNAL_MALFORMED", number)
        head = entry["digest"]
    return head


def tree_root(leaves):
    """RFC 9162 section 2.1.1, as it is written there."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + tree_root(leaves[:split]) + tree_root(leaves[split:])).digest()


def from_proof(data, index, size, proof):
    """The root that an inclusion proof leads to, by walking the recursion of RFC 9162 section 2.1.3.1."""
    if size == 1:
        assert not proof
        return sha256(b"\x00" + data).digest()
    split = 1
    while split * 2 < size:
        split *= 2
    *inner, last = proof
    if index < split:
        return sha256(b"\x01" + from_proof(data, index, split, inner) + last).digest()
    return sha256(b"\x01" + last + from_proof(data, index - split, size - split, inner)).digest()


def disclosure_data(entry):
    data = bytes.fromhex(entry["digest"][7:])
    commitment = json.loads(entry["facts"]).get("commitment")
    return data if commitment is None else data + bytes.fromhex(commitment[7:])


@trees
def test_independently_a_tree_has_its_root_and_proofs(vector):
    leaves = [bytes.fromhex(leaf) for leaf in vector["leaves"]]
    assert tree_root(leaves).hex() == vector["root"]
    for index, proof in enumerate(vector["inclusion"]):
        found = from_proof(leaves[index], index, len(leaves), [bytes.fromhex(node) for node in proof])
        assert found.hex() == vector["root"]


@journals
def test_independently_a_journal_verifies_to_its_head(vector):
    assert check_journal(vector["run"], vector["entries"]) == vector["head"]


@tampered
def test_independently_a_tampered_journal_is_refused(vector):
    run, entries = changed(vector)
    if vector["code"] == "REPLAY_MISMATCH":
        # Somebody rewrote everything: it takes the program, or a head kept elsewhere, to see it.
        assert check_journal(run, entries) != JOURNALS[vector["journal"]]["head"]
        return
    with pytest.raises(Bad) as caught:
        check_journal(run, entries)
    assert (caught.value.code, caught.value.seq) == (vector["code"], vector["seq"])


@journals
def test_independently_the_hashes_follow_from_the_results(vector):
    order = [(r["rank"], r["leaf"]["occurrence"], r["leaf"].get("item", -1)) for r in vector["results"]]
    assert order == sorted(order)
    assert digest_of_leaves(vector["results"]) == vector["trace_hash"]
    assert digest(plain(vector["outcome"])) == vector["outcome_hash"]


def digest_of_leaves(results):
    return "sha256:" + tree_root([plain(result["leaf"]) for result in results]).hex()


def test_independently_the_results_of_simple_steps_can_be_read_off_the_journal():
    """Of tools, models and conditions, each taken once, every result is in the entries."""
    vector = next(v for v in VECTORS["journals"] if v["program"] == "refund")
    found = {}
    for entry in vector["entries"]:
        facts = json.loads(entry["facts"])
        event = facts["event"]
        if facts["type"] == "StepSucceeded":
            leaf = {"occurrence": event["occurrence"], "status": "SUCCESS", "step": event["step"]}
            found[event["step"]] = {**leaf, "output": json.loads(entry["payload"])}
        for step, occurrence, verdict in event.get("verdicts", []):
            found[step] = {"occurrence": occurrence, "status": "SUCCESS", "step": step, "verdict": verdict}
    assert found == {result["leaf"]["step"]: result["leaf"] for result in vector["results"]}


@journals
def test_independently_every_entry_can_be_shown_alone(vector):
    leaves = [disclosure_data(entry) for entry in vector["entries"]]
    assert "sha256:" + tree_root(leaves).hex() == vector["disclosure_root"]
    for shown in vector["disclosures"]:
        proof = [bytes.fromhex(node) for node in shown["proof"]]
        root = from_proof(leaves[shown["seq"]], shown["seq"], shown["size"], proof)
        assert "sha256:" + root.hex() == vector["disclosure_root"]


# --- the implementation
# ---------------------------------------------------------------------------------------


def loaded(entry):
    payload = None if entry["payload"] is None else entry["payload"].encode()
    salt = bytes.fromhex(entry["salt"])
    return Entry(entry["seq"], entry["digest"], entry["facts"].encode(), salt, payload)


def changed(vector):
    """The run id and entries of a tampered journal."""
    whole = JOURNALS[vector["journal"]]
    return whole["run"], [whole["entries"][e] if type(e) is int else e for e in vector["entries"]]


@trees
def test_a_tree_has_its_root_and_proofs(vector):
    leaves = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in vector["leaves"]]
    assert merkle.root(leaves).hex() == vector["root"]
    for index, proof in enumerate(vector["inclusion"]):
        assert [node.hex() for node in merkle.inclusion_proof(leaves, index)] == proof
    for old, proof in enumerate(vector["consistency"]):
        assert [node.hex() for node in merkle.consistency_proof(leaves, old)] == proof


@journals
def test_a_journal_verifies_and_has_its_hashes(vector):
    program = PROGRAMS[vector["program"]]
    entries = [loaded(entry) for entry in vector["entries"]]
    verify_run(program, None, entries)
    fold(program, vector["run"], entries, verify=True)
    trace = Trace(program, vector["run"], lambda: entries)
    assert (trace.head, trace.trace_hash) == (vector["head"], vector["trace_hash"])
    assert (trace.outcome_hash, trace.disclosure_root) == (vector["outcome_hash"], vector["disclosure_root"])
    assert [json.loads(leaf) for leaf in trace.leaves] == [result["leaf"] for result in vector["results"]]


@journals
def test_sealing_the_events_again_gives_the_same_entries(vector):
    chain = Chain(vector["run"])
    for entry in map(loaded, vector["entries"]):
        event, *then = open_events(entry)
        assert chain.seal(event, entry.salt, entry.payload, then) == entry


@journals
def test_every_entry_can_be_shown_alone(vector):
    entries = [loaded(entry) for entry in vector["entries"]]
    assert disclosure_root(entries) == vector["disclosure_root"]
    for shown in vector["disclosures"]:
        proof = tuple(bytes.fromhex(node) for node in shown["proof"])
        disclosure = Disclosure(entry=entries[shown["seq"]], size=shown["size"], proof=proof)
        verify_disclosure(disclosure, vector["run"], vector["disclosure_root"])


@tampered
def test_a_tampered_journal_is_refused(vector):
    _, entries = changed(vector)
    with pytest.raises(VerificationError) as caught:
        verify_run(
            PROGRAMS[JOURNALS[vector["journal"]]["program"]], None, [loaded(entry) for entry in entries]
        )
    assert (caught.value.code, caught.value.facts["seq"]) == (vector["code"], vector["seq"])
    assert caught.value.facts.get("code") == vector.get("rejection")


def test_the_vectors_are_what_the_implementation_writes_today():
    """A changed byte in any of them is a change of the format: it needs a new vector, not a new
    expectation."""
    assert json.loads(json.dumps(vectors())) == VECTORS
