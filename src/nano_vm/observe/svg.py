"""Programs and runs as SVG, drawn here: no other program is needed, and the result refers to nothing outside of it.

A card is a step: its name, what it does, and - drawn with a run - a colour for how its last occurrence stands. The
steps of a group stand as rows in its card. Edges that a run has taken are strong. Colours are attributes, for viewers
that know no style sheets, and rules of `STYLE` for the others, which follow the reader's light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from nano_vm.journal.trace import Trace, TraceStep
from nano_vm.observe import layout
from nano_vm.observe.drawing import edges, top_steps
from nano_vm.program.compiled import (
    CallAction,
    CompiledProgram,
    CompiledStep,
    Kind,
    ToolAction,
    WaitAction,
)

ROWS_MAX = 12  # steps of a group that are shown by name
NAME_CHARS_MAX = 30
_CARD, _ROW, _HEAD = 46.0, 24.0, 44.0
_MARGIN = 14.0

# name -> (light, dark)
COLOURS = {
    "page": ("#ffffff", "#12161d"),
    "card": ("#ffffff", "#1b212b"),
    "rim": ("#c9d1dc", "#3d4756"),
    "text": ("#1d2733", "#e8edf4"),
    "soft": ("#66727f", "#9aa7b6"),
    "edge": ("#b4bec9", "#465264"),
    "taken": ("#4a5866", "#a9b6c6"),
    "success": ("#1f8a54", "#3fbf7f"),
    "failed": ("#cf3a53", "#ff6b81"),
    "running": ("#2667e0", "#6ba1ff"),
    "unknown": ("#c96a06", "#ffab4d"),
    "pending": ("#9a7400", "#e5c14b"),
    "skipped": ("#8a95a3", "#7b8796"),
    "success-tint": ("#e9f7ef", "#173226"),
    "failed-tint": ("#fdecef", "#3a1c24"),
    "running-tint": ("#e9f1fe", "#182a48"),
    "unknown-tint": ("#fff2e0", "#3a2912"),
    "pending-tint": ("#fcf5d9", "#352d12"),
    "skipped-tint": ("#f2f4f7", "#20262f"),
    "kind": ("#eef1f5", "#2a323e"),
}
_STATES = {
    "SUCCESS": "success",
    "FAILED": "failed",
    "RUNNING": "running",
    "UNKNOWN": "unknown",
    "PENDING": "pending",
    "SKIPPED": "skipped",
    "WAITING": "pending",
}
WAITING = "WAITING"  # no status of a step: how one is shown that waits for somebody
# What stands out where the rows of a map do not stand alike.
_LOUDEST = ("FAILED", "UNKNOWN", "RUNNING", "PENDING", "SUCCESS", "SKIPPED")
# Paths in a square of 16: what kind of step it is.
_SIGNS = {
    Kind.TOOL: "M10.6 2.2a3.6 3.6 0 0 0-4.3 4.6L2.4 10.7a1.5 1.5 0 0 0 2.2 2.2l3.9-3.9a3.6 3.6 0 0 0 4.6-4.3"
    "L11 6.6 9 6.3 8.7 4.4z",
    Kind.LLM: "M8 2l1.5 4.2L14 8l-4.5 1.6L8 14l-1.5-4.4L2 8l4.5-1.8z",
    Kind.AGENT: "M8 2l1.2 3.3L12.5 6.5 9.2 7.8 8 11 6.8 7.8 3.5 6.5l3.3-1.2z"
    "M12.4 10l.6 1.6 1.6.6-1.6.6-.6 1.6-.6-1.6-1.6-.6 1.6-.6z",
    Kind.CONDITION: "M8 2v3M8 5L4 9v5M8 5l4 4v5",
    Kind.PARALLEL: "M3 3v10M8 3v10M13 3v10",
    Kind.WAIT: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M8 5v3.3l2.2 1.4",
    Kind.MAP: "M3 4h10M3 8h10M3 12h10",
    Kind.CALL: "M5 3H3v10h10v-2M8 8l5-5M9 3h4v4",
}
_STROKED = frozenset({Kind.CONDITION, Kind.PARALLEL, Kind.WAIT, Kind.MAP, Kind.CALL})
_FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


def _style() -> str:
    rules = []
    for name, (light, dark) in COLOURS.items():
        rules.append(f".nv-f-{name}{{fill:light-dark({light},{dark})}}")
        rules.append(f".nv-s-{name}{{stroke:light-dark({light},{dark})}}")
    rules.append(
        "@keyframes nv-march{to{stroke-dashoffset:-20}}"
        ".nv-live{stroke-dasharray:6 4;animation:nv-march 1s linear infinite}"
        "@media (prefers-reduced-motion:reduce){.nv-live{animation:none}}"
        ".nv-node[tabindex]{cursor:pointer;outline:none}"
        ".nv-node[tabindex]:hover .nv-body,.nv-node[tabindex]:focus-visible .nv-body{stroke-width:2.6}"
        ".nv-node.nv-chosen .nv-body{stroke-width:3}"
    )
    return "".join(rules)


STYLE = _style()
"""Rules for all drawings of a page whose `color-scheme` says which of the two schemes holds."""


def state_of(status: str) -> str:
    """The colour's name for the status of a step."""
    return _STATES[status]


