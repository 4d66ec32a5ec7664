"""The ways to what waits, through the programs that are called.

`call/step` is a step of a called program, and `call[0]/step` one of what the first element of a map calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from nano_vm.kernel.transition import child_run_id

_ELEMENT: Final = re.compile(r"\[[0-9]+\]/")


class Place(NamedTuple):
    """Where something is waited for: the run that waits, the way to the step, the outermost element of a map on it (the
    wait's own one, where no map calls), and the wait."""

    run_id: str
    way: str
    element: int | None
    wait: dict[str, Any]

    @property
    def named(self) -> dict[str, Any]:
        """The wait, with the way to it in place of its step, as an answer names it."""
        return {**self.wait, "step": self.way}


def places(
    run_id: str, waits: Sequence[Mapping[str, Any]], way: str = "", outer: int | None = None
) -> Iterator[Place]:
    """What a run and all below it wait for."""
    for wait in waits:
        own = wait.get("item")
        element = own if outer is None else outer
        if not wait.get("waits"):
            yield Place(run_id, way + wait["step"], element, dict(wait))
            continue
        number = -1 if own is None else own
        child = child_run_id(run_id, wait["step"], wait["occurrence"], number, wait["attempt"])
        through = wait["step"] if own is None else f"{wait['step']}[{own}]"
        yield from places(child, wait["waits"], f"{way}{through}/", element)


def plain(way: str) -> str:
    """A way without the elements that it names: `call/step` for `call[0]/step`."""
    return _ELEMENT.sub("/", way)


def inward(letter: dict[str, Any], step: str, item: int | None) -> dict[str, Any] | None:
    """The letter as a child takes it: a way like `call/step` loses its first part, and with it the element that it
    names, as in `call[0]/step`, or else that of the letter. None when it leads elsewhere."""
    way = letter["step"]
    if way is None or "/" not in way:
        return letter
    first, rest = way.split("/", 1)
    if item is not None and first == f"{step}[{item}]":
        return {**letter, "step": rest}
    if first != step:
        return None
    if item is None or letter.get("item") is None:
        return {**letter, "step": rest}
    return {**letter, "step": rest, "item": None} if letter["item"] == item else None
