"""Taking notes of a journal before payloads of it are erased: what a fold has to be told once they are gone (P7).

`record` folds the journal once more while it is readable, with a program that notes what its templates and conditions
come to. `nano_vm.journal.recall` says how notes are written, and gives them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Entry, is_closed, open_events, read_facts
from nano_vm.journal.recall import Asks, Notes, Recall, answered, note_asked, rebuilt
from nano_vm.kernel import events as ev
from nano_vm.kernel.instants import instant
from nano_vm.kernel.state import State
from nano_vm.kernel.transition import apply
from nano_vm.program.compiled import AgentAction, CompiledProgram, Template
from nano_vm.program.labels import SEALED


class _Taker:
    """Takes down what a readable journal's payloads decide, entry by entry."""

    def __init__(self) -> None:
        self.decisions: list[Any] = []

    def _note(
        self, ask: Callable[[list[Any]], Any], told: Callable[[Any], Any]
    ) -> Callable[[list[Any]], Any]:
        def asked(slots: list[Any]) -> Any:
            try:
                value = ask(slots)
            except NanoVMError as error:
                self.decisions.append(error.code)
                raise
            self.decisions.append(told(value))
            return value

        return asked

    def _template(self, template: Template, told: Callable[[Any], Any]) -> Template:
        if template.constant:
            return template
        return msgspec.structs.replace(template, render=self._note(template.render, told))

    def test(self, step: str, test: Any) -> Any:
        return test  # its verdict is a fact

    def accept(self, step: str, test: Any) -> Any:
        return self._note(test, bool)

    def render(self, step: str, template: Template) -> Template:
        return self._template(template, lambda value: None)

    def fields(self, step: str, template: Template) -> Template:
        return self._template(template, lambda value: None if type(value) is dict else "BAD_CALL_INPUTS")

    def key(self, step: str, template: Template) -> Template:
        return self._template(
            template,
            lambda value: None if type(value) in (str, int, float) and value != "" else "BAD_IDEMPOTENCY_KEY",
        )

    def items(self, step: str, template: Template) -> Template:
        return self._template(template, lambda value: len(value) if type(value) is list else "NOT_A_LIST")

    def time(self, step: str, template: Template) -> Template:
        return self._template(template, _moment)

    def unchanged(self, same: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
        asked = self._note(lambda pair: same(pair[0], pair[1]), bool)
        return lambda old, new: bool(asked([old, new]))


def record(program: CompiledProgram, run_id: str, entries: Sequence[Entry]) -> Notes:
    """What a fold of this journal will have to be told once its payloads are gone: by sequence number. Holds counts,
    times, booleans and codes, and values that are neither private nor secret.

    Raises:
        VerificationError: JOURNAL_MALFORMED. A journal that is closed in part, or that the kernel does not take, is
            noted as far as that goes.
    """
    taker = _Taker()
    noting = rebuilt(program, taker)
    before = Recall(program, entries)
    state = State(run=run_id)
    # Events that a wait may take whose output is not private: payload, place.
    kept: list[tuple[Any, str]] = []
    notes: Notes = dict(before.notes)
    asks: Asks = {}
    for entry in entries:
        facts = read_facts(entry)
        if is_closed(entry, facts):
            return notes
        taker.decisions = []
        shape = None
        for event in open_events(entry, facts):
            if type(apply(noting, state, event)) is not State:
                return notes
            if type(event) is ev.ApprovalRequested:
                note_asked(asks, event)
            if facts.key is not None and event.type == facts.type:
                shape = _shape(program, state, asks, event)
                if type(event) is ev.EventReceived:
                    kept.append((event.payload, str(entry.seq)))
            for settled in state.settled if kept else ():
                for payload, place in kept:
                    # The same object: what was bound is the event's data, not merely equal to it.
                    if settled.output is payload and not settled.label & SEALED:
                        notes[place] = {**notes.get(place, {}), "p": {"value": payload}}
        note: dict[str, Any] = {}
        if any(decision is not None for decision in taker.decisions):
            note["d"] = taker.decisions
        if shape is not None:
            note["p"] = shape
        if note:
            notes[str(entry.seq)] = {**note, **notes.get(str(entry.seq), {})}
    return notes


def _moment(value: Any) -> Any:
    """A time in whole milliseconds: of a delay, or since the epoch."""
    try:
        return instant(value)
    except NanoVMError as error:
        return error.code


def _answer(asks: Asks, event: ev.EventReceived) -> Any:
    """What is noted of an approval: the answer; and what it was about, where another one would be taken for that."""
    payload: dict[str, Any] = event.payload
    if payload.get("nonce") not in (None, answered(asks, event).get("nonce")):
        for (step, item), asked in asks.items():
            if asked["nonce"] == payload["nonce"]:
                return [payload["approved"], step, *(() if item is ev.UNSET else (item,))]
    return payload["approved"]


def _shape(program: CompiledProgram, state: State, asks: Asks, event: Any) -> Any:
    """What the kernel reads of a payload's shape; None when it reads nothing."""
    payload = event.payload
    kind = type(event)
    if kind is ev.RunStarted and type(payload) is dict:
        return {
            name: _open_value(state, program.input_slots.get(name), payload[name]) for name in sorted(payload)
        }
    if kind is ev.ValuesChanged and type(payload) is dict:
        slots = {name: slot for slot, name in enumerate(program.slots)}
        return {name: _open_value(state, slots.get(name), payload[name]) for name in sorted(payload)}
    if type(payload) is dict and kind in (ev.StepFailed, ev.ModelTurned):
        return _shape_of_talk(program, event, payload)
    if kind is ev.EventReceived and type(payload) is dict and type(payload.get("approved")) is bool:
        return _answer(asks, event)
    if kind is ev.ChildFinished and type(payload) is dict:
        found = payload.get("compensations")
        undone = found if type(found) is list else []
        shape = {"undo": [_open_undo(undo) for undo in undone]}
        label = 0 if event.output_label is ev.UNSET else event.output_label
        return shape if label & SEALED else {**shape, "output": payload.get("output")}
    return None


def _open_undo(undo: dict[str, Any]) -> dict[str, Any]:
    """How a child's step is undone, with what is neither private nor secret of it: policies have decided about that."""
    if not undo.get("label", 0) & SEALED:
        return undo
    return {name: value for name, value in undo.items() if name != "args"}


def _open_value(state: State, slot: int | None, value: Any) -> Any:
    """A value that is neither private nor secret, in a list of its own; else nothing of it."""
    labels = state.labels
    if slot is None or labels is None or labels[slot] & SEALED:
        return None
    return [value]


def _shape_of_talk(program: CompiledProgram, event: Any, payload: dict[str, Any]) -> Any:
    """How a conversation with a model went on: how many messages were added, and which of its tools it named."""
    feedback = payload.get("feedback")
    shape: dict[str, Any] = {"feedback": len(feedback)} if type(feedback) is list else {}
    if type(event) is ev.ModelTurned:
        # A name that is none of the agent's tools is the model's own text.
        known = {
            name
            for step in program.steps
            if isinstance(step.action, AgentAction)
            for name in step.action.offered
        }
        shape["calls"] = [
            {
                "name": call["name"] if call["name"] in known else "",
                "object": type(call["arguments"]) is dict,
                "fault": call.get("fault", ""),
            }
            for call in payload["calls"]
        ]
    return shape or None