class Stand(NamedTuple):
    """How a step stands in a run: the status of its last occurrence, and how often the run came to it."""

    status: str
    times: int


def standing(steps: Iterable[TraceStep]) -> dict[str, Stand]:
    """By step. The lanes of a map stand as the loudest of them does."""
    found: dict[str, Stand] = {}
    occurrence: dict[str, int] = {}
    for step in steps:
        status, old = step.status.value, found.get(step.id)
        if old is not None and step.item is not None and occurrence[step.id] == step.occurrence:
            status = min(status, old.status, key=_LOUDEST.index)
        found[step.id] = Stand(status, 1 if old is None else old.times + 1)
        occurrence[step.id] = step.occurrence
    return found


def taken(program: CompiledProgram, steps: Sequence[TraceStep]) -> set[tuple[str, str]]:
    """The edges that a run has taken, by the names that `drawing.edges` gives their ends."""
    index = program.step_index
    top = [step for step in steps if step.id in index and program.steps[index[step.id]].parent < 0]
    if program.is_dag:
        reached = {f"n_{index[step.id]}" for step in top if step.attempts or step.verdict is not None}
        return {
            (edge.source, edge.target)
            for edge in edges(program)
            if {edge.source, edge.target} <= {"s_", *reached}
        }
    names = ["s_", *(f"n_{index[step.id]}" for step in top)]
    return set(pairwise(names))


def svg(
    program: CompiledProgram,
    steps: Sequence[TraceStep] = (),
    *,
    ended: bool = False,
    waiting: Collection[str] = (),
    standalone: bool = True,
) -> str:
    """A drawing of a program; with the steps of a trace, of that run.

    Args:
        ended: the run has ended, which the way to the end shows.
        waiting: steps that wait for somebody or something; they do not stand as being at work.
        standalone: a file of its own, with its style; else an element for a page that has `STYLE`.
    """
    return _Drawing(program, steps, ended, waiting).text(standalone)


def run_svg(trace: Trace, steps: Sequence[TraceStep] | None = None, *, standalone: bool = True) -> str:
    """A drawing of a run as it stands; `steps` are those of the trace."""
    return svg(
        trace.program,
        trace.steps if steps is None else steps,
        ended=trace.status.is_terminal,
        waiting=waiting_steps(trace),
        standalone=standalone,
    )


def waiting_steps(trace: Trace) -> frozenset[str]:
    """The steps at which a run waits."""
    return frozenset(wait.step for wait in trace.waiting)


