"""Telling whether what is sent to a run has been taken before, by the run or by one below it.

Of its own events a run knows that by itself. What went to a called program, and an approval, whose content names chance
that its sender does not know, are looked up in the journals: only what stands there was taken, and looking changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nano_vm import canonical
from nano_vm.errors import RejectedError
from nano_vm.journal.entry import Entry, open_event, open_events
from nano_vm.journal.port import RunQuery
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Rejection, State
from nano_vm.kernel.transition import event_digest
from nano_vm.runtime.ways import inward, plain

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine
    from nano_vm.runtime.looking import Looking

AUTO: Final = "auto:"  # prefix of event ids made from content
CHILDREN_MAX: Final = 10_000  # of one run, that a repeated event is looked for in
_UNSET = ev.UNSET
_RECEIVED: Final = canonical.encode(ev.EventReceived.type)


def sent_by(principal: Any) -> str:
    """What the id that is made for an answer to an approval ends in: nobody repeats what somebody else has said."""
    who = _id(None if principal is _UNSET else principal)
    return "" if who is None else f".{canonical.digest(who.encode())[7:23]}"


def repeated_id(state: State, event: ev.EventReceived) -> str | None:
    """The id under which the run has taken the content of an event that has no id of its own; of an answer to an
    approval, from the same sender."""
    digest, sender = event_digest(event), sent_by(event.principal)
    for known, content in state.seen.items():
        if (
            content == digest
            and known.startswith(AUTO)
            and ("." not in known or known.endswith(sender or "."))
        ):
            return known
    return None


def is_repeated(state: State, event: ev.EventReceived) -> bool:
    """Whether an event without an id of its own, for which nothing waits, was taken before. Two that are sent at the
    same time are one, although something waited for both when they came."""
    return event.event_id.startswith(AUTO) and repeated_id(state, event) is not None


class Child(NamedTuple):
    """A called run, the step that calls it and, in a map, for which element."""

    run_id: str
    program_hash: str
    step: str
    item: int | None
    entries: Sequence[Entry]

    @property
    def through(self) -> str:
        """Its part of a way."""
        return f"{self.step}/" if self.item is None else f"{self.step}[{self.item}]/"


def children(engine: Looking, run_id: str) -> Iterator[Child]:
    for record in engine.store.records(RunQuery(parent=run_id, limit=CHILDREN_MAX)):
        entries = engine.read(record.run_id)
        start = open_event(entries[0]) if entries else None
        if type(start) is ev.RunStarted and isinstance(start.parent, Mapping):
            step, item = start.parent["step"], start.parent.get("item")
            yield Child(record.run_id, record.program_hash, step, item, entries)


def _received(entries: Sequence[Entry], needle: bytes = _RECEIVED) -> Iterator[ev.EventReceived]:
    """The events from outside that were taken, of the entries in which the needle is."""
    for entry in entries:
        if needle in entry.facts:
            yield from (event for event in open_events(entry) if type(event) is ev.EventReceived)


def taken_below(engine: Engine, run_id: str, letter: dict[str, Any]) -> Rejection | None:
    """Whether a run below this one has taken the event of that id already: a repetition must not reach its sibling."""
    event_id = letter["event_id"]
    needle = canonical.encode(event_id)
    for child in children(engine, run_id):
        for event in _received(child.entries, needle):
            if event.event_id == event_id:
                name = None if event.name is _UNSET else event.name
                same = name == letter["name"] and event.payload == letter["data"]
                code = "DUPLICATE" if same else "EVENT_CONFLICT"
                return Rejection(code, f"event `{event_id}` was accepted before")
        known = taken_below(engine, child.run_id, letter)
        if known is not None:
            return known
    return None


def said_below(engine: Engine, run_id: str, letter: dict[str, Any]) -> bool:
    """Whether a run below this one has taken the very content of an event that has no id of its own; of what is said to
    an approval also from the same sender."""
    for child in children(engine, run_id):
        inner = inward(letter, child.step, child.item)
        if inner is None:
            continue
        live = engine.live_here(child.run_id)
        if live is not None and repeated_id(live.state, _event(inner)) is not None:
            return True  # it may not be in the store yet
        content = (inner["name"], inner["step"], inner.get("item"), inner["data"])
        for event in _received(child.entries):
            if event.event_id.startswith(AUTO) and content == _content(event):
                who = None if event.principal is _UNSET else event.principal
                personal = letter.get("approves") or "." in event.event_id
                if not personal or _id(who) == _id(letter["principal"]):
                    return True
        if said_below(engine, child.run_id, inner):
            return True
    return False


def _event(letter: dict[str, Any]) -> ev.EventReceived:
    """The event that a letter comes to, as far as its content goes."""
    facts = {name: letter.get(name) for name in ("name", "step", "item", "principal")}
    given = {name: fact for name, fact in facts.items() if fact is not None}
    return ev.EventReceived(at_ms=0, event_id="", payload=letter["data"], **given)


def has_come_to(engine: Engine, run_id: str, way: str) -> bool:
    """Whether a way, as in `call/step`, leads through what the run has called to a step of it; so does the bare name of
    such a step, as it does for the event that the step waits for."""
    for child in children(engine, run_id):
        inner = inward({"step": way}, child.step, child.item)
        if inner is None:
            continue
        step = inner["step"]
        if step in engine.load_program(child.program_hash).step_index or has_come_to(
            engine, child.run_id, step
        ):
            return True
    return False


def _content(event: ev.EventReceived) -> tuple[Any, ...]:
    return tuple(
        None if fact is _UNSET else fact for fact in (event.name, event.step, event.item, event.payload)
    )


def _id(principal: Mapping[str, Any] | None) -> str | None:
    return None if principal is None else principal["id"]


# --- approvals ----------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What somebody says to an approval: what of it is None may be anything. One that is not said `anew` is a
    repetition or nothing."""

    approved: bool
    comment: str | None
    step: str | None
    item: int | None
    action: str | None
    nonce: str | None
    event_id: str | None
    anew: bool = True


