"""Counts of an engine's runs for Prometheus (text format 0.0.4), without any dependency.

Like telemetry it listens to events as they become durable, so a replay counts nothing. Labels are names of programs,
tools, models and codes; nothing of a run's data, and no run ids.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nano_vm.errors import InputError, NanoVMError
from nano_vm.journal.ledger import NANO
from nano_vm.kernel import events as ev
from nano_vm.observe.archetypes import ArchetypeMonitor
from nano_vm.observe.drift import DriftMonitor, Health
from nano_vm.program.compiled import CompiledProgram, Kind, ToolAction

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine, Progress

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3_600.0)
SERIES_MAX = 10_000  # label sets of one family; what comes after counts under the label values `other`
OPEN_RUNS_MAX = 100_000
_HEALTH = {health: number for number, health in enumerate(Health)}

_FAMILIES = {
    "nano_vm_runs_total": ("counter", "Ended runs.", ("workflow", "status")),
    "nano_vm_steps_total": ("counter", "Outcomes of attempts.", ("workflow", "kind", "result")),
    "nano_vm_llm_calls_total": ("counter", "Model calls.", ("model", "provider", "error")),
    "nano_vm_tool_attempts_total": ("counter", "Attempts of tools in programs.", ("tool", "error")),
    "nano_vm_retries_total": ("counter", "Attempts after the first.", ("workflow",)),
    "nano_vm_tokens_total": ("counter", "Tokens.", ("model", "type")),
    "nano_vm_cost_usd_total": ("counter", "What models cost, in US dollars.", ("model",)),
    "nano_vm_refusals_total": ("counter", "Events and proposals that were refused.", ("workflow", "code")),
    "nano_vm_denials_total": ("counter", "Calls that a policy denied.", ("workflow", "rule")),
    "nano_vm_run_seconds": ("histogram", "From the start of a run to its end.", ("workflow",)),
    "nano_vm_llm_call_seconds": ("histogram", "How long model calls took.", ("model",)),
}
_Labels = tuple[str, ...]


class RunMetrics:
    """Counts what an engine drives, from now on, until `close`.

    Args:
        monitors: by name; the health of each is told as `nano_vm_drift_health` (0 STABLE, 1 DRIFTING, 2 DEGRADED).
    """

    def __init__(
        self, engine: Engine, *, monitors: Mapping[str, DriftMonitor | ArchetypeMonitor] | None = None
    ) -> None:
        self._engine = engine
        self._monitors = dict(monitors or {})
        self._lock = threading.Lock()
        self._counts: dict[str, dict[_Labels, float]] = {name: {} for name in _FAMILIES}
        self._times: dict[str, dict[_Labels, list[float]]] = {name: {} for name in _FAMILIES}
        self._programs: dict[str, CompiledProgram] = {}
        self._begun: dict[tuple[Any, ...], int] = {}  # when runs, and calls of models, were begun
        engine.listeners.append(self.hear)

    def close(self) -> None:
        """Stop listening."""
        if self.hear in self._engine.listeners:
            self._engine.listeners.remove(self.hear)

    def hear(self, run_id: str, progress: Progress) -> None:
        """One event that has become durable."""
        event = progress.event
        program = self._program(run_id)
        if program is None:
            return
        with self._lock:
            self._take(run_id, program, event)

    def _program(self, run_id: str) -> CompiledProgram | None:
        program = self._programs.get(run_id)
        if program is None:
            try:
                program = self._engine.load_program(self._engine.store.record(run_id).program_hash)
            except NanoVMError:
                return None  # nobody is kept from running by what is only counted
            if len(self._programs) >= OPEN_RUNS_MAX:
                self._programs.clear()  # most of them wait, or have ended elsewhere
            self._programs[run_id] = program
        return program

    def _take(self, run_id: str, program: CompiledProgram, event: Any) -> None:
        match event:
            case ev.RunStarted():
                self._begin((run_id,), event.at_ms)
            case ev.RunFinished():
                self._programs.pop(run_id, None)
                self._count("nano_vm_runs_total", program.name, event.status)
                began = self._begun.pop((run_id,), None)
                if began is not None:
                    self._time("nano_vm_run_seconds", event.at_ms - began, program.name)
            case ev.StepStarted():
                if event.attempt > 1 and _kind(program, event.step) is not Kind.AGENT:
                    self._count("nano_vm_retries_total", program.name)
                self._begin(_place(run_id, event), event.at_ms)
            case (
                ev.StepSucceeded()
                | ev.StepFailed()
                | ev.OutcomeUnknown()
                | ev.ModelTurned()
                | ev.StepPending()
            ):
                self._settle(run_id, program, event)
            case ev.EventRefused():
                self._count("nano_vm_refusals_total", program.name, event.code)
            case ev.ActionProposed() if event.verdict == "rejected":
                self._count("nano_vm_refusals_total", program.name, str(event.reason))
            case ev.PolicyDecided() if event.decision == "deny":
                self._count("nano_vm_denials_total", program.name, event.rule)
            case _:
                pass

    def _settle(self, run_id: str, program: CompiledProgram, event: Any) -> None:
        """What came of one dispatch."""
        kind = _kind(program, event.step)
        result, error = _result(event)
        self._count("nano_vm_steps_total", program.name, "" if kind is None else kind.name.lower(), result)
        began = self._begun.pop(_place(run_id, event), None)
        if kind in (Kind.LLM, Kind.AGENT):
            model, provider = _text(event, "model"), _text(event, "provider")
            self._count("nano_vm_llm_calls_total", model, provider, error)
            if began is not None:
                self._time("nano_vm_llm_call_seconds", event.at_ms - began, model)
            for field, name in (("tokens_in", "input"), ("tokens_out", "output")):
                count = getattr(event, field, ev.UNSET)
                if count is not ev.UNSET:
                    self._count("nano_vm_tokens_total", model, name, add=count)
            cost = getattr(event, "cost_nanousd", ev.UNSET)
            if cost is not ev.UNSET:
                self._count("nano_vm_cost_usd_total", model, add=cost / NANO)
        tool = _tool(program, event.step)
        if tool is not None:
            self._count("nano_vm_tool_attempts_total", tool, error)

    # --- keeping --------------------------------------------------------------------------------------------

    def _begin(self, place: tuple[Any, ...], at_ms: int) -> None:
        if len(self._begun) < OPEN_RUNS_MAX:
            self._begun[place] = at_ms

    def _count(self, family: str, *labels: str, add: float = 1) -> None:
        kept = self._counts[family]
        if labels not in kept and len(kept) >= SERIES_MAX:
            labels = ("other",) * len(labels)
        kept[labels] = kept.get(labels, 0) + add

    def _time(self, family: str, milliseconds: int, *labels: str) -> None:
        kept = self._times[family]
        if labels not in kept and len(kept) >= SERIES_MAX:
            labels = ("other",) * len(labels)
        times = kept.setdefault(labels, [0.0] * (len(SECONDS) + 2))
        seconds = max(milliseconds, 0) / 1_000
        for place, bound in enumerate(SECONDS):
            times[place] += seconds <= bound
        times[-2] += 1
        times[-1] += seconds

    # --- telling --------------------------------------------------------------------------------------------

    def text(self) -> str:
        """All families, sorted."""
        lines: list[str] = []
        with self._lock:
            for name, (kind, help, labels) in _FAMILIES.items():
                lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
                for values, count in sorted(self._counts[name].items()):
                    lines.append(f"{name}{_labelled(labels, values)} {count:.12g}")
                for values, times in sorted(self._times[name].items()):
                    lines += _histogram(name, labels, values, times)
            lines += [
                "# HELP nano_vm_drift_health How runs go: 0 STABLE, 1 DRIFTING, 2 DEGRADED.",
                "# TYPE nano_vm_drift_health gauge",
            ]
            for monitored, monitor in sorted(self._monitors.items()):
                health = _HEALTH[monitor.health]
                lines.append(f"nano_vm_drift_health{_labelled(('monitor',), (monitored,))} {health}")
        return "\n".join(lines) + "\n"


def _histogram(name: str, labels: _Labels, values: _Labels, times: list[float]) -> list[str]:
    lines = []
    for place, bound in enumerate((*SECONDS, float("inf"))):
        shown = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f"{name}_bucket{_labelled((*labels, 'le'), (*values, shown))} {times[place]:.0f}")
    lines.append(f"{name}_sum{_labelled(labels, values)} {times[-1]:.12g}")
    lines.append(f"{name}_count{_labelled(labels, values)} {times[-2]:.0f}")
    return lines


def _labelled(names: _Labels, values: _Labels) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _kind(program: CompiledProgram, step: str) -> Kind | None:
    index = program.step_index.get(step)
    return None if index is None else program.steps[index].kind


def _tool(program: CompiledProgram, step: str) -> str | None:
    index = program.step_index.get(step)
    action = None if index is None else program.steps[index].action
    return action.tool if type(action) is ToolAction else None


def _result(event: Any) -> tuple[str, str]:
    """(result, error type)."""
    match event:
        case ev.StepFailed():
            return "failed", str(event.error)
        case ev.OutcomeUnknown():
            return "unknown", f"UNKNOWN_{event.reason}"
        case ev.StepPending():
            return "pending", ""
        case _:
            return "succeeded", ""


def _text(event: Any, field: str) -> str:
    value = getattr(event, field, ev.UNSET)
    return "" if value is ev.UNSET else str(value)


def _place(run_id: str, event: Any) -> tuple[Any, ...]:
    return run_id, event.step, event.occurrence, getattr(event, "item", ev.UNSET), event.attempt


class MetricsServer:
    """Serves `/metrics` over HTTP, in a thread; a context manager.

    Args:
        host: loopback by default. There is no authentication: whoever can reach it can read it.
        port: 0 takes a free one.

    Raises:
        InputError: USAGE when it cannot be bound.
    """

    def __init__(self, metrics: RunMetrics, host: str = "127.0.0.1", port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == "/metrics"
                body = (metrics.text() if found else "see /metrics\n").encode()
                self.send_response(200 if found else 404)
                self.send_header("content-type", CONTENT_TYPE if found else "text/plain; charset=utf-8")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                "USAGE",
                f"metrics cannot be served on {host}:{port}: {error}",
                help="--metrics 127.0.0.1:9464",
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}/metrics"

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
