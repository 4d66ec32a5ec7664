"""What guards have pinned down where a step is reached, on every way there.

A must-analysis over the compiled graph: a value counts as pinned at a step only when a condition pinned it on all
paths to the step and nothing bound it anew since. At run time the kernel keeps the same account for the one path that
is taken (`kernel.labels.pin`), so what is pinned here is pinned there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from nano_vm.program.compiled import CompiledProgram, CompiledStep, ConditionAction, MapAction, ParallelAction

Address: TypeAlias = tuple[int, tuple[str, ...]]
Pins: TypeAlias = frozenset[Address]

NOTHING: Pins = frozenset()


def pins_at(program: CompiledProgram) -> list[Pins]:
    """For each step what is pinned when it is reached. Lanes have what their group has, but for what its lanes bind."""
    found: list[Pins | None] = [None] * len(program.steps)
    if any(type(step.action) is ConditionAction and _pins(step.action) for step in program.steps):
        for entry in program.roots if program.is_dag else (program.entry,):
            found[entry] = NOTHING
        if program.is_dag:
            _along_dependencies(program, found)
        else:
            _along_paths(program, found)
    pins = [NOTHING if one is None else one for one in found]
    for step in program.steps:
        if step.parent >= 0:
            pins[step.index] = _without(pins[step.parent], _bound(program, program.steps[step.parent]))
    return pins


def after_success(program: CompiledProgram, step: CompiledStep, pins: Pins) -> Pins:
    """What is still pinned when a step has its result: its own names mean something new."""
    return _without(pins, _bound(program, step))


def covers(pins: Pins, address: Address) -> bool:
    """Whether a value, or something that it is part of, is pinned."""
    slot, path = address
    return any((slot, path[:length]) in pins for length in range(len(path) + 1))


def _pins(action: ConditionAction) -> bool:
    return bool(action.pins_then or action.pins_otherwise)


def _along_paths(program: CompiledProgram, found: list[Pins | None]) -> None:
    steps = program.steps
    queue = deque([program.entry])
    queued = {program.entry}
    while queue:
        index = queue.popleft()
        queued.discard(index)
        pins = found[index]
        assert pins is not None
        for target, arriving in _onwards(program, steps[index], pins):
            if target < 0:
                continue
            known = found[target]
            together = arriving if known is None else known & arriving
            if known is None or together != known:
                found[target] = together
                if target not in queued:
                    queued.add(target)
                    queue.append(target)


def _onwards(program: CompiledProgram, step: CompiledStep, pins: Pins) -> Iterator[tuple[int, Pins]]:
    action = step.action
    if type(action) is ConditionAction:
        yield action.then, pins.union(action.pins_then)
        yield action.otherwise, pins.union(action.pins_otherwise)
        return
    rest = after_success(program, step, pins)
    yield step.next, rest
    yield step.on_failure, rest


def _along_dependencies(program: CompiledProgram, found: list[Pins | None]) -> None:
    """A step runs when one of its dependencies was taken, and nobody knows which. Nothing is bound twice."""
    for step in sorted((step for step in program.steps if step.parent < 0), key=lambda step: step.rank):
        pins = found[step.index]
        if pins is None:
            pins = found[step.index] = NOTHING
        action = step.action
        for edge in step.edges:
            arriving = pins
            if type(action) is ConditionAction and edge.when == "then":
                arriving = pins.union(action.pins_then)
            elif type(action) is ConditionAction and edge.when == "otherwise":
                arriving = pins.union(action.pins_otherwise)
            known = found[edge.target]
            found[edge.target] = arriving if known is None else known & arriving


def _bound(program: CompiledProgram, step: CompiledStep) -> set[int]:
    slots = {step.output_slot, step.key_slot, step.error_slot}
    action = step.action
    lanes = (
        action.lanes
        if type(action) is ParallelAction
        else (action.lane,)
        if type(action) is MapAction
        else ()
    )
    for lane in lanes:
        slots |= _bound(program, program.steps[lane])
    return slots


def _without(pins: Pins, slots: set[int]) -> Pins:
    if not any(slot in slots for slot, _ in pins):
        return pins
    return frozenset(address for address in pins if address[0] not in slots)
