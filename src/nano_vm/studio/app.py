"""The script that Streamlit runs for every session: the frame of the studio, and the page that was chosen."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from nano_vm.studio import door, frame
from nano_vm.studio.screens import approvals, costs, diff, drift, laboratory, policies, programs, run, runs

ASSETS = Path(__file__).parent / "assets"
_PAGES = (
    ("", (("runs", runs.page, "Runs"), ("run", run.page, "Run"), ("approvals", approvals.page, "Approvals"))),
    (
        "Programs",
        (("programs", programs.page, "Programs"), ("policies", policies.page, "Policies and vault")),
    ),
    (
        "Analysis",
        (("diff", diff.page, "Diff"), ("drift", drift.page, "Drift"), ("costs", costs.page, "Costs")),
    ),
    ("Laboratory", (("laboratory", laboratory.page, "Failure Laboratory"),)),
)


def main() -> None:
    st.set_page_config(page_title="nano-vm studio", page_icon=str(ASSETS / "icon.png"), layout="wide")
    st.html(ASSETS / "frame.css")
    if not door.is_open():
        return
    st.logo(str(ASSETS / "logo.svg"), size="large")
    groups: dict[str, list[object]] = {}
    for group, pages in _PAGES:
        groups[group] = []
        for address, show, name in pages:
            page = st.Page(show, title=name, url_path=address, default=address == "runs")
            frame.PAGES[address] = page
            groups[group].append(page)
    chosen = st.navigation(groups, position="sidebar")  # type: ignore[arg-type]
    _who()
    chosen.run()


def _who() -> None:
    """Whose store this is, and what may be done here."""
    settings = frame.settings()
    who = settings.principal
    with st.sidebar:
        if settings.path is not None:
            st.caption(
                f"Store `{settings.path.name}`" + (f", tenant `{settings.tenant}`" if settings.tenant else "")
            )
        if who is None or settings.desk is None:
            st.caption("Read-only. Start with `--principal` and `--role` to act.")
        else:
            roles = ", ".join(who.get("roles", ())) or "no role"
            st.caption(f"Acting as **{who['id']}** ({roles})")


if __name__ == "__main__":
    main()
