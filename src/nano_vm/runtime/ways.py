"""The ways to what waits, through the programs that are called.

`call/step` is a step of a called program. Beside it, `item` says which element of a map is meant, whether the step
stands in a map of its own program or the call does in one. Where both do, `item` is the step's, and the way names the
call's as compensations are named: `call.1.3/step`, of occurrence 1 and element 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nano_vm.kernel.transition import child_run_id

_Call = tuple[str, int, int | None]  # step, occurrence, item


def flat_waits(
    run_id: str, waits: Sequence[Mapping[str, Any]], above: tuple[_Call, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a run and all below it wait for: the id of the run that waits, and the wait with the `step` and `item` that
    an answer names."""
    for wait in waits:
        if not wait.get("waits"):
            yield run_id, _named(wait, above)
            continue
        call = (wait["step"], wait["occurrence"], wait.get("item"))
        item = wait.get("item", -1)
        child = child_run_id(run_id, wait["step"], wait["occurrence"], item, wait["attempt"])
        yield from flat_waits(child, wait["waits"], (*above, call))


def _named(wait: Mapping[str, Any], above: tuple[_Call, ...]) -> dict[str, Any]:
    way, item = wait["step"], wait.get("item")
    for step, occurrence, lane in reversed(above):
        if lane is not None and item is not None:
            way = f"{step}.{occurrence}.{lane}/{way}"
        else:
            way, item = f"{step}/{way}", lane if item is None else item
    return {**wait, "step": way} | ({} if item is None else {"item": item})


def steps_of(way: str) -> list[str]:
    """The names on a way, whichever occurrences and elements it leads through."""
    return [part.partition(".")[0] for part in way.split("/")]


def below(letter: dict[str, Any], step: str, occurrence: int, item: int | None) -> dict[str, Any] | None:
    """A letter with `step` and `item`, as the run that a call began takes it: the way loses its first part. None when
    it leads elsewhere."""
    way = letter["step"]
    if way is None or "/" not in way:
        return letter
    first, rest = way.split("/", 1)
    name, *place = first.split(".")
    if name != step or place[:1] not in ([], [str(occurrence)]) or len(place) > 2:
        return None
    if len(place) == 2:
        return {**letter, "step": rest} if place[1] == str(item) else None
    if item is None or letter.get("item") is None:
        return {**letter, "step": rest}
    return {**letter, "step": rest, "item": None} if letter["item"] == item else None
