"""Driving one run: the loop between the kernel's commands and the world.

    decide -> journal the intents -> act -> apply and journal the outcomes -> decide …

The durability rule (P3): the outcome of step k, the decisions that follow from it and the intent of step k+1 ride in
one commit, which is awaited before step k+1 is called. A kill leaves at most the calls in flight as "started, outcome
unknown", and those are visible. The driver decides nothing: it carries out commands and reports events.
"""

from __future__ import annotations

import asyncio
import contextlib
from _thread import LockType
from collections import deque
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import msgspec

from nano_vm.errors import NanoVMError, RuntimeFault
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import (
    CallTool,
    Command,
    Compensate,
    Finish,
    Reconcile,
)
from nano_vm.kernel.state import Rejection, RunStatus, Stage, activity_key
from nano_vm.kernel.transition import (
    all_waits,
    decide,
    event_digest,
)
from nano_vm.program.compiled import Kind
from nano_vm.runtime import attending
from nano_vm.runtime.calls import Ending, RunFacts
from nano_vm.runtime.intents import prepare
from nano_vm.runtime.journaled import Answer, JournaledRun, RunLeft, defect, new_answer, refuse
from nano_vm.runtime.lane import drive_lane
from nano_vm.runtime.outcomes import Approval, Outcome
from nano_vm.runtime.patience import patiently
from nano_vm.runtime.performing import Released, call_alone, spawn, transact
from nano_vm.runtime.ports import ToolSpec
from nano_vm.runtime.repetition import has_come_to, is_repeated
from nano_vm.runtime.sealing import keyed_content
from nano_vm.runtime.together import drive_together

_UNSET = ev.UNSET
_GOING, _ENDING, _ENDED = Stage.GOING, Stage.ENDING, Stage.ENDED
_SUSPENDED = RunStatus.SUSPENDED
_FREE: AbstractContextManager[Any] = contextlib.nullcontext()


class Letter(NamedTuple):
    """Something from outside for a child: `kind` is event or resolve; `answer` tells what the child's kernel says."""

    kind: str
    body: dict[str, Any]
    answer: asyncio.Future[Rejection | None]

    def pass_on(self, inner: asyncio.Future[Rejection | None]) -> None:
        """Answer as the child was answered."""
        if inner.cancelled() or inner.exception() is not None:
            refuse(self.answer)
        elif not self.answer.done():
            self.answer.set_result(inner.result())


# What a repetition without an id is refused with, where it is not told by its id.
_REPEATED = frozenset({"NOT_WAITING", "SELF_APPROVAL", "APPROVAL_VOID"})


