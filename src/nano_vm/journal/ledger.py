"""The step results of a run, gathered while its journal is folded.

A `Ledger` listens to a fold (`on_transition`) and keeps one `TraceStep` per occurrence of a step, with
everything all its attempts have cost, the rejected ones included.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from nano_vm import canonical
from nano_vm.journal.answers import Answer
from nano_vm.journal.entry import Entry
from nano_vm.journal.results import Order, leaf_of, order_of, own
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Activity, Phase, Settled, State, StepStatus
from nano_vm.program.compiled import CompiledProgram, CompiledStep, Kind

NANO = 1_000_000_000
_SUCCESS, _FAILED = StepStatus.SUCCESS, StepStatus.FAILED

Place: TypeAlias = tuple[int, int, int]
"""(step index, occurrence, item or -1): one occurrence of a step, or one lane of a map."""

_Plain: TypeAlias = tuple[CompiledStep, bytes, Any, int, int]
"""A success of which there is no more to say, until somebody asks for its `TraceStep`: the step, its output as it is
written, the output itself (shared with the run) or a condition's verdict, and when it was entered and settled."""


_LEAF = b'{"occurrence":%d,"output":%b,"status":"SUCCESS","step":"%b"}'
_VERDICT_LEAF = b'{"occurrence":%d,"status":"SUCCESS","step":"%b","verdict":%b}'


class Usage(msgspec.Struct, frozen=True):
    """What the model calls of a step used, under the names of the usual model interfaces."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: float


class TraceStep(msgspec.Struct, kw_only=True):
    """One occurrence of a step. A status of UNKNOWN says that it was dispatched and nobody knows whether it
    happened. Times are epoch milliseconds, money is in nano-dollars.

    `attempts` counts dispatches (0 for a step that was never taken), `failures` lists the attempts that
    failed: {"attempt", "error", "message", "at_ms"}. `error` is {"type", "message", "attempts"} of a step
    that failed for good. `tokens` is what counts against budgets: input and output tokens, a child's, and
    the reservation of calls whose outcome is unknown. `provider` answered the last model call; `switches`
    lists how calls left providers: {"attempt", "from", "to", "reason", "attempts", "error", "at_ms"}.

    Of an agent, `turns` counts the answers of its model so far, `proposals` lists the calls that it proposed:
    {"action", "turn", "tool", "verdict", "reason"}. `tool` is None when the agent may not call what was named. An
    accepted one has a step of its own, `agent.tool` with the action's number as its item.
    """

    id: str
    type: str
    occurrence: int
    item: int | None = None
    status: StepStatus
    output: Any = None
    verdict: bool | None = None
    error: dict[str, Any] | None = None
    attempts: int = 0
    failures: list[dict[str, Any]] = []
    started_at_ms: int
    finished_at_ms: int | None = None
    duration_ms: float = 0.0
    tokens: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_nanousd: int = 0
    model: str | None = None
    cached: bool = False
    provider: str | None = None
    switches: list[dict[str, Any]] = []
    substituted: bool = False
    turns: int = 0
    proposals: list[dict[str, Any]] = []

    @property
    def step_id(self) -> str:
        return self.id

    @property
    def retries(self) -> int:
        """Attempts after the first."""
        return max(self.attempts - 1, 0)

    @property
    def cost_usd(self) -> float:
        return self.cost_nanousd / NANO

    @property
    def usage(self) -> Usage:
        return Usage(self.tokens_in, self.tokens_out, self.tokens, self.cost_usd)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object with all of it; the output is shared with the step."""
        plain: dict[str, Any] = msgspec.structs.asdict(self)
        plain["status"] = self.status.value
        plain["retries"] = self.retries
        plain["cost_usd"] = self.cost_usd
        if self.type != "agent":
            del plain["turns"], plain["proposals"]
        return plain


class _Account(msgspec.Struct):
    """What is known of an occurrence before it has settled."""

    tokens: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_nanousd: int = 0
    model: str | None = None
    cached: bool = False
    provider: str | None = None
    failures: list[dict[str, Any]] = []
    switches: list[dict[str, Any]] = []
    turns: int = 0
    proposals: list[dict[str, Any]] = []


