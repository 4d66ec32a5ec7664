"""The state of one run: plain data, snapshotted and carried as such.

`State` is owned linearly: `apply` consumes the state it is given and returns it changed (or a `Rejection`,
and then it is as it was). Whoever needs to keep one takes a `snapshot`, which copies.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError, VerificationError
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


STATUSES = {status.value: status for status in RunStatus}  # cheaper than calling the enumeration


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


# Up to this phase an activity is busy and the run RUNNING: something is under way or about to be. (Phases are
# compared as the integers they are; a set of enum members would cost a Python call per look-up.)
LAST_BUSY = Phase.BACKOFF

# Members of an enum are looked up through its metaclass; the hot path uses names bound once.
_GOING, _ENDING, _ENDED, _NEW = Stage.GOING, Stage.ENDING, Stage.ENDED, Stage.NEW


class Activity(msgspec.Struct, kw_only=True, gc=False):
    """One occurrence of a step in progress.

    `request` is what was rendered when the step was reached (tool arguments, model request, call inputs); it
    does not change while attempts are repeated, except that a gate appends what was wrong. `due_ms` is the
    timer of a BACKOFF or WAITING activity, or the time-out of a group or child; 0 without one. `error` is the
    type of the last failed attempt. `stopping`: the child has timed out and is to be stopped; its end settles
    the step. `turns` counts the answers of an agent's model, `said` the characters that joined its conversation.

    Invariant: (step, occurrence, item, attempt) names one dispatch and is never used twice.
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
    reserved_steps: int = 0  # by a child
    reserved_tokens: int = 0
    reserved_cost_nanousd: int = 0
    effect: str = ""
    reason: str = ""
    error: str = ""
    stopping: bool = False
    waits: list[dict[str, Any]] | None = None
    group: Group | None = None
    label: int = 0  # of what was rendered, together
    labels: dict[str, int] | None = None  # of its parts by name, where they are not trusted
    declared: str = ""  # what the tool said of its output when it answered PENDING
    turns: int = 0
    said: int = 0
    cleared: int = 0  # the attempt that was decided to be allowed
    ask: dict[str, Any] | None = (
        None  # the approval that is asked for, as ApprovalRequested says, and who gave it
    )


class Group(msgspec.Struct, kw_only=True):
    """The lanes of a parallel or map. Lane numbers are places in declared or input order.

    An agent is a group while there are proposals of its model: `items` holds them, `queue` those not judged yet, and
    lanes are numbered from `first`, on from turn to turn. At most one is in progress; rejected ones stand in `errors`.

    `attempts` keeps how far the attempts of a failed lane went: when the group is retried they count on.

    Invariant: `active` is the number of lanes among the activities; while the group has not timed out and the
    run is going, every lane is in exactly one of `queue`, the activities, `results` and `errors`.
    """

    total: int
    queue: list[int]  # lanes to start, last first
    active: int = 0
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    attempts: dict[int, int] = {}
    items: list[Any] | None = None
    first: int = 0
    timed_out: bool = False
    label: int = 0  # of the results so far, together
    item_label: int = 0  # of each element of `items`
    final: bool = False  # a lane has failed in a way that must not be repeated, so the group is not retried


class Undo(msgspec.Struct, kw_only=True):
    """A compensation that is due if the run ends other than SUCCESS.

    `step` is a step id, or the way to a step of a finished child: `pay/charge`, `pay.2/charge` in the second
    occurrence of the call, `pay.1.4/charge` in lane 4 of a map. (step, occurrence, item) is unique in a run.
    """

    step: str
    occurrence: int
    item: int = -1
    tool: str
    args: Any
    label: int = 0  # of its arguments, together
    labels: dict[str, int] | None = None  # of each, where it is not trusted


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
    action: str = ""  # of an approval that is bound to one: its digest,
    nonce: str = ""  # which an answer names with this,
    tool: str = ""  # and the tool that is to be called

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
        if self.action:
            facts["action"], facts["nonce"], facts["tool"] = self.action, self.nonce, self.tool
        return facts


class Settled(msgspec.Struct, frozen=True, gc=False):
    """What one transition settled: the result of one occurrence of a step. For a condition `output` is the
    verdict.
    """

    step: int
    occurrence: int
    item: int
    status: StepStatus
    output: Any
    error: str
    attempts: int
    entered_ms: int
    substituted: bool
    label: int = 0


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
    "AMBIGUOUS": "several waits could take the event; name the step and the item",
    "INBOX_FULL": "too many early events",
    "OVER_BUDGET": "the reservation does not fit what is left",
    "GATE": "the output is not one that the step admits",
    "MISMATCH": "the request is not the one the program renders",
    "MALFORMED": "the event cannot be read",
    "OVERSIZED": "the event is too large",
    "POLICY": "the policy does not allow it",
    "APPROVAL_VOID": "the approval is for another action, or has been used or replaced",
    "APPROVAL_EXPIRED": "the approval, or the request for it, has expired",
    "SELF_APPROVAL": "another person than this one has to approve",
}