def said_before(
    engine: Engine, run_id: str, said: Said, principal: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The same answer of the same approver to an approval of this run, or of one below it, as it was taken: a letter
    under its own id, which is answered alike. None when there is none.

    Raises:
        RejectedError: EVENT_CONFLICT when somebody else has used the id.
    """
    who = _id(principal)
    if who is None:
        return None
    return _said_in(engine, _Place(run_id, "", None), engine.read(run_id), said, who)


class _Place(NamedTuple):
    """A run, the way to its steps, and the outermost element of a map on it."""

    run_id: str
    way: str
    element: int | None


def _said_in(
    engine: Engine, place: _Place, entries: Sequence[Entry], said: Said, who: str
) -> dict[str, Any] | None:
    needle = canonical.encode(who if said.event_id is None else said.event_id)
    for event in _received(entries, needle):
        sender = _id(None if event.principal is _UNSET else event.principal)
        if event.event_id == said.event_id and sender != who:
            raise RejectedError(
                "EVENT_CONFLICT",
                f"event `{said.event_id}` was accepted from somebody else",
                help="what somebody says to an approval is an event of its own: give it another id, or none",
                facts={"run_id": place.run_id},
            )
        if sender == who and _is_said(event, place, said):
            return {
                "event_id": event.event_id,
                "name": None if event.name is _UNSET else event.name,
                "step": None if event.step is _UNSET else place.way + event.step,
                "item": None if event.item is _UNSET else event.item,
                "data": event.payload,
            }
    for child in children(engine, place.run_id):
        element = child.item if place.element is None else place.element
        below = _Place(child.run_id, place.way + child.through, element)
        found = _said_in(engine, below, child.entries, said, who)
        if found is not None:
            return found
    return None


def _is_said(event: ev.EventReceived, place: _Place, said: Said) -> bool:
    data = event.payload
    if type(data) is not dict or not set(data) <= {"approved", "comment", "action", "nonce"}:
        return False
    if data.get("approved") is not said.approved or data.get("comment") != said.comment:
        return False
    if said.event_id is not None and event.event_id != said.event_id:
        return False
    if said.action is not None and data.get("action", "") != said.action:
        return False
    if said.nonce is not None and data.get("nonce", "") != said.nonce:
        return False
    own = None if event.item is _UNSET else event.item
    if event.step is _UNSET:
        return said.step is None and said.item in (None, own)
    return meant(said.step, said.item, place.way + event.step, own, place.element)


def meant(step: str | None, item: int | None, way: str, own: int | None, element: int | None) -> bool:
    """Whether a step and an item, as a caller names them, mean what stands at the way: the item is that of the step
    itself where the way is named in full, else the outermost element on it."""
    outermost = own if element is None else element
    return step in (None, way, plain(way)) and item in (None, own if step == way else outermost)
