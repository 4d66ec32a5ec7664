"""Folding a journal whose payloads cannot all be read any more (P7).

Budgets, labels and the verdicts of conditions are facts; what else the kernel takes from a payload - how long a list
is, that an event was accepted, that a template had nothing to render from - is noted before the payload's key is
destroyed (`nano_vm.journal.notes`), and becomes part of the entry that tells of the erasure. `Recall` gives it back to
a fold that comes to a closed entry. The kernel is the same: it is given a program whose templates and conditions know
which values are gone.

A note for one entry has these members, each absent when there is nothing to note:

    "d"  what templates, lists, times and `accept` conditions came to, in the order they were asked; null is "rendered"
    "p"  the shape of the payload, for the types whose shape the kernel reads, and what in it is neither private nor
         secret: it was sealed for the company it came in
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError, RuntimeFault, VerificationError
from nano_vm.expr.reference import ERASED
from nano_vm.journal.entry import Entry, Facts, is_closed, open_events, read_facts
from nano_vm.kernel import events as ev
from nano_vm.kernel.limits import AGENT_CALLS_MAX, PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import State
from nano_vm.program.compiled import (
    CallAction,
    CompiledProgram,
    CompiledStep,
    ConditionAction,
    MapAction,
    ModelAction,
    Template,
    ToolAction,
    WaitAction,
)

Notes = dict[str, dict[str, Any]]
Asks = dict[
    tuple[str, Any], dict[str, str]
]  # what approvals were asked of, by step and item: action and nonce
Take = Callable[[CompiledProgram, State, ev.Event, int], None]
_MISSING = object()


class Unchecked(NamedTuple):
    """A decision that was taken as recorded, because what it rests on is gone: the entry, and the step if any."""

    seq: int
    step: str


class Recall:
    """What is known of the closed entries of one journal, and the program to fold it with.

    `closed` are the sequence numbers of the closed entries, `erased` those of them whose key an `Erased` entry names.
    `unchecked` fills while the journal is folded.
    """

    def __init__(
        self, program: CompiledProgram, entries: Sequence[Entry], notes: Notes | None = None
    ) -> None:
        self.original = program
        self.unchecked: list[Unchecked] = []
        self.closed: list[int] = []
        self.erased: list[int] = []
        self.notes: Notes = dict(notes or {})  # of values that are sealed here and readable elsewhere
        self._seq = 0
        self._decisions: list[Any] = []
        self._at = 0
        self._verdicts: list[Any] = []
        self._asks: Asks = {}
        self._read(entries)
        self.program = rebuilt(program, _Asker(self))

    def _read(self, entries: Sequence[Entry]) -> None:
        dead: set[str] = set()
        keys: list[tuple[int, str]] = []
        for entry in entries:
            facts = read_facts(entry)
            if facts.type == "Erased":
                (told, *_) = open_events(entry, facts)
                assert type(told) is ev.Erased
                dead.update(told.keys)
                if told.recall is not ev.UNSET:
                    if not canonical.is_canonical(entry.facts):  # they are used before their entry is read
                        raise _malformed(entry.seq)
                    self.notes.update(told.recall)
            elif is_closed(entry, facts):
                assert facts.key is not None
                keys.append((entry.seq, facts.key))
        self.closed = [seq for seq, _ in keys]
        self.erased = [seq for seq, key in keys if key in dead]

    def events(self, entry: Entry, facts: Facts) -> list[ev.Event]:
        """The events of an entry, with as much of a closed payload as is known."""
        note = self.notes.get(str(entry.seq), {})
        self._seq = entry.seq
        decisions = note.get("d", []) if type(note) is dict else None
        if type(decisions) is not list:
            raise _malformed(entry.seq)
        self._decisions, self._at = decisions, 0
        events = open_events(entry, facts)
        self._verdicts = list(getattr(events[0], "verdicts", None) or ())
        for asked in events:
            if type(asked) is ev.ApprovalRequested:
                note_asked(self._asks, asked)
        if is_closed(entry, facts):
            event: Any = events[0]
            try:
                if type(event) is ev.EventReceived:
                    about = answered(self._asks, event, note.get("p"))
                    event.payload = _filled_event(self.original, event, note.get("p"), about)
                else:
                    event.payload = _filled(self.original, event, note.get("p"))
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                # What the journal says was noted is not what anybody notes: it comes from outside, as all of it does.
                raise _malformed(entry.seq) from None
        return events

    def take(self, take: Take, state: State, event: Any, seq: int) -> None:
        """Apply an event. Where values are sealed and not erased, nothing was noted: then nobody can tell whether the
        kernel would do what was recorded.

        Raises:
            RuntimeFault: NO_KEYS. VerificationError: as `take`.
        """
        try:
            take(self.program, state, event, seq)
        except VerificationError:
            if len(self.closed) == len(self.erased):
                raise
            raise RuntimeFault(
                "NO_KEYS",
                f"entry {seq}: what follows rests on values that cannot be read here",
                help="use the vault that belongs to the database; after an erasure that was cut, or a restored "
                "back-up: nano-vm erase --complete",
                facts={"seq": seq},
            ) from None

    # --- asked by the wrapped program -------------------------------------------------------------------------

    def verdict(self, step: str, test: Callable[[list[Any]], bool], slots: list[Any]) -> bool:
        """What a condition comes to: as recorded when it reads what is gone."""
        outcome, gone = _evaluate(test, slots)
        told = self._verdicts.pop(0) if self._verdicts else None
        # What is no verdict is found when those that came of it are compared with those that are recorded.
        recorded = told[2] if type(told) is list and len(told) == 3 else _MISSING
        if not gone or recorded is _MISSING:
            return bool(_given(outcome))
        self.unchecked.append(Unchecked(self._seq, step))
        return bool(_given(_Raised(recorded) if type(recorded) is str else recorded))

    def decided(self, step: str, ask: Callable[[list[Any]], Any], slots: list[Any]) -> tuple[Any, Any]:
        """What was asked and what was noted of it; `_MISSING` when the answer rests on nothing that is gone, or nothing
        was noted."""
        outcome, gone = _evaluate(ask, slots)
        noted = self._decisions[self._at] if self._at < len(self._decisions) else None
        self._at += 1
        if not gone:
            return outcome, _MISSING
        self.unchecked.append(Unchecked(self._seq, step))
        if type(noted) is str:
            return _Raised(noted), _MISSING
        return outcome, noted


def _malformed(seq: int) -> VerificationError:
    return VerificationError(
        "JOURNAL_MALFORMED",
        f"what was noted of entry {seq} when it was erased cannot be read",
        facts={"seq": seq},
    )


class _Raised(NamedTuple):
    """An evaluation that ended in an error."""

    code: str
    error: NanoVMError | None = None  # as it was raised, if it was raised here


def _given(outcome: Any) -> Any:
    if type(outcome) is _Raised:
        if outcome.error is not None:
            raise outcome.error
        raise NanoVMError(outcome.code, "as recorded; what it was is not readable any more")
    return outcome


class _Watched(list[Any]):
    """Slots that notice whether something unreadable is looked at."""

    gone = False

    def __getitem__(self, index: Any) -> Any:
        value = super().__getitem__(index)
        if not self.gone and holds_erased(value):
            self.gone = True
        return value


def holds_erased(value: Any) -> bool:
    """Whether a value is unreadable, or has a part that is."""
    if value is ERASED:
        return True
    if type(value) is dict:
        return any(holds_erased(item) for item in value.values())
    if type(value) is list:
        return any(holds_erased(item) for item in value)
    return False


def _evaluate(ask: Callable[[list[Any]], Any], slots: list[Any]) -> tuple[Any, bool]:
    watched = _Watched(slots)
    try:
        return ask(watched), watched.gone
    except NanoVMError as error:
        return _Raised(error.code, error), watched.gone


# --- the program that knows what is gone ----------------------------------------------------------------------


class _Asker:
    """How the program asks that is folded with notes; `nano_vm.journal.notes` has the one that they are taken with."""

    def __init__(self, recall: Recall) -> None:
        self.recall = recall

    def test(self, step: str, test: Callable[[list[Any]], bool]) -> Callable[[list[Any]], bool]:
        return lambda slots: self.recall.verdict(step, test, slots)

    def accept(self, step: str, test: Callable[[list[Any]], bool]) -> Callable[[list[Any]], bool]:
        def accepts(slots: list[Any]) -> bool:
            outcome, noted = self.recall.decided(step, test, slots)
            if noted is _MISSING:
                return bool(_given(outcome))
            return True if noted is None else bool(noted)  # nothing was noted: the event was taken

        return accepts

    def render(self, step: str, template: Template) -> Template:
        def render(slots: list[Any]) -> Any:
            outcome, noted = self.recall.decided(step, template.render, slots)
            if noted is _MISSING:
                return _given(outcome)
            return ERASED if type(outcome) is _Raised else outcome

        return template if template.constant else msgspec.structs.replace(template, render=render)

    def fields(self, step: str, template: Template) -> Template:
        """A template whose value has to be an object."""
        inner = self.render(step, template)

        def render(slots: list[Any]) -> Any:
            value = inner.render(slots)
            return {} if value is ERASED else value

        return template if template.constant else msgspec.structs.replace(template, render=render)

    def key(self, step: str, template: Template) -> Template:
        return self.render(step, template)

    def items(self, step: str, template: Template) -> Template:
        def render(slots: list[Any]) -> Any:
            outcome, noted = self.recall.decided(step, template.render, slots)
            if noted is _MISSING:
                return _given(outcome)
            if type(outcome) is list:
                return outcome
            return [ERASED] * min(noted, PAYLOAD_BYTES_MAX) if type(noted) is int else []

        return template if template.constant else msgspec.structs.replace(template, render=render)

    def time(self, step: str, template: Template) -> Template:
        def render(slots: list[Any]) -> Any:
            outcome, noted = self.recall.decided(step, template.render, slots)
            if noted is _MISSING:
                return _given(outcome)
            # Unknown: due at once, as whatever followed says.
            return noted / 1_000 if type(noted) is int else 0

        return template if template.constant else msgspec.structs.replace(template, render=render)

    def unchanged(self, same: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
        def unchanged(old: Any, new: Any) -> bool:
            outcome, noted = self.recall.decided("", lambda slots: same(slots[0], slots[1]), [old, new])
            return bool(outcome if noted is _MISSING else noted)

        return unchanged


def rebuilt(program: CompiledProgram, asks: Any) -> CompiledProgram:
    """The program with every template and condition exchanged for the one that `asks` makes of it."""
    steps = tuple(
        msgspec.structs.replace(step, action=_action(step, asks), compensation=_compensation(step, asks))
        for step in program.steps
    )
    return msgspec.structs.replace(program, steps=steps, unchanged=asks.unchanged(program.unchanged))


def _compensation(step: CompiledStep, asks: Any) -> Any:
    undo = step.compensation
    return undo if undo is None else msgspec.structs.replace(undo, args=asks.fields(step.id, undo.args))


def _action(step: CompiledStep, asks: Any) -> Any:
    action = step.action
    name = step.id

    def maybe(template: Template | None) -> Template | None:
        return None if template is None else asks.render(name, template)

    if type(action) is ConditionAction:
        return msgspec.structs.replace(action, test=asks.test(name, action.test))
    if type(action) is ToolAction:
        return msgspec.structs.replace(
            action,
            args=asks.fields(name, action.args),
            idempotency_key=None
            if action.idempotency_key is None
            else asks.key(name, action.idempotency_key),
        )
    if isinstance(action, ModelAction):
        return msgspec.structs.replace(
            action,
            prompt=asks.render(name, action.prompt),
            system=maybe(action.system),
            model=maybe(action.model),
            params=None if action.params is None else asks.fields(name, action.params),
        )
    if type(action) is MapAction:
        return msgspec.structs.replace(action, over=asks.items(name, action.over))
    if type(action) is CallAction:
        return msgspec.structs.replace(action, inputs=asks.fields(name, action.inputs))
    if type(action) is WaitAction:
        return msgspec.structs.replace(
            action,
            accept=None if action.accept is None else asks.accept(name, action.accept),
            delay=None if action.delay is None else asks.time(name, action.delay),
            until=None if action.until is None else asks.time(name, action.until),
        )
    return action


# --- what a closed payload is taken for ------------------------------------------------------------------------


def note_asked(asks: Asks, event: ev.ApprovalRequested) -> None:
    asks.pop((event.step, event.item), None)  # the latest stands last
    asks[event.step, event.item] = {"action": event.action, "nonce": event.nonce}


def answered(asks: Asks, event: ev.EventReceived, shape: Any = None) -> dict[str, str]:
    """What an answer that was taken must have named, where it answers to an action: both are facts of the request.
    Where nothing else was noted it is the latest that the event may mean."""
    if type(shape) is list:
        _, step, *item = shape
        return asks[step, item[0] if item else ev.UNSET]
    for (step, place), asked in reversed(asks.items()):
        if event.step in (ev.UNSET, step) and event.item in (ev.UNSET, place):
            return asked
    return {}


def _filled(program: CompiledProgram, event: Any, shape: Any) -> Any:
    """A closed payload in the shape that the kernel expects, every value of it gone."""
    kind = type(event)
    if kind in (ev.RunStarted, ev.ValuesChanged):
        names = program.input_slots if kind is ev.RunStarted else event.names
        known = dict.fromkeys(names) if shape is None else shape
        return {name: ERASED if value is None else value[0] for name, value in known.items()}
    if kind is ev.ChildFinished:
        known = shape or {}
        undone = [{"args": ERASED, **undo} for undo in known.get("undo", ())]
        return {"output": known.get("output", ERASED), "compensations": undone, "message": ERASED}
    if kind in (ev.StepFailed, ev.ModelTurned):
        return _filled_talk(event, shape or {})
    if kind in (ev.CompensationFailed, ev.OutcomeUnknown, ev.ActionProposed):
        return {"message": ERASED}
    if kind is ev.OutcomeResolved and event.resolution == "failed":
        return {"message": ERASED}
    return ERASED


def _filled_event(
    program: CompiledProgram, event: ev.EventReceived, shape: Any, asked: dict[str, str]
) -> Any:
    if type(shape) is list:
        return {"approved": shape[0], **asked}
    if type(shape) is bool:
        return {"approved": shape, **asked}
    if type(shape) is dict:
        return shape["value"]
    if shape is None and ((asked and event.step is not ev.UNSET) or _is_approval(program, event)):
        return {"approved": True, **asked}  # nothing was noted: whatever follows was what a yes leads to
    return ERASED


def _filled_talk(event: Any, shape: dict[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = {"message": ERASED}
    if "feedback" in shape:
        count = _few(shape["feedback"])
        filled["feedback"] = [{"content": ERASED, "role": "user"} for _ in range(count)]
    if type(event) is ev.ModelTurned:
        _few(event.proposals)
        calls = shape.get("calls", [{"name": "", "object": True, "fault": ""}] * event.proposals)
        filled["text"] = ERASED
        filled["calls"] = []
        for call in calls:
            known = {"arguments": {} if call["object"] else ERASED, "id": ERASED, "name": call["name"]}
            filled["calls"].append({**known, "fault": call["fault"]} if call["fault"] else known)
        del filled["message"]
    return filled


def _few(count: int) -> int:
    """A count of what a model has said, which says how much is made of nothing. Raises ValueError for too many."""
    if count > AGENT_CALLS_MAX:
        raise ValueError
    return count


def _is_approval(program: CompiledProgram, event: ev.EventReceived) -> bool:
    for step in program.steps:
        action = step.action
        if type(action) is WaitAction and action.approvers and step.id in (event.name, event.step):
            return True
    return False
