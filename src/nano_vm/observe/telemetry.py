"""OpenTelemetry: spans, metrics and logs of runs, made from the journal's events as they become durable (extra
`[otel]`).

It listens and never decides. What is not appended is not told, so a replay, a verification or a trace emits nothing.
All spans of a run have one trace id, which is a digest of the run's id: whoever drives it, now or after a resume in
another process, tells the same trace. Inputs, outputs and messages are left out unless `content` says otherwise, and
what is private or secret is left out even then.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import NanoVMError, RuntimeFault
from nano_vm.journal.ledger import NANO
from nano_vm.kernel import events as ev
from nano_vm.observe import semconv
from nano_vm.observe.run_logs import line_of
from nano_vm.program.compiled import CompiledProgram, CompiledStep, Kind, ToolAction
from nano_vm.program.labels import SEALED

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine, Progress

CONTENT_CHARS_MAX = 8_192
_NAME = "nano_vm"
_STARTS = (ev.StepStarted, ev.ChildStarted, ev.CompensationStarted)
_ENDS = (
    ev.StepSucceeded,
    ev.StepFailed,
    ev.ModelTurned,
    ev.StepPending,
    ev.OutcomeUnknown,
    ev.OutcomeResolved,
    ev.ChildFinished,
    ev.CompensationSucceeded,
    ev.CompensationFailed,
)


class _Run:
    """What is open of one run."""

    __slots__ = ("last_ms", "open", "parent", "program", "span")

    def __init__(self, program: CompiledProgram, parent: Any, span: Any, at_ms: int) -> None:
        self.program = program
        self.parent = parent  # the context that the spans of its steps stand in
        self.span = span
        self.open: dict[tuple[Any, ...], tuple[Any, int]] = {}
        self.last_ms = at_ms


class Telemetry:
    """Tells an engine's runs to OpenTelemetry.

    Args:
        engine: whose runs; `Telemetry(engine)` listens from then on, until `close`.
        tracer_provider, meter_provider: of `opentelemetry`; the global ones by default.
        logger_provider: of `opentelemetry`; without one no log lines are told. They carry the ids of trace and span.
        content: also tell outputs of steps that are neither private nor secret.

    Raises:
        RuntimeFault: EXTRA_MISSING when opentelemetry is not installed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        tracer_provider: Any = None,
        meter_provider: Any = None,
        logger_provider: Any = None,
        content: bool = False,
    ) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError:
            raise _missing() from None
        self._engine = engine
        self._api = trace
        self._content = content
        self._tracer = trace.get_tracer(_NAME, semconv.VERSION, tracer_provider)
        self._logs = None if logger_provider is None else _Logs(logger_provider)
        meter = metrics.get_meter(_NAME, semconv.VERSION, meter_provider)
        self._counters = {
            name: meter.create_counter(f"nano_vm.{name}", unit)
            for name, unit in (
                ("runs", "{run}"),
                ("llm_calls", "{call}"),
                ("tool_calls", "{call}"),
                ("retries_total", "{attempt}"),
                ("tokens", "{token}"),
                ("cost", "USD"),
                ("refusals", "{event}"),
            )
        }
        self._duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self._runs: dict[str, _Run] = {}
        engine.listeners.append(self.hear)

    def close(self) -> None:
        """Stop listening. The spans of runs that have not ended end here; who resumes them goes on with the trace."""
        if self.hear in self._engine.listeners:
            self._engine.listeners.remove(self.hear)
        for run in self._runs.values():
            for span, _ in run.open.values():
                span.end(_ns(run.last_ms))
            run.span.end(_ns(run.last_ms))
        self._runs.clear()

    def hear(self, run_id: str, progress: Progress) -> None:
        """One event that has become durable."""
        event = progress.event
        run = self._runs.get(run_id)
        if run is None:
            run = self._open(run_id, event.at_ms)
            if run is None:
                return
        if self._logs is not None:
            self._logs.tell(run, event, progress.digest, run_id)
        if isinstance(event, _STARTS):
            self._begin(run, event, progress.digest)
        elif isinstance(event, _ENDS):
            self._end(run, event, progress.digest)
        elif type(event) is ev.EventRefused or (
            type(event) is ev.ActionProposed and event.verdict == "rejected"
        ):
            reason = getattr(event, "code", "") or getattr(event, "reason", "")
            self._counters["refusals"].add(1, {semconv.ERROR_TYPE: str(reason)})
        elif type(event) is ev.RunFinished:
            self._finish(run_id, run, event)
        run.last_ms = max(run.last_ms, event.at_ms)

    # --- runs -------------------------------------------------------------------------------------------------

    def _open(self, run_id: str, at_ms: int) -> _Run | None:
        try:
            record = self._engine.store.record(run_id)
            program = self._engine.load_program(record.program_hash)
        except NanoVMError:
            return None  # nobody is kept from running by what is only told
        api = self._api
        known = api.SpanContext(
            trace_id=trace_id_of(run_id),
            span_id=int.from_bytes(sha256(b"span" + run_id.encode()).digest()[:8]) or 1,
            is_remote=True,
            trace_flags=api.TraceFlags(api.TraceFlags.SAMPLED),
        )
        span = self._tracer.start_span(
            f"{semconv.INVOKE_WORKFLOW} {program.name}",
            api.set_span_in_context(api.NonRecordingSpan(known)),
            attributes={
                semconv.OPERATION: semconv.INVOKE_WORKFLOW,
                semconv.WORKFLOW_NAME: program.name,
                semconv.RUN_ID: run_id,
                semconv.PROGRAM_HASH: program.hash,
            },
            start_time=_ns(at_ms),
        )
        run = self._runs[run_id] = _Run(program, api.set_span_in_context(span), span, at_ms)
        return run

    def _finish(self, run_id: str, run: _Run, event: ev.RunFinished) -> None:
        self._runs.pop(run_id, None)
        run.span.set_attribute(semconv.RUN_STATUS, event.status)
        if event.outcome is not ev.UNSET:
            run.span.set_attribute(semconv.OUTCOME, event.outcome)
        if event.status != "SUCCESS":
            run.span.set_attribute(semconv.ERROR_TYPE, event.status)
            run.span.set_status(self._api.StatusCode.ERROR)
        for span, _ in run.open.values():
            span.end(_ns(event.at_ms))
        run.span.end(_ns(event.at_ms))
        self._counters["runs"].add(
            1, {semconv.WORKFLOW_NAME: run.program.name, semconv.RUN_STATUS: event.status}
        )

    # --- steps ------------------------------------------------------------------------------------------------

    def _begin(self, run: _Run, event: Any, digest: str) -> None:
        key = _key(event, type(event) is ev.CompensationStarted)
        run.open[key] = (self._start(run, event, digest, event.at_ms), event.at_ms)

    def _start(self, run: _Run, event: Any, digest: str, at_ms: int) -> Any:
        step = _step(run.program, event.step)
        name, kind, facts = _what(step, type(event))
        facts |= {
            semconv.STEP: event.step,
            semconv.OCCURRENCE: event.occurrence,
            semconv.ATTEMPT: event.attempt,
            semconv.ENTRY: digest,
        }
        if event.item is not ev.UNSET:
            facts[semconv.ITEM] = event.item
        if event.attempt > 1 and (step is None or step.kind is not Kind.AGENT):
            self._counters["retries_total"].add(1, {semconv.OPERATION: facts[semconv.OPERATION]})
        client = self._api.SpanKind.CLIENT if kind == semconv.CHAT else self._api.SpanKind.INTERNAL
        return self._tracer.start_span(name, run.parent, client, facts, start_time=_ns(at_ms))

    def _end(self, run: _Run, event: Any, digest: str) -> None:
        compensating = type(event) in (ev.CompensationSucceeded, ev.CompensationFailed)
        compensating = compensating or getattr(event, "compensation", None) is True
        key = _key(event, compensating)
        held = run.open.pop(key, None)
        if held is None:
            if type(event) is ev.OutcomeResolved:
                return  # its span ended when the outcome became unknown
            # A tool without effects has no intent; it began when what came before it had ended.
            held = (self._start(run, event, digest, run.last_ms), run.last_ms)
        span, began_ms = held
        step = _step(run.program, event.step)
        _, kind, named = _what(step, type(event))
        error = _error(event)
        if error:
            span.set_attribute(semconv.ERROR_TYPE, error)
            span.set_status(self._api.StatusCode.ERROR)
        if kind == semconv.CHAT:
            self._tell_model(span, event, began_ms, error)
        elif kind == semconv.EXECUTE_TOOL:
            facts = {
                semconv.TOOL_NAME: named.get(semconv.TOOL_NAME, ""),
                **({semconv.ERROR_TYPE: error} if error else {}),
            }
            self._counters["tool_calls"].add(1, facts)
        if self._content:
            self._tell_content(span, event)
        span.end(_ns(max(event.at_ms, began_ms)))

    def _tell_model(self, span: Any, event: Any, began_ms: int, error: str) -> None:
        model = getattr(event, "model", ev.UNSET)
        provider = getattr(event, "provider", ev.UNSET)
        facts: dict[str, Any] = {semconv.OPERATION: semconv.CHAT}
        if model is not ev.UNSET:
            facts[semconv.RESPONSE_MODEL] = model
            span.update_name(f"{semconv.CHAT} {model}")
            span.set_attribute(semconv.RESPONSE_MODEL, model)
        if provider is not ev.UNSET:
            facts[semconv.PROVIDER] = provider
            span.set_attribute(semconv.PROVIDER, provider)
        if getattr(event, "cached", None) is True:
            span.set_attribute(semconv.CACHED, True)
        tokens = (
            ("tokens_in", semconv.INPUT_TOKENS, "input"),
            ("tokens_out", semconv.OUTPUT_TOKENS, "output"),
        )
        for name, attribute, kind in tokens:
            count = getattr(event, name, ev.UNSET)
            if count is not ev.UNSET:
                span.set_attribute(attribute, count)
                self._counters["tokens"].add(count, {**facts, "gen_ai.token.type": kind})
        cost = getattr(event, "cost_nanousd", ev.UNSET)
        if cost is not ev.UNSET:
            span.set_attribute(semconv.COST_USD, cost / NANO)
            self._counters["cost"].add(cost / NANO, facts)
        if error:
            facts[semconv.ERROR_TYPE] = error
        self._counters["llm_calls"].add(1, facts)
        self._duration.record(max(event.at_ms - began_ms, 0) / 1_000, facts)

    def _tell_content(self, span: Any, event: Any) -> None:
        payload = getattr(event, "payload", ev.UNSET)
        label = getattr(event, "label", ev.UNSET)
        sealed = label is not ev.UNSET and label & SEALED
        if payload is not ev.UNSET and not sealed and type(event) in (ev.StepSucceeded, ev.ModelTurned):
            span.set_attribute(semconv.OUTPUT, canonical.encode(payload).decode()[:CONTENT_CHARS_MAX])


