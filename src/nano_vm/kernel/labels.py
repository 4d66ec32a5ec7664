"""Labels in a run: where each comes from, and how values hand them on (`spec/labels.md`).

A run tracks labels when its program declares any, or when its `RunStarted` names the feature `labels`. In every other
run `State.labels` is None, and nothing here is called.

Invariant: a slot's label has every bit that anything had which its value was made of, but for those that a gate, a
guard or a tool's declaration took away.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET as ABSENT

from nano_vm.kernel.events import EventReceived, RunStarted
from nano_vm.kernel.state import Activity, State
from nano_vm.program.compiled import (
    CallAction,
    CompiledProgram,
    CompiledStep,
    Kind,
    ModelAction,
    Refs,
    Template,
    ToolAction,
    WaitAction,
)
from nano_vm.program.labels import PRIVATE, SEALED, UNTRUSTED, of_output

FEATURE = "labels"


def first_labels(program: CompiledProgram, event: RunStarted) -> list[int] | None:
    """The labels of the slots when a run starts; None when it tracks none.

    What a parent hands over keeps the label it had there. It may have any: whether an input is private or secret its
    own program says as well.
    """
    tracked = event.features is not ABSENT and FEATURE in event.features
    if not program.labelled and not tracked:
        return None
    given = None if event.labels is ABSENT else event.labels
    labels = [0] * len(program.slots)
    for name, slot in program.input_slots.items():
        own = program.input_labels.get(name, UNTRUSTED)
        labels[slot] = own if given is None else own & SEALED | given.get(name, 0)
    return labels


def inputs_label(program: CompiledProgram, labels: list[int]) -> int:
    """The label of all inputs together. That of an input counts whether it is given or not: what is stored of a run
    does not depend on what has been erased."""
    label = 0
    for slot in program.input_slots.values():
        label |= labels[slot]
    return label


def label_of(state: State, refs: Refs) -> int:
    """The label of what is rendered from these references."""
    labels = state.labels
    assert labels is not None
    label = 0
    for slot, path in refs:
        bits = labels[slot]
        if bits & UNTRUSTED and slot in state.pins and _is_pinned(state.pins[slot], path):
            bits ^= UNTRUSTED
        label |= bits
    return label


def _is_pinned(paths: list[tuple[str, ...]], path: tuple[str, ...]) -> bool:
    """What is part of a pinned value is pinned."""
    return any(path[: len(pinned)] == pinned for pinned in paths)


def pin(state: State, refs: Refs) -> None:
    """A guard has pinned these values down: until they are bound anew, nobody else's words are in them. (Of what holds
    none nothing is noted.)"""
    labels = state.labels
    for slot, path in refs:
        if not labels[slot] & UNTRUSTED:  # type: ignore[index]
            continue
        paths = state.pins.setdefault(slot, [])
        if path not in paths:
            paths.append(path)


def bind(state: State, slot: int, label: int) -> None:
    """A slot has a new value."""
    assert state.labels is not None
    state.labels[slot] = label
    if state.pins:
        state.pins.pop(slot, None)


def part_labels(state: State, template: Template) -> dict[str, int] | None:
    """The labels of an object's members, where they are not trusted."""
    found = {}
    for name, refs in template.parts:
        label = label_of(state, refs)
        if label:
            found[name] = label
    if not template.parts and template.refs:
        # The object comes out of one reference: each of its members may have come from anywhere.
        label = label_of(state, template.refs)
        return {"": label} if label else None
    return found or None


def note_request(state: State, step: CompiledStep, activity: Activity) -> None:
    """Keep the labels of what has just been rendered for an activity, for as long as that is what it works with."""
    action = step.action
    if type(action) is ToolAction:
        activity.label, activity.labels = argument_labels(state, action)
    elif isinstance(action, ModelAction):
        activity.label = request_label(state, action)
    elif type(action) is CallAction:
        activity.label = label_of(state, action.inputs.refs)
        activity.labels = part_labels(state, action.inputs)


def request_label(state: State, action: ModelAction) -> int:
    """The label of all that a model is asked with."""
    label = 0
    for template in templates_of(action):
        label |= label_of(state, template.refs)
    return label


def templates_of(action: ModelAction) -> list[Template]:
    """What a model is asked with."""
    return [
        template
        for template in (action.prompt, action.system, action.model, action.params)
        if template is not None
    ]


def argument_labels(state: State, action: ToolAction) -> tuple[int, dict[str, int] | None]:
    """The label of all arguments together, and of each by name, where they are not trusted."""
    # One pass over the arguments: nearly every step of a run that tracks labels comes here.
    labels, pins, together, found = state.labels, state.pins, 0, None
    for name, refs in action.args.parts:
        label = 0
        for slot, _ in refs:
            label |= labels[slot]  # type: ignore[index]
        if label:
            if pins and label & UNTRUSTED:
                label = label_of(state, refs)
                if not label:
                    continue
            together |= label
            if found is None:
                found = {name: label}
            else:
                found[name] = label
    return together, found


def output_label(step: CompiledStep, activity: Activity, substituted: bool = False) -> int:
    """The label of what a step yields. A value that stands in for it is the author's own, and never counts as what the
    step would have yielded."""
    if substituted:
        return UNTRUSTED | (step.adds & PRIVATE)
    return activity.label & step.keeps | step.adds


def take_turn(state: State, step: CompiledStep, activity: Activity) -> None:
    """The model of an agent has answered: from here on its own words are part of what it is asked with."""
    activity.label |= output_label(step, activity)
    state.label = UNTRUSTED | output_label(step, activity)  # no gate has seen these words


def note_action(state: State, agent: CompiledStep, conversing: Activity, action: Activity) -> None:
    """Nothing in a call that a model proposes can be trusted, and it may hold what the conversation held."""
    action.label = UNTRUSTED | output_label(agent, conversing)
    action.labels = {"": action.label}


def failure_label(step: CompiledStep, activity: Activity) -> int:
    """The label of what is said about a failure: it may quote what was sent, and what came back."""
    return UNTRUSTED | (activity.label | step.adds) & SEALED


def take_output(
    state: State, step: CompiledStep, activity: Activity, declared: Any, substituted: bool = False
) -> None:
    """An answer has come: what its tool declares of it holds from here on."""
    if step.kind is Kind.TOOL and declared is not ABSENT and declared:
        activity.label = of_output(activity.label, declared)
    state.label = output_label(step, activity, substituted)


def take_answer(state: State, step: CompiledStep, activity: Activity) -> None:
    """An event has come for a wait, or for a tool that answered PENDING: then it is somebody else's word, unless the
    tool vouches for it."""
    if step.kind is Kind.TOOL:
        activity.label = of_output(activity.label, activity.declared or None)
        if activity.declared != "trusted":
            activity.label |= UNTRUSTED
    state.label = output_label(step, activity)


def letter_label(program: CompiledProgram, event: EventReceived) -> int:
    """The label of an event that is kept until a wait asks for it, or refused: that of whatever it may be for."""
    label = UNTRUSTED
    for step in program.steps:
        action = step.action
        if type(action) is WaitAction:
            fits = event.name is ABSENT or (action.event or step.id) == event.name
        else:
            fits = event.step is not ABSENT and event.step == step.id
        if fits:
            label |= step.adds
    return label
