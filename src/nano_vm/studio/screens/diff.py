"""Diff: two runs beside one another, where they part, and whether they came to the same."""

from __future__ import annotations

from typing import Any

import streamlit as st

from nano_vm.journal.diff import StepDifference, diff
from nano_vm.journal.port import RunRecord
from nano_vm.journal.trace import TraceStep
from nano_vm.observe.svg import run_svg
from nano_vm.observe.wording import compact, switch_text
from nano_vm.studio.frame import empty, follow, guarded, library, param, run_link
from nano_vm.studio.library import Sight
from nano_vm.studio.markup import Markup, chip, code, join, soft, table, tag
from nano_vm.studio.view import show

SHOWN_MAX = 200
RECENT = 200  # runs that are offered; any other is typed


@guarded
def page() -> None:
    st.markdown("# Diff")
    records = library().shelf().records[:RECENT]
    recent = [record.run_id for record in records]
    if not recent:
        empty("No runs yet", "Two runs are compared here.")
        return
    left, right = st.columns(2)
    a = left.selectbox(
        "Run A",
        recent,
        index=_index(recent, param("a"), _alike(records)),
        key="diff_a",
        accept_new_options=True,
    )
    b = right.selectbox(
        "Run B", recent, index=_index(recent, param("b"), 0), key="diff_b", accept_new_options=True
    )
    if not a or not b:
        return
    if a == b:
        empty("The same run twice", "Choose another one.", key="same")
        return
    _compare(library().sight(a), library().sight(b))


def _alike(records: list[RunRecord]) -> int:
    """The run to compare with the newest: the one before it of the same program."""
    for place, record in enumerate(records[1:], 1):
        if record.program_hash == records[0].program_hash:
            return place
    return 1


def _index(recent: list[str], wanted: str | None, otherwise: int) -> int:
    return recent.index(wanted) if wanted in recent else min(otherwise, len(recent) - 1)


def _compare(a: Sight, b: Sight) -> None:
    found = diff(a.trace, b.trace)
    verdict = (
        chip("SUCCESS", "equivalent outcomes")
        if found.execution_equivalent
        else chip("FAILED", "another outcome")
    )
    same = [
        chip("SUCCESS" if holds else "FAILED", f"{'same' if holds else 'another'} {name}")
        for name, holds in (
            ("program", found.same_program),
            ("status", found.same_status),
            ("trace_hash", found.same_trace_hash),
        )
    ]
    parts = (
        soft("they part at ", code(_place(found.parts_at)))
        if found.parts_at is not None
        else soft("step by step alike")
    )
    show(tag("div", tag("div", verdict, *same, parts, class_="row"), class_="card"), "diff_head")
    if found.differences:
        rows = [
            (code(_place(each)), ", ".join(each.fields), _side(each.a, a), _side(each.b, b))
            for each in found.differences[:SHOWN_MAX]
        ]
        show(table(("Step", "Differs in", "A", "B"), rows), "differences")
        if len(found.differences) > SHOWN_MAX:
            st.caption(f"{len(found.differences) - SHOWN_MAX} further differences are not shown.")
    left, right = st.columns(2)
    for column, name, sight in ((left, "A", a), (right, "B", b)):
        with column:
            follow(show(_picture(name, sight), f"diff_{name}"))


def _picture(name: str, sight: Sight) -> Markup:
    trace = sight.trace
    switches = [tag("div", switch_text(each), class_="soft") for each in trace.switch_events]
    drawn = Markup(run_svg(trace, sight.steps, standalone=False))
    head = tag(
        "div",
        tag("span", name, class_="lead"),
        run_link(trace.trace_id),
        chip(trace.status.value),
        class_="row",
    )
    return tag("div", tag("div", head, *switches), tag("div", drawn, class_="graph"), class_="card")


def _place(difference: StepDifference) -> str:
    name = difference.step + (f"[{difference.item}]" if difference.item is not None else "")
    return name if difference.occurrence == 1 else f"{name} #{difference.occurrence}"


def _side(step: TraceStep | None, sight: Sight) -> Markup:
    if step is None:
        return soft("did not come to it")
    said: Any = ""
    if step.verdict is not None:
        said = "holds" if step.verdict else "does not hold"
    elif step.error is not None:
        said = code(step.error["type"])
    elif step.output is not None:
        said = code(compact(sight.veil.value(step.output), 160))
    return join((chip(step.status.value), " ", said))
