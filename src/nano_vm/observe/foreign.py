"""What the readers of other systems' traces share: JSON objects of a file, moves, trajectories, times."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.observe.trajectory import COUNT_MAX, MOVES_MAX, Move, Trajectory

NAME_CHARS_MAX = 200


def objects(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a file: it is one, or a list of them, or has one a line."""
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        whole = None
    if whole is not None:
        for number, found in enumerate(whole if type(whole) is list else [whole], 1):
            if type(found) is not dict:
                raise bad(f"element {number} is no object")
            yield found
        return
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = msgspec.json.decode(line)
        except (msgspec.MsgspecError, RecursionError):
            found = None
        if type(found) is not dict:
            raise bad(f"line {number} is no JSON object")
        yield found


def move_of(
    name: str, kind: str, began: int = 0, ended: int = 0, failed: bool = False, tokens: int = 0
) -> Move:
    return Move(
        activity=name[:NAME_CHARS_MAX],
        kind=kind,
        started_at_ms=count_of(began),
        finished_at_ms=count_of(ended),
        failed=failed,
        tokens=count_of(tokens),
    )


def count_of(number: int) -> int:
    """What counts something, as near to the number as that can be."""
    return min(max(number, 0), COUNT_MAX)


def trajectory_of(
    id: str, source: str, moves: list[Move], actions: list[str] | None = None, **facts: Any
) -> Trajectory:
    times = [move.started_at_ms for move in moves if move.started_at_ms]
    return Trajectory(
        id=id,
        source=source,
        moves=tuple(moves[:MOVES_MAX]),
        actions=tuple((actions if actions is not None else [])[:MOVES_MAX]),
        started_at_ms=min(times, default=0),
        finished_at_ms=max((move.finished_at_ms for move in moves), default=0),
        transitions=len(moves),
        cut=len(moves) > MOVES_MAX,
        **facts,
    )


def action_of(tool: Any, arguments: Any) -> str:
    """Equal for equal calls. Arguments that are JSON in a string count as what they say."""
    if type(arguments) is str:
        try:
            arguments = msgspec.json.decode(arguments)
        except (msgspec.MsgspecError, RecursionError):
            pass  # text that a model wrote amiss
    try:
        return canonical.digest_value([tool, arguments])
    except InputError:
        return canonical.digest_value([str(tool), repr(arguments)])


def instant(text: Any) -> int:
    """An RFC 3339 time as epoch milliseconds; 0 when there is none."""
    if type(text) is not str:
        return 0
    try:
        read = datetime.fromisoformat(text)
        # Who leaves the zone out means what everybody would read alike, not where this process runs.
        aware = read if read.tzinfo is not None else read.replace(tzinfo=UTC)
        return max(round(aware.timestamp() * 1_000), 0)
    except (ValueError, OverflowError, OSError):
        return 0


def bad(what: str) -> InputError:
    return InputError("BAD_EVENT_LOG", what, help="`nano-vm measure --help` says which shapes are read")