class Run(JournaledRun, eq=False, kw_only=True):
    """One run in the hands of this process."""

    mail_waits: bool = False  # whether the store may hold mail for it
    loop: asyncio.AbstractEventLoop | None = None  # where it is driven
    driver: asyncio.Task[Any] | None = None  # and by whom
    letters: dict[str, list[Letter]] = msgspec.field(
        default_factory=dict
    )  # for children that wait, by run id
    mail: list[tuple[str, asyncio.Future[Rejection | None]]] = msgspec.field(
        default_factory=list
    )  # by message id; to be answered
    mail_taken: set[str] = msgspec.field(default_factory=set)  # ids of the messages that are being dealt with
    stopping: set[str] = msgspec.field(default_factory=set)  # children that are to be cancelled
    settled: asyncio.Future[None] | None = None  # done when this process lets go of the run
    transitions_left: int = -1  # `step`: how many outcomes may still be journaled; -1 for no limit
    arrivals: deque[Any] = msgspec.field(default_factory=deque)
    tasks: dict[tuple[int, int], asyncio.Task[Any]] = msgspec.field(default_factory=dict)
    timers: dict[int, tuple[int, asyncio.Task[None]]] = msgspec.field(default_factory=dict)
    repeats: dict[int, int] = msgspec.field(default_factory=dict)
    tried: set[str] = msgspec.field(default_factory=set)
    attached: bool = False
    stirred: bool = False
    appearing: bool = False  # it is to be put into the store
    hold: AbstractContextManager[Any] = _FREE  # to be held by whoever touches a run that is away in a thread
    recalled: bool = False  # its thread may not touch it any more
    child_due: bool = False  # a timer inside a child that waits is due
    overdue: list[int] = msgspec.field(default_factory=list)  # children that have taken too long
    _wake: asyncio.Future[None] | None = None
    _left: bool = False  # this process has let go of the run
    _facts: RunFacts | None = None

    @property
    def facts(self) -> RunFacts:
        if self._facts is None:
            keyed = None if self.engine.keys is None else lambda command: keyed_content(self, command)
            record = self.record
            self._facts = RunFacts(record.run_id, record.tenant, self.principal, Ending(), keyed)
        return self._facts

    # --- outcomes ---

    def conclude(self, outcome: Outcome) -> None:
        """An outcome of a call that was made alone. What arrived in the meantime comes first."""
        if self.arrivals:
            self.arrivals.append((outcome, None))
        else:
            self.record_event(outcome.event, outcome.payload)
            self.count_outcome()

    def appear_soon(self) -> None:
        """Put a run that lives in memory into the store when it first gives way to others, or a tool of its own looks:
        nobody else can before."""
        if not self.appearing and self.loop is not None:
            self.appearing = True
            assert self.engine.appearances is not None
            self.engine.appearances.expect(self.record.run_id, self.appear, self.loop)

    def no_longer_appearing(self) -> None:
        if self.appearing:
            assert self.engine.appearances is not None
            self.engine.appearances.expect_no_more(self.record.run_id)

    def appear(self) -> None:
        if not self.created:
            self.commit()

    @property
    def disturbed(self) -> bool:
        """Whether something wants the driver's attention between two steps."""
        return bool(
            self.arrivals
            or self.mail_waits
            or self.letters
            or self._answers
            or self.overdue
            or self.engine.draining
        )

    def deliver(
        self, event: ev.Event, payload: bytes | None, *, approves: bool = False
    ) -> asyncio.Future[Rejection | None]:
        """Hand an outside event to a run that is being driven; the future tells whether it was admitted."""
        answer = new_answer()
        if self._left:
            refuse(answer)
        else:
            arrival = Approval(event, payload) if approves else Outcome(event, payload)
            self.arrivals.append((arrival, answer))
            if type(event) is ev.RunCancelled:
                self.facts.ending.has_come = True  # a long call may want to stop at a safe place
            self.wake()
        return answer

    def forward(self, child: str, kind: str, body: dict[str, Any]) -> asyncio.Future[Rejection | None]:
        """Hand something to a child that waits, by way of this run."""
        answer = new_answer()
        if self._left:
            refuse(answer)
        else:
            self.letters.setdefault(child, []).append(Letter(kind, body, answer))
            self.wake()
        return answer

    def answer_later(self, rejection: Rejection) -> asyncio.Future[Rejection | None]:
        """A rejection that needs no kernel, told in turn with the others."""
        answer = new_answer()
        if self._left:
            refuse(answer)
        else:
            self._answers.append((answer, rejection))
            self.wake()
        return answer

    def admit(self, event: ev.Event, payload: bytes | None, *, approves: bool = False) -> Rejection | None:
        """`offer` for events from outside: one that is refused is kept as evidence, a repetition is not."""
        state = self.state
        rejection: Rejection | None
        if type(event) is ev.EventReceived and state.stage is _ENDED and event.event_id in state.seen:
            same = state.seen[event.event_id] == event_digest(event)
            rejection = Rejection(
                "DUPLICATE" if same else "EVENT_CONFLICT", f"event `{event.event_id}` is known"
            )
        elif (
            approves
            and state.stage is not _ENDED
            and type(event) is ev.EventReceived
            and event.event_id not in state.seen
            and not self._asks(event)
        ):
            rejection = Rejection("NOT_WAITING", "nothing waits for this approval")
        else:
            rejection = self.offer(event, payload)
        if rejection is not None and rejection.code != "DUPLICATE" and type(event) is ev.EventReceived:
            if rejection.code == "UNKNOWN_STEP" and self._has_called(event.step):
                rejection = Rejection("NOT_WAITING", "nothing waits for this event")
            if rejection.code in _REPEATED and is_repeated(state, event):
                return Rejection("DUPLICATE", "the same was accepted before")
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

    def _asks(self, event: ev.EventReceived) -> bool:
        """Whether what would take the event waits for an approval; for one of an action, where it names one."""
        bound = type(event.payload) is dict and "action" in event.payload
        return any(
            wait.kind == "approval"
            and (wait.action or not bound)
            and event.step in (_UNSET, wait.step)
            and event.item in (_UNSET, wait.item)
            for wait in all_waits(self.program, self.state)
        )

    def _has_called(self, way: Any) -> bool:
        """Whether there is a step at the way, in a program that was called."""
        run_id = self.record.run_id
        return type(way) is str and bool(self.program.calls) and has_come_to(self.engine, run_id, way)

    def wake(self) -> None:
        """Have the driver look again, now or at the latest before it would wait."""
        self.stirred = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def check_not_inside(self) -> None:
        """For whoever is about to wait for the run.

        Raises:
            RuntimeFault: WAITS_FOR_ITSELF in a call that the run is waiting for: neither would ever end.
        """
        task = asyncio.current_task()
        if task is self.driver or task in self.tasks.values():
            raise RuntimeFault(
                "WAITS_FOR_ITSELF",
                f"a call of run {self.record.run_id} would wait for the end of that run, which waits for the call",
                help="let the call go on: asyncio.create_task(vm.cancel(…)); or fail it with a ToolError",
                facts={"run_id": self.record.run_id},
            )

    async def wait_until_settled(self) -> None:
        """Until this process lets go of the run; to be called in the loop that drives it."""
        if self._left:
            return
        self.check_not_inside()
        if self.settled is None:
            self.settled = asyncio.get_running_loop().create_future()
        await asyncio.shield(self.settled)

    # --- the loop ---------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        """Take the run as far as it goes: to its end, to where it waits, or to where the engine shuts down."""
        try:
            while True:
                if self.transitions_left < 0 and not self.tasks and not self.timers and not self.disturbed:
                    if self.goes_on:
                        await self.flush()
                    await drive_lane(self)
                    if self.opening is not None:
                        self.open()
                    if self.state.stage is _ENDED:
                        if not self.put_down():
                            await self.flush(self.update(release=True))
                        return
                    # Of a group that the lane has left, calls may be under way, or their outcomes to be taken.
                    if not self.tasks and not self.disturbed and await drive_together(self):
                        continue
                elif self.opening is not None:
                    self.open()
                if not await self._turn():
                    return
        except BaseException:
            await self.abandon()
            raise
        finally:
            if self.appearing:
                self.no_longer_appearing()
            if self.timers or self.tasks:
                self._cancel_all()
            self._refuse_arrivals()

    async def _turn(self) -> bool:
        """One round; False when there is nothing more to do here.

        Invariant: only the driver of a run applies events to it. Whoever has something for it hands it in (`deliver`)
        and is told when it is durable."""
        if self.mail_waits:
            self.mail_waits = False
            self.engine.take_mail(self)
        if self.arrivals:
            self._take_arrivals()
        engine = self.engine
        if self.state.stage is _ENDING:
            self._stop_models()
        if engine.draining or self.transitions_left == 0:
            if not self.tasks and not self.arrivals:
                await self._let_go()
                return False
            await self.flush()
            await self._something()
            return True
        launches: list[tuple[Command, ToolSpec | None, int]] = []
        if self.letters or self.child_due or not self.attached:
            attending.attach_children(self, launches)
        while self.overdue:
            attending.stop_child(self, self.overdue.pop(), launches)
        seq = self.state.seq
        stage = self.state.stage
        for command in decide(self.program, self.state):
            if self.gate is not None:
                await self.gate.ahead(command)
            prepare(self, command, launches)
            if self.state.stage is not stage or (self.transitions_left == 1 and launches):
                break  # the other commands were for a run that went on
        if self.state.stage is _ENDED:
            await self._let_go()
            return False
        if len(launches) == 1 and len(self.state.active) == 1 and not self.tasks and not self.timers:
            command, spec, limit = launches[0]
            if type(command) is CallTool and spec is not None:
                await call_alone(self, command, spec)
                return True
        if launches:
            await self.flush()
            exclusive = []
            for command, spec, limit in launches:
                if spec is not None and spec.effect == "transactional" and type(command) is not Reconcile:
                    exclusive.append((command, spec))
                else:
                    spawn(self, command, spec, limit)
            for command, spec in exclusive:
                assert type(command) is CallTool or type(command) is Compensate
                await transact(self, command, spec)
            return True
        if self.state.seq != seq or self.arrivals:
            return True  # something was journaled without a call, or a timer is due: look again
        if self.tasks or (self.timers and self.state.busy):
            await self.flush()
            await self._something()
            return True
        if self.state.status is _SUSPENDED:
            if self.mail_waits or self.overdue or self.child_due:
                return True
            await self._let_go()
            return False
        raise RuntimeFault("INTERNAL", "the run has nothing to do and nothing to wait for")

    def begins(self, command: CallTool, task: asyncio.Task[None]) -> None:
        """A call of a tool that goes on beside others in a task of its own."""
        self.tasks[activity_key(command.step, command.item), command.attempt] = task

    def ends(self, command: Command, outcome: Outcome | None, failure: BaseException | None) -> None:
        """What came of a call beside others joins the arrivals; `failure` is one of ours, not of what was called."""
        if isinstance(failure, asyncio.CancelledError):
            failure = Released()
        self.tasks.pop((activity_key(command.step, command.item), command.attempt), None)
        if failure is not None or outcome is not None:
            self.arrivals.append((outcome if failure is None else failure, None))
        self.wake()

    def admit_arrivals(self, answer: Answer) -> Rejection | None:
        """Take what was handed in before anybody drives the run. Returns why `answer` is a refusal, if it is one that
        is known already; nobody is told before that is durable."""
        self._take_arrivals()
        return next((rejection for each, rejection in self._answers if each is answer), None)

    async def leave(self) -> None:
        """Let go of a run that is not driven here after all: what was refused is journaled, and nothing else done."""
        try:
            await self.flush(self.update(release=True))
        except BaseException:
            await self.give_up()
            raise
        self._left = True
        self.engine.parking.keep(self)

    def _take_arrivals(self) -> None:
        while self.arrivals:
            arrival, answer = self.arrivals.popleft()
            if isinstance(arrival, Released):
                continue
            if isinstance(arrival, BaseException):
                raise arrival
            event, payload = arrival
            if answer is not None:
                rejection = self.admit(event, payload, approves=type(arrival) is Approval)
                self._answers.append((answer, rejection))
                continue
            rejection = self.offer(event, payload)
            if rejection is not None:
                # A timer may lose a race against what it timed, a call without effects against the end of the run, and
                # whoever asks what became of a call against an operator who says so.
                late = (
                    rejection.code in ("STALE_ATTEMPT", "DUPLICATE") or getattr(event, "pure", _UNSET) is True
                )
                if not late and type(event) not in (ev.TimerFired, ev.OutcomeResolved):
                    defect(self.record.run_id, event, rejection)
            elif type(event) is not ev.TimerFired:
                self.count_outcome()

    def count_outcome(self) -> None:
        if self.transitions_left > 0:
            self.transitions_left -= 1

    def _stop_models(self) -> None:
        """A run that is ending does not wait for answers it will not use; effects are waited for, and told."""
        self.facts.ending.has_come = True
        for key, task in self.tasks.items():
            step = self.program.steps[key[0] & 0xFFFFFF] if key[0] >= 0 else None
            if step is not None and step.kind in (Kind.LLM, Kind.AGENT):
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

    async def _let_go(self) -> None:
        """Stop at a safe place: everything that happened is journaled, nothing is under way."""
        if self.transitions_left == 0 and self.state.stage is _ENDING:
            for command in decide(self.program, self.state):
                if type(command) is Finish:
                    prepare(self, command, [])
        if self.mail:
            await self.flush()
            await self.engine.answer_mail(self)
        await self.flush(self.update(release=True))
        self.engine.parking.keep(self)

    def keep_up(self) -> None:
        """Write what has been gathered while a tool keeps the run waiting: the results of steps without effects, which
        ask for no commit. To be called in the loop that drives it."""
        if self.engine.volatile or not (self.pending or self.batch):
            return
        hold = self.hold
        if isinstance(hold, LockType) and not hold.acquire(blocking=False):
            return  # its thread is at work, and no tool keeps it
        try:
            # Sealed at once: the chain goes on before this is written.
            if self.pending:
                self.seal_pending()
            with contextlib.suppress(NanoVMError):  # the next commit tells, for it follows this one
                durable = self.commit()
                if durable is not None:
                    asyncio.ensure_future(durable).add_done_callback(_look_away)
        finally:
            if isinstance(hold, LockType):
                hold.release()

    async def create(self) -> None:
        """`flush` of a new run that nobody drives yet: when its maker is cancelled over it, it is left for others."""
        try:
            await self.flush(creates=True)
        except asyncio.CancelledError:
            if self.created:
                await self.abandon()
            raise

    async def abandon(self) -> None:
        """Something failed that is not part of the run (the store, the process): leave the journal as it is. What was
        in flight becomes an unknown outcome for whoever recovers the run."""
        for task in list(self.tasks.values()):
            task.cancel()
        try:
            if self.tasks:
                await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        finally:  # whoever cancels us twice does not wait for them, but others may have the run
            if self.engine.volatile:
                with contextlib.suppress(NanoVMError):
                    self.commit()  # entries were gathered here that describe what has happened
            # Where this fails, the lease runs out, or the lock is free as soon as we are gone.
            with contextlib.suppress(NanoVMError):
                await patiently(lambda: self.engine.store.release(self.record.run_id, self.fence))

    async def give_up(self) -> None:
        """`abandon`, before it was driven at all: whoever has handed something in, or waits for it, is told as well."""
        try:
            if self.created:
                await self.abandon()
        finally:
            self._refuse_arrivals()

    def _cancel_all(self) -> None:
        for _, timer in self.timers.values():
            timer.cancel()
        for task in self.tasks.values():
            task.cancel()  # calls without effects, whose results a run that has ended does not take

    def _refuse_arrivals(self) -> None:
        self._left = True
        if not (self.arrivals or self._answers or self.letters):
            return
        for answer, _ in self._answers:
            refuse(answer)
        while self.arrivals:
            _, answer = self.arrivals.popleft()
            refuse(answer)
        for letters in self.letters.values():
            for letter in letters:
                refuse(letter.answer)
        self.letters.clear()


def _look_away(written: asyncio.Future[None]) -> None:
    """A failure shows again where it matters: at the next commit, which would leave a gap."""
    if not written.cancelled():
        written.exception()


__all__ = ["Letter", "Run", "RunLeft"]
