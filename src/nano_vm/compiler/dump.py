"""The compiled form as JSON: for conformance vectors and for people who want to see what runs.

Closures cannot be shown; in their place stand what they read (slots and paths) and, for expressions, the JSON
AST of the author's source.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nano_vm.expr.nodes import to_ast
from nano_vm.expr.parser import parse
from nano_vm.program.compiled import CompiledProgram, CompiledStep, Template
from nano_vm.program.model import Program


def dump(compiled: CompiledProgram, program: Program | None = None) -> dict[str, Any]:
    """Returns a JSON view of a compiled program.

    Args:
        program: the program it was compiled from; with it expressions are shown as ASTs, else only that they
            are there.
    """
    trees = _trees(program) if program is not None else {}
    return {
        "hash": compiled.hash,
        "name": compiled.name,
        "version": compiled.version,
        "entry": compiled.entry,
        "is_dag": compiled.is_dag,
        "roots": list(compiled.roots),
        "slots": list(compiled.slots),
        "input_slots": compiled.input_slots,
        "optional_inputs": compiled.optional_inputs,
        "budgets": msgspec.to_builtins(compiled.budgets),
        "outputs": {output.name: _template(output.template) for output in compiled.outputs},
        "events": sorted(compiled.events),
        "calls": list(compiled.calls),
        "labelled": compiled.labelled,
        "sealed": compiled.sealed,
        "input_labels": compiled.input_labels,
        "subject": _template(compiled.subject),
        "steps": [_step(step, trees.get(step.id, {})) for step in compiled.steps],
    }


def _trees(program: Program) -> dict[str, dict[str, Any]]:
    trees: dict[str, dict[str, Any]] = {}
    for step in program.steps:
        lanes = [*step.get("parallel_steps", ()), *([step["step"]] if "step" in step else [])]
        for member in (step, *lanes):
            trees[member["id"]] = {
                field: to_ast(parse(member[field])) for field in ("condition", "accept") if field in member
            }
    return trees


def _template(template: Template | None) -> Any:
    if template is None:
        return None
    if template.constant:
        return {"constant": template.render([])}
    return {"refs": [[slot, list(path)] for slot, path in template.refs]}


def _step(step: CompiledStep, trees: dict[str, Any]) -> dict[str, Any]:
    plain = {
        name: msgspec.to_builtins(getattr(step, name))
        for name in step.__struct_fields__
        if name not in ("action", "kind", "compensation", "retry", "edges")
        and (name != "approved_by" or step.approved_by)
    }
    compensation = None
    if step.compensation is not None:
        compensation = {"tool": step.compensation.tool, "args": _template(step.compensation.args)}
    return {
        **plain,
        "kind": step.kind.name.lower(),
        "retry": msgspec.to_builtins(step.retry),
        "edges": [[edge.target, edge.when] for edge in step.edges],
        "compensation": compensation,
        "action": _action(step, trees),
    }


def _action(step: CompiledStep, trees: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    action = step.action
    for name in action.__struct_fields__:
        value = getattr(action, name)
        if name == "approves" and value < 0:
            continue
        if isinstance(value, Template):
            shown[name] = _template(value)
        elif callable(value):
            shown[name] = trees.get("condition" if name == "test" else name, "expression")
        else:
            shown[name] = msgspec.to_builtins(value)
    return shown
