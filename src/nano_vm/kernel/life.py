"""The run itself: how it starts, is cancelled, changes hands, is forked, and ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import UNSET as ABSENT

from nano_vm.expr.reference import UNSET
from nano_vm.kernel import events as ev
from nano_vm.kernel.activity import remove
from nano_vm.kernel.decide import compensates, incomplete
from nano_vm.kernel.ending import end
from nano_vm.kernel.find import advance_clock
from nano_vm.kernel.flow import move
from nano_vm.kernel.groups import lanes_of, open_group
from nano_vm.kernel.labels import bind, first_labels, inputs_label
from nano_vm.kernel.limits import CALL_DEPTH_MAX
from nano_vm.kernel.opening import prepare
from nano_vm.kernel.state import Activity, Phase, Rejection, RunStatus, Stage, State
from nano_vm.program.compiled import (
    FIRST_FREE_SLOT,
    SLOT_PRINCIPAL,
    SLOT_RUN,
    CompiledProgram,
    Kind,
)
from nano_vm.program.labels import PRIVATE, SEALED, UNTRUSTED

_NEW, _GOING, _ENDING, _ENDED = Stage.NEW, Stage.GOING, Stage.ENDING, Stage.ENDED


def run_started(program: CompiledProgram, state: State, event: ev.RunStarted) -> Rejection | None:
    if state.stage is not _NEW:
        return Rejection("OUT_OF_ORDER", "the run has started before")
    refusal = _start_refused(program, event)
    if refusal is not None:
        return refusal
    state.depth = 0 if event.depth is ABSENT else event.depth
    state.fork_seq = 0 if event.forked is ABSENT else event.forked["seq"]
    state.programs = {} if event.programs is ABSENT else dict(event.programs)
    state.policy = "" if event.policy is ABSENT else event.policy
    state.governed = bool(state.policy) or program.approves
    state.started_ms = state.now_ms = event.at_ms
    state.slots = first_slots(program, state, event)
    state.labels = first_labels(program, event)
    if state.labels is not None:
        state.label = inputs_label(program, state.labels)
    set_budgets(program, state, {} if event.budgets is ABSENT else event.budgets)
    state.occurrences = [0] * len(program.steps)
    state.stage = _GOING
    if program.is_dag:
        state.unmet = [step.dependencies for step in program.steps]
        state.taken = [False] * len(program.steps)
        todo = list(program.roots)
    else:
        todo = [program.entry]
    move(program, state, todo)
    return None


def _start_refused(program: CompiledProgram, event: ev.RunStarted) -> Rejection | None:
    if event.program != program.hash:
        return Rejection("MISMATCH", "the run is pinned to another program")
    if event.features is not ABSENT and not ev.FEATURES.issuperset(event.features):
        return Rejection("MISMATCH", "the run was made under a feature that this kernel does not know")
    if event.payload is not ABSENT and type(event.payload) is not dict:
        return Rejection("MALFORMED", "the inputs are no object")
    if event.depth is not ABSENT and event.depth > CALL_DEPTH_MAX:
        return Rejection("OVER_BUDGET", f"calls are nested deeper than {CALL_DEPTH_MAX}")
    if event.forked is not ABSENT:
        seq = event.forked.get("seq")
        if type(seq) is not int or seq < 1:
            return Rejection("MALFORMED", "a fork shares at least the start of the other run")
    if event.replanned is not ABSENT:
        names = ("head", "number", "program", "run")
        kinds = {name: type(event.replanned.get(name)) for name in names}
        if event.replanned.keys() != kinds.keys() or kinds != dict.fromkeys(names, str) | {"number": int}:
            return Rejection(
                "MALFORMED", "what a run goes on with has a `run`, its `head` and `program`, and a `number`"
            )
    return None


def first_slots(program: CompiledProgram, state: State, event: ev.RunStarted) -> list[Any]:
    """What the slots hold when a run starts."""
    inputs: dict[str, Any] = {} if event.payload is ABSENT else event.payload
    slots: list[Any] = [UNSET] * len(program.slots)
    for name, slot in program.input_slots.items():
        if name in inputs:
            slots[slot] = inputs[name]
        elif name in program.optional_inputs:
            slots[slot] = program.optional_inputs[name]
    slots[SLOT_RUN] = {
        "id": state.run,
        "program": program.name,
        "program_hash": program.hash,
        "started_at_ms": event.at_ms,
    }
    if event.principal is not ABSENT:
        slots[SLOT_PRINCIPAL] = event.principal
    return slots


def set_budgets(program: CompiledProgram, state: State, given: dict[str, int] | None = None) -> None:
    """What a run may spend: what its program allows, and no more than a parent has left for it (`given`)."""
    budgets = program.budgets
    state.stalled_steps_max = budgets.stalled_steps_max
    if not given:
        state.steps_max, state.tokens_max = budgets.steps_max, budgets.tokens_max
        state.cost_nanousd_max, state.duration_ms_max = budgets.cost_nanousd_max, budgets.duration_ms_max
        return
    state.steps_max = min(budgets.steps_max, max(given.get("steps", budgets.steps_max), 0))
    state.tokens_max = _tighter(budgets.tokens_max, given, "tokens")
    state.cost_nanousd_max = _tighter(budgets.cost_nanousd_max, given, "cost_nanousd")
    state.duration_ms_max = _tighter(budgets.duration_ms_max, given, "duration_ms")


def _tighter(own: int, given: dict[str, int], name: str) -> int:
    """A parent's remaining budget tightens the child's own; 0 of it left is as good as 1: nothing fits."""
    if name not in given:
        return own
    left = max(given[name], 1)
    return min(own, left) if own else left


def run_cancelled(program: CompiledProgram, state: State, event: ev.RunCancelled) -> Rejection | None:
    if state.stage is not _GOING:
        return Rejection("OUT_OF_ORDER", "the run is ending already")
    advance_clock(state, event.at_ms)
    error = {"type": "CANCELLED", "message": "", "attempts": 0}
    end(program, state, RunStatus.CANCELLED, error)
    return None


def budget_exhausted(program: CompiledProgram, state: State, event: ev.BudgetExhausted) -> Rejection | None:
    if state.stage is not _GOING:
        return Rejection("OUT_OF_ORDER", "the run is ending already")
    index = program.step_index.get(event.step)
    if index is None:
        return Rejection("UNKNOWN_STEP", f"no step `{event.step}`")
    if not any(state.active[key].step == index for key in state.ready):
        return Rejection("OUT_OF_ORDER", f"`{event.step}` is not about to be dispatched")
    if event.needed <= event.left or event.left != _left(state, event.budget):
        return Rejection("MISMATCH", f"what `{event.step}` needs is left")
    advance_clock(state, event.at_ms)
    error = {"type": "BUDGET_EXCEEDED", "message": event.budget, "attempts": 0, "step": event.step}
    end(program, state, RunStatus.BUDGET_EXCEEDED, error)
    return None


def _left(state: State, budget: str) -> int | None:
    """What is left of a budget for a call; None of one that the run does not have."""
    if budget == "tokens" and state.tokens_max:
        return max(state.tokens_max - state.tokens - state.reserved_tokens, 0)
    if budget == "cost_nanousd" and state.cost_nanousd_max:
        return max(state.cost_nanousd_max - state.cost_nanousd - state.reserved_cost_nanousd, 0)
    return None


def run_adopted(program: CompiledProgram, state: State, event: ev.RunAdopted) -> Rejection | None:
    return None


def erased(program: CompiledProgram, state: State, event: ev.Erased) -> Rejection | None:
    return None


def event_refused(program: CompiledProgram, state: State, event: ev.EventRefused) -> Rejection | None:
    if state.labels is not None:
        # Nobody knows what it was for.
        state.label = UNTRUSTED | (PRIVATE if program.sealed else 0)
    return None


def run_finished(program: CompiledProgram, state: State, event: ev.RunFinished) -> Rejection | None:
    if state.stage is not _ENDING or state.active:
        return Rejection("OUT_OF_ORDER", "the run is not ready to end")
    if compensates(state):
        return Rejection("OUT_OF_ORDER", "a compensation is due first")
    outcome = None if event.outcome is ABSENT else event.outcome
    named = [] if event.incomplete is ABSENT else event.incomplete
    if event.status != state.ending or outcome != state.outcome or named != incomplete(state):
        return Rejection("MISMATCH", f"the run ends {state.ending}")
    advance_clock(state, event.at_ms)
    state.stage = _ENDED
    return None


# --- forks --------------------------------------------------------------------------------------------------


def values_changed(program: CompiledProgram, state: State, event: ev.ValuesChanged) -> Rejection | None:
    """A fork leaves the shared prefix, or another one did that it shares. What has been reached but not begun is
    rendered again from the new values.
    """
    if state.stage is not _GOING or not state.fork_seq or state.seq > state.fork_seq:
        return Rejection("OUT_OF_ORDER", "values change only where a fork leaves the shared prefix")
    changes = event.payload if type(event.payload) is dict else {}
    slots = {name: slot for slot, name in enumerate(program.slots) if slot >= FIRST_FREE_SLOT}
    if sorted(changes) != event.names or any(name not in slots for name in changes):
        return Rejection("MALFORMED", "the change names a value that the program does not have")
    if event.early is True and state.seq == state.fork_seq:
        state.fork_seq += 2  # this one, and the one that it comes before
    if event.at_ms > state.now_ms:
        # Between the prefix and the fork nobody was running this.
        state.suspended_ms += event.at_ms - state.now_ms
        state.now_ms = event.at_ms
    for name, value in changes.items():
        state.slots[slots[name]] = value
    if state.labels is not None:
        state.label = _changed_labels(program, state, state.labels, [slots[name] for name in event.names])
    todo: list[int] = []
    for activity in list(state.active.values()):
        if state.active.get(activity.step) is activity and program.steps[activity.step].parent < 0:
            _reach_again(program, state, activity, todo)
    move(program, state, todo)
    return None


def _changed_labels(program: CompiledProgram, state: State, labels: list[int], changed: list[int]) -> int:
    """Whoever changes a value, nothing vouches for it but what the program says of its inputs."""
    own = {slot: program.input_labels.get(name, UNTRUSTED) for name, slot in program.input_slots.items()}
    for step in program.steps:
        for slot in (step.output_slot, step.key_slot):
            own[slot] = own.get(slot, UNTRUSTED) | step.adds & SEALED
    together = 0
    for slot in changed:
        bind(state, slot, labels[slot] & SEALED | own.get(slot, UNTRUSTED))
        together |= labels[slot]
    return together


def _reach_again(program: CompiledProgram, state: State, activity: Activity, todo: list[int]) -> None:
    if _goes_on(program, state, activity):
        return
    step = program.steps[activity.step]
    if activity.group is not None:
        lanes = lanes_of(program, state, step)
        for lane in [*lanes, activity]:
            remove(state, lane)
        state.steps -= len(lanes)
        open_group(program, state, step, activity.occurrence, todo)
    else:
        prepare(program, state, step, activity, todo)


def _goes_on(program: CompiledProgram, state: State, activity: Activity) -> bool:
    """Whether an activity outside groups has begun, and goes on with the values that it began with."""
    step = program.steps[activity.step]
    if activity.turns:
        return True  # a conversation goes on from where it is
    if activity.group is not None:
        begun = activity.group.results or activity.group.errors or activity.group.attempts
        return bool(begun) or not all(_untouched(program, lane) for lane in lanes_of(program, state, step))
    waits = activity.phase is Phase.WAITING and step.kind is Kind.WAIT
    return activity.phase is not Phase.READY and not waits


def begun_before(program: CompiledProgram, state: State) -> Iterator[Activity]:
    """What has begun with the values of before, right after a change of values."""
    for activity in state.active.values():
        step = program.steps[activity.step]
        if step.parent < 0 and _goes_on(program, state, activity):
            yield activity
            yield from lanes_of(program, state, step)


def _untouched(program: CompiledProgram, lane: Activity) -> bool:
    waits = lane.phase is Phase.WAITING and program.steps[lane.step].kind is Kind.WAIT
    return (lane.phase is Phase.READY or waits) and lane.attempt == 1 and not lane.turns
