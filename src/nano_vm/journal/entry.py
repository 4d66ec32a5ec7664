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

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias, overload

import msgspec
from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import InputError, VerificationError
from nano_vm.expr.reference import ERASED
from nano_vm.kernel.events import EVENT_TYPES, Erased, Event, PolicyDecided, RunStarted

SALT_BYTES = 16
GENESIS = "sha256:" + "0" * 64  # `prev` of the first entry of every run

# What may ride with another event: intents, the decisions that they follow from, and the end of the run.
RIDER_TYPES = frozenset(
    {"StepStarted", "ChildStarted", "CompensationStarted", "PolicyDecided", "RunFinished"}
)

_encode = msgspec.json.Encoder().encode


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


class _Rider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
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
    then: list[_Rider] = []


class _Reader(NamedTuple):
    """How events of one type are read, and whether the type has a payload."""

    decode: Callable[[bytes | msgspec.Raw], Any]
    payload: bool


_decode_facts = msgspec.json.Decoder(Facts).decode
_READERS: dict[str, _Reader] = {
    name: _Reader(msgspec.json.Decoder(kind).decode, "payload" in kind.__struct_fields__)
    for name, kind in EVENT_TYPES.items()
}
# Facts of these types may hold objects whose keys come from outside, which a plain encoder would leave in
# their order.
_OBJECTS = (
    "budgets",
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
# What a `ChainReader` reads the usual way: how, whether there may be a payload, and how the facts end.
_USUAL = {
    name: (reader.decode, reader.payload, b',"type":"%b"}' % name.encode())
    for name, reader in _READERS.items()
    if not _SHAPES[EVENT_TYPES[name]][1]
}
_USUAL_RIDERS = {name: _USUAL[name][0] for name in RIDER_TYPES if name in _USUAL}


class Chain:
    """The growing end of one run's chain: `length` entries so far, the last with digest `head`.

    Sealing one entry costs one digest over its facts and one over its payload, however long the chain is.
    """

    __slots__ = ("_run", "head", "length", "run")

    def __init__(self, run: str, length: int = 0, head: str = GENESIS) -> None:
        self.run = run
        self.length = length
        self.head = head
        # Encoded once: a run id is any text, and its JSON form is the same in every entry.
        self._run = canonical.encode(run).decode()

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

    def seal_compactly(self, successes: list[Success], salts: list[bytes]) -> SealedEntries:
        """`seal_successes`, but the entries are kept as what they are made of. Takes `successes` over."""
        seq, prev = self.length, self.head
        self._seal_all(successes, salts, None)
        for place, success in enumerate(successes):
            if success[2]:
                at, step, _, payload, before, then_at, after = success
                step = _with_verdicts(step, success[2])
                successes[place] = (at, step, None, payload, before, then_at, after)
        return SealedEntries(self.run, seq, prev, tuple(successes), b"".join(salts), self.head)

    def _seal_all(
        self, successes: Sequence[Success], salts: Sequence[bytes], add: Callable[[Entry], None] | None
    ) -> None:
        head, seq, join, hashed = self.head, self.length, _join, sha256  # names are looked up faster here
        run = f'","run":{self._run},"seq":'
        for salt, (at, step, verdicts, payload, before, then_at, after) in zip(salts, successes, strict=True):
            if verdicts:
                step = _with_verdicts(step, verdicts)
            commitment = hashed(salt + payload).hexdigest()
            if after.__class__ is tuple:
                after = f"{after[0]}{then_at}{after[1]}"
            parts = (_HEAD, commitment, _AT, at, step, head, run, f"{seq}", before, then_at, after)
            facts = join(parts).encode()  # type: ignore[arg-type]
            head = "sha256:" + hashed(facts).hexdigest()
            if add is not None:
                add(Entry(seq, head, facts, salt, payload))
            seq += 1
        self.head, self.length = head, seq


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


Success: TypeAlias = tuple[str, str, list[Any] | None, bytes, str, str, str | tuple[str, str]]
"""The success of a first attempt, to be sealed: when (digits), the members that `success_of` gives, verdicts if there
are any, the payload, and what rides with it: what comes before its time, its time, and what comes after - around the
same time once more, where two events ride (`intent_of`, `decided_of`, `end_of`, or `ALONE`). Or, with `start_of` and
`with_start`, the start of a run.
"""

_join = "".join
_HEAD, _AT = '{"commitment":"sha256:', '","event":{"at_ms":'
END = '},"prev":"'
_BEFORE_END = -len(END)
_LAST = ',"type":"StepSucceeded"}'
ALONE = ("", "", _LAST)


def encode_verdicts(verdicts: list[Any]) -> bytes:
    """Verdicts as they are written: nothing in them needs more than the plain encoder."""
    return _encode(verdicts)


def _with_verdicts(step: str, verdicts: list[Any]) -> str:
    return f'{step[:_BEFORE_END]},"verdicts":{_encode(verdicts).decode()}{END}'


def success_of(step_id: str, pure: bool, occurrence: int, label: int = 0) -> str:
    """A StepSucceeded from `attempt` on. Step ids need no escaping."""
    member = '"pure":true,' if pure else ""
    labelled = f'"label":{label},' if label else ""
    return f',"attempt":1,{labelled}"occurrence":{occurrence},{member}"step":"{step_id}"{END}'


def intent_of(step_id: str, effect: str, occurrence: int, label: int = 0) -> tuple[str, str]:
    """A StepStarted of a first attempt that rides with a success: what comes before and after its time."""
    labelled = f'"label":{label},' if label else ""
    members = f',"attempt":1,"effect":"{effect}",{labelled}"occurrence":{occurrence},"step":"{step_id}"'
    return ',"then":[{"event":{"at_ms":', members + '},"type":"StepStarted"}]' + _LAST


def start_of(event: RunStarted) -> str:
    """A RunStarted without its time, payload and verdicts."""
    body = _body(event)
    return f"{body[body.index(',') : -1]}{END}"


def with_start(after: str) -> str:
    """The last part of what rides, when it rides with a RunStarted instead of a success."""
    return after[: -len(_LAST)] + ',"type":"RunStarted"}'


def decided_of(decided: PolicyDecided, intended: bool) -> tuple[str, str]:
    """A decision (of the time 0) that rides with a success, and the intent after it where there is one: what comes
    before its time, and between that and the time of the intent (or after, without one)."""
    before, members = _encode(decided).decode().split('"at_ms":0', 1)
    before = f',"then":[{{"event":{before}"at_ms":'
    if not intended:
        return before, members + ',"type":"PolicyDecided"}]' + _LAST
    return before, members + ',"type":"PolicyDecided"},{"event":{"at_ms":'


def end_of(status: str, outcome: str | None) -> tuple[str, str]:
    """A RunFinished that leaves nothing incomplete and rides with a success: what comes before and after its time."""
    named = "" if outcome is None else f',"outcome":{_encode(outcome).decode()}'
    return ',"then":[{"event":{"at_ms":', f'{named},"status":"{status}"}},"type":"RunFinished"}}]' + _LAST


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
        return _decode_facts(entry.facts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # From nothing: the parser's message may quote the data.
        raise _malformed(entry, "the facts cannot be read") from None


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
        raise _malformed(entry, f"a {facts.type} has no payload")
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
            raise _malformed(entry, f"a `{rider.type[:64]}` cannot ride with another event")
        events.append(_decode_event(entry, rider.type, rider.event, None))
    return events


def _decode_event(entry: Entry, kind: str, body: msgspec.Raw, payload: bytes | None) -> Event:
    reader = _READERS.get(kind)
    if reader is None:
        raise _malformed(entry, f"the type `{kind[:64]}` is unknown")
    decode, has_payload = reader
    try:
        event: Event = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _malformed(entry, f"the facts are not those of a {kind}") from None
    if has_payload:
        if event.payload is not UNSET:  # type: ignore[union-attr]
            raise _malformed(entry, "a payload stands among the facts")
        if payload is not None:
            try:
                event.payload = canonical.decode(payload)  # type: ignore[union-attr]
            except InputError:
                raise _malformed(entry, "the payload is not JSON") from None
    elif payload is not None:
        raise _malformed(entry, f"a {kind} has no payload")
    return event


def verify_entry(entry: Entry, run: str, prev: str, seq: int | None = None) -> Facts:
    """Check one entry against its place in the chain and return its facts.

    Args:
        run: the run it has to belong to.
        prev: digest of the entry before it, `GENESIS` for the first.
        seq: its place, where the caller has counted; by default the entry's own word is taken.

    Raises:
        VerificationError: JOURNAL_MALFORMED, DIGEST_MISMATCH, CHAIN_BROKEN, COMMITMENT_MISMATCH or
            PAYLOAD_MISSING, naming the entry in `facts["seq"]` (its place, where `seq` was given).
    """
    place = entry.seq if seq is None else seq
    if "sha256:" + sha256(entry.facts).hexdigest() != entry.digest:
        raise _broken("DIGEST_MISMATCH", "the facts do not have the stored digest", place)
    facts = read_facts(entry)
    if entry.seq != place or facts.seq != place or facts.prev != prev or facts.run != run:
        raise _broken("CHAIN_BROKEN", "it does not follow the entry before it", place)
    commitment = facts.commitment
    if facts.key is not None and is_closed(entry, facts):
        if commitment is None:
            raise _malformed(entry, "a key without a commitment")
        return facts  # whether it may be closed is asked of the whole journal
    if commitment is not None and entry.payload is None:
        raise _broken("PAYLOAD_MISSING", "its payload is gone", place)
    if commitment is not None or entry.payload is not None or entry.salt:
        _verify_payload(entry, facts, place)
    return facts


class ChainReader:
    """Reads a journal from its first entry, and verifies each entry completely: digest, place, commitment, and that it
    is written as it has to be. Bytes that other readers might understand otherwise (a name twice, say) are no evidence.

    `head` and `length` are the end of what has been read, `payloads` how many payloads there were.
    """

    __slots__ = ("_run", "head", "length", "payloads", "run")

    def __init__(self, run: str) -> None:
        self.run = run
        self.head = GENESIS
        self.length = 0
        self.payloads = 0
        self._run = canonical.encode(run)

    def take(self, entry: Entry) -> list[Event]:
        """The events of the next entry.

        Raises:
            VerificationError: as `verify_entry`; JOURNAL_MALFORMED also for what is not in canonical form.
        """
        # The usual way looks at everything once. It says nothing about what it does not accept: the careful way does.
        events = self._usual(entry) or self._careful(entry)
        self.payloads += entry.payload is not None
        self.head = entry.digest
        self.length += 1
        return events

    def take_success(self, entry: Entry, expected: bytes) -> Taken | None:
        """`take` of the entry that is expected next, the success of a first attempt, by comparing its bytes with what
        they have to be: nothing is parsed but the payload. None, and nothing is taken, when it is anything else.

        Args:
            expected: the members that `success_of` gives, but for the end.
        """
        written, payload, salt, seq = entry.facts, entry.payload, entry.salt, self.length
        end = written.find(b",", _AT_PLACE)
        at = written[_AT_PLACE:end]
        if (
            payload is None
            or not at.isdigit()
            or len(at) > _AT_DIGITS_MAX
            or (at[0] == _ZERO and len(at) > 1)
        ):
            return None
        place = end + len(expected)
        verdicts = b""
        if written.startswith(_VERDICTS, place):
            stop = written.find(_END_BYTES, place)
            verdicts = written[place + len(_VERDICTS) : stop]
            place = stop
        link = b'%b%b","run":%b,"seq":%d' % (_END_BYTES, self.head.encode(), self._run, seq)
        tail = written[place + len(link) :]
        intent: Any = None
        if tail != _LAST_BYTES:
            found = _INTENT(tail)
            if found is None:
                return None
            intent = found.groups()
        commitment = sha256(salt + payload).hexdigest().encode()
        whole = b"".join((_HEAD_BYTES, commitment, _AT_BYTES, at, expected))
        if (
            not written.startswith(whole)
            or not written.startswith(link, place)
            or entry.seq != seq
            or len(salt) != SALT_BYTES
            or entry.digest != "sha256:" + sha256(written).hexdigest()
        ):
            return None
        try:
            value = canonical.decode(payload)
            if canonical.encode(value) != payload:
                return None
        except InputError:
            return None
        self.payloads += 1
        self.head = entry.digest
        self.length = seq + 1
        return value, int(at), verdicts, intent

    def _usual(self, entry: Entry) -> list[Event] | None:
        written, payload, salt = entry.facts, entry.payload, entry.salt
        try:
            facts = _decode_facts(written)
            decode, has_payload, end = _USUAL[facts.type]
            event = decode(facts.event)
            body = _encode(event)
            if payload is None:
                if facts.commitment is not None or salt:
                    return None
                begin = b'{"event":%b' % body
            else:
                # A payload that stands among the facts is in `body`, and would be taken for this one.
                if not has_payload or event.payload is not UNSET or len(salt) != SALT_BYTES:
                    return None
                event.payload = value = canonical.decode(payload)
                if canonical.encode(value) != payload:
                    return None
                commitment = sha256(salt + payload).hexdigest()
                begin = b'{"commitment":"sha256:%b","event":%b' % (commitment.encode(), body)
            events: list[Event] = [event]
            then = _usual_riders(facts.then, events) if facts.then else b""
        except (KeyError, InputError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        seq, digest = self.length, entry.digest
        whole = b'%b,"prev":"%b","run":%b,"seq":%d%b%b' % (
            begin,
            self.head.encode(),
            self._run,
            seq,
            then,
            end,
        )
        if written != whole or entry.seq != seq or digest != "sha256:" + sha256(written).hexdigest():
            return None
        return events

    def _careful(self, entry: Entry) -> list[Event]:
        facts = verify_entry(entry, self.run, self.head, self.length)
        event, *then = open_events(entry, facts)
        try:
            closed = is_closed(entry, facts)
            commitment = facts.commitment if closed else None
            chain = Chain(self.run, entry.seq, self.head)
            sealed = chain.seal(event, entry.salt, entry.payload, then, facts.key, commitment)
            if closed:
                same = sealed.facts == entry.facts
            else:
                same = sealed == entry and (entry.payload is None or canonical.is_canonical(entry.payload))
        except InputError:
            same = False
        if not same:
            raise _broken("JOURNAL_MALFORMED", f"a {facts.type} that is not in canonical form", self.length)
        return [event, *then]


Taken: TypeAlias = tuple[Any, int, bytes, tuple[bytes, bytes, bytes, bytes] | None]
"""A success as `ChainReader.take_success` found it: the output, when, its verdicts as they are written, and the intent
that rides with it, if one does: its time, effect, occurrence and step."""

_HEAD_BYTES, _AT_BYTES, _END_BYTES, _LAST_BYTES = (
    _HEAD.encode(),
    _AT.encode(),
    END.removesuffix("sha256:").encode(),
    _LAST.encode(),
)
_VERDICTS = b',"verdicts":'
_AT_PLACE = len(_HEAD) + 64 + len(_AT)
_AT_DIGITS_MAX = 15  # of numbers that every JSON reader reads alike
_ZERO = ord("0")
_NUMBER, _NAME = rb"(0|[1-9][0-9]{0,14})", rb"([A-Za-z_][A-Za-z0-9_]*)"
_INTENT = re.compile(
    rb',"then":\[\{"event":\{"at_ms":%b,"attempt":1,"effect":"([a-z]+)","occurrence":%b,"step":"%b"\},'
    rb'"type":"StepStarted"\}\]%b' % (_NUMBER, _NUMBER, _NAME, re.escape(_LAST.encode()))
).fullmatch


def _usual_riders(riders: list[_Rider], events: list[Event]) -> bytes:
    """The member `then` as it has to be written; adds its events. Raises KeyError for what is not usual."""
    parts = []
    for rider in riders:
        event = _USUAL_RIDERS[rider.type](rider.event)
        if getattr(event, "payload", UNSET) is not UNSET:
            raise KeyError
        parts.append(b'{"event":%b,"type":"%b"}' % (_encode(event), rider.type.encode()))
        events.append(event)
    return b',"then":[%b]' % b",".join(parts)


def verify_shown(entry: Entry, run: str) -> Facts:
    """Check an entry that is shown alone, with or without its payload, and return its facts.

    Raises:
        VerificationError: JOURNAL_MALFORMED, DIGEST_MISMATCH, CHAIN_BROKEN (of another run or place) or
            COMMITMENT_MISMATCH.
    """
    if "sha256:" + sha256(entry.facts).hexdigest() != entry.digest:
        raise _broken("DIGEST_MISMATCH", "the facts do not have the stored digest", entry.seq)
    facts = read_facts(entry)
    if facts.seq != entry.seq or facts.run != run:
        raise _broken("CHAIN_BROKEN", "it belongs elsewhere", entry.seq)
    if not is_closed(entry, facts):
        _verify_payload(entry, facts, entry.seq)
    return facts


def _verify_payload(entry: Entry, facts: Facts, place: int) -> None:
    payload = entry.payload
    if payload is not None:
        if facts.commitment != "sha256:" + sha256(entry.salt + payload).hexdigest():
            raise _broken("COMMITMENT_MISMATCH", "the payload is not the one committed to", place)
        # Of another length, salt and payload could trade bytes under the same commitment.
        if len(entry.salt) != SALT_BYTES:
            raise _broken("COMMITMENT_MISMATCH", "the salt is not 16 bytes long", place)
    elif entry.salt:
        raise _broken("COMMITMENT_MISMATCH", "there is a salt without a payload", place)


def _broken(code: str, what: str, seq: int) -> VerificationError:
    return VerificationError(code, f"entry {seq}: {what}", facts={"seq": seq})


def _malformed(entry: Entry, what: str) -> VerificationError:
    return _broken("JOURNAL_MALFORMED", what, entry.seq)
