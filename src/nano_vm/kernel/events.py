"""Events: the closed set of facts a run is made of.

Everything nondeterministic - time, outputs, usage, errors, who - arrives in an event; folding the same events
gives the same state anywhere. A struct holds *facts* (clear, hashed whole, never personal data) and one
`payload`, which the journal stores apart under a salted commitment so that it can be erased. Fields are
alphabetical and those left `UNSET` are not encoded: the plain JSON encoding of a struct without its payload
is therefore its RFC 8785 form (facts hold no floats). `spec/transition.md` says what each event does in each
state.

Common fields: `at_ms` - epoch milliseconds when it happened, as seen by the driver; `step` - step id;
`occurrence` - how often the run has come to that step (1-based); `item` - index of a map lane; `attempt` -
1-based, rises with every dispatch; money is in nano-dollars; `label` - label of the payload (of an intent: of what
it requests), in runs that track labels and where it is not 0.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec
from msgspec import UNSET as UNSET
from msgspec import UnsetType as UnsetType

from nano_vm.canonical import INT_MAX

Int: TypeAlias = Annotated[int, msgspec.Meta(ge=-INT_MAX, le=INT_MAX)]  # others are not read alike everywhere
Principal: TypeAlias = dict[str, Any]  # {"id": str, "roles": [str], "tenant": str}


class _Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Base of all events; `type` is the name it has in the journal."""

    type: ClassVar[str] = ""


class Switch(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"origin": "from"}
):
    """A model call left one provider for another. The kernel records it and makes nothing of it.

    `reason`: "RetryLimitExceeded" - it answered, `attempts` times, with nothing usable - or "ProviderUnavailable" - it
    did not answer, does not admit us, or was not asked (`attempts` 0). `error` is the code of the last attempt's error,
    or CIRCUIT_OPEN or RATE_LIMITED.
    """

    attempts: Int
    error: str
    origin: str
    reason: str
    to: str


class RunStarted(_Event, kw_only=True):
    """First entry of every run. Payload: the inputs (object)."""

    type: ClassVar[str] = "RunStarted"

    at_ms: Int
    budgets: dict[str, Int] | UnsetType = (
        UNSET  # what a parent has left: steps, tokens, cost_nanousd, duration_ms
    )
    depth: Int | UnsetType = UNSET  # how deep in a tree of calls; absent at the top
    features: list[str] | UnsetType = UNSET  # named kernel changes this run was made under
    forked: dict[str, Any] | UnsetType = (
        UNSET  # {"run", "seq", "head", "before"?} of the run whose prefix follows
    )
    key: str | UnsetType = UNSET  # the caller's run idempotency key, digested
    label: Int | UnsetType = UNSET
    labels: dict[str, Int] | UnsetType = UNSET  # of inputs, as the parent had them; trusted ones are left out
    parent: dict[str, Any] | UnsetType = UNSET  # {"run", "step", "occurrence", "item"?}
    payload: Any = UNSET
    policy: str | UnsetType = UNSET  # "sha256:…" of the policy this run is pinned to
    principal: Principal | UnsetType = UNSET
    program: str  # "sha256:…"
    programs: dict[str, str] | UnsetType = UNSET  # called program -> hash, pinned for the whole tree
    replanned: dict[str, Any] | UnsetType = (
        UNSET  # {"run", "head", "program", "number"}: what this goes on with
    )
    verdicts: list[Any] | UnsetType = UNSET


class StepStarted(_Event, kw_only=True):
    """Intent: the effect of this attempt may begin once this is durable. Payload: the rendered request."""

    type: ClassVar[str] = "StepStarted"

    at_ms: Int
    attempt: Int
    effect: str | UnsetType = UNSET  # effect class the tool was dispatched under
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    opens: list[str] | UnsetType = UNSET  # references of the secrets that the call is given
    payload: Any = UNSET
    reserved_cost_nanousd: Int | UnsetType = UNSET
    reserved_tokens: Int | UnsetType = UNSET
    step: str


class StepSucceeded(_Event, kw_only=True):
    """The attempt's result. Payload: the output. `pure` marks a tool without effects, which needs no intent;
    `substituted` a fallback value; `cached` an answer that was not paid for; `declared` what the tool says its
    output counts as. `provider` is who answered a model call, `switches` how it came to that."""

    type: ClassVar[str] = "StepSucceeded"

    at_ms: Int
    attempt: Int
    cached: bool | UnsetType = UNSET
    cost_nanousd: Int | UnsetType = UNSET
    declared: str | UnsetType = UNSET
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    model: str | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    provider: str | UnsetType = UNSET
    pure: bool | UnsetType = UNSET
    step: str
    substituted: bool | UnsetType = UNSET
    switches: list[Switch] | UnsetType = UNSET
    tokens_in: Int | UnsetType = UNSET
    tokens_out: Int | UnsetType = UNSET
    verdicts: list[Any] | UnsetType = UNSET


