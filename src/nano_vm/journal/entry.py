"""Journal entries: what is stored of an event, and how entries are chained (SPEC §5, `spec/journal.md`).

The facts of an entry are the canonical JSON object

    {"commitment": "sha256:…", "event": {…}, "prev": "sha256:…", "run": "…", "seq": 7, "type":
    "StepSucceeded"}

and its digest is SHA-256 over exactly those bytes, which the next entry names as `prev`. `commitment` is
there when the event has a payload: SHA-256 over a 16-byte random salt followed by the payload's canonical
bytes. Salt and payload are stored beside the facts, so they can be destroyed without touching the chain.

The payload of an entry whose event has the label PRIVATE or SECRET is sealed: the facts name, as `key`, the data key
under which salt and payload are encrypted, and what is stored is the ciphertext, with no salt beside it. The commitment
and the chain are what they would be without; whoever has no key sees an entry that is *closed*.

Intents ride with the outcome that led to them: `then` lists the events that follow in the same instant and
have no payload of their own - `{"event": {…}, "type": "StepStarted"}` - so that a step's result, the
decisions that follow and the next step's intent are one entry, written and hashed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, overload

import msgspec
from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import InputError, VerificationError
from nano_vm.expr.reference import ERASED
from nano_vm.journal.plain import AT, END, HEAD, Success
from nano_vm.kernel.events import EVENT_TYPES, Erased, Event, RunStarted

SALT_BYTES = 16
GENESIS = "sha256:" + "0" * 64  # `prev` of the first entry of every run

# What may ride with another event: intents, the decisions that they follow from, and the end of the run.
RIDER_TYPES = frozenset(
    {"StepStarted", "ChildStarted", "CompensationStarted", "PolicyDecided", "RunFinished"}
)

_encode = msgspec.json.Encoder().encode
_HEX = len("sha256:")  # where the digits of a digest begin


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One stored entry.

    `facts` are the hashed bytes, `digest` is "sha256:<hex>" of them. `payload` is None when the event has
    none or when it has been erased (then the facts still hold its commitment). Of a sealed entry that nobody has opened
    it is the ciphertext, and there is no salt.
    """

    seq: int
    digest: str
    facts: bytes
    salt: bytes = b""
    payload: bytes | None = None


