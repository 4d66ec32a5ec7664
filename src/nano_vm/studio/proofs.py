"""What can be said of a program before it runs: findings, and what was proved of it where nothing was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nano_vm.compiler import Report, compile_program
from nano_vm.errors import ProgramError
from nano_vm.policy.check import check, lookup_in, tools_in
from nano_vm.policy.guards import guarded_calls
from nano_vm.policy.model import Policy
from nano_vm.policy.taint import Analysis, Finding
from nano_vm.program.compiled import ToolAction
from nano_vm.program.model import Program
from nano_vm.program.tool_schema import ToolSchema


class GuardProof(NamedTuple):
    """Whether `needs` comes before the call of `tool` in `step` on every way; else a way that misses it."""

    step: str
    tool: str
    needs: str
    rule: str
    way: str | None


class FlowProof(NamedTuple):
    """Whether a protected parameter gets trusted values only; else what flows there, station by station."""

    step: str
    tool: str
    parameter: str
    state: str  # "proved", "open" (only a run can tell) or "tainted"
    way: str | None


class Proofs(NamedTuple):
    """`guards` is None without a policy, `flows` None where the tools are not known; `unknown` names those."""

    report: Report
    guards: list[GuardProof] | None
    flows: list[FlowProof] | None
    unknown: tuple[str, ...] = ()


def prove(
    program: Program,
    schemas: Mapping[str, ToolSchema] | None,
    programs: Mapping[str, Program],
    policy: Policy | None,
) -> Proofs:
    """Check a program against the tools and the policy that are at hand."""
    unknown = _unknown(program, schemas)
    if unknown:
        schemas = None  # the studio was started for other programs: that is no fault of this one
    report = check(program, schemas, programs, policy)
    guards = None if policy is None else _guards(program, schemas, policy)
    flows = None if schemas is None else _flows(program, schemas, programs, policy)
    return Proofs(report, guards, flows, unknown)


def _unknown(program: Program, schemas: Mapping[str, ToolSchema] | None) -> tuple[str, ...]:
    """The tools that a program names and nobody gave."""
    if schemas is None:
        return ()
    try:
        named = tools_in(compile_program(program))
    except ProgramError:
        return ()
    return tuple(sorted(named - set(schemas)))


def _guards(program: Program, schemas: Mapping[str, ToolSchema] | None, policy: Policy) -> list[GuardProof]:
    return [
        GuardProof(
            call.step,
            call.tool,
            f"{call.requirement.kind} {call.requirement.name}",
            call.requirement.rule,
            None if call.missed is None else call.missed.way,
        )
        for call in guarded_calls(program.document, policy, schemas)
    ]


def _flows(
    program: Program,
    schemas: Mapping[str, ToolSchema],
    programs: Mapping[str, Program],
    policy: Policy | None,
) -> list[FlowProof]:
    lookup = lookup_in({**programs, program.hash: program}, schemas)
    compiled = lookup(program.hash)
    if compiled is None:
        return []
    found: dict[tuple[str, str], Finding] = {}
    for finding in Analysis(compiled, schemas, lookup, policy=policy).findings():
        last = finding.flow[-1]
        if last.step is not None and not finding.inside:
            found[last.step, last.field.rsplit("/", 1)[-1]] = finding
    proofs = []
    for step in compiled.steps:
        action = step.action
        schema = schemas.get(action.tool) if type(action) is ToolAction else None
        if type(action) is not ToolAction or schema is None:
            continue
        for name in schema.protected:
            finding_here = found.get((step.id, name))
            if finding_here is None:
                proofs.append(FlowProof(step.id, action.tool, name, "proved", None))
            else:
                way = " -> ".join(hop.text for hop in finding_here.flow)
                proofs.append(
                    FlowProof(step.id, action.tool, name, "open" if finding_here.unproved else "tainted", way)
                )
    return proofs
