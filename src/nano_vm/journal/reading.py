"""Reading a journal without trusting it: every entry is verified before anybody is told what it says."""

from __future__ import annotations

from hashlib import sha256

import msgspec
from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.journal.entry import (
    GENESIS,
    RIDER_TYPES,
    SALT_BYTES,
    USUAL,
    Chain,
    Entry,
    Facts,
    broken,
    is_closed,
    malformed,
    open_events,
    read_facts,
)
from nano_vm.journal.plain import LAST
from nano_vm.kernel.events import Event

_encode = msgspec.json.Encoder(order="deterministic").encode
_BEGIN, _THEN, _NEXT_RIDER = b'{"event":', b',"then":[{"event":', b'},{"event":'
SUCCEEDED = LAST.encode()  # how the entry of a success ends
_AFTER_RIDERS, _AFTER_BODY = b'],"type":"', b'},"type":"'
# By how an entry of a type ends, and by how a rider does: how its event is read.
_USUAL = {usual[3]: usual for usual in USUAL.values()}
_RIDERS = {USUAL[name][3][:-1]: USUAL[name] for name in RIDER_TYPES}


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
        raise broken("DIGEST_MISMATCH", "the facts do not have the stored digest", place)
    facts = read_facts(entry)
    if entry.seq != place or facts.seq != place or facts.prev != prev or facts.run != run:
        raise broken("CHAIN_BROKEN", "it does not follow the entry before it", place)
    commitment = facts.commitment
    if facts.key is not None and is_closed(entry, facts):
        if commitment is None:
            raise malformed(entry, "a key without a commitment")
        return facts  # whether it may be closed is asked of the whole journal
    if commitment is not None and entry.payload is None:
        raise broken("PAYLOAD_MISSING", "its payload is gone", place)
    if commitment is not None or entry.payload is not None or entry.salt:
        _verify_payload(entry, facts, place)
    return facts


class ChainReader:
    """Reads a journal from its first entry, and verifies each entry completely: digest, place, commitment, and that it
    is written as it has to be. Bytes that other readers might understand otherwise (a name twice, say) are no evidence.

    `head` and `length` are the end of what has been read, `payloads` how many payloads there were.
    """

    __slots__ = ("_run", "head", "length", "payloads", "place", "run")

    def __init__(self, run: str) -> None:
        self.run = run
        self.head = GENESIS
        self.length = 0
        self.payloads = 0
        self._run = canonical.encode(run)
        self.place = b'","run":%b,"seq":' % self._run  # between the head and the number of an entry

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

    def _usual(self, entry: Entry) -> list[Event] | None:
        """The events of an entry that is as the next one has to be; None where anything is not, or is unusual.

        The entry is cut where what links it to the one before stands. Nothing but the events in it is decoded, and what
        they are encoded to is compared: with what stands around them, that is every byte.
        """
        written, payload, salt, seq = entry.facts, entry.payload, entry.salt, self.length
        link = b'},"prev":"%b%b%d' % (self.head.encode(), self.place, seq)
        cut = written.find(link) + 1
        tail = written[cut - 1 + len(link) :]
        usual = _USUAL.get(tail) or _USUAL.get(tail[tail.rfind(_AFTER_RIDERS) + 1 :])
        if not cut or usual is None or entry.seq != seq:
            return None
        decode, has_payload, nests, end = usual
        if payload is None:
            begin = _BEGIN
            if salt:
                return None
        elif has_payload and len(salt) == SALT_BYTES:
            begin = b'{"commitment":"sha256:%b","event":' % sha256(salt + payload).hexdigest().encode()
        else:
            return None
        if entry.digest != "sha256:" + sha256(written).hexdigest() or not written.startswith(begin):
            return None
        body = written[len(begin) : cut]
        try:
            event = decode(body)
            if _encode(event) != body or (nests and not _is_simple(body)):
                return None
            if has_payload:
                # One that stands among the facts is in `body`, and would be taken for this one.
                if event.payload is not UNSET:
                    return None
                if payload is not None:
                    event.payload = canonical.decode_canonical(payload)
            events: list[Event] = [event]
            if len(tail) != len(end) and not _take_riders(tail, len(tail) - len(end), events):
                return None
        except (InputError, msgspec.DecodeError, UnicodeError, RecursionError):
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
            # What an event holds from outside may be anything: nested deeper than values are, for one.
            same = same and canonical.is_canonical(entry.facts)
        except InputError:
            same = False
        if not same:
            raise broken("JOURNAL_MALFORMED", f"a {facts.type} that is not in canonical form", self.length)
        return [event, *then]


