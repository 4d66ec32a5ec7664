"""`ProgramValidator`: a program, checked with the tools as `ExecutionVM` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nano_vm.compiler import Report
from nano_vm.policy.check import Programs, check
from nano_vm.policy.load import load_policy
from nano_vm.policy.model import Policy
from nano_vm.program import document as documents
from nano_vm.program.document import Document
from nano_vm.program.model import Program
from nano_vm.program.tool_schema import ToolSchema
from nano_vm.tools.registry import Tools, ToolSet, tool_set


class ProgramValidator:
    """Checks a program, a dict, or a file, together with what governs it.

    Args:
        tools: as `ExecutionVM` takes them, or name -> `ToolSchema` of what is not at hand; with them tool names,
            arguments and flows are checked.
        policy: what the program will be held to.
        programs: stored programs by name or hash, for `call` steps.

    Raises:
        ProgramError: PROGRAM_UNREADABLE for a file that cannot be read; TOOL_SIGNATURE for what is no tool; what
            `load_policy` raises.
    """

    def __init__(
        self,
        program: Program | Document | dict[str, Any] | str | Path,
        tools: Tools | Mapping[str, ToolSchema] | None = None,
        policy: Policy | Document | Mapping[str, Any] | str | Path | None = None,
        programs: Programs | None = None,
    ) -> None:
        self._policy = policy if policy is None or isinstance(policy, Policy) else load_policy(policy)
        self._program: Program | Document
        if isinstance(program, Program | Document):
            self._program = program
        elif isinstance(program, str | Path):
            self._program = documents.from_file(program)
        else:
            self._program = documents.from_data(program)
        self._tools = None if tools is None else _schemas(tools)
        self._programs = programs

    def validate(self) -> Report:
        """Returns all findings; `report.ok` is True when none is an error."""
        return check(self._program, self._tools, self._programs, self._policy)


def _schemas(tools: Tools | Mapping[str, ToolSchema]) -> dict[str, ToolSchema]:
    """Schemas by name, in the order given."""
    if not isinstance(tools, Mapping):
        return tool_set(tools).schemas()
    known, found = ToolSet(), {}
    for name, given in tools.items():
        found[name] = given if isinstance(given, ToolSchema) else known.add(given, name).schema
    return found
