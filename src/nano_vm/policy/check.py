"""Checking a program together with what governs it: the compiler's findings, and what may flow where.

Findings about governance are made from the compiled form, so a program that has errors of its own has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nano_vm.compiler import Report, compile_program
from nano_vm.compiler import check as check_alone
from nano_vm.errors import ProgramError
from nano_vm.policy.guards import denied_tools, missed_guards
from nano_vm.policy.model import Policy
from nano_vm.policy.taint import Analysis, Finding, Hop, Lookup
from nano_vm.program.compiled import CallAction, CompiledProgram
from nano_vm.program.diagnostic import ERROR, WARNING, Diagnostic, sort, to_error
from nano_vm.program.document import Document
from nano_vm.program.model import Program
from nano_vm.program.tool_schema import ToolSchema

Programs = Mapping[str, Program]
FINDINGS_MAX = 200


def check(
    program: Program | Document,
    tools: Mapping[str, ToolSchema] | None = None,
    programs: Programs | None = None,
    policy: Policy | None = None,
) -> Report:
    """Everything that is wrong with a program; nothing is executed.

    Args:
        program: a `Program`, or a `Document` that may be no program at all.
        tools: what is known about the tools; with it tool names, arguments and flows are checked.
        programs: stored programs by name or hash; with it `call` steps are checked, and followed.
        policy: what the program will be held to; with it denied tools and missed guards are found.

    Returns:
        The report; `compiled` is there when nothing is an error.
    """
    report = check_alone(program, tools, programs)
    if report.compiled is None:
        return report
    document = program.document if isinstance(program, Program) else program
    lookup = lookup_in(programs, tools)
    found = list(governance(document, report.compiled, tools, lookup, policy))
    if policy is not None:
        found += under(policy, document, tools)
        found += under_called(policy, document, report.compiled, (programs or {}).get, lookup, tools)
    if not found:
        return report
    diagnostics = tuple(sort([*report.diagnostics, *found]))
    broken = any(finding.severity == ERROR for finding in found)
    return Report(diagnostics, None if broken else report.compiled, report.source, report.file)


def lookup_in(programs: Programs | None, tools: Mapping[str, ToolSchema] | None) -> Lookup:
    """Compiled programs by the name that a call gives them."""
    known: dict[str, CompiledProgram | None] = {}

    def lookup(name: str) -> CompiledProgram | None:
        if name not in known:
            program = (programs or {}).get(name)
            try:
                known[name] = None if program is None else compile_program(program, tools, programs)
            except ProgramError:
                known[name] = None  # what is wrong with it is found where it is checked itself
        return known[name]

    return lookup


def governance(
    document: Document,
    compiled: CompiledProgram,
    tools: Mapping[str, ToolSchema] | None,
    lookup: Lookup,
    policy: Policy | None = None,
) -> Iterator[Diagnostic]:
    """What flows to where it must not, with every station of its way.

    The labels of a program whose tools protect nothing and that has no secrets need not be worked out.
    """
    schemas = tools or {}
    sums = policy is not None and policy.adds_up
    if not sums and not _concerns(compiled, schemas, lookup, set()):
        return
    places = _Places(document)
    for number, finding in enumerate(Analysis(compiled, schemas, lookup, policy=policy).findings()):
        if number >= FINDINGS_MAX:
            return
        yield places.diagnostic(finding)


def under(
    policy: Policy, document: Document, tools: Mapping[str, ToolSchema] | None = None
) -> list[Diagnostic]:
    """What a policy has against a program that is otherwise sound."""
    places = _Places(document)
    found = []
    for step, field, tool, rule in denied_tools(document, policy):
        message = f"`{tool}` is never allowed: " + (
            "no rule of the policy is about it" if rule == "default" else f"the rule `{rule}` denies it"
        )
        help = f"take it out, or change the policy; `nano-vm policy explain` tells more of `{tool}`"
        found.append(places.at("DENIED_TOOL", ERROR, message, help, step, field))
    for missed in missed_guards(document, policy, tools):
        needed = missed.requirement
        message = (
            f"`{missed.tool}` can be come to without {needed.kind} `{needed.name}` before it: {missed.way}"
        )
        help = f"the rule `{needed.rule}` requires it: put it on every way to `{missed.step}`"
        if needed.kind == "step" and missed.way and needed.name in missed.path:
            help += ", and go on only when it succeeded (an approval: when `approved == true`)"
        severity = ERROR if needed.unconditional and not missed.may_be_met else WARNING
        found.append(places.at("GUARD_MISSED", severity, message, help, missed.step, missed.field))
    return found


def under_called(
    policy: Policy,
    document: Document,
    compiled: CompiledProgram,
    find: Callable[[str], Program | None],
    lookup: Lookup,
    tools: Mapping[str, ToolSchema] | None = None,
) -> list[Diagnostic]:
    """What a policy has against the programs that a program calls, at any depth; each is told of once, at the call that
    leads there. What precedes a call does not count in the program that is called.

    Args:
        find, lookup: give a program, and its compiled form, by the name that a call gives it; None for one that is not
            known.
    """
    places = _Places(document)
    found: list[Diagnostic] = []
    seen = {compiled.hash}
    for step in compiled.steps:
        action = step.action
        if type(action) is not CallAction:
            continue
        waiting = [(action.program, f"`{action.program}`")]
        while waiting:
            name, way = waiting.pop(0)
            child, program = lookup(name), find(name)
            if child is None or program is None or child.hash in seen:
                continue
            seen.add(child.hash)
            for each in under(policy, program.document, tools):
                message, help = f"in {way}: {each.message}", each.help or ""
                if each.code == "GUARD_MISSED":
                    help += "; what comes before the call does not count there"
                found.append(places.at(each.code, each.severity, message, help, step.id, "program"))
            waiting += [
                (below.action.program, f"{way}, `{below.action.program}`")
                for below in child.steps
                if type(below.action) is CallAction
            ]
    return found


def _concerns(
    compiled: CompiledProgram, tools: Mapping[str, ToolSchema], lookup: Lookup, seen: set[str]
) -> bool:
    from nano_vm.program.labels import SECRET

    if compiled.hash in seen:
        return False
    seen.add(compiled.hash)
    if any(label & SECRET for label in compiled.input_labels.values()):
        return True
    for step in compiled.steps:
        if step.adds & SECRET:
            return True
    named = tools_in(compiled)
    if any(name in tools and tools[name].is_labelled for name in named):
        return True
    for name in compiled.calls:
        child = lookup(name)
        if child is None and any(schema.is_labelled for schema in tools.values()):
            return True  # nobody knows what it calls
        if child is not None and _concerns(child, tools, lookup, seen):
            return True
    return False


def tools_in(compiled: CompiledProgram) -> set[str]:
    """The tools that a program may call, those of agents and compensations included."""
    found: set[str] = set()
    for step in compiled.steps:
        action: Any = step.action
        if hasattr(action, "tool"):
            found.add(action.tool)
        found.update(getattr(action, "tools", ()))
        if step.compensation is not None:
            found.add(step.compensation.tool)
    return found


class _Places:
    """Where fields of a program stand in its document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.pointers: dict[str, str] = {}
        for index, step in enumerate(document.data["steps"]):
            pointer = f"/steps/{index}"
            self.pointers[step["id"]] = pointer
            for lane_index, lane in enumerate(step.get("parallel_steps", ())):
                self.pointers[lane["id"]] = f"{pointer}/parallel_steps/{lane_index}"
            if "step" in step:
                self.pointers[step["step"]["id"]] = pointer + "/step"

    def diagnostic(self, finding: Finding) -> Diagnostic:
        # What is wrong inside a called program is wrong at the call, as far as this document goes.
        own = next(
            hop
            for hop in reversed(finding.flow)
            if not finding.inside or not hop.text.endswith(_inside(finding))
        )
        place, length = self.document.place(self._pointer(own), step=own.step, field=own.field.split("/")[0])
        message = f"{finding.message}: {self.trail(finding.flow, finding)}"
        severity = WARNING if finding.unproved else ERROR
        return Diagnostic(finding.code, severity, message, finding.help, place, length)

    def at(self, code: str, severity: str, message: str, help: str, step: str, field: str) -> Diagnostic:
        place, length = self.document.place(f"{self.pointers[step]}/{field}", step=step, field=field)
        return Diagnostic(code, severity, message, help, place, length)

    def trail(self, flow: Sequence[Hop], finding: Finding) -> str:
        return " -> ".join(self._station(hop, finding) for hop in flow)

    def _station(self, hop: Hop, finding: Finding) -> str:
        if finding.inside and hop.text.endswith(_inside(finding)):
            return hop.text
        place, _ = self.document.place(self._pointer(hop), step=hop.step, field=hop.field)
        return f"{hop.text} (line {place.line})" if place.line else hop.text

    def _pointer(self, hop: Hop) -> str:
        if hop.step is None:
            return f"/{hop.field}"
        return f"{self.pointers.get(hop.step, '')}/{hop.field}"


def _inside(finding: Finding) -> str:
    return f"in `{finding.inside[0]}`"


def compile_checked(
    program: Program,
    tools: Mapping[str, ToolSchema] | None = None,
    programs: Programs | None = None,
    policy: Policy | None = None,
) -> CompiledProgram:
    """The compiled form of a program in which nothing is wrong.

    Raises:
        ProgramError: as `nano_vm.compiler.compile_program`; TAINTED_PARAMETER, SECRET_IN_PROMPT; with a policy
            DENIED_TOOL and GUARD_MISSED.
    """
    report = check(program, tools, programs, policy)
    if report.compiled is None:
        raise to_error(list(report.diagnostics))
    return report.compiled
