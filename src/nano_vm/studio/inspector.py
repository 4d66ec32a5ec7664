"""The inspector of steps: one occurrence, as each audience sees it."""

from __future__ import annotations

import json

import streamlit as st

from nano_vm.errors import NanoVMError
from nano_vm.journal.trace import TraceStep
from nano_vm.observe.svg import waiting_steps
from nano_vm.observe.wording import duration, moment, step_text
from nano_vm.studio.frame import again, settings
from nano_vm.studio.library import Sight
from nano_vm.studio.markup import Markup, chip, code, facts, join, soft, table, tag
from nano_vm.studio.projections import AUDIENCES, view
from nano_vm.studio.view import show

_MEANINGS = {
    "TRACE": "what whoever may read the run sees",
    "LLM": "what the model was sent, and nothing else",
    "TOOL": "what the tool was given; secrets are references until the last moment",
    "RECEIPT": "what stands in evidence: no value at all",
    "OPERATOR": "what whoever keeps things running sees of the run",
}


def words(step: TraceStep) -> str:
    """What came of a step, without figures that stand beside it."""
    return step_text(step)[:140]


def status(sight: Sight, step: TraceStep) -> Markup:
    """How an occurrence stands; one that waits for somebody is not at work."""
    if step.status.value == "RUNNING" and step.id in waiting_steps(sight.trace):
        return chip("SUSPENDED", "waits")
    return chip(step.status.value)


def label(step: TraceStep) -> str:
    name = step.id + (f"[{step.item}]" if step.item is not None else "")
    return name + (f" #{step.occurrence}" if step.occurrence > 1 else "")


def choose(sight: Sight, step_id: str) -> None:
    """Inspect the last occurrence of a step."""
    for place in range(len(sight.steps) - 1, -1, -1):
        if sight.steps[place].id == step_id:
            choose_place(sight, place)
            return
    st.session_state["inspected"] = (sight.record.run_id, step_id, 0, None)


def choose_place(sight: Sight, place: int) -> None:
    step = sight.steps[place]
    st.session_state["inspected"] = (sight.record.run_id, step.id, step.occurrence, step.item)


def chosen(sight: Sight) -> TraceStep | None:
    """The occurrence that is inspected: the one that was chosen in this run, else the last one."""
    if not sight.steps:
        return None
    held = st.session_state.get("inspected")
    if held is not None and held[0] == sight.record.run_id:
        for step in reversed(sight.steps):
            if (step.id, step.occurrence, step.item) == held[1:]:
                return step
        if held[2] == 0:
            return None
    return sight.steps[-1]


def inspect(sight: Sight) -> None:
    """Show the chosen occurrence, and a way to choose another one by keyboard."""
    step = chosen(sight)
    names = list(dict.fromkeys(each.id for each in sight.steps))
    if not names:
        show(
            tag(
                "div", tag("b", "No step yet"), "Choose one when the run has come to it.", class_="card empty"
            ),
            "nothing",
        )
        return
    if step is None:
        held = st.session_state["inspected"][1]
        show(
            tag("div", tag("b", held), "The run has not come to this step.", class_="card empty"),
            "not_reached",
        )
        return
    _choice(sight, step, names)
    show(_card(sight, step), "inspected_card")
    audience = (
        st.segmented_control(
            "Seen by",
            AUDIENCES,
            default="TRACE",
            key="audience",
            format_func=lambda name: name if name == "LLM" else name.capitalize(),
            help="what each audience sees of this step",
        )
        or "TRACE"
    )
    st.caption(_MEANINGS[audience].capitalize())
    try:
        seen = view(sight, step, audience, settings().schemas)
    except NanoVMError as error:
        show(soft(code(error.code), " ", error.message), "no_view")
        return
    if seen is None:
        st.caption("No model was asked." if audience == "LLM" else "No tool was called.")
        return
    st.code(json.dumps(seen, indent=2, ensure_ascii=False)[:20_000], language="json", wrap_lines=True)


def _choice(sight: Sight, step: TraceStep, names: list[str]) -> None:
    """Step and occurrence as fields; they follow what is chosen in the drawing."""
    run_id = sight.record.run_id
    left, right = st.columns([3, 2])
    picked = left.selectbox("Step", names, index=names.index(step.id), key=f"step:{run_id}:{step.id}")
    if picked != step.id:
        choose(sight, picked)
        again()
    same = [place for place, each in enumerate(sight.steps) if each.id == step.id]
    if len(same) > 1:
        at = next(number for number, place in enumerate(same, 1) if sight.steps[place] is step)
        number = right.number_input(
            f"Occurrence of {len(same):,}", 1, len(same), at, key=f"occ:{run_id}:{step.id}:{at}"
        )
        if int(number) != at:
            choose_place(sight, same[int(number) - 1])
            again()


def _card(sight: Sight, step: TraceStep) -> Markup:
    rows: list[tuple[object, object]] = [
        ("kind", step.type),
        ("attempts", step.attempts),
        ("began", moment(step.started_at_ms)),
        ("took", duration(step.duration_ms) if step.finished_at_ms is not None else "not finished"),
    ]
    if step.tokens or step.cost_nanousd:
        rows.append(("spent", f"{step.tokens_in:,} + {step.tokens_out:,} tokens, ${step.cost_usd:.6f}"))
    if step.model:
        answered = (
            f"{step.model}"
            + (f" by {step.provider}" if step.provider else "")
            + (" (cached)" if step.cached else "")
        )
        rows.append(("model", answered))
    if step.verdict is not None:
        rows.append(("condition", "holds" if step.verdict else "does not hold"))
    if step.error is not None:
        message = step.error.get("message", "") if isinstance(step.error, dict) else step.error
        kind = step.error.get("type", "") if isinstance(step.error, dict) else ""
        rows.append(("error", join((code(kind), " ", message))))
    if step.substituted:
        rows.append(("value", chip("UNKNOWN", "made up after a time-out")))
    parts = [
        tag("div", tag("span", label(step), class_="lead"), status(sight, step), class_="row"),
        facts(rows),
    ]
    if step.failures:
        failures = (
            (each["attempt"], code(each["error"]), sight.veil.value(each["message"]))
            for each in step.failures
        )
        parts.append(table(("Attempt", "Error", "Message"), failures))
    if step.switches:
        switches = ((each["from"], each["to"], each["reason"]) for each in step.switches)
        parts.append(table(("From provider", "To", "Why"), switches))
    if step.proposals:
        proposals = (
            (
                each["turn"],
                each["tool"] or soft("a tool it may not call"),
                chip("allow" if each["verdict"] == "accepted" else "deny", each["verdict"]),
                each["reason"] or "",
            )
            for each in step.proposals
        )
        parts.append(table(("Turn", "Proposed", "Verdict", "Why"), proposals))
    return tag("div", *parts, class_="card")
