"""Reading a journal without trusting it: every entry is verified before anybody is told what it says."""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec
from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.journal.entry import (
    GENESIS,
    SALT_BYTES,
    USUAL,
    USUAL_RIDERS,
    Chain,
    Entry,
    Facts,
    Rider,
    broken,
    decode_facts,
    is_closed,
    malformed,
    open_events,
    read_facts,
)
from nano_vm.kernel.events import Event

_encode = msgspec.json.Encoder().encode


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
        written, payload, salt = entry.facts, entry.payload, entry.salt
        try:
            facts = decode_facts(written)
            decode, has_payload, end = USUAL[facts.type]
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
            # What an event holds from outside may be anything: nested deeper than values are, for one.
            same = same and (facts.type in USUAL or canonical.is_canonical(entry.facts))
        except InputError:
            same = False
        if not same:
            raise broken("JOURNAL_MALFORMED", f"a {facts.type} that is not in canonical form", self.length)
        return [event, *then]


_RIDERS = re.compile(rb',"then":(\[.*\]),"type":"StepSucceeded"\}').fullmatch
_decode_riders = msgspec.json.Decoder(list[Rider]).decode
_AT_DIGITS_MAX = 15  # of numbers that every JSON reader reads alike


def is_number(digits: bytes) -> bool:
    """Whether these are a number that is not negative, as it has to be written."""
    return digits.isdigit() and len(digits) <= _AT_DIGITS_MAX and (digits[0] != ord("0") or len(digits) == 1)


def read_riders(tail: bytes) -> list[Event]:
    """What rides with a success, from all that follows the number of its entry; nothing for what is not usual."""
    found = _RIDERS(tail)
    events: list[Event] = []
    if found is not None:
        try:
            _usual_riders(_decode_riders(found[1]), events)
        except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []
    return events


def write_rider(event: Event) -> bytes:
    """An event that rides with another as it has to be written."""
    return b'{"event":%b,"type":"%b"}' % (_encode(event), event.type.encode())


def _usual_riders(riders: list[Rider], events: list[Event]) -> bytes:
    """The member `then` as it has to be written; adds its events. Raises KeyError for what is not usual."""
    parts = []
    for rider in riders:
        event = USUAL_RIDERS[rider.type](rider.event)
        if getattr(event, "payload", UNSET) is not UNSET:
            raise KeyError
        parts.append(write_rider(event))
        events.append(event)
    return b',"then":[%b]' % b",".join(parts)


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
