"""What a parent is told of the end of a child: a function of the child's program and state alone, so that whoever has
both journals can hold one against the other."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

import msgspec

from nano_vm.errors import NanoVMError
from nano_vm.kernel.labels import label_of
from nano_vm.kernel.state import RunStatus, State, Undo
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.labels import SEALED, UNTRUSTED


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run, as the `ChildFinished` of its parent has it: `details` are the payload, `output_label` and
    `undo_label` None where the child tracks no labels."""

    status: str
    steps: int
    tokens: int
    cost_nanousd: int
    details: dict[str, Any]
    output_label: int | None
    undo_label: int | None


def report_of(program: CompiledProgram, state: State) -> Report:
    """The report of a run that has ended."""
    succeeded = state.status == RunStatus.SUCCESS
    undo = state.undo if succeeded else []
    details: dict[str, Any] = {
        "output": _output(program, state),
        "compensations": [_undo(one) for one in undo],
    }
    if not succeeded:
        details["message"] = _why(state)
    tracks = state.labels is not None
    return Report(
        status=state.ending,
        steps=state.steps,
        tokens=state.tokens,
        cost_nanousd=state.cost_nanousd,
        details=details,
        output_label=_output_label(program, state) if tracks else None,
        undo_label=reduce(or_, (one.label for one in undo), 0) if tracks else None,
    )


def _undo(entry: Undo) -> dict[str, Any]:
    undo: dict[str, Any] = msgspec.to_builtins(entry)
    if not entry.label:
        del undo["label"], undo["labels"]
    return undo


def _output_label(program: CompiledProgram, state: State) -> int:
    """The label of what `_output` gives; of a run that failed, of what is said about it."""
    if state.status != RunStatus.SUCCESS:
        label = UNTRUSTED
        for one in state.labels or ():
            label |= one & SEALED
        return label
    if not program.outputs:
        return state.last_label
    return reduce(or_, (label_of(state, output.template.refs) for output in program.outputs))


def _why(state: State) -> str:
    """What the parent's `$call.error.message` says: the child's status, and what ended it."""
    error = state.error or {}
    said = [state.ending]
    if error.get("type", state.ending) != state.ending:
        said.append(error["type"])
    if error.get("step"):
        said.append(f"at `{error['step']}`")
    text = " ".join(said)
    return f"{text}: {error['message']}" if error.get("message") else text


def _output(program: CompiledProgram, state: State) -> Any:
    """A child's result: its declared outputs, else its final output."""
    if not program.outputs:
        return state.last_output
    found = {}
    for output in program.outputs:
        try:
            found[output.name] = output.template.render(state.slots)
        except NanoVMError:
            continue  # not assigned on the path that was taken
    return found
