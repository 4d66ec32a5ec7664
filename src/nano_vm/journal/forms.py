"""What events may say: bounds of their facts, and what a run may begin with.

The kernel takes events that have been normalised before, by whoever drives it. Whoever writes whole journals need not
have done so; a verifier looks at what normalising would have refused.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import VerificationError
from nano_vm.expr.reference import ERASED
from nano_vm.journal.entry import Entry
from nano_vm.kernel.decide import child_run_id
from nano_vm.kernel.events import (
    ChildSuspended,
    CompensationFailed,
    CompensationStarted,
    Event,
    OutcomeResolved,
    OutcomeUnknown,
    RunStarted,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from nano_vm.kernel.limits import TEXT_CHARS_MAX
from nano_vm.kernel.normalize import fault_of
from nano_vm.kernel.state import State, Waiting
from nano_vm.program.compiled import CompiledProgram, ModelAction
from nano_vm.program.labels import ALL
from nano_vm.program.schema_faults import faults

# Of these most journals have many: nothing but numbers below 0 is looked for in them.
_FREQUENT = frozenset({"ModelTurned", "PolicyDecided", "StepFailed", "StepStarted", "StepSucceeded"})
_BUDGETS = frozenset({"cost_nanousd", "duration_ms", "steps", "tokens"})
_EFFECTS = frozenset(
    {"idempotent", "irreversible", "keyed", "reconcilable", "transactional"}
)  # that need an intent
_ALL_EFFECTS = _EFFECTS | {"pure"}  # what is undone has an intent, whatever undoes it
_DRAWS = 1_000_000
MODEL = "model"
_LINK = frozenset({"occurrence", "run", "step"})


def check_form(program: CompiledProgram, state: State, entry: Entry, event: Event) -> None:
    """Hold an event of an entry against what its facts may be.

    Raises:
        VerificationError: REPLAY_MISMATCH (facts: `seq`, `code` MALFORMED).
    """
    fault = ""
    if event.type not in _FREQUENT or b":-" in entry.facts:
        fault = fault_of(event)
    if not fault:
        fault = _fault(program, state, event)
    if fault:
        raise VerificationError(
            "REPLAY_MISMATCH",
            f"entry {entry.seq}: no {event.type} says this: {fault}",
            facts={"seq": entry.seq, "code": "MALFORMED"},
        )


def _fault(program: CompiledProgram, state: State, event: Event) -> str:
    match event:
        case StepSucceeded():
            return _answer_fault(program, state, event)
        case StepStarted():
            return _intent_fault(program, event)
        case RunStarted():
            return _start_fault(program, state.run, event)
        case CompensationStarted():
            return (
                ""
                if event.effect is UNSET or event.effect in _ALL_EFFECTS
                else "no tool has this effect class"
            )
        case CompensationFailed():
            return "" if 0 <= event.draw < _DRAWS else "a draw is beyond its range"
        case StepFailed():
            return "" if len(event.error) <= TEXT_CHARS_MAX else "an error's name is short"
        case OutcomeUnknown():
            # A tool that knows that it does not know says so by a code of its own.
            return "" if len(event.reason) <= TEXT_CHARS_MAX else "a reason's name is short"
        case OutcomeResolved():
            return _resolution_fault(event)
        case ChildSuspended():
            return "" if all(map(_is_wait, event.waits)) else "nobody waits for this"
        case _:
            return ""


def _answer_fault(program: CompiledProgram, state: State, event: StepSucceeded) -> str:
    """A model's answer has passed the gates of its step. (The kernel looks at allowed outputs. Whoever forks a run may
    have given a step another result.)"""
    index = program.step_index.get(event.step)
    action = None if index is None else program.steps[index].action
    if not isinstance(action, ModelAction) or event.substituted is True or state.seq < state.fork_seq:
        return ""
    answer = None if event.payload is UNSET else event.payload
    return "" if admits(action, answer) else "its step does not admit the answer"


def admits(action: ModelAction, answer: Any) -> bool:
    """Whether a model's answer may be the output of its step."""
    if answer is ERASED or action.allowed_outputs:
        return True
    if action.output_schema is None:
        return type(answer) is str
    return not faults(canonical.encode(action.output_schema), answer)


