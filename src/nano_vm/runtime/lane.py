"""Driving along the lane: one tool after another, with nothing beside them.

This is the driver's loop for the transitions of `nano_vm.kernel.lane`, with everything it does for other cases left
out. The journal it writes is the one the driver would write, byte for byte; a test compares them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm.canonical import INT_MAX, encode_scalar, normalize
from nano_vm.errors import InputError, RuntimeFault
from nano_vm.journal.entry import ALONE, end_of, intent_of, success_of
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool
from nano_vm.kernel.lane import Rows, begin, ends_plainly, finish, is_plain, lane, walk
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import Activity
from nano_vm.program.compiled import CompiledProgram, CompiledStep, ToolAction
from nano_vm.runtime.calls import copy_arguments, is_ours
from nano_vm.runtime.ports import ToolInvoker, ToolSpec
from nano_vm.runtime.threads import ThreadsExhaustedError
from nano_vm.runtime.tooling import PENDING

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run
    from nano_vm.runtime.engine import Engine

_TURN = range(32)  # steps after which other runs get their turn, though no tool and no commit gave them one
BATCH_MAX = 64  # entries that are gathered where nothing asks for a commit: pure steps, and stores in memory


_AWAITED, _CALLED, _BLOCKING, _NOWHERE = 0, 1, 2, 3  # ways to call a tool, and none of them
_FREE: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


class _Plan(NamedTuple):
    """What has to be known of a step to take it along the lane; worked out once per engine and step."""

    step: CompiledStep
    spec: ToolSpec
    function: Callable[..., Any]
    problems: Callable[[dict[str, Any]], list[str]] | None
    flat: bool  # arguments without problems hold no object and no array, so the tool needs no copy of them
    events: int  # how many a success takes: 1 when the tool is pure, else 2 with its intent
    way: int  # `_AWAITED`; `_CALLED`: a plain function that returns at once; `_BLOCKING`: one that may not
    success: str  # the encoded StepSucceeded of its first occurrence, from `attempt` to `step`
    intent: str  # its StepStarted that rides with a success, before the time
    intended: str  # and after it, of the first occurrence


class Lane(NamedTuple):
    """What an engine knows of a program's steps: as the kernel takes them, and as they are called."""

    rows: Rows
    plans: list[Any]  # by step: `_Plan`, None before it is needed, False where there is none


class _NotPlain(Exception):
    """The value is for the general path."""


async def drive_lane(run: Run) -> None:
    """Take the run along the lane as far as it goes, to its end even; the driver takes over from there."""
    engine = run.engine
    if not engine.lane or run.listener is not None or engine.listeners:
        return
    elsewhere = await _along(run, None)
    while elsewhere and not _is_crowded(engine):
        # Plain functions may block. Handing each of them to a thread would cost more than all the rest of its step, so
        # the run goes to the thread, as long as it has such steps. (But where runs share commits it would have to
        # make its own there.)
        try:
            elsewhere = await _away(run)
        except ThreadsExhaustedError:
            return
        if elsewhere:
            elsewhere = await _along(run, None)


async def _away(run: Run) -> bool:
    """`_along` in a thread."""
    hold = threading.Lock()
    run.hold, run.recalled = hold, False

    def leg() -> bool:
        with hold:
            return False if run.recalled else _finish(_along(run, hold))

    try:
        return bool(await run.engine.threads.run(leg))
    except asyncio.CancelledError:
        run.recalled = True
        with hold:
            pass  # what the thread was writing is written, and it will write no more
        raise
    finally:
        run.hold = _FREE


def _is_crowded(engine: Engine) -> bool:
    """Whether runs share their commits: then one that is ready waits for the others of the same tick."""
    return engine.groups and len(engine.store.driven) > 1  # type: ignore[attr-defined]


def _finish(leg: Coroutine[Any, Any, bool]) -> bool:
    """The result of a coroutine that has nothing to wait for."""
    try:
        leg.send(None)
    except StopIteration as done:
        return bool(done.value)
    leg.close()
    raise RuntimeFault("INTERNAL", "a run that is away in a thread cannot wait")


class _Recalled(BaseException):
    """The run was given up while its tool was out in a thread."""


def _call_away(run: Run, hold: threading.Lock, function: Callable[..., Any], args: dict[str, Any]) -> Any:
    hold.release()
    try:
        return function(**args)
    finally:
        hold.acquire()
        if run.recalled:
            raise _Recalled


