"""The figures of a bench as a picture: one SVG file that needs nothing else, readable on light and dark pages.

One row per scenario, one panel per measure, each panel with a logarithmic scale of its own: rows are compared within a
panel only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from nano_vm.testing.bench.setting import Figures

_ROW: Final = 30
_TOP: Final = 74
_NAMES: Final = 190  # width of the column of names
_PANEL: Final = 158
_BAR: Final = 78  # the longest bar; the figure stands after it
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#1f2328}.dim{fill:#656d76}.title{font-size:15px;font-weight:600}"
    ".bar{fill:#2f6fb0}.span{fill:#9cc2e5}.mark{fill:#2f6fb0}.bad{fill:#c9302c}.line{stroke:#d0d7de}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#9198a1}.bar,.mark{fill:#58a6ff}"
    ".span{fill:#1f4f82}.bad{fill:#ff7b72}.line{stroke:#3d444d}}"
)


class _Panel(NamedTuple):
    title: str
    unit: str
    low: Callable[[Figures], float]  # where the bar begins to be dark: the median of a range, else the value
    high: Callable[[Figures], float]


_PANELS: Final = (
    _Panel("throughput", "units/s", lambda f: f.throughput, lambda f: f.throughput),
    _Panel(
        "latency p50 – p99",
        "ms",
        lambda f: f.latency_ms.get("p50", 0.0),
        lambda f: f.latency_ms.get("p99", 0.0),
    ),
    _Panel("processor", "µs/step", lambda f: f.cpu_us_per_step, lambda f: f.cpu_us_per_step),
    _Panel(
        "peak memory", "MiB", lambda f: f.peak_memory_bytes / 2**20, lambda f: f.peak_memory_bytes / 2**20
    ),
    _Panel("stored", "bytes/step", lambda f: f.stored_bytes_per_step, lambda f: f.stored_bytes_per_step),
)


def svg(figures: Sequence[Figures], title: str) -> str:
    """The picture of these figures, as the text of an SVG file."""
    width = _NAMES + _PANEL * len(_PANELS)
    height = _TOP + _ROW * len(figures) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="8" y="22">{escape(title)}</text>',
    ]
    for number, one in enumerate(figures):
        y = _TOP + _ROW * number
        kind = "" if one.holds else ' class="bad"'
        sign = "✓" if one.holds else "✗"
        parts.append(f'<text x="8" y="{y + 15}"{kind}>{sign} {escape(one.name.replace("_", " "))}</text>')
        parts.append(f'<line class="line" x1="8" x2="{width - 8}" y1="{y + 24}" y2="{y + 24}"/>')
    for number, panel in enumerate(_PANELS):
        parts += _panel(panel, figures, _NAMES + _PANEL * number)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: _Panel, figures: Sequence[Figures], x: int) -> list[str]:
    parts = [
        f'<text x="{x}" y="46">{escape(panel.title)}</text>',
        f'<text class="dim" x="{x}" y="62">{escape(panel.unit)}</text>',
    ]
    values = [value for one in figures for value in (panel.low(one), panel.high(one)) if value > 0]
    if not values:
        return parts
    least, most = math.log10(min(values)) - 0.3, math.log10(max(values))

    def long(value: float) -> float:
        return _BAR * (math.log10(value) - least) / max(most - least, 0.3) if value > 0 else 0.0

    for number, one in enumerate(figures):
        y = _TOP + _ROW * number + 4
        low, high = panel.low(one), panel.high(one)
        if high <= 0:
            parts.append(f'<text class="dim" x="{x}" y="{y + 11}">–</text>')
            continue
        if high > low:
            parts.append(f'<rect class="span" x="{x}" y="{y}" width="{long(high):.1f}" height="14" rx="2"/>')
        parts.append(f'<rect class="bar" x="{x}" y="{y}" width="{long(low):.1f}" height="14" rx="2"/>')
        shown = short(low) if high <= low else f"{short(low)} – {short(high)}"
        parts.append(f'<text class="dim" x="{x + long(high) + 5:.1f}" y="{y + 11}">{shown}</text>')
    return parts


def short(value: float) -> str:
    """Three figures, with k and M for thousands and millions."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if value >= factor * 0.9995:
            return f"{_three(value / factor)}{unit}"
    return _three(value)


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
