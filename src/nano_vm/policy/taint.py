"""Where untrusted values and secrets can get to: a proof over the compiled program, before anything runs (SPEC §11).

Labels are those of `spec/labels.md`, gathered over all paths at once; what guards pin down is looked up for each step
(`pins`). The result is never too low: a label that a value can have at run time, it has here. So where nothing is
found, nothing untrusted reaches a protected parameter in any run - but for what only a run can know, which has a mark
of its own (`UNPROVED`): the answer to a tool that may suspend, and what a program does that is not at hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from nano_vm.policy.model import Policy
from nano_vm.policy.pins import Pins, after_success, covers, pins_at
from nano_vm.program.compiled import (
    SLOT_ITEM,
    CallAction,
    CompiledProgram,
    CompiledStep,
    MapAction,
    ModelAction,
    ParallelAction,
    Refs,
    Template,
    ToolAction,
    WaitAction,
)
from nano_vm.program.labels import DECLARED, PRIVATE, SEALED, SECRET, UNTRUSTED
from nano_vm.program.tool_schema import ToolSchema

UNPROVED: Final = 8  # it may be untrusted: that shows only when it runs
_BITS = (UNTRUSTED, SECRET, PRIVATE, UNPROVED)
_CALL_DEPTH_MAX = 16

Tools: TypeAlias = Mapping[str, ToolSchema]
Lookup: TypeAlias = Callable[[str], CompiledProgram | None]


class Hop(NamedTuple):
    """One station of a flow: what it is, and in which field of which step (None: of the program itself)."""

    text: str
    step: str | None
    field: str


class Finding(NamedTuple):
    """A flow that must not be, or - `unproved` - of which nobody knows before it runs. `flow` leads from the source to
    the place where it is wrong; `inside` names the called programs that this place is in."""

    code: str
    message: str
    help: str
    flow: tuple[Hop, ...]
    unproved: bool = False
    inside: tuple[str, ...] = ()


class _Cause(NamedTuple):
    """Why a slot has a bit: it came from `slot` through `hop`, or begins there."""

    hop: Hop
    slot: int | None = None


class Analysis:
    """The labels of one program's values, whoever calls it.

    Args:
        tools: what is known of the tools; of the others nothing is.
        lookup: gives the compiled program that a call names, or None.
        inputs: the labels of the inputs, where a parent gives them; else what the program says.
        policy: the one that runs are under.
    """

    def __init__(
        self,
        program: CompiledProgram,
        tools: Tools,
        lookup: Lookup,
        inputs: Mapping[str, int] | None = None,
        above: tuple[str, ...] = (),
        policy: Policy | None = None,
    ) -> None:
        self.program = program
        self.tools = tools
        self.lookup = lookup
        self.above = above
        self.policy = policy
        self.labels = [0] * len(program.slots)
        self.causes: dict[tuple[int, int], _Cause] = {}
        self.pins = pins_at(program)
        self._children: dict[tuple[str, tuple[tuple[str, int], ...]], Analysis] = {}
        for name, slot in program.input_slots.items():
            own = program.input_labels.get(name, UNTRUSTED)
            label = own if inputs is None else own & SEALED | inputs.get(name, 0)
            self._add(slot, label, _Cause(Hop(f"input `{name}`", None, f"inputs/properties/{name}")))
        self._gather()

    # --- labels -------------------------------------------------------------------------------------------

    def _add(self, slot: int, label: int, *causes: _Cause) -> bool:
        new = label & ~self.labels[slot]
        if slot < 0 or not new:
            return False
        self.labels[slot] |= new
        for bit in _BITS:
            if new & bit:
                # The first cause that has the bit itself, else the one that brings it into being.
                carried = (
                    c for c in causes if c.slot is not None and self.labels[c.slot] & bit and c.slot != slot
                )
                self.causes[slot, bit] = next(carried, causes[-1])
        return True

    def label_of(self, refs: Refs, step: CompiledStep, pins: Pins) -> int:
        """The label of what these references give where the step is reached."""
        label = 0
        for slot, path in refs:
            if slot == SLOT_ITEM:
                label |= self._item_label(step)
                continue
            bits = self.labels[slot]
            if bits & (UNTRUSTED | UNPROVED) and covers(pins, (slot, path)):
                bits &= ~(UNTRUSTED | UNPROVED)
            label |= bits
        return label

    def _item_label(self, lane: CompiledStep) -> int:
        group = self.program.steps[lane.parent]
        assert type(group.action) is MapAction
        return self.label_of(group.action.over.refs, group, self.pins[group.index])

    def _gather(self) -> None:
        readers: dict[int, list[int]] = {}
        for step in self.program.steps:
            for slot in self._reads(step):
                readers.setdefault(slot, []).append(step.index)
        queue = deque(range(len(self.program.steps)))
        queued = set(queue)
        while queue:
            index = queue.popleft()
            queued.discard(index)
            for slot in self._evaluate(self.program.steps[index]):
                for reader in readers.get(slot, ()):
                    if reader not in queued:
                        queued.add(reader)
                        queue.append(reader)

    def _reads(self, step: CompiledStep) -> Iterator[int]:
        for _, refs in _fields(step):
            yield from (slot for slot, _ in refs)
        action = step.action
        if type(action) is ParallelAction:
            yield from (self.program.steps[lane].output_slot for lane in action.lanes)
        elif type(action) is MapAction:
            yield self.program.steps[action.lane].output_slot
        if step.parent >= 0:
            group = self.program.steps[step.parent].action
            if type(group) is MapAction:
                yield from (slot for slot, _ in group.over.refs)

    def _evaluate(self, step: CompiledStep) -> list[int]:
        """Takes the step's output as far as its labels are known; returns the slots that have got new ones."""
        pins = self.pins[step.index]
        causes = [
            _Cause(Hop(f"`{field.replace('/', '.')}` of `{step.id}`", step.id, field), slot)
            for field, refs in _fields(step)
            for slot in self._sources(refs, step, pins)
        ]
        made = self.label_of([ref for _, refs in _fields(step) for ref in refs], step, pins)  # type: ignore[arg-type]
        action = step.action
        origin = "output"
        label = made & step.keeps | step.adds
        if type(action) is ToolAction:
            label = self._tool_output(action.tool, made) | step.adds
            origin = f"output of tool `{action.tool}`"
        elif isinstance(action, ModelAction):
            origin = "text of a model"
            if any(self._yields_secret(tool) for tool in getattr(action, "tools", ())):
                label |= SECRET
        elif type(action) is WaitAction:
            origin = "event"
        elif isinstance(action, ParallelAction | MapAction):
            lanes = action.lanes if isinstance(action, ParallelAction) else (action.lane,)
            label, causes = step.adds, []
            for lane in lanes:
                inner = self.program.steps[lane]
                label |= self.labels[inner.output_slot]
                causes.append(
                    _Cause(Hop(f"lane `{inner.id}` of `{step.id}`", step.id, "id"), inner.output_slot)
                )
        elif type(action) is CallAction:
            label = self._call_output(step, action, pins, made) | step.adds
            origin = f"result of `{action.program}`"
        if _substitutes(step):
            label |= UNTRUSTED
            origin = "value in place of an output" if not label & ~UNTRUSTED else origin
        causes.append(_Cause(Hop(f"{origin} in `{step.id}`", step.id, "id")))
        changed = [
            slot
            for slot in (step.output_slot, step.key_slot)
            if slot >= 0 and self._add(slot, label, *causes)
        ]
        error = _Cause(Hop(f"error of `{step.id}`", step.id, "id"))
        failed = UNTRUSTED | (made | step.adds) & SEALED
        if step.error_slot >= 0 and self._add(step.error_slot, failed, error):
            changed.append(step.error_slot)
        return changed

    def _sources(self, refs: Refs, step: CompiledStep, pins: Pins) -> Iterator[int]:
        for slot, path in refs:
            if slot == SLOT_ITEM:
                group = self.program.steps[step.parent]
                assert type(group.action) is MapAction
                yield from self._sources(group.action.over.refs, group, self.pins[group.index])
            elif self.labels[slot] and not covers(pins, (slot, path)):
                yield slot

    def _yields_secret(self, tool: str) -> bool:
        schema = self.tools.get(tool)
        return schema is not None and schema.output_label == "secret"

    def _tool_output(self, tool: str, made: int) -> int:
        schema = self.tools.get(tool)
        declared = schema.output_label if schema is not None else None
        suspends = UNPROVED if schema is None or schema.may_suspend else 0
        if declared is None:
            return made | suspends
        if declared == "secret":
            return made | SECRET | suspends
        return DECLARED[declared] | (made & PRIVATE)

    # --- calls --------------------------------------------------------------------------------------------

    def child(self, step: CompiledStep, action: CallAction, pins: Pins) -> Analysis | None:
        """The called program with the inputs that it is given here; None when it is not at hand."""
        if len(self.above) >= _CALL_DEPTH_MAX:
            return None
        program = self.lookup(action.program)
        if program is None or program.hash in self.above or program.hash == self.program.hash:
            return None
        given = {name: self.label_of(refs, step, pins) for name, refs in action.inputs.parts}
        key = program.hash, tuple(sorted(given.items()))
        known = self._children.get(key)
        if known is None:
            above = (*self.above, self.program.hash)
            known = self._children[key] = Analysis(
                program, self.tools, self.lookup, given, above, self.policy
            )
        return known

    def _call_output(self, step: CompiledStep, action: CallAction, pins: Pins, made: int) -> int:
        child = self.child(step, action, pins)
        return made | UNPROVED if child is None else child.result_label()

    def result_label(self) -> int:
        """The label of what the program yields to a caller."""
        label = 0
        if self.program.outputs:
            for output in self.program.outputs:
                for slot, _ in output.template.refs:
                    label |= self.labels[slot]
            return label
        for step in self.program.steps:
            if step.parent < 0 and step.output_slot >= 0:
                label |= self.labels[step.output_slot]
        return label

    # --- findings -----------------------------------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        """Every place where something gets to where it must not, in the order of the steps."""
        for step in self.program.steps:
            pins = self.pins[step.index]
            action = step.action
            if type(action) is ToolAction:
                if not self._vouched(step, action):
                    yield from self._protected(step, action.tool, action.args, "args", pins)
                yield from self._summed(step, action.tool, action.args, "args", pins)
            elif isinstance(action, ModelAction):
                yield from self._prompts(step, pins)
                for tool in getattr(action, "tools", ()):
                    yield from self._proposals(step, tool)
            elif type(action) is CallAction:
                yield from self._called(step, action, pins)
            if step.compensation is not None:
                after = after_success(self.program, step, pins)
                args = step.compensation.args
                yield from self._protected(step, step.compensation.tool, args, "compensate/args", after)
                yield from self._summed(step, step.compensation.tool, args, "compensate/args", after)

    def _vouched(self, step: CompiledStep, action: ToolAction) -> bool:
        """Whether the action is taken with an approval of exactly this action only: by the program's word, or by that
        of a rule that always applies."""
        return bool(step.approved_by) or self._always_asked(action.tool)

    def _always_asked(self, tool: str) -> bool:
        rules = self.policy.rules_for("tool", tool) if self.policy is not None else ()
        return any(rule.decision == "ask" and rule.when is None for rule in rules)

    def _protected(
        self, step: CompiledStep, tool: str, args: Template, field: str, pins: Pins
    ) -> Iterator[Finding]:
        schema = self.tools.get(tool)
        if schema is None or not schema.protected:
            return
        for name, refs in args.parts:
            label = self.label_of(refs, step, pins)
            if name not in schema.protected or not label & (UNTRUSTED | UNPROVED):
                continue
            bit = UNTRUSTED if label & UNTRUSTED else UNPROVED
            target = Hop(f"`{field.replace('/', '.')}.{name}` of `{step.id}`", step.id, f"{field}/{name}")
            flow = self.flow(refs, step, pins, bit, target)
            if bit == UNTRUSTED:
                message = f"`{name}` of `{tool}` takes trusted values only, and would get one that nobody vouches for"
                help = (
                    "let it through a gate: `allowed_outputs`, a closed `output_schema`, a condition that compares it "
                    "with literals or bounds it on both sides, or an approval of the action"
                )
                yield Finding("TAINTED_PARAMETER", message, help, flow)
            else:
                message = f"whether `{name}` of `{tool}` gets a trusted value shows only when it runs"
                yield Finding("UNPROVED_FLOW", message, _remedy(flow), flow, unproved=True)

    def _summed(
        self, step: CompiledStep, tool: str, args: Template, field: str, pins: Pins
    ) -> Iterator[Finding]:
        """What the policy would add up and is private: limits are counted in clear, so such a call is denied."""
        for rule in self.policy.rules_for("tool", tool) if self.policy is not None else ():
            for name in dict.fromkeys(limit.path[0] for limit in rule.limits if limit.path is not None):
                refs = next(
                    (refs for part, refs in args.parts if part == name), args.refs if not args.parts else ()
                )
                label = self.label_of(refs, step, pins) & SEALED
                if not label:
                    continue
                target = Hop(f"`{field.replace('/', '.')}.{name}` of `{step.id}`", step.id, f"{field}/{name}")
                flow = self.flow(refs, step, pins, PRIVATE if label & PRIVATE else SECRET, target)
                message = f"the rule `{rule.id}` adds up `{name}` of `{tool}`, and would get a private value"
                help = "limit `max_calls`, or take the amount out of what is private: limits are counted in clear"
                # A rule with a condition may not apply.
                yield Finding("PRIVATE_AMOUNT", message, help, flow, unproved=rule.when is not None)

    def _proposals(self, step: CompiledStep, tool: str) -> Iterator[Finding]:
        schema = self.tools.get(tool)
        if self._yields_secret(tool):
            origin = Hop(f"output of tool `{tool}` in `{step.id}`", step.id, "tools")
            message = f"the model of `{step.id}` would be told the secret that `{tool}` yields"
            help = f"take `{tool}` out of `tools`"
            yield Finding("SECRET_IN_PROMPT", message, help, (origin, Hop("conversation", step.id, "prompt")))
        for name in schema.protected if schema is not None and not self._always_asked(tool) else ():
            message = f"`{name}` of `{tool}` takes trusted values only, and a model would propose it"
            help = (
                f"take `{tool}` out of `tools`, and call it in a step of its own behind a gate; or have the policy ask "
                "for an approval of every call"
            )
            flow = (
                Hop(f"text of a model in `{step.id}`", step.id, "id"),
                Hop(f"`{name}` of `{tool}`", step.id, "tools"),
            )
            yield Finding("TAINTED_PARAMETER", message, help, flow)

    def _prompts(self, step: CompiledStep, pins: Pins) -> Iterator[Finding]:
        for field, refs in _fields(step):
            if self.label_of(refs, step, pins) & SECRET:
                flow = self.flow(refs, step, pins, SECRET, Hop(f"`{field}` of `{step.id}`", step.id, field))
                message = f"a secret would be told to a model in `{field}`"
                help = "take it out; what needs the secret is a tool, which gets it as an argument"
                yield Finding("SECRET_IN_PROMPT", message, help, flow)

    def _called(self, step: CompiledStep, action: CallAction, pins: Pins) -> Iterator[Finding]:
        child = self.child(step, action, pins)
        if child is None:
            label = self.label_of(action.inputs.refs, step, pins)
            if label & (UNTRUSTED | SECRET | UNPROVED) and self.lookup(action.program) is None:
                flow = (Hop(f"`inputs` of `{step.id}`", step.id, "inputs"),)
                message = f"what `{action.program}` does with what it is given shows only when it runs"
                help = f"check them together: `--program FILE` with the program `{action.program}`"
                yield Finding("UNPROVED_FLOW", message, help, flow, unproved=True)
            return
        for finding in child.findings():
            yield finding._replace(
                flow=self._into(step, action, pins, finding), inside=(action.program, *finding.inside)
            )

    def _into(self, step: CompiledStep, action: CallAction, pins: Pins, finding: Finding) -> tuple[Hop, ...]:
        """The flow up to the call, then the child's own."""
        bit = SECRET if finding.code == "SECRET_IN_PROMPT" else UNPROVED if finding.unproved else UNTRUSTED
        inner = tuple(hop._replace(text=f"{hop.text} in `{action.program}`") for hop in finding.flow)
        for name, refs in action.inputs.parts:
            if finding.flow[0].text == f"input `{name}`" and self.label_of(refs, step, pins) & bit:
                target = Hop(f"`inputs.{name}` of `{step.id}`", step.id, f"inputs/{name}")
                return (*self.flow(refs, step, pins, bit, target), *inner[1:])
        return (Hop(f"call `{step.id}`", step.id, "program"), *inner)

    def flow(self, refs: Refs, step: CompiledStep, pins: Pins, bit: int, target: Hop) -> tuple[Hop, ...]:
        """The way of a bit from where it began to `target`."""
        hops = [target]
        slot: int | None = next(
            (source for source in self._sources(refs, step, pins) if self.labels[source] & bit), None
        )
        seen = set()
        while slot is not None and slot not in seen:
            seen.add(slot)
            cause = self.causes[slot, bit]
            if cause.slot is None:
                name = self.program.slots[slot]
                if not cause.hop.text.startswith("input"):
                    hops.append(Hop(f"`${name}`", cause.hop.step, "id"))
            else:
                hops.append(Hop(f"`${self.program.slots[slot]}`", cause.hop.step, "id"))
            hops.append(cause.hop)
            slot = cause.slot
        return tuple(reversed(hops))


def _fields(step: CompiledStep) -> list[tuple[str, Refs]]:
    """What the output of a step is made of: fields and what they refer to."""
    action: Any = step.action
    if type(action) is ToolAction:
        return [(f"args/{name}", refs) for name, refs in action.args.parts]
    if isinstance(action, ModelAction):
        named = (
            ("system", action.system),
            ("prompt", action.prompt),
            ("model", action.model),
            ("params", action.params),
        )
        return [(name, template.refs) for name, template in named if template is not None]
    if type(action) is CallAction:
        return [(f"inputs/{name}", refs) for name, refs in action.inputs.parts]
    if type(action) is MapAction:
        return [("over", action.over.refs)]
    return []


def _substitutes(step: CompiledStep) -> bool:
    """Whether another value may stand in for the output."""
    if step.on_timeout == "fallback" and step.timeout_ms:
        return True
    return (
        isinstance(step.action, ModelAction) and step.on_error == "skip" and bool(step.action.allowed_outputs)
    )


def _remedy(flow: tuple[Hop, ...]) -> str:
    return (
        f"{flow[0].text} may be somebody else's word: a tool that may answer PENDING declares its `output_label`, or "
        "`may_suspend=False`; a called program is given with `--program`"
    )
