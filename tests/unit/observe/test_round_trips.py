"""From a run to somebody else's form and back to the same measures; and every form there is through ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from google.protobuf.json_format import MessageToJson
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nano_vm import Completion, ExecutionVM, MockLLMAdapter, SqliteStore, ToolCall, Trace, tool
from nano_vm.cli.main import main
from nano_vm.observe import eventlog, imports
from nano_vm.observe.analyzer import metrics_of
from nano_vm.observe.telemetry import Telemetry, trace_id_of
from nano_vm.observe.trajectory import of_trace
from unit.runtime.runtime_stage import play

STEPS: list[dict[str, Any]] = [
    {"id": "look", "type": "tool", "tool": "look", "args": {"q": "$q"}},
    {"id": "ask", "type": "llm", "prompt": "$q"},
    {
        "id": "pay",
        "type": "tool",
        "tool": "pay",
        "args": {"n": 1},
        "on_error": "retry",
        "retry": {"initial": 0.001},
    },
    {"id": "again", "type": "tool", "tool": "look", "args": {"q": "$q"}},
]


class Recorder:
    """A model that keeps what it was asked last: the conversation in the form of chat completions."""

    def __init__(self, answers: list[Any]) -> None:
        self.mock = MockLLMAdapter(answers)
        self.messages: list[dict[str, Any]] = []

    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Any:
        answer = await self.mock.complete(messages, **params)
        said: dict[str, Any] = {"role": "assistant", "content": getattr(answer, "text", answer)}
        if getattr(answer, "tool_calls", ()):
            said["tool_calls"] = [call.to_message() for call in answer.tool_calls]
        self.messages = [*messages, said]
        return answer


def tools() -> list[Any]:
    failures = iter([True, False])

    @tool(effect="pure")
    def look(q: str) -> str:
        return q

    @tool(effect="idempotent")
    def pay(n: int) -> int:
        if n == 1 and next(failures):
            raise ValueError("busy")
        return n

    return [look, pay]


def named(trace: Trace, kinds: dict[str, str]) -> list[str]:
    """A run's path in tools' and models' names."""
    return [kinds[activity] for activity in of_trace(trace).path]


def test_a_run_comes_back_from_the_spans_that_telemetry_made_of_it() -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    vm = ExecutionVM(MockLLMAdapter("yes"), tools())
    telemetry = Telemetry(vm, tracer_provider=provider)
    trace = play(vm.run({"name": "order", "steps": STEPS}, {"q": "x"}))
    telemetry.close()
    wire = MessageToJson(encode_spans(exported.get_finished_spans()))
    [back] = imports.read("otel", wire.encode())
    ours = of_trace(trace)
    assert back.path == named(trace, {"look": "look", "ask": imports.MODEL, "pay": "pay", "again": "look"})
    assert [move.failed for move in back.moves] == [move.failed for move in ours.moves]
    assert (back.status, back.name) == ("SUCCESS", "order")
    assert back.moves[1].tokens == ours.moves[1].tokens


def test_an_agents_conversation_gives_the_churn_that_its_run_has() -> None:
    def proposes(*calls: tuple[str, str]) -> Completion:
        return Completion(
            tool_calls=tuple(ToolCall(f"{n}", name, args) for n, (name, args) in enumerate(calls))
        )

    find = ("look", '{"q": "a"}')
    recorder = Recorder([proposes(find, find), proposes(("look", '{"q": "b"}')), "done"])
    vm = ExecutionVM(recorder, tools())
    steps = [{"id": "act", "type": "agent", "prompt": "$q", "tools": ["look"]}]
    trace = play(vm.run({"name": "agent", "steps": steps}, {"q": "x"}))
    [back] = imports.read("openai", json.dumps({"id": "c", "messages": recorder.messages}).encode())
    assert [one for one in back.path if one != imports.MODEL] == ["look"] * 3
    assert metrics_of(back)["tool_churn"] == metrics_of(of_trace(trace))["tool_churn"] == pytest.approx(1 / 3)


