"""Receipts: what a run came to, as a function of its trace alone (SPEC §10, P12; `spec/receipt.md`).

A receipt holds facts and digests. It holds nothing that can be erased: no input, output, message or request, so it may
be kept when they are gone. The same trace gives the same bytes on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.journal.entry import Entry, open_events, read_facts
from nano_vm.journal.ledger import TraceStep
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import StepStatus

FORMAT = "nano-vm.receipt"
VERSION = 1

# Reasons for a health other than GOOD, in the order they are listed. Those in `_BAD` make it BAD.
_BAD = frozenset({"NOT_UNDONE", "OUTCOME_UNKNOWN", "RUN_FAILED", "BUDGET_EXCEEDED", "STALLED"})


def receipt(trace: Trace) -> dict[str, Any]:
    """The receipt of a run, finished or not, as a JSON object; `spec/receipt.md` says what each member is.

    Raises:
        VerificationError: as `fold`, when the kernel would not take the journal.
    """
    facts = _Facts(trace.entries)
    steps = trace.eventful
    error = trace.error
    ended = trace.status.is_terminal
    return {
        "compensated": trace.rollbacks,
        "cost_nanousd": trace.total_cost_nanousd(),
        "decisions": facts.decisions,
        "duration_ms": int(trace.duration_ms),
        "entries": len(trace.entries),
        "erased": facts.erased,
        "error": None if error is None else {name: error[name] for name in ("step", "type") if name in error},
        "events": facts.accepted,
        "finished_at_ms": trace.finished_at_ms,
        "forked": facts.forked,
        "format": FORMAT,
        "hashes": {
            "disclosure_root": trace.disclosure_root,
            "head": trace.head,
            "outcome_hash": trace.outcome_hash,
            "trace_hash": trace.trace_hash,
        },
        "health": _health(trace, steps, facts),
        "incomplete": trace.incomplete_compensations,
        "outcome": trace.outcome,
        "parent": facts.parent,
        "path": trace.path,
        "policy": facts.policy,
        "principal": facts.principal,
        "program": {"hash": trace.program_hash, "name": trace.program_name},
        "provider_final": trace.provider_final,
        "refused": facts.refused,
        "replayable": not facts.erased,
        "resumable": not ended,
        "retries": sum(step.retries for step in steps),
        "started_at_ms": trace.started_at_ms,
        "status": trace.status.value,
        "steps": dict(trace.counts),
        "switch_events": trace.switch_events,
        "tokens": trace.total_tokens(),
        "trace_id": trace.trace_id,
        "troubled": [_trouble(step) for step in steps if _is_troubled(step)],
        "version": VERSION,
        "waiting": [wait.to_dict() for wait in trace.waiting],
    }


def receipt_bytes(trace: Trace) -> bytes:
    """The receipt's canonical bytes (RFC 8785)."""
    return canonical.encode(receipt(trace))


class _Facts:
    """What is read from the entries themselves: it needs no fold."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.erased: list[int] = []
        self.accepted: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self.forked: dict[str, Any] | None = None
        self.parent: dict[str, Any] | None = None
        self.principal: dict[str, Any] | None = None
        self.policy: str | None = None
        self.decisions: dict[str, int] = {}
        for entry in entries:
            if (
                entry.payload is not None
                and entry.facts.endswith(_SUCCEEDED)
                and b'"PolicyDecided"' not in entry.facts
            ):
                continue  # nothing of what is asked here
            facts = read_facts(entry)
            if facts.commitment is not None and entry.payload is None:
                self.erased.append(entry.seq)
            if facts.type in _NOTED:
                self._take(entry.seq, open_events(entry, facts)[0])
            if b'"PolicyDecided"' in entry.facts:
                for event in open_events(entry, facts):
                    if type(event) is ev.PolicyDecided:
                        self.decisions[event.decision] = self.decisions.get(event.decision, 0) + 1

    def _take(self, seq: int, event: ev.Event) -> None:
        if type(event) is ev.RunStarted:
            self.forked = _given(event.forked)
            self.parent = _given(event.parent)
            self.policy = _given(event.policy)
            self.principal = _given(event.principal)
        elif type(event) is ev.EventRefused:
            self.refused.append({"code": event.code, **_outside(seq, event)})
        else:
            self.accepted.append(_outside(seq, event))


_NOTED = frozenset(
    {"RunStarted", "EventReceived", "EventRefused", "OutcomeResolved", "RunCancelled", "ValuesChanged"}
)


_SUCCEEDED = b',"type":"StepSucceeded"}'


def _given(value: Any) -> Any:
    return None if value is UNSET else value


def _outside(seq: int, event: Any) -> dict[str, Any]:
    """Who sent what kind of event, and where it went; never what was in it."""
    found: dict[str, Any] = {"seq": seq, "type": event.type}
    for name in ("by", "event_id", "item", "name", "principal", "resolution", "step"):
        value = getattr(event, name, UNSET)
        if value is not UNSET:
            found[name] = value
    return found


def _is_troubled(step: TraceStep) -> bool:
    return bool(step.failures) or step.substituted or step.status in (StepStatus.FAILED, StepStatus.UNKNOWN)


def _trouble(step: TraceStep) -> dict[str, Any]:
    found: dict[str, Any] = {
        "attempts": step.attempts,
        "errors": [failure["error"] for failure in step.failures],
        "occurrence": step.occurrence,
        "status": step.status.value,
        "step": step.id,
    }
    if step.item is not None:
        found["item"] = step.item
    if step.substituted:
        found["substituted"] = True
    return found


def _health(trace: Trace, steps: Sequence[TraceStep], facts: _Facts) -> dict[str, Any]:
    """GOOD: as the author would want it. STRAINED: it got there, but not without trouble. BAD: somebody must look."""
    status = trace.status.value
    error = trace.error or {}
    found = {
        "NOT_UNDONE": bool(trace.incomplete_compensations),
        "OUTCOME_UNKNOWN": any(step.status is StepStatus.UNKNOWN for step in steps),
        "RUN_FAILED": status == "FAILED" and error.get("type") != "GOVERNED_FAILURE",
        "BUDGET_EXCEEDED": status == "BUDGET_EXCEEDED",
        "STALLED": status == "STALLED",
        "CANCELLED": status == "CANCELLED",
        "STEP_FAILED": any(step.status is StepStatus.FAILED for step in steps),
        "RETRIED": any(step.retries for step in steps),
        "SUBSTITUTED": any(step.substituted for step in steps),
        "COMPENSATED": trace.rollbacks > 0,
        "SWITCHED": bool(trace.switch_events),
        "EVENT_REFUSED": bool(facts.refused),
    }
    reasons = [reason for reason, holds in found.items() if holds]
    verdict = "BAD" if _BAD.intersection(reasons) else "STRAINED" if reasons else "GOOD"
    return {"reasons": reasons, "verdict": verdict}
