"""Commands: what must happen next. The driver acts; it never decides.

A command's `id` is deterministic - step, occurrence, item, attempt - so that a driver inside another
durable-execution engine can name its effect by it. Values in `args` and `request` may be shared with the
state: hand out copies.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec


class _Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    step: int
    step_id: str
    occurrence: int
    item: int
    attempt: int

    @property
    def id(self) -> str:
        lane = "" if self.item < 0 else f".{self.item}"
        return f"{type(self).__name__}:{self.step_id}#{self.occurrence}{lane}@{self.attempt}"


class CallTool(_Command, frozen=True, kw_only=True):
    tool: str
    args: Any
    business_key: Any = None  # the author's idempotency_key, rendered
    timeout_ms: int = 0


class CallModel(_Command, frozen=True, kw_only=True):
    """`request`: {"messages": [{"role", "content", …}], "model"?, "params"?}; `tools` are those to offer. `private`:
    what is sent or comes back is private or secret, and nobody may keep it."""

    request: Any
    private: bool = False
    tokens_max: int = 0
    tools: tuple[str, ...] = ()
    timeout_ms: int = 0


class JudgeAction(_Command, frozen=True, kw_only=True):
    """Say by ActionProposed whether a call that the model of an agent proposes is made.

    `tool` is the tool, None when the agent may call none of that name; `fault` the reason why it must be rejected,
    whatever anybody says; `lane` the step of its action."""

    action: int
    tool: str | None
    args: Any
    fault: str
    lane: int

    @property
    def id(self) -> str:
        return f"{_Command.id.__get__(self)}!{self.action}"


class StartChild(_Command, frozen=True, kw_only=True):
    """`child` is the run id to use, `program` the pinned hash, `budgets` what is left for it."""

    child: str
    program: str
    inputs: Any
    budgets: dict[str, int]
    depth: int


class StopChild(_Command, frozen=True, kw_only=True):
    """Cancel the child; the parent is ending."""

    child: str


class StartTimer(_Command, frozen=True, kw_only=True):
    """Send TimerFired for this activity at `due_ms` or later."""

    due_ms: int

    @property
    def id(self) -> str:
        # One attempt may have several timers one after the other: a back-off, then a time-out.
        return f"{_Command.id.__get__(self)}!{self.due_ms}"


class AwaitEvent(_Command, frozen=True, kw_only=True):
    """Nothing to do but wait. `kind` as in `Waiting`; `due_ms` is its time-out, 0 without one."""

    kind: str
    due_ms: int = 0


class RequestApproval(_Command, frozen=True, kw_only=True):
    """Put down what a wait approves - the action of another step - and ask for it. `due_ms` is the wait's time-out, 0
    without one."""

    tool: str
    args: Any
    due_ms: int = 0


class Reconcile(_Command, frozen=True, kw_only=True):
    """The outcome of this attempt is unknown: settle it under the tool's contract or wait for somebody."""

    tool: str
    args: Any
    effect: str
    reason: str
    compensation: bool
    business_key: Any = None

    @property
    def id(self) -> str:
        # A step and its compensation share step, occurrence and attempts.
        return f"Undo{_Command.id.__get__(self)}" if self.compensation else _Command.id.__get__(self)


class Compensate(_Command, frozen=True, kw_only=True):
    """Undo a finished step."""

    tool: str
    args: Any


class Finish(_Command, frozen=True, kw_only=True):
    """Send RunFinished with exactly these."""

    status: str
    outcome: str | None
    incomplete: tuple[str, ...]


Command: TypeAlias = (
    CallTool
    | CallModel
    | JudgeAction
    | StartChild
    | StopChild
    | StartTimer
    | AwaitEvent
    | RequestApproval
    | Reconcile
    | Compensate
    | Finish
)
