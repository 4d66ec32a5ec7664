"""The lane: the transitions that nearly every run consists of, without the generality it does not need.

A plain step - a tool at the top level of a list program, without a compensation - that succeeds at its first attempt
moves the run on to the next plain step, through conditions. `walk` takes these transitions; they are `apply` of
`StepStarted` and `StepSucceeded`, and nothing else: a property test drives random programs both ways and compares
journals and snapshots. Whatever is not plain is left to the general functions, from the same state.

Models are asked by the general functions. Whoever folds a journal takes their plain answers along, too (`Rows.models`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, TypeAlias

from msgspec import UNSET as ABSENT

from nano_vm.errors import NanoVMError
from nano_vm.kernel.decide import compensates, incomplete
from nano_vm.kernel.events import RunStarted
from nano_vm.kernel.flow import move
from nano_vm.kernel.labels import (
    argument_labels,
    first_labels,
    inputs_label,
    output_label,
    pin,
    request_label,
    templates_of,
)
from nano_vm.kernel.life import first_slots, set_budgets
from nano_vm.kernel.opening import model_request
from nano_vm.kernel.settle import end_here
from nano_vm.kernel.state import Activity, Phase, Stage, State
from nano_vm.program.compiled import (
    NO_TARGET,
    CompiledProgram,
    CompiledStep,
    ConditionAction,
    Kind,
    ModelAction,
    ParallelAction,
    ToolAction,
)
from nano_vm.program.labels import SEALED

_READY, _STARTED = Phase.READY, Phase.STARTED
_TOOL = Kind.TOOL
_GOING, _ENDING, _ENDED = Stage.GOING, Stage.ENDING, Stage.ENDED


class GroupCall:
    """The calls of a parallel of plain tools. Whoever takes them notes here what they yield.

    `args`: of each, in declared order; `values`: what those before the last have yielded, as many in the end; `events`:
    how many events it took beside the success of the last and an intent; `at_ms`: the latest of their times.
    """

    __slots__ = ("args", "at_ms", "events", "values")

    def __init__(self, args: list[dict[str, Any]]) -> None:
        self.args = args
        self.values: list[Any] = []
        self.events = 0
        self.at_ms = 0


Reached: TypeAlias = tuple[int, int, Any, list[Any] | None]
"""A READY tool: step index, occurrence, arguments, and the verdicts of the conditions passed on the way to it, if any
were. Or a model, with what it is asked with; or a parallel of tools, with its `GroupCall`."""

Taken: TypeAlias = tuple[Any, int, int]
"""A success: the output (of a group: of the last call), when (epoch ms), and how many events it took: 1 for a pure
step, else 2 with the intent."""

Row: TypeAlias = tuple[int, Any, int, int, int, int]
"""A step as `walk` takes it. A tool or a model: what renders its arguments or its request, its slots (output, output
key, error or -1) and what follows; a condition: its test and both targets; a group: its lanes, and like a tool."""

_IS_OTHER, _IS_CALL, _IS_CONDITION, _IS_GROUP = 0, 1, 2, 3
_NO_END_MS = 1 << 62
_HERE, _TERMINAL = -3, -4  # beside step indexes, `END` and `NO_TARGET`


class Track:
    """What a walk says of labels, in a run that tracks them: of the arguments of the tool that was reached, by name and
    together, of what it will yield, and of the output of the one before it."""

    __slots__ = ("arguments", "coming", "output", "together")

    def __init__(self, program: CompiledProgram, state: State, activity: Activity | None) -> None:
        self.arguments: dict[str, int] | None = None if activity is None else activity.labels
        self.together = 0 if activity is None else activity.label
        self.coming = 0 if activity is None else output_label(program.steps[activity.step], activity)
        self.output = state.last_label


def lane(program: CompiledProgram, state: State, models: bool = False) -> Activity | None:
    """The run's only activity, if it is a READY tool (or model, with `models`) at its first attempt, there is budget
    left for the step after it and nobody counts the steps that change nothing; else None."""
    active = state.active
    if len(active) != 1 or state.stage is not _GOING or program.is_dag or state.grants:
        return None  # (an approval is used up when its step settles)
    if state.stalled_steps_max or _is_spent(state):
        return None
    (activity,) = active.values()
    if activity.phase is not _READY or activity.step < 0 or activity.attempt != 1 or activity.failures:
        return None
    step = program.steps[activity.step]
    if activity.item >= 0 or not (is_plain(step) or (models and is_plain_model(step))):
        return None
    if state.labels is not None and (activity.label | step.adds) & SEALED:
        return None
    return activity


def _is_spent(state: State) -> bool:
    """Whether more is spent than there was. Plain steps spend nothing but steps and time."""
    if state.tokens_max and state.tokens > state.tokens_max:
        return True
    return bool(state.cost_nanousd_max) and state.cost_nanousd > state.cost_nanousd_max


def is_plain(step: CompiledStep) -> bool:
    """Whether `walk` may take the step's success, as that of a tool."""
    return step.parent < 0 and is_call(step)


