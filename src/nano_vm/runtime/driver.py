"""Driving one run: the loop between the kernel's commands and the world.

    decide -> journal the intents -> act -> apply and journal the outcomes -> decide …

The durability rule (P3): the outcome of step k, the decisions that follow from it and the intent of step k+1 ride in
one commit, which is awaited before step k+1 is called. A kill leaves at most the calls in flight as "started, outcome
unknown", and those are visible. The driver decides nothing: it carries out commands and reports events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from nano_vm import canonical
from nano_vm.errors import NanoVMError, RuntimeFault
from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.port import RunRecord, RunUpdate
from nano_vm.journal.standing import standing
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import (
    AwaitEvent,
    CallModel,
    CallTool,
    Command,
    Compensate,
    Finish,
    Reconcile,
    StartChild,
    StartTimer,
    StopChild,
)
from nano_vm.kernel.state import Activity, Phase, Rejection, RunStatus, Stage, State, activity_key
from nano_vm.kernel.transition import (
    apply,
    child_run_id,
    decide,
    event_digest,
    remaining_budgets,
)
from nano_vm.program.compiled import CallAction, CompiledProgram, Kind
from nano_vm.runtime.calls import Ending, Outcome, RunFacts
from nano_vm.runtime.lane import drive_lane
from nano_vm.runtime.patience import patiently
from nano_vm.runtime.ports import ToolSpec
from nano_vm.runtime.tooling import REPEATABLE

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

_UNSET = ev.UNSET
BATCH_MAX = 256  # entries of pure steps that are gathered before they are made durable
ATTEMPTS_MAX = (
    100  # an unknown outcome is not repeated beyond this attempt, however many processes it has cost
)
REPEATS_MAX = 3  # how often an unknown outcome is repeated under the tool's contract while the process lives
MODEL_TOKENS_DEFAULT = (
    4_096  # asked for, and reserved, when a token budget is declared but the step sets no limit
)


class Letter(NamedTuple):
    """Something from outside for a child: `kind` is event or resolve; `answer` tells what the child's kernel says."""

    kind: str
    body: dict[str, Any]
    answer: asyncio.Future[Rejection | None]

    def pass_on(self, inner: asyncio.Future[Rejection | None]) -> None:
        """Answer as the child was answered."""
        if inner.cancelled() or inner.exception() is not None:
            _refuse(self.answer)
        elif not self.answer.done():
            self.answer.set_result(inner.result())


class Released(Exception):
    """The driver gave the run up at a safe place because the engine is shutting down."""


