"""Whether a tool call may be made: the one function that every call goes through, whoever proposed it.

A `tool` step's call, and a call that a model proposes in an `agent` step, are examined alike: is the tool registered,
do the arguments fit its schema, does the policy allow it. Examined means: before the intent is journaled. Nothing here
changes a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm.runtime.ports import ToolSpec

if TYPE_CHECKING:
    from nano_vm.program.compiled import CompiledStep
    from nano_vm.runtime.driver import Run


class Refusal(NamedTuple):
    """Why a call may not be made: a stable code, and words for the author."""

    code: str
    message: str


def examine(run: Run, step: CompiledStep, tool: str, args: dict[str, Any]) -> ToolSpec | Refusal:
    """The tool that the call is for, or why it may not be made.

    Args:
        step: the step that calls; for a call that a model proposes, the agent step's entry for that tool.
        args: as they would be passed.
    """
    spec = run.engine.tools.spec(tool)
    if spec is None:
        return Refusal("UNKNOWN_TOOL", f"no tool `{tool}` is registered")
    if spec.problems is not None and (problems := spec.problems(args)):
        return Refusal("BAD_ARGUMENT", f"arguments of `{tool}`: " + "; ".join(problems))
    return spec
