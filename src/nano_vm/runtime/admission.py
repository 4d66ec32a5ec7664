"""Whether a call may be made, but for what policies say of it: the functions that every call goes through, whoever
proposed it.

A `tool` step's call, and a call that a model proposes in an `agent` step, are examined alike: is the tool registered,
do the arguments fit its schema, may its protected parameters take these values, does the policy allow it. Examined
means: before the intent is journaled. Nothing here changes a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nano_vm import canonical
from nano_vm.expr.reference import ERASED
from nano_vm.kernel.commands import CallModel, CallTool, Compensate, StartChild
from nano_vm.kernel.state import activity_key
from nano_vm.program.labels import SECRET, UNTRUSTED
from nano_vm.runtime.ports import ToolSpec
from nano_vm.runtime.secrets import reference_fault

if TYPE_CHECKING:
    from nano_vm.program.compiled import CompiledStep
    from nano_vm.runtime.driver import Run


class Refusal(NamedTuple):
    """Why a call may not be made: a stable code, and words for the author."""

    code: str
    message: str


PROPOSED: Final[Mapping[str, int]] = {"": UNTRUSTED}
"""The labels of a call that a model proposes: nothing in it can be trusted."""


def examine(
    run: Run,
    step: CompiledStep,
    tool: str,
    args: dict[str, Any],
    labels: Mapping[str, int] | None,
    vouched: bool = False,
) -> ToolSpec | Refusal:
    """The tool that the call is for, or why it may not be made.

    Args:
        step: the step that calls; for a call that a model proposes, the agent step's entry for that tool.
        args: as they would be passed.
        labels: of the arguments that are not trusted, by name; under `""` of all of them. None: all are trusted.
        vouched: the call is made with an approval of exactly this action, or not at all.
    """
    spec = run.engine.tools.spec(tool)
    if spec is None:
        return Refusal("UNKNOWN_TOOL", f"no tool `{tool}` is registered")
    if spec.problems is not None and (problems := spec.problems(args)):
        return Refusal("BAD_ARGUMENT", f"arguments of `{tool}`: " + "; ".join(problems))
    if spec.schema.protected and not vouched:
        refusal = tainted(run, spec, args, labels)
        if refusal is not None:
            return refusal
    if spec.secrets:
        fault = reference_fault(spec, args, run.engine.secrets)
        if fault is not None:
            return Refusal(*fault)
    return spec


def tainted(
    run: Run, spec: ToolSpec, args: dict[str, Any], labels: Mapping[str, int] | None
) -> Refusal | None:
    """Whether a protected parameter would take a value that nobody vouches for."""
    if run.state.labels is None:
        # The tool was protected after the run had started: nobody knows where the run's values come from.
        return Refusal("TAINTED_PARAMETER", f"`{spec.name}` is protected, and the run has tracked no labels")
    if labels is None:
        return None
    everywhere = labels.get("", 0)
    for name in spec.schema.protected:
        if name in args and (labels.get(name, 0) | everywhere) & UNTRUSTED:
            return Refusal(
                "TAINTED_PARAMETER", f"`{name}` of `{spec.name}` takes trusted values only, and this is none"
            )
    return None


def examine_call(run: Run, command: CallTool) -> ToolSpec | Refusal:
    """`examine` of a call as it stands now, with an approval where one covers it or will be asked for."""
    step = run.program.steps[command.step]
    labels = run.state.active[activity_key(command.step, command.item)].labels
    spec = examine(run, step, command.tool, command.args, labels)
    tainted_here = isinstance(spec, Refusal) and spec.code == "TAINTED_PARAMETER"
    if tainted_here and run.gate is not None and run.gate.asks(command):
        # A person vouches for this very action, or will be asked to before it is admitted.
        spec = examine(run, step, command.tool, command.args, labels, vouched=True)
    return spec


def examine_prompt(run: Run, command: CallModel) -> Refusal | None:
    """Why a model is not to be told what it would be."""
    if run.state.active[activity_key(command.step, command.item)].label & SECRET:
        return Refusal(
            "SECRET_IN_PROMPT", "what the prompt was made of holds a secret, and no model is told one"
        )
    return None


def examine_undoing(run: Run, command: Compensate) -> ToolSpec | Refusal:
    """The tool of a compensation, or why it may not be called."""
    spec = run.engine.tools.spec(command.tool)
    if spec is None:
        return Refusal("UNKNOWN_TOOL", f"no tool `{command.tool}` is registered")
    if spec.problems is not None and (problems := spec.problems(command.args)):
        return Refusal("BAD_ARGUMENT", f"arguments of `{spec.name}`: " + "; ".join(problems))
    fault = reference_fault(spec, command.args, run.engine.secrets)
    if fault is not None:
        return Refusal(*fault)
    refusal = tainted(run, spec, command.args, run.state.undo[-1].labels) if spec.schema.protected else None
    return spec if refusal is None else refusal


def is_gone(command: CallTool | CallModel | StartChild | Compensate) -> bool:
    """Whether what would be sent was made of a value that has been erased."""
    if type(command) is CallModel:
        content: Any = command.request
    elif type(command) is StartChild:
        content = command.inputs
    else:
        content = command.args  # type: ignore[union-attr]
    return ERASED.encode() in canonical.encode(content)


def is_refused(run: Run, command: CallTool | CallModel) -> bool:
    """Whether the call of a step will not be made, whatever policies say of it."""
    if run.closed and is_gone(command):
        return True
    if isinstance(command, CallModel):
        return examine_prompt(run, command) is not None
    return isinstance(examine_call(run, command), Refusal)
