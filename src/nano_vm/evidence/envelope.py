"""GovernanceEnvelopes: for every step that succeeded, under which policy and in which state it did (SPEC §9).

A projection of the journal, in its order. It only grows as the journal grows: the envelopes of a journal begin with
those of every beginning of it. It shows of what a step produced the type and the commitment, never the value; whoever
is entitled to see that gets a disclosure of the step, which proves it against the same commitment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.journal.entry import Entry, read_facts
from nano_vm.journal.snapshots import follow
from nano_vm.journal.trace import Trace
from nano_vm.kernel.events import Event, RunStarted
from nano_vm.kernel.state import Settled, StepStatus
from nano_vm.program.compiled import CompiledProgram, Kind

_TYPES = {
    bool: "boolean",
    dict: "object",
    float: "number",
    int: "number",
    list: "array",
    str: "string",
    type(None): "null",
}


def envelopes(trace: Trace) -> list[dict[str, Any]]:
    """The envelopes of a run, in the order its steps succeeded; JSON objects.

    Members: `execution_id`, `step_id`, `occurrence`, `item` (lanes of a map), `seq` (of the entry that settled it),
    `at_ms`, `policy_hash` (null for a run without a policy), `snapshot_hash` (digest of all values bound after it), and
    `payload`: `type` of what it produced, `commitment` where the entry is committed to exactly that, and `verdict` of a
    condition.

    Raises:
        VerificationError: as `fold`.
    """
    gathered = _Gathered(trace.program, trace.trace_id)
    follow(trace.program, trace.trace_id, trace.entries, gathered.settle)
    return gathered.found


def envelope_lines(trace: Trace) -> list[bytes]:
    """The same as canonical bytes (RFC 8785), one line each."""
    return [canonical.encode(envelope) for envelope in envelopes(trace)]


class _Gathered:
    def __init__(self, program: CompiledProgram, run_id: str) -> None:
        self.program = program
        self.run_id = run_id
        self.policy: str | None = None
        self.found: list[dict[str, Any]] = []

    def settle(self, entry: Entry, event: Event, settled: Sequence[Settled], digest: str) -> None:
        if type(event) is RunStarted:
            self.policy = None if event.policy is UNSET else event.policy
        for result in settled:
            if result.status is StepStatus.SUCCESS:
                self.found.append(self._envelope(entry, event, result, digest))

    def _envelope(self, entry: Entry, event: Event, result: Settled, digest: str) -> dict[str, Any]:
        step = self.program.steps[result.step]
        payload: dict[str, Any]
        if step.kind is Kind.CONDITION:
            payload = {"type": "boolean", "verdict": result.output}
        else:
            payload = {"type": _TYPES.get(type(result.output), "object")}
            commitment = read_facts(entry).commitment
            own = getattr(event, "step", UNSET) == step.id and result.output == getattr(
                event, "payload", UNSET
            )
            if commitment is not None and own:
                payload["commitment"] = commitment
        envelope: dict[str, Any] = {
            "at_ms": event.at_ms,
            "execution_id": self.run_id,
            "occurrence": result.occurrence,
            "payload": payload,
            "policy_hash": self.policy,
            "seq": entry.seq,
            "snapshot_hash": digest,
            "step_id": step.id,
        }
        if result.item >= 0:
            envelope["item"] = result.item
        return envelope
