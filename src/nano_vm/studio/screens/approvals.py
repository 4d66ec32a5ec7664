"""Approvals: everything that waits for somebody's yes, with exactly what it would allow."""

from __future__ import annotations

import streamlit as st

from nano_vm.studio.answering import answer_card
from nano_vm.studio.frame import empty, guarded, library, part, settings, show_jobs
from nano_vm.studio.settings import APPROVE

ROWS = 20


@guarded
def page() -> None:
    st.markdown("# Approvals")
    part("approvals", _list, settings().seconds)


def _list() -> None:
    found = library().approvals()
    show_jobs()
    if not found:
        empty("Nothing waits for an approval", "Runs that come to ask for one show up here.")
        return
    mine = set((settings().principal or {}).get("roles", ()))
    if mine and st.toggle("Only what I may answer", key="approvals_mine", value=False):
        who = (settings().principal or {}).get("id")
        found = [one for one in found if not one.missing(mine) and who not in one.not_by]
    more = f", the first {ROWS} are shown" if len(found) > ROWS else ""
    st.caption(f"{len(found)} waiting{more}. An answer covers the action that is shown, and no other.")
    for one in found[:ROWS]:
        answer_card(one, settings().may(APPROVE))