def is_plain_model(step: CompiledStep) -> bool:
    """Whether `walk` may take the step's success, as that of a model."""
    return step.parent < 0 and type(step.action) is ModelAction and step.compensation is None


def is_call(step: CompiledStep) -> bool:
    """Whether the step is a call of a tool and nothing else: nothing to undo it, no key, no approval."""
    return (
        step.kind is _TOOL
        and step.compensation is None
        and type(step.action) is ToolAction
        and step.action.idempotency_key is None
        and not step.approved_by
    )


class Rows(dict[int, Row]):
    """By step index, what `walk` has to know of the steps it comes to. To be kept as long as its program is.

    `models`: models are plain as well. Whoever walks adds what they spend to the state, before it sends their answer.
    """

    def __init__(self, program: CompiledProgram, models: bool = False) -> None:
        super().__init__()
        self._steps = program.steps
        self.models = models
        self.sources = _Sources(program)
        self.adding = frozenset(
            step.index for step in program.steps if step.adds
        )  # what labels its own output
        budgets = program.budgets
        self.bounded = bool(budgets.tokens_max or budgets.cost_nanousd_max or budgets.duration_ms_max)
        # Whether runs of the program may take the lane from their start.
        self.begins = not (program.is_dag or budgets.stalled_steps_max)

    def __missing__(self, index: int) -> Row:
        step = self._steps[index]
        row = self[index] = _group(step, self._steps) or _row(step, self.models)
        return row


class _Sources(dict[int, tuple[int, ...]]):
    """By step index, the slots that a call is made of; runs that track no labels need none."""

    def __init__(self, program: CompiledProgram) -> None:
        super().__init__()
        self._steps = program.steps

    def __missing__(self, index: int) -> tuple[int, ...]:
        action = self._steps[index].action
        templates = (
            [action.args]
            if type(action) is ToolAction
            else templates_of(action)
            if isinstance(action, ModelAction)
            else []
        )
        found = self[index] = tuple({slot for template in templates for slot, _ in template.refs})
        return found


def _row(step: CompiledStep, models: bool) -> Row:
    action = step.action
    render: Any = None
    if type(action) is ToolAction and is_plain(step):
        render = action.args.render
    elif models and type(action) is ModelAction and is_plain_model(step):
        render = partial(model_request, action)
    if render is not None:
        key = step.key_slot if step.key_slot >= 0 else step.output_slot
        following = _TERMINAL if step.is_terminal else step.next
        return _IS_CALL, render, step.output_slot, key, step.error_slot, following
    if type(action) is ConditionAction and step.parent < 0:
        return _IS_CONDITION, action.test, action.then, action.otherwise, 0, 0
    return _IS_OTHER, None, 0, 0, 0, 0


_Lane: TypeAlias = tuple[int, str, Any, int, int, int]
"""A call of a group: its step, its id, what renders its arguments, and the slots of its output (the second is the first
again where it has but one) and of its error (-1: none). A plain tuple is unpacked at once."""


def _group(step: CompiledStep, steps: Sequence[CompiledStep]) -> Row | None:
    """The row of a parallel of plain tools that all begin at once."""
    action = step.action
    if (
        type(action) is not ParallelAction
        or action.concurrency_max < len(action.lanes)
        or step.parent >= 0
        or step.timeout_ms
        or step.compensation is not None
        or step.approved_by
        or step.output_slot < 0
        or not all(is_call(steps[index]) and steps[index].output_slot >= 0 for index in action.lanes)
    ):
        return None
    lanes = []
    for index in action.lanes:
        inner = steps[index]
        call = inner.action
        assert type(call) is ToolAction
        key = inner.key_slot if inner.key_slot >= 0 else inner.output_slot
        lanes.append((index, inner.id, call.args.render, inner.output_slot, key, inner.error_slot))
    key = step.key_slot if step.key_slot >= 0 else step.output_slot
    following = _TERMINAL if step.is_terminal else step.next
    return _IS_GROUP, tuple(lanes), step.output_slot, key, step.error_slot, following


# (What is looped over in functions of their own would make cells of the variables of `walk`.)


