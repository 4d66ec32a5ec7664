"""When the steps of a run were at work, as SVG: a bar for each occurrence, on one axis of time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

from nano_vm.journal.ledger import TraceStep
from nano_vm.kernel.state import StepStatus
from nano_vm.observe.svg import COLOURS, WAITING, state_of
from nano_vm.observe.wording import duration, printable

BARS_MAX = 120
_NAME, _AFTER, _ROW = 190.0, 90.0, 24.0


def timeline(
    steps: Sequence[TraceStep],
    *,
    now_ms: int | None = None,
    waiting: Collection[str] = (),
    width: float = 960.0,
) -> str:
    """The bars of the last `BARS_MAX` occurrences. Steps in progress reach to `now_ms`, or to the last known moment;
    those in `waiting` are not at work."""
    shown = steps[-BARS_MAX:]
    if not shown:
        return ""
    ends = [_end(step, now_ms) for step in shown]
    start, end = min(step.started_at_ms for step in shown), max(ends)
    span = max(end - start, 1)
    room = width - _NAME - _AFTER
    scale = room / span
    height = len(shown) * _ROW + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="timeline" font-family="inherit" font-size="12">'
    ]
    for part in range(5):
        x = _NAME + room * part / 4
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 20:g}" class="nv-s-kind" '
            f'stroke="{COLOURS["kind"][0]}"/><text x="{x:.1f}" y="{height - 5:g}" text-anchor="middle" '
            f'class="nv-f-soft" font-size="11">{duration(span * part / 4)}</text>'
        )
    for row, (step, until) in enumerate(zip(shown, ends, strict=True)):
        left, long = (step.started_at_ms - start) * scale, (until - step.started_at_ms) * scale
        waits = step.id in waiting and step.status is StepStatus.RUNNING
        parts.append(_bar(step, WAITING if waits else step.status.value, row * _ROW, left, long))
    parts.append("</svg>")
    return "".join(parts)


def _end(step: TraceStep, now_ms: int | None) -> int:
    if step.finished_at_ms is not None:
        return step.finished_at_ms
    return max(now_ms or 0, step.started_at_ms + int(step.duration_ms))


def _bar(step: TraceStep, status: str, top: float, left: float, width: float) -> str:
    state = state_of(status)
    name = step.id + (f"[{step.item}]" if step.item is not None else "")
    name += f" #{step.occurrence}" if step.occurrence > 1 else ""
    name = escape(printable(name if len(name) < 27 else name[:25] + "…"))
    width = max(width, 3.0)
    live = " nv-live" if state == "running" else ""
    took = duration(step.duration_ms) if step.finished_at_ms is not None else status.lower()
    return (
        f'<g class="nv-node" data-step="{escape(printable(step.id), quote=True)}">'
        f'<text x="0" y="{top + 15:.1f}" class="nv-f-text">{name}</text>'
        f'<rect x="{_NAME + left:.1f}" y="{top + 4:.1f}" width="{width:.1f}" height="{_ROW - 9:g}" rx="4" '
        f'class="nv-body nv-f-{state}-tint nv-s-{state}{live}" fill="{COLOURS[f"{state}-tint"][0]}" '
        f'stroke="{COLOURS[state][0]}" stroke-width="1.3"/>'
        f'<text x="{_NAME + left + width + 7:.1f}" y="{top + 15:.1f}" class="nv-f-soft" font-size="11">{took}</text>'
        "</g>"
    )
