"""Traces as lines of text and as JSON."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nano_vm.cli import exits
from nano_vm.cli.console import Console, compact, printable
from nano_vm.cli.driving import flat_waits
from nano_vm.cli.session import command, document_of
from nano_vm.observe.wording import moment, step_text, switch_text
from nano_vm.program.compiled import ModelAction, ToolAction

if TYPE_CHECKING:
    from nano_vm.journal.trace import Trace
    from nano_vm.program.compiled import CompiledProgram

__all__ = ["moment", "switch_text"]  # others ask for them here

_MARKS = {
    "SUCCESS": ("good", "good"),
    "FAILED": ("bad", "bad"),
    "SKIPPED": ("skip", "dim"),
    "UNKNOWN": ("unknown", "warn"),
    "RUNNING": ("busy", "busy"),
    "PENDING": ("wait", "warn"),
}
STATUS_STYLES = {"SUCCESS": "good", "SUSPENDED": "warn", "RUNNING": "busy"}


def step_rows(program: CompiledProgram, trace: Trace) -> list[tuple[str, str, str]]:
    """The step tree, one (status, name, text) per occurrence; names are indented below their group."""
    rows = []
    for step in trace.steps:
        index = program.step_index.get(step.id, -1)
        depth = 1 if index >= 0 and program.steps[index].parent >= 0 else 0
        name = step.id
        if step.item is not None:
            name += f"[{step.item}]"
        if step.occurrence > 1:
            name += f" #{step.occurrence}"
        rows.append((step.status.value, "  " * depth + name, step_text(step)))
    return rows


def show_steps(console: Console, program: CompiledProgram, trace: Trace) -> None:
    rows = step_rows(program, trace)
    if not rows:
        return
    width = max(len(name) for _, name, _ in rows)
    kinds = {step.id: step.kind.name.lower() for step in program.steps}
    for status, name, text in rows:
        symbol, style = _MARKS[status]
        kind = kinds.get(name.strip().split("[")[0].split(" ")[0], "")
        mark = console.style(console.symbol(symbol), style)
        console.line(f"  {mark} {name:<{width}}  {kind:<9}  {text}".rstrip())


def show_end(console: Console, trace: Trace) -> None:
    """Status, output, totals and hashes."""
    status = trace.status.value
    style = STATUS_STYLES.get(status, "bad")
    outcome = f" ({printable(trace.outcome)})" if trace.outcome else ""
    console.line(console.style(status, style) + f"{outcome}  {printable(trace.program_name)}")
    if trace.error is not None:
        where = f" at `{trace.error['step']}`" if trace.error.get("step") else ""
        message = printable(str(trace.error.get("message") or ""))
        console.line(f"  error         {trace.error['type']}{where} {message}".rstrip())
    if trace.rollbacks:
        console.line(f"  undone        {trace.rollbacks} step{'s' if trace.rollbacks > 1 else ''}")
    if trace.incomplete_compensations:
        console.line(f"  not undone    {', '.join(trace.incomplete_compensations)}", "bad")
    if trace.status.is_terminal:
        console.line(f"  output        {compact(trace.outputs or trace.final_output, 400)}")
    if trace.total_tokens():
        console.line(f"  tokens        {trace.total_tokens()} (${trace.total_cost_usd():.6f})")
    for switch in trace.switch_events:
        console.line(f"  switch        {switch_text(switch)}", "warn")
    console.line(f"  trace id      {trace.trace_id}")
    if trace.status.is_terminal:
        console.line(f"  trace_hash    {trace.trace_hash}")
        console.line(f"  outcome_hash  {trace.outcome_hash}")


# --- what a run waits for -------------------------------------------------------------------------------------


def continuations(args: argparse.Namespace, program: CompiledProgram, trace: Trace) -> list[dict[str, Any]]:
    """What the run waits for, each with the command that brings it on: {"wait", "text", "command"}."""
    found = []
    for wait in flat_waits(trace):
        text, words, acts = _way_on(wait, trace.trace_id)
        line = command(args, *words, drives=True, acts=acts)
        if not hasattr(args, "tools"):
            line += _placeholders(program)
        if wait["kind"] == "approval":
            role = wait.get("approvers", ["ROLE"])[0]
            line += f" --principal YOU --role {role}"
        found.append({"wait": document_of(wait), "text": text, "command": line})
    return found


def _placeholders(program: CompiledProgram) -> str:
    """What has to be filled in, by a command that was not told itself."""
    named = any(isinstance(step.action, ToolAction) or step.compensation for step in program.steps)
    model = any(isinstance(step.action, ModelAction) for step in program.steps)
    return (" --tools FILE" if named else "") + (" --model SPEC" if model else "")


def _way_on(wait: dict[str, Any], run_id: str) -> tuple[str, list[str], bool]:
    kind, step = wait["kind"], wait["step"]
    due = f", until {moment(wait['due_ms'])}" if wait.get("due_ms") else ""
    lane = ["--item", str(wait["item"])] if "item" in wait else []
    if kind == "approval":
        roles = " or ".join(wait.get("approvers", ()))
        return (
            f"an approval at `{step}` by {roles}{due}",
            ["resume", run_id, "--step", step, *lane, "--approve"],
            False,
        )
    if kind == "event":
        words = ["resume", run_id, "--name", wait.get("event") or step, "--event", "{}"]
        return f"the event `{wait.get('event')}` at `{step}`{due}", words, True
    if kind == "tool":
        words = ["resume", run_id, "--step", step, *lane, "--event", "{}"]
        return f"the answer to `{step}`{due}", words, True
    if kind == "timer":
        return f"the timer of `{step}`, due {moment(wait.get('due_ms', 0))}", ["recover"], False
    words = ["resolve", run_id, step, "--succeeded", "null", *lane]
    reason = wait.get("reason") or "?"
    return f"somebody to say what became of `{step}` (outcome unknown: {reason})", words, True


def show_waits(console: Console, args: argparse.Namespace, program: CompiledProgram, trace: Trace) -> None:
    for way in continuations(args, program, trace):
        console.line(f"  waits for     {printable(way['text'])}", "warn")
        if way["wait"]["kind"] == "timer":
            console.line(f"  then          {printable(way['command'])}")
            continue
        console.line(f"  continue with {printable(way['command'])}")
        if way["wait"]["kind"] == "outcome":
            console.line("                (or --failed MESSAGE, or --repeat if it did not happen)")
    if trace.status.value == "RUNNING":
        console.line("  was let go before its end", "warn")
        console.line(f"  continue with {command(args, 'recover', drives=True)}")


def conclude(console: Console, args: argparse.Namespace, program: CompiledProgram, trace: Trace) -> int:
    """Show how a run that this command drove stands. Returns the exit code."""
    code = exits.of_status(trace.status.value, (trace.error or {}).get("type"))
    if console.json_only:
        console.document(as_json(args, program, trace, code))
        return code
    if console.quiet:
        console.line(f"{trace.status.value} {trace.trace_id}")
        return code
    show_steps(console, program, trace)
    show_end(console, trace)
    show_waits(console, args, program, trace)
    return code


def as_json(args: argparse.Namespace, program: CompiledProgram, trace: Trace, code: int) -> dict[str, Any]:
    return {**trace.to_dict(), "continue": continuations(args, program, trace), "exit_code": code}
