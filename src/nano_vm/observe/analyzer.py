"""`TraceAnalyzer`: what a trace says about its run."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from nano_vm.evidence import envelope
from nano_vm.evidence import narrative as sentences
from nano_vm.evidence import receipt as receipts
from nano_vm.journal.trace import Trace
from nano_vm.observe import measures
from nano_vm.observe.baseline import Baseline
from nano_vm.observe.trajectory import Trajectory, of_trace
from nano_vm.runtime.arguments import check_is


class TraceAnalyzer:
    """Reads one trace. Everything it answers is a function of the trace alone (P12).

    Example:
        TraceAnalyzer(vm.trace(trace_id)).receipt()["health"]
    """

    def __init__(self, trace: Trace) -> None:
        check_is("trace", trace, Trace, "TraceAnalyzer(vm.trace(trace_id))")
        self.trace = trace

    @cached_property
    def trajectory(self) -> Trajectory:
        """What the run did, as a sequence of moves."""
        return of_trace(self.trace)

    def metrics(self, baseline: Baseline | None = None) -> dict[str, Any]:
        """The measures of the run, a JSON object; `docs/guides/analysis.md` defines them.

        Args:
            baseline: of healthy runs of the program (`learn`); without one what needs it is null.
        """
        return metrics_of(self.trajectory, baseline)

    def receipt(self) -> dict[str, Any]:
        """The run's receipt, a JSON object: see `spec/receipt.md`. Holds nothing that can be erased."""
        return receipts.receipt(self.trace)

    def receipt_bytes(self) -> bytes:
        """The receipt's canonical bytes (RFC 8785): equal for equal traces, on any machine."""
        return receipts.receipt_bytes(self.trace)

    def envelopes(self) -> list[dict[str, Any]]:
        """The run's governance envelopes: see `spec/receipt.md`."""
        return envelope.envelopes(self.trace)

    def narrative(self) -> str:
        """The receipt in plain sentences, one per line."""
        return sentences.narrative(self.receipt())


def metrics_of(trajectory: Trajectory, baseline: Baseline | None = None) -> dict[str, Any]:
    """The measures of any trajectory; see `TraceAnalyzer.metrics`."""
    bits = measures.absolute_entropy(trajectory)
    return {
        "moves": len(trajectory.moves),
        "rollback_density": measures.rollback_density(trajectory),
        "tool_churn": measures.tool_churn(trajectory),
        "violation_rate": measures.violation_rate(trajectory),
        "transition_entropy": measures.transition_entropy(trajectory.pairs()),
        "normalized_entropy": measures.normalized_entropy(trajectory),
        "path_variance": measures.path_variance(trajectory.path, baseline.variants)
        if baseline is not None
        else None,
        "mean_surprisal": baseline.surprisal(trajectory) if baseline is not None else None,
        "uncalibrated": {
            "bits": bits,
            "limit": measures.UNCALIBRATED_BITS,
            "exceeded": bits > measures.UNCALIBRATED_BITS,
        },
    }
