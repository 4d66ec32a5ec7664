"""What may be done with a run from its page: answer, resume, cancel, resolve, fork. For those alone who may do it."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from nano_vm import canonical
from nano_vm.journal.port import RunRecord
from nano_vm.runtime.control import leave_cancel, leave_event
from nano_vm.runtime.engine import Engine
from nano_vm.runtime.ways import places
from nano_vm.studio.answering import answer_card
from nano_vm.studio.frame import command, library, settings
from nano_vm.studio.library import Sight
from nano_vm.studio.markup import code, tag, text
from nano_vm.studio.settings import ACT, APPROVE
from nano_vm.studio.view import show


def actions(sight: Sight) -> None:
    """The forms for what can be done with the run as it stands."""
    if sight.record.parent is not None:
        return  # a child's waits and its end go through its parent
    live = sight.is_live
    may_act, may_approve = settings().may(ACT), settings().may(APPROVE)
    if live and any(wait["kind"] == "approval" for wait in _flat(sight.record)):
        st.markdown("## Approval")
        for found in library().approvals():
            if found.run_id == sight.record.run_id:
                answer_card(found, may_approve)
    if not may_act:
        if live:
            show(
                tag(
                    "div",
                    text("This studio may not act on runs. From a terminal: "),
                    code(command("trace", sight.record.run_id)),
                    class_="soft",
                ),
                "readonly",
            )
        return
    st.markdown("## Actions")
    if live:
        _resume(sight)
        _resolve(sight)
        _cancel(sight)
    _fork(sight)


def _flat(record: RunRecord) -> list[dict[str, Any]]:
    return [{**place.named, "run": place.run_id} for place in places(record.run_id, record.waits)]


def _form(what: str, waits: list[dict[str, Any]]) -> str:
    """The key of a form about what waits: when something else waits, it is another form, and what was chosen and typed
    in this one is not taken for an answer to that."""
    return f"{what}:{canonical.digest_value(waits)}"


def _place(wait: dict[str, Any]) -> str:
    lane = f"[{wait['item']}]" if "item" in wait else ""
    return f"{wait['step']}{lane}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice")
    return found


def _json(value: str) -> Any:
    """What was typed, as JSON; raises ValueError."""
    try:
        return json.loads(value, object_pairs_hook=_object) if value.strip() else None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _submit(what: str, sight: Sight, operation: Any, **options: Any) -> None:
    desk = settings().desk
    assert desk is not None
    desk.submit(what, sight.record.run_id, operation, **options)
    st.toast(f"{what}: handed in")
    st.rerun()


def _who() -> dict[str, Any] | None:
    desk = settings().desk
    return None if desk is None else desk.principal


def _resume(sight: Sight) -> None:
    waits = [wait for wait in _flat(sight.record) if wait["kind"] in ("event", "tool")]
    if not waits:
        return
    run_id = sight.record.run_id
    with st.expander("Resume with an event", expanded=True), st.form(_form("resume", waits)):
        number = st.selectbox(
            "For",
            range(len(waits)),
            format_func=lambda place: f"{waits[place]['kind']} at {_place(waits[place])}",
        )
        data = st.text_area("Event, as JSON", "{}", height=100)
        if st.form_submit_button("Resume", type="primary"):
            wait = waits[number]
            try:
                event = _json(data)
            except ValueError as error:
                st.error(f"This is not JSON: {error}")
                return
            name = wait.get("event") if wait["kind"] == "event" else None
            step = wait["step"]

            async def resume(engine: Engine) -> Any:
                return await engine.resume(
                    run_id, event, name=name, step=step, item=wait.get("item"), principal=_who()
                )

            async def leave(engine: Engine) -> str:
                engine.find(run_id, _who(), ACT)
                return await leave_event(
                    engine, run_id, event, name=name, step=step, item=wait.get("item"), principal=_who()
                )

            _submit("Resume", sight, resume, leave=leave)


def _resolve(sight: Sight) -> None:
    waits = [wait for wait in _flat(sight.record) if wait["kind"] == "outcome"]
    if not waits:
        return
    run_id = sight.record.run_id
    with (
        st.expander("Say what became of an unknown outcome", expanded=True),
        st.form(_form("resolve", waits)),
    ):
        number = st.selectbox("Step", range(len(waits)), format_func=lambda place: _place(waits[place]))
        resolution = st.radio(
            "It",
            ("succeeded", "failed", "repeat"),
            format_func={
                "succeeded": "happened, and gave the value below",
                "failed": "failed, for the reason below",
                "repeat": "did not happen, or may happen again",
            }.__getitem__,
        )
        data = st.text_area("Value as JSON, or the reason", "null", height=80)
        if st.form_submit_button("Resolve", type="primary"):
            wait = waits[number]
            value: Any = data
            if resolution == "succeeded":
                try:
                    value = _json(data)
                except ValueError as error:
                    st.error(f"This is not JSON: {error}")
                    return

            async def resolve(engine: Engine) -> Any:
                return await engine.resolve(
                    run_id, wait["step"], str(resolution), value, item=wait.get("item"), principal=_who()
                )

            _submit("Resolve", sight, resolve)


def _cancel(sight: Sight) -> None:
    run_id = sight.record.run_id
    with st.expander("Cancel this run"), st.form("cancel"):
        reason = st.text_input("Reason", max_chars=500)
        sure = st.checkbox("End it. What has to be undone is undone.")
        if st.form_submit_button("Cancel the run") and sure:

            async def cancel(engine: Engine) -> Any:
                return await engine.cancel(run_id, reason or "", principal=_who())

            async def leave(engine: Engine) -> str:
                engine.find(run_id, _who(), ACT)
                return await leave_cancel(engine, run_id, reason or "", _who())

            _submit("Cancel", sight, cancel, leave=leave, only_compensations=True)


def _fork(sight: Sight) -> None:
    names = list(
        dict.fromkeys(
            step.id
            for step in sight.steps
            if sight.trace.program.steps[sight.trace.program.step_index[step.id]].parent < 0
        )
    )
    if not names:
        return
    run_id = sight.record.run_id
    with st.expander("Fork: a new run from one of its steps on"), st.form("fork"):
        step = st.selectbox("First step that is taken anew", names, index=len(names) - 1)
        changes = st.text_area("Values to change, as a JSON object", "{}", height=80)
        st.caption("Steps before it are not repeated. The new run has a journal, and an id, of its own.")
        if st.form_submit_button("Fork"):
            try:
                changed = _json(changes) or {}
            except ValueError as error:
                st.error(f"This is not JSON: {error}")
                return
            if not isinstance(changed, dict):
                st.error("Changes are a JSON object: names and their new values.")
                return

            async def fork(engine: Engine) -> Any:
                return await engine.fork(run_id, str(step), changed, principal=_who())

            _submit("Fork", sight, fork)
