"""What is true of every state between two transitions."""

from __future__ import annotations

from nano_vm.expr.reference import UNSET
from nano_vm.kernel.events import Event
from nano_vm.kernel.state import COMPENSATION_KEY, Phase, RunStatus, Stage, State
from nano_vm.kernel.transition import decide, waiting
from nano_vm.program.compiled import SLOT_EVENT, SLOT_INDEX, SLOT_ITEM, CompiledProgram, Kind

BUSY = {Phase.READY, Phase.STARTED, Phase.BACKOFF}
PARKED = {Phase.BACKOFF, Phase.WAITING, Phase.UNKNOWN, Phase.CHILD_WAITING}


def check_invariants(program: CompiledProgram, state: State) -> None:
    """Raises AssertionError when a state is not one that the kernel may come to."""
    active = state.active
    assert state.busy == sum(activity.phase in BUSY for activity in active.values())
    assert set(state.ready) == {key for key, a in active.items() if a.phase is Phase.READY}
    parked = set()
    for key, activity in active.items():
        assert key == (
            activity.step
            if activity.item < 0 or activity.step < 0
            else (activity.item + 1) << 24 | activity.step
        )
        is_call = activity.step >= 0 and program.steps[activity.step].kind is Kind.CALL
        child = activity.phase is Phase.STARTED and is_call
        timed = activity.phase is Phase.GROUP and activity.due_ms > 0
        if activity.phase in PARKED or child or timed:
            parked.add(key)
        assert (activity.phase is Phase.BACKOFF) <= (activity.due_ms > 0)
        assert activity.attempt >= 1
    assert set(state.parked) == parked
    assert state.reserved_tokens == sum(a.reserved_tokens for a in active.values()) >= 0
    assert state.reserved_cost_nanousd == sum(a.reserved_cost_nanousd for a in active.values()) >= 0
    _check_groups(program, state)
    if state.slots:
        assert state.slots[SLOT_ITEM] is state.slots[SLOT_INDEX] is state.slots[SLOT_EVENT] is UNSET
    _check_stage(program, state)


def check_taken(event: Event, state: State) -> None:
    """Raises AssertionError when an event has led to what its journal entry has no room for."""
    assert not state.verdicts or hasattr(event, "verdicts"), event
    assert not state.label or hasattr(event, "label"), event


def _check_groups(program: CompiledProgram, state: State) -> None:
    lanes: dict[int, list[int]] = {}
    for activity in state.active.values():
        if activity.step >= 0 and program.steps[activity.step].parent >= 0:
            parent = program.steps[activity.step].parent
            assert parent in state.active
            place = activity.item if activity.item >= 0 else activity.step - parent - 1
            lanes.setdefault(parent, []).append(place)
    for key, activity in state.active.items():
        group = activity.group
        if group is None:
            continue
        places = lanes.pop(key, [])
        assert group.active == len(places)
        is_agent = program.steps[activity.step].kind is Kind.AGENT
        assert group.active or activity.phase is (Phase.READY if is_agent else Phase.BACKOFF)
        assert not is_agent or group.active <= 1
        held = [*places, *group.queue, *group.results, *group.errors]
        assert len(set(held)) == len(held)
        if state.stage is Stage.GOING and not group.timed_out:
            assert sorted(held) == list(range(group.first, group.first + group.total))
    assert not lanes


def _check_stage(program: CompiledProgram, state: State) -> None:
    status = state.status
    assert (status is RunStatus.SUSPENDED) == bool(waiting(program, state))
    assert status.is_terminal == (state.stage is Stage.ENDED)
    if state.stage is Stage.NEW or state.stage is Stage.ENDED:
        assert not state.active
        assert not decide(program, state)
        assert not state.undo or state.ending == "SUCCESS"
        return
    if state.stage is Stage.GOING:
        assert state.active
        assert COMPENSATION_KEY not in state.active
        assert not state.ending
    else:
        assert state.ending
        phases = {activity.phase for key, activity in state.active.items() if key != COMPENSATION_KEY}
        # Nothing is begun and nothing is awaited but outcomes.
        assert phases <= {Phase.STARTED, Phase.UNKNOWN, Phase.CHILD_WAITING, Phase.GROUP}
        assert COMPENSATION_KEY not in state.active or len(state.active) == 1
    # P10: there is something to do, something under way, or something that is waited for by name.
    under_way = any(activity.phase is Phase.STARTED for activity in state.active.values())
    assert under_way or decide(program, state)
