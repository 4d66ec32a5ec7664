"""Stored runs as a file of spans in OTLP's JSON form: what telemetry would have told, had somebody listened.

The same code makes them from the same events. Span ids follow from the run's id, so the same journal gives the same
file. Needs the extra `[otel]`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from nano_vm.errors import NanoVMError, RuntimeFault
from nano_vm.journal.entry import open_events
from nano_vm.observe.telemetry import Telemetry, trace_id_of
from nano_vm.runtime.engine import Progress

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

_IDS = frozenset({"traceId", "spanId", "parentSpanId"})


def otlp(engine: Engine, run_ids: Iterable[str], left_out: list[str] | None = None) -> Iterator[str]:
    """A line of JSON for each run: an object with `resourceSpans`.

    Args:
        left_out: gets the ids of runs whose journals cannot be read.

    Raises:
        RuntimeFault: EXTRA_MISSING.
    """
    try:
        from google.protobuf.json_format import MessageToDict
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from opentelemetry.sdk.trace.id_generator import IdGenerator
    except ImportError:
        raise RuntimeFault(
            "EXTRA_MISSING", "OpenTelemetry is not installed", help="pip install 'nano-vm[otel]'"
        ) from None

    class Numbered(IdGenerator):
        """Ids that follow from the run and from how many spans it had before."""

        def __init__(self, run_id: str) -> None:
            self._run_id, self._made = run_id, 0

        def generate_span_id(self) -> int:
            self._made += 1
            return int.from_bytes(sha256(f"{self._run_id} {self._made}".encode()).digest()[:8]) or 1

        def generate_trace_id(self) -> int:
            return trace_id_of(self._run_id)

    for run_id in run_ids:
        try:
            entries = engine.read(run_id)
            events = [(entry, event) for entry in entries for event in open_events(entry)]
        except NanoVMError:
            if left_out is not None:
                left_out.append(run_id)
            continue
        exported = InMemorySpanExporter()
        provider = TracerProvider(
            resource=Resource({"service.name": "nano-vm"}),
            id_generator=Numbered(run_id),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(SimpleSpanProcessor(exported))
        telemetry = Telemetry(
            engine, tracer_provider=provider, meter_provider=MeterProvider(shutdown_on_exit=False)
        )
        try:
            for entry, event in events:
                telemetry.hear(run_id, Progress(run_id, entry.seq, event.type, event, entry.digest))
        finally:
            telemetry.close()
        made = MessageToDict(encode_spans(exported.get_finished_spans()))
        yield json.dumps(_hexadecimal(made), ensure_ascii=False, sort_keys=True) + "\n"


def _hexadecimal(found: Any) -> Any:
    """OTLP's JSON form has ids in hexadecimal, unlike the JSON form of protobuf."""
    if isinstance(found, dict):
        return {
            name: base64.b64decode(value).hex() if name in _IDS else _hexadecimal(value)
            for name, value in found.items()
        }
    return [_hexadecimal(one) for one in found] if isinstance(found, list) else found
