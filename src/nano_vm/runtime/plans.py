"""How an engine calls the steps of a program along the lane: worked out once, and kept as long as the program is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from nano_vm.journal.plain import intent_of, intents_of, success_of
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool
from nano_vm.kernel.lane import Rows, is_call
from nano_vm.program.compiled import CompiledProgram, CompiledStep, ParallelAction, ToolAction
from nano_vm.program.labels import UNTRUSTED
from nano_vm.runtime.ports import ToolInvoker, ToolSpec

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

AWAITED, CALLED, BLOCKING, NOWHERE = 0, 1, 2, 3  # ways to call a tool, and none of them
BY_NAME, BY_PLACE = 1, 2  # ways to give it its arguments


class Steady(NamedTuple):
    """What is needed of a plan with every step that is taken."""

    function: Callable[..., Any]
    direct: int  # `BY_NAME`, or `BY_PLACE` where it has but one: it is awaited, and they need no copy; else 0
    events: int  # how many a success takes: 1 when the tool is pure, else 2 with its intent
    only: (
        str | None
    )  # the one argument that is given and taken, of one of `kinds` exactly when nothing is amiss
    kinds: tuple[type, ...]
    success: str  # the encoded StepSucceeded of its first occurrence, from `attempt` to `step`
    intent: str  # its StepStarted that rides with a success, before the time
    intended: (
        Any  # and after it, of the first occurrence: `str`, of a group of several the parts around their time
    )


_Parts: TypeAlias = tuple[Callable[..., Any], int, int, str | None, tuple[type, ...], str, str, Any]


def _parts(steady: Steady) -> _Parts:
    return steady[:]


class Plan(msgspec.Struct, frozen=True, eq=False):
    """What has to be known of a step to take it along the lane; worked out once per engine and step."""

    step: CompiledStep
    spec: ToolSpec
    steady: Steady
    parts: _Parts  # the same as a plain tuple, which is unpacked at once
    untrusted: str  # `steady.success` of an output that is not trusted
    protected: bool  # some of its parameters take trusted values only
    flat: bool  # it is given arguments alone, which, without problems, hold no object and no array: it needs no copy
    way: int  # `AWAITED`; `CALLED`: a plain function that returns at once; `BLOCKING`: one that may not
    lanes: tuple[Any, ...] = ()  # of a group: the plans of its calls; `steady.success` is that of the last
    more: int = 0  # of a group: how many events its calls take beside the success of the last and one intent

    @property
    def joins(self) -> bool:
        """Whether it may be called in a group."""
        return self.way != BLOCKING and not self.protected and self.spec.context_parameter is None

    @property
    def last(self) -> Plan:
        """The plan of the call whose success lets the run go on."""
        last: Plan = self.lanes[-1] if self.lanes else self
        return last

    def started(self, at_ms: int, occurrence: int, *, item: int = -1, label: int = 0) -> ev.StepStarted:
        """The intent of its first attempt."""
        return ev.StepStarted(
            at_ms=at_ms,
            attempt=1,
            effect=self.spec.effect,
            item=item if item >= 0 else ev.UNSET,
            label=label or ev.UNSET,
            occurrence=occurrence,
            step=self.step.id,
        )

    def succeeded(
        self,
        at_ms: int,
        occurrence: int,
        value: Any,
        verdicts: list[Any] | None,
        *,
        item: int = -1,
        label: int = 0,
    ) -> ev.StepSucceeded:
        """The success of its first attempt, and the verdicts that follow."""
        return ev.StepSucceeded(
            at_ms=at_ms,
            attempt=1,
            item=item if item >= 0 else ev.UNSET,
            label=label or ev.UNSET,
            occurrence=occurrence,
            payload=value,
            pure=True if self.steady.events == 1 else ev.UNSET,
            step=self.step.id,
            verdicts=verdicts or ev.UNSET,
        )

    def command(self, args: dict[str, Any], occurrence: int, item: int = -1) -> CallTool:
        """The command that the kernel gives for its first attempt."""
        action = self.step.action
        assert type(action) is ToolAction
        return CallTool(
            step=self.step.index,
            step_id=self.step.id,
            occurrence=occurrence,
            item=item,
            attempt=1,
            tool=action.tool,
            args=args,
        )


class Lane(msgspec.Struct, frozen=True, eq=False):
    """What an engine knows of a program's steps: as the kernel takes them, and as they are called."""

    program: CompiledProgram  # the very one whose slots `rows` speak of
    tracks: bool  # for runs that track labels
    rows: Rows
    starts: dict[
        tuple[Any, Any], str
    ]  # RunStarted as `start_of` gives it, by the policy and the label that it names
    told: dict[
        tuple[str, str, bool], str
    ]  # first successes with the verdict of one condition that is met after them
    plans: list[Any]  # by step: `Plan`, None before it is needed, False where there is none


