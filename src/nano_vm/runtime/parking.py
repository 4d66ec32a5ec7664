"""Runs that wait, as this process let go of them: whoever takes a long one up again here need not fold all of its
journal once more, so that a loop with a wait in it costs a turn the same, however often it has gone round."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from nano_vm.journal.entry import Chain
from nano_vm.kernel.state import RunStatus, State, restore, snapshot
from nano_vm.policy.progress import Progress
from nano_vm.runtime.driver import Run
from nano_vm.runtime.governing import gate_of

if TYPE_CHECKING:
    from nano_vm.journal.port import RunRecord
    from nano_vm.runtime.engine import Engine

PARKED_MAX = 64  # runs; the one that was parked first goes first
ENTRIES_MIN = 64  # a shorter journal is folded as quickly


class _Parked(NamedTuple):
    state: State
    length: int
    head: str
    fence: int
    progress: Progress | None
    principal: dict[str, Any] | None


class Parking:
    """The states of runs that an engine has let go of, by run id.

    Invariant: a state that is held is what a fold of the journal gives, as far as `head`, and nobody changes it.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[str, _Parked] = OrderedDict()

    def keep(self, run: Run) -> None:
        """Keep what is known of a run that has just been let go of, with all that happened in the journal.

        Nothing of runs with labels: what is private or secret may be erased while they wait, and must not be here then.
        """
        state, chain = run.state, run.chain
        if chain.length < ENTRIES_MIN or state.status is not RunStatus.SUSPENDED or state.labels is not None:
            return
        progress = None if run.gate is None else run.gate.progress
        run_id = run.record.run_id
        self._held[run_id] = _Parked(state, chain.length, chain.head, run.fence, progress, run.principal)
        self._held.move_to_end(run_id)
        if len(self._held) > PARKED_MAX:
            self._held.popitem(last=False)

    def take(self, engine: Engine, record: RunRecord, fence: int) -> Run | None:
        """The run as it was kept, for its new owner with this fence; None where somebody else has owned it since, or
        has added to its journal."""
        parked = self._held.get(record.run_id)
        if parked is None or fence <= parked.fence:
            return None
        del self._held[record.run_id]
        if fence != parked.fence + 1:
            return None
        last = engine.store.read(record.run_id, parked.length - 1)
        if len(last) != 1 or last[0].digest != parked.head:
            return None
        chain = Chain(record.run_id, parked.length, parked.head)
        run = Run(
            engine,
            engine.load_program(record.program_hash),
            record,
            _taken_from(parked.state),
            chain,
            fence,
            True,
            parked.principal,
            recorded=record.status,
            mail_waits=True,
        )
        run.gate = gate_of(run)
        if run.gate is not None:
            if parked.progress is None:
                return None  # nothing governed it, so nobody has taken note
            run.gate.progress = parked.progress
        return run


def _taken_from(state: State) -> State:
    """Another state, equal to this one, which the traces that were given out go on looking at. What they never ask for,
    and what grows with every event, goes over as it is: the ids of all that was ever taken."""
    taken = restore(snapshot(replace(state, seen={})))
    taken.seen = state.seen
    return taken


__all__ = ["Parking"]