class _Drawing:
    def __init__(
        self, program: CompiledProgram, steps: Sequence[TraceStep], ended: bool, waiting: Collection[str]
    ) -> None:
        self.program = program
        self.stood = standing(steps)
        for name in waiting:
            if name in self.stood and self.stood[name].status == "RUNNING":
                self.stood[name] = Stand(WAITING, self.stood[name].times)
        self.taken = taken(program, steps) if steps else set()
        if ended and steps and not program.is_dag:
            last = next(
                (
                    step.id
                    for step in reversed(steps)
                    if program.steps[program.step_index[step.id]].parent < 0
                ),
                None,
            )
            if last is not None:
                self.taken.add((f"n_{program.step_index[last]}", "e_"))
        self.lanes: dict[int, list[CompiledStep]] = {}
        for step in program.steps:
            if step.parent >= 0:
                self.lanes.setdefault(step.parent, []).append(step)

    def text(self, standalone: bool) -> str:
        boxes = [layout.Box("s_", 74.0, 26.0)]
        top = top_steps(self.program)
        for step in top:
            boxes.append(layout.Box(f"n_{step.index}", self._width(step), self._height(step)))
        boxes.append(layout.Box("e_", 74.0, 26.0))
        links = [layout.Link(*edge) for edge in edges(self.program)]
        placed = layout.layered(boxes, links)
        parts = [self._edge(route) for route in placed.routes]
        parts.append(self._terminal(placed.places["s_"], "start"))
        for step in top:
            parts.append(self._card(step, placed.places[f"n_{step.index}"]))
        if any(link.target == "e_" for link in links):
            parts.append(self._terminal(placed.places["e_"], "end"))
        width, height = placed.width + 2 * _MARGIN, placed.height + 2 * _MARGIN
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-_MARGIN:g} {-_MARGIN:g} {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" font-family="{_FONT}" role="img" '
            f'aria-label="{_text(f"graph of {self.program.name}")}">'
        )
        title = f"<title>{_text(self.program.name)} {_text(self.program.version)}</title>"
        if standalone:
            size = f'width="{width:.0f}" height="{height:.0f}"'
            ground = f'<rect x="{-_MARGIN:g}" y="{-_MARGIN:g}" {size} {_fill("page")}/>'
            title += f"<style>:root{{color-scheme:light dark}}{STYLE}</style>{ground}"
        return f"{head}{title}{_MARKERS}{''.join(parts)}</svg>\n"

    # --- steps ------------------------------------------------------------------------------------------------

    def _rows(self, step: CompiledStep) -> list[tuple[CompiledStep, int]]:
        """The steps inside of a group, with how deep they stand."""
        rows = []
        for lane in self.lanes.get(step.index, ()):
            rows.append((lane, 0))
            rows += [(inner, 1 + depth) for inner, depth in self._rows(lane)]
        return rows

    def _width(self, step: CompiledStep) -> float:
        widths = [len(_short(step.id)) * 7.3 + 62, len(_short(_what(self.program, step))) * 6.0 + 56]
        for row, depth in self._rows(step)[:ROWS_MAX]:
            widths.append(len(_short(row.id)) * 6.4 + 70 + 12 * depth)
        if step.kind is Kind.CONDITION:
            widths[0] += 14  # its ends are cut
        return max(150.0, *widths)

    def _height(self, step: CompiledStep) -> float:
        rows = len(self._rows(step))
        return _CARD if not rows else _HEAD + 8 + _ROW * (min(rows, ROWS_MAX) + (rows > ROWS_MAX))

    def _card(self, step: CompiledStep, place: layout.Point) -> str:
        width, height = self._width(step), self._height(step)
        stand = self.stood.get(step.id)
        state = "" if stand is None else _STATES[stand.status]
        says = step.id if stand is None else f"{step.id}: {stand.status}"
        body = (
            f'class="nv-body nv-f-{f"{state}-tint" if state else "card"} nv-s-{state or "rim"}'
            f'{" nv-live" if state == "running" else ""}" fill="{_light(f"{state}-tint" if state else "card")}" '
            f'stroke="{_light(state or "rim")}" stroke-width="1.4"{_DASHED if state == "skipped" else ""}'
        )
        if step.kind is Kind.CONDITION:
            cut = 13.0
            points = (
                f"{cut:g},0 {width - cut:g},0 {width:g},{height / 2:g} {width - cut:g},{height:g} "
                f"{cut:g},{height:g} 0,{height / 2:g}"
            )
            shape = f'<polygon points="{points}" {body}/>'
        else:
            radius = (
                9 if step.kind not in (Kind.LLM, Kind.AGENT) or self.lanes.get(step.index) else height / 2
            )
            shape = f'<rect width="{width:g}" height="{height:g}" rx="{radius:g}" {body}/>'
        parts = [
            f'<g class="nv-node" data-step="{_text(step.id)}" transform="translate({place[0]:.1f} {place[1]:.1f})">',
            f"<title>{_text(says)}</title>",
            shape,
            _sign(step.kind, 12.0, 11.0, state),
            _write(_short(step.id), 44, 20, "text", 13, 600),
            _write(_short(_what(self.program, step)), 44, 35, "soft", 11),
        ]
        if stand is not None and stand.times > 1:
            parts.append(_write(f"x{stand.times}", width - 12, 20, state, 11, 600, "end"))
        rows = self._rows(step)
        for number, (row, depth) in enumerate(rows[:ROWS_MAX]):
            parts.append(self._row(row, _HEAD + number * _ROW, width, depth))
        if len(rows) > ROWS_MAX:
            parts.append(
                _write(f"and {len(rows) - ROWS_MAX} more", 20, _HEAD + ROWS_MAX * _ROW + 16, "soft", 11)
            )
        parts.append("</g>")
        return "".join(parts)

    def _row(self, row: CompiledStep, top: float, width: float, depth: int) -> str:
        stand = self.stood.get(row.id)
        state = "" if stand is None else _STATES[stand.status]
        left = 10.0 + 12 * depth
        body = (
            f'<rect class="nv-body nv-f-{f"{state}-tint" if state else "kind"} nv-s-{state or "rim"}'
            f'{" nv-live" if state == "running" else ""}" x="{left:g}" y="{top:g}" width="{width - left - 10:g}" '
            f'height="{_ROW - 5:g}" rx="6" fill="{_light(f"{state}-tint" if state else "kind")}" '
            f'stroke="{_light(state or "rim")}" stroke-width="1"/>'
        )
        times = (
            ""
            if stand is None or stand.times < 2
            else _write(f"x{stand.times}", width - 16, top + 14, state, 10, 600, "end")
        )
        return (
            f'<g class="nv-node" data-step="{_text(row.id)}"><title>{_text(row.id)}'
            f"{'' if stand is None else f': {stand.status}'}</title>{body}"
            f"{_write(_short(row.id), left + 10, top + 14, 'text', 11)}{times}</g>"
        )

    def _terminal(self, place: layout.Point, word: str) -> str:
        x, y = place
        return (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="74" height="26" rx="13" {_fill("kind")}/>'
            f"{_write(word, x + 37, y + 17, 'soft', 11, 600, 'middle')}"
        )

    # --- edges ------------------------------------------------------------------------------------------------

    def _edge(self, route: layout.Route) -> str:
        link = route.link
        name = "taken" if (link.source, link.target) in self.taken else "edge"
        path = _back(route.points) if route.back else _down(route.points)
        parts = [
            f'<path d="{path}" fill="none" class="nv-s-{name}" stroke="{_light(name)}" '
            f'stroke-width="{2 if name == "taken" else 1.4}" marker-end="url(#nv-{name})"/>'
        ]
        if link.text:
            x, y = route.points[0]
            beyond = route.points[1][0] - x
            if route.back:
                x, y, anchor = x + (6 if beyond >= 0 else -6), y - 6, "start" if beyond >= 0 else "end"
            else:
                anchor = "end" if beyond < -4 else "start"
                x, y = x + (-5 if anchor == "end" else 5), y + 15
            parts.append(_write(_short(link.text), x, y, "soft", 10.5, anchor=anchor))
        return "".join(parts)


