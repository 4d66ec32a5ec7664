"""Values, times and steps in words: one wording for terminals, pages and the studio."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nano_vm.journal.ledger import TraceStep

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def printable(text: str, keep_newlines: bool = False) -> str:
    """Text from programs, tools and models, made safe for a terminal: no control sequences."""
    return "".join(
        character if character.isprintable() or (keep_newlines and character in "\n\t") else "�"
        for character in text
    )


def compact(value: Any, limit: int = 100) -> str:
    """A value on one line, shortened to `limit` characters."""
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def moment(at_ms: int) -> str:
    """Epoch milliseconds as UTC text."""
    if not at_ms:
        return "-"
    try:
        return (_EPOCH + timedelta(milliseconds=at_ms)).strftime("%Y-%m-%d %H:%M:%SZ")
    except OverflowError:
        return f"{at_ms} ms"


def precise_moment(at_ms: int) -> str:
    """`moment`, with milliseconds."""
    text = moment(at_ms)
    return f"{text[:-1]}.{at_ms % 1_000:03d}Z" if text.endswith("Z") else text


def duration(ms: float) -> str:
    if ms < 1_000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1_000:.1f} s"
    return str(timedelta(seconds=round(ms / 1_000)))


def step_text(step: TraceStep) -> str:
    """What came of a step, and what it took."""
    parts = []
    if step.verdict is not None:
        parts.append("holds" if step.verdict else "does not hold")
    elif step.error is not None:
        parts.append(f"{step.error['type']} {printable(str(step.error.get('message', '')))}".strip()[:120])
    elif step.status.value == "SUCCESS":
        parts.append(compact(step.output, 80))
    elif step.status.value == "UNKNOWN":
        parts.append("outcome unknown")
    notes = []
    if step.attempts > 1:
        notes.append(f"{step.attempts} attempts")
    if step.turns:
        rejected = sum(proposal["verdict"] == "rejected" for proposal in step.proposals)
        notes.append(f"{step.turns} turns" + (f", {rejected} proposals rejected" if rejected else ""))
    if step.substituted:
        notes.append("substituted")
    if step.cached:
        notes.append("cached")
    if step.provider is not None:
        notes.append(printable(step.provider))
    if step.tokens:
        notes.append(f"{step.tokens} tokens")
    if step.cost_nanousd:
        notes.append(f"${step.cost_usd:.6f}")
    if step.finished_at_ms is not None and step.duration_ms >= 1:
        notes.append(duration(step.duration_ms))
    if notes:
        parts.append(f"({', '.join(notes)})")
    return " ".join(parts)


def switch_text(switch: dict[str, Any]) -> str:
    """How a model call left one provider for another, on one line."""
    attempts = switch["attempts"]
    tried = "not asked" if not attempts else "1 attempt" if attempts == 1 else f"{attempts} attempts"
    way = f"{switch['from']} -> {switch['to']} at `{switch['step']}`"
    return printable(f"{way}: {switch['reason']} ({tried}, {switch['error']})")
