"""Driving along the lane: one tool after another, with nothing beside them.

This is the driver's loop for the transitions of `nano_vm.kernel.lane`, with everything it does for other cases left
out. The journal it writes is the one the driver would write, byte for byte; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm.canonical import normalize
from nano_vm.errors import InputError
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool
from nano_vm.kernel.lane import advance, begin, is_plain, lane
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import Activity
from nano_vm.program.compiled import CompiledStep, ToolAction
from nano_vm.runtime.calls import copy_arguments, is_ours
from nano_vm.runtime.ports import ToolInvoker, ToolSpec
from nano_vm.runtime.tooling import PENDING

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

BATCH_MAX = 64  # entries that are gathered where nothing asks for a commit: pure steps, and stores in memory


class _Plan(NamedTuple):
    """What has to be known of a step to take it along the lane; worked out once per engine and step."""

    step: CompiledStep
    function: Callable[..., Any]
    problems: Callable[[dict[str, Any]], list[str]] | None
    effect: str
    is_async: bool
    threaded: bool  # a plain function that may block: only `run_sync` calls it right here
    intent: tuple[str, str, str]  # encoded StepStarted around its time and its occurrence
    spec: ToolSpec


class _NotPlain(Exception):
    """The value is for the general path."""


async def drive_lane(run: Run) -> None:
    """Take the run along the lane as far as it goes, to its end even; the driver takes over from there."""
    program, state, engine = run.program, run.state, run.engine
    activity = lane(program, state)
    if activity is None or run.listener is not None or engine.listeners:
        return
    plans = engine.plans.setdefault(program.hash, {})
    seal, salt, now_ms = run.chain.seal_success, engine.entropy.salt, engine.clock.now_ms
    batch, append, run_id, fence = run.batch, engine.store.append, run.record.run_id, run.fence
    inline, volatile = engine.calls.inline_sync, engine.volatile
    # The last outcome, applied but not sealed: the next intent rides with it.
    held = False
    at_ms, occurrence, pure, name, data, payload, verdicts = 0, 0, False, "", None, b"", state.verdicts
    while True:
        plan = plans.get(activity.step)
        if plan is None:
            plan = plans[activity.step] = _plan(program.steps[activity.step], engine.tools)
        if plan is _UNFIT or activity.business_key is not None:
            break
        step, function, problems, effect, is_async, threaded, intent, spec = plan
        args = activity.request
        if (threaded and not inline) or (problems is not None and problems(args)):
            break
        if effect == "pure":
            if held:
                batch.append(seal(at_ms, occurrence, pure, name, verdicts, salt(), payload, ""))
                held = False
                if len(batch) >= BATCH_MAX:
                    await run.flush()
            else:
                run.seal_open()  # what came before the lane comes before it in the journal
        else:
            begin(state, activity, effect)
            if held:
                head, middle, tail = intent
                rider = f"{head}{at_ms}{middle}{activity.occurrence}{tail}"
                batch.append(seal(at_ms, occurrence, pure, name, verdicts, salt(), payload, rider))
                held = False
                durable = None
                if not volatile or len(batch) >= BATCH_MAX:
                    entries = batch[:]
                    batch.clear()
                    durable = append(run_id, fence, entries)
            else:
                run.ride(_started(state.now_ms, step, effect, activity.occurrence))
                durable = run.commit()
            if durable is not None:
                await durable
        for value in args.values():
            if type(value) is dict or type(value) is list:
                args = copy_arguments(args)
                break
        try:
            value = await function(**args) if is_async else function(**args)
        except BaseException as error:
            if is_ours(error):
                raise
            run.conclude(engine.calls.raised(step, _command(step, activity), spec, error))
            return
        try:
            if value is PENDING or (type(value) is str and value == "PENDING"):
                raise _NotPlain
            data, payload = normalize(value)
            if len(payload) > PAYLOAD_BYTES_MAX:
                raise _NotPlain
        except (InputError, _NotPlain):
            run.conclude(engine.calls.concluded(_command(step, activity), spec, value))
            return
        at_ms, occurrence, pure, name = now_ms(), activity.occurrence, effect == "pure", step.id
        goes_on = advance(program, state, activity, step, data, at_ms)
        held, verdicts = True, state.verdicts
        if not goes_on or run.disturbed:
            break
    if held:
        run.hold(_succeeded(at_ms, occurrence, pure, name, data, verdicts), payload)
        run.finish()


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
    ):
        return _UNFIT  # type: ignore[no-any-return]
    event = f',"attempt":1,"effect":"{spec.effect}","occurrence":'
    intent = (',"then":[{"event":{"at_ms":', event, f',"step":"{step.id}"}},"type":"StepStarted"}}]')
    threaded = not spec.is_async and spec.blocking
    return _Plan(step, spec.function, spec.problems, spec.effect, spec.is_async, threaded, intent, spec)


_UNFIT: Any = object()


def _started(at_ms: int, step: CompiledStep, effect: str, occurrence: int) -> ev.StepStarted:
    return ev.StepStarted(at_ms=at_ms, attempt=1, effect=effect, occurrence=occurrence, step=step.id)


def _succeeded(
    at_ms: int, occurrence: int, pure: bool, step: str, data: Any, verdicts: list[Any]
) -> ev.StepSucceeded:
    return ev.StepSucceeded(
        at_ms=at_ms,
        attempt=1,
        occurrence=occurrence,
        payload=data,
        pure=True if pure else ev.UNSET,
        step=step,
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
