"""Which events of a run are worth a line in a log, and what the line says: never inputs, outputs or messages.

Spans say what was done and how long it took. Lines say what somebody may have to look at, and when a run began, waited
and ended.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nano_vm.kernel import events as ev
from nano_vm.observe import semconv
from nano_vm.program.compiled import CompiledProgram

INFO, WARN, ERROR = "INFO", "WARN", "ERROR"


class Line(NamedTuple):
    """`name` is the event's name in the log's conventions; `facts` are attributes."""

    name: str
    severity: str
    body: str
    facts: dict[str, Any]


def line_of(program: CompiledProgram, event: Any) -> Line | None:
    """The line about an event, if there is one."""
    found = _worth_a_line(program, event)
    if found is None:
        return None
    name, severity, body, facts = found
    known = {semconv.WORKFLOW_NAME: program.name, **facts}
    for attribute, field in (
        (semconv.STEP, "step"),
        (semconv.OCCURRENCE, "occurrence"),
        (semconv.ATTEMPT, "attempt"),
        (semconv.ITEM, "item"),
    ):
        value = getattr(event, field, ev.UNSET)
        if value is not ev.UNSET:
            known[attribute] = value
    return Line(f"nano_vm.{name}", severity, body, known)


def _worth_a_line(program: CompiledProgram, event: Any) -> tuple[str, str, str, dict[str, Any]] | None:
    match event:
        case ev.RunStarted():
            return "run.started", INFO, f"a run of {program.name} began", {}
        case ev.RunFinished():
            facts: dict[str, Any] = {semconv.RUN_STATUS: event.status}
            if event.outcome is not ev.UNSET:
                facts[semconv.OUTCOME] = event.outcome
            severity = INFO if event.status == "SUCCESS" else ERROR
            return "run.finished", severity, f"the run ended: {event.status}", facts
        case ev.RunCancelled():
            return "run.cancelled", WARN, "somebody asked for the run to end", {}
        case ev.RunAdopted():
            return "run.adopted", WARN, "another worker has taken the run over", {}
        case ev.StepFailed():
            return (
                "step.failed",
                WARN,
                f"{event.step} failed: {event.error}",
                {semconv.ERROR_TYPE: event.error},
            )
        case ev.OutcomeUnknown():
            facts = {semconv.ERROR_TYPE: f"UNKNOWN_{event.reason}"}
            return "outcome.unknown", ERROR, f"nobody knows whether {event.step} happened", facts
        case ev.CompensationFailed():
            facts = {semconv.ERROR_TYPE: str(event.error)}
            return "compensation.failed", ERROR, f"{event.step} was not undone: {event.error}", facts
        case ev.StepPending():
            return "step.pending", INFO, f"{event.step} waits for an answer", {}
        case ev.ApprovalRequested():
            return (
                "approval.requested",
                INFO,
                f"{event.tool} waits for an approval",
                {semconv.TOOL_NAME: event.tool},
            )
        case _:
            return _refused(event)


def _refused(event: Any) -> tuple[str, str, str, dict[str, Any]] | None:
    match event:
        case ev.EventRefused():
            return (
                "event.refused",
                WARN,
                f"an event was refused: {event.code}",
                {semconv.ERROR_TYPE: event.code},
            )
        case ev.ActionProposed() if event.verdict == "rejected":
            reason = str(event.reason)
            return (
                "proposal.rejected",
                WARN,
                f"a model's proposal was rejected: {reason}",
                {semconv.ERROR_TYPE: reason},
            )
        case ev.PolicyDecided() if event.decision == "deny":
            facts = {semconv.ERROR_TYPE: "CAPABILITY_DENIED", "nano_vm.policy.rule": event.rule}
            return "policy.denied", WARN, f"the policy denied {event.step}: {event.reason}", facts
        case ev.BudgetExhausted():
            facts = {semconv.ERROR_TYPE: "BUDGET_EXCEEDED", "nano_vm.budget": event.budget}
            return "budget.exhausted", WARN, f"what is left of {event.budget} does not suffice", facts
        case _:
            return None


__all__ = ["ERROR", "INFO", "WARN", "Line", "line_of"]
