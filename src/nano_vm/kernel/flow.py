"""How a run moves through its graph: entering steps until something has to be awaited.

Moving on is iterative - a step that settles puts what follows on `todo` - so neither a long chain of
conditions nor a long chain of failures deepens the stack.
"""

from __future__ import annotations

from nano_vm.errors import NanoVMError
from nano_vm.kernel.dag import settle_edges
from nano_vm.kernel.ending import admits_step, end
from nano_vm.kernel.groups import look_after, open_group
from nano_vm.kernel.labels import pin
from nano_vm.kernel.opening import open_activity
from nano_vm.kernel.settle import mark
from nano_vm.kernel.state import RunStatus, Settled, Stage, State, StepStatus
from nano_vm.program.compiled import END, NO_TARGET, CompiledProgram, CompiledStep, ConditionAction, Kind

_GOING = Stage.GOING
_SUCCESS, _FAILED = StepStatus.SUCCESS, StepStatus.FAILED
_CONDITION, _PARALLEL, _MAP = Kind.CONDITION, Kind.PARALLEL, Kind.MAP
_PASSED_MAX = 256


def move(program: CompiledProgram, state: State, todo: list[int]) -> None:
    """Go on with what a transition has put on `todo`, until something has to be awaited."""
    place = 0
    while place < len(todo):
        if state.stage is not _GOING:
            return
        index = todo[place]
        place += 1
        if index >= 0:
            _enter(program, state, program.steps[index], todo)
        elif index == END:
            end(program, state, RunStatus.SUCCESS)
            return
        else:
            look_after(program, state, mark(index), todo)
        if place > _PASSED_MAX:
            # A long chain of conditions must not keep what it has passed.
            del todo[:place]
            place = 0
    if program.is_dag and not state.active and state.stage is _GOING:
        # A DAG is done when nothing is in progress any more.
        end(program, state, RunStatus.SUCCESS)


def _enter(program: CompiledProgram, state: State, step: CompiledStep, todo: list[int]) -> None:
    metered = state.tokens_max or state.cost_nanousd_max or state.duration_ms_max or state.stalled_steps_max
    if (metered or state.steps + state.reserved_steps >= state.steps_max) and not admits_step(program, state):
        return
    index = step.index
    occurrence = state.occurrences[index] + 1
    state.occurrences[index] = occurrence
    state.steps += 1
    kind = step.kind
    if kind is _CONDITION:
        _branch(program, state, step, occurrence, todo)
    elif kind is _PARALLEL or kind is _MAP:
        open_group(program, state, step, occurrence, todo)
    else:
        open_activity(program, state, step, occurrence, -1, 1, todo)


def _branch(
    program: CompiledProgram, state: State, step: CompiledStep, occurrence: int, todo: list[int]
) -> None:
    action = step.action
    assert type(action) is ConditionAction
    try:
        verdict = action.test(state.slots)
    except NanoVMError as error:
        _condition_failed(program, state, step, occurrence, error.code, error.message)
        return
    target = action.then if verdict else action.otherwise
    if target == NO_TARGET:
        message = f"there is no `{'then' if verdict else 'otherwise'}`"
        _condition_failed(program, state, step, occurrence, "NO_BRANCH", message)
        return
    if state.labels is not None:
        pin(state, action.pins_then if verdict else action.pins_otherwise)
    state.verdicts.append([step.id, occurrence, verdict])
    state.settled.append(Settled(step.index, occurrence, -1, _SUCCESS, verdict, "", 1, state.now_ms, False))
    if program.is_dag:
        settle_edges(program, state, step, "then" if verdict else "otherwise", todo)
    else:
        todo.append(target)


def _condition_failed(
    program: CompiledProgram, state: State, step: CompiledStep, occurrence: int, code: str, message: str
) -> None:
    state.verdicts.append([step.id, occurrence, code])
    state.settled.append(Settled(step.index, occurrence, -1, _FAILED, None, code, 1, state.now_ms, False))
    error = {"type": code, "message": message, "attempts": 1, "step": step.id}
    end(program, state, RunStatus.FAILED, error)
