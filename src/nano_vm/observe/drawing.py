"""Programs and runs as pictures: Mermaid and Graphviz DOT, as text.

A node is a step, in a shape that says what it does; groups are boxes around their lanes; an edge says when it is taken.
Drawn with a run, nodes are coloured by how their last occurrence stands and say how often they were come to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nano_vm.journal.ledger import TraceStep
from nano_vm.program.compiled import END, NO_TARGET, CompiledProgram, CompiledStep, ConditionAction, Kind

_COLOURS = {
    "SUCCESS": "#c8e6c9",
    "FAILED": "#ffcdd2",
    "SKIPPED": "#eceff1",
    "UNKNOWN": "#ffe0b2",
    "RUNNING": "#bbdefb",
    "PENDING": "#fff9c4",
}
_MERMAID_SHAPES = {
    Kind.CONDITION: ("{", "}"),
    Kind.LLM: ("([", "])"),
    Kind.AGENT: ("([", "])"),
    Kind.WAIT: ("[/", "/]"),
    Kind.CALL: ("[[", "]]"),
}
_DOT_SHAPES = {
    Kind.CONDITION: "diamond",
    Kind.LLM: "oval",
    Kind.AGENT: "oval",
    Kind.WAIT: "parallelogram",
    Kind.CALL: "component",
}


class Edge(NamedTuple):
    """From a node to a node: `n_` and a step's index, `s_` the start, `e_` the end; and when it is taken."""

    source: str
    target: str
    text: str


def mermaid(program: CompiledProgram, steps: Iterable[TraceStep] = ()) -> str:
    """A Mermaid flowchart of a program; with the steps of a trace, of that run."""
    stood = standing(steps)
    lines = ["flowchart TD", "  s_((start))"]
    for step in top_steps(program):
        lines += _mermaid_step(program, step, stood, "  ")
    lines.append("  e_((end))")
    for edge in edges(program):
        text = f"|{edge.text}| " if edge.text else ""
        lines.append(f"  {edge.source} --> {text}{edge.target}")
    for status, colour in _COLOURS.items():
        found = [f"n_{program.step_index[name]}" for name, (last, _) in stood.items() if last == status]
        if found:
            lines.append(f"  classDef {status} fill:{colour}")
            lines.append(f"  class {','.join(found)} {status}")
    return "\n".join(lines) + "\n"


def dot(program: CompiledProgram, steps: Iterable[TraceStep] = ()) -> str:
    """The same for Graphviz."""
    stood = standing(steps)
    lines = [f"digraph {_quoted(program.name)} {{", "  node [shape=box, style=filled, fillcolor=white];"]
    lines.append("  s_ [label=start, shape=circle];")
    for step in top_steps(program):
        lines += _dot_step(program, step, stood, "  ")
    lines.append("  e_ [label=end, shape=doublecircle];")
    for edge in edges(program):
        text = f" [label={_quoted(edge.text)}]" if edge.text else ""
        lines.append(f"  {edge.source} -> {edge.target}{text};")
    lines.append("}")
    return "\n".join(lines) + "\n"


def standing(steps: Iterable[TraceStep]) -> dict[str, tuple[str, int]]:
    """By step: how its last occurrence stands, and how often the run has come to it."""
    stood: dict[str, tuple[str, int]] = {}
    for step in steps:
        stood[step.id] = (step.status.value, stood.get(step.id, ("", 0))[1] + 1)
    return stood


def top_steps(program: CompiledProgram) -> list[CompiledStep]:
    """The steps that stand in no group."""
    return [step for step in program.steps if step.parent < 0]


def lanes_of(program: CompiledProgram, step: CompiledStep) -> list[CompiledStep]:
    """The sub-steps of a group, the actions of an agent."""
    return [other for other in program.steps if other.parent == step.index]


def _label(step: CompiledStep, stood: dict[str, tuple[str, int]]) -> str:
    times = stood.get(step.id, ("", 0))[1]
    return step.id + (f" x{times}" if times > 1 else "")


def _mermaid_step(
    program: CompiledProgram, step: CompiledStep, stood: dict[str, tuple[str, int]], indent: str
) -> list[str]:
    before, after = _MERMAID_SHAPES.get(step.kind, ("[", "]"))
    kind = step.kind.name.lower()
    node = f'{indent}n_{step.index}{before}"{_plain(_label(step, stood))}<br/><small>{kind}</small>"{after}'
    lanes = lanes_of(program, step)
    if not lanes:
        return [node]
    lines = [f'{indent}subgraph g_{step.index}["{_plain(step.id)}"]', f"  {node}"]
    for lane in lanes:
        lines += _mermaid_step(program, lane, stood, indent + "  ")
        lines.append(f"{indent}  n_{step.index} -.- n_{lane.index}")
    return [*lines, f"{indent}end"]


def _dot_step(
    program: CompiledProgram, step: CompiledStep, stood: dict[str, tuple[str, int]], indent: str
) -> list[str]:
    status = stood.get(step.id, ("", 0))[0]
    colour = f', fillcolor="{_COLOURS[status]}"' if status else ""
    shape = f", shape={_DOT_SHAPES[step.kind]}" if step.kind in _DOT_SHAPES else ""
    label = _quoted(f"{_label(step, stood)}\n{step.kind.name.lower()}")
    node = f"{indent}n_{step.index} [label={label}{shape}{colour}];"
    lanes = lanes_of(program, step)
    if not lanes:
        return [node]
    lines = [f"{indent}subgraph cluster_{step.index} {{", f"  {node}"]
    for lane in lanes:
        lines += _dot_step(program, lane, stood, indent + "  ")
        lines.append(f"{indent}  n_{step.index} -> n_{lane.index} [style=dashed, arrowhead=none];")
    return [*lines, f"{indent}}}"]


def edges(program: CompiledProgram) -> list[Edge]:
    """Every edge between top-level steps, in declared order."""
    found: list[Edge] = []
    if program.is_dag:
        found += [Edge("s_", f"n_{root}", "") for root in program.roots]
    else:
        found.append(Edge("s_", f"n_{program.entry}", ""))
    for step in top_steps(program):
        source = f"n_{step.index}"
        if program.is_dag:
            found += [
                Edge(source, f"n_{edge.target}", "" if edge.when == "done" else edge.when)
                for edge in step.edges
            ]
            if not step.edges:
                found.append(Edge(source, "e_", ""))
            continue
        action = step.action
        if type(action) is ConditionAction:
            targets = [(action.then, "then"), (action.otherwise, "otherwise")]
        else:
            targets = [(step.next, step.outcome or "" if step.is_terminal else "")]
        for target, text in [*targets, (step.on_failure, "failure")]:
            if target != NO_TARGET:
                found.append(Edge(source, "e_" if target == END else f"n_{target}", _plain(text)))
    return found


def _plain(text: str) -> str:
    """Text that means nothing to Mermaid, whatever an author called his outcome."""
    return "".join(c if c.isalnum() or c in " _.-:" else "_" for c in text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "")
    return f'"{escaped}"'