async def _along(run: Run, away: threading.Lock | None) -> bool:
    """Take the run along as far as it goes here: in the event loop, or `away` in a thread, which holds that lock but
    while a tool is out, and where nothing is awaited. True when the next step is one for the other place."""
    program, state, engine = run.program, run.state, run.engine
    activity = lane(program, state)
    gate, policy = run.gate, engine.policy
    if activity is None or (gate is not None and (away is not None or not gate.may_go_along)):
        return False
    ruling = 0 if gate is None else 1  # events that decisions add to a success
    decided = False  # the tool that was reached has its decision in the journal
    tightened = False  # the policy changed while an intent was being made durable
    passed: list[int] = []
    known = engine.lanes.get(program.hash)
    if known is None:
        known = engine.lanes[program.hash] = Lane(Rows(program), [None] * len(program.steps))
    plans, now_ms, volatile = known.plans, engine.clock.now_ms, engine.volatile
    barred = _AWAITED if away is not None else _NOWHERE if engine.calls.inline_sync else _BLOCKING
    elsewhere = False
    walker = walk(program, state, activity, known.rows)
    go_on = walker.send
    pending = run.pending
    take = pending.append
    value = failure = None
    out = False  # a tool is out whose intent is in the journal
    held = (
        False  # there is a success of which it is not known what rides with it: the next intent, or the end
    )
    success, payload, at_ms, at = "", b"", 0, ""
    index, occurrence, args, verdicts = next(walker)
    plan = plans[index] or _plan_for(plans, index, program, engine.tools)
    if not plan or plan.way == barred or (plan.problems is not None and plan.problems(args)):
        walker.close()
        return plan is not None and plan.way == barred
    step, spec, function, problems, flat, events, way, same, intent, intended = plan
    if gate is not None:
        ruled = gate.along(step, occurrence)
        if ruled is None:
            walker.close()
            return False
        ruled.at_ms = state.now_ms
        run.ride(ruled)
        decided = True
    if events != 1:
        run.ride(_started(state.now_ms, spec, step, occurrence))
    run.seal_open()  # what came before the lane comes before it in the journal
    try:
        while True:
            for _ in _TURN:
                if events != 1:
                    out = True
                    if not (volatile and run.created):
                        durable = run.commit()
                        if durable is not None:
                            await durable
                            if engine.groups and not _is_crowded(engine):
                                engine.store.alone = True  # type: ignore[attr-defined]
                            if gate is not None and engine.policy is not policy:
                                tightened = True
                                break
                if not flat:
                    args = copy_arguments(args)
                try:
                    if way == _AWAITED:
                        value = await function(**args)
                    elif away is None:
                        value = function(**args)
                    else:
                        value = _call_away(run, away, function, args)
                except BaseException as error:
                    if type(error) is _Recalled or is_ours(error):
                        raise
                    failure = (
                        RuntimeError(f"the tool raised {error!r}") if type(error) is StopIteration else error
                    )
                    break
                kind = type(value)
                if kind is int and _INT_MIN <= value <= INT_MAX:
                    data, payload = value, encode_scalar(value)
                elif value is PENDING or (kind is str and value == "PENDING"):
                    failure = _NotPlain()
                    break
                else:
                    try:
                        data, payload = normalize(value)
                        if len(payload) > PAYLOAD_BYTES_MAX:
                            raise _NotPlain
                    except (InputError, _NotPlain):
                        failure = _NotPlain()
                        break
                moment = now_ms()
                if moment != at_ms:
                    at_ms, at = moment, str(moment)
                success = same if occurrence == 1 else success_of(step.id, events == 1, occurrence)
                out, held, last, reached = False, True, plan, occurrence
                if gate is not None:
                    decided = False
                    passed.append(step.index)
                index, occurrence, args, verdicts = go_on((data, at_ms, events + ruling))
                if (run.stirred or away) and (run.disturbed or (away and _is_crowded(engine))):
                    break
                plan = plans[index] or _plan_for(plans, index, program, engine.tools)
                if not plan:
                    break
                step, spec, function, problems, flat, events, way, same, intent, intended = plan
                if way == barred or (problems is not None and problems(args)):
                    elsewhere = way == barred
                    break
                if gate is not None:
                    if engine.policy is not policy:
                        break
                    rides = gate.rides(step, occurrence, None if events == 1 else intended)
                    if rides is None:
                        break
                    held, decided = False, True
                    if occurrence != 1 and events != 1:
                        intended = intent_of(step.id, spec.effect, occurrence)[1]
                    before, between = rides
                    after = between if events == 1 else f"{between}{at}{intended}"
                    take((at, success, verdicts, payload, before, at, after))
                    continue
                held = False
                if events == 1:
                    take((at, success, verdicts, payload, *ALONE))
                else:
                    if occurrence != 1:
                        intended = intent_of(step.id, spec.effect, occurrence)[1]
                    take((at, success, verdicts, payload, intent, at, intended))
            else:
                run.seal_pending()
                if len(run.batch) >= BATCH_MAX:
                    durable = run.commit()
                    if durable is not None:
                        await durable
                if away is None:
                    await asyncio.sleep(0)  # others have their turn
                continue
            break
    except StopIteration:
        verdicts = state.verdicts
    finally:
        walker.close()
        if gate is not None:
            gate.progress.passed(passed)
            activity.cleared = 1 if decided else 0
            state.seq += decided
        if out:
            begin(state, activity, spec.effect)
    if pending:
        run.seal_pending()
    if tightened:
        assert gate is not None
        command = _command(step, activity)
        outcome = await gate.recheck_changed(command, spec)
        if outcome is None:
            outcome = await engine.calls.tool(run.facts, step, command, spec, alone=True)
        run.conclude(outcome)
    elif failure is not None:
        command = _command(step, activity)
        if type(failure) is _NotPlain:
            run.conclude(engine.calls.concluded(command, spec, value))
        else:
            run.conclude(engine.calls.raised(step, command, spec, failure))
    elif held and ends_plainly(state):
        ended_ms = now_ms()
        finish(state, ended_ms)
        before, after = end_of(state.ending, state.outcome)
        take((at, success, verdicts, payload, before, str(ended_ms), after))
        run.seal_pending()
    elif held:
        run.retain(_succeeded(at_ms, reached, last, data, verdicts), payload)
    return elsewhere