class StepFailed(_Event, kw_only=True):
    """The attempt failed, and we know it. Payload: {"message", …} for the author, never for a model. `pure`
    says that nothing was dispatched: no intent is needed.

    `draw` is a random number in [0, 1_000_000) from which the kernel computes the jittered back-off."""

    type: ClassVar[str] = "StepFailed"

    at_ms: Int
    attempt: Int
    cost_nanousd: Int | UnsetType = UNSET
    draw: Int
    error: str  # error type: a stable code or the exception's class name
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    model: str | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    provider: str | UnsetType = UNSET
    pure: bool | UnsetType = UNSET
    retryable: bool
    step: str
    switches: list[Switch] | UnsetType = UNSET
    tokens_in: Int | UnsetType = UNSET
    tokens_out: Int | UnsetType = UNSET
    verdicts: list[Any] | UnsetType = UNSET


class ModelTurned(_Event, kw_only=True):
    """The model of an agent has answered, and the conversation goes on: it proposes calls, or is told why its answer
    is of no use. Payload: {"text", "calls": [{"id", "name", "arguments", "fault"?}], "feedback"?: [message]}.

    `arguments` is the object that the model wrote, or - when what it wrote is none - that text; `fault` a reason why
    the call cannot be admitted, whatever it is. `proposals` is the number of calls, `dropped` of those that were too
    many to be considered."""

    type: ClassVar[str] = "ModelTurned"

    at_ms: Int
    attempt: Int
    cached: bool | UnsetType = UNSET
    cost_nanousd: Int | UnsetType = UNSET
    dropped: Int | UnsetType = UNSET
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    model: str | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    proposals: Int
    provider: str | UnsetType = UNSET
    step: str
    switches: list[Switch] | UnsetType = UNSET
    tokens_in: Int | UnsetType = UNSET
    tokens_out: Int | UnsetType = UNSET
    verdicts: list[Any] | UnsetType = UNSET


class ActionProposed(_Event, kw_only=True):
    """A call that the model of an agent proposes, and whether it is made. `action` numbers the proposals of the
    occurrence from 0; the accepted one is a lane with that number as its item. `tool` is there when the agent may call
    it. `verdict`: accepted or rejected, then with a `reason`. Payload of a rejection: {"message"}, for the model.

    `decided` is there when a policy denies it: {"policy", "reason", "rule"}, and "current", "counts" and "detail" as
    `PolicyDecided` has them."""

    type: ClassVar[str] = "ActionProposed"

    action: Int
    at_ms: Int
    attempt: Int
    decided: dict[str, Any] | UnsetType = UNSET
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    reason: str | UnsetType = UNSET
    step: str
    tool: str | UnsetType = UNSET
    verdict: str
    verdicts: list[Any] | UnsetType = UNSET


class StepPending(_Event, kw_only=True):
    """The tool answered PENDING: the run waits for an event whose payload becomes the step's output."""

    type: ClassVar[str] = "StepPending"

    at_ms: Int
    attempt: Int
    declared: str | UnsetType = UNSET
    item: Int | UnsetType = UNSET
    occurrence: Int
    pure: bool | UnsetType = UNSET
    step: str
    verdicts: list[Any] | UnsetType = UNSET  # of what follows a group that has timed out


class OutcomeUnknown(_Event, kw_only=True):
    """Dispatched, and nobody knows whether it happened. `reason`: CRASH, TIMEOUT, CONNECTION, CANCELLED, or the code
    that the tool itself gave to its not knowing."""

    type: ClassVar[str] = "OutcomeUnknown"

    at_ms: Int
    attempt: Int
    compensation: bool | UnsetType = UNSET
    effect: str
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    reason: str
    step: str


class OutcomeResolved(_Event, kw_only=True):
    """What became of an unknown outcome. `resolution`: "succeeded" (payload: the output), "failed" (payload:
    {"message"}), "repeat" (the declared contract allows, or somebody vouches, that it is done again)."""

    type: ClassVar[str] = "OutcomeResolved"

    at_ms: Int
    attempt: Int
    by: str  # "contract", "reconcile" or "operator"
    compensation: bool | UnsetType = UNSET
    declared: str | UnsetType = UNSET
    draw: Int | UnsetType = UNSET
    error: str | UnsetType = UNSET
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    principal: Principal | UnsetType = UNSET
    resolution: str
    step: str
    verdicts: list[Any] | UnsetType = UNSET


class TimerFired(_Event, kw_only=True):
    """A timer is due: a back-off, a `wait`, or the time-out of a wait, a group or a child."""

    type: ClassVar[str] = "TimerFired"

    at_ms: Int
    attempt: Int
    item: Int | UnsetType = UNSET
    occurrence: Int
    step: str
    verdicts: list[Any] | UnsetType = UNSET


