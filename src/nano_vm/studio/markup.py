"""Markup that cannot carry anybody else's: text is escaped unless it is `Markup` already."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape

from nano_vm.observe.wording import printable

STATES = {
    "SUCCESS": "success",
    "RUNNING": "running",
    "SUSPENDED": "pending",
    "PENDING": "pending",
    "UNKNOWN": "unknown",
    "SKIPPED": "skipped",
    "STABLE": "success",
    "DRIFTING": "pending",
    "allow": "success",
    "ask": "pending",
    "warning": "pending",
    "held": "success",
    "proved": "success",
    "open": "pending",
}


class Markup(str):
    """Text that is markup, and safe."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Anything as markup."""
    return value if isinstance(value, Markup) else Markup(escape(printable(str(value), keep_newlines=True)))


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """An element. Attributes that are None are left out; `class_` is `class`, and `_` in names becomes `-`."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{words}>{''.join(text(part) for part in inside if part is not None)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    return Markup("".join(text(part) for part in parts))


def chip(status: str, label: str | None = None) -> Markup:
    """A status as a coloured word."""
    state = STATES.get(status, "failed")
    return tag(
        "span", label if label is not None else status.replace("_", " ").lower(), class_=f"chip {state}"
    )


def code(value: object, title: str | None = None) -> Markup:
    return tag("code", value, title=title)


def digest(value: str | None) -> Markup:
    """A digest, shortened; all of it as a title."""
    if not value:
        return text("-")
    return tag("code", value.removeprefix("sha256:")[:12], title=value)


def soft(*inside: object) -> Markup:
    return tag("span", *inside, class_="soft")


def pick(what: str, *inside: object, href: str | None = None, class_: str | None = None) -> Markup:
    """Something that can be chosen, by mouse or keyboard; Python is told `what`. With an address it is a link."""
    if href is not None:
        return tag("a", *inside, href=href, data_pick=what, class_=class_)
    return tag("button", *inside, type="button", data_pick=what, class_=class_)


def tiles(cells: Iterable[tuple[object, object]]) -> Markup:
    """Figures beside one another: (value, label)."""
    return tag(
        "div",
        *(tag("div", tag("b", value), tag("span", label), class_="tile") for value, label in cells),
        class_="tiles",
    )


def facts(rows: Iterable[tuple[object, object]]) -> Markup:
    """Names and what they stand for."""
    return tag("dl", *(join((tag("dt", name), tag("dd", value))) for name, value in rows), class_="facts")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, numeric: Sequence[int] = ()) -> Markup:
    """A table; the columns in `numeric` stand to the right."""
    right = ["num" if place in numeric else None for place in range(len(head))]
    cells = [tag("th", name, scope="col", class_=side) for name, side in zip(head, right, strict=True)]
    body = [
        tag("tr", *(tag("td", cell, class_=side) for cell, side in zip(row, right, strict=True)))
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *body)), class_="scroll")


def ago(at_ms: int, now_ms: int | None = None) -> str:
    """How long ago something was."""
    seconds = ((int(time.time() * 1000) if now_ms is None else now_ms) - at_ms) // 1000
    ahead = seconds < 0
    seconds = abs(seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"in {seconds // size} {unit}" if ahead else f"{seconds // size} {unit} ago"
    return f"in {seconds} s" if ahead else "just now" if seconds < 2 else f"{seconds} s ago"
