"""A `ChainReader` takes entries the usual way, which cuts them and compares; what is written in any other way than it
has to be is for the careful way, which says what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from nano_vm import canonical
from nano_vm.errors import VerificationError
from nano_vm.journal.entry import Chain, Entry, open_event
from nano_vm.journal.fold import check_verdicts
from nano_vm.journal.reading import ChainReader, read_riders
from nano_vm.kernel import events as ev
from unit.journal.journal_runs import refund_run, ridden_refund, ridden_saga, saga_run, wide_run

SALT = bytes(range(16))
SHOP = {"id": "shop", "roles": ["operator"], "tenant": "default"}
AT: dict[str, Any] = {"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "pay"}
# Events that hold what comes from outside, and such as ride.
OTHERS: list[tuple[Any, bytes | None, list[Any]]] = [
    (
        ev.EventReceived(at_ms=1, event_id="e", name="paid", principal=SHOP, verdicts=[["more", 1, True]]),
        b'{"paid":25}',
        [ev.StepStarted(**AT), ev.StepStarted(**{**AT, "step": "post"}, effect="keyed")],
    ),
    (ev.EventReceived(at_ms=1, event_id="e", principal={"a": {"b": [1, {"c": None}]}}), b"null", []),
    (ev.PolicyDecided(**AT, decision="allow", reason="RULE", rule="r", counts=[["k", 0, 1]]), None, []),
    (
        ev.StepFailed(**AT, draw=7, error="NO", retryable=True),
        b'{"message":"1.5"}',
        [
            ev.PolicyDecided(**AT, decision="allow", reason="RULE", rule="}],", counts=[["k", 0, 1]]),
            ev.RunFinished(at_ms=1, status="FAILED", outcome='},"type":"'),
        ],
    ),
    (ev.ChildSuspended(**AT, waits=[{"kind": "event", "step": "paid"}]), None, []),
]


def said(read: Any, entry: Entry, before: list[Entry]) -> Any:
    reader = ChainReader("run")
    reader.length, reader.head = len(before), before[-1].digest if before else reader.head
    try:
        return read(reader, entry)
    except VerificationError as error:
        return error.code, error.facts


def both(entry: Entry, before: list[Entry]) -> tuple[Any, Any]:
    return said(ChainReader._usual, entry, before), said(ChainReader._careful, entry, before)


def written_otherwise(facts: bytes) -> Iterator[bytes]:
    """The same facts, or nearly, as somebody may write them who seals them anew."""
    for place in [found.end() for found in re.finditer(rb'[{\[:,"}\]]', facts)]:
        for other in (b" ", b'"x":1,', b"{", b"}", b'},"', b"\\u0061"):
            yield facts[:place] + other + facts[place:]
    for number in re.finditer(rb"(?<=[:,])(-?\d+)(?=[,}\]])", facts):
        for other in (b"%b.0", b"%be0", b"-%b", b"0%b", b'"%b"', b"1%b", b"%b1"):
            yield facts[: number.start()] + other % number[0] + facts[number.end() :]
    for member in re.finditer(rb'"[a-z_]+":("[^"]*"|-?\d+|true|false|null),', facts):
        yield facts[: member.start()] + facts[member.end() :]
        yield facts[: member.start()] + member[0] + facts[member.start() :]
        yield facts[: member.start()] + facts[member.end() : -1] + b"," + member[0][:-1] + b"}"
    for word, other in ((b"true", b"1"), (b"true", b"null"), (b"false", b"0"), (b"paid", b"\xff")):
        yield facts.replace(word, other)
    yield facts.replace(b'"type":"Step', b'"type":"Stop')
    yield re.sub(rb'("event":\{.*?"occurrence":\d+,)', rb'\1"payload":1,', facts, count=1)
    yield facts + b" "
    yield facts[:-1]


@pytest.mark.parametrize("made", [refund_run, wide_run, saga_run, ridden_refund, ridden_saga, None])
def test_the_usual_way_takes_what_the_careful_way_takes_and_leaves_it_the_rest(made: Any) -> None:
    chain = Chain("run")
    if made is None:
        sealed = [chain.seal(event, SALT, payload, then) for event, payload, then in OTHERS]
    else:
        sealed = []
        for entry in made(run_id="run").entries:
            sealed.append(entry)
    refused = 0
    for place, entry in enumerate(sealed):
        usual, careful = both(entry, sealed[:place])
        assert usual == careful
        assert usual is not None
        for facts in written_otherwise(entry.facts):
            other = Entry(entry.seq, canonical.digest(facts), facts, entry.salt, entry.payload)
            usual, careful = both(other, sealed[:place])
            if usual is None:
                refused += type(careful) is tuple
            elif usual != careful:
                # Verdicts are compared as they are written with those that came of the event (`check_verdicts`).
                assert careful[0] == "JOURNAL_MALFORMED"
                with pytest.raises(VerificationError):
                    check_verdicts(usual[0], open_event(entry).verdicts, entry.seq)
        for salt, payload in (
            (b"", entry.payload),
            (SALT[:15], entry.payload),
            (entry.salt, None),
            (SALT, b"0"),
        ):
            if (salt, payload) != (entry.salt, entry.payload):
                assert (
                    both(Entry(entry.seq, entry.digest, entry.facts, salt, payload), sealed[:place])[0]
                    is None
                )
        wrong = Entry(entry.seq + 1, entry.digest, entry.facts, entry.salt, entry.payload)
        assert both(wrong, sealed[:place])[0] is None
        wrong = Entry(entry.seq, "sha256:" + "0" * 64, entry.facts, entry.salt, entry.payload)
        assert both(wrong, sealed[:place])[0] is None
    assert refused > 100


@pytest.mark.parametrize("rides", [False, True])
@pytest.mark.parametrize("held", [b"1e30", b"1.0", b"[1.0]", b'{"b":1,"a":2}', b"9007199254740993"])
def test_what_others_would_write_otherwise_is_no_evidence(held: bytes, rides: bool) -> None:
    decided = ev.PolicyDecided(**AT, decision="allow", reason="RULE", rule="r", counts=[["k", 0, 7]])
    then = [decided] if rides else []
    entry = Chain("run").seal(ev.TimerFired(**AT) if rides else decided, b"", None, then)
    facts = entry.facts.replace(b'["k",0,7]', b'["k",0,%b]' % held)
    usual, careful = both(Entry(0, canonical.digest(facts), facts), [])
    assert usual is None
    assert careful[0] == "JOURNAL_MALFORMED"


@pytest.mark.parametrize(
    "payload", [b"1e30", b'{"a":1.0}', b'{"a":1e22}', b'{"b":1,"a":2}', b'{"a":1,"a":1}', b" 1"]
)
def test_a_payload_that_others_would_write_otherwise_is_no_evidence(payload: bytes) -> None:
    entry = Chain("run").seal(ev.StepSucceeded(**AT), SALT, payload)
    usual, careful = both(entry, [])
    assert usual is None
    assert careful[0] == "JOURNAL_MALFORMED"


def test_deep_objects_and_fractions_are_for_the_careful_way() -> None:
    deep: Any = 1
    for _ in range(canonical.DEPTH_MAX - 2):
        deep = {"a": deep}
    for principal, is_evidence in (({"a": deep}, False), (deep, True), ({"a": 0.5}, True)):
        received = ev.EventReceived(at_ms=1, event_id="e", principal=principal)
        usual, careful = both(Chain("run").seal(received, b"", None), [])
        assert usual is None
        assert (type(careful) is list) is is_evidence


def test_what_rides_and_cannot_be_read_is_nothing_usual() -> None:
    begin, end = b',"then":[{"event":', b',"type":"StepStarted"}],"type":"StepSucceeded"}'
    body = b'{"at_ms":1,"attempt":1,"occurrence":1,"step":"pay"}'
    assert read_riders(begin + body + end) == [ev.StepStarted(**AT)]
    assert read_riders(begin + body.replace(b"1,", b"x,") + end) == []
    assert read_riders(begin + body + end.replace(b"Succeeded", b"Failed")) == []
