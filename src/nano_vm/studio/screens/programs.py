"""Programs: their graphs, what is found in them, and what is proved of them."""

from __future__ import annotations

import json

import streamlit as st

from nano_vm.observe.svg import svg
from nano_vm.observe.wording import moment
from nano_vm.program.diagnostic import Diagnostic
from nano_vm.studio.frame import (
    DRAWN_MAX,
    command,
    empty,
    follow,
    guarded,
    library,
    param,
    settings,
    too_large,
)
from nano_vm.studio.library import StoredProgram
from nano_vm.studio.markup import Markup, chip, code, facts, soft, table, tag
from nano_vm.studio.proofs import Proofs, prove
from nano_vm.studio.view import show

VIEWS = ("Graph", "Findings and proofs", "Source")


@guarded
def page() -> None:
    st.markdown("# Programs")
    stored = library().programs()
    if not stored:
        empty("No programs yet", "A program is kept when it is first run.", code(command("run", "my.yaml")))
        return
    hashes = [each.hash for each in stored]
    wanted = param("hash")
    at = hashes.index(wanted) if wanted in hashes else 0
    counts: dict[str, int] = {}
    for record in library().shelf().records:
        counts[record.program_hash] = counts.get(record.program_hash, 0) + 1
    place = st.selectbox(
        "Program",
        range(len(stored)),
        index=at,
        format_func=lambda number: _name(stored[number], counts.get(hashes[number], 0)),
        key=f"program:{wanted}",
    )
    _detail(stored[place])


def _name(stored: StoredProgram, runs: int) -> str:
    now = "" if stored.current else "  (an earlier version)"
    return f"{stored.name}  {stored.hash[7:15]}  {runs:,} runs{now}"


def _detail(stored: StoredProgram) -> None:
    program = library().program(stored.hash)
    compiled = library().engine.load_program(stored.hash)
    proofs = prove(program, settings().schemas, library().called(), settings().policy)
    data = program.to_dict()
    worst = chip("FAILED", f"{len(proofs.report.errors)} errors") if proofs.report.errors else None
    rows = (
        ("identity", code(stored.hash)),
        ("steps", len(compiled.steps)),
        (
            "budgets",
            _budgets(
                compiled.budgets.steps_max, compiled.budgets.tokens_max, compiled.budgets.cost_nanousd_max
            ),
        ),
        ("kept since", moment(stored.stored_at_ms)),
    )
    head = tag("div", tag("span", compiled.name, class_="lead"), soft(compiled.version), worst, class_="row")
    about = tag("p", data["description"], class_="soft") if data.get("description") else None
    show(tag("div", head, about, facts(rows), class_="card"), "program_head")
    chosen = st.segmented_control(
        "View", VIEWS, default="Graph", key="program_view", label_visibility="collapsed"
    )
    if chosen == "Source":
        st.code(json.dumps(data, indent=2, ensure_ascii=False), language="json", line_numbers=True)
    elif chosen == "Findings and proofs":
        follow(show(_findings(proofs), "findings"))
    else:
        drawn = tag("div", Markup(svg(compiled, standalone=False)), class_="card graph")
        is_large = len(compiled.steps) > DRAWN_MAX
        show(too_large(len(compiled.steps), "nano-vm graph FILE") if is_large else drawn, "program_graph")


def _budgets(steps: int, tokens: int, cost_nanousd: int) -> str:
    parts = [f"{steps:,} steps"]
    if tokens:
        parts.append(f"{tokens:,} tokens")
    if cost_nanousd:
        parts.append(f"${cost_nanousd / 1e9:g}")
    return ", ".join(parts)


def _findings(proofs: Proofs) -> Markup:
    found = [_finding(each) for each in proofs.report.diagnostics]
    none = tag("div", chip("SUCCESS", "no findings"), class_="finding success")
    return tag(
        "div",
        tag("div", tag("div", "Findings", class_="lead"), *(found or [none]), class_="card"),
        tag("div", tag("div", "Guards", class_="lead"), _guards(proofs), class_="card"),
        tag("div", tag("div", "Flows", class_="lead"), _flows(proofs), class_="card"),
    )


def _finding(finding: Diagnostic) -> Markup:
    is_error = finding.severity == "error"
    where = ", ".join(each for each in (finding.place.step or "", finding.place.field or "") if each)
    return tag(
        "div",
        tag(
            "div",
            chip("FAILED" if is_error else "warning", finding.code),
            code(where) if where else None,
            class_="row",
        ),
        tag("div", finding.message),
        tag("div", finding.help, class_="soft") if finding.help else None,
        class_=f"finding {'failed' if is_error else 'pending'}",
    )


def _guards(proofs: Proofs) -> Markup:
    if proofs.guards is None:
        return tag("p", "No policy is in force here: ", code("nano-vm studio --policy FILE"), class_="soft")
    if not proofs.guards:
        return tag("p", "The policy requires nothing before the tools of this program.", class_="soft")
    return table(
        ("", "Step", "Calls", "Needs before it, on every way", "Rule", "A way that misses it"),
        (
            (
                chip("proved") if each.way is None else chip("FAILED", "missed"),
                code(each.step),
                each.tool,
                each.needs,
                code(each.rule),
                each.way or "none",
            )
            for each in proofs.guards
        ),
    )


def _flows(proofs: Proofs) -> Markup:
    if proofs.flows is None and proofs.unknown:
        names = ", ".join(proofs.unknown)
        return tag(
            "p",
            f"Not all of its tools were given here, and without them nothing is proved: {names}",
            class_="soft",
        )
    if proofs.flows is None:
        return tag("p", "The tools are not known here: ", code("nano-vm studio --tools FILE"), class_="soft")
    if not proofs.flows:
        return tag(
            "p", "No tool of this program has a parameter that takes trusted values only.", class_="soft"
        )
    return table(
        ("", "Step", "Parameter", "What flows there"),
        (
            (
                chip(each.state) if each.state != "tainted" else chip("FAILED", "untrusted"),
                code(each.step),
                code(f"{each.tool}.{each.parameter}"),
                each.way or "trusted values alone",
            )
            for each in proofs.flows
        ),
    )