def _adds(rows: Rows, lanes: tuple[_Lane, ...]) -> bool:
    """Whether some lane labels what it yields."""
    return any(lane[0] in rows.adding for lane in lanes)


def _call_of(lanes: tuple[_Lane, ...], slots: list[Any]) -> GroupCall:
    return GroupCall([render(slots) for _, _, render, _, _, _ in lanes])


def _bind(
    slots: list[Any], pins: dict[int, Any], lanes: tuple[_Lane, ...], values: list[Any]
) -> dict[str, Any]:
    """Bind what the lanes have yielded, and pin it no more; returns what the group yields."""
    output = {}
    for (_, step_id, _, slot, key_slot, error_slot), value in zip(lanes, values, strict=True):
        output[step_id] = slots[slot] = slots[key_slot] = value
        if error_slot >= 0:
            slots[error_slot] = None
        if pins:
            for bound in (slot, key_slot, error_slot):
                pins.pop(bound, None)
    return output


def open_run(program: CompiledProgram, state: State, event: RunStarted, rows: Rows) -> bool:
    """`apply` of a new run's RunStarted, if it is an ordinary one, as far as a `walk` without an activity takes it up;
    else False, and nothing is changed. The event is given its label."""
    if (
        not rows.begins
        or event.budgets is not ABSENT
        or event.forked is not ABSENT
        or event.depth is not ABSENT
        or event.replanned is not ABSENT
        or event.program != program.hash
    ):
        return False
    if program.labelled or event.features is not ABSENT:
        labels = first_labels(program, event)
        if labels is not None:
            label = inputs_label(program, labels)
            if label & SEALED:
                return False
            event.label = label or ABSENT
        state.labels = labels
    if event.programs is not ABSENT:
        state.programs = dict(event.programs)
    if event.policy is not ABSENT:
        state.policy = event.policy
    state.governed = bool(state.policy) or program.approves
    state.started_ms = state.now_ms = event.at_ms
    state.slots = first_slots(program, state, event)
    if rows.bounded:
        set_budgets(program, state)
    else:
        state.steps_max = program.budgets.steps_max
    state.occurrences = [0] * len(program.steps)
    state.stage = _GOING
    return True


def begin(state: State, activity: Activity, effect: str) -> None:
    """`apply` of StepStarted, in the instant the step was reached."""
    activity.effect = effect
    activity.phase = _STARTED
    del state.ready[activity.step]
    state.seq += 1


def ends_plainly(state: State) -> bool:
    """Whether nothing is left but RunFinished, and it tells no more than the status and the outcome."""
    return state.stage is _ENDING and not state.active and not compensates(state) and not incomplete(state)


def finish(state: State, at_ms: int) -> None:
    """`apply` of the RunFinished of a run that ends plainly."""
    if state.settled:
        state.settled = []
    if state.verdicts:
        state.verdicts = []
    if at_ms > state.now_ms:
        state.now_ms = at_ms
    state.stage = _ENDED
    state.seq += 1


def _reach(track: Track, state: State, step: CompiledStep) -> int:
    """Note the labels of what a call is made with; returns all of them and what the output will have."""
    action = step.action
    if isinstance(action, ModelAction):
        together, arguments = request_label(state, action), None
    else:
        together, arguments = argument_labels(state, action)  # type: ignore[arg-type]
    track.together, track.arguments = together, arguments
    track.coming = together & step.keeps | step.adds
    return together | step.adds


