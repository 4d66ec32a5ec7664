"""What is true of every state between two transitions, whatever the program."""

from __future__ import annotations

from nano_vm.kernel.state import COMPENSATION_KEY, Phase, RunStatus, Stage, State, activity_key
from nano_vm.kernel.transition import decide, waiting
from nano_vm.program.compiled import CompiledProgram

_BUSY = {Phase.READY, Phase.STARTED, Phase.BACKOFF}


def broken_invariant(program: CompiledProgram, state: State) -> str | None:
    """The first invariant that does not hold, as a sentence; None when all do."""
    active = state.active
    if state.busy != sum(activity.phase in _BUSY for activity in active.values()):
        return "the count of busy activities is wrong"
    if set(state.ready) != {key for key, one in active.items() if one.phase is Phase.READY}:
        return "what is ready is not what is to be dispatched"
    for key, activity in active.items():
        if activity.step >= 0 and key != activity_key(activity.step, activity.item):
            return "an activity has the key of another"
        if activity.attempt < 1 or (activity.phase is Phase.BACKOFF and not activity.due_ms):
            return "an activity could wait for ever"
    for held, name in (
        (state.reserved_tokens, "reserved_tokens"),
        (state.reserved_cost_nanousd, "reserved_cost_nanousd"),
    ):
        if held < 0 or held != sum(getattr(activity, name) for activity in active.values()):
            return f"{name} is not what the activities hold"
    if (state.status is RunStatus.SUSPENDED) != bool(waiting(program, state)):
        return "a suspended run does not name what it waits for"
    if state.stage in (Stage.NEW, Stage.ENDED):
        return "something is in progress in a run that has ended" if active else None
    if state.stage is Stage.GOING and (not active or COMPENSATION_KEY in active):
        return "a run goes on with nothing in progress"
    under_way = any(activity.phase is Phase.STARTED for activity in active.values())
    if not under_way and not decide(program, state):
        return "there is nothing to do, nothing under way and nothing waited for"
    return None
