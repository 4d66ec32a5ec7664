"""Runs: all of them, by status, program and id, as they stand now in whatever process drives them."""

from __future__ import annotations

import streamlit as st

from nano_vm.journal.port import RunRecord
from nano_vm.kernel.state import RunStatus
from nano_vm.observe.wording import duration, moment
from nano_vm.studio.frame import (
    again,
    command,
    empty,
    follow,
    guarded,
    library,
    param,
    part,
    run_link,
    settings,
    show_jobs,
)
from nano_vm.studio.library import Shelf
from nano_vm.studio.markup import Markup, ago, chip, code, join, pick, soft, table, tag, text
from nano_vm.studio.view import show

ROWS = 50
ANY = "any"
STATUSES = tuple(status.value for status in RunStatus)
_TILES = (
    ("RUNNING", "running"),
    ("SUSPENDED", "waiting"),
    ("SUCCESS", "succeeded"),
    ("FAILED", "failed"),
)


@guarded
def page() -> None:
    st.markdown("# Runs")
    if "runs_status" not in st.session_state:
        wanted = param("status")
        st.session_state["runs_status"] = wanted if wanted in STATUSES else ANY
    _live()


def _live() -> None:
    part("runs", _list, settings().seconds)


def _list() -> None:
    shelf = library().shelf()
    show_jobs()
    if not shelf.records:
        empty(
            "No runs yet",
            "A run that is started in any process on this database shows up here.",
            code(command("run", "my.yaml", drives=False)),
        )
        return
    show(_tiles(shelf), "tiles", before=_by_status)
    search, by_status, by_program = st.columns([3, 2, 2])
    sought = search.text_input("Trace id", key="runs_text", placeholder="any part of a trace id")
    status = by_status.selectbox("Status", [ANY, *STATUSES], key="runs_status")
    program = by_program.selectbox("Program", [ANY, *shelf.programs], key="runs_program")
    found = shelf.find(
        text=(sought or "").strip(),
        status=None if status == ANY else status,
        program=None if program == ANY else program,
    )
    if not found:
        empty("Nothing matches", "Clear a filter to see more runs.", key="none")
        return
    last = (len(found) - 1) // ROWS
    at = min(st.session_state.get("runs_page", 0), last)
    shown = found[at * ROWS : (at + 1) * ROWS]
    follow(show(_table(shown), "table"))
    _pager(at, last, len(found), shelf.complete)


def _by_status(chosen: str) -> None:
    """A tile was chosen: only its runs, or all again."""
    status = chosen.partition(":")[2]
    st.session_state["runs_status"] = ANY if st.session_state.get("runs_status") == status else status
    st.session_state["runs_page"] = 0


def _tiles(shelf: Shelf) -> Markup:
    wanted = st.session_state.get("runs_status")
    others = sum(shelf.statuses.values()) - sum(shelf.statuses[status] for status, _ in _TILES)
    tiles = [
        pick(
            f"status:{status}",
            tag("b", f"{shelf.statuses[status]:,}"),
            tag("span", label),
            class_="tile on" if wanted == status else "tile",
        )
        for status, label in _TILES
    ]
    rest = tag("div", tag("b", f"{others:,}"), tag("span", "ended otherwise"), class_="tile")
    return tag("div", *tiles, rest, class_="tiles")


def _table(records: list[RunRecord]) -> Markup:
    return table(
        ("Status", "Run", "Program", "What", "Started", "Took", "Entries"),
        (
            (
                chip(record.status),
                run_link(record.run_id),
                record.program_name,
                what(record),
                tag("span", ago(record.created_at_ms), title=moment(record.created_at_ms)),
                duration(record.updated_at_ms - record.created_at_ms) if record.status != "RUNNING" else "-",
                f"{record.length:,}",
            )
            for record in records
        ),
        numeric=(5, 6),
    )


def what(record: RunRecord) -> Markup:
    """What a run came to, or waits for."""
    if record.waits:
        waits = ", ".join(f"{wait['kind']} at {wait['step']}" for wait in record.waits[:3])
        due = join((" ", soft("due ", ago(record.wake_at_ms)))) if record.wake_at_ms else ""
        return join((text(f"waits for {waits}"), due))
    if record.status == "RUNNING":
        return soft("driven by a worker" if record.owner else "nobody drives it: `recover` takes it up")
    return text(record.outcome or "")


def _pager(at: int, last: int, count: int, complete: bool) -> None:
    words, newer, older = st.columns([6, 1, 1], vertical_alignment="center")
    first = at * ROWS + 1
    more = "" if complete else " - only the newest runs are listed; `nano-vm trace ID` shows any"
    words.caption(f"{first:,} to {min(first + ROWS - 1, count):,} of {count:,}{more}")
    if newer.button("Newer", disabled=at == 0, key="newer", width="stretch"):
        st.session_state["runs_page"] = at - 1
        again()
    if older.button("Older", disabled=at == last, key="older", width="stretch"):
        st.session_state["runs_page"] = at + 1
        again()
