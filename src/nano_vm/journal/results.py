"""`trace_hash` and `outcome_hash`: what two runs have in common (SPEC §5, `spec/journal.md`).

Neither sees a time, an id, a cost, an attempt or a salt. `trace_hash` covers every step result in declared
order; `outcome_hash` covers the business outcome alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.expr.reference import UNSET
from nano_vm.journal import merkle
from nano_vm.kernel.labels import label_of
from nano_vm.kernel.state import Settled, State, StepStatus
from nano_vm.program.compiled import CompiledProgram, Kind
from nano_vm.program.labels import SEALED

Order = tuple[int, int, int]
"""Place of a step result in `trace_hash`: rank of the step, occurrence, item (-1 outside maps)."""


def order_of(program: CompiledProgram, settled: Settled) -> Order:
    """Where a result stands among the others, whenever it came in."""
    return program.steps[settled.step].rank, settled.occurrence, settled.item


def leaf_of(program: CompiledProgram, settled: Settled) -> bytes:
    """Canonical bytes of one step result, as `trace_hash` and comparisons see it.

    A condition that was decided has its `verdict`; another step that succeeded or was skipped has its
    `output` - that it is `private`, when it is personal or secret; a step that failed has the `error` type; one whose
    outcome stayed unknown has none of them.
    """
    step = program.steps[settled.step]
    leaf: dict[str, Any] = {
        "occurrence": settled.occurrence,
        "status": settled.status.value,
        "step": step.id,
    }
    if settled.item >= 0:
        leaf["item"] = settled.item
    if settled.status is StepStatus.FAILED:
        leaf["error"] = settled.error
    elif step.kind is Kind.CONDITION:
        if settled.status is StepStatus.SUCCESS:
            leaf["verdict"] = settled.output
    elif settled.label & SEALED:
        leaf["private"] = True
    elif settled.status is not StepStatus.UNKNOWN:
        leaf["output"] = settled.output
    return canonical.encode(leaf)


def trace_hash(leaves: Iterable[tuple[Order, bytes]]) -> str:
    """Merkle root ("sha256:…") over the leaves in declared order.

    Where one occurrence settled more than once - a lane that a retried group repeated - only its last result
    is given.
    """
    ordered = sorted(leaves)
    return "sha256:" + merkle.root(merkle.leaf_hashes([leaf for _, leaf in ordered])).hex()


def declared_outputs(program: CompiledProgram, state: State) -> dict[str, Any]:
    """The program's `outputs` as the state has them; one that cannot be resolved is left out. Copies."""
    found: dict[str, Any] = {}
    for output in program.outputs:
        try:
            value = output.template.render(state.slots)
        except NanoVMError:
            continue
        found[output.name] = own(value)
    return found


def outcome_hash(program: CompiledProgram, state: State) -> str:
    """Digest of {"outcome", "outputs", "program", "status"}: equal for runs that are execution equivalent.

    `outputs` is the object of declared outputs, or the final output of a program that declares none.
    """
    outcome: dict[str, Any] = {
        "outcome": state.outcome,
        "outputs": declared_outputs(program, state) if program.outputs else state.last_output,
        "program": program.name,
        "status": state.status.value,
    }
    if state.labels is not None:
        _leave_out_private(program, state, outcome)
    return canonical.digest_value(outcome)


def _leave_out_private(program: CompiledProgram, state: State, outcome: dict[str, Any]) -> None:
    """A digest of what is private would tell it to whoever guesses well, and would outlive it."""
    if program.outputs:
        hidden = []
        for output in program.outputs:
            refs = output.template.refs
            if label_of(state, refs) & SEALED and all(state.slots[slot] is not UNSET for slot, _ in refs):
                hidden.append(output.name)
                outcome["outputs"].pop(output.name, None)
    else:
        hidden = [""] if state.last_label & SEALED else []
        outcome["outputs"] = None if hidden else outcome["outputs"]
    if hidden:
        outcome["private"] = sorted(hidden)


def own(value: Any) -> Any:
    """A copy that shares nothing with the state: nobody changes a run by changing what they were shown."""
    if type(value) is dict or type(value) is list:
        return canonical.decode(canonical.encode(value))
    return value