_OF_A_STEP = frozenset(
    {
        ev.StepStarted,
        ev.StepSucceeded,
        ev.StepFailed,
        ev.ModelTurned,
        ev.StepPending,
        ev.OutcomeUnknown,
        ev.OutcomeResolved,
        ev.ChildStarted,
        ev.ChildSuspended,
        ev.ChildResumed,
        ev.ChildFinished,
    }
)


class Ledger:
    """Listens to one fold of one run's journal: `fold(..., on_transition=ledger.record)`."""

    def __init__(self, program: CompiledProgram) -> None:
        self.program = program
        self.rollbacks = 0
        self._settled: dict[Place, TraceStep | _Plain] = {}
        self._leaves: dict[Place, tuple[Order, bytes]] = {}  # but for the plain ones
        self._lanes: dict[tuple[int, int], set[Place]] = {}  # (group, occurrence) -> lanes that have settled
        self._accounts: dict[Place, _Account] = {}
        self._tokens = 0
        self._cost_nanousd = 0

    def record(self, entry: Entry, event: ev.Event, state: State) -> None:
        """Take note of one transition."""
        if type(event) in _OF_A_STEP:
            if getattr(event, "compensation", None) is True:
                if type(event) is ev.OutcomeResolved and event.resolution == "succeeded":
                    self.rollbacks += 1
            else:
                self._account(event, state)
        elif type(event) is ev.CompensationSucceeded:
            self.rollbacks += 1
        elif type(event) is ev.ActionProposed:
            self._propose(event)
        for settled in state.settled:
            self._settle(settled, state.now_ms, state)

    def succeed(
        self, step: CompiledStep, occurrence: int, value: Any, payload: bytes, entered_ms: int, at_ms: int
    ) -> None:
        """`record` of a plain tool's StepStarted and StepSucceeded (`nano_vm.kernel.lane`): nothing of it is sealed."""
        self._settled[step.index, occurrence, -1] = step, payload, value, entered_ms, at_ms

    def answer(
        self,
        step: CompiledStep,
        occurrence: int,
        value: Any,
        answer: Answer,
        entered_ms: int,
        at_ms: int,
        state: State,
    ) -> None:
        """`record` of a model's StepStarted and its plain answer: nothing of it is sealed."""
        self._accounts[step.index, occurrence, -1] = _Account(
            tokens=answer.tokens_in + answer.tokens_out,
            tokens_in=answer.tokens_in,
            tokens_out=answer.tokens_out,
            cost_nanousd=answer.cost_nanousd,
            model=None if answer.model is None else answer.model.decode(),
            cached=answer.is_cached,
            provider=None if answer.provider is None else answer.provider.decode(),
        )
        self._tokens, self._cost_nanousd = state.tokens, state.cost_nanousd
        settled = Settled(step.index, occurrence, -1, _SUCCESS, value, "", 1, entered_ms, False)
        self._settle(settled, at_ms, state)

    def settle(self, settled: Settled, state: State) -> None:
        """`record` of the success of a tool that took no tokens, in a lane."""
        self._settle(settled, state.now_ms, state)

    def decide(self, verdicts: list[Any], at_ms: int, state: State | None) -> None:
        """`record` of the conditions that followed; with the `state` of a run that has gone on beyond them, of what
        else has settled."""
        settled = [] if state is None else state.settled
        if settled:
            # What the general functions have decided is among both.
            others = sum(self.program.steps[one.step].kind is Kind.CONDITION for one in settled)
            verdicts = verdicts[: len(verdicts) - others]
        for step_id, occurrence, verdict in verdicts:
            step = self.program.steps[self.program.step_index[step_id]]
            self._settled[step.index, occurrence, -1] = step, b"", verdict, at_ms, at_ms
        if state is not None:
            for one in settled:
                self._settle(one, at_ms, state)

    def _account(self, event: Any, state: State) -> None:
        item = -1 if event.item is msgspec.UNSET else event.item
        place = (self.program.step_index[event.step], event.occurrence, item)
        account = self._accounts.get(place)
        if account is None:
            account = self._accounts[place] = _Account()
        # The kernel is the one that counts: whatever an event adds to the run's spending is this step's.
        account.tokens += state.tokens - self._tokens
        account.cost_nanousd += state.cost_nanousd - self._cost_nanousd
        self._tokens, self._cost_nanousd = state.tokens, state.cost_nanousd
        kind = type(event)
        if kind is ev.StepSucceeded or kind is ev.StepFailed or kind is ev.ModelTurned:
            account.tokens_in += event.tokens_in or 0
            account.tokens_out += event.tokens_out or 0
            account.model = event.model or account.model
            account.cached = kind is not ev.StepFailed and event.cached is True
            account.provider = event.provider or account.provider
            for switch in event.switches or ():
                account.switches.append(
                    {
                        "attempt": event.attempt,
                        "from": switch.origin,
                        "to": switch.to,
                        "reason": switch.reason,
                        "attempts": switch.attempts,
                        "error": switch.error,
                        "at_ms": event.at_ms,
                    }
                )
            if self.program.steps[place[0]].kind is Kind.AGENT:
                account.turns += kind is not ev.StepFailed or _was_told(event.payload)
        if kind is ev.StepFailed or (kind is ev.OutcomeResolved and event.resolution == "failed"):
            account.failures.append(
                {
                    "attempt": event.attempt,
                    "error": event.error or "RESOLVED_FAILED",
                    "message": _message(event.payload),
                    "at_ms": event.at_ms,
                }
            )

    def _propose(self, event: ev.ActionProposed) -> None:
        account = self._accounts[self.program.step_index[event.step], event.occurrence, -1]
        account.proposals.append(
            {
                "action": event.action,
                "turn": account.turns,
                "tool": event.tool or None,
                "verdict": event.verdict,
                "reason": event.reason or None,
            }
        )

    def _settle(self, settled: Settled, now_ms: int, state: State) -> None:
        place = (settled.step, settled.occurrence, settled.item)
        step = self.program.steps[settled.step]
        account = self._accounts.get(place) or _Account()
        if step.parent >= 0:
            self._lanes.setdefault((step.parent, settled.occurrence), set()).add(place)
        else:
            self._put_in_declared_order(self._lanes.pop((settled.step, settled.occurrence), set()))
        # A lane repeated by a retried group settles again: its last result stands.
        self._leaves[place] = order_of(self.program, settled), leaf_of(self.program, settled)
        is_condition = step.kind is Kind.CONDITION
        self._settled[place] = _step(
            step,
            place,
            account,
            status=settled.status,
            output=None if is_condition else own(settled.output),
            verdict=settled.output if is_condition else None,
            error=None if settled.status is not _FAILED else _error(step, settled, account, state),
            attempts=settled.attempts,
            started_at_ms=settled.entered_ms,
            finished_at_ms=now_ms,
            duration_ms=float(now_ms - settled.entered_ms),
            substituted=settled.substituted,
        )

    def _put_in_declared_order(self, lanes: set[Place]) -> None:
        """Lanes finish in any order; once their group has settled they stand as they were declared."""
        for place in sorted(lanes, key=lambda lane: self._leaves[lane][0]):
            self._settled[place] = self._settled.pop(place)

    @property
    def settled(self) -> list[Place]:
        """The settled occurrences in the order of `steps`."""
        return list(self._settled)

    @property
    def leaves(self) -> list[tuple[Order, bytes]]:
        """The step results as `trace_hash` takes them."""
        found = list(self._leaves.values())
        for (_, occurrence, item), row in self._settled.items():
            if type(row) is tuple:
                step, payload, value, _, _ = row
                name = step.id.encode()
                if payload:
                    leaf = _LEAF % (occurrence, payload, name)
                else:
                    leaf = _VERDICT_LEAF % (occurrence, name, b"true" if value else b"false")
                found.append(((step.rank, occurrence, item), leaf))
        return found

    def steps(self, state: State) -> list[TraceStep]:
        """All occurrences: the settled ones in the order they settled (lanes of a settled group as declared),
        then those in progress."""
        found: list[TraceStep] = []
        for (_, occurrence, _), row in self._settled.items():
            found.append(row if type(row) is TraceStep else _of_plain(occurrence, row))  # type: ignore[arg-type]
        return found + self.in_progress(state)

    def eventful(self, state: State) -> list[TraceStep]:
        """`steps` without those of which there is no more to say than that they succeeded at their first attempt."""
        return [row for row in self._settled.values() if type(row) is TraceStep] + self.in_progress(state)

    @property
    def plain(self) -> int:
        """How many of the settled ones are not `eventful`."""
        return sum(type(row) is tuple for row in self._settled.values())

    @property
    def ids(self) -> list[str]:
        """Ids of the steps in the order of `settled`, without those that were passed over."""
        return [
            row[0].id if type(row) is tuple else row.id  # type: ignore[union-attr]
            for row in self._settled.values()
            if type(row) is tuple or row.attempts  # type: ignore[union-attr]
        ]

    def in_progress(self, state: State) -> list[TraceStep]:
        """The occurrences that have not settled."""
        return [
            self._of_activity(activity, state) for activity in state.active.values() if activity.step >= 0
        ]

    def _of_activity(self, activity: Activity, state: State) -> TraceStep:
        place = (activity.step, activity.occurrence, activity.item)
        if activity.phase is Phase.UNKNOWN:
            status = StepStatus.UNKNOWN
        elif activity.phase is Phase.READY and activity.attempt == 1:
            status = StepStatus.PENDING
        else:
            status = StepStatus.RUNNING
        return _step(
            self.program.steps[activity.step],
            place,
            self._accounts.get(place) or _Account(),
            status=status,
            attempts=activity.attempt - (1 if activity.phase is Phase.READY else 0),  # not dispatched yet
            started_at_ms=activity.entered_ms,
            duration_ms=float(state.now_ms - activity.entered_ms),
        )


