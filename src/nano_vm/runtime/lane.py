"""Driving along the lane: one tool after another, with nothing beside them.

This is the driver's loop for the transitions of `nano_vm.kernel.lane`, with everything it does for other cases left
out. The journal it writes is the one the driver would write, byte for byte; a test compares them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeAlias

from nano_vm.canonical import INT_MAX, encode_scalar, normalize
from nano_vm.errors import InputError, NanoVMError, RuntimeFault
from nano_vm.journal.entry import start_of
from nano_vm.journal.plain import ALONE, end_of, intent_of, success_of, with_start, with_verdicts
from nano_vm.kernel import events as ev
from nano_vm.kernel.lane import (
    Reached,
    Taken,
    Track,
    begin,
    ends_plainly,
    finish,
    lane,
    open_run,
    walk,
)
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX
from nano_vm.program.compiled import SLOT_ARGS
from nano_vm.runtime.admission import tainted
from nano_vm.runtime.calls import context_of, copy_arguments
from nano_vm.runtime.failures import is_ours
from nano_vm.runtime.plans import AWAITED, BLOCKING, BY_PLACE, NOWHERE, Lane, Plan, intents, lane_of, plan_for
from nano_vm.runtime.rulings import amount_at
from nano_vm.runtime.threads import ThreadsExhaustedError
from nano_vm.runtime.together import are_amiss, call_together, leave_together
from nano_vm.runtime.tooling import PENDING

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run
    from nano_vm.runtime.engine import Engine

_TURN = range(32)  # steps after which other runs get their turn, though no tool and no commit gave them one
BATCH_MAX = 64  # entries that are gathered where nothing asks for a commit: pure steps, and stores in memory


_FREE: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


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
    run.no_longer_appearing()  # it is the thread's from here on

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


_Leg: TypeAlias = tuple[Generator[Reached, Taken, None], Plan, int, Any, Track | None]
"""What `_along` sets out with: the walk, the first tool, its occurrence and its arguments. It has its decision and
its intent."""


def _set_out(run: Run, known: Lane, barred: int) -> _Leg | bool:
    """Go up to the first tool. Where it is not one for here: whether it is one for the other place."""
    program, state, gate, opening = run.program, run.state, run.gate, run.opening
    if opening is None:
        activity = lane(program, state)
        if activity is None:
            return False
        track = None if state.labels is None else Track(program, state, activity)
        walker = walk(program, state, activity, known.rows, track, gate is None)
    else:
        if not open_run(program, state, opening[0], known.rows):
            return False
        run.opening = None
        track = None if state.labels is None else Track(program, state, None)
        walker = walk(program, state, None, known.rows, track, gate is None)
    reached = next(walker, None)
    ruled, rides, plan = None, None, None
    if reached is not None:
        index, occurrence, args, verdicts = reached
        plan = known.plans[index] or plan_for(known, index, program, run.engine.tools)
    # What is decided of a call may be counted: it is asked last.
    is_one = not (not plan or plan.way == barred or _is_amiss(run, plan, args, track))
    if (
        plan
        and is_one
        and gate is not None
        and gate.lane.sets_out(plan.step, occurrence, opening is not None)
    ):
        if opening is None:
            ruled = gate.lane.along(plan.step, occurrence, args, [], state.now_ms)
        else:
            intends = plan.steady.events != 1
            rides = gate.lane.rides(plan.step, occurrence, args, [], intends, opening[0].at_ms)
    if not plan or not is_one or (gate is not None and ruled is None and rides is None):
        walker.close()
        if gate is not None:
            gate.progress.note(state.settled)  # a run may begin with what settles at once
        if opening is not None:
            event, payload = opening
            event.verdicts = state.verdicts or ev.UNSET
            run.retain(event, payload)
        return plan is not None and plan.way == barred
    label = 0 if track is None else track.together
    if opening is not None:
        event, payload = opening
        at = str(event.at_ms)
        is_bare = _is_bare(event)
        start = known.starts.get((event.policy, event.label)) if is_bare else start_of(event)
        if start is None:
            start = known.starts[event.policy, event.label] = start_of(event)
        if verdicts:
            start = _told(known, start, verdicts) if is_bare else with_verdicts(start, verdicts)
        run.pending.append((at, start, payload, *_riders(plan, rides, at, label)))
        return walker, plan, occurrence, args, track
    if ruled is not None:
        ruled.at_ms = state.now_ms
        run.ride(ruled)
    for call in plan.lanes or (plan,):
        if call.steady.events != 1:
            run.ride(call.started(state.now_ms, occurrence, label=label))
    run.seal_open()  # what came before the lane comes before it in the journal
    return walker, plan, occurrence, args, track


def _riders(
    plan: Plan, rides: tuple[str, str] | None, at: str, label: int
) -> tuple[str, str, str | tuple[str, ...]]:
    """What rides with the start of a run before its first tool, as `Success` has it."""
    intends = plan.steady.events != 1
    intent, intended = plan.steady.intent, plan.steady.intended
    if label:
        intended = intent_of(plan.step.id, plan.spec.effect, 1, label)[1]
    if rides is not None:
        before, between = rides
        return before, at, (between, with_start(intended)) if intends else with_start(between)
    if type(intended) is tuple:
        return intent, at, (*intended[:-1], with_start(intended[-1]))
    return (intent, at, with_start(intended)) if intends else ("", "", with_start(ALONE[2]))


def _is_bare(event: ev.RunStarted) -> bool:
    """Whether it says no more than the program, the policy and a label, and whether labels are tracked."""
    return (
        event.key is ev.UNSET
        and event.principal is ev.UNSET
        and event.programs is ev.UNSET
        and event.replanned is ev.UNSET
    )


async def _along(run: Run, away: threading.Lock | None) -> bool:
    """Take the run along as far as it goes here: in the event loop, or `away` in a thread, which holds that lock but
    while a tool is out, and where nothing is awaited. True when the next step is one for the other place."""
    program, state, engine = run.program, run.state, run.engine
    gate, policy = run.gate, engine.policy
    if gate is not None and (away is not None or not gate.may_go_along):
        return False
    tracks = state.labels is not None or (
        run.opening is not None and (program.labelled or run.opening[0].features is not ev.UNSET)
    )
    known = lane_of(engine, program, tracks)
    barred = AWAITED if away is not None else NOWHERE if engine.calls.inline_sync else BLOCKING
    leg = _set_out(run, known, barred)
    if leg is True or leg is False:
        return leg
    if engine.volatile and not run.created:
        if away is None:
            run.appear_soon()
        else:
            run.commit()
    walker, plan, occurrence, args, track = leg
    function, direct, events, only, kinds, same, intent, intended = plan.parts
    plans, now_ms, go_on = known.plans, engine.clock.now_ms, walker.send
    rules = None if gate is None else gate.lane
    rulings = {} if rules is None else rules.rulings.by_step
    binds = rules is not None and rules.binds  # what was decided has to be durable, whatever its effect
    slots: list[Any] | None = None
    totals = {} if rules is None else rules.totals
    under, sole, counted, amount = None, None, "", None  # the limits that were counted under last, and how
    loop = None if away else run.loop
    durably = not engine.volatile  # an intent has to be durable before its tool is called
    driven = engine.store.driven if engine.groups else None  # type: ignore[attr-defined]
    passed: list[int] = []
    pending = run.pending
    index, note = plan.step.index, passed.append
    elsewhere = False
    value = failure = None
    # The last success while it is not known what rides with it, the next intent or the end: its plan and occurrence.
    # Without one a tool is out.
    held: tuple[Plan, int] | None = None
    success, payload, at_ms, at = "", b"", 0, ""
    try:
        while True:
            for _ in _TURN:
                if durably and (events != 1 or binds):
                    durable = run.commit(loop=loop)
                    if durable is not None:
                        await durable
                        if driven is not None and len(driven) == 1:
                            engine.store.alone = True  # type: ignore[attr-defined]
                    if gate is not None and engine.policy is not policy:
                        break
                try:
                    if direct == BY_PLACE:
                        value = await function(args[only])
                    elif direct:
                        value = await function(**args)
                    else:
                        value = _call(run, away, plan, occurrence, args)
                        if plan.way == AWAITED and not plan.lanes:
                            value = await value
                except BaseException as error:
                    if type(error) is _Recalled or is_ours(error):
                        raise
                    failure = (
                        RuntimeError(f"the tool raised {error!r}") if type(error) is StopIteration else error
                    )
                    break
                if type(value) is int and _INT_MIN <= value <= INT_MAX:
                    payload = encode_scalar(value)
                elif value is PENDING or (type(value) is str and value == "PENDING"):
                    failure = _NotPlain()
                    break
                else:
                    try:
                        value, payload = normalize(value)
                        if len(payload) > PAYLOAD_BYTES_MAX:
                            raise _NotPlain
                    except (InputError, _NotPlain):
                        failure = _NotPlain()
                        break
                if (moment := now_ms()) != at_ms:
                    at_ms, at = moment, str(moment)
                if occurrence == 1 and (track is None or not track.coming):
                    success = same
                else:
                    success = _success(plan, occurrence, track)
                held = plan, occurrence
                if rules is not None:
                    note(index)
                    events += 1
                index, occurrence, args, verdicts = go_on((value, at_ms, events))
                if verdicts:
                    if held[1] == 1:
                        success = _told(known, success, verdicts)
                    else:
                        success = with_verdicts(success, verdicts)
                if (run.stirred or away) and (run.disturbed or (away and _is_crowded(engine))):
                    break
                known_plan = plans[index] or plan_for(known, index, program, engine.tools)
                if not known_plan:
                    break
                plan = known_plan
                function, direct, events, only, kinds, same, intent, intended = plan.parts
                if only is None or away or type(args[only]) not in kinds:
                    elsewhere = plan.way == barred
                    if elsewhere or _is_amiss(run, plan, args, track):
                        break
                elif not direct and plan.way == barred:
                    elsewhere = True
                    break
                if track is not None and track.together:
                    if plan.protected and _is_amiss(run, plan, args, track):
                        break
                    intended = intent_of(plan.step.id, plan.spec.effect, occurrence, track.together)[1]
                elif occurrence != 1 and events != 1:
                    if plan.lanes:
                        intended = intents(plan.lanes, occurrence)[1]
                    else:
                        intended = intent_of(plan.step.id, plan.spec.effect, occurrence)[1]
                if rules is not None:
                    if engine.policy is not policy:
                        break
                    binds = False
                    ruling = rulings.get(index)
                    if ruling is not None:
                        _, rides, alone, looks, when, limited = ruling
                        before, between = alone if events == 1 else rides
                        if looks:
                            if when is not None:
                                slots = slots or rules.slots
                                slots[SLOT_ARGS] = args
                                try:
                                    if not when(slots):
                                        break
                                except NanoVMError:
                                    break
                            if limited is not None:
                                if limited is not under:
                                    under, sole = limited, rules.sole(limited, at_ms)
                                amount = None if sole is None else amount_at(sole[4], args)
                                if sole is not None and amount is not None:
                                    counted, begins, maximum, beside, _ = sole
                                    total = totals.get(counted, 0)
                                    if total + amount > maximum:
                                        break
                                    totals[counted] = total + amount
                                    between = f"{begins}{total + beside},{amount}]],{between}"
                                    binds = True
                                else:
                                    counts = rules.counts(limited, plan.step, occurrence, args, at_ms)
                                    if counts is None:
                                        break
                                    between, binds, counted = counts + between, rules.binds, ""
                        if occurrence != 1:
                            between = between.replace('"occurrence":1,', f'"occurrence":{occurrence},', 1)
                    else:
                        rode = rules.rides(plan.step, occurrence, args, passed, events != 1, at_ms)
                        if rode is None:
                            break
                        (before, between), binds, counted = rode, rules.binds, ""
                    held = None
                    after = between if events == 1 else (between, intended)
                    pending.append((at, success, payload, before, at, after))
                    continue
                held = None
                if events == 1:
                    pending.append((at, success, payload, *ALONE))
                else:
                    pending.append((at, success, payload, intent, at, intended))
            else:
                if len(run.batch) + len(pending) >= BATCH_MAX:
                    durable = run.commit()
                    if durable is not None:
                        await durable
                if away is None:
                    await asyncio.sleep(0)  # others have their turn
                continue
            break
    except StopIteration:
        verdicts = state.verdicts
        if gate is not None:
            gate.progress.note(state.settled)  # what has settled beyond the last tool
    finally:
        walker.close()
        if gate is not None:
            gate.progress.passed(passed)
            if held is None:
                gate.lane.comes_back(plan.step, occurrence, counted if binds else "", amount or 0)
                state.active[plan.step.index].cleared = 1
                state.seq += 1
        if held is None and events != 1:
            for call in plan.lanes or (plan,):
                if call.steady.events != 1:
                    begin(state, state.active[call.step.index], call.spec.effect)
    if held is None:
        run.seal_pending()
        if plan.lanes:
            leave_together(run, failure)
        else:
            await _leave_in_call(run, plan, value, failure)
        failure = None  # whose traceback holds this frame
    elif ends_plainly(state):
        ended_ms = now_ms()
        if verdicts:
            success = with_verdicts(success, verdicts)
        finish(state, ended_ms)
        before, after = end_of(state.ending, state.outcome)
        run.pending.append((at, success, payload, before, str(ended_ms), after))
    else:
        if run.pending:
            run.seal_pending()
        label = 0 if track is None else track.output
        run.retain(held[0].last.succeeded(at_ms, held[1], value, verdicts, label=label), payload)
    return elsewhere


def _told(known: Lane, success: str, verdicts: list[Any]) -> str:
    """`with_verdicts` of a first success, remembered where one condition is met for the first time."""
    step_id, occurrence, verdict = verdicts[0]
    if occurrence != 1 or len(verdicts) != 1:
        return with_verdicts(success, verdicts)
    told = known.told.get((success, step_id, verdict))
    if told is None:
        told = known.told[success, step_id, verdict] = with_verdicts(success, verdicts)
    return told


def _call(run: Run, away: threading.Lock | None, plan: Plan, occurrence: int, args: Any) -> Any:
    if plan.lanes:
        return call_together(run, plan, occurrence, args)
    if not plan.flat:
        args = _given(run, plan, occurrence, args)
    if away is not None:
        return _call_away(run, away, plan.spec.function, args)
    return plan.spec.function(**args)


def _given(run: Run, plan: Plan, occurrence: int, args: dict[str, Any]) -> dict[str, Any]:
    """What a tool is called with: a copy of its arguments, and the context it asks for."""
    given = copy_arguments(args)
    if plan.spec.context_parameter is not None:
        command = plan.command(args, occurrence)
        given[plan.spec.context_parameter] = context_of(run.facts, command, plan.spec)
    return given


async def _leave_in_call(run: Run, plan: Plan, value: Any, failure: BaseException | None) -> None:
    """The tool that is out has not succeeded as plain tools do, or (without a `failure`) the policy was changed while
    its intent was made durable."""
    calls, spec, step = run.engine.calls, plan.spec, plan.step
    activity = run.state.active[step.index]
    command = plan.command(activity.request, activity.occurrence)
    if failure is None:
        assert run.gate is not None
        outcome = await run.gate.recheck_changed(command, spec)
        if outcome is None:
            outcome = await calls.tool(run.facts, step, command, spec, alone=True)
    elif type(failure) is _NotPlain:
        outcome = calls.concluded(command, spec, value)
    else:
        outcome = calls.raised(step, command, spec, failure)
    run.conclude(outcome)


def _is_amiss(run: Run, plan: Plan, args: Any, track: Track | None) -> bool:
    """Whether something is wrong with the arguments, which the general path says."""
    if plan.lanes:
        return are_amiss(plan.lanes, args.args)
    spec = plan.spec
    if spec.problems is not None and spec.problems(args):
        return True
    labels = None if track is None else track.arguments
    return bool(spec.schema.protected) and tainted(run, spec, args, labels) is not None


def _success(plan: Plan, occurrence: int, track: Track | None) -> str:
    label = 0 if track is None else track.coming
    if occurrence == 1:
        return plan.untrusted if label else plan.steady.success
    last = plan.last
    return success_of(last.step.id, last.steady.events == 1, occurrence, label)


_INT_MIN = -INT_MAX