def walk(
    program: CompiledProgram,
    state: State,
    activity: Activity | None,
    rows: Rows | None = None,
    track: Track | None = None,
    groups: bool = False,
) -> Generator[Reached, Taken, None]:
    """Yields one READY call after another, the first being `activity`, and is sent its success.

    It ends where the general functions have gone on from the last success: at the end of the run, or at something
    that is not plain. What changes with every step it keeps to itself: until it has ended or is closed, `state` is as
    of the start, but for its slots and occurrences. Closed, the tool that it yielded last is READY in it.

    Args:
        activity: None in a run that has been opened (`open_run`) and is on its way to its first step.
        rows: of the program, from an earlier walk.
        track: where a run tracks labels; it is kept up to date. Values that have to be sealed are not plain.
        groups: whether groups of plain tools are plain, as long as all values are trusted; not in governed runs.
    """
    if rows is None:
        rows = Rows(program)
    slots, occurrences, labels, pins = state.slots, state.occurrences, state.labels, state.pins
    seq, now_ms, output = state.seq, state.now_ms, state.last_output
    # Whether something is not trusted; else nothing has to be looked at.
    mixed = labels is not None and (any(labels) or (track is not None and track.coming != 0))
    verdicts: list[Any] | None
    left = state.steps_max - state.steps
    # Time in which a run is suspended is not its own; along the lane none is.
    until_ms = state.started_ms + state.suspended_ms + (state.duration_ms_max or _NO_END_MS)
    adding = rows.adding
    metered = rows.models and bool(state.tokens_max or state.cost_nanousd_max)
    bounded = metered or bool(state.duration_ms_max)
    first = second = error = following = 0
    act: Any = None
    args: Any
    group: GroupCall | None = None
    if activity is None:
        verdicts, coming, index, occurrence, args = None, program.entry, -1, 0, {}
        seq += 1
    else:
        verdicts, coming = state.verdicts, _HERE
        index, occurrence, args = activity.step, activity.occurrence, activity.request
        _, _, first, second, error, following = rows[index]
    # `coming` is where the general functions go on from; `_HERE` while a tool is out
    try:
        while True:
            if coming != _HERE:
                while coming >= 0 and left > 0:
                    kind, act, first, second, error, following = rows[coming]
                    if kind == _IS_CALL:
                        args = act(slots)
                        if track is not None and (mixed or coming in adding):
                            mixed = True
                            for slot in rows.sources[coming]:
                                if labels[slot]:  # type: ignore[index]
                                    reached = _reach(track, state, program.steps[coming])
                                    break
                            else:
                                track.together, track.arguments = 0, None
                                track.coming = reached = program.steps[coming].adds
                            if reached & SEALED:
                                return
                        occurrences[coming] = occurrence = occurrences[coming] + 1
                        left -= 1
                        index, coming = coming, _HERE
                        break
                    if kind != _IS_CONDITION:
                        if kind != _IS_GROUP or not groups or left <= len(act):
                            return
                        if track is not None:
                            if mixed or _adds(rows, act):
                                return  # their labels are for the general functions
                            track.together, track.arguments, track.coming = 0, None, 0
                        args = group = _call_of(act, slots)
                        occurrences[coming] = occurrence = occurrences[coming] + 1
                        for lane in act:
                            occurrences[lane[0]] = occurrence
                        left -= 1 + len(act)
                        index, coming = coming, _HERE
                        break
                    verdict = act(slots)
                    target = first if verdict else second
                    if target == NO_TARGET:
                        return
                    occurrences[coming] = passed = occurrences[coming] + 1
                    left -= 1
                    if mixed:
                        condition = program.steps[coming].action
                        pin(state, condition.pins_then if verdict else condition.pins_otherwise)  # type: ignore[union-attr]
                    if verdicts is None:
                        verdicts = []
                    verdicts.append([program.steps[coming].id, passed, verdict])
                    coming = target
                else:
                    return
            output, at_ms, events = yield index, occurrence, args, verdicts
            if group is not None:
                group.values.append(output)
                output = _bind(slots, pins, act, group.values)
                seq += group.events
                at_ms = max(at_ms, group.at_ms)
                group = None
            if at_ms > now_ms:
                now_ms = at_ms
            seq += events
            slots[first] = slots[second] = output
            if error >= 0:
                slots[error] = None
            if mixed:
                track.output = labels[first] = labels[second] = track.coming  # type: ignore[index, union-attr]
                if error >= 0:
                    labels[error] = 0  # type: ignore[index]
            if pins:
                if first in pins:
                    del pins[first]
                if second in pins:
                    del pins[second]
                if error in pins:
                    del pins[error]
            verdicts = None
            coming = following
            if bounded and (now_ms > until_ms or (metered and _is_spent(state))):
                return
    except NanoVMError:
        pass  # a reference or a condition: the general functions come upon it again, and fail the step or the run
    finally:
        if group is not None:
            # The general functions open it, as if it had not been reached.
            occurrences[index] -= 1
            left += 1 + len(act)
            coming = index
        if seq != state.seq:
            state.seq, state.now_ms, state.steps = seq, now_ms, state.steps_max - left
            state.last_output = output
            if track is not None:
                state.last_label = track.output
            state.settled, state.verdicts = [], verdicts or []
            if state.active:
                state.active.clear()
                state.ready.clear()
            if coming == _HERE:
                if activity is None:
                    activity = Activity(step=index, occurrence=occurrence, request=args)
                else:
                    activity.step, activity.occurrence, activity.request = index, occurrence, args
                if track is not None:
                    activity.label, activity.labels = track.together, track.arguments
                activity.entered_ms = now_ms
                state.active[index] = activity
                state.ready[index] = None
                state.busy = 1
            else:
                state.busy = 0
                if coming == _TERMINAL:
                    end_here(program, state, program.steps[index])
                else:
                    move(program, state, [coming])
