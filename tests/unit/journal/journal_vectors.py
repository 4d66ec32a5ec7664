"""Writes `spec/vectors/journal.json`: `PYTHONPATH=src:tests python tests/unit/journal/journal_vectors.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.journal import merkle
from nano_vm.journal.disclosure import disclose
from nano_vm.journal.entry import Chain, Entry, open_event
from nano_vm.journal.trace import Trace
from unit.journal.journal_runs import (
    Driver,
    refund_run,
    ridden_refund,
    ridden_saga,
    saga_run,
    trace_of,
    wide_run,
)

FILE = Path(__file__).parents[3] / "spec/vectors/journal.json"
RUNS = (refund_run, wide_run, saga_run, ridden_refund, ridden_saga)

DESCRIPTION = (
    "trees: the root of RFC 9162 over the data of its leaves, with all inclusion proofs by index and all"
    " consistency proofs by old size. journals: entries (facts and payload as text, salt in hexadecimal), the"
    " head, step results with the `rank` of their step (not part of the leaf), and what follows from them."
    " tampered: a journal that was changed (a number stands for an entry as it was), and the code and entry"
    " that a verifier has to report; REPLAY_MISMATCH, with the `rejection`, takes the program to see."
)


def vectors() -> dict[str, Any]:
    return {
        "description": DESCRIPTION,
        "spec": "spec/journal.md",
        "trees": [tree(size) for size in (0, 1, 2, 3, 4, 5, 7, 8)],
        "journals": [journal(make()) for make in RUNS],
        "tampered": [*tampered(refund_run()), *tampered_riders(ridden_refund())],
    }


def tree(size: int) -> dict[str, Any]:
    data = [bytes(range(number)) for number in range(size)]
    leaves = [merkle.leaf_hash(item) for item in data]
    return {
        "leaves": [item.hex() for item in data],
        "root": merkle.root(leaves).hex(),
        "inclusion": [[node.hex() for node in merkle.inclusion_proof(leaves, i)] for i in range(size)],
        "consistency": [
            [node.hex() for node in merkle.consistency_proof(leaves, old)] for old in range(size + 1)
        ],
    }


def stored(entry: Entry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "digest": entry.digest,
        "facts": entry.facts.decode(),
        "salt": entry.salt.hex(),
        "payload": None if entry.payload is None else entry.payload.decode(),
    }


def journal(run: Driver) -> dict[str, Any]:
    trace = trace_of(run)
    ranks = {step.id: step.rank for step in run.program.steps}
    results = [json.loads(leaf) for leaf in trace.leaves]
    return {
        "program": run.program.name,
        "run": run.state.run,
        "entries": [stored(entry) for entry in run.entries],
        "head": trace.head,
        "results": [{"rank": ranks[leaf["step"]], "leaf": leaf} for leaf in results],
        "trace_hash": trace.trace_hash,
        "outcome": outcome(run, trace),
        "outcome_hash": trace.outcome_hash,
        "disclosure_root": trace.disclosure_root,
        "disclosures": [
            {"seq": shown.entry.seq, "size": shown.size, "proof": [node.hex() for node in shown.proof]}
            for shown in disclose(run.entries, *range(len(run.entries)))
        ],
    }


def outcome(run: Driver, trace: Trace) -> dict[str, Any]:
    return {
        "outcome": trace.outcome,
        "outputs": trace.outputs if run.program.outputs else trace.final_output,
        "program": trace.program_name,
        "status": trace.status.value,
    }


def tampered(run: Driver) -> list[dict[str, Any]]:
    whole = [stored(entry) for entry in run.entries]

    def put(at: int, **fields: Any) -> list[dict[str, Any]]:
        return [*whole[:at], {**whole[at], **fields}, *whole[at + 1 :]]

    def brief(entries: list[dict[str, Any]]) -> list[Any]:
        return [whole.index(entry) if entry in whole else entry for entry in entries]

    def resealed(at: int, **facts: Any) -> list[dict[str, Any]]:
        """Entry `at` with other facts, digested and chained anew."""
        chain = Chain(run.state.run)
        entries = []
        for place, entry in enumerate(run.entries):
            event = open_event(entry)
            if place == at:
                event = msgspec.structs.replace(event, **facts)
            entries.append(stored(chain.seal(event, entry.salt, entry.payload)))
        return entries

    def loose(at: int, was: str, becomes: str) -> list[dict[str, Any]]:
        facts = whole[at]["facts"].replace(was, becomes)
        assert facts != whole[at]["facts"]
        return [*whole[:at], {**whole[at], "facts": facts, "digest": canonical.digest(facts.encode())}]

    amount = whole[0]["payload"].replace("99.5", "9950")
    # The condition's verdict is recorded by the answer that led to it.
    decided = next(i for i, entry in enumerate(whole) if '"verdicts"' in entry["facts"])
    cases = [
        ("a payload changed", put(0, payload=amount), "COMMITMENT_MISMATCH", 0),
        ("a salt changed", put(4, salt="00" * 16), "COMMITMENT_MISMATCH", 4),
        ("a payload taken away", put(4, salt="", payload=None), "PAYLOAD_MISSING", 4),
        (
            "bytes moved from payload to salt",
            put(
                4,
                salt=whole[4]["salt"] + whole[4]["payload"][:1].encode().hex(),
                payload=whole[4]["payload"][1:],
            ),
            "COMMITMENT_MISMATCH",
            4,
        ),
        (
            "facts changed",
            put(2, facts=whole[2]["facts"].replace('"attempt":1', '"attempt":2')),
            "DIGEST_MISMATCH",
            2,
        ),
        ("a digest changed", put(2, digest=whole[3]["digest"]), "DIGEST_MISMATCH", 2),
        ("an entry dropped", whole[:3] + whole[4:], "CHAIN_BROKEN", 3),
        ("the first entry dropped", whole[1:], "CHAIN_BROKEN", 0),
        ("an entry doubled", [*whole[:4], *whole[3:]], "CHAIN_BROKEN", 4),
        ("two entries swapped", [*whole[:2], whole[3], whole[2], *whole[4:]], "CHAIN_BROKEN", 2),
        ("an unknown member", loose(3, '"seq"', '"sea":0,"seq"'), "JOURNAL_MALFORMED", 3),
        ("a space among the facts", loose(3, '"event":', '"event": '), "JOURNAL_MALFORMED", 3),
        ("a name twice", loose(3, '"event":{', '"event":{"at_ms":0,'), "JOURNAL_MALFORMED", 3),
        ("an empty journal", [], "CHAIN_BROKEN", 0),
    ]
    replayed = [
        (
            "another verdict, resealed",
            resealed(decided, verdicts=[["decide", 1, False]]),
            "VERDICTS",
            decided,
        ),
        ("another attempt, resealed", resealed(1, attempt=2), "STALE_ATTEMPT", 1),
    ]
    return [
        {"what": what, "journal": run.state.run, "entries": brief(entries), "code": code, "seq": seq}
        for what, entries, code, seq in cases
    ] + [
        {
            "what": what,
            "journal": run.state.run,
            "entries": brief(entries),
            "code": "REPLAY_MISMATCH",
            "rejection": rejection,
            "seq": seq,
        }
        for what, entries, rejection, seq in replayed
    ]


def tampered_riders(run: Driver) -> list[dict[str, Any]]:
    """Changes to what rides with an event, digested anew so that only the riders are wrong."""
    whole = [stored(entry) for entry in run.entries]
    at = next(i for i, entry in enumerate(whole) if '"then"' in entry["facts"])

    def loose(was: str, becomes: str) -> list[Any]:
        facts = whole[at]["facts"].replace(was, becomes)
        assert facts != whole[at]["facts"]
        changed = {**whole[at], "facts": facts, "digest": canonical.digest(facts.encode())}
        return [*range(at), changed, *range(at + 1, len(whole))]

    cases = [
        ("a rider that cannot ride", loose('"type":"StepStarted"', '"type":"StepSucceeded"')),
        ("a rider with a payload", loose('"step":"lookup"}', '"payload":1,"step":"lookup"}')),
        ("a rider with an unknown member", loose('"then":[{', '"then":[{"a":0,')),
        ("an empty list of riders", loose(whole[at]["facts"].split('"then":')[1].split("]")[0] + "]", "[]")),
    ]
    return [
        {"what": what, "journal": run.state.run, "entries": entries, "code": "JOURNAL_MALFORMED", "seq": at}
        for what, entries in cases
    ]


def text() -> str:
    return _lines(vectors(), "") + "\n"


def _lines(value: Any, indent: str) -> str:
    """JSON with short values on one line, the others a member per line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= 100 or type(value) not in (dict, list):
        return line
    inner = indent + " "
    if type(value) is dict:
        members = [f"{json.dumps(name)}: {_lines(item, inner)}" for name, item in value.items()]
        return "{\n" + ",\n".join(inner + member for member in members) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _lines(item, inner) for item in value) + f"\n{indent}]"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