class EventReceived(_Event, kw_only=True):
    """Something from outside: an event, an approval, the answer to a PENDING tool. Payload: its data.

    `step` (and, for a map, `item`) says which wait is meant; `name` which kind of event it is."""

    type: ClassVar[str] = "EventReceived"

    at_ms: Int
    event_id: str
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    name: str | UnsetType = UNSET
    payload: Any = UNSET
    principal: Principal | UnsetType = UNSET
    step: str | UnsetType = UNSET
    verdicts: list[Any] | UnsetType = UNSET


class EventRefused(_Event, kw_only=True):
    """An event that was not admissible, kept as evidence. Changes nothing; may follow a terminal status."""

    type: ClassVar[str] = "EventRefused"

    at_ms: Int
    code: str
    event_id: str
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    name: str | UnsetType = UNSET
    payload: Any = UNSET
    principal: Principal | UnsetType = UNSET
    step: str | UnsetType = UNSET


class ChildStarted(_Event, kw_only=True):
    """Intent to run a child. `child` is its run id, derived from ours. Reserved is what the child may spend of
    our budgets."""

    type: ClassVar[str] = "ChildStarted"

    at_ms: Int
    attempt: Int
    child: str
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    program: str
    reserved_cost_nanousd: Int | UnsetType = UNSET
    reserved_steps: Int | UnsetType = UNSET
    reserved_tokens: Int | UnsetType = UNSET
    step: str


class ChildSuspended(_Event, kw_only=True):
    """The child waits for something. `waits`: what, as `Waiting` facts of the child."""

    type: ClassVar[str] = "ChildSuspended"

    at_ms: Int
    attempt: Int
    item: Int | UnsetType = UNSET
    occurrence: Int
    step: str
    waits: list[dict[str, Any]]


class ChildResumed(_Event, kw_only=True):
    """The child goes on."""

    type: ClassVar[str] = "ChildResumed"

    at_ms: Int
    attempt: Int
    item: Int | UnsetType = UNSET
    occurrence: Int
    step: str


class ChildFinished(_Event, kw_only=True):
    """The child has ended. Payload: {"output", "compensations"}; `head` is the digest of its last entry.
    `output_label` and `undo_label` are the labels of both."""

    type: ClassVar[str] = "ChildFinished"

    at_ms: Int
    attempt: Int
    cost_nanousd: Int | UnsetType = UNSET
    head: str
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    output_label: Int | UnsetType = UNSET
    payload: Any = UNSET
    status: str
    step: str
    steps: Int
    tokens: Int | UnsetType = UNSET
    undo_label: Int | UnsetType = UNSET
    verdicts: list[Any] | UnsetType = UNSET


class RunCancelled(_Event, kw_only=True):
    """Somebody asked for the run to end. Payload: {"reason"}."""

    type: ClassVar[str] = "RunCancelled"

    at_ms: Int
    payload: Any = UNSET
    principal: Principal | UnsetType = UNSET


class BudgetExhausted(_Event, kw_only=True):
    """The next call's worst case does not fit what is left of `budget` (tokens, cost_nanousd or steps)."""

    type: ClassVar[str] = "BudgetExhausted"

    at_ms: Int
    budget: str
    left: Int
    needed: Int
    step: str


class RunAdopted(_Event, kw_only=True):
    """Another worker took the run over. `fence` rises with every owner; the old owner's appends collide with
    this entry."""

    type: ClassVar[str] = "RunAdopted"

    at_ms: Int
    fence: Int


class Erased(_Event, kw_only=True):
    """Payloads of this run have been erased: the data keys they were sealed under are destroyed. Changes nothing; may
    follow a terminal status. `recall` has by sequence number what the kernel had found in them - how many elements a
    list had, that an event was accepted - so that the journal can still be folded."""

    type: ClassVar[str] = "Erased"

    at_ms: Int
    erasure: str
    keys: list[str]
    principal: Principal | UnsetType = UNSET
    reason: str
    recall: dict[str, Any] | UnsetType = UNSET
    target: str | UnsetType = UNSET


class ValuesChanged(_Event, kw_only=True):
    """Only in a fork, right after the shared prefix. Payload: name -> new value."""

    type: ClassVar[str] = "ValuesChanged"

    at_ms: Int
    early: bool | UnsetType = UNSET  # the prefix has one event more, which the values are changed before
    label: Int | UnsetType = UNSET
    names: list[str]
    payload: Any = UNSET
    principal: Principal | UnsetType = UNSET
    verdicts: list[Any] | UnsetType = UNSET


