"""Costs: what model calls have used, by program, model and day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import streamlit as st

from nano_vm.studio import charts
from nano_vm.studio.frame import empty, follow, guarded, library, meter, part, run_link, settings
from nano_vm.studio.markup import Markup, table, tag, tiles
from nano_vm.studio.meter import Spent
from nano_vm.studio.view import show

TOP = 15
DAYS_MAX = 90
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@guarded
def page() -> None:
    st.markdown("# Costs")
    part("costs", _figures, settings().seconds)


def _figures() -> None:
    if not library().shelf().records:
        empty("No runs yet", "What model calls cost is added up here.")
        return
    counted = meter()
    if not counted.advance():
        st.caption(f"Reading the journals: {counted.entries:,} entries so far. The figures grow meanwhile.")
    total = counted.total()
    if not total.calls:
        empty(
            "Nothing was spent yet",
            "Model calls that report tokens or a cost are added up here.",
            key="nocost",
        )
        return
    show(
        tiles(
            (
                (f"${total.cost_nanousd / 1e9:,.4f}", "cost"),
                (f"{total.calls:,}", "model calls"),
                (f"{total.tokens_in:,}", "tokens in"),
                (f"{total.tokens_out:,}", "tokens out"),
            )
        ),
        "cost_tiles",
    )
    days = sorted((int(day), spent) for day, spent in counted.by("day").items())[-DAYS_MAX:]
    money = any(spent.cost_nanousd for _, spent in days)
    values = [
        (
            f"{_EPOCH + timedelta(days=day):%d %b}",
            spent.cost_nanousd / 1e9 if money else spent.tokens_in + spent.tokens_out,
        )
        for day, spent in days
    ]
    what = "Cost by day, in dollars" if money else "Tokens by day"
    show(
        tag(
            "div",
            tag("div", what, class_="lead"),
            charts.bars(values, what, "$" if money else ""),
            class_="card wide",
        ),
        "days",
    )
    left, right = st.columns(2)
    with left:
        st.markdown("## By program")
        show(_spending("Program", counted.by("program")), "by_program")
    with right:
        st.markdown("## By model")
        show(_spending("Model", counted.by("model")), "by_model")
    st.markdown("## Dearest runs")
    dearest = sorted(counted.runs.items(), key=lambda each: (-each[1].cost_nanousd, -_tokens(each[1])))[:TOP]
    rows = (
        (run_link(run_id), f"{spent.calls:,}", f"{_tokens(spent):,}", _money(spent))
        for run_id, spent in dearest
    )
    follow(show(table(("Run", "Calls", "Tokens", "Cost"), rows, numeric=(1, 2, 3)), "dearest"))
    st.caption("Calls that have settled, rejected attempts included; a child run's are its own.")


def _spending(name: str, found: dict[str | int, Spent]) -> Markup:
    ordered = sorted(found.items(), key=lambda each: (-each[1].cost_nanousd, -_tokens(each[1])))[:TOP]
    rows = ((word, f"{spent.calls:,}", f"{_tokens(spent):,}", _money(spent)) for word, spent in ordered)
    return table((name, "Calls", "Tokens", "Cost"), rows, numeric=(1, 2, 3))


def _tokens(spent: Spent) -> int:
    return spent.tokens_in + spent.tokens_out


def _money(spent: Spent) -> str:
    return f"${spent.cost_nanousd / 1e9:,.4f}"
