"""Calls: child runs, whose waits, budgets and compensations are their parent's."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET as ABSENT

from nano_vm.kernel.activity import release_reservation, set_phase
from nano_vm.kernel.decide import child_of
from nano_vm.kernel.events import ChildFinished, ChildResumed, ChildStarted, ChildSuspended
from nano_vm.kernel.find import advance_clock, find, wrong_phase
from nano_vm.kernel.flow import move
from nano_vm.kernel.labels import failure_label, output_label
from nano_vm.kernel.settle import fail, succeed
from nano_vm.kernel.state import Activity, Phase, Rejection, RunStatus, Stage, State, Undo
from nano_vm.program.compiled import CallAction, CompiledProgram, CompiledStep
from nano_vm.program.labels import UNTRUSTED

_STARTED, _CHILD_WAITING = Phase.STARTED, Phase.CHILD_WAITING
_ENDS = frozenset(status.value for status in RunStatus if status.is_terminal)


def child_started(program: CompiledProgram, state: State, event: ChildStarted) -> Rejection | None:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    step = program.steps[found.step]
    action = step.action
    if type(action) is not CallAction:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` calls no program")
    if found.phase is not Phase.READY:
        return wrong_phase(event, found.phase)
    # The prefix of a fork was recorded under another run id.
    shared = state.seq < state.fork_seq
    if event.program != state.programs.get(action.program, action.program) or not (
        shared or event.child == child_of(state, step, found)
    ):
        return Rejection("MISMATCH", f"`{event.step}` calls another child")
    if not shared and event.payload is not ABSENT and event.payload != found.request:
        return Rejection("MISMATCH", f"`{event.step}` renders other inputs")
    refusal = _reserve(state, found, event)
    if refusal is not None:
        return refusal
    advance_clock(state, event.at_ms)
    if step.timeout_ms:
        found.due_ms = state.now_ms + step.timeout_ms
    state.label = found.label
    set_phase(state, found, _STARTED, reachable=True)
    return None


def _reserve(state: State, activity: Activity, event: ChildStarted) -> Rejection | None:
    """What a child may spend is set aside, so that nobody else spends it."""
    steps = 0 if event.reserved_steps is ABSENT else event.reserved_steps
    tokens = 0 if event.reserved_tokens is ABSENT else event.reserved_tokens
    cost = 0 if event.reserved_cost_nanousd is ABSENT else event.reserved_cost_nanousd
    if steps and state.steps + state.reserved_steps + steps > state.steps_max:
        return Rejection("OVER_BUDGET", "steps")
    if tokens and state.tokens_max and state.tokens + state.reserved_tokens + tokens > state.tokens_max:
        return Rejection("OVER_BUDGET", "tokens")
    held = state.cost_nanousd + state.reserved_cost_nanousd
    if cost and state.cost_nanousd_max and held + cost > state.cost_nanousd_max:
        return Rejection("OVER_BUDGET", "cost_nanousd")
    state.reserved_steps += steps
    state.reserved_tokens += tokens
    state.reserved_cost_nanousd += cost
    activity.reserved_steps, activity.reserved_tokens, activity.reserved_cost_nanousd = steps, tokens, cost
    return None


def _under_way(program: CompiledProgram, state: State, event: Any) -> Activity | Rejection:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    if type(program.steps[found.step].action) is not CallAction:
        return Rejection("OUT_OF_ORDER", f"`{event.step}` calls no program")
    if found.phase is not _STARTED and found.phase is not _CHILD_WAITING:
        return wrong_phase(event, found.phase)
    return found


def child_suspended(program: CompiledProgram, state: State, event: ChildSuspended) -> Rejection | None:
    found = _under_way(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    late = 0 < found.due_ms <= event.at_ms
    if found.phase is _CHILD_WAITING and found.waits == event.waits and not late:
        return Rejection("DUPLICATE", f"the child of `{event.step}` waits for just this already")
    if not event.waits:
        return Rejection("MALFORMED", f"the child of `{event.step}` waits for nothing")
    advance_clock(state, event.at_ms)
    found.waits = event.waits
    if late:  # it is to end now, and no timer has to say so again
        found.stopping, found.due_ms = True, 0
    set_phase(state, found, _CHILD_WAITING)
    return None


def child_resumed(program: CompiledProgram, state: State, event: ChildResumed) -> Rejection | None:
    found = _under_way(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    if found.phase is not _CHILD_WAITING:
        return wrong_phase(event, found.phase)
    advance_clock(state, event.at_ms)
    found.waits = None
    set_phase(state, found, _STARTED, reachable=True)
    return None


def child_finished(program: CompiledProgram, state: State, event: ChildFinished) -> Rejection | None:
    found = _under_way(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    step = program.steps[found.step]
    details = event.payload if type(event.payload) is dict else {}
    undos = _undos(step, found, details)
    if undos is None or event.status not in _ENDS:
        return Rejection("MALFORMED", f"the end of the child of `{event.step}` cannot be read")
    advance_clock(state, event.at_ms)
    release_reservation(state, found)
    state.steps += event.steps
    if event.tokens is not ABSENT:
        state.tokens += event.tokens
    if event.cost_nanousd is not ABSENT:
        state.cost_nanousd += event.cost_nanousd
    todo: list[int] = []
    if state.labels is not None:
        _take_labels(state, step, found, event)
    if event.status == "SUCCESS":
        state.undo += undos
        succeed(program, state, step, found, details.get("output"), todo)
    elif _too_late(state, found, event):
        time_out(program, state, step, found, todo)
    else:
        why = details.get("message")
        message = why if type(why) is str and why else event.status
        fail(program, state, step, found, "CHILD_FAILED", message, True, 500_000, todo)
    move(program, state, todo)
    return None


def _take_labels(state: State, step: CompiledStep, activity: Activity, event: ChildFinished) -> None:
    """A child that says nothing of its labels has tracked none."""
    given = activity.label
    activity.label = given | UNTRUSTED if event.output_label is ABSENT else event.output_label
    undo_label = 0 if event.undo_label is ABSENT else event.undo_label
    state.label = output_label(step, activity) | undo_label
    if event.status != "SUCCESS":
        activity.label |= given
        state.label |= failure_label(step, activity)


def _too_late(state: State, activity: Activity, event: ChildFinished) -> bool:
    """Whether the child was stopped because its time was up."""
    if event.status != "CANCELLED" or state.stage is not Stage.GOING:
        return False
    return activity.stopping or 0 < activity.due_ms <= event.at_ms


def _undos(step: CompiledStep, activity: Activity, details: dict[str, Any]) -> list[Undo] | None:
    """What a finished child did is undone through its call; None when the list cannot be read."""
    if activity.item >= 0:
        way = f"{step.id}.{activity.occurrence}.{activity.item}"
    else:
        way = step.id if activity.occurrence == 1 else f"{step.id}.{activity.occurrence}"
    try:
        undos = msgspec.convert(details.get("compensations", []), list[Undo], strict=True)
    except msgspec.ValidationError:
        return None
    for undo in undos:
        undo.step = f"{way}/{undo.step}"
    return undos


def time_out(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    """A wait or child took too long: its fallback, or a failure that is not retried."""
    if step.on_timeout == "fallback":
        succeed(program, state, step, activity, step.fallback, todo, True)
    else:
        fail(program, state, step, activity, "TIMEOUT", "nothing came in time", False, 0, todo)
