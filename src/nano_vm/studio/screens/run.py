"""One run: where it stands now, what each step did and for whom it was visible, its journal, and its evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import streamlit as st

from nano_vm.evidence.narrative import narrative
from nano_vm.evidence.receipt import receipt
from nano_vm.journal.entry import open_events
from nano_vm.kernel.events import UNSET, RunStarted
from nano_vm.observe.describe import describe
from nano_vm.observe.svg import run_svg, waiting_steps
from nano_vm.observe.timeline import timeline
from nano_vm.observe.wording import duration, precise_moment
from nano_vm.studio import acting, inspector
from nano_vm.studio.frame import (
    DRAWN_MAX,
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
    too_large,
)
from nano_vm.studio.library import Sight
from nano_vm.studio.markup import (
    Markup,
    ago,
    chip,
    code,
    digest,
    facts,
    join,
    pick,
    soft,
    table,
    tag,
    text,
    tiles,
)
from nano_vm.studio.screens.runs import what
from nano_vm.studio.view import show

VIEWS = ("Graph", "Timeline", "Steps", "Journal", "Receipt")
ROWS = 200
SLOW_SECONDS = 10.0  # between two looks at a run that has ended


@guarded
def page() -> None:
    run_id = param("id")
    if run_id is None:
        st.markdown("# Run")
        _choose()
        return
    sight = library().sight(run_id)
    seconds = settings().seconds if sight.is_live else SLOW_SECONDS
    part("run", lambda: _body(run_id), seconds)
    part("actions", lambda: acting.actions(library().sight(run_id)), seconds)


def _choose() -> None:
    """No run was named: the newest ones, and a field for an id."""
    given = st.text_input("Trace id", key="run_id", placeholder="the id of a run")
    if given:
        follow(f"run:{given.strip()}")
    records = library().shelf().records[:12]
    if not records:
        empty("No runs yet", "A run that is started in any process on this database shows up here.")
        return
    rows = (
        (chip(each.status), run_link(each.run_id), each.program_name, ago(each.created_at_ms))
        for each in records
    )
    follow(show(table(("Status", "Run", "Program", "Started"), rows), "choose"))


def _body(run_id: str) -> None:
    sight = library().sight(run_id)
    follow(show(_head(sight), "head"))
    show_jobs(sight.record.run_id)
    chosen = st.segmented_control(
        "View", VIEWS, default="Graph", key="run_view", label_visibility="collapsed"
    )
    if chosen == "Journal":
        _journal(sight)
    elif chosen == "Receipt":
        _receipt(sight)
    else:
        left, right = st.columns([11, 8], gap="medium")
        with left:
            if chosen == "Steps":
                _steps(sight)
            else:
                _picture(sight, chosen == "Timeline")
        with right:
            inspector.inspect(sight)


# --- the head -------------------------------------------------------------------------------------------------


def _head(sight: Sight) -> Markup:
    trace, record = sight.trace, sight.record
    outcome = soft(trace.outcome) if trace.outcome else None
    erased = chip("SKIPPED", "erased") if sight.veil.erased else None
    parts = [
        tag(
            "div",
            tag("h1", trace.program_name, class_="head"),
            chip(trace.status.value),
            outcome,
            erased,
            class_="row",
        ),
        tag("div", code(trace.trace_id), _relations(sight), class_="row", style="margin:4px 0 14px"),
        tiles(
            (
                (f"{len(sight.steps):,}", "steps"),
                (duration(trace.duration_ms), "took" if trace.status.is_terminal else "until the last event"),
                (f"{trace.total_tokens():,}", "tokens"),
                (f"${trace.total_cost_usd():.4f}", "cost"),
                (f"{len(sight.entries):,}", "journal entries"),
                (ago(trace.started_at_ms), "started"),
            )
        ),
    ]
    if trace.error is not None:
        where = join((" at ", code(trace.error["step"]))) if trace.error.get("step") else ""
        message = sight.veil.value(trace.error.get("message") or "")
        parts.append(
            tag(
                "div",
                tag("div", chip("FAILED", str(trace.error["type"])), where, text(message), class_="row"),
                class_="card",
                style="margin-top:12px",
            )
        )
    if trace.incomplete_compensations:
        parts.append(
            tag(
                "div",
                chip("FAILED", "not undone"),
                " ",
                ", ".join(trace.incomplete_compensations),
                class_="card",
            )
        )
    if trace.rollbacks:
        undone = f"{trace.rollbacks} step{'s were' if trace.rollbacks > 1 else ' was'} undone"
        parts.append(
            tag("div", chip("SKIPPED", "compensated"), " ", undone, class_="card", style="margin-top:12px")
        )
    if not trace.status.is_terminal and record.waits:
        parts.append(tag("div", what(record), class_="card", style="margin-top:12px"))
    return join(parts)


def _relations(sight: Sight) -> Markup | None:
    record = sight.record
    parts: list[object] = []
    start = open_events(sight.entries[0])[0] if sight.entries else None
    if isinstance(start, RunStarted):
        if start.principal is not UNSET:
            parts.append(soft(f"started by {start.principal['id']}"))
        if start.policy is not UNSET:
            parts += [soft("under policy "), digest(start.policy)]
        if start.forked is not UNSET:
            parts += [soft("forked from "), run_link(start.forked["run"])]
    if record.parent is not None:
        parts += [soft("child of "), run_link(record.parent)]
    first = library().children(record.run_id)
    for child in first[:6]:
        parts += [soft("child "), run_link(child.run_id), chip(child.status)]
    if len(first) > 6:
        parts.append(soft(f"and {len(first) - 6} more"))
    owner = (
        soft("driven by a worker now") if record.owner is not None and record.status == "RUNNING" else None
    )
    return join([*parts, owner or ""]) if parts or owner else None


# --- the views ------------------------------------------------------------------------------------------------


def _picture(sight: Sight, as_timeline: bool) -> None:
    """The graph or the timeline; what is chosen in it is inspected beside it."""
    now = inspector.chosen(sight)
    name = "" if now is None else now.id
    key = "timeline" if as_timeline else "graph"
    if as_timeline:
        last = library().engine.clock.now_ms() if sight.is_live else None
        drawn = timeline(sight.steps, now_ms=last, waiting=waiting_steps(sight.trace), width=620.0)
        bars = drawn.count("nv-node")
        note = (
            soft(f"the last {bars} of {len(sight.steps):,} occurrences") if len(sight.steps) > bars else None
        )
        markup = tag("div", note, Markup(_pickable(drawn, name)), class_="card wide")
    elif len(sight.trace.program.steps) > DRAWN_MAX:
        markup = too_large(len(sight.trace.program.steps), command("graph", "--run", sight.record.run_id))
    else:
        drawn = run_svg(sight.trace, sight.steps, standalone=False)
        markup = tag("div", Markup(_pickable(drawn, name)), class_="card graph")

    def choose(picked: str) -> None:
        if picked.startswith("step:"):
            inspector.choose(sight, picked[5:])

    show(markup, key, before=choose)


def _pickable(drawn: str, chosen: str) -> str:
    """Steps of a drawing as buttons; the one that is inspected is marked."""
    marked = f'class="nv-node" data-step="{text(chosen)}"'
    drawn = drawn.replace(marked, marked.replace("nv-node", "nv-node nv-chosen"))
    return drawn.replace(' data-step="', ' tabindex="0" role="button" data-pick="step:')


def _steps(sight: Sight) -> None:
    steps = sight.steps
    if not steps:
        empty(
            "Nothing has been done yet", "The first step shows up here as soon as it begins.", key="nosteps"
        )
        return
    pages = (len(steps) - 1) // ROWS + 1
    at = _page_of(pages, pages if sight.is_live else 1, "steps_page")
    shown = steps[(at - 1) * ROWS : at * ROWS]
    rows = []
    for place, step in enumerate(shown, start=(at - 1) * ROWS):
        name = step.id + (f"[{step.item}]" if step.item is not None else "")
        name += f" #{step.occurrence}" if step.occurrence > 1 else ""
        rows.append(
            (
                f"{place + 1:,}",
                inspector.status(sight, step),
                pick(f"at:{place}", code(name)),
                tag("span", inspector.words(step), class_="soft"),
                duration(step.duration_ms) if step.finished_at_ms is not None else "-",
            )
        )
    picked = show(table(("", "Status", "Step", "What came of it", "Took"), rows, numeric=(0, 4)), "steps")
    if picked is not None and picked.startswith("at:"):
        inspector.choose_place(sight, int(picked[3:]))


def _page_of(pages: int, first: int, key: str) -> int:
    """Which page of many is shown, counted from 1."""
    if pages == 1:
        return 1
    narrow, _ = st.columns([1, 3])
    return int(narrow.number_input(f"Page of {pages:,}", 1, pages, first, key=key))


def _journal(sight: Sight) -> None:
    entries = sight.entries
    pages = max((len(entries) - 1) // ROWS + 1, 1)
    at = _page_of(pages, pages, "journal_page")
    rows = []
    for entry in entries[(at - 1) * ROWS : at * ROWS]:
        for event in open_events(entry):
            line = describe(event)
            said = sight.veil.value(line.text)
            rows.append(
                (
                    entry.seq,
                    precise_moment(event.at_ms),
                    event.type,
                    code(line.step) if line.step else "",
                    said,
                    digest(entry.digest),
                )
            )
    show(table(("Entry", "Time", "Event", "Step", "What", "Digest"), rows, numeric=(0,)), "journal")


def _receipt(sight: Sight) -> None:
    trace = sight.trace
    shown = receipt(trace)
    left, right = st.columns([1, 1], gap="medium")
    with left:
        if st.button(
            "Verify", key="verify", type="primary", help="fold the journal again, and compare everything"
        ):
            st.session_state["verified"] = (trace.trace_id, *_verify(sight))
        held = st.session_state.get("verified")
        if held is not None and held[0] == trace.trace_id:
            show(held[1], "verdict")
            if held[2] != trace.head:
                st.caption("The journal has grown since.")
        show(
            tag("div", *(tag("div", line) for line in narrative(shown).splitlines()), class_="card"),
            "narrative",
        )
        hashes = (
            ("program", code(trace.program_hash)),
            ("policy", code(shown["policy"] or "none")),
            ("head", code(trace.head)),
            ("trace_hash", code(trace.trace_hash)),
            ("outcome_hash", code(trace.outcome_hash)),
        )
        show(tag("div", facts(hashes), class_="card"), "hashes")
    with right:
        text_of = json.dumps(shown, indent=2, ensure_ascii=False)
        st.download_button(
            "Download the receipt",
            text_of,
            f"{trace.trace_id}.receipt.json",
            "application/json",
            key="download",
        )
        st.json(shown, expanded=1)


def _verify(sight: Sight) -> tuple[Markup, str]:
    from nano_vm.errors import NanoVMError

    try:
        verified = library().verify(sight.record.run_id)
    except NanoVMError as error:
        passed = _checks(error.facts.get("passed", []))
        failed = tag("div", chip("FAILED", error.code), text(error.message), class_="row")
        return tag(
            "div", tag("div", "NOT VERIFIED", class_="lead"), *passed, failed, class_="card", role="status"
        ), sight.trace.head
    closed = not sight.veil.erased and any(
        entry.payload is not None and not entry.salt for entry in sight.entries
    )
    note = (
        soft("Private values were taken as recorded: `nano-vm verify` opens them with the key.")
        if closed
        else None
    )
    return tag(
        "div",
        tag("div", "VERIFIED", class_="lead"),
        _checks(verified.steps),
        note,
        class_="card",
        role="status",
    ), sight.trace.head


def _checks(steps: Iterable[Sequence[str]]) -> Markup:
    """What was proved, check by check."""
    return facts((chip("SUCCESS", name), detail) for name, detail in steps)
