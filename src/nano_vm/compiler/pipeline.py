"""The compiler's entry: check a program, and compile it if it has no errors."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nano_vm.compiler.control import check_control
from nano_vm.compiler.dag import DagFlow
from nano_vm.compiler.graph import ListFlow
from nano_vm.compiler.lower import lower
from nano_vm.compiler.names import Names, check_names
from nano_vm.compiler.resolve import check_assigned, resolve
from nano_vm.compiler.structure import check_structure
from nano_vm.compiler.types import check_types
from nano_vm.compiler.view import View
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.diagnostic import ERROR, WARNING, Diagnostic, sort, to_error
from nano_vm.program.document import Document
from nano_vm.program.model import Program
from nano_vm.program.tool_schema import ToolSchema
from nano_vm.program.validate import validate


class Report(msgspec.Struct, frozen=True):
    """What was found, by place; `compiled` is there when nothing is an error. `source` is the text, where
    there is one."""

    diagnostics: tuple[Diagnostic, ...]
    compiled: CompiledProgram | None = None
    source: str | None = None
    file: str | None = None

    @property
    def ok(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(finding for finding in self.diagnostics if finding.severity == ERROR)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        return tuple(finding for finding in self.diagnostics if finding.severity == WARNING)


def check(
    program: Program | Document,
    tools: Mapping[str, ToolSchema] | None = None,
    programs: Mapping[str, Program] | None = None,
) -> Report:
    """Returns everything that is wrong with a program; nothing is executed.

    Args:
        program: a `Program`, or a `Document` that may be no program at all.
        tools: what is known about the tools; with it tool names and arguments are checked.
        programs: stored programs by name or hash; with it `call` steps are checked.
    """
    document = program.document if isinstance(program, Program) else program
    if isinstance(program, Program):
        diagnostics, bad = [], set()
    else:
        validation = validate(document)
        diagnostics, bad = validation.diagnostics, validation.bad
    if "" in bad and not isinstance(document.data, dict):
        return Report(tuple(sort(diagnostics)), None, document.text, document.file)
    view = View(document, bad, tools, programs)
    check_structure(view)
    names = Names(view)
    flow: ListFlow | DagFlow = DagFlow(view) if view.is_dag else ListFlow(view)
    resolved = resolve(view, names)
    check_control(view, flow)
    sound = not (isinstance(flow, DagFlow) and flow.cycle)
    check_names(view, names, flow if sound else None)
    if sound:
        check_assigned(view, names, flow, resolved.uses)
    check_types(view, names, resolved)
    findings = sort([*diagnostics, *view.diagnostics])
    compiled = None
    if not any(finding.severity == ERROR for finding in findings):
        owner = program if isinstance(program, Program) else Program(document)
        compiled = lower(view, names, resolved, flow, owner.hash)
    return Report(tuple(findings), compiled, document.text, document.file)


def compile_program(
    program: Program,
    tools: Mapping[str, ToolSchema] | None = None,
    programs: Mapping[str, Program] | None = None,
) -> CompiledProgram:
    """Returns the compiled form of a program.

    Raises:
        ProgramError: when `check` finds errors; `diagnostics` lists all findings, `code` is that of the only
            error or INVALID_PROGRAM.
    """
    report = check(program, tools, programs)
    if report.compiled is None:
        raise to_error(list(report.diagnostics))
    return report.compiled