def _inputs_fault(program: CompiledProgram, inputs: Any) -> str:
    """The inputs are those that the program declares."""
    if type(inputs) is not dict or any(value is ERASED for value in inputs.values()):
        return ""
    if any(name not in inputs and name not in program.optional_inputs for name in program.input_slots):
        return "an input is missing"
    schema = program.inputs_schema
    if schema is None:
        return ""
    fits = inputs.keys() <= program.input_slots.keys() and not faults(canonical.encode(schema), inputs)
    return "" if fits else "the inputs are not those that the program declares"


def _intent_fault(program: CompiledProgram, event: StepStarted) -> str:
    if not is_effect(program, event.step, event.effect):
        return "it is dispatched under another effect class"
    if event.opens is not UNSET and (event.effect == MODEL or not event.opens):
        return "only tools are given secrets"
    return ""


def is_effect(program: CompiledProgram, step_id: str, effect: object) -> bool:
    """Whether attempts of the step can have been dispatched under this effect class. (Where none is named nothing says
    how it may be settled.)"""
    index = program.step_index.get(step_id)
    if index is None or effect is UNSET:
        return True  # the kernel refuses it
    if isinstance(program.steps[index].action, ModelAction):
        return effect == MODEL
    return effect in _EFFECTS


def _resolution_fault(event: OutcomeResolved) -> str:
    if event.by == "contract" and event.resolution != "repeat":
        return "a contract says nothing of what happened"
    if event.by != "operator" and event.principal is not UNSET:
        return "somebody stands for what nobody said"
    return ""


def _is_wait(wait: dict[str, Any]) -> bool:
    """Whether this is what `Waiting.to_dict` makes."""
    try:
        return msgspec.convert(wait, _Wait, strict=True).to_dict() == wait
    except msgspec.ValidationError:
        return False


class _Wait(Waiting, frozen=True, forbid_unknown_fields=True):
    """A wait of a child as its parent has been told of it."""


def _start_fault(program: CompiledProgram, run_id: str, event: RunStarted) -> str:
    """What only a child is given is given to a child, of the run that its id names. (A fork may be one of a child.)"""
    if event.forked is UNSET:
        fault = _inputs_fault(program, {} if event.payload is UNSET else event.payload)
        if fault:
            return fault
    return _inheritance_fault(program, run_id, event) or _names_fault(program, event)


def _inheritance_fault(program: CompiledProgram, run_id: str, event: RunStarted) -> str:
    inherited = (event.budgets, event.depth, event.labels)
    if event.parent is UNSET:
        if event.forked is UNSET and any(one is not UNSET for one in inherited):
            return "a run that nobody called has inherited nothing"
    elif event.forked is not UNSET or not is_child(run_id, event.parent):
        return "the run is no child of the run that it names"
    elif event.budgets is UNSET or event.depth is UNSET or event.depth < 1:
        return "a child is given a budget and a depth"
    if event.budgets is not UNSET and not event.budgets.keys() <= _BUDGETS:
        return "there are other budgets than these"
    if event.labels is not UNSET and not all(
        0 < label <= ALL and name in program.input_slots for name, label in event.labels.items()
    ):
        return "the labels are those of inputs"
    return ""


def _names_fault(program: CompiledProgram, event: RunStarted) -> str:
    features = None if event.features is UNSET else event.features
    if features is not None and (not features or len(set(features)) != len(features)):
        return "the features are named once each"
    is_first = event.parent is UNSET and event.forked is UNSET
    if event.programs is not UNSET and is_first and not program.calls:
        return "it calls no program"
    if event.forked is not UNSET and not _is_fork(event.forked):
        return "the run that it was forked from is not named"
    return ""


def is_child(run: str, parent: dict[str, Any]) -> bool:
    """Whether a run's id is one that this run, step and occurrence give their children."""
    of, step, occurrence, item = (parent.get(name) for name in ("run", "step", "occurrence", "item"))
    if not _LINK <= parent.keys() <= _LINK | {"item"} or type(of) is not str or type(step) is not str:
        return False
    if type(occurrence) is not int or ("item" in parent and (type(item) is not int or item < 0)):
        return False
    way, _, attempt = run.rpartition(".")
    own = child_run_id(of, step, occurrence, item if type(item) is int else -1, 1)
    return attempt.isdecimal() and f"{way}.1" == own


def _is_fork(forked: dict[str, Any]) -> bool:
    before = forked.get("before", [])
    texts = [forked.get("run"), forked.get("head"), *(before if type(before) is list else [None])]
    keys = {"head", "run", "seq"}
    return keys <= forked.keys() <= keys | {"before"} and all(type(text) is str and text for text in texts)
