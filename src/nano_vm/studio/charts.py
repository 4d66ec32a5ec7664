"""Small charts as SVG, in the colours of the drawings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nano_vm.studio.markup import Markup, text

_WIDE, _HIGH, _LEFT, _BOTTOM = 960.0, 220.0, 46.0, 22.0


def _nice(most: float) -> tuple[float, int]:
    """The top of an axis that reaches `most`, and into how many equal parts of round numbers it falls."""
    step = 10.0 ** math.floor(math.log10(most / 4))
    for factor in (1, 2, 2.5, 5, 10):
        if most <= step * factor * 5:
            parts = math.ceil(most / (step * factor) - 1e-9)
            return step * factor * parts, parts
    return most, 4


def _axes(top: float, count: int, unit: str) -> list[str]:
    parts = []
    for part in range(count + 1):
        y = 8 + (_HIGH - _BOTTOM - 8) * part / count
        value = top * (count - part) / count
        parts.append(
            f'<line x1="{_LEFT:g}" x2="{_WIDE:g}" y1="{y:.1f}" y2="{y:.1f}" class="nv-s-kind"/>'
            f"{_write(f'{unit}{value:.4g}', _LEFT - 6, y + 4, 'end')}"
        )
    return parts


def _write(words: str, x: float, y: float, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="11" class="nv-f-soft">{text(words)}</text>'


def _frame(parts: Sequence[str], name: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_WIDE:g} {_HIGH:g}" width="{_WIDE:g}" height="{_HIGH:g}" font-family="inherit" '
        f'role="img" aria-label="{text(name)}">{"".join(parts)}</svg>'
    )


def line(values: Sequence[float], name: str, *, threshold: float | None = None, label: str = "") -> Markup:
    """Values in order, and a line that they should stay under."""
    top, count = _nice(max([*values, threshold or 0.0, 1e-9]) * 1.02)
    wide, high = _WIDE - _LEFT - 4, _HIGH - _BOTTOM - 8
    step = max(1, len(values) // 1_200)  # more points than pixels say nothing
    kept = [max(values[at : at + step]) for at in range(0, len(values), step)]
    spots = [
        f"{_LEFT + wide * at / max(len(kept) - 1, 1):.1f},{8 + high * (1 - value / top):.1f}"
        for at, value in enumerate(kept)
    ]
    parts = _axes(top, count, "")
    if threshold is not None:
        y = 8 + high * (1 - threshold / top)
        parts.append(
            f'<line x1="{_LEFT:g}" x2="{_WIDE:g}" y1="{y:.1f}" y2="{y:.1f}" class="nv-s-failed" stroke-dasharray="5 4" '
            f'stroke-width="1.4"/><text x="{_WIDE - 4:g}" y="{y - 5:.1f}" text-anchor="end" font-size="11" '
            f'class="nv-f-failed">{text(label)}</text>'
        )
    parts.append(
        f'<polyline points="{" ".join(spots)}" fill="none" class="nv-s-running" stroke-width="1.8"/>'
    )
    parts.append(_write("run 1", _LEFT, _HIGH - 5))
    parts.append(_write(f"run {len(values):,}", _WIDE - 4, _HIGH - 5, "end"))
    return _frame(parts, name)


def bars(values: Sequence[tuple[str, float]], name: str, unit: str = "") -> Markup:
    """Named values beside one another."""
    if not values:
        return Markup("")
    top, count = _nice(max([value for _, value in values] + [1e-9]) * 1.02)
    wide, high = _WIDE - _LEFT - 4, _HIGH - _BOTTOM - 8
    room = wide / len(values)
    thick = min(room * 0.7, 64.0)
    parts = _axes(top, count, unit)
    every = max(1, len(values) // 12)
    for at, (word, value) in enumerate(values):
        middle = _LEFT + room * (at + 0.5)
        tall = high * value / top
        parts.append(
            f'<rect x="{middle - thick / 2:.1f}" y="{8 + high - tall:.1f}" width="{thick:.1f}" height="{tall:.1f}" '
            f'rx="3" class="nv-f-running"><title>{text(word)}: {unit}{value:.6g}</title></rect>'
        )
        if at % every == 0:
            parts.append(_write(word, middle, _HIGH - 5, "middle"))
    return _frame(parts, name)
