"""Runs as clients see them: JSON documents, folds of the journal and nothing else (P12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from nano_vm import canonical
from nano_vm.journal.port import RunRecord
from nano_vm.journal.trace import Trace, TraceStep
from nano_vm.kernel import events as ev
from nano_vm.runtime.approvals import PendingApproval
from nano_vm.runtime.ways import places

VALUE_BYTES_MAX = 64 * 1024  # of one value inside a list; larger ones are named by digest
REFUSED_MAX = 50

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(at_ms: int | None) -> str | None:
    """Epoch milliseconds as RFC 3339 text."""
    if not at_ms:
        return None
    try:
        at = _EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return None
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_view(trace: Trace) -> dict[str, Any]:
    """How a run stands: what `run_program` answers."""
    status = trace.status.value
    return {
        "trace_id": trace.trace_id,
        "program": {"name": trace.program_name, "hash": trace.program_hash},
        "status": status,
        "outcome": trace.outcome,
        "output": trace.final_output,
        "outputs": trace.outputs,
        "error": trace.error,
        "waiting": waits_view(trace),
        "total_tokens": trace.total_tokens(),
        "total_cost_usd": trace.total_cost_usd(),
        "outcome_hash": trace.outcome_hash if trace.status.is_terminal else None,
        "started_at": moment(trace.started_at_ms),
        "finished_at": moment(trace.finished_at_ms),
        "incomplete_compensations": trace.incomplete_compensations,
    }


def flat_waits(trace: Trace) -> list[dict[str, Any]]:
    """What the run and its children wait for; `step` is the way to it, as in `call/step` and `call[0]/step`, and
    `child` the run that waits."""
    return [
        place.named if place.run_id == trace.trace_id else {**place.named, "child": place.run_id}
        for place in places(trace.trace_id, [wait.to_dict() for wait in trace.waiting])
    ]


def waits_view(trace: Trace) -> list[dict[str, Any]]:
    """The waits, each with the call that answers it."""
    found = []
    for wait in flat_waits(trace):
        plain = canonical.decode(canonical.encode(wait))
        plain["due_at"] = moment(plain.pop("due_ms", 0))
        plain["answer_with"] = _answer_with(trace.trace_id, wait)
        found.append(plain)
    return found


def question_view(asked: PendingApproval) -> dict[str, Any]:
    """What a wait for an approval of an action says besides: what it would allow, and who may give it."""
    groups = [list(group) for group in asked.groups]
    return {"shown": asked.shown, "groups": groups, "not_by": list(asked.not_by)}


def _answer_with(run_id: str, wait: dict[str, Any]) -> dict[str, Any] | None:
    arguments: dict[str, Any] = {"trace_id": run_id, "step": wait["step"]}
    if "item" in wait:
        arguments["item"] = wait["item"]
    kind = wait["kind"]
    if kind == "timer":
        return None  # the gateway fires it
    if kind == "approval":
        arguments["approve"] = True
        if wait.get("action"):
            arguments |= {"action": wait["action"], "nonce": wait["nonce"]}
    elif kind == "outcome":
        arguments["resolution"] = "succeeded"
        arguments["value"] = None
    else:
        arguments["event"] = {}
        if wait.get("event"):
            arguments["name"] = wait["event"]
    return {"tool": "resume_run", "arguments": arguments}


def step_view(step: TraceStep, outputs: bool) -> dict[str, Any]:
    plain = step.to_dict()
    plain["started_at"] = moment(plain.pop("started_at_ms"))
    plain["finished_at"] = moment(plain.pop("finished_at_ms"))
    if not outputs:
        plain.pop("output", None)
    elif plain.get("output") is not None:
        plain["output"] = fitting(plain["output"])
    return plain


def fitting(value: Any) -> Any:
    """The value, or what identifies it when it is too large to be sent along."""
    encoded = canonical.encode(value)
    if len(encoded) <= VALUE_BYTES_MAX:
        return value
    return {"omitted": True, "bytes": len(encoded), "digest": canonical.digest(encoded)}


def trace_view(trace: Trace, offset: int, limit: int, outputs: bool) -> dict[str, Any]:
    """All of a run; of its steps those from `offset`, at most `limit`."""
    plain = trace.to_dict()
    steps = trace.steps
    view = run_view(trace)
    view["output"] = fitting(view["output"])
    for name in (
        "path",
        "rollbacks",
        "trace_hash",
        "disclosure_root",
        "entries",
        "head",
        "duration_ms",
    ):
        view[name] = plain[name]
    if len(view["path"]) > limit:
        view["path"] = view["path"][offset : offset + limit]
    view["steps_total"] = len(steps)
    view["steps"] = [step_view(step, outputs) for step in steps[offset : offset + limit]]
    view["next_offset"] = offset + limit if offset + limit < len(steps) else None
    return view


def record_view(record: RunRecord) -> dict[str, Any]:
    return {
        "trace_id": record.run_id,
        "program": {"name": record.program_name, "hash": record.program_hash},
        "status": record.status,
        "outcome": record.outcome,
        "created_at": moment(record.created_at_ms),
        "updated_at": moment(record.updated_at_ms),
        "waits_for": sorted({str(wait.get("kind")) for wait in record.waits}),
    }


def debug_view(trace: Trace) -> dict[str, Any]:
    """What went wrong in a run, what is open, and what to do about it."""
    failed, unknown, retried = [], [], []
    for step in trace.steps:
        status = step.status.value
        if status == "FAILED":
            failed.append({"step": step.id, "occurrence": step.occurrence, "error": step.error})
        elif status == "UNKNOWN":
            unknown.append({"step": step.id, "occurrence": step.occurrence, "attempts": step.attempts})
        if step.failures:
            retried.append({"step": step.id, "occurrence": step.occurrence, "failures": step.failures[:10]})
    refused = [
        {
            "code": event.code,
            "event_id": event.event_id,
            "step": None if event.step is ev.UNSET else event.step,
            "at": moment(event.at_ms),
        }
        for event in trace.events
        if type(event) is ev.EventRefused
    ]
    view = run_view(trace)
    view["output"] = fitting(view["output"])
    view.update(
        failed_steps=failed,
        unknown_outcomes=unknown,
        failed_attempts=retried,
        refused_events=refused[-REFUSED_MAX:],
        refused_events_total=len(refused),
        rollbacks=trace.rollbacks,
        last_steps=[step_view(step, True) for step in trace.steps[-5:]],
        advice=_advice(view, failed, unknown),
    )
    return view


def _advice(view: dict[str, Any], failed: list[dict[str, Any]], unknown: list[dict[str, Any]]) -> list[str]:
    found = []
    status = view["status"]
    if unknown:
        names = ", ".join(f"`{each['step']}`" for each in unknown)
        found.append(
            f"nobody knows whether {names} happened: find out, then call resume_run with `resolution` "
            "succeeded, failed or repeat"
        )
    if status == "SUSPENDED":
        for wait in view["waiting"]:
            if wait["answer_with"] is None:
                found.append(
                    f"the timer of `{wait['step']}` is due at {wait['due_at']}; nothing has to be done"
                )
            elif wait["kind"] == "approval":
                roles = " or ".join(wait.get("approvers", ()))
                found.append(f"`{wait['step']}` waits for an approval by {roles}")
            elif wait["kind"] != "outcome":
                found.append(f"`{wait['step']}` waits for an answer; `answer_with` shows the call")
    if status == "FAILED" and failed:
        found.append(f"`{failed[-1]['step']}` failed for good; its `error` says why")
    if status == "BUDGET_EXCEEDED":
        found.append("a budget of the program is spent: raise it, or see in `last_steps` whether it loops")
    if status == "STALLED":
        found.append("the last steps changed no value: see in `last_steps` what is missing")
    if view["incomplete_compensations"]:
        found.append("not everything could be undone: see `incomplete_compensations`")
    if status == "RUNNING":
        found.append("the run is under way; ask again")
    return found or ["nothing is wrong with this run"]
