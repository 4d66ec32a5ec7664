"""Traces of other systems: the shapes that are read, and that nothing else is taken for one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano_vm import NanoVMError
from nano_vm.cli.main import main
from nano_vm.observe import imports, measures
from nano_vm.observe.analyzer import metrics_of
from nano_vm.observe.baseline import learn
from nano_vm.observe.foreign import move_of, trajectory_of
from unit.runtime.runtime_stage import refused


def lines(*objects: Any) -> bytes:
    return b"".join(json.dumps(found).encode() + b"\n" for found in objects)


def span(name: str, start: int, end: int, code: int = 0, **facts: Any) -> dict[str, Any]:
    attributes = [
        {
            "key": key.replace("__", "."),
            "value": {"intValue": str(v)} if type(v) is int else {"stringValue": v},
        }
        for key, v in facts.items()
    ]
    return {
        "traceId": "t1", "spanId": name, "name": name, "startTimeUnixNano": str(start * 10**6),
        "endTimeUnixNano": str(end * 10**6), "status": {"code": code}, "attributes": attributes,
    }  # fmt: skip


def test_spans_of_the_generative_ai_conventions() -> None:
    spans = [
        span("execute_tool find", 30, 40, gen_ai__operation__name="execute_tool", gen_ai__tool__name="find"),
        span("chat m", 10, 20, gen_ai__operation__name="chat", gen_ai__usage__input_tokens=7),
        span("execute_tool pay", 50, 60, 2, gen_ai__operation__name="execute_tool", gen_ai__tool__name="pay"),
        span(
            "invoke_workflow w", 5, 70, gen_ai__operation__name="invoke_workflow", gen_ai__workflow__name="w"
        ),
        span("GET /", 11, 12, http__request__method="GET"),
    ]
    [run] = imports.read("otel", lines({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}))
    assert run.path == [imports.MODEL, "find", "pay"]
    assert [move.failed for move in run.moves] == [False, False, True]
    assert (run.id, run.name, run.status, run.moves[0].tokens) == ("t1", "w", "SUCCESS", 7)
    assert (run.moves[1].started_at_ms, run.moves[1].finished_at_ms) == (30, 40)


def test_conversations_with_tool_calls() -> None:
    def call(id: str, name: str, arguments: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call("a", "find", '{"q": 1}'), call("b", "pay", "{")],
        },
        {"role": "tool", "tool_call_id": "a", "content": "ok"},
        {"role": "tool", "tool_call_id": "b", "content": '{"error": "no"}'},
        {"role": "assistant", "content": "x", "tool_calls": [call("c", "find", '{ "q" : 1 }')]},
        {"role": "assistant", "content": "done"},
    ]
    [run] = imports.read("openai", lines({"id": "c1", "messages": messages}))
    assert run.path == [imports.MODEL, "find", "pay", imports.MODEL, "find", imports.MODEL]
    assert [move.failed for move in run.moves] == [False, False, True, False, False, False]
    assert measures.tool_churn(run) == pytest.approx(1 / 3)  # the same call, spelled in two ways


def test_transcripts_of_coding_agents() -> None:
    at = "2026-11-25T10:00:0{}.000Z"
    use = {"type": "tool_use", "id": "u1", "name": "Edit", "input": {"file": "a"}}
    result = {"type": "tool_result", "tool_use_id": "u1", "is_error": True}
    transcript = lines(
        {"type": "summary", "summary": "x"},
        {"type": "user", "sessionId": "s", "message": {"content": "please"}},
        {"type": "assistant", "sessionId": "s", "timestamp": at.format(1), "message": {"content": [use]}},
        {"type": "user", "sessionId": "s", "timestamp": at.format(3), "message": {"content": [result]}},
    )
    [run] = imports.read("transcript", transcript)
    [move] = run.moves
    assert (run.id, move.activity, move.failed) == ("s", "Edit", True)
    assert move.finished_at_ms - move.started_at_ms == 2_000


def test_debug_streams_of_langgraph() -> None:
    def task(kind: str, id: str, name: str, **more: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "timestamp": "2026-11-25T10:00:00+00:00",
            "step": 1,
            "payload": {"id": id, "name": name, **more},
        }

    stream = lines(
        {"type": "checkpoint", "payload": {"values": {}}},
        task("task", "1", "plan"), task("task_result", "1", "plan", error=None),
        task("task", "2", "act"), task("task_result", "2", "act", error="boom"),
    )  # fmt: skip
    [run] = imports.read("langgraph", stream)
    assert (run.path, run.status) == (["plan", "act"], "FAILED")


def test_messages_of_the_model_context_protocol() -> None:
    def call(id: int, name: str) -> dict[str, Any]:
        return {
            "jsonrpc": "2.0",
            "id": id,
            "method": "tools/call",
            "params": {"name": name, "arguments": {"n": 1}},
        }

    log = lines(
        {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}},
        call(1, "find"), {"jsonrpc": "2.0", "id": 1, "result": {"content": []}},
        call(2, "find"), {"jsonrpc": "2.0", "id": 2, "result": {"isError": True}},
        call(3, "pay"), {"jsonrpc": "2.0", "id": 3, "error": {"code": -1}},
    )  # fmt: skip
    [run] = imports.read("mcp", log)
    assert run.path == ["find", "find", "pay"]
    assert [move.failed for move in run.moves] == [False, True, True]
    assert measures.tool_churn(run) == pytest.approx(1 / 3)
    assert metrics_of(run, learn([run]))["path_variance"] == 0.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "payload",
                    "messages",
                    "role",
                    "resourceSpans",
                    "method",
                    "params",
                    "message",
                    "content",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("form", sorted(imports.READERS))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(found=JSON, raw=st.binary(max_size=40))
def test_anything_else_is_empty_or_an_error_with_a_code(form: str, found: Any, raw: bytes) -> None:
    for data in (json.dumps(found).encode(), raw):
        outcome = attempt(form, data)
        assert outcome == "BAD_EVENT_LOG" or all(
            metrics_of(run)["moves"] == len(run.moves) for run in outcome
        )


def attempt(form: str, data: bytes) -> Any:
    """The trajectories, or the code of the error."""
    try:
        return imports.read(form, data)
    except NanoVMError as error:
        return error.code


def test_measuring_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "chats.jsonl"
    log.write_bytes(lines({"id": "c1", "messages": [{"role": "assistant", "content": "x"}]}))
    assert main(["measure", str(log), "--from", "openai", "--baseline", str(log), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["trajectories"]
    assert (row["id"], row["moves"]) == ("c1", 1)
    assert row["mean_surprisal"] > 0
    log.write_bytes(b"nonsense")
    assert main(["measure", str(log), "--from", "openai", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "BAD_EVENT_LOG"
    assert main(["measure", str(tmp_path / "none"), "--from", "openai", "--json"]) == 1
    with refused("USAGE"):
        imports.read("nothing", b"")


def test_a_compressed_file_is_read_to_its_end() -> None:
    one = gzip.compress(lines({"id": "a", "messages": []}))
    two = gzip.compress(lines({"id": "b", "messages": []}))
    assert [run.id for run in imports.read("openai", one + two)] == ["a", "b"]
    for damaged in (one + two[:-3], one + b"more", one[:-1]):
        with refused("BAD_EVENT_LOG"):
            imports.read("openai", damaged)


def test_an_element_where_no_log_is_is_no_log() -> None:
    with refused("BAD_EVENT_LOG"):
        imports.read("xes", b"<trace><a><event/></a></trace>")


def test_numbers_that_count_nothing_are_refused_or_as_near_as_can_be() -> None:
    for name in ("violations", "rollbacks", "transitions"):
        for number in (10**400, -1):
            run = json.dumps({"id": "a", "source": "x", "moves": [{"activity": "b"}], name: number})
            with refused("BAD_EVENT_LOG"):
                imports.read("jsonl", run.encode())
    number = "9" * 400
    log = f"""<log><trace><string key="concept:name" value="a"/><int key="nanovm:rollbacks" value="{number}"/>
        <event><string key="concept:name" value="b"/><int key="nanovm:tokens" value="{number}"/></event>
        </trace></log>"""
    (run,) = imports.read("xes", log.encode())
    assert run.moves[0].tokens == 2**53 - 1
    assert metrics_of(run, learn([run]))["rollback_density"] == 2**53 - 1


def test_moves_that_nobody_has_heard_of_are_counted_once_for_all() -> None:
    class Watched(dict[str, dict[str, int]]):
        looks = 0

        def values(self) -> Any:
            self.looks += 1
            return super().values()

    baseline = learn([trajectory_of("a", "x", [move_of("b", "tool")])])
    baseline.counts = watched = Watched(baseline.counts)
    strange = trajectory_of("s", "x", [move_of(f"strange{n}", "tool") for n in range(100)])
    before = baseline.surprisal(strange)
    baseline.add(strange)
    assert baseline.surprisal(strange) < before
    assert watched.looks <= 1
