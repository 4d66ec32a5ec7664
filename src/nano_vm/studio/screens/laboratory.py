"""The Failure Laboratory: real attacks on a review of customers, carried out against two systems side by side."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import streamlit as st

from nano_vm.demos.kyc import lab
from nano_vm.errors import NanoVMError
from nano_vm.studio.frame import guarded, show_error
from nano_vm.studio.markup import Markup, chip, code, soft, table, tag
from nano_vm.studio.view import show

SECONDS_MAX = 120.0


@guarded
def page() -> None:
    st.markdown("# Failure Laboratory")
    st.caption(
        "Each attack is made for real, in a directory of its own: once on a plain script, once on a governed run."
    )
    injectors = {injector.name: injector for injector in lab.INJECTORS}
    name = st.selectbox(
        "Attack", list(injectors), format_func=lambda each: injectors[each].title, key="lab_attack"
    )
    injector = injectors[name]
    show(
        tag(
            "div",
            tag("div", injector.attack),
            tag("div", "breaks, if it can: ", injector.promise, class_="soft"),
            class_="card",
        ),
        "lab_about",
    )
    left, right = st.columns([1, 5], vertical_alignment="center")
    if left.button("Attack", type="primary", key="lab_run", width="stretch"):
        with st.spinner("Attacking both"):
            _attack(name)
    right.caption(f"`nano-vm demo kyc --inject {name}`")
    held = st.session_state.get("lab_result")
    if held is None or held[0] != name:
        return
    if isinstance(held[1], NanoVMError):
        show_error(held[1], "lab_error")
        return
    _result(held[1])


def _attack(name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="nano-vm-lab-") as directory, ThreadPoolExecutor(1) as thread:
        try:
            # The laboratory makes event loops of its own, which this thread must not have.
            result: Any = thread.submit(lab.run, name, directory=Path(directory)).result(SECONDS_MAX)
        except NanoVMError as error:
            result = error
    st.session_state["lab_result"] = (name, result)


def _result(result: Any) -> None:
    left, right = st.columns(2, gap="medium")
    for column, title, side in (
        (left, "A plain script", result.naive),
        (right, "Governed by nano-vm", result.governed),
    ):
        with column:
            show(_side(title, side), f"lab_{side.name}")


def _side(title: str, side: Any) -> Markup:
    verdict = chip("held", "held") if side.held else chip("FAILED", "broken")
    parts: list[Markup] = [
        tag("div", tag("span", title, class_="lead"), verdict, soft(str(side.status)), class_="row"),
        tag("p", side.verdict),
    ]
    attempts = getattr(side, "attempts", ())
    if attempts:
        rows = (
            (
                chip("FAILED", "through") if each.through else chip("held", "stopped"),
                each.what,
                code(each.answer),
            )
            for each in attempts
        )
        parts.append(table(("", "Attempt", "Answer"), rows))
    if side.steps:
        parts.append(
            table(("Step", "", ""), ((code(each.step), chip(each.status), each.text) for each in side.steps))
        )
    if side.effects:
        parts.append(
            table(("What happened outside", ""), ((each.what, each.detail) for each in side.effects))
        )
    parts += [
        tag("div", code(each), class_=f"finding {'success' if side.held else 'failed'}")
        for each in side.evidence
    ]
    return tag("div", *parts, class_="card")