class State(msgspec.Struct, kw_only=True, gc=False):
    """Everything the kernel knows about a run."""

    run: str = ""
    seq: int = 0  # events applied
    stage: Stage = Stage.NEW
    slots: list[Any] = []
    active: dict[int, Activity] = {}  # by activity key; insertion order is the order of entering
    ready: dict[int, None] = {}  # keys of READY activities, in order
    busy: int = 0  # activities in a BUSY phase
    occurrences: list[int] = []
    actions: dict[int, int] = {}  # by agent: how many actions its occurrence has had proposed
    # budgets: what holds for this run, and what is spent
    steps_max: int = 0
    tokens_max: int = 0
    stalled_steps_max: int = 0
    cost_nanousd_max: int = 0
    duration_ms_max: int = 0
    steps: int = 0
    tokens: int = 0
    cost_nanousd: int = 0
    reserved_steps: int = 0
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
    last_output: Any = None  # the run's final output so far
    last_label: int = 0  # its label
    last_rank: int = -1  # rank of the step it came from (DAG: the highest rank wins, whatever finished last)
    # outside events
    inbox: list[dict[str, Any]] = []
    seen: dict[str, str] = {}  # event id -> digest of its content
    parked: dict[int, None] = {}  # keys of activities that wait for a timer, an event or a resolution
    # start
    depth: int = 0
    fork_seq: int = 0
    programs: dict[str, str] = {}
    labels: list[int] | None = None  # by slot, in runs that track labels
    pins: dict[
        int, list[tuple[str, ...]]
    ] = {}  # by slot: paths to what a guard has pinned down since it was bound
    # governance
    policy: str = ""  # hash of the policy the run is pinned to
    governed: bool = False  # whether anything needs a decision before it is dispatched
    undo_cleared: int = 0  # the attempt of the compensation that was decided to be allowed
    grants: dict[int, dict[str, Any]] = {}  # approvals that were given and not used up, by activity key
    # declarative DAG
    unmet: list[int] = []
    taken: list[bool] = []
    # what the last transition settled
    settled: list[Settled] = []
    verdicts: list[Any] = []
    label: int = 0  # of the payload that the last event had

    @property
    def status(self) -> RunStatus:
        if self.stage is _ENDED:
            return STATUSES[self.ending]
        if not self.busy and self.active and self.stage is not _NEW:
            return RunStatus.SUSPENDED
        return RunStatus.RUNNING


# What a snapshot holds in an order of its own: JSON objects have none.
_ORDERED = ("active", "ready", "parked", "seen")


def snapshot(state: State) -> bytes:
    """The state as canonical JSON: independent of `state`, byte-identical for equal states.

    `settled`, `verdicts` and `label` describe the last transition, not the state, and are left out. Order that matters
    (of activities, of what is ready, of event ids) is kept by writing these tables as arrays of pairs.
    """
    plain: dict[str, Any] = msgspec.structs.asdict(state)
    del plain["settled"], plain["verdicts"], plain["label"]
    for name in _ORDERED:
        plain[name] = [[key, value] for key, value in plain[name].items()]
    plain["slots"] = {str(i): value for i, value in enumerate(state.slots) if value is not UNSET}
    plain["slot_count"] = len(state.slots)
    return canonical.encode(msgspec.to_builtins(plain, str_keys=True))


def restore(data: bytes) -> State:
    """The state that `snapshot` wrote.

    Raises:
        VerificationError: STATE_MALFORMED when `data` is no snapshot.
    """
    try:
        plain = canonical.decode(data)
        filled = plain.pop("slots")
        slots: list[Any] = [UNSET] * plain.pop("slot_count")
        for index, value in filled.items():
            slots[int(index)] = value
        tables = {name: plain.pop(name) for name in _ORDERED}
        state = msgspec.convert(plain, State, str_keys=True)
        for name, kind in zip(_ORDERED, (Activity, None, None, str), strict=True):
            pairs = [(key, msgspec.convert(value, kind, str_keys=True)) for key, value in tables[name]]
            setattr(state, name, dict(pairs))
    except (
        NanoVMError,
        msgspec.ValidationError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise VerificationError(
            "STATE_MALFORMED", f"the snapshot cannot be read: {type(error).__name__}"
        ) from None
    state.slots = slots
    return state


def activity_key(step: int, item: int) -> int:
    """Key of an activity: a step is in progress at most once, a map lane once per item. That of a
    compensation is -1, whatever its item."""
    return step if item < 0 else (item + 1) << 24 | step


COMPENSATION_KEY = -1  # step and key of the compensation in progress
