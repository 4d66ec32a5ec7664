"""Putting markup on a page, and hearing what is chosen in it: one small component for everything that is drawn.

The component replaces its content only when that has changed, and keeps the focus: a page that looks at the store every
two seconds does not flicker, and may be used by keyboard meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from nano_vm.observe.svg import STYLE
from nano_vm.studio.markup import Markup

_COLOURS = {
    "success": ("#17693f", "#5fd49a", "#e2f5ea", "#173226"),
    "failed": ("#a82c42", "#ff8fa0", "#fdecef", "#3a1c24"),
    "running": ("#1d52b5", "#8db6ff", "#e6effe", "#182a48"),
    "pending": ("#7d5c00", "#e8c95e", "#fcf3cf", "#352d12"),
    "unknown": ("#9c5204", "#ffbd70", "#ffefd9", "#3a2912"),
    "skipped": ("#5c6875", "#9aa7b6", "#eef1f5", "#20262f"),
}
CSS = (
    ":host{display:block}#nv{font-family:var(--st-font);font-size:14.5px;line-height:1.5;color:var(--st-text-color);"
    "--line:light-dark(#e1e6ec,#2d3643);--soft:light-dark(#647180,#97a4b3);--card:light-dark(#fff,#1b212b);"
    "--hover:light-dark(#f3f6fa,#222a36)}"
    "#nv *{box-sizing:border-box}.soft{color:var(--soft)}"
    "code,.mono,pre{font-family:var(--st-code-font);font-size:12.5px}"
    "code{background:none;color:inherit}pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}"
    ".scroll{overflow-x:auto;border:1px solid var(--line);border-radius:12px;background:var(--card)}"
    "table{border-collapse:collapse;width:100%}th{text-align:left;color:var(--soft);font-weight:500;font-size:12.5px;"
    "padding:9px 14px;border-bottom:1px solid var(--line);white-space:nowrap}td{padding:8px 14px;"
    "border-bottom:1px solid var(--line);vertical-align:top}tbody tr:last-child td{border-bottom:0}"
    "td,th{overflow-wrap:normal}.row+.facts{margin-top:10px}"
    "tbody tr:hover{background:var(--hover)}.num{white-space:nowrap;text-align:right;font-variant-numeric:tabular-nums}"
    "td button code{color:light-dark(#1d52b5,#8db6ff)}"
    "a{color:light-dark(#1d52b5,#8db6ff);text-decoration:none;font-weight:500}a:hover{text-decoration:underline}"
    ":focus-visible{outline:2px solid var(--st-primary-color);outline-offset:2px;border-radius:6px}"
    "button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:left}"
    ".chip{display:inline-block;padding:1px 9px;border-radius:99px;font-size:12px;font-weight:600;white-space:nowrap}"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:12px}"
    ".tile{display:block;width:100%;background:var(--card);border:1px solid var(--line);border-radius:12px;"
    "padding:11px 14px}.tile b{display:block;font-size:20px;font-weight:600;line-height:1.35;overflow-wrap:anywhere}"
    ".tile>span{color:var(--soft);font-size:12.5px}button.tile:hover{background:var(--hover)}"
    "button.on{border-color:var(--st-primary-color);box-shadow:inset 0 0 0 1px var(--st-primary-color)}"
    ".scroll+.scroll{margin-top:12px}"
    ".card{overflow-wrap:anywhere;border:1px solid var(--line);border-radius:12px;background:var(--card);padding:16px}"
    ".card+.card{margin-top:12px}.card>.row+*,.card>.lead+*{margin-top:10px}"
    ".row{display:flex;flex-wrap:wrap;gap:8px 12px;align-items:center}"
    ".facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:5px 16px;margin:0}"
    ".facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}"
    ".head{font-size:25px;font-weight:650;line-height:1.2;margin:0}.lead{font-size:15px;font-weight:600}"
    ".empty{text-align:center;padding:44px 20px;color:var(--soft)}.empty b{display:block;color:var(--st-text-color);"
    "font-size:17px;margin-bottom:4px}.graph{overflow:auto;max-height:720px;text-align:center}"
    ".graph svg{max-width:100%;height:auto;min-width:min(100%,260px)}.wide svg{width:100%;height:auto}"
    "#nv svg{font-family:inherit}"
    ".finding{border-left:3px solid var(--line);padding:2px 0 2px 12px;margin:10px 0}"
    ".finding.failed{border-color:light-dark(#cf3a53,#ff6b81);background:none}"
    ".finding.pending{border-color:light-dark(#c79a13,#e5c14b);background:none}"
    ".finding.success{border-color:light-dark(#1f8a54,#3fbf7f);background:none}.finding{color:inherit!important}"
    + "".join(
        f".{name}{{color:light-dark({ink},{light});background:light-dark({tint},{deep})}}"
        for name, (ink, light, tint, deep) in _COLOURS.items()
    )
)
_JS = """
export default function(component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector("#nv");
  if (!root) return;
  if (root.shown !== data.html) {
    const active = parentElement.activeElement || document.activeElement;
    const kept = active && root.contains(active) ? active.getAttribute("data-pick") : null;
    const scrolled = [...root.querySelectorAll(".scroll,.graph")].map((box) => [box.scrollLeft, box.scrollTop]);
    root.innerHTML = data.html;
    root.shown = data.html;
    [...root.querySelectorAll(".scroll,.graph")].forEach((box, place) => {
      if (scrolled[place]) [box.scrollLeft, box.scrollTop] = scrolled[place];
    });
    if (kept) {
      const again = [...root.querySelectorAll("[data-pick]")].find((each) => each.getAttribute("data-pick") === kept);
      if (again) again.focus({ preventScroll: true });
    }
  }
  const choose = (event) => {
    const target = event.target.closest("[data-pick]");
    if (!target || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    setTriggerValue("picked", target.getAttribute("data-pick"));
  };
  root.onclick = choose;
  root.onkeydown = (event) => {
    if (event.key === "Enter" || (event.key === " " && event.target.getAttribute("role") === "button")) choose(event);
  };
}
"""

_mount: Callable[..., Any] | None = None


def _component() -> Callable[..., Any]:
    global _mount
    if _mount is None:
        _mount = st.components.v2.component(
            "nano_vm_view", html='<div id="nv"></div>', css=f"{CSS}\n{STYLE}\n", js=_JS
        )
    return _mount


def show(markup: Markup, key: str, before: Callable[[str], None] | None = None) -> str | None:
    """Put markup on the page. Returns what was just chosen in it, if anything was.

    Args:
        before: is told what was chosen before the page is made again: it may change the state of widgets.
    """

    def tell() -> None:
        held = st.session_state.get(key)
        chosen = getattr(held, "picked", None)
        if before is not None and isinstance(chosen, str):
            before(chosen)

    result = _component()(data={"html": str(markup)}, key=key, on_picked_change=tell)
    picked = getattr(result, "picked", None)
    return picked if isinstance(picked, str) else None
