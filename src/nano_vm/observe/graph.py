"""What may follow what in a program, as trajectories see it: over moves, with a start and an end."""

from __future__ import annotations

from nano_vm.program.compiled import END as NO_STEP
from nano_vm.program.compiled import (
    NO_TARGET,
    AgentAction,
    CompiledProgram,
    CompiledStep,
    ConditionAction,
    MapAction,
    ParallelAction,
)

START = "(start)"
END = "(end)"


def successors(program: CompiledProgram) -> dict[str, tuple[str, ...]]:
    """For each activity those that the program's graph lets follow it in a path.

    The lanes of a group stand before it, as they settle. Every step may be the last one (a failure, a budget), and
    follow itself where it may be tried again.
    """
    graph = _dag(program) if program.is_dag else _list(program)
    return {name: tuple(sorted(following)) for name, following in graph.items()}


def _list(program: CompiledProgram) -> dict[str, set[str]]:
    steps = program.steps
    graph: dict[str, set[str]] = {START: _entry(program, program.entry)}
    for step in steps:
        if step.parent >= 0:
            continue
        following = graph.setdefault(step.id, set())
        following.add(END)
        for target in _targets(step):
            following |= _entry(program, target)
        _inside(program, step, graph)
    return graph


def _dag(program: CompiledProgram) -> dict[str, set[str]]:
    """Paths of a DAG are in the order of its ranks: whatever comes later may come next."""
    top = sorted((step for step in program.steps if step.parent < 0), key=lambda step: step.rank)
    graph: dict[str, set[str]] = {START: set()}
    for place, step in enumerate(top):
        later = {END}
        for other in top[place + 1 :]:
            later |= _entry(program, other.index)
        graph[step.id] = later
        graph[START] |= _entry(program, step.index)
        _inside(program, step, graph)
    return graph


def _inside(program: CompiledProgram, step: CompiledStep, graph: dict[str, set[str]]) -> None:
    if step.on_error == "retry" or type(step.action) is AgentAction:
        graph[step.id].add(step.id)
    lanes = _lanes(step)
    for lane in lanes:
        # One lane after the other, in the order they stand in, and then the group.
        graph[program.steps[lane].id] = _entry(program, step.index) | {END}
    for lane in lanes:
        _inside(program, program.steps[lane], graph)


def _targets(step: CompiledStep) -> list[int]:
    action = step.action
    targets = [step.next] if type(action) is not ConditionAction else [action.then, action.otherwise]
    return [target for target in (*targets, step.on_failure) if target != NO_TARGET]


def _entry(program: CompiledProgram, index: int) -> set[str]:
    """What a path may show first when it comes to a step: the step, or one of its lanes."""
    if index == NO_STEP:
        return {END}
    step = program.steps[index]
    found = {step.id}
    for lane in _lanes(step):
        found |= _entry(program, lane)
    return found


def _lanes(step: CompiledStep) -> tuple[int, ...]:
    action = step.action
    if type(action) is ParallelAction or type(action) is AgentAction:
        return action.lanes
    return (action.lane,) if type(action) is MapAction else ()
