"""Event logs and pictures: well-formed whatever names are like, and read back as what they were."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano_vm import ExecutionVM, MockLLMAdapter, Program, SqliteStore, tool
from nano_vm.cli.main import main
from nano_vm.compiler import compile_program
from nano_vm.observe import drawing, eventlog
from nano_vm.observe.trajectory import Move, Trajectory, of_trace
from unit.runtime.runtime_stage import refused

TEXT = st.text(max_size=12).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
NUMBERS = st.integers(0, 4_000_000_000_000)
MOVES = st.builds(
    Move,
    activity=TEXT,
    kind=TEXT,
    started_at_ms=NUMBERS,
    finished_at_ms=NUMBERS,
    failed=st.booleans(),
    tokens=NUMBERS,
)
TRAJECTORIES = st.builds(
    Trajectory,
    id=TEXT,
    source=TEXT,
    program=TEXT,
    name=TEXT,
    status=st.sampled_from(["", "SUCCESS", "FAILED"]),
    started_at_ms=NUMBERS,
    moves=st.lists(MOVES, max_size=5).map(tuple),
)
XES = "{http://www.xes-standard.org/}"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(trajectories=st.lists(TRAJECTORIES, max_size=4))
def test_jsonl_reads_back_as_what_it_was(trajectories: list[Trajectory]) -> None:
    lines = [line.encode() for line in eventlog.jsonl(trajectories)]
    assert list(eventlog.read_jsonl([*lines, b"\n"])) == trajectories


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"id": 1}', b"\xff", b'{"id":"a","source":"b","moves":[1]}'])
def test_a_line_that_is_no_trajectory_is_named(line: bytes) -> None:
    good = next(iter(eventlog.jsonl([Trajectory(id="a", source="b")]))).encode()
    with refused("BAD_EVENT_LOG"):
        list(eventlog.read_jsonl([good, line]))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(trajectories=st.lists(TRAJECTORIES, max_size=4))
def test_xes_is_well_formed_and_has_every_move(trajectories: list[Trajectory]) -> None:
    root = ElementTree.fromstring("".join(eventlog.xes(trajectories)))
    assert root.tag == f"{XES}log"
    traces = root.findall(f"{XES}trace")
    assert len(traces) == len(trajectories)
    for found, meant in zip(traces, trajectories, strict=True):
        events = found.findall(f"{XES}event")
        assert len(events) == len(meant.moves)
        for event, move in zip(events, meant.moves, strict=True):
            held = {node.get("key"): node.get("value") for node in event}
            assert held["lifecycle:transition"] == ("ate_abort" if move.failed else "complete")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(held["time:timestamp"]))


# What OCEL 2.0 says of its JSON form, as far as we write it.
OCEL: dict[str, Any] = {
    "type": "object",
    "required": ["objectTypes", "eventTypes", "objects", "events"],
    "properties": {
        name: {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "attributes"],
                "properties": {
                    "attributes": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name", "type"],
                            "properties": {
                                "type": {"enum": ["string", "time", "integer", "float", "boolean"]}
                            },
                        },
                    }
                },
            },
        }
        for name in ("objectTypes", "eventTypes")
    },
}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(trajectories=st.lists(TRAJECTORIES, max_size=4, unique_by=lambda t: t.id))
def test_ocel_names_only_what_it_declares(trajectories: list[Trajectory]) -> None:
    import jsonschema_rs

    log = json.loads(json.dumps(eventlog.ocel(trajectories)))
    assert jsonschema_rs.Draft202012Validator(OCEL).is_valid(log)
    objects = {thing["id"]: thing for thing in log["objects"]}
    kinds = {kind["name"]: {a["name"] for a in kind["attributes"]} for kind in log["objectTypes"]}
    activities = {kind["name"]: {a["name"] for a in kind["attributes"]} for kind in log["eventTypes"]}
    assert len(objects) == len(log["objects"])
    assert len({event["id"] for event in log["events"]}) == len(log["events"])
    for thing in log["objects"]:
        assert {a["name"] for a in thing["attributes"]} <= kinds[thing["type"]]
        assert all(related["objectId"] in objects for related in thing["relationships"])
    for event in log["events"]:
        assert {a["name"] for a in event["attributes"]} <= activities[event["type"]]
        assert all(related["objectId"] in objects for related in event["relationships"])


EXAMPLES = sorted(
    path for path in (Path(__file__).parents[3] / "examples").glob("*.yaml") if ".policy" not in path.suffixes
)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_can_be_drawn(file: Path) -> None:
    program = compile_program(Program.from_file(file))
    mermaid, dot = drawing.mermaid(program), drawing.dot(program)
    for step in program.steps:
        assert f"n_{step.index}" in mermaid
        assert f"n_{step.index} [" in dot
    nodes = set(re.findall(r"\b(n_\d+|s_|e_)\b", dot))
    edges = re.findall(r"^\s*(\w+) -> (\w+)", dot, re.MULTILINE)
    assert {end for edge in edges for end in edge} <= nodes
    # Everything hangs together: from the start every step is reached.
    reached, grown = {"s_"}, True
    while grown:
        grown = any(b not in reached and not reached.add(b) for a, b in edges if a in reached)
    assert {f"n_{step.index}" for step in program.steps} <= reached
    assert mermaid.count("subgraph") == mermaid.count("\n  end\n") + mermaid.count("    end\n")


def test_a_run_is_drawn_as_it_went_and_no_author_can_break_out_of_a_label(tmp_path: Path) -> None:
    @tool(effect="pure")
    def act() -> str:
        return "x"

    step = {
        "id": "a",
        "type": "tool",
        "tool": "act",
        "is_terminal": True,
        "outcome": 'x"] --> evil; %%{init}%%',
    }
    vm = ExecutionVM(tools=[act])
    trace = vm.run_sync({"name": 'a"; b', "steps": [step]})
    mermaid = drawing.mermaid(trace.program, trace.steps)
    assert "classDef SUCCESS" in mermaid
    assert "evil;" not in mermaid
    assert '"] -->' not in mermaid
    assert drawing.dot(trace.program, trace.steps).startswith('digraph "a\\"; b" {')


def test_logs_and_pictures_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @tool(effect="pure")
    def act(secret: str) -> str:
        return secret

    database = str(tmp_path / "runs.db")
    vm = ExecutionVM(tools=[act], llm=MockLLMAdapter("x"), store=SqliteStore(database))
    step = {"id": "a", "type": "tool", "tool": "act", "args": {"secret": "$s"}}
    for number in range(3):
        vm.run_sync({"name": "p", "steps": [step]}, {"s": "hunter2"}, trace_id=f"r{number}")
    vm.store.close()
    for form in ("xes", "ocel", "jsonl"):
        file = tmp_path / f"log.{form}"
        words = ["eventlog", "p", "--format", form, "-o", str(file), "--store", database, "--json"]
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["runs"] == 3
        assert "hunter2" not in file.read_text(encoding="utf-8")
    read = list(eventlog.read_jsonl((tmp_path / "log.jsonl").read_bytes().splitlines()))
    assert [trajectory.id for trajectory in read] == ["r0", "r1", "r2"]
    again = ExecutionVM(tools=[act], store=SqliteStore(database))
    assert read[0] == of_trace(again.trace("r0"))
    again.store.close()
    assert main(["graph", "--run", "r0", "--store", database]) == 0
    assert "flowchart TD" in capsys.readouterr().out
    for words in (
        ["eventlog", "--format", "xes", "-o", "x"],
        ["graph"],
        ["eventlog", "p", "--all", "--format", "xes", "-o", "x"],
    ):
        assert main([*words, "--store", database, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "USAGE"
    assert main(["eventlog", "p", "--format", "xes", "-o", "no/such/x", "--store", database, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "EVENT_LOG_FILE"
