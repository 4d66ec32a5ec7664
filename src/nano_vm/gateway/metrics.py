"""Counters for `/metrics` (Prometheus text format 0.0.4). Counts and times only: no names of runs, no contents."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nano_vm.gateway.attendant import Attendant
    from nano_vm.gateway.limits import Gate
    from nano_vm.gateway.service import Gateway

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What this process has counted since it started."""

    def __init__(self) -> None:
        self._calls: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._times: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * (len(BUCKETS) + 2))
        self._requests: defaultdict[int, int] = defaultdict(int)

    def called(self, tool: str, outcome: str, seconds: float) -> None:
        self._calls[tool, outcome] += 1
        times = self._times[tool]
        for place, bound in enumerate(BUCKETS):
            if seconds <= bound:
                times[place] += 1
        times[-2] += 1
        times[-1] += seconds

    def answered(self, status: int) -> None:
        self._requests[status] += 1

    def text(self, gateway: Gateway, gate: Gate, attendant: Attendant) -> str:
        lines: list[str] = []

        def family(name: str, kind: str, help: str) -> None:
            lines.extend((f"# HELP {name} {help}", f"# TYPE {name} {kind}"))

        family("nano_vm_tool_calls_total", "counter", "Tool calls by tool and outcome.")
        for (tool, outcome), count in sorted(self._calls.items()):
            lines.append(f'nano_vm_tool_calls_total{{tool="{tool}",outcome="{outcome}"}} {count}')
        family("nano_vm_tool_call_seconds", "histogram", "How long tool calls took.")
        for tool, times in sorted(self._times.items()):
            for place, bound in enumerate(BUCKETS):
                lines.append(
                    f'nano_vm_tool_call_seconds_bucket{{tool="{tool}",le="{bound}"}} {times[place]:.0f}'
                )
            lines.append(f'nano_vm_tool_call_seconds_bucket{{tool="{tool}",le="+Inf"}} {times[-2]:.0f}')
            lines.append(f'nano_vm_tool_call_seconds_sum{{tool="{tool}"}} {times[-1]:.6f}')
            lines.append(f'nano_vm_tool_call_seconds_count{{tool="{tool}"}} {times[-2]:.0f}')
        family("nano_vm_http_responses_total", "counter", "HTTP responses by status.")
        for status, count in sorted(self._requests.items()):
            lines.append(f'nano_vm_http_responses_total{{status="{status}"}} {count}')
        for name, kind, help, value in (
            ("nano_vm_runs_started_total", "counter", "Runs begun or taken up.", gateway.started_total),
            ("nano_vm_runs_recovered_total", "counter", "Runs taken up.", attendant.taken_total),
            ("nano_vm_runs_driven", "gauge", "Runs under way in this process.", len(gateway.driving)),
            ("nano_vm_requests_in_progress", "gauge", "Requests in progress.", gate.at_once),
            ("nano_vm_requests_refused_total", "counter", "Requests over a limit.", gate.refused_total),
            ("nano_vm_attendant_rounds_total", "counter", "Looks for runs to take up.", attendant.rounds),
        ):
            family(name, kind, help)
            lines.append(f"{name} {value}")
        return "\n".join(lines) + "\n"
