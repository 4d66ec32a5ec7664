"""What a transition vector says of a state: no layout of ours, only what the specification names."""

from __future__ import annotations

from typing import Any

from nano_vm import canonical
from nano_vm.compiler import compile_program
from nano_vm.expr.reference import UNSET
from nano_vm.kernel.normalize import normalize_event
from nano_vm.kernel.state import Rejection, State
from nano_vm.kernel.transition import apply, decide, waiting
from nano_vm.program.compiled import FIRST_FREE_SLOT, CompiledProgram
from nano_vm.program.model import Program


def compile_vector(program: dict[str, Any]) -> CompiledProgram:
    return compile_program(Program.from_dict(program))


def view(program: CompiledProgram, state: State, kind: str, event: dict[str, Any]) -> dict[str, Any]:
    """Apply one event of a vector; the members of the vector that say what it leads to.

    `RunStarted` names the program by its hash, which is no part of a vector.
    """
    if kind == "RunStarted":
        event = {**event, "program": program.hash}
    typed = normalize_event(kind, event)
    result = typed if type(typed) is Rejection else apply(program, state, typed)
    if type(result) is Rejection:
        return {"rejection": result.code}
    settled = []
    for each in state.settled:
        record: list[Any] = [program.steps[each.step].id, each.occurrence, each.status.value]
        settled.append([*record, each.item] if each.item >= 0 else record)
    return {
        "status": state.status.value,
        "settled": settled,
        "verdicts": list(state.verdicts),
        "commands": [command.id for command in decide(program, state)],
        "waiting": [wait.to_dict() for wait in waiting(program, state)],
        "spent": {"steps": state.steps, "tokens": state.tokens, "cost_nanousd": state.cost_nanousd},
        "values": canonical.digest_value(values(program, state)),
    }


def values(program: CompiledProgram, state: State) -> dict[str, Any]:
    """The values bound so far, by name: inputs, `step.output`, output keys, `step.error`."""
    return {
        program.slots[slot]: value
        for slot, value in enumerate(state.slots)
        if slot >= FIRST_FREE_SLOT and value is not UNSET
    }
