"""Event logs: trajectories as other people's tools read them.

- JSONL: one trajectory a line, in full; `read_jsonl` reads it back.
- XES (IEEE 1849-2016): one trace per run, one event per move.
- OCEL 2.0 (JSON): events and two types of objects, runs and the programs they are of.

Times are UTC. A move without a time of its own takes that of the run's start. No inputs, outputs or messages: a log of
what was done, not of what it was done with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.sax.saxutils import quoteattr

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.observe.trajectory import Move, Trajectory

LINE_BYTES_MAX = 64 * 1024 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_XES_HEAD = """\
<?xml version="1.0" encoding="UTF-8"?>
<log xes.version="1849.2016" xes.features="" xmlns="http://www.xes-standard.org/">
  <extension name="Concept" prefix="concept" uri="http://www.xes-standard.org/concept.xesext"/>
  <extension name="Lifecycle" prefix="lifecycle" uri="http://www.xes-standard.org/lifecycle.xesext"/>
  <extension name="Time" prefix="time" uri="http://www.xes-standard.org/time.xesext"/>
  <global scope="trace">
    <string key="concept:name" value=""/>
  </global>
  <global scope="event">
    <string key="concept:name" value=""/>
    <string key="lifecycle:transition" value="complete"/>
    <date key="time:timestamp" value="1970-01-01T00:00:00.000+00:00"/>
  </global>
  <classifier name="Activity" keys="concept:name"/>
  <classifier name="Activity and lifecycle" keys="concept:name lifecycle:transition"/>
"""


def jsonl(trajectories: Iterable[Trajectory]) -> Iterator[str]:
    """Lines of canonical JSON, one trajectory each."""
    for trajectory in trajectories:
        yield canonical.encode(msgspec.to_builtins(trajectory)).decode() + "\n"


def read_jsonl(lines: Iterable[bytes]) -> Iterator[Trajectory]:
    """The trajectories that `jsonl` wrote. Empty lines are passed over.

    Raises:
        InputError: BAD_EVENT_LOG, naming the line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if len(line) > LINE_BYTES_MAX:
                raise ValueError("too long")
            yield msgspec.json.decode(line, type=Trajectory)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            raise InputError(
                "BAD_EVENT_LOG",
                f"line {number} is no trajectory",
                help="one JSON object a line, as `jsonl` writes them",
            ) from None


def xes(trajectories: Iterable[Trajectory]) -> Iterator[str]:
    """The pieces of an XES document."""
    yield _XES_HEAD
    for trajectory in trajectories:
        yield "  <trace>\n"
        yield _string("concept:name", trajectory.id, 4)
        for key, value in (
            ("nanovm:program", trajectory.program),
            ("nanovm:program_name", trajectory.name),
            ("nanovm:status", trajectory.status),
            ("nanovm:source", trajectory.source),
        ):
            if value:
                yield _string(key, value, 4)
        for name in ("rollbacks", "violations", "transitions"):
            count = getattr(trajectory, name)
            if count:
                yield f'    <int key="nanovm:{name}" value="{count}"/>\n'
        for move in trajectory.moves:
            yield "    <event>\n"
            yield _string("concept:name", move.activity, 6)
            yield _string("lifecycle:transition", "ate_abort" if move.failed else "complete", 6)
            yield f'      <date key="time:timestamp" value="{_iso(_time_of(trajectory, move))}"/>\n'
            if move.kind:
                yield _string("nanovm:kind", move.kind, 6)
            if move.tokens:
                yield f'      <int key="nanovm:tokens" value="{move.tokens}"/>\n'
            if move.cost_nanousd:
                yield f'      <int key="nanovm:cost_nanousd" value="{move.cost_nanousd}"/>\n'
            yield "    </event>\n"
        yield "  </trace>\n"
    yield "</log>\n"


def ocel(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """An OCEL 2.0 log, as the JSON object that its standard describes."""
    objects: dict[str, dict[str, Any]] = {}
    events: list[dict[str, Any]] = []
    activities: dict[str, None] = {}
    for trajectory in trajectories:
        program = f"program:{trajectory.program or trajectory.name or trajectory.source}"
        began = _iso(trajectory.started_at_ms)
        objects.setdefault(
            program, _object(program, "program", {"name": trajectory.name or trajectory.source}, _iso(0), [])
        )
        run = f"run:{trajectory.id}"
        related = [{"objectId": program, "qualifier": "is of"}]
        facts = {"status": trajectory.status, "source": trajectory.source}
        objects[run] = _object(run, "run", facts, began, related)
        for number, move in enumerate(trajectory.moves):
            activities[move.activity] = None
            events.append(
                {
                    "id": f"{run}#{number}",
                    "type": move.activity,
                    "time": _iso(_time_of(trajectory, move)),
                    "attributes": [
                        {"name": "kind", "value": move.kind},
                        {"name": "failed", "value": move.failed},
                        {"name": "tokens", "value": move.tokens},
                        {"name": "cost_nanousd", "value": move.cost_nanousd},
                    ],
                    "relationships": [{"objectId": run, "qualifier": "of"}],
                }
            )
    kinds = [("kind", "string"), ("failed", "boolean"), ("tokens", "integer"), ("cost_nanousd", "integer")]
    return {
        "objectTypes": [
            {"name": "program", "attributes": _types([("name", "string")])},
            {"name": "run", "attributes": _types([("status", "string"), ("source", "string")])},
        ],
        "eventTypes": [{"name": name, "attributes": _types(kinds)} for name in sorted(activities)],
        "objects": list(objects.values()),
        "events": events,
    }


def _types(named: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "type": kind} for name, kind in named]


def _object(
    id: str, kind: str, facts: dict[str, str], time: str, related: list[dict[str, str]]
) -> dict[str, Any]:
    attributes = [{"name": name, "time": time, "value": value} for name, value in facts.items()]
    return {"id": id, "type": kind, "attributes": attributes, "relationships": related}


def _time_of(trajectory: Trajectory, move: Move) -> int:
    return move.finished_at_ms or move.started_at_ms or trajectory.started_at_ms


def _iso(at_ms: int) -> str:
    try:
        return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds")
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC).isoformat(timespec="milliseconds")


def _string(key: str, value: str, indent: int) -> str:
    # What XML cannot hold at all - most control characters - is left out.
    sound = "".join(
        c
        for c in value
        if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff")
    )
    return f"{' ' * indent}<string key={quoteattr(key)} value={quoteattr(sound)}/>\n"