_AT_DIGITS_MAX = 15  # of numbers that every JSON reader reads alike


def is_number(digits: bytes) -> bool:
    """Whether these are a number that is not negative, as it has to be written."""
    return digits.isdigit() and len(digits) <= _AT_DIGITS_MAX and (digits[0] != ord("0") or len(digits) == 1)


def read_riders(tail: bytes) -> list[Event]:
    """What rides with a success, from all that follows the number of its entry; nothing for what is not usual."""
    events: list[Event] = []
    try:
        if tail.endswith(SUCCEEDED) and _take_riders(tail, len(tail) - len(SUCCEEDED), events):
            return events
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    return []


def _take_riders(tail: bytes, end: int, events: list[Event]) -> bool:
    """Add what rides with an event, from the bytes between the number of the entry and `end`, where its type stands;
    False for what is not written as it has to be. Raises what decoding raises."""
    if not tail.startswith(_THEN) or not tail.endswith(b"}]", 0, end):
        return False
    # Within a text there is no quotation mark as it stands here, and riders hold no objects: at anything else than
    # between two riders this cuts what cannot be decoded.
    for rider in tail[len(_THEN) : end - 2].split(_NEXT_RIDER):
        cut = rider.rfind(_AFTER_BODY) + 1
        usual, body = _RIDERS.get(rider[cut:]), rider[:cut]
        if usual is None:
            return False
        event = usual[0](body)
        if _encode(event) != body or (usual[2] and not _is_simple(body)):
            return False
        if usual[1] and event.payload is not UNSET:
            return False
        events.append(event)
    return True


def _is_simple(body: bytes) -> bool:
    """Whether an event that encodes to this may be taken for canonical: what comes from outside can have its names in
    any order, and hold anything."""
    return (body.find(b"{", 1) < 0 and body.find(b"[", 1) < 0) or canonical.is_simple(body)


def write_rider(event: Event) -> bytes:
    """An event that rides with another as it has to be written."""
    return b'{"event":%b,"type":"%b"}' % (_encode(event), event.type.encode())


def verify_shown(entry: Entry, run: str) -> Facts:
    """Check an entry that is shown alone, with or without its payload, and return its facts.

    Raises:
        VerificationError: JOURNAL_MALFORMED, DIGEST_MISMATCH, CHAIN_BROKEN (of another run or place) or
            COMMITMENT_MISMATCH.
    """
    if "sha256:" + sha256(entry.facts).hexdigest() != entry.digest:
        raise broken("DIGEST_MISMATCH", "the facts do not have the stored digest", entry.seq)
    facts = read_facts(entry)
    if facts.seq != entry.seq or facts.run != run:
        raise broken("CHAIN_BROKEN", "it belongs elsewhere", entry.seq)
    if not is_closed(entry, facts):
        _verify_payload(entry, facts, entry.seq)
    return facts


def _verify_payload(entry: Entry, facts: Facts, place: int) -> None:
    payload = entry.payload
    if payload is not None:
        if facts.commitment != "sha256:" + sha256(entry.salt + payload).hexdigest():
            raise broken("COMMITMENT_MISMATCH", "the payload is not the one committed to", place)
        # Of another length, salt and payload could trade bytes under the same commitment.
        if len(entry.salt) != SALT_BYTES:
            raise broken("COMMITMENT_MISMATCH", "the salt is not 16 bytes long", place)
    elif entry.salt:
        raise broken("COMMITMENT_MISMATCH", "there is a salt without a payload", place)
