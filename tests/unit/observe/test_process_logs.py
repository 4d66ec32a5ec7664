"""XES and OCEL logs as trajectories: ours come back as they were, others' are read as their standards say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano_vm import InputError
from nano_vm.cli.main import main
from nano_vm.observe import eventlog, imports
from nano_vm.observe.analyzer import metrics_of
from nano_vm.observe.trajectory import Move, Trajectory
from unit.runtime.runtime_stage import refused

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=10)
TIMES = st.integers(1, 4_000_000_000_000)
MOVES = st.builds(
    Move,
    activity=NAMES,
    kind=NAMES,
    finished_at_ms=TIMES,
    failed=st.booleans(),
    tokens=st.integers(0, 10**9),
    cost_nanousd=st.integers(0, 10**12),
)
RUNS = st.builds(
    Trajectory,
    id=NAMES,
    source=st.just("nano-vm"),
    program=NAMES,
    name=NAMES,
    status=st.sampled_from(["", "SUCCESS", "FAILED"]),
    moves=st.lists(MOVES, min_size=1, max_size=6).map(tuple),
    rollbacks=st.integers(0, 9),
    violations=st.integers(0, 9),
    transitions=st.integers(9, 99),
)
LOG = '<log xes.version="1849.2016" xmlns="http://www.xes-standard.org/">{}</log>'


def log(*traces: str) -> bytes:
    return LOG.format("".join(f"<trace>{trace}</trace>" for trace in traces)).encode()


def event(name: str, transition: str | None = None, at: str | None = None) -> str:
    lifecycle = "" if transition is None else f'<string key="lifecycle:transition" value="{transition}"/>'
    time = "" if at is None else f'<date key="time:timestamp" value="{at}"/>'
    return f'<event><string key="concept:name" value="{name}"/>{lifecycle}{time}</event>'


def summary(run: Trajectory) -> list[tuple[str, str, int, bool, int, int]]:
    return [(m.activity, m.kind, m.finished_at_ms, m.failed, m.tokens, m.cost_nanousd) for m in run.moves]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs=st.lists(RUNS, max_size=4))
def test_a_log_of_ours_comes_back_from_xes_as_it_was(runs: list[Trajectory]) -> None:
    back = imports.read("xes", "".join(eventlog.xes(runs)).encode())
    assert [(r.id, r.source, r.program, r.name, r.status) for r in back] == [
        (r.id, r.source, r.program, r.name, r.status) for r in runs
    ]
    for ours, theirs in zip(runs, back, strict=True):
        assert summary(theirs) == summary(ours)
        lost = {"tool_churn", "normalized_entropy"}  # arguments and the graph have no place in XES
        measured = metrics_of(ours)
        assert {k: v for k, v in metrics_of(theirs).items() if k not in lost} == {
            k: v for k, v in measured.items() if k not in lost
        }


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs=st.lists(RUNS, max_size=4, unique_by=lambda run: run.id))
def test_a_log_of_ours_comes_back_from_ocel_with_its_moves_by_time(runs: list[Trajectory]) -> None:
    back = {run.id: run for run in imports.read("ocel", json.dumps(eventlog.ocel(runs)).encode())}
    assert back.keys() == {run.id for run in runs}
    for ours in runs:
        theirs = back[ours.id]
        assert (theirs.source, theirs.program, theirs.status) == (ours.source, ours.program, ours.status)
        assert summary(theirs) == sorted(summary(ours), key=lambda move: move[2])


def test_events_that_end_something_are_moves_and_aborts_are_failures() -> None:
    [run] = imports.read(
        "xes",
        log(
            '<string key="concept:name" value="case 1"/>'
            + event("a", "schedule", "2026-01-01T00:00:00+00:00")
            + event("a", "START", "2026-01-01T00:00:01+00:00")
            + event("a", "COMPLETE", "2026-01-01T00:00:03.5+00:00")
            + event("b", "ate_abort", "2026-01-01T01:00:04+01:00")
            + event("c")
        ),
    )
    assert run.id == "case 1"
    assert [(move.activity, move.failed) for move in run.moves] == [("a", False), ("b", True), ("c", False)]
    begin = 1_767_225_600_000
    assert (run.moves[0].started_at_ms, run.moves[0].finished_at_ms) == (begin + 1_000, begin + 3_500)
    assert run.moves[1].finished_at_ms == begin + 4_000


def test_a_log_that_has_starts_alone_is_a_log_of_starts() -> None:
    runs = imports.read("xes", log(event("a", "start") + event("b", "start"), event("a", "start")))
    assert [run.path for run in runs] == [["a", "b"], ["a"]]
    assert [run.id for run in runs] == ["0", "1"]


def test_attributes_of_attributes_and_of_the_globals_are_no_facts_of_an_event() -> None:
    text = LOG.format(
        '<string key="concept:name" value="the log"/>'
        '<global scope="event"><string key="concept:name" value="dflt"/></global>'
        "<trace><event>"
        '<string key="note" value="x"><string key="concept:name" value="inner"/></string>'
        '<string key="concept:name" value="outer"/></event></trace>'
    )
    [run] = imports.read("xes", text.encode())
    assert (run.path, run.name, run.program) == (["outer"], "the log", "the log")


def test_a_time_without_a_zone_is_the_same_everywhere() -> None:
    [run] = imports.read("xes", log(event("a", None, "2026-01-01T00:00:00")))
    assert run.started_at_ms == 1_767_225_600_000


def test_a_compressed_log_is_read() -> None:
    [run] = imports.read("xes", gzip.compress(log(event("a"))))
    assert run.path == ["a"]


def test_a_small_file_does_not_unfold_into_gigabytes() -> None:
    """A hundred kilobytes of empty lists were read into gigabytes."""
    bomb = gzip.compress(b'{"messages": [' + b"[]," * 10_000_000 + b"[]]}")
    assert len(bomb) < 100_000
    with pytest.raises(InputError) as caught:
        imports.read("openai", bomb)
    assert (caught.value.code, caught.value.facts["limit"]) == ("BAD_EVENT_LOG", "GZIP_RATIO_MAX")
    assert "GZIP_RATIO_MAX" in caught.value.message


def test_more_than_may_be_read_is_refused_also_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "FILE_BYTES_MAX", 10_000)
    bomb = gzip.compress(b"<log>" + b" " * 1_000_000)
    assert len(bomb) < 10_000
    for data in (bomb, b" " * 10_001):
        with refused("BAD_EVENT_LOG"):
            imports.read("xes", data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<log>",
        b"<html/>",
        b"{}",
        gzip.compress(b"<log/>", mtime=0)[:-4],
        b'<!DOCTYPE log [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><log>&b;</log>',
        '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE log SYSTEM "file:///etc/passwd"><log/>'.encode(
            "utf-16"
        ),
        log('<event><int key="nanovm:tokens" value="many"/></event>'),
    ],
)
def test_what_is_no_event_log_is_refused(data: bytes) -> None:
    with refused("BAD_EVENT_LOG"):
        imports.read("xes", data)


@pytest.mark.parametrize(
    "data", [b"[]", b"{}", b'{"events": [{}], "objects": [], "objectTypes": []}', b"\xff"]
)
def test_what_is_no_object_centric_log_is_refused(data: bytes) -> None:
    with refused("BAD_EVENT_LOG"):
        imports.read("ocel", data)


def test_an_object_centric_log_of_others_is_read_by_its_first_type() -> None:
    made = {
        "objectTypes": [{"name": "order", "attributes": []}, {"name": "item", "attributes": []}],
        "eventTypes": [],
        "objects": [
            {"id": "o1", "type": "order"},
            {"id": "i1", "type": "item"},
            {"id": "o2", "type": "order"},
        ],
        "events": [
            {
                "id": "e2",
                "type": "ship",
                "time": "2026-01-02T00:00:00Z",
                "relationships": [{"objectId": "o1"}],
            },
            {
                "id": "e1",
                "type": "place",
                "time": "2026-01-01T00:00:00Z",
                "relationships": [{"objectId": "o1"}, {"objectId": "i1"}, {"objectId": "gone"}],
            },
        ],
    }
    runs = imports.read("ocel", json.dumps(made).encode())
    assert {run.id: run.path for run in runs} == {"o1": ["place", "ship"], "o2": []}


def test_a_log_of_others_is_watched_for_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def day(number: int) -> str:
        return f"2026-01-{number // 24 + 1:02}T{number % 24:02}:00:00+00:00"

    usual = [event("a", None, day(n)) + event("b", None, day(n)) for n in range(300)]
    other = [event("a", None, day(n)) + event("c", None, day(n)) * 3 for n in range(300, 340)]
    file = tmp_path / "log.xes.gz"
    file.write_bytes(gzip.compress(log(*other, *usual)))  # the order is that of the times, not of the file
    assert main(["drift", str(file), "--from", "xes", "--baseline-runs", "100", "--check", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["health"], said["baseline_runs"], said["runs"]) == ("DEGRADED", 100, 240)
    assert said["evidence"][0]["to"] == "c"
    assert main(["drift", str(file), "--from", "xes", "--limit", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["baseline_runs"] == 50
    assert main(["drift", "nowhere", "--from", "xes", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "EVENT_LOG_FILE"
