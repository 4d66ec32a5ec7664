"""The receipt of a run: what can be shown to others. A function of the trace (P12)."""

from __future__ import annotations

from typing import Any

from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev


def receipt_of(trace: Trace) -> dict[str, Any]:
    """Status, path, retries, refusals, cost and hashes; no output and no input."""
    return {
        "trace_id": trace.trace_id,
        "program": {"name": trace.program_name, "hash": trace.program_hash},
        "status": trace.status.value,
        "outcome": trace.outcome,
        "path": trace.path,
        "retries": sum(step.retries for step in trace.steps),
        "rollbacks": trace.rollbacks,
        "refused_events": sum(type(event) is ev.EventRefused for event in trace.events),
        "total_tokens": trace.total_tokens(),
        "total_cost_usd": trace.total_cost_usd(),
        "started_at_ms": trace.started_at_ms,
        "finished_at_ms": trace.finished_at_ms,
        "resumable": trace.status.value in ("RUNNING", "SUSPENDED"),
        "entries": len(trace.entries),
        "head": trace.head,
        "trace_hash": trace.trace_hash,
        "outcome_hash": trace.outcome_hash,
        "disclosure_root": trace.disclosure_root,
    }
