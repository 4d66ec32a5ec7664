"""Runs as they go: journal events as lines, or as a tree that redraws itself on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import UNSET

from nano_vm.cli.console import Console, compact, printable
from nano_vm.kernel import events as ev

if TYPE_CHECKING:
    from nano_vm.cli.driving import Listen
    from nano_vm.runtime.engine import Progress

_COLOURS = {"good": "green", "bad": "red", "busy": "cyan", "wait": "yellow", "unknown": "yellow"}


class Line(NamedTuple):
    """What an event means to somebody who looks on: a sign, the step it is about (empty: the run), and words."""

    symbol: str
    step: str
    text: str


def describe(event: Any) -> Line:
    """An event as a line."""
    place = getattr(event, "step", "")
    place = "" if place is UNSET else place
    item = getattr(event, "item", UNSET)
    if item is not UNSET:
        place += f"[{item}]"
    symbol, text = _meaning(event)
    return Line(symbol, place, printable(text))


def _meaning(event: Any) -> tuple[str, str]:
    match event:
        case ev.RunStarted():
            by = "" if event.principal is UNSET else f" by {event.principal['id']}"
            return "dot", f"run started{by}"
        case ev.StepStarted() | ev.ChildStarted() | ev.CompensationStarted():
            undo = "undoing" if isinstance(event, ev.CompensationStarted) else "started"
            return "busy", undo if event.attempt == 1 else f"{undo}, attempt {event.attempt}"
        case ev.StepSucceeded():
            return "good", compact(_data(event), 80) + _switched(event)
        case ev.StepFailed():
            again = " (may be tried again)" if event.retryable else ""
            return "bad", f"failed: {event.error}{again}{_switched(event)}"
        case ev.ModelTurned():
            return "busy", _turn(event)
        case ev.ActionProposed():
            name = event.tool if event.tool is not UNSET else "a tool it may not call"
            if event.verdict == "accepted":
                return "dot", f"proposes {name}: accepted"
            return "bad", f"proposes {name}: rejected, {event.reason}"
        case ev.StepPending():
            return "wait", "waits for an answer"
        case ev.OutcomeUnknown():
            return "unknown", f"outcome unknown: {event.reason}"
        case ev.OutcomeResolved():
            return (
                "bad" if event.resolution == "failed" else "good",
                f"{event.resolution}, says {_says(event.by)}",
            )
        case ev.TimerFired():
            return "dot", "timer fired"
        case ev.EventReceived():
            by = "" if event.principal is UNSET else f" from {event.principal['id']}"
            return "good", f"event received{by}: {compact(_data(event), 60)}"
        case ev.EventRefused():
            return "bad", f"event refused: {event.code}"
        case ev.ChildSuspended():
            return "wait", "its child run waits"
        case ev.ChildResumed():
            return "busy", "its child run goes on"
        case ev.ChildFinished():
            return "good" if event.status == "SUCCESS" else "bad", f"child run: {event.status}"
        case _:
            return _rare(event)


def _switched(event: ev.StepSucceeded | ev.StepFailed) -> str:
    """How a model call came to its provider, where it left others for it."""
    ways = [f"{switch.origin} -> {switch.to}: {switch.reason}" for switch in event.switches or ()]
    return f" [{'; '.join(ways)}]" if ways else ""


def _turn(event: ev.ModelTurned) -> str:
    if event.dropped is not UNSET:
        return f"the model proposes {event.dropped} calls at once: none is considered"
    return f"the model proposes {event.proposals} call{'s' * (event.proposals != 1)}"


def _rare(event: Any) -> tuple[str, str]:
    match event:
        case ev.RunCancelled():
            return "bad", "cancelled"
        case ev.BudgetExhausted():
            return "bad", f"needs {event.needed} {event.budget}, {event.left} left"
        case ev.RunAdopted():
            return "dot", f"taken up by another worker (fence {event.fence})"
        case ev.ValuesChanged():
            return "dot", f"values changed: {', '.join(event.names)}"
        case ev.PolicyDecided():
            symbol = {"allow": "dot", "ask": "wait"}.get(event.decision, "bad")
            said = {"allow": "allowed", "ask": "an approval is needed", "deny": "denied"}[event.decision]
            covered = "" if event.approval is UNSET else ", as approved"
            return symbol, f"{said} by `{event.rule}`{covered}"
        case ev.ApprovalRequested():
            return (
                "wait",
                f"asks for approval of {event.tool} by {' and '.join(' or '.join(r) for r in event.roles)}",
            )
        case ev.CompensationSucceeded():
            return "good", "undone"
        case ev.CompensationFailed():
            return "bad", f"not undone: {event.error}"
        case ev.RunFinished():
            return "good" if event.status == "SUCCESS" else "bad", f"run finished: {event.status}"
        case _:
            return "dot", str(getattr(event, "type", "event"))


def _data(event: Any) -> Any:
    return None if event.payload is UNSET else event.payload


def _says(by: str) -> str:
    return {"contract": "its contract", "reconcile": "its reconcile function", "operator": "an operator"}.get(
        by, by
    )


def text_of(console: Console, line: Line) -> str:
    place = f"{printable(line.step)}  " if line.step else ""
    style = line.symbol if line.symbol in ("good", "bad", "busy") else None
    return f"  {console.style(console.symbol(line.symbol), style)} {place}{line.text}"


@contextmanager
def showing(console: Console, *, result: bool = False) -> Iterator[Listen | None]:
    """A listener that shows events as they are journaled; None when nobody looks. With `result` they are what the
    command was asked for, and go to standard output; else they are notes."""
    if console.json_only or console.quiet:
        yield None
    elif console.is_terminal and console.colour:
        with _tree(console) as listen:
            yield listen
    else:
        write = console.line if result else console.note
        yield lambda progress: write(text_of(console, describe(progress.event)))


@contextmanager
def _tree(console: Console) -> Iterator[Listen]:
    from rich.console import Console as RichConsole
    from rich.live import Live
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text("running", "bold"))
    rows: dict[tuple[str, int], Tree] = {}

    def listen(progress: Progress) -> None:
        line = describe(progress.event)
        key = (line.step, getattr(progress.event, "occurrence", 1))
        label = Text.assemble(
            (console.symbol(line.symbol), _COLOURS.get(line.symbol, "dim")), f" {line.step}  {line.text}"
        )
        if not line.step:
            root.label = Text(line.text, "bold")
        elif key in rows:
            rows[key].label = label
        else:
            rows[key] = root.add(label)

    # The tree goes when the run stops: what is shown then is computed from the journal.
    with Live(root, console=RichConsole(file=console.out), transient=True, refresh_per_second=8):
        yield listen
