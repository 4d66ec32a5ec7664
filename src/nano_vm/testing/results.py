"""What a run has come to, put together from what was seen of it: a second opinion on traces and their hashes (P5, P12).

Results count in declared order, whenever they came, the last of each place; what is private as a mark. Deliberately not
the code of `nano_vm.journal`; it follows SPEC §5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Settled, StepStatus
from nano_vm.program.compiled import CompiledProgram, Kind
from nano_vm.program.labels import SEALED

Place = tuple[int, int, int]  # rank, occurrence, item


class Results:
    """Follows one run."""

    def __init__(self) -> None:
        self._leaves: dict[tuple[Place, int], bytes] = {}
        self._settled: dict[tuple[str, int, int], Settled] = {}
        self._told = [0, 0]  # tokens in and out
        self.last: Any = UNSET  # what the last step came to, where that is the answer of a tool or model

    def note(self, event: ev.Event, settled: Sequence[tuple[int, Settled]], program: CompiledProgram) -> None:
        """Take up what has settled."""
        if type(event) is ev.StepSucceeded and event.item is UNSET:
            self.last = event.payload
        elif type(event) not in (ev.StepStarted, ev.PolicyDecided, ev.RunFinished):
            self.last = UNSET
        for number, name in enumerate(("tokens_in", "tokens_out")):
            told = getattr(event, name, UNSET)
            self._told[number] += 0 if told is UNSET else told
        for index, one in settled:
            step = program.steps[index]
            self._settled[step.id, one.occurrence, one.item] = one
            leaf = _leaf(step.id, step.kind is Kind.CONDITION, one)
            self._leaves[(step.rank, one.occurrence, one.item), index] = leaf

    def told_wrongly(self, event: ev.ChildFinished) -> bool:
        """Whether the parent of this run is told of another result than it has."""
        said = event.payload.get("output") if type(event.payload) is dict else None
        return event.status == StepStatus.SUCCESS and self.last is not UNSET and said != self.last

    def wrong(self, trace: Mapping[str, Any], trace_hash: str) -> str | None:
        """What is wrong with a trace of the run, as a dict, and its hash; or None."""
        leaves = sorted((place, leaf) for (place, _), leaf in self._leaves.items())
        if trace_hash != "sha256:" + _root([leaf for _, leaf in leaves]).hex():
            return "its trace hash is that of other results"
        shown = [step for step in trace["steps"] if step["finished_at_ms"] is not None]
        if len(shown) != len(self._settled):
            return f"{len(self._settled)} results, and its trace shows {len(shown)}"
        for step in shown:
            one = self._settled.get(
                (step["id"], step["occurrence"], -1 if step["item"] is None else step["item"])
            )
            if one is None or (step["status"], step["attempts"]) != (one.status.value, one.attempts):
                return f"its trace tells of `{step['id']}` what has not been"
            if step["substituted"] is not one.substituted:
                return f"its trace does not tell whether a value stands in for that of `{step['id']}`"
        taken = [sum(step[name] for step in trace["steps"]) for name in ("tokens_in", "tokens_out")]
        return None if taken == self._told else "its trace tells of other tokens than models do"


def _leaf(name: str, is_condition: bool, one: Settled) -> bytes:
    leaf: dict[str, Any] = {"occurrence": one.occurrence, "status": one.status.value, "step": name}
    if one.item >= 0:
        leaf["item"] = one.item
    if one.status is StepStatus.FAILED:
        leaf["error"] = one.error
    elif is_condition and one.status is StepStatus.SUCCESS:
        leaf["verdict"] = one.output
    elif one.label & SEALED and not is_condition:
        leaf["private"] = True
    elif one.status is not StepStatus.UNKNOWN and not is_condition:
        leaf["output"] = one.output
    return canonical.encode(leaf)


def _root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, as it is written there."""
    if len(leaves) < 2:
        return sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return sha256(b"\x01" + _root(leaves[:half]) + _root(leaves[half:])).digest()


__all__ = ["Results"]