class Rider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An event that rides in another's entry."""

    event: msgspec.Raw
    type: str


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The decoded envelope of an entry; `event` is still encoded."""

    event: msgspec.Raw
    prev: str
    run: str
    seq: int
    type: str
    commitment: str | None = None
    key: str | None = None  # of a sealed payload: id of the data key
    then: list[Rider] = []


class _Reader(NamedTuple):
    """How events of one type are read, and whether the type has a payload."""

    decode: Callable[[bytes | msgspec.Raw], Any]
    payload: bool


decode_facts = msgspec.json.Decoder(Facts).decode
_READERS: dict[str, _Reader] = {
    name: _Reader(msgspec.json.Decoder(kind).decode, "payload" in kind.__struct_fields__)
    for name, kind in EVENT_TYPES.items()
}
# Facts of these types may hold objects whose keys come from outside, which a plain encoder would leave in
# their order, or numbers that it would leave as they are.
_OBJECTS = (
    "budgets",
    "counts",
    "decided",
    "forked",
    "labels",
    "parent",
    "principal",
    "programs",
    "recall",
    "replanned",
    "waits",
)
_SHAPES: dict[Any, tuple[bool, bool]] = {
    kind: (
        "payload" in kind.__struct_fields__,
        not set(_OBJECTS).isdisjoint(kind.__struct_fields__),
    )
    for kind in EVENT_TYPES.values()
}
# How a `ChainReader` reads events: how they are decoded, whether there may be a payload and such facts, and how the
# entry ends.
USUAL = {
    name: (reader.decode, reader.payload, _SHAPES[EVENT_TYPES[name]][1], b',"type":"%b"}' % name.encode())
    for name, reader in _READERS.items()
}


_NUMBERS = tuple(map(str, range(256)))


class Chain:
    """The growing end of one run's chain: `length` entries so far, the last with digest `head`.

    Sealing one entry costs one digest over its facts and one over its payload, however long the chain is.
    """

    __slots__ = ("_run", "head", "length", "place", "run")

    def __init__(self, run: str, length: int = 0, head: str = GENESIS) -> None:
        self.run = run
        self.length = length
        self.head = head
        # Encoded once: a run id is any text, and its JSON form is the same in every entry.
        self._run = canonical.encode(run).decode()
        self.place = f'","run":{self._run},"seq":'  # between the head and the number of an entry

    def seal(
        self,
        event: Event,
        salt: bytes,
        payload: bytes | None,
        then: Sequence[Event] = (),
        key: str | None = None,
        commitment: str | None = None,
    ) -> Entry:
        """Chain `event` to the head and return its entry.

        Args:
            event: its `payload` field is left out of the facts, whatever it holds.
            salt: 16 fresh random bytes when there is a payload; ignored without one.
            payload: canonical bytes of the event's payload, or None when it has none.
            then: the events that ride with it, in order; their payloads must be UNSET.
            key: id of the data key that the caller encrypts salt and payload under before they are stored.
            commitment: that of the payload, where the caller has it and not the payload itself.
        """
        # The hot path of every run: the envelope is written by hand around the encoded event.
        seq = self.length
        if key is None:
            facts = f'"event":{_body(event)},"prev":"{self.head}","run":{self._run},"seq":{seq}'
        else:
            facts = f'"event":{_body(event)},"key":"{key}","prev":"{self.head}","run":{self._run},"seq":{seq}'
        if then:
            riders = ",".join([f'{{"event":{_body(rider)},"type":"{rider.type}"}}' for rider in then])
            facts = f'{facts},"then":[{riders}]'
        if payload is None and commitment is None:
            sealed = f'{{{facts},"type":"{event.type}"}}'.encode()
            salt = b""
        else:
            if commitment is None:
                assert payload is not None
                commitment = "sha256:" + sha256(salt + payload).hexdigest()
            sealed = f'{{"commitment":"{commitment}",{facts},"type":"{event.type}"}}'.encode()
        digest = "sha256:" + sha256(sealed).hexdigest()
        self.head = digest
        self.length = seq + 1
        return Entry(seq, digest, sealed, salt, payload)

    def seal_successes(self, successes: Sequence[Success], salts: Sequence[bytes]) -> list[Entry]:
        """`seal`, one after another, of the StepSucceeded of first attempts, or of the RunStarted, with no events made
        for them.

        Args:
            salts: 16 fresh random bytes for each.
        """
        entries: list[Entry] = []
        self._seal_all(successes, salts, entries.append)
        return entries

    def seal_compactly(self, successes: Sequence[Success], salts: Sequence[bytes]) -> SealedEntries:
        """`seal_successes`, but the entries are kept as what they are made of."""
        seq, prev = self.length, self.head
        self._seal_all(successes, salts, None)
        return SealedEntries(self.run, seq, prev, tuple(successes), b"".join(salts), self.head)

    def _seal_all(
        self, successes: Sequence[Success], salts: Sequence[bytes], add: Callable[[Entry], None] | None
    ) -> None:
        head, hashed = self.head[_HEX:], sha256  # names are looked up faster here
        run, first, last = self.place, self.length, self.length + len(successes)
        # Making digits takes longer than finding them.
        numbers = _NUMBERS[first:last] if last <= len(_NUMBERS) else map(str, range(first, last))
        for number, salt, success in zip(numbers, salts, successes, strict=True):
            at, step, payload, before, then_at, after = success
            commitment = hashed(salt + payload).hexdigest()
            if after.__class__ is tuple:
                after = then_at.join(after)
            # One text with all of them in it is made faster than they are joined.
            facts = f"{HEAD}{commitment}{AT}{at}{step}{head}{run}{number}{before}{then_at}{after}".encode()
            head = hashed(facts).hexdigest()
            if add is not None:
                add(Entry(first, "sha256:" + head, facts, salt, payload))
                first += 1
        self.head, self.length = "sha256:" + head, last


def seal_each(plain: Sequence[tuple[Chain, Success, bytes]]) -> list[tuple[int, str, bytes]]:
    """`Chain.seal_successes` of one success in each of many chains, with its salt: places, digests (in hex), facts.
    In a row they cost half of what they cost one by one between other things."""
    hashed = sha256
    sealed = []
    for chain, (at, step, payload, before, then_at, after), salt in plain:
        if after.__class__ is tuple:
            after = then_at.join(after)
        commitment = hashed(salt + payload).hexdigest()
        seq = chain.length
        number = _NUMBERS[seq] if seq < len(_NUMBERS) else str(seq)
        head, run = chain.head[_HEX:], chain.place
        facts = f"{HEAD}{commitment}{AT}{at}{step}{head}{run}{number}{before}{then_at}{after}".encode()
        digest = hashed(facts).hexdigest()
        chain.head, chain.length = "sha256:" + digest, seq + 1
        sealed.append((seq, digest, facts))
    return sealed


class SealedEntries(Sequence[Entry]):
    """Entries in a row as what `Chain.seal_compactly` sealed them from: a fraction of their size. They are made again,
    byte for byte, when somebody looks at them. `head` is the digest of the last of them.
    """

    __slots__ = ("_prev", "_run", "_salts", "_successes", "head", "seq")

    def __init__(
        self, run: str, seq: int, prev: str, successes: tuple[Success, ...], salts: bytes, head: str
    ) -> None:
        self._run = run
        self.seq = seq
        self._prev = prev
        self._successes = successes
        self._salts = salts
        self.head = head

    def __len__(self) -> int:
        return len(self._successes)

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> list[Entry]: ...
    def __getitem__(self, place: int | slice) -> Entry | list[Entry]:
        return self.expand()[place]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.expand())

    def expand(self) -> list[Entry]:
        salts = [self._salts[at : at + SALT_BYTES] for at in range(0, len(self._salts), SALT_BYTES)]
        return Chain(self._run, self.seq, self._prev).seal_successes(self._successes, salts)


def first_seq(entries: Sequence[Entry]) -> int:
    """Of entries in a row."""
    return entries.seq if type(entries) is SealedEntries else entries[0].seq


def start_of(event: RunStarted) -> str:
    """A RunStarted without its time, payload and verdicts."""
    body = _body(event)
    return f"{body[body.index(',') : -1]}{END}"


def _body(event: Event) -> str:
    """Canonical JSON of an event without its payload."""
    has_payload, may_nest = _SHAPES[type(event)]
    held = event.payload if has_payload else UNSET  # type: ignore[union-attr]
    if held is not UNSET:
        event.payload = UNSET  # type: ignore[union-attr]
    try:
        body = _encode(event)
        if not may_nest or body.find(b"{", 1) < 0:
            return body.decode()
        return canonical.encode(msgspec.to_builtins(event)).decode()
    except UnicodeEncodeError:
        return canonical.encode(msgspec.to_builtins(event)).decode()  # which says what is wrong
    finally:
        if held is not UNSET:
            event.payload = held  # type: ignore[union-attr]


def read_facts(entry: Entry) -> Facts:
    """Decode the envelope of an entry.

    Raises:
        VerificationError: JOURNAL_MALFORMED.
    """
    try:
        return decode_facts(entry.facts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # From nothing: the parser's message may quote the data.
        raise malformed(entry, "the facts cannot be read") from None


def is_closed(entry: Entry, facts: Facts) -> bool:
    """Whether the entry has a payload that cannot be read here: it is sealed and nobody has opened it, or erased."""
    return facts.key is not None and not entry.salt


def erased_keys(entries: Iterable[Entry]) -> set[str]:
    """The data keys that a journal itself says are destroyed.

    Raises:
        VerificationError: JOURNAL_MALFORMED.
    """
    found: set[str] = set()
    for entry in entries:
        if b'"type":"Erased"' in entry.facts:
            found.update(key for event in open_events(entry) if type(event) is Erased for key in event.keys)
    return found


def open_event(entry: Entry, facts: Facts | None = None) -> Event:
    """The event an entry is named after; a payload that is closed is `ERASED`.

    Raises:
        VerificationError: JOURNAL_MALFORMED.
    """
    if facts is None:
        facts = read_facts(entry)
    if is_closed(entry, facts):
        return _closed_event(entry, facts)
    return _decode_event(entry, facts.type, facts.event, entry.payload)


def _closed_event(entry: Entry, facts: Facts) -> Event:
    event = _decode_event(entry, facts.type, facts.event, None)
    if not _READERS[facts.type].payload:
        raise malformed(entry, f"a {facts.type} has no payload")
    event.payload = ERASED  # type: ignore[union-attr]
    return event


def open_events(entry: Entry, facts: Facts | None = None) -> list[Event]:
    """All events of an entry: the one it is named after, then those that ride with it.

    Raises:
        VerificationError: JOURNAL_MALFORMED.
    """
    if facts is None:
        facts = read_facts(entry)
    if facts.key is not None:
        events = [open_event(entry, facts)]
    else:
        events = [_decode_event(entry, facts.type, facts.event, entry.payload)]
    for rider in facts.then:
        if rider.type not in RIDER_TYPES:
            raise malformed(entry, f"a `{rider.type[:64]}` cannot ride with another event")
        events.append(_decode_event(entry, rider.type, rider.event, None))
    return events


def _decode_event(entry: Entry, kind: str, body: msgspec.Raw, payload: bytes | None) -> Event:
    reader = _READERS.get(kind)
    if reader is None:
        raise malformed(entry, f"the type `{kind[:64]}` is unknown")
    decode, has_payload = reader
    try:
        event: Event = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed(entry, f"the facts are not those of a {kind}") from None
    if has_payload:
        if event.payload is not UNSET:  # type: ignore[union-attr]
            raise malformed(entry, "a payload stands among the facts")
        if payload is not None:
            try:
                event.payload = canonical.decode(payload)  # type: ignore[union-attr]
            except InputError:
                raise malformed(entry, "the payload is not JSON") from None
    elif payload is not None:
        raise malformed(entry, f"a {kind} has no payload")
    return event


def broken(code: str, what: str, seq: int) -> VerificationError:
    return VerificationError(code, f"entry {seq}: {what}", facts={"seq": seq})


def malformed(entry: Entry, what: str) -> VerificationError:
    return broken("JOURNAL_MALFORMED", what, entry.seq)
