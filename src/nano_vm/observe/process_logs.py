"""Event logs of process mining as trajectories: XES (IEEE 1849) and OCEL 2.0 (JSON).

Ours come back as they were, but for what these formats have no place for: arguments, and the graph of the program.
"""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

import msgspec

from nano_vm.observe.foreign import bad, count_of, instant, move_of, trajectory_of
from nano_vm.observe.trajectory import Move, Trajectory

# What XES's lifecycle says of an activity that is not over.
_UNDER_WAY = frozenset({"schedule", "assign", "reassign", "start", "suspend", "resume"})
_ABORTED = frozenset({"ate_abort", "pi_abort", "withdraw"})
_CASE_TYPE = "run"  # the objects that runs of ours are


def xes(data: bytes) -> list[Trajectory]:
    """A trajectory per trace, in the order of the file. Its moves are the events that end something (lifecycle
    `complete`, an abort, or none at all; `start` where the log has no other), in the order of the trace; `ate_abort`,
    `pi_abort` and `withdraw` are moves that failed. Documents with a type declaration are refused."""
    reader = _XesReader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = reader.refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise bad(f"line {error.lineno}: it is no XML ({expat.ErrorString(error.code)})") from None
    if not reader.is_log:
        raise bad("it is no XES log")
    return reader.trajectories()


class _XesReader:
    """Takes elements as they come. Attributes of attributes are passed over."""

    def __init__(self) -> None:
        self.is_log = False
        self._depth = 0
        self._log: dict[str, str] = {}
        self._traces: list[tuple[dict[str, str], list[dict[str, str]]]] = []
        self._into: tuple[int, dict[str, str]] | None = (
            None  # the depth of what has attributes now, and these
        )

    def refuse(self, *_: Any) -> None:
        raise bad("it declares a document type, and an event log has none")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        tag = name.rpartition(" ")[2]
        if self._depth == 1 and tag == "log":
            self.is_log = True
            self._into = (1, self._log)
        elif self.is_log and self._depth == 2 and tag == "trace":
            self._traces.append(({}, []))
            self._into = (2, self._traces[-1][0])
        elif self._traces and self._depth == 3 and tag == "event":
            self._traces[-1][1].append({})
            self._into = (3, self._traces[-1][1][-1])
        elif self._into is not None and self._depth == self._into[0] + 1 and "key" in attributes:
            self._into[1].setdefault(attributes["key"], attributes.get("value", ""))

    def end(self, name: str) -> None:
        tag = name.rpartition(" ")[2]
        if self._depth == 3 and tag == "event":
            self._into = (2, self._traces[-1][0])
        elif self._depth == 2 and tag == "trace":
            self._into = (1, self._log)
        self._depth -= 1

    def trajectories(self) -> list[Trajectory]:
        ends = any(_transition(event) not in _UNDER_WAY for _, events in self._traces for event in events)
        wanted = None if ends else "start"
        name = self._log.get("concept:name", "")
        return [
            _xes_trajectory(facts, events, str(number), name, wanted)
            for number, (facts, events) in enumerate(self._traces)
        ]


def _transition(event: dict[str, str]) -> str:
    return event.get("lifecycle:transition", "").lower()


def _xes_trajectory(
    facts: dict[str, str], events: list[dict[str, str]], number: str, log: str, wanted: str | None
) -> Trajectory:
    moves: list[Move] = []
    began: dict[str, int] = {}
    for event in events:
        activity, transition = event.get("concept:name", ""), _transition(event)
        at_ms = instant(event.get("time:timestamp"))
        if transition == "start":
            began[activity] = at_ms
        if transition != wanted if wanted is not None else transition in _UNDER_WAY:
            continue
        move = move_of(
            activity,
            event.get("nanovm:kind", ""),
            began.pop(activity, at_ms),
            at_ms,
            transition in _ABORTED,
            int(event.get("nanovm:tokens", 0)),
        )
        cost = int(event.get("nanovm:cost_nanousd", 0))
        moves.append(msgspec.structs.replace(move, cost_nanousd=count_of(cost)) if cost else move)
    made = trajectory_of(
        facts.get("concept:name", number),
        facts.get("nanovm:source", "xes"),
        moves,
        program=facts.get("nanovm:program", log),
        name=facts.get("nanovm:program_name", log),
        status=facts.get("nanovm:status", ""),
        rollbacks=_count(facts, "rollbacks"),
        violations=_count(facts, "violations"),
    )
    transitions = _count(facts, "transitions")
    return msgspec.structs.replace(made, transitions=transitions) if transitions else made


def _count(facts: dict[str, str], name: str) -> int:
    return count_of(int(facts.get(f"nanovm:{name}", 0)))


def ocel(data: bytes) -> list[Trajectory]:
    """A trajectory per object of the type `run`, or of the first type that the log declares, in the order of its first
    event; its moves are the events that the object took part in, by time."""
    log = msgspec.json.decode(data)
    events = {str(event["id"]): event for event in log["events"]}
    objects = {str(found["id"]): found for found in log["objects"]}
    types = [str(kind["name"]) for kind in log["objectTypes"]]
    wanted = _CASE_TYPE if _CASE_TYPE in types else next(iter(types), "")
    took_part: dict[str, list[str]] = {}
    for event_id, event in events.items():
        for relation in event.get("relationships") or ():
            held = str(relation["objectId"])
            if held in objects and objects[held]["type"] == wanted:
                took_part.setdefault(held, []).append(event_id)
    for held, found in objects.items():
        if found["type"] == wanted:
            took_part.setdefault(held, [])
    return [
        _ocel_trajectory(objects[held], [events[one] for one in ids], objects)
        for held, ids in took_part.items()
    ]


def _ocel_trajectory(
    case: dict[str, Any], events: list[dict[str, Any]], objects: dict[str, dict[str, Any]]
) -> Trajectory:
    moves = []
    for event in sorted(events, key=lambda event: instant(event.get("time"))):
        facts = _named(event)
        at_ms = instant(event.get("time"))
        move = move_of(
            str(event["type"]),
            str(facts.get("kind", "")),
            at_ms,
            at_ms,
            str(facts.get("failed", "")).lower() == "true",
            int(facts.get("tokens", 0)),
        )
        moves.append(msgspec.structs.replace(move, cost_nanousd=count_of(int(facts.get("cost_nanousd", 0)))))
    facts = _named(case)
    related = (objects.get(str(relation["objectId"])) for relation in case.get("relationships") or ())
    program = next((found for found in related if found is not None and found["type"] == "program"), None)
    return trajectory_of(
        str(case["id"]).removeprefix("run:"),
        str(facts.get("source", "ocel")),
        moves,
        program=str(case["type"] if program is None else program["id"]).removeprefix("program:"),
        name=str(case["type"]) if program is None else str(_named(program).get("name", "")),
        status=str(facts.get("status", "")),
    )


def _named(found: dict[str, Any]) -> dict[str, Any]:
    return {str(one["name"]): one["value"] for one in found.get("attributes") or ()}
