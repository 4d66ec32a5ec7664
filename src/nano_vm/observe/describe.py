"""Journal events in words, for people who look on."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.observe.wording import compact, printable


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