def lane_of(engine: Engine, program: CompiledProgram, tracks: bool) -> Lane:
    """What the engine knows of the program's steps, for runs that track labels or for those that do not."""
    known = engine.lanes.get((program.hash, tracks))
    if known is not None and known.program is program:
        return known
    known = Lane(program, tracks, Rows(program), {}, {}, [None] * len(program.steps))
    engine.lanes[program.hash, tracks] = known
    return known


def plan_for(known: Lane, index: int, program: CompiledProgram, tools: ToolInvoker) -> Plan | None:
    """The plan of a step that has none yet, or None when the lane cannot take it."""
    if known.plans[index] is None:
        step = program.steps[index]
        if type(step.action) is ParallelAction:
            lanes = [plan_for(known, lane, program, tools) for lane in step.action.lanes]
            known.plans[index] = _group(step, lanes) or False
        else:
            known.plans[index] = _plan(step, tools, known.tracks) or False
    return known.plans[index] or None


def _plan(step: CompiledStep, tools: ToolInvoker, tracks: bool) -> Plan | None:
    """The plan of a step; None when its call needs more than its arguments and a context."""
    action = step.action
    if type(action) is not ToolAction:
        return None
    spec = tools.spec(action.tool)
    if (
        spec is None
        or step.timeout_ms
        or not is_call(step)
        or spec.effect == "transactional"
        or spec.schema.output_label is not None
        or spec.secrets
        or (spec.schema.protected and not tracks)  # it became so after the run had started
    ):
        return None
    intent, intended = intent_of(step.id, spec.effect, 1)
    only, kinds = _only(spec, action)
    flat = spec.context_parameter is None and _is_flat(spec)
    way = AWAITED if spec.is_async else BLOCKING if spec.blocking else CALLED
    steady = Steady(
        function=spec.function,
        direct=0 if not flat or way != AWAITED else BY_PLACE if _is_first(spec.function, only) else BY_NAME,
        events=1 if spec.effect == "pure" else 2,
        only=only,
        kinds=kinds,
        success=success_of(step.id, spec.effect == "pure", 1),
        intent=intent,
        intended=intended,
    )
    untrusted = success_of(step.id, spec.effect == "pure", 1, UNTRUSTED)
    return Plan(step, spec, steady, _parts(steady), untrusted, bool(spec.schema.protected), flat, way)


def _group(step: CompiledStep, lanes: list[Plan | None]) -> Plan | None:
    """The plan of a group that is called as one; None when some of its calls are not for the lane."""
    plans = [lane for lane in lanes if lane is not None and lane.joins]
    if len(plans) != len(lanes):
        return None
    last = plans[-1]
    intent, intended = intents(plans, 1)
    steady = Steady(
        function=last.spec.function,
        direct=0,
        events=2 if intent else 1,
        only=None,
        kinds=(),
        success=last.steady.success,
        intent=intent,
        intended=intended,
    )
    more = sum(plan.steady.events for plan in plans) - steady.events
    return Plan(
        step, last.spec, steady, _parts(steady), last.untrusted, False, True, AWAITED, tuple(plans), more
    )


def intents(plans: Sequence[Plan], occurrence: int) -> tuple[str, str | tuple[str, ...]]:
    """`intents_of` those that have effects."""
    started = [(plan.step.id, plan.spec.effect) for plan in plans if plan.steady.events != 1]
    return intents_of(started, occurrence)


def _only(spec: ToolSpec, action: ToolAction) -> tuple[str | None, tuple[type, ...]]:
    """`spec.only`, where the step gives that argument."""
    if spec.only is None or action.args.names != (spec.only[0],):
        return None, ()
    return spec.only


def _is_first(function: Callable[..., Any], only: str | None) -> bool:
    """Whether a plain function, or a method of something, takes this argument first; given by its place it costs less
    to call."""
    bound = type(function) is MethodType
    plain = function.__func__ if bound else function  # type: ignore[attr-defined]
    if only is None or type(plain) is not FunctionType:
        return False
    names = plain.__code__.co_varnames[: plain.__code__.co_argcount]
    return names[bound : bound + 1] == (only,)


def _is_flat(spec: ToolSpec) -> bool:
    schema = spec.schema.parameters
    if spec.problems is None or schema.get("additionalProperties") is not False:
        return False
    return all(
        type(property) is dict and property.get("type") in _SCALARS
        for property in schema.get("properties", {}).values()
    )


_SCALARS = ("string", "integer", "number", "boolean", "null")
