"""What does it cost to watch runs, and to measure them?

    python benchmarks/telemetry.py [--quick]

Twenty tool steps a run. In every round each way of watching runs the same programs, one after the other, in an order
that rotates; the CPU time of a step is divided by that of a step that nobody watches in the same round, and the median
over the rounds is shown. `closed` is an engine whose telemetry was closed: it must cost what one costs that never had
any.

Then the instruments, in seconds of CPU for 10,000 runs of four or five moves: reading trajectories from the journal,
learning a baseline, measuring them under it, finding archetypes, watching for drift.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from nano_vm import (
    ArchetypeMonitor,
    DriftMonitor,
    ExecutionVM,
    SqliteStore,
    learn_archetypes,
    learn_baseline,
    tool,
)
from nano_vm.observe.analyzer import metrics_of
from nano_vm.observe.escalation import Escalation
from nano_vm.observe.prometheus import RunMetrics
from nano_vm.observe.trajectory import of_trace

STEPS = 20
CLOSED_MOST = 1.15  # ratio; the noise of this measurement


@tool(effect="idempotent", blocking=False)
def act(n: int) -> int:
    return n


def program(steps: int) -> dict[str, Any]:
    return {
        "name": "watched",
        "steps": [{"id": f"s{n}", "type": "tool", "tool": "act", "args": {"n": "$n"}} for n in range(steps)],
    }


def varied() -> dict[str, Any]:
    """Two kinds of work that share a step."""
    call = {"type": "tool", "tool": "act", "args": {"n": "$n"}}
    large = {"type": "condition", "condition": "$n >= 30"}
    return {
        "name": "varied",
        "steps": [
            {"id": "large", **large, "then": "invoice", "otherwise": "charge"},
            {"id": "invoice", **call, "next_step": "charge"},
            {"id": "charge", **call},
            {"id": "written", **large, "then": "book", "otherwise": "receipt"},
            {"id": "receipt", **call, "is_terminal": True},
            {"id": "book", **call, "is_terminal": True},
        ],
    }


def spans(vm: ExecutionVM, *, logs: bool) -> Any:
    """Telemetry whose spans, metrics and lines are made and thrown away."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import (
        LogRecordExporter,
        LogRecordExportResult,
        SimpleLogRecordProcessor,
    )
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    from nano_vm.observe.telemetry import Telemetry

    class Spans(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    class Lines(LogRecordExporter):
        def export(self, batch: Any) -> LogRecordExportResult:
            return LogRecordExportResult.SUCCESS

        def shutdown(self) -> None:
            pass

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return True

    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(Spans()))
    loggers = None
    if logs:
        loggers = LoggerProvider()
        loggers.add_log_record_processor(SimpleLogRecordProcessor(Lines()))
    return Telemetry(vm, tracer_provider=tracers, meter_provider=MeterProvider(), logger_provider=loggers)


def watch_drift(vm: ExecutionVM) -> Any:
    healthy = [of_trace(ExecutionVM(tools=[act]).run_sync(program(STEPS), {"n": 1})) for _ in range(25)]
    return Escalation(vm, DriftMonitor(learn_baseline(healthy)))


WAYS: dict[str, Callable[[ExecutionVM], Any]] = {
    "off": lambda vm: None,
    "closed": lambda vm: spans(vm, logs=True).close(),
    "listener": lambda vm: vm.listeners.append(lambda run_id, progress: None),
    "prometheus": RunMetrics,
    "drift": watch_drift,
    "spans": lambda vm: spans(vm, logs=False),
    "spans+logs": lambda vm: spans(vm, logs=True),
}


def step_cost(way: str, runs: int, store: str, directory: Path, number: int) -> float:
    """Seconds of CPU per step."""
    kept = SqliteStore(directory / f"{way}-{number}.db", durability="normal") if store == "sqlite" else None
    vm = ExecutionVM(tools=[act], store=kept)
    WAYS[way](vm)
    made = program(STEPS)
    vm.run_sync(made, {"n": 1})
    began = time.process_time()
    for n in range(runs):
        vm.run_sync(made, {"n": n})
    spent = time.process_time() - began
    vm.store.close()
    return spent / runs / STEPS


def overheads(rounds: int, runs: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for store in ("memory", "sqlite"):
            ratios: dict[str, list[float]] = {way: [] for way in WAYS}
            names = list(WAYS)
            for number in range(rounds):
                shift = number % len(names)
                order = names[shift:] + names[:shift]
                costs = {way: step_cost(way, runs, store, Path(temporary), number) for way in order}
                for way, cost in costs.items():
                    ratios[way].append(cost / costs["off"])
            for way in names:
                row = {"store": store, "way": way, "ratio": median(ratios[way])}
                rows.append(row | {"least": min(ratios[way]), "most": max(ratios[way])})
                print(
                    f"{store:<7} {way:<11} {row['ratio']:>5.2f} times the CPU of a step "
                    f"({min(ratios[way]):.2f} to {max(ratios[way]):.2f})"
                )
    return rows


def instruments(runs: int) -> dict[str, float]:
    """Seconds of CPU for 10,000 runs."""
    vm = ExecutionVM(tools=[act])
    made = varied()
    traces = [vm.trace(vm.run_sync(made, {"n": n * 7 % 60}, trace_id=f"r{n}").trace_id) for n in range(runs)]
    costs: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        costs[name] = (time.process_time() - began) * 10_000 / runs
        return result

    trajectories = timed("trajectories", lambda: [of_trace(trace) for trace in traces])
    baseline = timed("baseline", lambda: learn_baseline(trajectories))
    timed("measures", lambda: [metrics_of(run, baseline) for run in trajectories])
    kinds = timed("archetypes", lambda: learn_archetypes(trajectories))
    monitor, by_kind = DriftMonitor(baseline), ArchetypeMonitor(kinds)
    timed("drift", lambda: [monitor.observe(run) for run in trajectories])
    timed("drift by archetype", lambda: [by_kind.observe(run) for run in trajectories])
    for name, cost in costs.items():
        print(f"{name:<19} {cost:>6.2f} s of CPU for 10,000 runs")
    return costs


def loaded_when_off() -> list[str]:
    """Modules of OpenTelemetry, and of what watches, that a run loads which nobody watches."""
    code = (
        "import sys, json\nfrom nano_vm import ExecutionVM\n"
        "ExecutionVM(tools={'f': lambda: 1}).run_sync("
        "{'name': 'p', 'steps': [{'id': 'a', 'type': 'tool', 'tool': 'f'}]})\n"
        "print(json.dumps([m for m in sys.modules if m.startswith(('opentelemetry', 'nano_vm.observe'))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="what watching and measuring runs costs")
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    loaded = loaded_when_off()
    print(f"off: {len(loaded)} modules of telemetry are loaded")
    rows = overheads(1 if quick else 7, 5 if quick else 150)
    costs = instruments(60 if quick else 2_000)
    closed = max(row["ratio"] for row in rows if row["way"] == "closed")
    met = not loaded and (quick or closed <= CLOSED_MOST)
    print(json.dumps({"loaded": loaded, "rows": rows, "costs": costs, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
