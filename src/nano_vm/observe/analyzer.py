"""`TraceAnalyzer`: what a trace says about its run."""

from __future__ import annotations

from typing import Any

from nano_vm.evidence import envelope
from nano_vm.evidence import narrative as sentences
from nano_vm.evidence import receipt as receipts
from nano_vm.journal.trace import Trace


class TraceAnalyzer:
    """Reads one trace. Everything it answers is a function of the trace alone (P12).

    Example:
        TraceAnalyzer(vm.trace(trace_id)).receipt()["health"]
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

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
