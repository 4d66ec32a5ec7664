"""A receipt in plain sentences, for people who read no JSON. It says what the receipt says and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENDS = {
    "SUCCESS": "It ended in success",
    "FAILED": "It failed",
    "BUDGET_EXCEEDED": "It was stopped because a budget was spent",
    "STALLED": "It was stopped because nothing changed any more",
    "CANCELLED": "It was cancelled",
    "SUSPENDED": "It has not ended: it waits",
    "RUNNING": "It has not ended",
}
_REASONS = {
    "NOT_UNDONE": "steps that should have been undone were not",
    "OUTCOME_UNKNOWN": "nobody knows whether a step happened",
    "RUN_FAILED": "the run failed",
    "BUDGET_EXCEEDED": "a budget was spent",
    "STALLED": "the run stalled",
    "CANCELLED": "somebody cancelled the run",
    "STEP_FAILED": "a step failed",
    "RETRIED": "a step had to be tried again",
    "SUBSTITUTED": "a fallback took the place of an answer",
    "COMPENSATED": "steps were undone",
    "SWITCHED": "another provider took over",
    "EVENT_REFUSED": "an event was refused",
}
PATH_MAX = 24


def narrative(receipt: dict[str, Any]) -> str:
    """The receipt as text: one sentence or two per line, in the order a reader asks."""
    return "\n".join(_sentences(receipt)) + "\n"


def _sentences(receipt: dict[str, Any]) -> Iterable[str]:
    program = receipt["program"]
    yield f"Run {receipt['trace_id']} of the program `{program['name']}` began at {_moment(receipt['started_at_ms'])}."
    if receipt["principal"]:
        yield f"It was started by {_who(receipt['principal'])}."
    if receipt["parent"]:
        yield f"It was called by step `{receipt['parent']['step']}` of run {receipt['parent']['run']}."
    if receipt["forked"]:
        forked = receipt["forked"]
        yield f"It shares its first {forked['seq']} entries with run {forked['run']}, from which it was forked."
    yield _ending(receipt)
    yield from _what_happened(receipt)
    if receipt["policy"] or receipt["decisions"]:
        decided = ", ".join(f"{decision} {count}" for decision, count in sorted(receipt["decisions"].items()))
        named = (
            f"It ran under the policy {receipt['policy']}"
            if receipt["policy"]
            else "It had no policy of its own"
        )
        yield f"{named}; decisions: {decided or 'none'}."
    yield from _outsiders(receipt)
    yield _cost(receipt)
    yield _health(receipt["health"])
    yield from _evidence(receipt)


def _ending(receipt: dict[str, Any]) -> str:
    text = _ENDS[receipt["status"]]
    if receipt["outcome"]:
        text += f", with the outcome `{receipt['outcome']}`"
    if receipt["finished_at_ms"] is not None:
        text += f", at {_moment(receipt['finished_at_ms'])}, after {_duration(receipt['duration_ms'])}"
    error = receipt["error"]
    if error is not None:
        where = f" at step `{error['step']}`" if error.get("step") else ""
        text += f". The reason was {error['type']}{where}"
    return text + "."


def _what_happened(receipt: dict[str, Any]) -> Iterable[str]:
    path = receipt["path"]
    if path:
        shown = ", ".join(path[:PATH_MAX])
        more = f" and {len(path) - PATH_MAX} more" if len(path) > PATH_MAX else ""
        yield f"It took {_count(len(path), 'step')}: {shown}{more}."
    for step in receipt["troubled"]:
        place = f"Step `{step['step']}`" + (f"[{step['item']}]" if "item" in step else "")
        errors = f" with {', '.join(step['errors'])}" if step["errors"] else ""
        made = f"{place} was dispatched {_times(step['attempts'])}{errors} and ended {step['status']}"
        yield made + (", with its fallback in place of an answer." if step.get("substituted") else ".")
    if receipt["compensated"]:
        yield f"Undone: {_count(receipt['compensated'], 'step')}."
    if receipt["incomplete"]:
        yield f"Not undone, and in need of somebody: {', '.join(receipt['incomplete'])}."
    for switch in receipt["switch_events"]:
        to = f" for {switch['to']}" if switch.get("to") else ""
        yield f"Step `{switch['step']}` left the provider {switch['from']}{to}: {switch['reason']}."
    if receipt["provider_final"]:
        yield f"The last answer of a model came from {receipt['provider_final']}."
    for wait in receipt["waiting"]:
        yield f"It waits at step `{wait['step']}` ({wait['kind']})."


def _outsiders(receipt: dict[str, Any]) -> Iterable[str]:
    for event in sorted([*receipt["events"], *receipt["refused"]], key=lambda event: event["seq"]):
        what = f"was refused: {event['code']}" if "code" in event else "was taken"
        kind = "event" if "code" in event else event["type"]
        yield f"Entry {event['seq']}: {kind}{_to(event)}{_by(event)} {what}."


def _cost(receipt: dict[str, Any]) -> str:
    text = f"It used {_count(receipt['tokens'], 'token')} and cost ${receipt['cost_nanousd'] / 1e9:.6f}"
    return text + (f", with {_count(receipt['retries'], 'repeated attempt')}." if receipt["retries"] else ".")


def _health(health: dict[str, Any]) -> str:
    reasons = "; ".join(_REASONS[reason] for reason in health["reasons"])
    return f"Health: {health['verdict']}" + (
        f" - {reasons}." if reasons else ", nothing out of the ordinary."
    )


def _evidence(receipt: dict[str, Any]) -> Iterable[str]:
    if receipt["erased"]:
        count = _count(len(receipt["erased"]), "payload")
        yield f"{count} of the journal cannot be read any more; what was decided from it cannot be re-checked."
    hashes = receipt["hashes"]
    yield f"The journal has {_count(receipt['entries'], 'entry', 'entries')}; the last has the digest {hashes['head']}."
    yield f"trace_hash {hashes['trace_hash']}, outcome_hash {hashes['outcome_hash']}."


def _who(principal: dict[str, Any]) -> str:
    roles = principal.get("roles") or []
    return f"`{principal['id']}`" + (f" ({', '.join(roles)})" if roles else "")


def _by(event: dict[str, Any]) -> str:
    return f" from {_who(event['principal'])}" if "principal" in event else ""


def _to(event: dict[str, Any]) -> str:
    name = f" `{event['name']}`" if "name" in event else ""
    return name + (f" for step `{event['step']}`" if "step" in event else "")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _times(number: int) -> str:
    return {0: "not at all", 1: "once", 2: "twice"}.get(number, f"{number} times")


def _moment(at_ms: int) -> str:
    try:
        return (_EPOCH + timedelta(milliseconds=at_ms)).strftime("%Y-%m-%d %H:%M:%S UTC")
    except OverflowError:
        return f"{at_ms} ms"


def _duration(ms: int) -> str:
    return (
        f"{ms} ms"
        if ms < 1_000
        else f"{ms / 1_000:.1f} s"
        if ms < 60_000
        else str(timedelta(seconds=ms // 1_000))
    )