class _Logs:
    """Lines about runs, each in the context of the span that it is about."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import (
            _logs,
            trace,
        )  # the signal is stable; Python's module still has its underscore

        self._api = trace
        self._make = _logs.LogRecord
        numbers = _logs.SeverityNumber
        self._severities = {"INFO": numbers.INFO, "WARN": numbers.WARN, "ERROR": numbers.ERROR}
        self._logger = _logs.get_logger(_NAME, semconv.VERSION, provider)

    def tell(self, run: _Run, event: Any, digest: str, run_id: str) -> None:
        line = line_of(run.program, event)
        if line is None:
            return
        span = run.span
        if hasattr(event, "attempt") and hasattr(event, "item"):
            compensating = (
                type(event) is ev.CompensationFailed or getattr(event, "compensation", None) is True
            )
            held = run.open.get(_key(event, compensating))
            span = run.span if held is None else held[0]
        self._logger.emit(
            self._make(
                timestamp=_ns(event.at_ms),
                context=self._api.set_span_in_context(span),
                severity_number=self._severities[line.severity],
                severity_text=line.severity,
                body=line.body,
                attributes={**line.facts, semconv.RUN_ID: run_id, semconv.ENTRY: digest},
                event_name=line.name,
            )
        )


def trace_id_of(run_id: str) -> int:
    """The trace id of a run: the first 16 bytes of the SHA-256 of its id."""
    return int.from_bytes(sha256(run_id.encode()).digest()[:16]) or 1


def _key(event: Any, compensating: bool) -> tuple[Any, ...]:
    item = -1 if event.item is ev.UNSET else event.item
    return event.step, event.occurrence, item, event.attempt, compensating


def _step(program: CompiledProgram, step_id: str) -> CompiledStep | None:
    """None for the step of a child that is undone through its call."""
    index = program.step_index.get(step_id)
    return None if index is None else program.steps[index]


def _what(step: CompiledStep | None, event: type[Any]) -> tuple[str, str, dict[str, Any]]:
    """Name of the span, its operation, and what is known beforehand."""
    if event in (ev.CompensationStarted, ev.CompensationSucceeded, ev.CompensationFailed):
        tool = step.compensation.tool if step is not None and step.compensation is not None else ""
        return _tool(tool, {semconv.COMPENSATION: True})
    if step is not None and type(step.action) is ToolAction:
        return _tool(step.action.tool, {})
    if step is not None and step.kind in (Kind.LLM, Kind.AGENT):
        return semconv.CHAT, semconv.CHAT, {semconv.OPERATION: semconv.CHAT}
    name = getattr(step.action, "program", "") if step is not None else ""
    facts = {semconv.OPERATION: semconv.INVOKE_WORKFLOW, semconv.WORKFLOW_NAME: name}
    return f"{semconv.INVOKE_WORKFLOW} {name}".rstrip(), semconv.INVOKE_WORKFLOW, facts


def _tool(tool: str, facts: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    known = {semconv.OPERATION: semconv.EXECUTE_TOOL, **({semconv.TOOL_NAME: tool} if tool else {}), **facts}
    return f"{semconv.EXECUTE_TOOL} {tool}".rstrip(), semconv.EXECUTE_TOOL, known


def _error(event: Any) -> str:
    match event:
        case ev.StepFailed() | ev.CompensationFailed():
            return str(event.error)
        case ev.OutcomeUnknown():
            return f"UNKNOWN_{event.reason}"
        case ev.ChildFinished():
            return "" if event.status == "SUCCESS" else str(event.status)
        case _:
            return ""


def _ns(at_ms: int) -> int:
    return at_ms * 1_000_000


def _missing() -> RuntimeFault:
    return RuntimeFault("EXTRA_MISSING", "OpenTelemetry is not installed", help="pip install 'nano-vm[otel]'")


class Otlp:
    """Telemetry of an engine over OTLP/HTTP, with providers of its own: what the command line uses.

    Args:
        endpoint: for example `http://127.0.0.1:4318`; `/v1/traces`, `/v1/metrics` and `/v1/logs` are added to it.

    Raises:
        RuntimeFault: EXTRA_MISSING.
    """

    def __init__(self, engine: Engine, endpoint: str, *, content: bool = False) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk._logs import LoggerProvider
            from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise _missing() from None
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": "nano-vm"})
        self._tracers = TracerProvider(resource=resource)
        self._tracers.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{base}/v1/traces", timeout=10))
        )
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{base}/v1/metrics", timeout=10))
        self._meters = MeterProvider(resource=resource, metric_readers=[reader])
        self._loggers = LoggerProvider(resource=resource)
        self._loggers.add_log_record_processor(
            BatchLogRecordProcessor(OTLPLogExporter(endpoint=f"{base}/v1/logs", timeout=10))
        )
        self._telemetry = Telemetry(
            engine,
            tracer_provider=self._tracers,
            meter_provider=self._meters,
            logger_provider=self._loggers,
            content=content,
        )

    def close(self) -> None:
        """Send what is left."""
        self._telemetry.close()
        self._tracers.shutdown()
        self._loggers.shutdown()
        self._meters.shutdown()
