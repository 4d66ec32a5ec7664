"""Digests of the values a run has bound, step by step.

A snapshot is the digest of the canonical object {slot name: value} of everything bound - inputs, outputs,
output keys and errors - without what merely names the run (`$run`, `$principal`), so that equal values have
equal snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from nano_vm import canonical
from nano_vm.expr.reference import UNSET
from nano_vm.journal.entry import Entry
from nano_vm.journal.fold import fold
from nano_vm.journal.ledger import Place
from nano_vm.kernel.events import Event, RunStarted, ValuesChanged
from nano_vm.kernel.state import Settled, State
from nano_vm.program.compiled import FIRST_FREE_SLOT, CompiledProgram
from nano_vm.program.labels import SEALED

OnSettled: TypeAlias = Callable[[Entry, Event, Sequence[Settled], str], None]


class _Bound:
    """The bound values in canonical form, kept up to date: only what a transition bound is encoded again."""

    def __init__(self, program: CompiledProgram) -> None:
        self._names = program.slots
        self._members: list[bytes] = [b""] * len(program.slots)
        # RFC 8785 orders keys by their UTF-16 code units.
        self._order = sorted(
            range(FIRST_FREE_SLOT, len(program.slots)),
            key=lambda slot: program.slots[slot].encode("utf-16-be"),
        )

    def bind(self, state: State, slots: Iterable[int]) -> None:
        for slot in slots:
            value = state.slots[slot]
            if state.labels is not None and state.labels[slot] & SEALED and value is not UNSET:
                value = {"private": True}
            self._members[slot] = (
                b""
                if value is UNSET
                else canonical.encode(self._names[slot]) + b":" + canonical.encode(value)
            )

    def digest(self) -> str:
        members = self._members
        return canonical.digest(b"{" + b",".join([members[i] for i in self._order if members[i]]) + b"}")


def follow(program: CompiledProgram, run_id: str, entries: Iterable[Entry], on_settled: OnSettled) -> None:
    """Fold the entries and tell, for each event that began the run or settled a step, what it settled and the digest of
    the values bound after it.

    Raises:
        VerificationError: as `fold`.
    """
    bound = _Bound(program)

    def record(entry: Entry, event: Event, state: State) -> None:
        if type(event) is RunStarted or type(event) is ValuesChanged:
            bound.bind(state, range(FIRST_FREE_SLOT, len(program.slots)))
        elif not state.settled:
            return
        for settled in state.settled:
            step = program.steps[settled.step]
            bound.bind(state, (s for s in (step.output_slot, step.key_slot, step.error_slot) if s >= 0))
        on_settled(entry, event, state.settled, bound.digest())

    fold(program, run_id, entries, on_transition=record)


def snapshots(program: CompiledProgram, run_id: str, entries: Iterable[Entry]) -> dict[Place, str]:
    """For each settled occurrence of a step the digest of the values bound after it."""
    found: dict[Place, str] = {}

    def keep(_entry: Entry, _event: Event, settled: Sequence[Settled], digest: str) -> None:
        for result in settled:
            found[result.step, result.occurrence, result.item] = digest

    follow(program, run_id, entries, keep)
    return found