def _plan_for(plans: list[Any], index: int, program: CompiledProgram, tools: ToolInvoker) -> _Plan | None:
    """The plan of a step that has none yet, or None when the lane cannot take it."""
    if plans[index] is None:
        plans[index] = _plan(program.steps[index], tools) or False
    return plans[index] or None


def _plan(step: CompiledStep, tools: ToolInvoker) -> _Plan | None:
    """The plan of a step; None when its call needs more than its arguments."""
    action = step.action
    spec = tools.spec(action.tool) if type(action) is ToolAction else None
    if (
        spec is None
        or step.timeout_ms
        or not is_plain(step)
        or spec.context_parameter is not None
        or spec.effect == "transactional"
        or spec.schema.output_label is not None
        or spec.secrets
    ):
        return None
    intent, intended = intent_of(step.id, spec.effect, 1)
    return _Plan(
        step=step,
        spec=spec,
        function=spec.function,
        problems=spec.problems,
        flat=_is_flat(spec),
        events=1 if spec.effect == "pure" else 2,
        way=_AWAITED if spec.is_async else _BLOCKING if spec.blocking else _CALLED,
        success=success_of(step.id, spec.effect == "pure", 1),
        intent=intent,
        intended=intended,
    )


def _is_flat(spec: ToolSpec) -> bool:
    schema = spec.schema.parameters
    if spec.problems is None or schema.get("additionalProperties") is not False:
        return False
    return all(
        type(property) is dict and property.get("type") in _SCALARS
        for property in schema.get("properties", {}).values()
    )


_INT_MIN = -INT_MAX
_SCALARS = ("string", "integer", "number", "boolean", "null")


def _started(at_ms: int, spec: ToolSpec, step: CompiledStep, occurrence: int) -> ev.StepStarted:
    return ev.StepStarted(at_ms=at_ms, attempt=1, effect=spec.effect, occurrence=occurrence, step=step.id)


def _succeeded(
    at_ms: int, occurrence: int, plan: _Plan, data: Any, verdicts: list[Any] | None
) -> ev.StepSucceeded:
    return ev.StepSucceeded(
        at_ms=at_ms,
        attempt=1,
        occurrence=occurrence,
        payload=data,
        pure=True if plan.events == 1 else ev.UNSET,
        step=plan.step.id,
        verdicts=verdicts or ev.UNSET,
    )


def _command(step: CompiledStep, activity: Activity) -> CallTool:
    """The command that the kernel gives for the activity."""
    action = step.action
    assert type(action) is ToolAction
    return CallTool(
        step=step.index,
        step_id=step.id,
        occurrence=activity.occurrence,
        item=-1,
        attempt=activity.attempt,
        tool=action.tool,
        args=activity.request,
    )
