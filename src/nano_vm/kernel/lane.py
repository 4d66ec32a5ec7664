"""The lane: the transitions that nearly every run consists of, without the generality it does not need.

A plain step - a tool at the top level of a list program, without a compensation - that succeeds at its first attempt
moves the run on to the next plain step, through conditions. `begin` and `advance` take these transitions; they are
`apply` of `StepStarted` and `StepSucceeded`, and nothing else: a property test drives random programs both ways and
compares the snapshots. Whatever is not plain is left to the general functions, from the same state.
"""

from __future__ import annotations

from typing import Any

from nano_vm.errors import NanoVMError
from nano_vm.kernel.activity import remove
from nano_vm.kernel.flow import move
from nano_vm.kernel.opening import prepare
from nano_vm.kernel.settle import end_here
from nano_vm.kernel.state import Activity, Phase, Stage, State
from nano_vm.program.compiled import CompiledProgram, CompiledStep, Kind

_READY, _STARTED = Phase.READY, Phase.STARTED
_TOOL, _CONDITION = Kind.TOOL, Kind.CONDITION
_GOING = Stage.GOING


def lane(program: CompiledProgram, state: State) -> Activity | None:
    """The run's only activity, if it is a READY tool at its first attempt and no budget but that of steps has to be
    looked at between steps; else None."""
    active = state.active
    if len(active) != 1 or program.is_dag or state.stage is not _GOING:
        return None
    (activity,) = active.values()
    if activity.phase is not _READY or activity.step < 0 or activity.attempt != 1 or activity.failures:
        return None
    if program.steps[activity.step].kind is not _TOOL or activity.item >= 0:
        return None
    if state.tokens_max or state.cost_nanousd_max or state.duration_ms_max or state.stalled_steps_max:
        return None
    return activity


def is_plain(step: CompiledStep) -> bool:
    """Whether `advance` may take the step's success."""
    return step.parent < 0 and step.compensation is None


def begin(state: State, activity: Activity, effect: str) -> None:
    """`apply` of StepStarted, in the instant the step was reached."""
    activity.effect = effect
    activity.phase = _STARTED
    del state.ready[activity.step]
    state.seq += 1


def advance(
    program: CompiledProgram, state: State, activity: Activity, step: CompiledStep, value: Any, at_ms: int
) -> bool:
    """`apply` of a plain step's StepSucceeded. Returns whether `activity` now stands for another READY tool."""
    if at_ms > state.now_ms:
        state.now_ms = at_ms
    slots = state.slots
    slots[step.output_slot] = value
    if step.key_slot >= 0:
        slots[step.key_slot] = value
    if step.error_slot >= 0:
        slots[step.error_slot] = None
    state.last_output = value
    state.seq += 1
    if state.settled:
        state.settled = []
    if state.verdicts:
        state.verdicts = []
    if step.is_terminal:
        remove(state, activity)
        end_here(program, state, step)
        return False
    steps = program.steps
    index = step.next
    while index >= 0 and state.steps < state.steps_max:
        coming = steps[index]
        action: Any = coming.action
        kind = coming.kind
        if kind is _TOOL:
            # The settled activity stands for the step that is entered: it holds nothing of an attempt that
            # succeeded at once.
            if activity.phase is _READY:
                del state.ready[step.index]
            state.occurrences[index] = activity.occurrence = state.occurrences[index] + 1
            state.steps += 1
            activity.step = index
            activity.entered_ms = state.now_ms
            activity.effect = ""
            activity.business_key = None
            activity.phase = _READY
            active = state.active
            del active[step.index]
            active[index] = activity
            state.ready[index] = None
            if action.idempotency_key is None:
                try:
                    activity.request = action.args.render(slots)
                    return True
                except NanoVMError:
                    pass  # the general path says what went wrong
            todo: list[int] = []
            prepare(program, state, coming, activity, todo)
            move(program, state, todo)
            return lane(program, state) is activity
        if kind is not _CONDITION:
            break
        try:
            verdict = action.test(slots)
        except NanoVMError:
            break
        target = action.then if verdict else action.otherwise
        if target < 0:
            break
        state.occurrences[index] = occurrence = state.occurrences[index] + 1
        state.steps += 1
        state.verdicts.append([coming.id, occurrence, verdict])
        index = target
    remove(state, activity)
    move(program, state, [index])
    return False
