"""Sealed facts are RFC 8785 bytes, whatever is in the event, and any event comes back as it went in."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, get_args, get_type_hints

import msgspec
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm import canonical
from nano_vm.journal.entry import GENESIS, RIDER_TYPES, Chain, open_events, seal_each
from nano_vm.journal.plain import ALONE, intent_of, success_of, with_verdicts
from nano_vm.journal.reading import verify_entry
from nano_vm.kernel.events import EVENT_TYPES, StepStarted, StepSucceeded, Switch

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
integers = st.integers(-canonical.INT_MAX, canonical.INT_MAX)
# Facts hold no fractions; payloads do.
facts = st.recursive(
    st.none() | st.booleans() | integers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
payloads = st.recursive(
    st.none() | st.booleans() | integers | texts | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)

STRATEGIES: dict[Any, st.SearchStrategy[Any]] = {
    int: integers,
    str: texts,
    bool: st.booleans(),
    list[str]: st.lists(texts, max_size=3),
    # Only `verdicts` are of this type: [step, occurrence, true | false | error code].
    list[Any]: st.lists(st.tuples(texts, integers, st.booleans() | texts).map(list), max_size=3),
    list[list[str]]: st.lists(st.lists(texts, max_size=3), max_size=2),
    # Only `counts` are of this type: [key, number].
    list[list[Any]]: st.lists(st.tuples(texts, integers).map(list), max_size=2),
    dict[str, int]: st.dictionaries(texts, integers, max_size=3),
    dict[str, str]: st.dictionaries(texts, texts, max_size=3),
    dict[str, Any]: st.dictionaries(texts, facts, max_size=3),
    list[Switch]: st.lists(
        st.builds(Switch, attempts=integers, error=texts, origin=texts, reason=texts, to=texts), max_size=2
    ),
    list[dict[str, Any]]: st.lists(st.dictionaries(texts, facts, max_size=3), max_size=2),
}


def values_of(hint):
    kinds = get_args(hint) if msgspec.UnsetType in get_args(hint) else (hint,)
    return st.one_of(
        st.just(msgspec.UNSET) if kind is msgspec.UnsetType else STRATEGIES[kind] for kind in kinds
    )


def events_of(kind):
    hints = get_type_hints(kind)
    fields = {name: values_of(hints[name]) for name in kind.__struct_fields__ if name != "payload"}
    return st.builds(kind, **fields)


names = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,9}\Z")
riders = st.sampled_from(sorted(RIDER_TYPES)).flatmap(lambda name: events_of(EVENT_TYPES[name]))


@settings(max_examples=200, deadline=None)
@given(
    event=st.sampled_from(sorted(EVENT_TYPES)).flatmap(lambda name: events_of(EVENT_TYPES[name])),
    payload=payloads,
    run=texts,
    salt=st.binary(min_size=16, max_size=16),
    length=st.integers(0, 2**40),
    then=st.lists(riders, max_size=3),
)
def test_sealed_facts_are_rfc_8785_and_give_the_event_back(event, payload, run, salt, length, then):
    data = None
    if hasattr(event, "payload"):
        event.payload, data = canonical.normalize(payload)
    entry = Chain(run, length).seal(event, salt, data, then)
    plain = json.loads(entry.facts)
    assert entry.facts == rfc8785.dumps(plain) == canonical.encode(plain)
    assert entry.digest == "sha256:" + sha256(entry.facts).hexdigest()
    assert (plain["run"], plain["seq"], plain["type"], plain["prev"]) == (run, length, event.type, GENESIS)
    assert "payload" not in plain["event"]
    if data is not None:
        assert entry.payload == rfc8785.dumps(payload)
        assert plain["commitment"] == "sha256:" + sha256(salt + entry.payload).hexdigest()
    assert verify_entry(entry, run, GENESIS, length).type == event.type
    assert open_events(entry) == [event, *then]
    assert [rider["type"] for rider in plain.get("then", [])] == [rider.type for rider in then]


@settings(max_examples=100, deadline=None)
@given(
    at_ms=integers,
    occurrence=integers,
    pure=st.booleans(),
    step=names,
    verdicts=st.lists(st.tuples(names, integers, st.booleans() | names), max_size=3),
    payload=payloads,
    run=texts,
    salt=st.binary(min_size=16, max_size=16),
    follows=st.booleans(),
    length=st.integers(0, 300),
)
def test_the_short_way_of_sealing_a_success_gives_the_same_entry(
    at_ms, occurrence, pure, step, verdicts, payload, run, salt, follows, length
):
    event = StepSucceeded(at_ms=at_ms, attempt=1, occurrence=occurrence, step=step)
    event.payload, data = canonical.normalize(payload)
    event.pure = True if pure else msgspec.UNSET
    event.verdicts = verdicts or msgspec.UNSET
    members = success_of(step, pure, occurrence)
    if verdicts:
        members = with_verdicts(members, verdicts)
    intent = StepStarted(at_ms=at_ms, attempt=1, effect="keyed", occurrence=1, step=step)
    chain, short = Chain(run, length), Chain(run, length)
    entry = chain.seal(event, salt, data, [intent] if follows else ())
    before, after = intent_of(step, "keyed", 1)
    rides = (before, str(at_ms), after) if follows else ALONE
    success = (str(at_ms), members, data, *rides)
    compact = Chain(run, length).seal_compactly([success], [salt])
    entries = short.seal_successes([success], [salt])
    assert entries == list(compact) == [entry]
    assert (compact.seq, compact.head) == (length, entry.digest)
    assert (short.head, short.length) == (chain.head, chain.length)
    among = Chain(run, length)
    [(seq, digest, facts)] = seal_each([(among, success, salt)])
    assert (seq, f"sha256:{digest}", facts) == (entry.seq, entry.digest, entry.facts)
    assert (among.head, among.length) == (chain.head, chain.length)


def test_every_event_type_can_be_generated():
    for kind in EVENT_TYPES.values():
        assert events_of(kind) is not None
