"""The state of one run: plain data, snapshotted and carried as such.

`State` is owned linearly: `apply` consumes the state it is given and returns it changed (or a `Rejection`, and then it
is as it was). Whoever needs to keep one takes a `snapshot`, which copies.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.expr.reference import UNSET


class RunStatus(StrEnum):
    """Status of a run. All but RUNNING and SUSPENDED are terminal and absorbing."""

    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    STALLED = "STALLED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self not in (RunStatus.RUNNING, RunStatus.SUSPENDED)


class StepStatus(StrEnum):
    """Status of one occurrence of a step."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    UNKNOWN = "UNKNOWN"


class Stage(IntEnum):
    """Where a run is in its life."""

    NEW = 0  # before RunStarted
    GOING = 1  # taking steps
    ENDING = 2  # a terminal status is decided; effects settle, compensations run
    ENDED = 3


class Phase(IntEnum):
    """Where an activity is."""

    READY = 0  # to be dispatched
    STARTED = 1  # intent journaled; the outcome is awaited
    BACKOFF = 2  # failed; waits for its timer
    WAITING = 3  # for an event, an approval, a timer, or the answer to PENDING
    UNKNOWN = 4  # dispatched, outcome unknown
    CHILD_WAITING = 5  # its child run is suspended
    GROUP = 6  # a parallel or map whose lanes are activities of their own


# While an activity is in one of these phases the run is RUNNING: something is under way or about to be.
BUSY = frozenset({Phase.READY, Phase.STARTED, Phase.BACKOFF})


class Activity(msgspec.Struct, kw_only=True):
    """One occurrence of a step in progress.

    `request` is what was rendered when the step was reached (tool arguments, model request, call inputs); it does not
    change while attempts are repeated, except that a gate appends what was wrong. `due_ms` is the timer of a BACKOFF
    or WAITING activity, or the time-out of a group or child; 0 without one.
    """

    step: int
    occurrence: int
    item: int = -1
    attempt: int = 1
    failures: int = 0
    phase: Phase = Phase.READY
    due_ms: int = 0
    entered_ms: int = 0
    request: Any = None
    business_key: Any = None
    reserved_tokens: int = 0
    reserved_cost_nanousd: int = 0
    effect: str = ""
    reason: str = ""
    waits: list[dict[str, Any]] = []
    group: Group | None = None


class Group(msgspec.Struct, kw_only=True):
    """The lanes of a parallel or map. Lane numbers are places in declared or input order."""

    total: int
    queue: list[int]  # lanes to start, last first
    active: int = 0
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    items: list[Any] | None = None
    timed_out: bool = False


class Undo(msgspec.Struct, kw_only=True):
    """A compensation that is due if the run ends other than SUCCESS. `path` names the step, through children."""

    step: str
    occurrence: int
    item: int = -1
    tool: str
    args: Any


class Waiting(msgspec.Struct, kw_only=True, frozen=True):
    """One thing a SUSPENDED run waits for. `kind`: event, approval, timer, tool, outcome or child."""

    kind: str
    step: str
    occurrence: int
    item: int | None = None
    attempt: int = 1
    event: str | None = None
    approvers: tuple[str, ...] = ()
    due_ms: int = 0
    reason: str = ""
    waits: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "kind": self.kind,
            "step": self.step,
            "occurrence": self.occurrence,
            "attempt": self.attempt,
        }
        if self.item is not None:
            facts["item"] = self.item
        if self.event is not None:
            facts["event"] = self.event
        if self.approvers:
            facts["approvers"] = list(self.approvers)
        if self.due_ms:
            facts["due_ms"] = self.due_ms
        if self.reason:
            facts["reason"] = self.reason
        if self.waits:
            facts["waits"] = list(self.waits)
        return facts


class Settled(msgspec.Struct, frozen=True, gc=False):
    """What one transition settled: the result of one occurrence of a step. For a condition `output` is the verdict."""

    step: int
    occurrence: int
    item: int
    status: StepStatus
    output: Any
    error: str
    attempts: int
    entered_ms: int
    substituted: bool


class Rejection(msgspec.Struct, frozen=True):
    """Why an event is not admissible here. `code` is one of `REJECTIONS`."""

    code: str
    message: str