def _of_plain(occurrence: int, row: _Plain) -> TraceStep:
    step, payload, value, entered_ms, at_ms = row
    is_shared = type(value) is dict or type(value) is list
    return TraceStep(
        id=step.id,
        type="tool" if payload else "condition",
        occurrence=occurrence,
        status=_SUCCESS,
        output=None if not payload else canonical.decode(payload) if is_shared else value,
        verdict=None if payload else value,
        attempts=1,
        started_at_ms=entered_ms,
        finished_at_ms=at_ms,
        duration_ms=float(at_ms - entered_ms),
    )


def _step(step: CompiledStep, place: Place, account: _Account, **known: Any) -> TraceStep:
    return TraceStep(
        id=step.id,
        type=step.kind.name.lower(),
        occurrence=place[1],
        item=None if place[2] < 0 else place[2],
        failures=account.failures,
        tokens=account.tokens,
        tokens_in=account.tokens_in,
        tokens_out=account.tokens_out,
        cost_nanousd=account.cost_nanousd,
        model=account.model,
        cached=account.cached,
        provider=account.provider,
        switches=account.switches,
        turns=account.turns,
        proposals=account.proposals,
        **known,
    )


def _error(step: CompiledStep, settled: Settled, account: _Account, state: State) -> dict[str, Any]:
    """The error as `$step.error` has it; if nothing refers to that, as the run's end or last attempt has."""
    held = state.slots[step.error_slot] if step.error_slot >= 0 else state.error
    if type(held) is dict and held.get("type") == settled.error and held.get("step", step.id) == step.id:
        return {name: held[name] for name in ("type", "message", "attempts")}
    message = account.failures[-1]["message"] if account.failures else ""
    return {"type": settled.error, "message": message, "attempts": max(len(account.failures), 1)}


def _was_told(payload: Any) -> bool:
    """Whether a failure was an answer that did not pass its gate."""
    return type(payload) is dict and "feedback" in payload


def _message(payload: Any) -> str:
    message = payload.get("message") if type(payload) is dict else None
    return message if type(message) is str else ""
