"""Compare two runs: where they part, and whether they came to the same outcome."""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.console import Console, compact, printable
from nano_vm.cli.session import Session
from nano_vm.cli.views import switch_text
from nano_vm.journal.diff import StepDifference, diff
from nano_vm.journal.ledger import TraceStep
from nano_vm.journal.trace import Trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a run")
    parser.add_argument("b", metavar="B", help="another run")


def execute(args: argparse.Namespace, console: Console) -> int:
    with Session(args) as session:
        a, b = session.engine.trace(args.a), session.engine.trace(args.b)
        found = diff(a, b)
        console.document({**found.to_dict(), "providers": {"a": _answered(a), "b": _answered(b)}})
        for what, same in (
            ("program", found.same_program),
            ("status", found.same_status),
            ("trace_hash", found.same_trace_hash),
        ):
            sign = console.style(console.symbol("good" if same else "bad"), "good" if same else "bad")
            console.line(f"  {sign} {'same' if same else 'another'} {what}")
        if found.execution_equivalent:
            console.line("EQUIVALENT: the same business outcome", "good")
        else:
            console.line("NOT EQUIVALENT: another business outcome", "bad")
        if found.parts_at is not None:
            console.line(f"they part at {_place(found.parts_at)}")
        for difference in found.differences:
            console.line(f"  {_place(difference)}: {', '.join(difference.fields)}")
            console.line(f"    a  {_side(difference.a)}")
            console.line(f"    b  {_side(difference.b)}")
        for name, trace in (("a", a), ("b", b)):
            if trace.provider_final is not None:
                console.line(f"{name} was answered last by {printable(trace.provider_final)}")
            for switch in trace.switch_events:
                console.line(f"  switch {switch_text(switch)}")
        return exits.DONE


def _answered(trace: Trace) -> dict[str, Any]:
    """Who answered a run's model calls: no part of its results, and often why they differ."""
    return {"final": trace.provider_final, "switch_events": trace.switch_events}


def _place(difference: StepDifference) -> str:
    name = f"`{difference.step}`"
    if difference.item is not None:
        name += f" item {difference.item}"
    return name if difference.occurrence == 1 else f"{name} #{difference.occurrence}"


def _side(step: TraceStep | None) -> str:
    if step is None:
        return "-"
    if step.verdict is not None:
        return f"{step.status.value} {'holds' if step.verdict else 'does not hold'}"
    if step.error is not None:
        return f"{step.status.value} {step.error['type']}"
    return f"{step.status.value} {compact(step.output, 80)}"
