"""Driving along the lane: one tool after another, with nothing beside them.

This is the driver's loop for the transitions of `nano_vm.kernel.lane`, with everything it does for other cases left
out. The journal it writes is the one the driver would write, byte for byte; a test compares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nano_vm.canonical import normalize
from nano_vm.errors import InputError
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool
from nano_vm.kernel.lane import advance, begin, is_plain, lane
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import Activity
from nano_vm.program.compiled import CompiledStep, ToolAction
from nano_vm.runtime.calls import copy_arguments
from nano_vm.runtime.ports import ToolSpec
from nano_vm.runtime.tooling import PENDING

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

BATCH_MAX = 256  # entries of pure steps that are gathered before they are made durable


class _NotPlain(Exception):  # noqa: N818 - a signal, not an error
    """The value or the step is for the general path."""


async def drive_lane(run: Run) -> None:
    """Take the run along the lane as far as it goes; the driver takes over from there."""
    program, state, engine = run.program, run.state, run.engine
    activity = lane(program, state)
    if activity is None or run.listener is not None or engine.listeners:
        return
    steps, tools, chain = program.steps, engine.tools, run.chain
    salt, now_ms, batch = engine.entropy.salt, engine.clock.now_ms, run.batch
    inline = engine.calls.inline_sync
    # The last outcome, applied but not sealed: the next intent rides with it.
    held = False
    at_ms, occurrence, pure, name, data, payload, verdicts = 0, 0, False, "", None, b"", state.verdicts
    while True:
        step = steps[activity.step]
        action = step.action
        assert type(action) is ToolAction
        spec = tools.spec(action.tool)
        if spec is None or not _fits(spec, activity, step.timeout_ms, inline):
            break
        args = activity.request
        if spec.problems is not None and spec.problems(args):
            break
        effect = spec.effect
        if effect == "pure":
            if held:
                batch.append(chain.seal_success(at_ms, occurrence, pure, name, verdicts, salt(), payload, ""))
                held = False
                if len(batch) >= BATCH_MAX:
                    await run.flush()
            else:
                run.seal_open()  # what came before the lane comes before it in the journal
        else:
            begin(state, activity, effect)
            if held:
                rider = (
                    f',"then":[{{"event":{{"at_ms":{at_ms},"attempt":1,"effect":"{effect}",'
                    f'"occurrence":{activity.occurrence},"step":"{step.id}"}},"type":"StepStarted"}}]'
                )
                batch.append(
                    chain.seal_success(at_ms, occurrence, pure, name, verdicts, salt(), payload, rider)
                )
                held = False
            else:
                run.ride(
                    ev.StepStarted(
                        at_ms=state.now_ms,
                        attempt=1,
                        effect=effect,
                        occurrence=activity.occurrence,
                        step=step.id,
                    )
                )
            durable = run.commit()
            if durable is not None:
                await durable
        for value in args.values():
            if type(value) is dict or type(value) is list:
                args = copy_arguments(args)
                break
        try:
            value = await spec.function(**args) if spec.is_async else spec.function(**args)
        except Exception as error:
            run.conclude(engine.calls.raised(step, _command(step, activity), spec, error))
            return
        try:
            if value is PENDING or not is_plain(step) or (type(value) is str and value == "PENDING"):
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
        run.hold(
            ev.StepSucceeded(
                at_ms=at_ms,
                attempt=1,
                occurrence=occurrence,
                payload=data,
                pure=True if pure else ev.UNSET,
                step=name,
                verdicts=verdicts or ev.UNSET,
            ),
            payload,
        )


def _fits(spec: ToolSpec, activity: Activity, timeout_ms: int, inline: bool) -> bool:
    """Whether the tool can be called right here: nothing to hand to it, nothing to watch over."""
    return (
        not timeout_ms
        and spec.context_parameter is None
        and activity.business_key is None
        and spec.effect != "transactional"
        and (spec.is_async or inline or not spec.blocking)
    )


def _command(step: CompiledStep, activity: Activity) -> CallTool:
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
