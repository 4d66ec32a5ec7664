"""Telemetry: what is told, by whom, and what is never told. The wire is a real one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unit.runtime.runtime_stage import play

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nano_vm import (
    Completion,
    ExecutionVM,
    MemoryStore,
    MockLLMAdapter,
    NanoVMError,
    SqliteStore,
    ToolCall,
    Usage,
    tool,
)
from nano_vm.kernel import events as ev
from nano_vm.observe.telemetry import Otlp, Telemetry, trace_id_of

PROGRAM: dict[str, Any] = {
    "name": "order",
    "steps": [
        {"id": "look", "type": "tool", "tool": "look", "args": {"q": "$q"}},
        {"id": "ask", "type": "llm", "prompt": "$q"},
        {"id": "act", "type": "agent", "prompt": "$q", "tools": ["pay"]},
        {
            "id": "pay",
            "type": "tool",
            "tool": "pay",
            "args": {"n": 1},
            "on_error": "retry",
            "retry": {"initial": 0.001},
        },
        {"id": "go", "type": "wait", "event": "go"},
        {"id": "end", "type": "tool", "tool": "look", "args": {"q": "$q"}},
    ],
}


class Stage:
    """Machines on one store, each told to one exporter."""

    def __init__(self, **options: Any) -> None:
        self.spans = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.store = MemoryStore()
        self.options = options
        self.failures = iter([True, False])

    def machine(self, **options: Any) -> tuple[ExecutionVM, Telemetry]:
        @tool(effect="pure")
        def look(q: str) -> str:
            return f"found {q}"

        @tool(effect="idempotent")
        async def pay(n: int) -> int:
            if n == 1 and next(self.failures):
                raise ValueError("hunter2")
            return n

        usage = Usage(prompt_tokens=5, completion_tokens=7, cost_usd=0.25)
        proposal = Completion(
            tool_calls=(ToolCall("c", "pay", '{"n": 2}'), ToolCall("d", "drop", "{}")), model="m1"
        )
        model = MockLLMAdapter(["fine", proposal, "done"], usage=usage)
        vm = ExecutionVM(llm=model, tools=[look, pay], store=self.store)
        return vm, Telemetry(vm, tracer_provider=self.provider, **options)

    def told(self) -> list[Any]:
        return list(self.spans.get_finished_spans())


def test_every_run_is_one_trace_of_spans_with_their_facts() -> None:
    stage = Stage()
    vm, telemetry = stage.machine()
    trace = play(vm.run(PROGRAM, {"q": "secret-order"}, trace_id="r1"))
    assert trace.status.value == "SUSPENDED"
    telemetry.close()
    other, listening = stage.machine()
    trace = play(other.resume("r1", 1, name="go"))
    assert trace.status.value == "SUCCESS"
    spans = stage.told()
    assert {span.context.trace_id for span in spans} == {trace_id_of("r1")}
    assert [span.name for span in spans] == [
        "execute_tool look", "chat mock", "chat m1", "execute_tool pay", "chat mock", "execute_tool pay",
        "execute_tool pay", "invoke_workflow order", "execute_tool look", "invoke_workflow order",
    ]  # fmt: skip
    chat = spans[1].attributes
    assert (chat["gen_ai.operation.name"], chat["gen_ai.response.model"]) == ("chat", "mock")
    assert (chat["gen_ai.usage.input_tokens"], chat["gen_ai.usage.output_tokens"]) == (5, 7)
    assert chat["nano_vm.cost_usd"] == 0.25
    failed = spans[5]
    assert failed.attributes["error.type"] == "ValueError"
    assert failed.status.status_code.name == "ERROR"
    assert (spans[3].attributes["nano_vm.step"], spans[3].attributes["nano_vm.item"]) == ("act.pay", 0)
    whole = spans[-1]
    assert whole.attributes["nano_vm.run.status"] == "SUCCESS"
    assert all(span.parent is not None for span in spans)
    assert all(span.start_time <= span.end_time for span in spans)
    # Neither inputs nor outputs nor messages, and no error's text.
    said = "".join(str(span.attributes) + span.name for span in spans)
    assert "secret-order" not in said
    assert "hunter2" not in said
    listening.close()


def test_a_replay_tells_nothing() -> None:
    stage = Stage()
    vm, telemetry = stage.machine()
    play(vm.run(PROGRAM, {"q": "x"}, trace_id="r1"))
    before = len(stage.told())
    vm.replay("r1")
    vm.verify("r1")
    assert vm.trace("r1").steps
    assert len(stage.told()) == before
    telemetry.close()
    assert len(stage.told()) == before + 1  # the run that waits
    assert vm.listeners == []


@pytest.mark.parametrize("label", [2, 4, 7])
def test_what_is_secret_or_private_is_never_told(label: int) -> None:
    told: dict[str, Any] = {}

    class Span:
        def set_attribute(self, name: str, value: Any) -> None:
            told[name] = value

    _vm, telemetry = Stage().machine(content=True)
    facts: dict[str, Any] = {"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "a", "payload": "hunter2"}
    telemetry._tell_content(Span(), ev.StepSucceeded(**facts, label=label))
    assert told == {}
    telemetry._tell_content(Span(), ev.StepSucceeded(**facts, label=1))
    assert told == {"nano_vm.output": '"hunter2"'}


def test_outputs_are_told_only_when_asked_for() -> None:
    stage = Stage()
    vm, telemetry = stage.machine(content=True)
    play(vm.run(PROGRAM, {"q": "x"}))
    telemetry.close()
    outputs = [span.attributes.get("nano_vm.output") for span in stage.told()]
    assert '"found x"' in outputs
    assert '"fine"' in outputs


@contextmanager
def receiver() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """An OTLP/HTTP receiver: address, and what came by path."""
    came: dict[str, list[bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            came.setdefault(self.path, []).append(body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", came
    finally:
        server.shutdown()
        server.server_close()


def test_spans_and_metrics_arrive_at_a_real_receiver() -> None:
    with receiver() as (address, came):
        stage = Stage()
        vm, telemetry = stage.machine()
        telemetry.close()
        wire = Otlp(vm, address)
        trace = play(vm.run(PROGRAM, {"q": "secret-order"}, trace_id="r1"))
        trace = play(vm.resume("r1", 1, name="go"))
        assert trace.status.value == "SUCCESS"
        wire.close()
    spans = [
        span
        for body in came["/v1/traces"]
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.trace_id for span in spans} == {trace_id_of("r1").to_bytes(16)}
    assert sorted(span.name for span in spans).count("execute_tool pay") == 3
    totals: dict[str, float] = {}
    for body in came["/v1/metrics"]:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                totals[metric.name] = sum(point.as_int or point.as_double for point in metric.sum.data_points)
    lines = [
        record
        for body in came["/v1/logs"]
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]
    assert [line.event_name for line in lines] == [
        "nano_vm.run.started",
        "nano_vm.proposal.rejected",
        "nano_vm.step.failed",
        "nano_vm.run.finished",
    ]
    assert {line.trace_id for line in lines} == {trace_id_of("r1").to_bytes(16)}
    by_id = {span.span_id: span.name for span in spans}
    assert by_id[lines[2].span_id] == "execute_tool pay"
    assert by_id[lines[3].span_id] == "invoke_workflow order"
    assert [line.severity_text for line in lines] == ["INFO", "WARN", "WARN", "INFO"]
    facts = {held.key: held.value for held in lines[2].attributes}
    assert facts["error.type"].string_value == "ValueError"
    assert facts["nano_vm.run.id"].string_value == "r1"
    assert all(line.time_unix_nano for line in lines)
    assert totals["nano_vm.runs"] == 1
    assert totals["nano_vm.llm_calls"] == 3
    assert totals["nano_vm.tool_calls"] == 5
    assert totals["nano_vm.retries_total"] == 1
    assert totals["nano_vm.refusals"] == 1
    assert totals["nano_vm.tokens"] == 24
    assert totals["nano_vm.cost"] == 0.5
    everything = b"".join(body for bodies in came.values() for body in bodies)
    assert b"secret-order" not in everything
    assert b"hunter2" not in everything


def test_lines_are_told_about_what_somebody_may_have_to_look_at() -> None:
    """Each kind of line, with the span that it is about."""
    exported = InMemoryLogRecordExporter()
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exported))
    stage = Stage()

    @tool(effect="irreversible")
    def launch(target: str) -> str:
        raise TimeoutError("no answer from hunter2")

    steps = [
        {"id": "denied", "type": "tool", "tool": "limited", "args": {"n": "$n"}, "on_error": "skip"},
        {"id": "go", "type": "tool", "tool": "launch", "args": {"target": "moon"}},
    ]
    vm = ExecutionVM(
        tools={"launch": launch, "limited": lambda n: n},
        store=stage.store,
        policy={
            "policy": "p",
            "tools": ["launch"],
            "rules": [{"id": "small", "tools": ["limited"], "when": "$args.n <= 5"}],
        },
    )
    telemetry = Telemetry(vm, tracer_provider=stage.provider, logger_provider=provider)
    play(vm.run({"name": "q", "steps": steps}, {"n": 9}, trace_id="r2"))
    with pytest.raises(NanoVMError):
        play(vm.resume("r2", {"x": 1}))
    before = len(exported.get_finished_logs())
    vm.replay("r2")
    vm.verify("r2")
    assert len(exported.get_finished_logs()) == before
    play(vm.resolve("r2", "go", "failed", "it fell"))
    telemetry.close()
    records = [log.log_record for log in exported.get_finished_logs()]
    assert [record.event_name for record in records] == [
        "nano_vm.run.started",
        "nano_vm.policy.denied",
        "nano_vm.step.failed",
        "nano_vm.outcome.unknown",
        "nano_vm.event.refused",
        "nano_vm.run.finished",
    ]
    assert {record.trace_id for record in records} == {trace_id_of("r2")}
    assert [record.severity_text for record in records][-1] == "ERROR"
    assert "hunter2" not in str([(record.body, dict(record.attributes)) for record in records])


def test_without_a_logger_no_line_is_made() -> None:
    vm, telemetry = Stage().machine()
    assert telemetry._logs is None
    telemetry.close()
    assert vm.listeners == []


def test_the_command_line_tells_whom_the_environment_names(tmp_path: Path) -> None:
    program = tmp_path / "p.yaml"
    program.write_text("name: p\nsteps: [{id: a, type: llm, prompt: x}]\n")
    with receiver() as (address, came):
        words = ["run", str(program), "--model", "mock:yes", "--store", str(tmp_path / "runs.db")]
        code = "from nano_vm.cli.main import entrypoint; entrypoint()"
        environment = {
            "PYTHONPATH": ":".join(sys.path),
            "NANO_VM_OTLP_ENDPOINT": address,
            "PATH": "/usr/bin:/bin",
        }
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=environment, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    assert set(came) == {"/v1/traces", "/v1/metrics", "/v1/logs"}


def test_a_store_on_disk_is_told_after_it_is_durable(tmp_path: Path) -> None:
    """Whatever is told is in the journal."""
    heard = []
    stage = Stage()
    stage.store = SqliteStore(tmp_path / "runs.db")  # type: ignore[assignment]
    vm, telemetry = stage.machine()
    tell = telemetry.hear

    def check(run_id: str, progress: Any) -> None:
        heard.append(progress.seq < len(vm.store.read(run_id)))
        tell(run_id, progress)

    vm.listeners[:] = [check]
    play(vm.run(PROGRAM, {"q": "x"}))
    assert heard
    assert all(heard)
    stage.store.close()