def _down(points: Sequence[layout.Point]) -> str:
    x, y = points[0]
    path = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in points[1:]:
        if abs(to_x - x) < 0.5:
            path.append(f"L{to_x:.1f} {to_y:.1f}")
        else:
            middle = (y + to_y) / 2
            path.append(f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
    return "".join(path)


def _back(points: Sequence[layout.Point]) -> str:
    """Straight lines with round corners."""
    x, y = points[0]
    path = [f"M{x:.1f} {y:.1f}"]
    for (at_x, at_y), (to_x, to_y) in pairwise(points[1:]):
        before, after = abs(at_x - x) + abs(at_y - y), abs(to_x - at_x) + abs(to_y - at_y)
        turn = min(10.0, before / 2, after / 2)
        if before and after:
            in_x, in_y = at_x + (x - at_x) / before * turn, at_y + (y - at_y) / before * turn
            out_x, out_y = at_x + (to_x - at_x) / after * turn, at_y + (to_y - at_y) / after * turn
            path.append(f"L{in_x:.1f} {in_y:.1f}Q{at_x:.1f} {at_y:.1f} {out_x:.1f} {out_y:.1f}")
        x, y = at_x, at_y
    path.append(f"L{points[-1][0]:.1f} {points[-1][1]:.1f}")
    return "".join(path)


# --- pieces of SVG --------------------------------------------------------------------------------------------


def _light(name: str) -> str:
    return COLOURS[name][0]


def _fill(name: str) -> str:
    return f'class="nv-f-{name}" fill="{_light(name)}"'


_DASHED = ' stroke-dasharray="4 3"'
_MARKERS = "<defs>{}</defs>".format(
    "".join(
        f'<marker id="nv-{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0.6L7.4 4 0 7.4z" {_fill(name)}/></marker>'
        for name in ("edge", "taken")
    )
)


def _sign(kind: Kind, x: float, y: float, state: str) -> str:
    name = state or "soft"
    ink = (
        f'fill="none" class="nv-s-{name}" stroke="{_light(name)}" stroke-width="1.5" stroke-linecap="round" '
        'stroke-linejoin="round"'
        if kind in _STROKED
        else _fill(name)
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="24" height="24" rx="7" {_fill("kind")}/>'
        f'<path transform="translate({x + 4:g} {y + 4:g})" d="{_SIGNS[kind]}" {ink}/>'
    )


def _write(
    text: str, x: float, y: float, colour: str, size: float, weight: int = 400, anchor: str = "start"
) -> str:
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:g}"{bold}{where}'
    return f"<text {place} {_fill(colour or 'soft')}>{_text(text)}</text>"


def _what(program: CompiledProgram, step: CompiledStep) -> str:
    """What a step does, in a few words."""
    action = step.action
    kind = step.kind.name.lower()
    if type(action) is ToolAction:
        return f"{kind} {action.tool}"
    if type(action) is CallAction:
        return (
            f"{kind} {action.program if not action.program.startswith('sha256:') else action.program[7:15]}"
        )
    if type(action) is WaitAction:
        if action.approvers:
            return f"approval by {' or '.join(action.approvers)}"
        return f"wait for {action.event}" if action.event else "wait for a time"
    return kind


def _short(text: str) -> str:
    return text if len(text) <= NAME_CHARS_MAX else text[: NAME_CHARS_MAX - 1] + "…"


def _text(text: str) -> str:
    """Text that is safe in XML, whatever an author has written."""
    return escape("".join(c if c.isprintable() else "�" for c in text), quote=True)
