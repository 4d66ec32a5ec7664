"""A trace: the read-only view of a run, which is a fold of its journal.

Everything is computed when it is first asked for, and once. What the state alone can answer (status,
outcome, final output, totals, `outcome_hash`) needs no journal when a state is given; everything else reads
and folds the entries. Values handed out share nothing with the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from nano_vm.journal.disclosure import disclosure_root
from nano_vm.journal.entry import GENESIS, Entry, open_events
from nano_vm.journal.fold import fold
from nano_vm.journal.ledger import NANO, Ledger, TraceStep, Usage
from nano_vm.journal.recall import Notes
from nano_vm.journal.replay import refold
from nano_vm.journal.results import declared_outputs, outcome_hash, own, trace_hash
from nano_vm.journal.snapshots import snapshots
from nano_vm.kernel.events import Event, ModelTurned, StepFailed, StepSucceeded
from nano_vm.kernel.state import RunStatus, State, StepStatus, Waiting
from nano_vm.kernel.transition import waiting
from nano_vm.program.compiled import CompiledProgram

__all__ = ["Trace", "TraceStep", "Usage"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_T = TypeVar("_T")


class cached_property(Generic[_T]):
    """`functools.cached_property` without its lock, which costs more than most of what is computed here."""

    def __init__(self, compute: Callable[[Any], _T]) -> None:
        self.func = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, trace: Any, owner: Any = None) -> _T:
        if trace is None:
            return self  # type: ignore[return-value]
        value = trace.__dict__[self._name] = self.func(trace)
        return value


class Trace:
    """The view of one run.

    Args:
        program: the program the run is pinned to.
        run_id: the run.
        entries: reads all entries of the run from the first; called at most once.
        notes: of sealed values, as `fold` takes them.
        state: the state after these entries, if it is at hand; it must not be changed any more.
        folded: the same, with what a ledger has recorded, from somebody who has folded these entries already.

    Raises (when something that needs the journal is first read): VerificationError, as `fold`.
    """

    def __init__(
        self,
        program: CompiledProgram,
        run_id: str,
        entries: Callable[[], Sequence[Entry]],
        state: State | None = None,
        *,
        folded: tuple[State, Ledger] | None = None,
        notes: Notes | None = None,
    ) -> None:
        self._notes = notes
        self._program = program
        self._run_id = run_id
        self._read = entries
        self._given = state
        self._known = folded

    def __repr__(self) -> str:
        return f"<Trace {self._run_id} of {self._program.name}: {self.status.value}>"

    # --- what the state says ------------------------------------------------------------------------------
    @property
    def _state(self) -> State:
        return self._given if self._given is not None else self._folded[0]

    @property
    def trace_id(self) -> str:
        return self._run_id

    @property
    def program(self) -> CompiledProgram:
        """The compiled program that the run is pinned to."""
        return self._program

    @property
    def program_name(self) -> str:
        return self._program.name

    @property
    def program_hash(self) -> str:
        return self._program.hash

    @property
    def status(self) -> RunStatus:
        return self._state.status

    @property
    def outcome(self) -> str | None:
        """The business outcome that the terminal step named."""
        return self._state.outcome

    @property
    def error(self) -> dict[str, Any] | None:
        """{"type", "message", "attempts", "step"?} of what ended the run other than SUCCESS."""
        error: dict[str, Any] | None = own(self._state.error)
        return error

    @cached_property
    def waiting(self) -> list[Waiting]:
        """What a SUSPENDED run waits for; empty otherwise."""
        return waiting(self._program, self._state)

    @cached_property
    def final_output(self) -> Any:
        """The output of the step that settled last."""
        return own(self._state.last_output)

    @cached_property
    def outputs(self) -> dict[str, Any]:
        """The declared `outputs`; one that cannot be resolved is left out."""
        return declared_outputs(self._program, self._state)

    @property
    def incomplete_compensations(self) -> list[str]:
        """Steps that should have been undone and were not."""
        return list(self._state.incomplete)

    def total_tokens(self) -> int:
        """Everything that counted against the token budget, rejected attempts and children included."""
        return self._state.tokens

    def total_cost_nanousd(self) -> int:
        """What the run has cost, exactly."""
        return self._state.cost_nanousd

    def total_cost_usd(self) -> float:
        """Dollars; the journal keeps whole nano-dollars."""
        return self._state.cost_nanousd / NANO

    @property
    def started_at_ms(self) -> int:
        return self._state.started_ms

    @property
    def finished_at_ms(self) -> int | None:
        """None while the run has not ended."""
        return self._state.now_ms if self.status.is_terminal else None

    @property
    def started_at(self) -> datetime:
        return _moment(self._state.started_ms)

    @property
    def finished_at(self) -> datetime | None:
        return _moment(self._state.now_ms) if self.status.is_terminal else None

    @property
    def duration_ms(self) -> float:
        """From start to end, or to the last event so far; suspended time included."""
        return float(self._state.now_ms - self._state.started_ms)

    @cached_property
    def outcome_hash(self) -> str:
        """Digest of program name, status, outcome and key outputs."""
        return outcome_hash(self._program, self._state)

    # --- what the journal says ----------------------------------------------------------------------------
    @cached_property
    def entries(self) -> Sequence[Entry]:
        return self._read()

    @cached_property
    def _folded(self) -> tuple[State, Ledger]:
        if self._known is not None:
            return self._known
        program, run_id, entries = self._program, self._run_id, self.entries
        ledger = Ledger(program)
        state = refold(program, run_id, entries, ledger=ledger)
        if state is None:  # a view is there of a journal that is no evidence, too
            ledger = Ledger(program)
            state = fold(program, run_id, entries, on_transition=ledger.record, notes=self._notes)
        return state, ledger

    @cached_property
    def steps(self) -> list[TraceStep]:
        """Occurrences of steps in the order they settled, the lanes of a settled group as declared; then
        those in progress."""
        state, ledger = self._folded
        return ledger.steps(state)

    @cached_property
    def eventful(self) -> list[TraceStep]:
        """`steps` without those of which there is no more to say than that they succeeded at their first attempt, as
        far as that was known without making them."""
        state, ledger = self._folded
        return ledger.eventful(state)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many of `steps` have which status."""
        counts = Counter([step.status for step in self.eventful])
        counts[StepStatus.SUCCESS] += self._folded[1].plain
        return {status.value: count for status, count in counts.items() if count}

    def step(self, step_id: str) -> TraceStep | None:
        """The last occurrence of a step, or None when the run did not come to it."""
        for step in reversed(self.steps):
            if step.id == step_id:
                return step
        return None

    @cached_property
    def path(self) -> list[str]:
        """Ids of the steps in the order of `steps`, without those that were passed over."""
        state, ledger = self._folded
        return ledger.ids + [step.id for step in ledger.in_progress(state) if step.attempts]

    @cached_property
    def events(self) -> list[Event]:
        return [event for entry in self.entries for event in open_events(entry)]

    @cached_property
    def state_snapshots(self) -> list[tuple[int, str]]:
        """(index into `steps`, digest of all bound values after it) for each settled step."""
        digests = snapshots(self._program, self._run_id, self.entries)
        return [(index, digests[place]) for index, place in enumerate(self._folded[1].settled)]

    @cached_property
    def replanned(self) -> dict[str, Any] | None:
        """{"run", "head", "program", "number"} of the interrupted run that this one goes on with by a plan: its id, the
        digest of its last entry, its program's hash, and how many plans there have been."""
        first = open_events(self.entries[0])[0] if self.entries else None
        given = getattr(first, "replanned", None)
        return dict(given) if isinstance(given, dict) else None

    @cached_property
    def switch_events(self) -> list[dict[str, Any]]:
        """How model calls left providers, in the order of `steps`: {"step", "occurrence", "item"?, "attempt", "from",
        "to", "reason", "attempts", "error", "at_ms"}."""
        found = []
        for step in self.eventful:
            place: dict[str, Any] = {"step": step.id, "occurrence": step.occurrence}
            if step.item is not None:
                place["item"] = step.item
            found += [{**place, **switch} for switch in step.switches]
        return found

    @cached_property
    def provider_final(self) -> str | None:
        """Who answered the run's last model call, where that was said."""
        answered = None
        for entry in self.entries:
            if b'"provider"' not in entry.facts:  # most entries name none, and need not be read
                continue
            for event in open_events(entry):
                if type(event) is StepSucceeded or type(event) is StepFailed or type(event) is ModelTurned:
                    answered = event.provider or answered
        return answered

    @property
    def rollbacks(self) -> int:
        """How many steps were undone."""
        return self._folded[1].rollbacks

    @cached_property
    def leaves(self) -> list[bytes]:
        """Canonical bytes of the step results in declared order: what `trace_hash` is the root of."""
        return [leaf for _, leaf in sorted(self._folded[1].leaves)]

    @cached_property
    def trace_hash(self) -> str:
        """Merkle root of the step results, for comparing runs."""
        return trace_hash(self._folded[1].leaves)

    @cached_property
    def disclosure_root(self) -> str:
        return disclosure_root(self.entries)

    @property
    def head(self) -> str:
        """Digest of the last entry."""
        return self.entries[-1].digest if self.entries else GENESIS

    def to_dict(self) -> dict[str, Any]:
        """All of it but entries and events, as a JSON object."""
        return {
            "trace_id": self.trace_id,
            "program": {"name": self.program_name, "hash": self.program_hash},
            "status": self.status.value,
            "outcome": self.outcome,
            "error": self.error,
            "waiting": [wait.to_dict() for wait in self.waiting],
            "final_output": self.final_output,
            "outputs": self.outputs,
            "started_at_ms": self.started_at_ms,
            "finished_at_ms": self.finished_at_ms,
            "duration_ms": self.duration_ms,
            "total_tokens": self.total_tokens(),
            "total_cost_usd": self.total_cost_usd(),
            "path": self.path,
            "steps": [step.to_dict() for step in self.steps],
            "replanned": self.replanned,
            "switch_events": self.switch_events,
            "provider_final": self.provider_final,
            "rollbacks": self.rollbacks,
            "incomplete_compensations": self.incomplete_compensations,
            "trace_hash": self.trace_hash,
            "outcome_hash": self.outcome_hash,
            "disclosure_root": self.disclosure_root,
            "entries": len(self.entries),
            "head": self.head,
        }


def _moment(at_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=at_ms)
