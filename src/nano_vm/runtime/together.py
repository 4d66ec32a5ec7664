"""Driving a group of plain tools: their calls are begun one after another, and those that answer at once need no task
of their own.

Where all of them do, the group is one stretch of the lane (`call_together`). Where one has to wait or does not succeed
as plain tools do, the group is opened as the general functions open it, and what has been answered is taken by it
(`leave_together`, `drive_together`). The journal is the one the driver would write, byte for byte; a test compares
them.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task  # documented for whoever implements tasks
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import copy_context
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any

from nano_vm.canonical import INT_MAX, encode_scalar, normalize
from nano_vm.errors import InputError
from nano_vm.journal.plain import ALONE, LAST, Success, end_of, success_of, with_verdicts
from nano_vm.kernel.commands import CallTool
from nano_vm.kernel.lane import GroupCall, ends_plainly, finish
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX
from nano_vm.kernel.together import Lanes, begin_lane, lanes, succeed_lane
from nano_vm.runtime.calls import copy_arguments
from nano_vm.runtime.failures import is_ours
from nano_vm.runtime.outcomes import Outcome
from nano_vm.runtime.plans import AWAITED, BY_PLACE, Plan, lane_of, plan_for
from nano_vm.runtime.tooling import PENDING

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run


class NotAnsweredAtOnce(Exception):
    """Some call of a group has to be waited for, or has not succeeded as plain tools do."""

    def __init__(self, together: _Together) -> None:
        super().__init__()
        self.together = together


def call_together(run: Run, group: Plan, occurrence: int, call: GroupCall) -> Any:
    """Make the calls of a group whose intents are journaled; returns what the last of them yields, as data.

    Raises:
        NotAnsweredAtOnce: there is more to do than that.
    """
    together = _Together(run, group.lanes, call.args, occurrence)
    together.begin_some()
    taken = together.taken
    if len(taken) < len(group.lanes):
        raise NotAnsweredAtOnce(together)
    taken.pop()  # what rides with the last one is not known yet
    run.pending.extend(taken)
    call.values = together.values
    call.at_ms = together.at_ms
    call.events = group.more
    return call.values.pop()


def leave_together(run: Run, left: BaseException | None) -> None:
    """Go on with a group that is open now, and whose calls have begun (`NotAnsweredAtOnce`)."""
    assert type(left) is NotAnsweredAtOnce
    opened = lanes(run.program, run.state, begun=True)
    assert opened is not None
    left.together.go_on(opened)


async def drive_together(run: Run) -> bool:
    """Begin every call of the group that the run has just opened, and take what is answered at once. False, and nothing
    is done, where there is none or it is one for the driver."""
    engine = run.engine
    if not engine.lane or run.gate is not None or run.listener is not None or engine.listeners:
        return False
    opened = lanes(run.program, run.state)
    if opened is None:
        return False
    known = lane_of(engine, run.program, run.state.labels is not None)
    plans, arguments = [], []
    for activity in opened.activities:
        plan = known.plans[activity.step] or plan_for(known, activity.step, run.program, engine.tools)
        if not plan or not plan.joins:
            return False
        plans.append(plan)
        arguments.append(activity.request)
    if are_amiss(plans, arguments):
        return False
    effects = False
    for activity, plan in zip(opened.activities, plans, strict=True):
        if plan.steady.events != 1:
            effects = True
            begin_lane(run.state, activity, plan.spec.effect)
            run.ride(plan.started(run.state.now_ms, activity.occurrence, item=activity.item))
    run.seal_open()
    if engine.volatile:
        if not run.created:
            run.appear_soon()
    elif effects:
        await run.flush()
    together = _Together(run, plans, arguments, opened.activities[0].occurrence)
    together.go_on(opened)
    return True


def are_amiss(plans: Sequence[Plan], arguments: Sequence[Any]) -> bool:
    """Whether something is wrong with the arguments of a call, which the general path says."""
    for plan, args in zip(plans, arguments, strict=True):
        _, _, _, only, kinds, _, _, _ = plan.parts
        if only is None or type(args[only]) not in kinds:
            problems = plan.spec.problems
            if problems is not None and problems(args):
                return True
    return False


class _Together:
    """The calls of a group while they are begun.

    `values` and `taken` are of the first of them, as far as each has been answered at once by data: what it yielded,
    and its success, with nothing riding; `at_ms` is the latest of their times. From the first that was not, or that the
    run has `opened` the group, outcomes are arrivals or are settled in turn.
    """

    __slots__ = ("arguments", "at_ms", "begun", "occurrence", "opened", "plans", "run", "taken", "values")

    def __init__(self, run: Run, plans: Sequence[Plan], arguments: Sequence[Any], occurrence: int) -> None:
        self.run = run
        self.plans = plans
        self.arguments = arguments
        self.occurrence = occurrence
        self.begun = 0
        self.at_ms = 0
        self.values: list[Any] = []
        self.taken: list[Success] = []
        self.opened: Lanes | None = None

    def begin_some(self) -> None:
        """Begin calls until one has to wait, or none is left."""
        loop = asyncio.get_running_loop()
        driver = asyncio.current_task(loop)
        assert driver is not None
        # A tool may tie itself to the task it is in, and what it does from its first wait on is done in a task of its
        # own. So that task is the current one from the beginning. It serves until a call needs it, or the loop turns.
        # (A tool may run a program of its own, whose groups need others meanwhile.)
        engine = self.run.engine
        waiting, engine.spare = engine.spare, None
        if waiting is None or waiting.is_over or waiting.loop is not loop:
            waiting = Waiting(loop)
        task = waiting.task
        _leave_task(loop, driver)
        _enter_task(loop, task)
        self.run.driver = task
        try:
            self._begin(waiting, task)
        finally:
            self.run.driver = driver
            _leave_task(loop, task)
            _enter_task(loop, driver)
        if waiting.call is not None:
            self.run.begins(self.command(waiting.place), task)
        elif not task.cancelling():
            engine.spare = waiting

    def go_on(self, opened: Lanes) -> None:
        """Begin all that are left, in a run that has opened the group."""
        self.opened = opened
        for place, (value, success) in enumerate(zip(self.values, self.taken, strict=True)):
            self._settle(place, value, success[2], int(success[0]))
        while self.begun < len(self.plans):
            self.begin_some()
        if self.run.pending:
            self.run.seal_pending()

    def _begin(self, waiting: Waiting, task: asyncio.Task[None]) -> None:
        """Begin calls, as long as each is answered at once. The first that has to wait is what is waited for."""
        values, taken, occurrence = self.values, self.taken, self.occurrence
        now_ms, cancelling = self.run.engine.clock.now_ms, task.cancelling
        in_turn = self.opened is None and not self.begun
        before_ms, at = -1, ""
        plans, arguments = self.plans, self.arguments
        answers = waiting.answers
        begin = waiting.begin_calls()
        for place in range(self.begun, len(plans)):
            if cancelling():
                return  # a tool has cancelled its own task, which is of no use to another
            self.begun = place + 1
            plan, args = plans[place], arguments[place]
            function, direct, _, only, _, success, _, _ = plan.parts
            context = copy_context()  # what a tool sets there is for nobody else
            call = None
            try:
                if direct == BY_PLACE:
                    call = function(args[only])
                elif direct:
                    call = function(**args)
                elif plan.way == AWAITED:
                    call = context.run(function, **(args if plan.flat else copy_arguments(args)))
                else:
                    value = context.run(function, **(args if plan.flat else copy_arguments(args)))
                if call is not None:
                    if type(call) is not CoroutineType:
                        call = _wait_for(call)
                    awaited = context.run(begin, call)
                    if not answers:
                        waiting.take_over(self, place, context.run, awaited)
                        return
                    value = answers.pop()
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # nobody but the tool itself can have cancelled a task that is new
                in_turn = False
                waiting.calls = None
                begin = waiting.begin_calls()
                failure = (
                    RuntimeError(f"the tool raised {error!r}") if type(error) is StopIteration else error
                )
                self._report(self.raised(place, failure))
                continue
            if in_turn and type(value) is int and _INT_MIN <= value <= INT_MAX:
                payload = encode_scalar(value)
            else:
                kept = _kept(value)
                if kept is None or not in_turn:
                    in_turn = False
                    self._take(place, value, kept)
                    continue
                value, payload = kept
            if (moment := now_ms()) != before_ms:
                before_ms, at = moment, str(moment)
                if moment > self.at_ms:
                    self.at_ms = moment
            if occurrence != 1:
                success = _success(plan, occurrence, -1)
            values.append(value)
            taken.append((at, success, payload, "", "", LAST))

    def _take(self, place: int, value: Any, kept: tuple[Any, bytes] | None) -> None:
        if kept is None or self.opened is None or self.run.arrivals:
            self._report(self.concluded(place, value))  # what has come before it is taken before it
        else:
            self._settle(place, *kept, self.run.engine.clock.now_ms())

    def concluded(self, place: int, value: Any) -> Outcome:
        return self.run.engine.calls.concluded(self.command(place), self.plans[place].spec, value)

    def raised(self, place: int, error: BaseException) -> Outcome:
        plan = self.plans[place]
        return self.run.engine.calls.raised(plan.step, self.command(place), plan.spec, error)

    def _report(self, outcome: Outcome) -> None:
        self.run.arrivals.append((outcome, None))
        self.run.wake()

    def _settle(self, place: int, value: Any, payload: bytes, at_ms: int) -> None:
        """Take the success of a call in a group that is open."""
        run, plan = self.run, self.plans[place]
        assert self.opened is not None
        state = run.state
        activity = self.opened.activities[place]
        item = activity.item
        success = _success(plan, self.occurrence, item)
        if not succeed_lane(run.program, state, self.opened.group, activity, value, at_ms):
            run.pending.append((str(at_ms), success, payload, *ALONE))
            return
        if ends_plainly(state):
            ended_ms = run.engine.clock.now_ms()
            if state.verdicts:
                success = with_verdicts(success, state.verdicts)
            finish(state, ended_ms)
            before, after = end_of(state.ending, state.outcome)
            run.pending.append((str(at_ms), success, payload, before, str(ended_ms), after))
            return
        if run.pending:
            run.seal_pending()
        run.retain(plan.succeeded(at_ms, self.occurrence, value, state.verdicts, item=item), payload)

    def command(self, place: int) -> CallTool:
        """The command that the kernel gives for the call."""
        item = -1 if self.opened is None else self.opened.activities[place].item
        return self.plans[place].command(self.arguments[place], self.occurrence, item)


class Waiting(Coroutine[Any, Any, None]):
    """What a call that has to wait becomes: it has begun in `task`, and goes on there. Without one it is over as soon
    as the loop turns."""

    __slots__ = (
        "answers",
        "awaited",
        "call",
        "calls",
        "is_over",
        "loop",
        "place",
        "run_in",
        "task",
        "together",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.is_over = False
        self.call: Generator[Any, Any, Any] | None = None
        self.calls: Generator[Any, Any, Any] | None = None  # that may become the call
        self.answers: list[Any] = []
        self.together: _Together
        self.awaited: Any = None  # what the call has yielded
        self.run_in: Callable[..., Any]  # of its context
        self.place = 0
        # Not by the loop's factory, which may begin tasks at once: this one has nothing to do yet.
        self.task = asyncio.Task(self, loop=loop)

    def begin_calls(self) -> Callable[[Any], Any]:
        """To be given calls: one that is answered at once leaves its answer in `answers`; of one that has to wait it
        gives what that has yielded, and is its from then on. One that fails ends it."""
        calls = self.calls
        if calls is None:
            calls = self.calls = _one_after_another(self.answers)
            next(calls)
        return calls.send

    def take_over(self, together: _Together, place: int, run_in: Callable[..., Any], awaited: Any) -> None:
        """Be the call that has to wait."""
        self.call, self.calls = self.calls, None
        self.answers.append(None)
        self.together, self.place, self.run_in, self.awaited = together, place, run_in, awaited

    def send(self, value: Any) -> Any:
        if self.call is None:
            self.is_over = True
            raise StopIteration
        if self.awaited is not None:
            awaited, self.awaited = self.awaited, None
            return awaited
        return self._proceed(self.call.send, value)

    def throw(self, error: Any, *details: Any) -> Any:
        if self.call is None:
            self.is_over = True
            raise error
        self.awaited = None
        return self._proceed(self.call.throw, error)

    def close(self) -> None:
        if self.call is not None:
            self.call.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("it is for a task alone")

    def _proceed(self, take_on: Callable[..., Any], value: Any) -> Any:
        together, place = self.together, self.place
        try:
            return self.run_in(take_on, value)
        except StopIteration as done:
            outcome: Outcome | None = together.concluded(place, done.value)
            failure: BaseException | None = None
        except BaseException as error:
            ours = is_ours(error)
            outcome = None if ours else together.raised(place, error)
            failure = error if ours else None
        together.run.ends(together.command(place), outcome, failure)
        raise StopIteration


@coroutine
def _one_after_another(answers: list[Any]) -> Generator[Any, Any, Any]:
    """Awaits calls, as long as nobody has to wait: then an answer needs no exception to be told."""
    call = yield
    while True:
        answer = yield from call
        if answers:
            return answer  # it has had to wait
        answers.append(answer)
        call = yield


async def _wait_for(value: Any) -> Any:
    return await value


def _success(plan: Plan, occurrence: int, item: int) -> str:
    if occurrence == 1 and item < 0:
        return plan.steady.success
    return success_of(plan.step.id, plan.steady.events == 1, occurrence, item=item)


def _kept(value: Any) -> tuple[Any, bytes] | None:
    """The value as data, and its canonical bytes; None when it is not one that is simply kept."""
    if value is PENDING or (type(value) is str and value == "PENDING"):
        return None
    try:
        value, payload = normalize(value)
    except InputError:
        return None
    return None if len(payload) > PAYLOAD_BYTES_MAX else (value, payload)


_INT_MIN = -INT_MAX
