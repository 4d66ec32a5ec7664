"""The success of a plain step, and what rides with it, as they are written: without events being made for them.

Most entries of most journals are the success of a plain tool and the intent of the next one. `Chain.seal_successes`
writes them from these parts, and `Stretch.read` holds what it reads against them; a property test compares
both with what `Chain.seal` makes of the events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from nano_vm.kernel.events import PolicyDecided

_encode = msgspec.json.Encoder().encode

Success: TypeAlias = tuple[str, str, bytes, str, str, str | tuple[str, ...]]
"""The success of a first attempt, to be sealed: when (digits), the members that `success_of` gives, with the verdicts
that followed (`with_verdicts`), the payload, and what rides with it: what comes before its time, its time, and what
comes after - around the same time once more, where several events ride (`intent_of`, `intents_of`, `decided_of`,
`end_of`, or `ALONE`). Or, with `start_of` and `with_start`, the start of a run.
"""

HEAD, AT = '{"commitment":"sha256:', '","event":{"at_ms":'
END = '},"prev":"sha256:'
_BEFORE_END = -len(END)
LAST = ',"type":"StepSucceeded"}'
ALONE = ("", "", LAST)


encode_verdicts = _encode
"""Verdicts as they are written: nothing in them needs more than the plain encoder."""


def with_verdicts(step: str, verdicts: list[Any]) -> str:
    """The members with the verdicts of conditions, or the codes of their errors, after them."""
    told, before = step[:_BEFORE_END], ',"verdicts":['
    for step_id, occurrence, verdict in verdicts:
        told += f'{before}["{step_id}",{occurrence},{_TOLD.get(verdict) or _encode(verdict).decode()}]'
        before = ","
    return f"{told}]{END}"


_TOLD = {True: "true", False: "false"}


def success_of(step_id: str, pure: bool, occurrence: int, label: int = 0, item: int = -1) -> str:
    """A StepSucceeded from `attempt` on. Step ids need no escaping."""
    member = '"pure":true,' if pure else ""
    labelled = f'"label":{label},' if label else ""
    if item >= 0:
        labelled = f'"item":{item},{labelled}'
    return f',"attempt":1,{labelled}"occurrence":{occurrence},{member}"step":"{step_id}"{END}'


def intent_of(step_id: str, effect: str, occurrence: int, label: int = 0) -> tuple[str, str]:
    """A StepStarted of a first attempt that rides with a success: what comes before and after its time."""
    labelled = f'"label":{label},' if label else ""
    members = f',"attempt":1,"effect":"{effect}",{labelled}"occurrence":{occurrence},"step":"{step_id}"'
    return ',"then":[{"event":{"at_ms":', members + '},"type":"StepStarted"}]' + LAST


def intents_of(steps: Sequence[tuple[str, str]], occurrence: int) -> tuple[str, str | tuple[str, ...]]:
    """The StepStarted of several steps (id, effect), as `intent_of` has that of one: what comes before their time, and
    around it after that."""
    if not steps:
        return "", LAST
    parts = [
        f',"attempt":1,"effect":"{effect}","occurrence":{occurrence},"step":"{step_id}"}},"type":"StepStarted"}}'
        for step_id, effect in steps
    ]
    after = ',{"event":{"at_ms":'
    return ',"then":[{"event":{"at_ms":', (*(part + after for part in parts[:-1]), f"{parts[-1]}]{LAST}")


def with_start(after: str) -> str:
    """The last part of what rides, when it rides with a RunStarted instead of a success."""
    return after[: -len(LAST)] + ',"type":"RunStarted"}'


def encode_counts(counts: list[list[Any]]) -> str:
    """What a decision counts, as it is written: keys are digests, and numbers need no care."""
    return _encode(counts).decode()


def decided_of(decided: PolicyDecided, intended: bool) -> tuple[str, str]:
    """A decision (of the time 0) that rides with a success, and the intent after it where there is one: what comes
    before its time, and between that and the time of the intent (or after, without one)."""
    before, members = _encode(decided).decode().split('"at_ms":0', 1)
    before = f',"then":[{{"event":{before}"at_ms":'
    if not intended:
        return before, members + ',"type":"PolicyDecided"}]' + LAST
    return before, members + ',"type":"PolicyDecided"},{"event":{"at_ms":'


def end_of(status: str, outcome: str | None) -> tuple[str, str]:
    """A RunFinished that leaves nothing incomplete and rides with a success: what comes before and after its time."""
    named = "" if outcome is None else f',"outcome":{_encode(outcome).decode()}'
    return ',"then":[{"event":{"at_ms":', f'{named},"status":"{status}"}},"type":"RunFinished"}}]' + LAST