class Run:
    """One run in the hands of this process."""

    __slots__ = (
        "_answers",
        "_arrivals",
        "_attached",
        "_child_due",
        "_left",
        "_open",
        "_open_payload",
        "_overdue",
        "_repeats",
        "_riders",
        "_tasks",
        "_timers",
        "_tried",
        "_wake",
        "batch",
        "chain",
        "created",
        "engine",
        "facts",
        "fence",
        "heard",
        "letters",
        "listener",
        "loop",
        "mail",
        "mail_taken",
        "mail_waits",
        "program",
        "record",
        "settled",
        "state",
        "stirred",
        "stopping",
        "transitions_left",
    )

    def __init__(
        self,
        engine: Engine,
        program: CompiledProgram,
        record: RunRecord,
        state: State,
        chain: Chain,
        fence: int,
        *,
        created: bool,
        principal: dict[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.program = program
        self.record = record
        self.state = state
        self.chain = chain
        self.fence = fence
        self.facts = RunFacts(record.run_id, record.tenant, principal, Ending())
        self.listener: Any = None
        self.heard: list[tuple[Entry, ev.Event]] = []  # journaled, not yet told to the listeners
        self.letters: dict[str, list[Letter]] = {}  # for children that wait, by run id
        self.loop: asyncio.AbstractEventLoop | None = None  # where it is driven
        self.mail_waits = created  # whether the store may hold mail for it
        self.mail: list[tuple[str, asyncio.Future[Rejection | None]]] = []  # by message id; to be answered
        self.mail_taken: set[str] = set()  # ids of the messages that are being dealt with
        self.stopping: set[str] = set()  # children that are to be cancelled
        self.settled: asyncio.Future[None] | None = None  # done when this process lets go of the run
        self.transitions_left = -1  # `step`: how many outcomes may still be journaled; -1 for no limit
        self.created = created
        self._open: ev.Event | None = None  # applied, not sealed yet: intents may still ride with it
        self._open_payload: bytes | None = None
        self._riders: list[ev.Event] = []
        self.batch: list[Entry] = []
        self._arrivals: deque[Any] = deque()
        self._answers: list[
            tuple[asyncio.Future[Rejection | None], Rejection | None]
        ] = []  # told when durable
        self._tasks: dict[tuple[int, int], asyncio.Task[Any]] = {}
        self._timers: dict[int, tuple[int, asyncio.Task[None]]] = {}
        self._wake: asyncio.Future[None] | None = None
        self._repeats: dict[int, int] = {}
        self._tried: set[str] = set()
        self._attached = False
        self.stirred = False
        self._left = False  # this process has let go of the run
        self._child_due = False  # a timer inside a child that waits is due
        self._overdue: list[int] = []  # children that have taken too long

    # --- journaling -------------------------------------------------------------------------------------------

    def offer(self, event: ev.Event, payload: bytes | None) -> Rejection | None:
        """Apply an event and journal it with the next commit; a rejection leaves everything as it was."""
        result = apply(self.program, self.state, event)
        if type(result) is Rejection:
            return result
        if self.state.verdicts:
            event.verdicts = self.state.verdicts  # type: ignore[union-attr]
        if self._open is not None:
            self._seal()
        self._open = event
        self._open_payload = payload
        return None

    def record_event(self, event: ev.Event, payload: bytes | None = None) -> None:
        """`offer` for events that the kernel must admit."""
        rejection = self.offer(event, payload)
        if rejection is not None:
            _defect(self.record.run_id, event, rejection)

    def record_intent(self, event: ev.Event) -> Rejection | None:
        """Apply an intent and let it ride with the outcome it follows from: one entry, one commit. What is requested
        is a function of the journal before it, so it is not written again."""
        if self._open is None:
            return self.offer(event, None)
        result = apply(self.program, self.state, event)
        if type(result) is Rejection:
            return result
        self._riders.append(event)
        return None

    def ride(self, event: ev.Event) -> None:
        """An intent that the kernel has taken already."""
        if self._open is None:
            self._open, self._open_payload = event, None
        else:
            self._riders.append(event)

    def hold(self, event: ev.Event, payload: bytes | None) -> None:
        """An outcome that the kernel has taken already."""
        if self._open is not None:
            self._seal()
        self._open, self._open_payload = event, payload

    def seal_open(self) -> None:
        """Nothing will ride with the open entry."""
        if self._open is not None:
            self._seal()

    def conclude(self, outcome: Outcome) -> None:
        """An outcome of a call that was made alone. What arrived in the meantime comes first."""
        if self._arrivals:
            self._arrivals.append((outcome, None))
        else:
            self.record_event(outcome.event, outcome.payload)
            self._count_outcome()

    @property
    def disturbed(self) -> bool:
        """Whether something wants the driver's attention between two steps."""
        return bool(
            self._arrivals
            or self.mail_waits
            or self.letters
            or self._answers
            or self._overdue
            or self.engine.draining
        )

    def _intend(self, event: ev.Event) -> None:
        rejection = self.record_intent(event)
        if rejection is not None:
            _defect(self.record.run_id, event, rejection)

    def _seal(self) -> None:
        """Close the open entry: nothing rides with it any more."""
        event, payload = self._open, self._open_payload
        assert event is not None
        engine = self.engine
        entry = self.chain.seal(
            event, engine.entropy.salt() if payload is not None else b"", payload, self._riders
        )
        self.batch.append(entry)
        if self.listener is not None or engine.listeners:
            engine.announce(self, entry, event)
            for rider in self._riders:
                engine.announce(self, entry, rider)
        self._open = None
        if self._riders:
            self._riders = []

    def commit(self, update: RunUpdate | None = None) -> Awaitable[None] | None:
        """Make the batch durable."""
        if self._open is not None:
            self._seal()
        batch = self.batch
        if not batch and update is None:
            return None
        entries = batch[:]
        batch.clear()
        store = self.engine.store
        if self.created:
            return store.append(self.record.run_id, self.fence, entries, update)
        self.created = True
        if update is not None:
            _project(self.record, update)
        return store.create(self.record, entries)

    async def flush(self, update: RunUpdate | None = None) -> None:
        if self._open is not None:
            self._seal()
        heard, answers = self.heard, self._answers
        if heard:
            self.heard = []
        if answers:
            self._answers = []
        try:
            durable = self.commit(update)
            if durable is not None:
                await durable
        except BaseException:
            for answer, _ in answers:
                _refuse(answer)
            raise
        for answer, rejection in answers:
            if not answer.done():
                answer.set_result(rejection)
        if heard:
            self.engine.publish(self, heard)

    def update(self, release: bool) -> RunUpdate:
        """What the run's record says now."""
        if self._open is not None:
            self._seal()
        stands = standing(self.program, self.state)
        return RunUpdate(
            status=stands.status,
            outcome=stands.outcome,
            waits=stands.waits,
            wake_at_ms=stands.wake_at_ms,
            updated_at_ms=self.engine.clock.now_ms(),
            length=self.chain.length,
            head=self.chain.head,
            release=release,
        )

    # --- what arrives from outside ----------------------------------------------------------------------------

    def deliver(self, event: ev.Event, payload: bytes | None) -> asyncio.Future[Rejection | None]:
        """Hand an outside event to a run that is being driven; the future tells whether it was admitted."""
        answer = _answer()
        if self._left:
            _refuse(answer)
        else:
            self._arrivals.append((Outcome(event, payload), answer))
            if type(event) is ev.RunCancelled:
                self.facts.ending.has_come = True  # a long call may want to stop at a safe place
            self.wake()
        return answer

    def forward(self, child: str, kind: str, body: dict[str, Any]) -> asyncio.Future[Rejection | None]:
        """Hand something to a child that waits, by way of this run."""
        answer = _answer()
        if self._left:
            _refuse(answer)
        else:
            self.letters.setdefault(child, []).append(Letter(kind, body, answer))
            self.wake()
        return answer

    def answer_later(self, rejection: Rejection) -> asyncio.Future[Rejection | None]:
        """A rejection that needs no kernel, told in turn with the others."""
        answer = _answer()
        if self._left:
            _refuse(answer)
        else:
            self._answers.append((answer, rejection))
            self.wake()
        return answer

    def children_at_work(self) -> list[str]:
        """Ids of the child runs that are not waiting for anything."""
        return [
            self._child_command(activity).child
            for activity in self.state.active.values()
            if activity.phase is Phase.STARTED
            and activity.step >= 0
            and type(self.program.steps[activity.step].action) is CallAction
        ]

    def admit(self, event: ev.Event, payload: bytes | None) -> Rejection | None:
        """`offer` for events from outside: one that is refused is kept as evidence, a repetition is not."""
        state = self.state
        rejection: Rejection | None
        if type(event) is ev.EventReceived and state.stage is Stage.ENDED and event.event_id in state.seen:
            same = state.seen[event.event_id] == event_digest(event)
            rejection = Rejection(
                "DUPLICATE" if same else "EVENT_CONFLICT", f"event `{event.event_id}` is known"
            )
        else:
            rejection = self.offer(event, payload)
        if rejection is not None and rejection.code != "DUPLICATE" and type(event) is ev.EventReceived:
            refused = ev.EventRefused(
                at_ms=event.at_ms,
                code=rejection.code,
                event_id=event.event_id,
                name=event.name,
                payload=event.payload,
                principal=event.principal,
                step=event.step,
            )
            self.record_event(refused, payload)
        return rejection

    def wake(self) -> None:
        """Have the driver look again, now or at the latest before it would wait."""
        self.stirred = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def wait_until_settled(self) -> None:
        """Until this process lets go of the run; to be called in the loop that drives it."""
        if self._left:
            return
        if self.settled is None:
            self.settled = asyncio.get_running_loop().create_future()
        await asyncio.shield(self.settled)

    # --- the loop ---------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        """Take the run as far as it goes: to its end, to where it waits, or to where the engine shuts down."""
        try:
            while True:
                if self.transitions_left < 0 and not self._tasks and not self._timers and not self.disturbed:
                    await drive_lane(self)
                    if self.state.stage is Stage.ENDED:
                        await self.flush(self.update(release=True))
                        return
                if not await self._turn():
                    return
        except BaseException:
            await self._abandon()
            raise
        finally:
            for _, timer in self._timers.values():
                timer.cancel()
            for task in self._tasks.values():
                task.cancel()  # calls without effects, whose results a run that has ended does not take
            self._refuse_arrivals()

    async def _turn(self) -> bool:
        """One round; False when there is nothing more to do here.

        Invariant: only the driver of a run applies events to it. Whoever has something for it hands it in (`deliver`)
        and is told when it is durable."""
        if self.mail_waits:
            self.mail_waits = False
            self.engine.take_mail(self)
        if self._arrivals:
            self._take_arrivals()
        engine = self.engine
        if self.state.stage is Stage.ENDING:
            self._stop_models()
        if engine.draining or self.transitions_left == 0:
            if not self._tasks and not self._arrivals:
                await self._let_go()
                return False
            await self.flush()
            await self._something()
            return True
        launches: list[tuple[Command, ToolSpec | None, int]] = []
        if self.letters or self._child_due or not self._attached:
            self._attach_children(launches)
        while self._overdue:
            self._stop_child(self._overdue.pop(), launches)
        seq = self.state.seq
        for command in decide(self.program, self.state):
            self._prepare(command, launches)
            if self.transitions_left == 1 and launches:
                break
        if self.state.stage is Stage.ENDED:
            await self._let_go()
            return False
        if len(launches) == 1 and len(self.state.active) == 1 and not self._tasks and not self._timers:
            command, spec, limit = launches[0]
            if type(command) is CallTool and spec is not None:
                await self._call_alone(command, spec)
                return True
        if launches:
            await self.flush()
            exclusive = []
            for command, spec, limit in launches:
                if spec is not None and spec.effect == "transactional" and type(command) is not Reconcile:
                    exclusive.append((command, spec))
                else:
                    self._spawn(command, spec, limit)
            for command, spec in exclusive:
                assert type(command) is CallTool or type(command) is Compensate
                await self._transact(command, spec)
            return True
        if self.state.seq != seq or self._arrivals:
            return True  # something was journaled without a call, or a timer is due: look again
        if self._tasks or (self._timers and self.state.busy):
            await self.flush()
            await self._something()
            return True
        if self.state.status is RunStatus.SUSPENDED:
            if self.mail_waits or self._overdue or self._child_due or self._answers:
                return True
            await self._let_go()
            return False
        raise RuntimeFault("INTERNAL", "the run has nothing to do and nothing to wait for")

    async def _call_alone(self, command: CallTool, spec: ToolSpec) -> None:
        """The common case: one tool and nothing beside it. No task is made."""
        engine = self.engine
        step = self.program.steps[command.step]
        if spec.effect == "pure":
            if len(self.batch) >= BATCH_MAX or self._answers:
                await self.flush()
        else:
            await self.flush()
            if spec.effect == "transactional":
                await self._transact(command, spec)
                return
        outcome = None
        if command.business_key is not None:
            outcome = await self._action_conflict(command, spec)
        if outcome is None:
            outcome = await engine.calls.tool(self.facts, step, command, spec, alone=True)
        self.conclude(outcome)

    async def _transact(self, command: CallTool | Compensate, spec: ToolSpec) -> None:
        """The tool's writes and its outcome commit together, in a transaction of their own (SPEC §7)."""
        engine = self.engine
        if type(command) is CallTool and command.business_key is not None:
            conflict = await self._action_conflict(command, spec)
            if conflict is not None:
                self.record_event(conflict.event, conflict.payload)
                self._count_outcome()
                return
        try:
            async with engine.store.transaction() as transaction:
                if type(command) is CallTool:
                    step = self.program.steps[command.step]
                    outcome = await engine.calls.tool(self.facts, step, command, spec, transaction)
                else:
                    assert type(command) is Compensate
                    outcome = await engine.calls.compensation(self.facts, command, spec, transaction)
                if type(outcome.event) not in (ev.StepSucceeded, ev.CompensationSucceeded):
                    raise _RolledBack(outcome)
                self.record_event(outcome.event, outcome.payload)
                self._seal()
                transaction.append(self.record.run_id, self.fence, self.batch[:])
                self.batch.clear()
        except _RolledBack as rolled_back:
            # The transaction is gone, and with it the effect: this failure is known.
            outcome = rolled_back.outcome
            self.record_event(outcome.event, outcome.payload)
        self._count_outcome()

    def _spawn(self, command: Command, spec: ToolSpec | None, limit: int) -> None:
        task = asyncio.get_running_loop().create_task(self._perform(command, spec, limit))
        self._tasks[activity_key(command.step, command.item), command.attempt] = task

    async def _perform(self, command: Command, spec: ToolSpec | None, limit: int) -> None:
        """One call beside others; its outcome joins the arrivals."""
        key = (activity_key(command.step, command.item), command.attempt)
        calls = self.engine.calls
        outcome: Outcome | None = None
        failure: BaseException | None = None
        try:
            if type(command) is CallTool:
                assert spec is not None
                step = self.program.steps[command.step]
                if command.business_key is not None:
                    outcome = await self._action_conflict(command, spec)
                if outcome is None:
                    outcome = await calls.tool(self.facts, step, command, spec)
            elif type(command) is CallModel:
                outcome = await calls.model(self.program.steps[command.step], command, limit)
            elif type(command) is Compensate:
                assert spec is not None
                outcome = await calls.compensation(self.facts, command, spec)
            elif type(command) is Reconcile:
                assert spec is not None
                outcome = await calls.reconcile(self.facts, command, spec)
            elif type(command) is StartChild:
                outcome = await self.engine.run_child(self, command)
        except asyncio.CancelledError:
            if type(command) is CallModel and self.state.stage is not Stage.GOING:
                outcome = calls.failed(command, "CANCELLED", "the run is ending", False)
            else:
                failure = Released()
        except BaseException as error:
            failure = error
        self._tasks.pop(key, None)
        if failure is not None or outcome is not None:
            self._arrivals.append((outcome if failure is None else failure, None))
        self.wake()

    async def _action_conflict(self, command: CallTool, spec: ToolSpec) -> Outcome | None:
        """Bind the author's idempotency key to its arguments; a failure when it was used for others before."""
        problem = await self.engine.claim_action(self, command, spec)
        if problem is None:
            return None
        return self.engine.calls.failed(command, problem.code, problem.message, False)

    def _take_arrivals(self) -> None:
        while self._arrivals:
            arrival, answer = self._arrivals.popleft()
            if isinstance(arrival, Released):
                continue
            if isinstance(arrival, BaseException):
                raise arrival
            event, payload = arrival
            if answer is not None:
                rejection = self.admit(event, payload)
                self._answers.append((answer, rejection))
                continue
            rejection = self.offer(event, payload)
            if rejection is not None:
                # A timer may lose a race against what it timed, and a call without effects against the end of the run.
                late = (
                    rejection.code in ("STALE_ATTEMPT", "DUPLICATE") or getattr(event, "pure", _UNSET) is True
                )
                if not late and type(event) is not ev.TimerFired:
                    _defect(self.record.run_id, event, rejection)
            elif type(event) is not ev.TimerFired:
                self._count_outcome()

    def _count_outcome(self) -> None:
        if self.transitions_left > 0:
            self.transitions_left -= 1

    def _stop_models(self) -> None:
        """A run that is ending does not wait for answers it will not use; effects are waited for, and told."""
        self.facts.ending.has_come = True
        for key, task in self._tasks.items():
            step = self.program.steps[key[0] & 0xFFFFFF] if key[0] >= 0 else None
            if step is not None and step.kind is Kind.LLM:
                task.cancel()

    async def _something(self) -> None:
        """Wait until an outcome, a timer or an outside event arrives."""
        if self.mail:
            await self.engine.answer_mail(self)
        if not self.stirred:
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        self.stirred = False

    # --- commands ---------------------------------------------------------------------------------------------

    def _prepare(self, command: Command, launches: list[tuple[Command, ToolSpec | None, int]]) -> None:
        """Journal the intent of a command; what is to be called afterwards goes on `launches`."""
        kind = type(command)
        if kind is CallTool:
            self._prepare_tool(command, launches)  # type: ignore[arg-type]
        elif kind is CallModel:
            self._prepare_model(command, launches)  # type: ignore[arg-type]
        elif kind is StartTimer or kind is AwaitEvent:
            self._set_timer(command)  # type: ignore[arg-type]
            if type(command) is AwaitEvent and command.kind == "child":
                self._watch_child(command)
        elif kind is Finish:
            assert type(command) is Finish
            self._intend(
                ev.RunFinished(
                    at_ms=self.engine.clock.now_ms(),
                    incomplete=list(command.incomplete) or _UNSET,
                    outcome=_UNSET if command.outcome is None else command.outcome,
                    status=command.status,
                )
            )
        elif kind is Reconcile:
            self._prepare_reconcile(command, launches)  # type: ignore[arg-type]
        elif kind is StartChild:
            self._prepare_child(command, launches)  # type: ignore[arg-type]
        elif kind is Compensate:
            self._prepare_compensation(command, launches)  # type: ignore[arg-type]
        elif kind is StopChild:
            assert type(command) is StopChild
            self._stop_child(activity_key(command.step, command.item), launches)

    def _prepare_tool(self, command: CallTool, launches: list[tuple[Command, ToolSpec | None, int]]) -> None:
        engine = self.engine
        spec = engine.tools.spec(command.tool)
        if spec is None:
            message = f"no tool `{command.tool}` is registered"
            outcome = engine.calls.failed(command, "UNKNOWN_TOOL", message, False, pure=True)
            self.record_event(outcome.event, outcome.payload)
            return
        if spec.problems is not None and (problems := spec.problems(command.args)):
            message = f"arguments of `{command.tool}`: " + "; ".join(problems)
            outcome = engine.calls.failed(command, "BAD_ARGUMENT", message, False, pure=True)
            self.record_event(outcome.event, outcome.payload)
            return
        if spec.effect == "pure":
            if (activity_key(command.step, command.item), command.attempt) not in self._tasks:
                launches.append((command, spec, 0))
            return
        event = ev.StepStarted(
            at_ms=engine.clock.now_ms(),
            attempt=command.attempt,
            effect=spec.effect,
            item=command.item if command.item >= 0 else _UNSET,
            occurrence=command.occurrence,
            step=command.step_id,
        )
        self._intend(event)
        launches.append((command, spec, 0))

    def _prepare_model(
        self, command: CallModel, launches: list[tuple[Command, ToolSpec | None, int]]
    ) -> None:
        engine = self.engine
        state = self.state
        limit, tokens, cost = 0, 0, 0
        if state.tokens_max or state.cost_nanousd_max:
            prompt = sum(len(message["content"]) for message in command.request["messages"]) // 4 + 1
            limit = command.tokens_max or MODEL_TOKENS_DEFAULT
            if state.tokens_max:
                left = state.tokens_max - state.tokens - state.reserved_tokens
                if not command.tokens_max:
                    limit = min(limit, left - prompt)
                tokens = prompt + max(limit, 1)
            cost = engine.worst_cost(command.request, prompt, max(limit, 1))
        event = ev.StepStarted(
            at_ms=engine.clock.now_ms(),
            attempt=command.attempt,
            effect="model",
            item=command.item if command.item >= 0 else _UNSET,
            occurrence=command.occurrence,
            reserved_cost_nanousd=cost or _UNSET,
            reserved_tokens=tokens or _UNSET,
            step=command.step_id,
        )
        rejection = self.record_intent(event)
        if rejection is None:
            launches.append((command, None, limit))
        elif rejection.code == "OVER_BUDGET":
            budget = rejection.message
            spent = state.tokens + state.reserved_tokens
            left = state.tokens_max - spent
            if budget != "tokens":
                left = state.cost_nanousd_max - state.cost_nanousd - state.reserved_cost_nanousd
            self.record_event(
                ev.BudgetExhausted(
                    at_ms=engine.clock.now_ms(),
                    budget=budget,
                    left=max(left, 0),
                    needed=tokens if budget == "tokens" else cost,
                    step=command.step_id,
                )
            )
        else:
            _defect(self.record.run_id, event, rejection)

    def _prepare_child(
        self, command: StartChild, launches: list[tuple[Command, ToolSpec | None, int]]
    ) -> None:
        self._intend(
            ev.ChildStarted(
                at_ms=self.engine.clock.now_ms(),
                attempt=command.attempt,
                child=command.child,
                item=command.item if command.item >= 0 else _UNSET,
                occurrence=command.occurrence,
                program=command.program,
                step=command.step_id,
            )
        )
        launches.append((command, None, 0))

    def _prepare_compensation(
        self, command: Compensate, launches: list[tuple[Command, ToolSpec | None, int]]
    ) -> None:
        engine = self.engine
        spec = engine.tools.spec(command.tool)
        effect = spec.effect if spec is not None else "irreversible"
        item = command.item if command.item >= 0 else _UNSET
        self._intend(
            ev.CompensationStarted(
                at_ms=engine.clock.now_ms(),
                attempt=command.attempt,
                effect=effect,
                item=item,
                occurrence=command.occurrence,
                step=command.step_id,
            )
        )
        if spec is not None:
            launches.append((command, spec, 0))
            return
        details = {"message": f"no tool `{command.tool}` is registered"}
        self.record_event(
            ev.CompensationFailed(
                at_ms=engine.clock.now_ms(),
                attempt=command.attempt,
                draw=0,
                error="UNKNOWN_TOOL",
                item=item,
                occurrence=command.occurrence,
                payload=details,
                retryable=False,
                step=command.step_id,
            ),
            canonical.encode(details),
        )

    def _prepare_reconcile(
        self, command: Reconcile, launches: list[tuple[Command, ToolSpec | None, int]]
    ) -> None:
        """Settle an unknown outcome under the tool's contract - the one it was dispatched under and the one it has
        now must both allow it - or leave it to an operator."""
        key = activity_key(command.step, command.item)
        if command.id in self._tried or (key, command.attempt) in self._tasks:
            return
        self._tried.add(command.id)
        spec = self.engine.tools.spec(command.tool) if command.tool else None
        is_model = command.effect == "model"
        if is_model or (spec is not None and spec.effect in REPEATABLE and command.effect in REPEATABLE):
            repeats = self._repeats.get(key, 0)
            if command.reason != "CRASH" and not is_model and repeats >= REPEATS_MAX:
                return
            if command.attempt >= ATTEMPTS_MAX:
                return  # whoever tries it dies: somebody has to look
            self._repeats[key] = repeats + 1
            self.record_event(self.engine.calls.resolved(command, "contract", "repeat"))
        elif spec is not None and spec.reconcile is not None:
            launches.append((command, spec, 0))

    def _set_timer(self, command: StartTimer | AwaitEvent) -> None:
        """Have an activity's timer ring. When nothing else is under way the run suspends instead: its record holds the
        time, and whoever is alive then fires it."""
        if not command.due_ms:
            return
        key = activity_key(command.step, command.item)
        held = self._timers.get(key)
        if held is not None:
            if held[0] == command.due_ms:
                return
            held[1].cancel()
            del self._timers[key]
        if self.engine.clock.now_ms() >= command.due_ms:
            self._ring(key, command)
        elif self.state.busy:
            task = asyncio.get_running_loop().create_task(self._ring_at(key, command))
            self._timers[key] = (command.due_ms, task)

    def _watch_child(self, command: AwaitEvent) -> None:
        """Have a child that waits taken up when a timer of its own is due, if we are still busy with others then."""
        activity = self.state.active[activity_key(command.step, command.item)]
        due_ms = _child_due_ms(activity)
        key = -2 - activity_key(command.step, command.item)
        if not due_ms or (key in self._timers and self._timers[key][0] == due_ms):
            return
        if self.engine.clock.now_ms() >= due_ms:
            self._child_due = True
            self.wake()
        elif self.state.busy:
            task = asyncio.get_running_loop().create_task(self._look_at_children(key, due_ms))
            self._timers[key] = (due_ms, task)

    async def _look_at_children(self, key: int, due_ms: int) -> None:
        await self.engine.clock.sleep_until(due_ms)
        self._timers.pop(key, None)
        self._child_due = True
        self.wake()

    async def _ring_at(self, key: int, command: StartTimer | AwaitEvent) -> None:
        await self.engine.clock.sleep_until(command.due_ms)
        self._timers.pop(key, None)
        self._ring(key, command)

    def _ring(self, key: int, command: StartTimer | AwaitEvent) -> None:
        activity = self.state.active.get(key)
        if activity is None or activity.due_ms != command.due_ms:
            return  # what it timed has settled
        if activity.phase in (Phase.STARTED, Phase.CHILD_WAITING):
            if self._child_command(activity).child in self.stopping:
                return
            self._overdue.append(key)
        else:
            event = ev.TimerFired(
                at_ms=max(self.engine.clock.now_ms(), command.due_ms),
                attempt=command.attempt,
                item=command.item if command.item >= 0 and command.step >= 0 else _UNSET,
                occurrence=command.occurrence,
                step=command.step_id,
            )
            self._arrivals.append((Outcome(event, None), None))
        self.wake()

    # --- children -----------------------------------------------------------------------------------------------

    def _attach_children(self, launches: list[tuple[Command, ToolSpec | None, int]]) -> None:
        """Take up the children that were under way when the run was loaded, and those that have something to do."""
        called = set()
        for key, activity in self.state.active.items():
            if activity.step < 0 or type(self.program.steps[activity.step].action) is not CallAction:
                continue
            command = self._child_command(activity)
            called.add(command.child)
            if (key, activity.attempt) in self._tasks:
                continue
            if activity.phase is Phase.CHILD_WAITING and self._is_wanted(activity, command.child):
                self.record_event(
                    ev.ChildResumed(
                        at_ms=self.engine.clock.now_ms(),
                        attempt=activity.attempt,
                        item=activity.item if activity.item >= 0 else _UNSET,
                        occurrence=activity.occurrence,
                        step=command.step_id,
                    )
                )
                launches.append((command, None, 0))
            elif activity.phase is Phase.STARTED and not self._attached:
                launches.append((command, None, 0))
        self._attached = True
        self._child_due = False
        for child in self.letters.keys() - called:
            for letter in self.letters.pop(child):
                _refuse(letter.answer)  # the child has ended in the meantime: ask again

    def _is_wanted(self, activity: Activity, child: str) -> bool:
        """Whether a child that waits has something to do: a letter has come, or a timer of its own is due."""
        if child in self.letters:
            return True
        due_ms = _child_due_ms(activity)
        return bool(due_ms) and due_ms <= self.engine.clock.now_ms()

    def _child_command(self, activity: Activity) -> StartChild:
        step = self.program.steps[activity.step]
        assert type(step.action) is CallAction
        place = (step.id, activity.occurrence, activity.item, activity.attempt)
        return StartChild(
            step=step.index,
            step_id=step.id,
            occurrence=activity.occurrence,
            item=activity.item,
            attempt=activity.attempt,
            child=child_run_id(self.state.run, *place),
            program=self.state.programs.get(step.action.program, step.action.program),
            inputs=activity.request,
            budgets=remaining_budgets(self.state),
            depth=self.state.depth + 1,
        )

    def _stop_child(self, key: int, launches: list[tuple[Command, ToolSpec | None, int]]) -> None:
        activity = self.state.active.get(key)
        if activity is None:
            return
        command = self._child_command(activity)
        if command.child not in self.stopping:
            self.engine.stop_child(self, command.child)
            if (key, activity.attempt) not in self._tasks:
                launches.append((command, None, 0))

    # --- letting go -------------------------------------------------------------------------------------------

    async def _let_go(self) -> None:
        """Stop at a safe place: everything that happened is journaled, nothing is under way."""
        if self.transitions_left == 0 and self.state.stage is Stage.ENDING:
            for command in decide(self.program, self.state):
                if type(command) is Finish:
                    self._prepare(command, [])
        if self.mail:
            await self.flush()
            await self.engine.answer_mail(self)
        await self.flush(self.update(release=True))

    async def _abandon(self) -> None:
        """Something failed that is not part of the run (the store, the process): leave the journal as it is. What was
        in flight becomes an unknown outcome for whoever recovers the run."""
        for task in list(self._tasks.values()):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        try:
            if self.engine.volatile:
                self.commit()  # entries were gathered here that describe what has happened
            await patiently(lambda: self.engine.store.release(self.record.run_id, self.fence))
        except NanoVMError:
            pass  # the lease runs out, or the lock is free as soon as we are gone

    def _refuse_arrivals(self) -> None:
        self._left = True
        for answer, _ in self._answers:
            _refuse(answer)
        while self._arrivals:
            _, answer = self._arrivals.popleft()
            _refuse(answer)
        for letters in self.letters.values():
            for letter in letters:
                _refuse(letter.answer)
        self.letters.clear()


class RunLeft(Exception):
    """The run was let go before it could take the event: deliver it by way of the store."""


class _RolledBack(Exception):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


def _answer() -> asyncio.Future[Rejection | None]:
    answer: asyncio.Future[Rejection | None] = asyncio.get_running_loop().create_future()
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # whether anybody asks or not
    return answer


def _refuse(answer: asyncio.Future[Rejection | None] | None) -> None:
    if answer is not None and not answer.done():
        answer.set_exception(RunLeft())


def _dues_inside(wait: dict[str, Any]) -> Iterator[int]:
    """When the timers of a child's waits are due, and those of its children."""
    for inner in wait.get("waits", ()):
        if inner.get("due_ms"):
            yield inner["due_ms"]
        yield from _dues_inside(inner)


def _child_due_ms(activity: Activity) -> int:
    """When the next timer inside a child that waits is due; 0 without one."""
    return min(_dues_inside({"waits": activity.waits or ()}), default=0)


def _project(record: RunRecord, update: RunUpdate) -> None:
    record.status = update.status
    record.outcome = update.outcome
    record.waits = update.waits
    record.wake_at_ms = update.wake_at_ms
    record.updated_at_ms = update.updated_at_ms
    record.length = update.length
    record.head = update.head
    if update.release:
        record.owner = None


def _defect(run_id: str, event: ev.Event, rejection: Rejection) -> NoReturn:
    raise RuntimeFault(
        "INTERNAL",
        f"the kernel refused {event.type} of run {run_id}: {rejection.code} {rejection.message}",
        facts={"run_id": run_id, "event": event.type, "rejection": rejection.code},
    )
