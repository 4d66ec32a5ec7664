"""Trajectories: what a run - or anybody's agent - did, in the one form that the instruments read.

A trajectory is a sequence of *moves*. A step of a run is one move for every time it was dispatched, so that retries
show; a condition is one move.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

import msgspec

from nano_vm import canonical
from nano_vm.journal.entry import Entry
from nano_vm.journal.fold import fold
from nano_vm.journal.ledger import Ledger, TraceStep
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import State
from nano_vm.observe.graph import END, START, successors
from nano_vm.program.compiled import CompiledProgram, ToolAction

COUNT_MAX = 2**53 - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]  # of what is read from a file: measures divide by it
MOVES_MAX = 100_000  # of one trajectory; what comes after is left out and `cut` says so


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One move. `activity` names what was done (a step id, a tool), `kind` what sort of thing it is. Times are epoch
    milliseconds, 0 where nobody knows them. `failed`: it did not come to what it was for."""

    activity: str
    kind: str = ""
    started_at_ms: Count = 0
    finished_at_ms: Count = 0
    failed: bool = False
    tokens: Count = 0
    cost_nanousd: Count = 0


class Trajectory(msgspec.Struct, frozen=True, kw_only=True):
    """What one run did.

    Attributes:
        id, source: the run, and what it was recorded by (`nano-vm`, `otel`, …).
        program: hash of the program, or a name for what the run was an instance of; "" when there is none.
        status: the run's status; of other systems SUCCESS, FAILED or "" when nobody knows.
        actions: what every call of a tool was: a digest of the tool and its arguments, equal for equal calls.
        rollbacks: steps that were undone. violations: what was asked for and refused. transitions: journaled events.
        graph: for each activity those that may follow it, where the program says so.
    """

    id: str
    source: str
    program: str = ""
    name: str = ""
    status: str = ""
    started_at_ms: Count = 0
    finished_at_ms: Count = 0
    moves: tuple[Move, ...] = ()
    actions: tuple[str, ...] = ()
    rollbacks: Count = 0
    violations: Count = 0
    transitions: Count = 0
    graph: dict[str, tuple[str, ...]] = {}
    cut: bool = False

    @property
    def path(self) -> list[str]:
        """The activities, in order."""
        return [move.activity for move in self.moves]

    @property
    def ending(self) -> str:
        """How the path ends: `(end)`, with the status unless that is SUCCESS."""
        return END if self.status in ("", "SUCCESS") else f"({self.status})"

    def pairs(self) -> list[tuple[str, str]]:
        """(state, next) for every transition of the path, from the start to the end."""
        places = [START, *self.path, self.ending]
        return list(pairwise(places))


def of_trace(trace: Trace) -> Trajectory:
    """The trajectory of a run, finished or not. Reads its journal once."""
    gathered = _Gathered(trace.program)
    state = fold(trace.program, trace.trace_id, trace.entries, on_transition=gathered.record)
    steps = gathered.ledger.steps(state)
    if trace.program.is_dag:
        # What runs at once settles in any order; the order of the graph is the same every time.
        ranks = {step.id: step.rank for step in trace.program.steps}
        steps.sort(key=lambda step: (ranks[step.id], step.occurrence, -1 if step.item is None else step.item))
    moves = [move for step in steps for move in _moves(step)]
    return Trajectory(
        id=trace.trace_id,
        source="nano-vm",
        program=trace.program_hash,
        name=trace.program_name,
        status=trace.status.value if trace.status.is_terminal else "",
        started_at_ms=trace.started_at_ms,
        finished_at_ms=trace.finished_at_ms or 0,
        moves=tuple(moves[:MOVES_MAX]),
        actions=tuple(gathered.actions),
        rollbacks=gathered.ledger.rollbacks,
        violations=gathered.violations,
        transitions=gathered.transitions,
        graph=successors(trace.program),
        cut=len(moves) > MOVES_MAX,
    )


def _moves(step: TraceStep) -> list[Move]:
    """A step, once for every dispatch. Only the last dispatch may have come to something; it carries the totals."""
    times = min(step.attempts, MOVES_MAX)
    if not times:
        return []  # it was passed over
    last = Move(
        activity=step.id,
        kind=step.type,
        started_at_ms=step.started_at_ms,
        finished_at_ms=step.finished_at_ms or 0,
        failed=step.status.value in ("FAILED", "UNKNOWN"),
        tokens=step.tokens,
        cost_nanousd=step.cost_nanousd,
    )
    # The turns of an agent are dispatches that came to something; those of other steps are retries.
    retried = msgspec.structs.replace(last, failed=step.type != "agent", tokens=0, cost_nanousd=0)
    return [retried] * (times - 1) + [last]


class _Gathered:
    """What is not in the ledger, from the same fold."""

    def __init__(self, program: CompiledProgram) -> None:
        self.program = program
        self.ledger = Ledger(program)
        self.actions: list[str] = []
        self.violations = 0
        self.transitions = 0
        self._requested: dict[tuple[int, int, int], str] = {}

    def record(self, entry: Entry, event: ev.Event, state: State) -> None:
        self.ledger.record(entry, event, state)
        self.transitions += 1
        if _is_violation(event):
            self.violations += 1
        for key in state.ready:
            activity = state.active[key]
            if activity.step >= 0 and type(action := self.program.steps[activity.step].action) is ToolAction:
                place = (activity.step, activity.occurrence, activity.item)
                if place not in self._requested:
                    self._requested[place] = canonical.digest_value([action.tool, activity.request])
        if _is_dispatch(event):
            item = -1 if event.item is msgspec.UNSET else event.item  # type: ignore[union-attr]
            place = (self.program.step_index[event.step], event.occurrence, item)  # type: ignore
            if place in self._requested:
                self.actions.append(self._requested[place])


def _is_dispatch(event: Any) -> bool:
    """A call that was begun: by its intent, or - of a tool without effects, which has none - by its outcome."""
    if type(event) is ev.StepStarted:
        return True
    pure = type(event) in (ev.StepSucceeded, ev.StepPending) and event.pure is True
    return pure or (type(event) is ev.StepFailed and event.pure is True and event.error not in _NOT_CALLED)


# What a call fails with that was refused before it began.
_NOT_CALLED = frozenset({"UNKNOWN_TOOL", "BAD_ARGUMENT", "TAINTED_PARAMETER", "POLICY", "CAPABILITY_DENIED"})


def _is_violation(event: Any) -> bool:
    """Something was asked for and refused."""
    if type(event) is ev.EventRefused:
        return True
    if type(event) is ev.ActionProposed:
        return bool(event.verdict == "rejected")
    return type(event) is ev.StepFailed and event.pure is True and event.error in _NOT_CALLED