REJECTIONS: dict[str, str] = {
    "OUT_OF_ORDER": "the event does not belong to what the run is doing now",
    "DUPLICATE": "the same event was accepted before; its answer stands",
    "EVENT_CONFLICT": "the event id was used before with other content",
    "UNKNOWN_STEP": "the program has no such step",
    "TERMINAL": "the run has ended",
    "STALE_ATTEMPT": "another attempt or occurrence is current",
    "NOT_WAITING": "nothing waits for this event and no wait declares it",
    "NOT_ACCEPTED": "the wait's `accept` expression does not hold for the event",
    "NOT_APPROVER": "the principal holds none of the wait's roles",
    "NOT_APPROVAL": "an approval needs an object with a boolean `approved`",
    "INBOX_FULL": "too many early events",
    "OVER_BUDGET": "the reservation does not fit what is left",
    "GATE": "the output is not one that the step admits",
    "MISMATCH": "the request is not the one the program renders",
    "MALFORMED": "the event cannot be read",
    "OVERSIZED": "the event is too large",
    "POLICY": "the policy does not allow it",
}


class State(msgspec.Struct, kw_only=True):
    """Everything the kernel knows about a run."""

    run: str = ""
    seq: int = 0  # events applied
    stage: Stage = Stage.NEW
    slots: list[Any] = []
    active: dict[int, Activity] = {}  # by activity key; insertion order is the order of entering
    ready: dict[int, None] = {}  # keys of READY activities, in order
    busy: int = 0  # activities in a BUSY phase
    occurrences: list[int] = []
    # budgets: what holds for this run, and what is spent
    steps_max: int = 0
    tokens_max: int = 0
    stalled_steps_max: int = 0
    cost_nanousd_max: int = 0
    duration_ms_max: int = 0
    steps: int = 0
    tokens: int = 0
    cost_nanousd: int = 0
    reserved_tokens: int = 0
    reserved_cost_nanousd: int = 0
    stalled: int = 0
    started_ms: int = 0
    now_ms: int = 0
    suspended_ms: int = 0
    # ending
    ending: str = ""
    outcome: str | None = None
    error: dict[str, Any] | None = None  # {"type", "step", …} of what ended the run other than SUCCESS
    undo: list[Undo] = []
    incomplete: list[str] = []
    last_output: Any = None
    # outside events
    inbox: list[dict[str, Any]] = []
    seen: dict[str, str] = {}  # event id -> digest of its content
    parked: dict[int, None] = {}  # keys of activities that wait for a timer, an event or a resolution
    # start
    depth: int = 0
    fork_seq: int = 0
    programs: dict[str, str] = {}
    # declarative DAG
    unmet: list[int] = []
    taken: list[bool] = []
    # what the last transition settled
    settled: list[Settled] = []
    verdicts: list[Any] = []

    @property
    def status(self) -> RunStatus:
        if self.stage == Stage.ENDED:
            return RunStatus(self.ending)
        if self.stage != Stage.NEW and not self.busy and self.active:
            return RunStatus.SUSPENDED
        return RunStatus.RUNNING


def snapshot(state: State) -> bytes:
    """The state as canonical JSON: independent of `state`, byte-identical for equal states."""
    plain = msgspec.to_builtins(state, builtin_types=(bytes,), enc_hook=_plain, str_keys=True)
    del plain["settled"], plain["verdicts"]  # they describe the last transition, not the state
    plain["slots"] = {str(i): value for i, value in enumerate(state.slots) if value is not UNSET}
    plain["slot_count"] = len(state.slots)
    return canonical.encode(plain)


def restore(data: bytes) -> State:
    """The state that `snapshot` wrote."""
    plain = canonical.decode(data)
    filled = plain.pop("slots")
    slots: list[Any] = [UNSET] * plain.pop("slot_count")
    for index, value in filled.items():
        slots[int(index)] = value
    state = msgspec.convert(plain, State, str_keys=True)
    state.slots = slots
    return state


def _plain(value: Any) -> Any:
    if value is UNSET:
        return None
    raise TypeError(f"{type(value).__name__} is not plain data")


def activity_key(step: int, item: int) -> int:
    """Key of an activity: a step is in progress at most once, a map lane once per item."""
    return step if item < 0 else (item + 1) << 24 | step


COMPENSATION_KEY = -1  # the compensation in progress
