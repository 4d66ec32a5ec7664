"""Answering an approval: of exactly the action that is shown, by its digest."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from nano_vm.observe.wording import moment
from nano_vm.runtime.approvals import PendingApproval, leave_answer
from nano_vm.runtime.engine import Engine
from nano_vm.studio.frame import command, follow, run_link, settings
from nano_vm.studio.markup import Markup, ago, chip, code, digest, facts, soft, tag
from nano_vm.studio.view import show

ARGS_CHARS_MAX = 20_000


def answer_card(found: PendingApproval, may: bool) -> None:
    """What is asked for, and the form that answers it where somebody may."""
    key = f"{found.run_id}:{found.step}:{found.item}:{found.nonce}"
    with st.container(border=True):
        follow(show(_shown(found), f"ask:{key}"))
        if not may:
            line = command("resume", found.run_id, "--step", found.step, "--approve")
            show(tag("div", "From a terminal: ", code(line), class_="soft"), f"how:{key}")
            return
        principal = settings().principal or {}
        missing = found.missing(principal.get("roles", ()))
        if missing:
            needed = " or ".join(missing)
            show(
                soft(f"This takes somebody who is {needed}. Start the studio with that role."), f"lacks:{key}"
            )
        hidden = bool(found.action) and (not found.shown or len(_words(found)) > ARGS_CHARS_MAX)
        seen = not hidden or st.checkbox(
            "I have seen the arguments of this action elsewhere: its digest is the one above",
            key=f"seen:{key}",
        )
        comment = st.text_input(
            "Comment", key=f"comment:{key}", placeholder="kept with the answer", max_chars=500
        )
        yes, no, _ = st.columns([1, 1, 4])
        if yes.button(
            "Approve", key=f"yes:{key}", type="primary", disabled=bool(missing) or not seen, width="stretch"
        ):
            _answer(found, True, comment or None)
        if no.button("Refuse", key=f"no:{key}", disabled=bool(missing), width="stretch"):
            _answer(found, False, comment or None)


def _answer(found: PendingApproval, approved: bool, comment: str | None) -> None:
    desk = settings().desk
    assert desk is not None

    async def answer(engine: Engine) -> Any:
        return await engine.approve(
            found.run_id,
            approved,
            step=found.step,
            item=found.item,
            action=found.action or None,  # the one that was on the page: no other is approved
            nonce=found.nonce or None,
            comment=comment,
            principal=desk.principal,
        )

    async def leave(engine: Engine) -> str:
        return await leave_answer(
            engine,
            found.run_id,
            approved,
            step=found.step,
            item=found.item,
            action=found.action or None,
            nonce=found.nonce or None,
            comment=comment,
            principal=desk.principal,
        )

    what = f"{'Approve' if approved else 'Refuse'} {found.step}"
    desk.submit(what, found.run_id, answer, leave=leave)
    st.toast(f"{what}: handed in")
    st.rerun()


def _words(found: PendingApproval) -> str:
    """The arguments of the action."""
    return json.dumps(found.shown.get("args"), indent=2, ensure_ascii=False)


def _shown(found: PendingApproval) -> Markup:
    lane = "" if found.item is None else f"[{found.item}]"
    head = tag(
        "div",
        tag("span", found.program, class_="lead"),
        soft("step ", code(found.step + lane)),
        chip("SUSPENDED", "waits for an approval"),
        run_link(found.run_id),
        class_="row",
    )
    rows: list[tuple[object, object]] = []
    if found.action:
        words = _words(found) if found.shown else "[PRIVATE]"
        cut = len(words) > ARGS_CHARS_MAX
        rows += [("calls", code(found.tool)), ("with", tag("pre", words[:ARGS_CHARS_MAX] + "…" * cut))]
        if cut:
            rows.append(("cut", f"{ARGS_CHARS_MAX:,} of {len(words):,} characters are shown"))
        rows.append(("action", digest(found.action)))
        rules = found.shown.get("rules", ())
        if rules:
            rows.append(("asked by", ", ".join(str(rule) for rule in rules)))
        starter = found.shown.get("started_by")
        rows.append(("run by", str(starter) if starter else soft("nobody is known")))
    else:
        rows.append(("calls", soft("nothing in particular: the wait is bound to no action")))
    rows.append(("needs", ", and ".join(" or ".join(group) for group in found.groups)))
    if found.due_ms:
        rows.append(("until", tag("span", moment(found.due_ms), " (", ago(found.due_ms), ")")))
    hidden = (
        tag(
            "p",
            "Its arguments are private, and not shown here: look at them with ",
            code("nano-vm approvals"),
            class_="soft",
        )
        if found.action and not found.shown
        else None
    )
    return tag("div", head, facts(rows), hidden)
