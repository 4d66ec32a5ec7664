"""Sealing, reading and verifying entries."""

from __future__ import annotations

import json
from hashlib import sha256

import msgspec
import pytest

from nano_vm import canonical
from nano_vm.errors import InputError, VerificationError
from nano_vm.journal.entry import GENESIS, Chain, Entry, open_event, open_events, read_facts
from nano_vm.journal.reading import ChainReader, verify_entry, verify_shown
from nano_vm.kernel import events as ev
from unit.journal.journal_runs import refund_run

SALT = bytes(range(16))


def started(**fields):
    return ev.StepStarted(at_ms=1, attempt=1, occurrence=1, step="pay", **fields)


def forged(facts, payload=None, salt=b""):
    """An entry over these facts, its digest being right."""
    data = facts if type(facts) is bytes else canonical.encode(facts)
    return Entry(0, canonical.digest(data), data, salt, payload)


def facts_of(event, **fields):
    return {"event": event, "prev": GENESIS, "run": "r", "seq": 0, "type": "StepStarted", **fields}


def code_of(call, *args):
    with pytest.raises(VerificationError) as caught:
        call(*args)
    return caught.value.code, caught.value.facts.get("seq")


def test_an_entry_is_what_the_text_says():
    entry = Chain("r").seal(started(payload={"ignored": True}), SALT, b'{"amount":5}')
    commitment = "sha256:" + sha256(SALT + b'{"amount":5}').hexdigest()
    assert json.loads(entry.facts) == {
        "commitment": commitment,
        "event": {"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "pay"},
        "prev": "sha256:" + "0" * 64,
        "run": "r",
        "seq": 0,
        "type": "StepStarted",
    }
    assert entry.digest == "sha256:" + sha256(entry.facts).hexdigest()
    assert (entry.seq, entry.salt, entry.payload) == (0, SALT, b'{"amount":5}')


def test_without_a_payload_there_is_neither_commitment_nor_salt():
    entry = Chain("r").seal(started(), SALT, None)
    assert "commitment" not in json.loads(entry.facts)
    assert (entry.salt, entry.payload) == (b"", None)


def test_riders_are_facts_of_the_entry_they_ride_in():
    riders = [started(), ev.RunFinished(at_ms=2, status="FAILED", incomplete=["ä"])]
    entry = Chain("r").seal(ev.RunAdopted(at_ms=1, fence=2), SALT, None, riders)
    assert json.loads(entry.facts)["then"] == [
        {"event": {"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "pay"}, "type": "StepStarted"},
        {"event": {"at_ms": 2, "incomplete": ["ä"], "status": "FAILED"}, "type": "RunFinished"},
    ]
    assert canonical.is_canonical(entry.facts)
    assert open_events(entry) == [ev.RunAdopted(at_ms=1, fence=2), *riders]
    assert open_event(entry) == ev.RunAdopted(at_ms=1, fence=2)
    assert "then" not in json.loads(Chain("r").seal(started(), SALT, None).facts)


@pytest.mark.parametrize(
    "rider",
    [
        {"event": {"at_ms": 1, "fence": 2}, "type": "RunAdopted"},
        {"event": {"at_ms": 1, "status": "FAILED"}, "type": "Nonsense"},
        {"event": {"at_ms": 1}, "type": "RunFinished"},
        {
            "event": {"at_ms": 1, "attempt": 1, "occurrence": 1, "payload": 1, "step": "s"},
            "type": "StepStarted",
        },
    ],
    ids=["another type", "no type", "incomplete", "payload"],
)
def test_what_cannot_ride_is_malformed(rider):
    event = {"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "s"}
    assert code_of(open_events, forged(facts_of(event, then=[rider]))) == ("JOURNAL_MALFORMED", 0)


def test_sealing_leaves_the_event_as_it_was():
    event = started(payload=[1])
    Chain("r").seal(event, SALT, b"[1]")
    assert event.payload == [1]
    hostile = ev.RunCancelled(at_ms=1, payload=[1], principal={"id": "\ud800"})
    with pytest.raises(InputError):
        Chain("r").seal(hostile, SALT, b"[1]")
    assert hostile.payload == [1]


def test_entries_are_chained_and_the_chain_can_be_resumed():
    chain = Chain("r")
    first = chain.seal(started(), SALT, None)
    resumed = Chain("r", chain.length, chain.head)
    second, again = chain.seal(started(), SALT, b"1"), resumed.seal(started(), SALT, b"1")
    assert second == again
    assert (json.loads(second.facts)["prev"], json.loads(second.facts)["seq"]) == (first.digest, 1)
    assert (chain.length, chain.head) == (2, second.digest)


@pytest.mark.parametrize("run", ["r", "", 'a "quoted" \\ one', "äöü", "\U00010000", "a/b.1.2", "\x00\x1f"])
def test_any_run_id_gives_canonical_facts(run):
    entry = Chain(run).seal(started(), SALT, b"1")
    assert canonical.is_canonical(entry.facts)
    assert verify_entry(entry, run, GENESIS).run == run


def test_every_event_type_declares_its_fields_in_canonical_order():
    for kind in ev.EVENT_TYPES.values():
        assert list(kind.__struct_fields__) == sorted(kind.__struct_fields__), kind


def test_an_entry_gives_back_its_event():
    event = started(payload={"b": 1, "a": [None, 2.5]}, item=0, effect="pure")
    entry = Chain("r").seal(event, SALT, canonical.encode(event.payload))
    assert open_event(entry) == event
    assert open_event(entry, read_facts(entry)) == event


def test_an_erased_payload_is_unset():
    entry = Chain("r").seal(started(payload=1), SALT, b"1")
    shown = msgspec.structs.replace(entry, payload=None, salt=b"")
    assert open_event(shown).payload is msgspec.UNSET


@pytest.mark.parametrize(
    "facts",
    [
        b"",
        b"[]",
        b'{"event":{}}',
        b"\xff",
        b"[" * 100_000,
        canonical.encode(facts_of({}, more=1)),
        canonical.encode(facts_of({}, seq="0")),
        canonical.encode(facts_of({}, commitment=1)),
    ],
    ids=["empty", "list", "incomplete", "no text", "deep", "more", "seq", "commitment"],
)
def test_facts_that_cannot_be_read_are_malformed(facts):
    assert code_of(read_facts, forged(facts)) == ("JOURNAL_MALFORMED", 0)
    assert code_of(verify_entry, forged(facts), "r", GENESIS) == ("JOURNAL_MALFORMED", 0)


@pytest.mark.parametrize(
    "entry",
    [
        forged(facts_of({}, type="Nonsense")),
        forged(facts_of({"at_ms": 1})),
        forged(facts_of({"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "s", "more": 1})),
        forged(facts_of({"at_ms": "1", "attempt": 1, "occurrence": 1, "step": "s"})),
        forged(facts_of({"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "s", "payload": 1})),
        forged(facts_of({"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "s"}), b"{", SALT),
        forged(facts_of({"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "s"}), b"1e999", SALT),
        forged(facts_of({"at_ms": 1, "fence": 1}, type="RunAdopted"), b"1", SALT),
    ],
    ids=["type", "missing", "unknown", "wrong", "payload among facts", "no JSON", "number", "no payload"],
)
def test_an_event_that_cannot_be_read_is_malformed(entry):
    assert code_of(open_event, entry) == ("JOURNAL_MALFORMED", 0)


@pytest.mark.parametrize("number", [2**53, -(2**53), 10**20])
@pytest.mark.parametrize("field", ["at_ms", "attempt", "occurrence"])
def test_a_number_that_canonical_json_cannot_hold_is_malformed(field, number):
    """Whoever seals a journal anew can write any: the state it led to could not be written down."""
    event = {"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "s"}
    assert open_event(forged(facts_of({**event, field: 2**53 - 1}))) is not None
    data = canonical.encode(facts_of({**event, field: 4711})).replace(b"4711", b"%d" % number)
    assert code_of(open_event, forged(data)) == ("JOURNAL_MALFORMED", 0)
    assert code_of(ChainReader("r").take, forged(data)) == ("JOURNAL_MALFORMED", 0)


def test_every_number_of_every_event_has_those_bounds():
    def numbers(kind):
        if isinstance(kind, msgspec.inspect.IntType):
            yield kind
        parts = (
            [kind.value_type] if isinstance(kind, msgspec.inspect.DictType) else getattr(kind, "types", ())
        )
        for part in parts:
            yield from numbers(part)

    found = [
        number
        for event in ev.EVENT_TYPES.values()
        for field in msgspec.inspect.type_info(event).fields
        for number in numbers(field.type)
    ]
    assert len(found) > 100
    assert {(number.ge, number.le) for number in found} == {(1 - 2**53, 2**53 - 1)}


def test_errors_do_not_quote_what_they_cannot_read():
    secret = b'{"event":{"card":"4242424242424242"}'
    with pytest.raises(VerificationError) as caught:
        read_facts(forged(secret))
    assert "4242" not in str(caught.value)


def test_an_entry_in_its_place_verifies():
    head = GENESIS
    run = refund_run()
    for seq, entry in enumerate(run.entries):
        assert verify_entry(entry, "run-1", head, seq) == read_facts(entry)
        assert verify_shown(entry, "run-1") == read_facts(entry)
        head = entry.digest


def changed(**fields):
    entry = refund_run().entries[2]
    return msgspec.structs.replace(entry, **fields)


PREV = refund_run().entries[1].digest


@pytest.mark.parametrize(
    ("entry", "run", "prev", "seq", "code"),
    [
        (changed(), "run-1", GENESIS, 2, "CHAIN_BROKEN"),
        (changed(), "run-2", PREV, 2, "CHAIN_BROKEN"),
        (changed(), "run-1", PREV, 3, "CHAIN_BROKEN"),
        (changed(seq=3), "run-1", PREV, 2, "CHAIN_BROKEN"),
        (changed(seq=3), "run-1", PREV, None, "CHAIN_BROKEN"),
        (changed(digest=PREV), "run-1", PREV, 2, "DIGEST_MISMATCH"),
        (changed(facts=changed().facts + b" "), "run-1", PREV, 2, "DIGEST_MISMATCH"),
        (changed(payload=b"1"), "run-1", PREV, 2, "COMMITMENT_MISMATCH"),
        (changed(salt=bytes(16)), "run-1", PREV, 2, "COMMITMENT_MISMATCH"),
        (changed(payload=None), "run-1", PREV, 2, "PAYLOAD_MISSING"),
        (changed(payload=None, salt=b""), "run-1", PREV, 2, "PAYLOAD_MISSING"),
    ],
)
def test_an_entry_that_was_touched_is_named(entry, run, prev, seq, code):
    assert code_of(verify_entry, entry, run, prev, seq) == (code, entry.seq if seq is None else seq)


def test_salt_and_payload_cannot_trade_bytes():
    entry = changed()
    moved = msgspec.structs.replace(entry, salt=entry.salt + entry.payload[:1], payload=entry.payload[1:])
    assert code_of(verify_entry, moved, "run-1", PREV) == ("COMMITMENT_MISMATCH", 2)


def test_a_salt_without_a_payload_is_refused():
    entry = msgspec.structs.replace(Chain("r").seal(started(), SALT, None), salt=SALT)
    assert code_of(verify_entry, entry, "r", GENESIS) == ("COMMITMENT_MISMATCH", 0)


@pytest.mark.parametrize(
    ("entry", "run", "code"),
    [
        (changed(seq=3), "run-1", "CHAIN_BROKEN"),
        (changed(), "run-2", "CHAIN_BROKEN"),
        (changed(facts=changed().facts + b" "), "run-1", "DIGEST_MISMATCH"),
        (changed(payload=b"1"), "run-1", "COMMITMENT_MISMATCH"),
    ],
)
def test_a_shown_entry_that_was_touched_is_refused(entry, run, code):
    assert code_of(verify_shown, entry, run) == (code, entry.seq)


def test_a_shown_entry_may_keep_its_payload_to_itself():
    entry = changed(payload=None, salt=b"")
    assert verify_shown(entry, "run-1").type == read_facts(entry).type