def span(name: str, start: int, **facts: Any) -> dict[str, Any]:
    attributes = [
        {"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in facts.items()
    ]
    return {
        "traceId": "t", "spanId": name, "name": name, "startTimeUnixNano": str(start * 10**6),
        "endTimeUnixNano": str(start * 10**6 + 5), "attributes": attributes,
    }  # fmt: skip


SAMPLES: dict[str, Any] = {
    "otel": {"resourceSpans": [{"scopeSpans": [{"spans": [
        span("execute_tool a", 1, gen_ai__operation__name="execute_tool", gen_ai__tool__name="a"),
        span("chat m", 2, gen_ai__operation__name="chat"),
        span("execute_tool a", 3, gen_ai__operation__name="execute_tool", gen_ai__tool__name="a"),
    ]}]}]},
    "openai": {"id": "c", "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "function": {"name": "a", "arguments": "{}"}},
            {"id": "2", "function": {"name": "a", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "1", "content": '{"error": "x"}'},
        {"role": "assistant", "content": "done"},
    ]},
    "transcript": {"type": "assistant", "sessionId": "s", "timestamp": "2026-01-01T00:00:00Z", "message": {"content": [
        {"type": "tool_use", "id": "1", "name": "a", "input": {}},
        {"type": "tool_use", "id": "2", "name": "b", "input": {"x": 1}},
    ]}},
    "langgraph": {"type": "task", "timestamp": "2026-01-01T00:00:00Z", "payload": {"id": "1", "name": "a"}},
    "mcp": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": {"q": 1}}},
    "ocel": {
        "objectTypes": [{"name": "run", "attributes": []}],
        "eventTypes": [],
        "objects": [{"id": "run:1", "type": "run"}],
        "events": [{
            "id": "e", "type": "a", "time": "2026-01-01T00:00:00Z", "relationships": [{"objectId": "run:1"}],
        }],
    },
}  # fmt: skip
XES = (
    '<log xmlns="http://www.xes-standard.org/"><trace><event><string key="concept:name" value="a"/>'
    '<date key="time:timestamp" value="2026-01-01T00:00:00Z"/></event></trace></log>'
)


@pytest.mark.parametrize("form", sorted(set(imports.READERS) - {"jsonl"}))
def test_whatever_is_read_is_measured_the_same_through_our_form(form: str) -> None:
    raw = XES.encode() if form == "xes" else json.dumps(SAMPLES[form]).encode()
    read = imports.read(form, raw)
    assert read
    assert all(run.moves for run in read)
    back = imports.read("jsonl", "".join(eventlog.jsonl(read)).encode())
    assert back == read
    assert [metrics_of(run) for run in back] == [metrics_of(run) for run in read]


@pytest.mark.parametrize("form", ["xes", "ocel"])
@pytest.mark.parametrize("source", sorted(SAMPLES))
def test_whatever_is_read_can_be_handed_on_to_process_mining(form: str, source: str) -> None:
    read = imports.read(source, json.dumps(SAMPLES[source]).encode())
    made = "".join(eventlog.xes(read)) if form == "xes" else json.dumps(eventlog.ocel(read))
    back = imports.read(form, made.encode())
    assert [(run.id, run.path, run.source) for run in back] == [
        (run.id, run.path, run.source) for run in read
    ]


def test_stored_runs_are_told_as_they_would_have_been_live(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    store = SqliteStore(tmp_path / "runs.db", durability="normal")
    vm = ExecutionVM(MockLLMAdapter("yes"), tools(), store)
    telemetry = Telemetry(vm, tracer_provider=provider)
    play(vm.run({"name": "order", "steps": STEPS}, {"q": "secret-order"}, trace_id="r1"))
    telemetry.close()
    store.close()
    file = tmp_path / "spans.jsonl"
    words = ["eventlog", "order", "--format", "otlp", "-o", str(file), "--store", str(tmp_path / "runs.db")]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 1
    first = file.read_bytes()
    assert main(words) == 0
    assert file.read_bytes() == first
    assert b"secret-order" not in first
    told = [
        span
        for resource in json.loads(first)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    live = exported.get_finished_spans()
    assert [
        (span["name"], int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])) for span in told
    ] == [(span.name, span.start_time, span.end_time) for span in live]
    assert {span["traceId"] for span in told} == {f"{trace_id_of('r1'):032x}"}
    assert len({span["spanId"] for span in told}) == len(told)
    assert all(len(span["spanId"]) == 16 for span in told)
    [back] = imports.read("otel", first)
    assert back.id == f"{trace_id_of('r1'):032x}"
    assert back.path == ["look", imports.MODEL, "pay", "pay", "look"]


def test_a_real_session_of_the_gateway_is_measured(tmp_path: Path) -> None:
    """Both directions of stdio, as they went over the wire."""
    pytest.importorskip("mcp")
    gateway = subprocess.Popen(
        [sys.executable, "-m", "nano_vm.cli", "mcp", "--store", str(tmp_path / "runs.db")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert gateway.stdin is not None
    assert gateway.stdout is not None
    wire: list[str] = []

    def send(id: int | None, method: str, params: dict[str, Any]) -> None:
        assert gateway.stdin is not None
        assert gateway.stdout is not None
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if id is None else {"id": id})
        wire.append(json.dumps(message))
        gateway.stdin.write(wire[-1] + "\n")
        gateway.stdin.flush()
        while id is not None:
            line = gateway.stdout.readline()
            assert line, "the gateway has ended"
            wire.append(line)
            if json.loads(line).get("id") == id:
                return

    try:
        client = {"name": "test", "version": "1"}
        send(0, "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client})
        send(None, "notifications/initialized", {})
        send(1, "tools/call", {"name": "list_programs", "arguments": {}})
        send(2, "tools/call", {"name": "get_trace", "arguments": {"trace_id": "nobody"}})
        send(3, "tools/call", {"name": "list_programs", "arguments": {}})
    finally:
        gateway.stdin.close()
        gateway.wait(timeout=60)
        gateway.stdout.close()
    [session] = imports.read("mcp", "\n".join(wire).encode())
    assert [(move.activity, move.failed) for move in session.moves] == [
        ("list_programs", False),
        ("get_trace", True),
        ("list_programs", False),
    ]
    assert metrics_of(session)["tool_churn"] == pytest.approx(1 / 3)
