"""Driving along the lane: one tool after another, with nothing beside them.

This is the driver's loop for the transitions of `nano_vm.kernel.lane`, with everything it does for other cases left
out. The journal it writes is the one the driver would write, byte for byte; a test compares them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm.canonical import normalize
from nano_vm.errors import InputError
from nano_vm.journal.entry import end_of, intent_of, success_of
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool
from nano_vm.kernel.lane import begin, ends_plainly, finish, is_plain, lane, walk
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import Activity
from nano_vm.program.compiled import CompiledStep, ToolAction
from nano_vm.runtime.calls import copy_arguments, is_ours
from nano_vm.runtime.ports import ToolInvoker, ToolSpec
from nano_vm.runtime.tooling import PENDING

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

TURNS = 32  # steps after which other runs get their turn, though no tool and no commit gave them one
BATCH_MAX = 64  # entries that are gathered where nothing asks for a commit: pure steps, and stores in memory


class _Plan(NamedTuple):
    """What has to be known of a step to take it along the lane; worked out once per engine and step."""

    step: CompiledStep
    function: Callable[..., Any]
    problems: Callable[[dict[str, Any]], list[str]] | None
    flat: bool  # arguments without problems hold no object and no array, so the tool needs no copy of them
    pure: bool
    is_async: bool
    threaded: bool  # a plain function that may block: only `run_sync` calls it right here
    intent: tuple[str, str, str]  # encoded StepStarted around its time and its occurrence
    success: str  # encoded members of StepSucceeded that are the same every time
    spec: ToolSpec


class _NotPlain(Exception):
    """The value is for the general path."""


async def drive_lane(run: Run) -> None:
    """Take the run along the lane as far as it goes, to its end even; the driver takes over from there."""
    program, state, engine = run.program, run.state, run.engine
    activity = lane(program, state)
    if activity is None or not engine.lane or run.listener is not None or engine.listeners:
        return
    plans = engine.plans.get(program.hash)
    if plans is None:
        plans = engine.plans[program.hash] = [None] * len(program.steps)
    seal, salt, now_ms = run.chain.seal_success, engine.entropy.salt, engine.clock.now_ms
    batch, inline, volatile = run.batch, engine.calls.inline_sync, engine.volatile
    walker = walk(program, state, activity)
    go_on = walker.send
    plan, started, value, failure = (
        _UNFIT,
        False,
        None,
        None,
    )  # `started`: the tool has an intent in the journal
    # The last success is not sealed before it is known what follows: the next intent, or the end, rides with it.
    held, last, at_ms, reached, data, payload = False, _UNFIT, 0, 0, None, b""
    turns = 0
    try:
        index, occurrence, args, verdicts = next(walker)
        while True:
            plan = plans[index]
            if plan is None:
                plan = plans[index] = _plan(program.steps[index], engine.tools)
            if plan is _UNFIT:
                break
            step, function, problems, flat, pure, is_async, threaded, intent, _, spec = plan
            if (threaded and not inline) or (problems is not None and problems(args)):
                break
            if held:
                held = False
                if pure:
                    batch.append(seal(at_ms, reached, last.success, verdicts, salt(), payload, ""))
                else:
                    before, between, after = intent
                    then = f"{before}{at_ms}{between}{occurrence}{after}"
                    batch.append(seal(at_ms, reached, last.success, verdicts, salt(), payload, then))
                    started = True
            else:
                if not pure:
                    run.ride(_started(state.now_ms, spec, step, occurrence))
                    started = True
                run.seal_open()  # what came before the lane comes before it in the journal
            if (started and not (volatile and run.created)) or len(batch) >= BATCH_MAX:
                durable = run.commit()
                if durable is not None:
                    await durable
                    if engine.groups and len(engine.live) == 1:
                        engine.store.alone = True  # type: ignore[attr-defined]
            turns += 1
            if not turns % TURNS:
                await asyncio.sleep(0)
            if not flat:
                args = copy_arguments(args)
            try:
                value = await function(**args) if is_async else function(**args)
            except BaseException as error:
                if is_ours(error):
                    raise
                failure = error
                break
            try:
                if value is PENDING or (type(value) is str and value == "PENDING"):
                    raise _NotPlain
                data, payload = normalize(value)
                if len(payload) > PAYLOAD_BYTES_MAX:
                    raise _NotPlain
            except (InputError, _NotPlain):
                failure = _NotPlain()
                break
            held, last, at_ms, reached = True, plan, now_ms(), occurrence
            events, started = (2, False) if started else (1, False)
            index, occurrence, args, verdicts = go_on((data, at_ms, events))
            if (run.stirred or engine.draining) and run.disturbed:
                break
    except StopIteration:
        verdicts = state.verdicts
    finally:
        walker.close()
        if started:
            begin(state, activity, plan.spec.effect)
    if failure is not None:
        command = _command(plan.step, activity)
        if type(failure) is _NotPlain:
            run.conclude(engine.calls.concluded(command, plan.spec, value))
        else:
            run.conclude(engine.calls.raised(plan.step, command, plan.spec, failure))
    elif held and ends_plainly(state):
        ended_ms = now_ms()
        finish(state, ended_ms)
        end = end_of(ended_ms, state.ending, state.outcome)
        batch.append(seal(at_ms, reached, last.success, verdicts, salt(), payload, end))
    elif held:
        run.hold(_succeeded(at_ms, reached, last, data, verdicts), payload)


def _plan(step: CompiledStep, tools: ToolInvoker) -> _Plan:
    """The plan of a step, or `_UNFIT` when its call needs more than its arguments."""
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
        return _UNFIT  # type: ignore[no-any-return]
    return _Plan(
        step=step,
        function=spec.function,
        problems=spec.problems,
        flat=_is_flat(spec),
        pure=spec.effect == "pure",
        is_async=spec.is_async,
        threaded=not spec.is_async and spec.blocking,
        intent=intent_of(step.id, spec.effect),
        success=success_of(step.id, spec.effect == "pure"),
        spec=spec,
    )


def _is_flat(spec: ToolSpec) -> bool:
    schema = spec.schema.parameters
    if spec.problems is None or schema.get("additionalProperties") is not False:
        return False
    return all(
        type(property) is dict and property.get("type") in _SCALARS
        for property in schema.get("properties", {}).values()
    )


_SCALARS = ("string", "integer", "number", "boolean", "null")
_UNFIT: Any = object()


def _started(at_ms: int, spec: ToolSpec, step: CompiledStep, occurrence: int) -> ev.StepStarted:
    return ev.StepStarted(at_ms=at_ms, attempt=1, effect=spec.effect, occurrence=occurrence, step=step.id)


def _succeeded(at_ms: int, occurrence: int, plan: _Plan, data: Any, verdicts: list[Any]) -> ev.StepSucceeded:
    return ev.StepSucceeded(
        at_ms=at_ms,
        attempt=1,
        occurrence=occurrence,
        payload=data,
        pure=True if plan.pure else ev.UNSET,
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