class CompensationStarted(_Event, kw_only=True):
    """Intent to undo a finished step. Payload: the rendered arguments."""

    type: ClassVar[str] = "CompensationStarted"

    at_ms: Int
    attempt: Int
    effect: str | UnsetType = UNSET
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    opens: list[str] | UnsetType = UNSET
    payload: Any = UNSET
    step: str


class CompensationSucceeded(_Event, kw_only=True):
    """Payload: what the compensating tool returned."""

    type: ClassVar[str] = "CompensationSucceeded"

    at_ms: Int
    attempt: Int
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    step: str


class CompensationFailed(_Event, kw_only=True):
    """Payload: {"message"}."""

    type: ClassVar[str] = "CompensationFailed"

    at_ms: Int
    attempt: Int
    draw: Int
    error: str
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    occurrence: Int
    payload: Any = UNSET
    retryable: bool
    step: str


class PolicyDecided(_Event, kw_only=True):
    """What was decided about an attempt before it was dispatched: `decision` allow, ask or deny, by `rule` of
    `policy` (absent: the program itself asks for an approval; where no `action` is named either, that the run is pinned
    to), for the `reason` in spec/policy.md.

    `action` is the digest of what is to be done, `schema` that of the tool's definition; `approval` the nonce of the
    approval that covers it; `counts` what the decision saw: [key, so far, added]. `current` is the policy in force
    where it is not the one the run is pinned to: both have decided."""

    type: ClassVar[str] = "PolicyDecided"

    action: str | UnsetType = UNSET
    approval: str | UnsetType = UNSET
    at_ms: Int
    attempt: Int
    compensation: bool | UnsetType = UNSET
    counts: list[list[Any]] | UnsetType = UNSET
    current: str | UnsetType = UNSET
    decision: str
    detail: str | UnsetType = UNSET
    item: Int | UnsetType = UNSET
    model: str | UnsetType = UNSET
    occurrence: Int
    policy: str | UnsetType = UNSET
    reason: str
    rule: str
    schema: str | UnsetType = UNSET
    step: str
    tool: str | UnsetType = UNSET


class ApprovalRequested(_Event, kw_only=True):
    """Somebody is asked to approve one exact action. Payload: what approvers are shown.

    `action` digests tool, definition (`schema`), arguments and policy. An approver holds one role of each list in
    `roles`; `count` different people must approve until `due_ms`, which also ends what was approved. `rules` are the
    rules that it satisfies. `reason` says why an earlier approval does not serve."""

    type: ClassVar[str] = "ApprovalRequested"

    action: str
    at_ms: Int
    attempt: Int
    count: Int | UnsetType = UNSET
    due_ms: Int
    four_eyes: bool | UnsetType = UNSET
    item: Int | UnsetType = UNSET
    label: Int | UnsetType = UNSET
    nonce: str
    occurrence: Int
    payload: Any = UNSET
    policy: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    roles: list[list[str]]
    rules: list[str]
    schema: str
    step: str
    tool: str


class RunFinished(_Event, kw_only=True):
    """The terminal status. `incomplete` names steps whose compensation did not succeed."""

    type: ClassVar[str] = "RunFinished"

    at_ms: Int
    incomplete: list[str] | UnsetType = UNSET
    outcome: str | UnsetType = UNSET
    status: str


Event: TypeAlias = (
    RunStarted
    | StepStarted
    | StepSucceeded
    | StepFailed
    | ModelTurned
    | ActionProposed
    | StepPending
    | OutcomeUnknown
    | OutcomeResolved
    | TimerFired
    | EventReceived
    | EventRefused
    | ChildStarted
    | ChildSuspended
    | ChildResumed
    | ChildFinished
    | RunCancelled
    | BudgetExhausted
    | RunAdopted
    | Erased
    | ValuesChanged
    | CompensationStarted
    | CompensationSucceeded
    | CompensationFailed
    | PolicyDecided
    | ApprovalRequested
    | RunFinished
)

EVENT_TYPES: dict[str, type[Event]] = {
    kind.type: kind
    for kind in (
        RunStarted,
        StepStarted,
        StepSucceeded,
        StepFailed,
        ModelTurned,
        ActionProposed,
        StepPending,
        OutcomeUnknown,
        OutcomeResolved,
        TimerFired,
        EventReceived,
        EventRefused,
        ChildStarted,
        ChildSuspended,
        ChildResumed,
        ChildFinished,
        RunCancelled,
        BudgetExhausted,
        RunAdopted,
        Erased,
        ValuesChanged,
        CompensationStarted,
        CompensationSucceeded,
        CompensationFailed,
        PolicyDecided,
        ApprovalRequested,
        RunFinished,
    )
}
# Named changes of the kernel that a run may have been made under; a run naming another one is refused.
FEATURES: frozenset[str] = frozenset({"labels"})
ANNEX_TYPES = frozenset({"EventRefused", "RunAdopted", "Erased"})  # what may follow a terminal status
