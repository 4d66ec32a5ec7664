"""From a sound program to its compiled form: slots, step indexes, closures, integers with units."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import accumulate
from typing import Any

from nano_vm.compiler.dag import DagFlow
from nano_vm.compiler.graph import ListFlow
from nano_vm.compiler.names import ERROR_OF, INPUT, KEY, OUTPUT_OF, Names, Symbol
from nano_vm.compiler.resolve import COMPENSATE, Resolved
from nano_vm.compiler.view import Step, View
from nano_vm.expr.evaluator import compile_condition
from nano_vm.expr.guards import pinned
from nano_vm.expr.reference import Ref
from nano_vm.program.closed import is_closed
from nano_vm.program.compiled import (
    END,
    FIRST_FREE_SLOT,
    NO_TARGET,
    SLOT_ARGS,
    SLOT_EVENT,
    SLOT_INDEX,
    SLOT_ITEM,
    SLOT_PRINCIPAL,
    SLOT_RUN,
    Action,
    AgentAction,
    Budgets,
    CallAction,
    Compensation,
    CompiledProgram,
    CompiledStep,
    ConditionAction,
    Edge,
    Kind,
    MapAction,
    ModelAction,
    Output,
    ParallelAction,
    Refs,
    Retry,
    Template,
    Test,
    ToolAction,
    WaitAction,
)
from nano_vm.program.fields import AGENT_TURNS_DEFAULT, PROGRAM_FIELDS
from nano_vm.program.labels import ALL, DECLARED, PRIVATE, SEALED, UNTRUSTED, of_input
from nano_vm.program.template import build, constant
from nano_vm.program.tool_schema import offered_name

_RESERVED_SLOTS = {
    "item": SLOT_ITEM,
    "index": SLOT_INDEX,
    "event": SLOT_EVENT,
    "run": SLOT_RUN,
    "principal": SLOT_PRINCIPAL,
    "args": SLOT_ARGS,
}
_KINDS = {
    "tool": Kind.TOOL,
    "llm": Kind.LLM,
    "agent": Kind.AGENT,
    "condition": Kind.CONDITION,
    "parallel": Kind.PARALLEL,
    "wait": Kind.WAIT,
    "map": Kind.MAP,
    "call": Kind.CALL,
}
_MAP_ITEMS_MAX = 1_000
_MAP_CONCURRENCY_MAX = 16


def lower(
    view: View, names: Names, resolved: Resolved, flow: ListFlow | DagFlow, program_hash: str
) -> CompiledProgram:
    """Returns the compiled form. The program must be free of errors."""
    return _Lowering(view, names, resolved, flow).program(program_hash)


class _Lowering:
    def __init__(self, view: View, names: Names, resolved: Resolved, flow: ListFlow | DagFlow) -> None:
        self.view = view
        self.names = names
        self.resolved = resolved
        self.flow = flow
        self.slot_names: list[str] = [""] * FIRST_FREE_SLOT
        for name, slot in _RESERVED_SLOTS.items():
            self.slot_names[slot] = name
        self.slots: dict[Symbol, int] = {}
        self.approves = any("approves" in step.data for step in view.steps)
        self._assign_slots()
        # By step: the index of its first action; a step has as many as it has tools.
        counts = [len(step.data["tools"]) if step.type == "agent" else 0 for step in view.steps]
        self._first_action = list(accumulate(counts, initial=len(view.steps)))

    # --- slots --------------------------------------------------------------------------------------------

    def _slot(self, symbol: Symbol, name: str) -> None:
        self.slots[symbol] = len(self.slot_names)
        self.slot_names.append(name)

    def _assign_slots(self) -> None:
        # By name: the order in which an author lists them is no part of the program, whose hash does not tell it.
        for name in sorted([*(self.names.inputs or ()), *self.names.assumed]):
            self._slot(Symbol(INPUT, name), name)
        errors = {use.target[0].step for use in self.resolved.uses if use.target[0].kind == ERROR_OF}
        for step in self.view.steps:
            if step.type == "condition":
                continue
            self._slot(Symbol(OUTPUT_OF, step=step.index), f"{step.id}.output")
            if step.index in errors:
                self._slot(Symbol(ERROR_OF, step=step.index), f"{step.id}.error")
        for key, owners in self.names.keys.items():
            if len(owners) > 1:
                self._slot(Symbol(KEY, key), key)

    def _address(self, ref: Ref) -> tuple[int, tuple[str, ...]]:
        found = self.names.find(ref)
        assert found is not None
        symbol, path = found
        slot = self.slots.get(symbol)
        return (_RESERVED_SLOTS[symbol.name] if slot is None else slot), path

    def _template(self, step: Step, field: str) -> Template | None:
        scanned = self.resolved.templates.get((step.index, field))
        return build(scanned, self._address) if scanned is not None else None

    def _test(self, step: Step, field: str) -> Test | None:
        node = self.resolved.expressions.get((step.index, field))
        return compile_condition(node, self._address) if node is not None else None

    # --- the program --------------------------------------------------------------------------------------

    def program(self, program_hash: str) -> CompiledProgram:
        data = self.view.data
        schema = data.get("inputs")
        required = frozenset((schema or {}).get("required", ()))
        optional = {
            name: rule.get("default") if isinstance(rule, dict) else None
            for name, rule in (self.names.inputs or {}).items()
            if name not in required
        }
        steps = self._steps()
        dag = isinstance(self.flow, DagFlow)
        waits = [
            step.data["event"] for step in self.view.steps if step.type == "wait" and "event" in step.data
        ]
        calls = [step.data["program"] for step in self.view.steps if step.type == "call"]
        declared = dict(self.names.inputs or {})
        labels = {name: of_input(declared.get(name)) for name in [*declared, *self.names.assumed]}
        gathered = [*labels.values(), *(step.adds for step in steps)]
        return CompiledProgram(
            hash=program_hash,
            name=data.get("name", PROGRAM_FIELDS["name"].default),
            version=data.get("version", PROGRAM_FIELDS["version"].default),
            steps=steps,
            slots=tuple(self.slot_names),
            input_slots={symbol.name: slot for symbol, slot in self.slots.items() if symbol.kind == INPUT},
            optional_inputs=optional,
            inputs_schema=schema,
            outputs=self._outputs(),
            budgets=_budgets(data),
            is_dag=dag,
            entry=0,
            roots=self._roots(),
            step_index={step.id: step.index for step in steps},
            events=frozenset(waits),
            calls=tuple(dict.fromkeys(calls)),
            labelled=any(label != UNTRUSTED for label in labels.values())
            or any("label" in step.data or _is_private(step) for step in self.view.steps),
            sealed=any(label & SEALED for label in gathered),
            input_labels=labels,
            subject=self._subject(),
            approves=self.approves,
        )

    def _subject(self) -> Template | None:
        scanned = self.resolved.templates.get((-1, "subject"))
        return None if scanned is None else build(scanned, self._address)

    def _outputs(self) -> tuple[Output, ...]:
        outputs = self.view.data.get("outputs") or {}
        return tuple(
            Output(name, build(self.resolved.templates[-1, f"outputs.{name}"], self._address))
            for name in sorted(outputs)
        )

    def _roots(self) -> tuple[int, ...]:
        if not isinstance(self.flow, DagFlow):
            return ()
        return tuple(step.index for step in self.view.top if not self.flow.sources[step.position])

    def _ranks(self) -> list[int]:
        order = self.view.top
        if isinstance(self.flow, DagFlow):
            by_rank = self.flow.ranks
            order = sorted(order, key=lambda step: by_rank[step.position])
        ranks = [0] * len(self.view.steps)
        placed = 0
        for step in order:
            for member in (step, *step.lanes):
                ranks[member.index] = placed
                placed += 1
        return ranks

    # --- steps --------------------------------------------------------------------------------------------

    def _steps(self) -> tuple[CompiledStep, ...]:
        ranks = self._ranks()
        steps = [self._step(step, ranks[step.index]) for step in self.view.steps]
        return (*steps, *self._actions(steps))

    def _index(self, position: int | None, missing: int) -> int:
        if position is None:
            return missing
        return self.view.top[position].index if position < len(self.view.top) else END

    def _step(self, step: Step, rank: int) -> CompiledStep:
        data = step.data
        top = step.parent is None
        dag = isinstance(self.flow, DagFlow)
        key = data.get("output_key")
        handler = self._index(self.view.target(step, "on_failure"), NO_TARGET) if top else NO_TARGET
        return CompiledStep(
            index=step.index,
            id=step.id,
            kind=_KINDS[step.type],
            action=self._action(step),
            rank=rank,
            parent=step.parent.index if step.parent is not None else NO_TARGET,
            output_slot=self.slots.get(Symbol(OUTPUT_OF, step=step.index), NO_TARGET),
            key_slot=self.slots.get(Symbol(KEY, key), NO_TARGET) if key is not None else NO_TARGET,
            error_slot=self.slots.get(Symbol(ERROR_OF, step=step.index), NO_TARGET),
            next=self._next(step) if top and not dag else END,
            is_terminal=bool(data.get("is_terminal", False)) and "next_step" not in data,
            final_status=data.get("final_status", "SUCCESS"),
            outcome=data.get("outcome"),
            on_error=data.get("on_error", "fail"),
            retry=_retry(data),
            on_failure=handler,
            timeout_ms=_ms(data["timeout_seconds"]) if "timeout_seconds" in data else 0,
            on_timeout=data.get("on_timeout", "fail"),
            fallback=_fallback(step),
            compensation=self._compensation(step),
            dependencies=len(self.flow.sources[step.position])
            if top and isinstance(self.flow, DagFlow)
            else 0,
            edges=self._edges(step) if top else (),
            adds=_adds(step),
            keeps=_KEEPS.get(step.type, ALL),
            approved_by=tuple(wait.index for wait in self.view.steps if wait.data.get("approves") == step.id)
            if self.approves
            else (),
        )

    def _next(self, step: Step) -> int:
        if step.type == "condition":
            return END
        following = self.view.target(step, "next_step")
        if following is None:
            following = len(self.view.top) if step.data.get("is_terminal", False) else step.position + 1
        return self._index(following, END)

    def _edges(self, step: Step) -> tuple[Edge, ...]:
        if not isinstance(self.flow, DagFlow):
            return ()
        edges = self.flow.edges[step.position]
        return tuple(Edge(self.view.top[target].index, edges[target]) for target in sorted(edges))

    def _compensation(self, step: Step) -> Compensation | None:
        compensate = step.data.get("compensate")
        if compensate is None:
            return None
        return Compensation(compensate["tool"], self._template(step, COMPENSATE) or constant({}))

    def _action(self, step: Step) -> Action:
        action = getattr(self, f"_{step.type}")
        built: Callable[[Step], Action] = action
        return built(step)

    def _tool(self, step: Step) -> Action:
        args = self._template(step, "args") or constant({})
        return ToolAction(step.data["tool"], args, self._template(step, "idempotency_key"))

    def _llm(self, step: Step) -> Action:
        return ModelAction(**self._asking(step))

    def _asking(self, step: Step) -> dict[str, Any]:
        """What an llm step and an agent have in common: what is asked, and the gates of the answer."""
        data = step.data
        tokens = data.get("params", {}).get("max_tokens", 0)
        return {
            "prompt": self._template(step, "prompt"),
            "system": self._template(step, "system"),
            "model": self._template(step, "model"),
            "params": self._template(step, "params"),
            "tokens_max": tokens if isinstance(tokens, int) else 0,
            "allowed_outputs": tuple(data.get("allowed_outputs", ())),
            "normalize": data.get("normalize"),
            "output_schema": data.get("output_schema"),
        }

    def _agent(self, step: Step) -> Action:
        return AgentAction(
            **self._asking(step),
            tools=tuple(step.data["tools"]),
            offered=tuple(offered_name(tool) for tool in step.data["tools"]),
            lanes=tuple(range(self._first_action[step.index], self._first_action[step.index + 1])),
            turns_max=int(step.data.get("max_turns", AGENT_TURNS_DEFAULT)),
        )

    def _actions(self, steps: list[CompiledStep]) -> list[CompiledStep]:
        """The steps that are the actions of agents."""
        return [
            CompiledStep(
                index=lane,
                id=f"{step.id}.{tool}",
                kind=Kind.TOOL,
                action=ToolAction(tool, constant({})),
                rank=step.rank,
                parent=step.index,
                timeout_ms=step.timeout_ms,
                adds=step.adds & PRIVATE,
            )
            for step in steps
            if type(step.action) is AgentAction
            for lane, tool in zip(step.action.lanes, step.action.tools, strict=True)
        ]

    def _condition(self, step: Step) -> Action:
        test = self._test(step, "condition")
        assert test is not None
        then, otherwise = self.view.target(step, "then"), self.view.target(step, "otherwise")
        return ConditionAction(
            test,
            self._index(then, NO_TARGET),
            self._index(otherwise, NO_TARGET),
            self._pins(step, True),
            self._pins(step, False),
        )

    def _pins(self, step: Step, verdict: bool) -> Refs:
        found = pinned(self.resolved.expressions[step.index, "condition"], verdict)
        return tuple(sorted(self._address(Ref(name, path)) for name, path in found))

    def _parallel(self, step: Step) -> Action:
        lanes = tuple(lane.index for lane in step.lanes)
        return ParallelAction(lanes, int(step.data.get("max_concurrency", len(lanes))))

    def _wait(self, step: Step) -> Action:
        data = step.data
        return WaitAction(
            event=data.get("event"),
            delay=self._template(step, "seconds"),
            until=self._template(step, "until"),
            accept=self._test(step, "accept"),
            approvers=tuple(data.get("approvers", ())),
            approves=self.view.by_id[data["approves"]].index if "approves" in data else NO_TARGET,
        )

    def _map(self, step: Step) -> Action:
        over = self._template(step, "over")
        assert over is not None
        return MapAction(
            over=over,
            lane=step.lanes[0].index,
            items_max=int(step.data.get("max_items", _MAP_ITEMS_MAX)),
            concurrency_max=int(step.data.get("max_concurrency", _MAP_CONCURRENCY_MAX)),
        )

    def _call(self, step: Step) -> Action:
        return CallAction(step.data["program"], self._template(step, "inputs") or constant({}))


# What an answer takes over of what it answers to: a model's text is untrusted of itself, an event has a label of its
# own.
_KEEPS = {"llm": SEALED, "agent": SEALED, "wait": 0}


def _is_private(step: Step) -> bool:
    """Whether the author says so: what a lane yields is part of what its group yields."""
    return step.data.get("private") is True or (
        step.parent is not None and step.parent.data.get("private") is True
    )


def _adds(step: Step) -> int:
    label = PRIVATE if _is_private(step) else 0
    if step.type in ("llm", "agent") and not (
        step.data.get("allowed_outputs") or is_closed(step.data.get("output_schema", True))
    ):
        label |= UNTRUSTED
    elif step.type == "wait" and "seconds" not in step.data and "until" not in step.data:
        label |= DECLARED[step.data.get("label", "untrusted")]
    return label


def _fallback(step: Step) -> Any:
    if step.data.get("on_timeout") != "fallback":
        return None
    if "fallback" in step.data:
        return step.data["fallback"]
    allowed = step.data.get("allowed_outputs")
    return allowed[0] if allowed else ""


def _retry(data: dict[str, Any]) -> Retry:
    rules = data.get("retry", {})
    default = Retry()
    return Retry(
        attempts_max=int(data.get("max_retries", default.attempts_max)),
        initial_ms=_ms(rules["initial"]) if "initial" in rules else default.initial_ms,
        factor=float(rules.get("factor", default.factor)),
        cap_ms=_ms(rules["cap"]) if "cap" in rules else default.cap_ms,
        jitter=rules.get("jitter", default.jitter),
    )


def _budgets(data: dict[str, Any]) -> Budgets:
    return Budgets(
        steps_max=int(data.get("max_steps", PROGRAM_FIELDS["max_steps"].default)),
        tokens_max=int(data.get("max_tokens", 0)),
        stalled_steps_max=int(data.get("max_stalled_steps", 0)),
        cost_nanousd_max=_scaled(data["max_cost_usd"], 1_000_000_000) if "max_cost_usd" in data else 0,
        duration_ms_max=_ms(data["max_duration_seconds"]) if "max_duration_seconds" in data else 0,
    )


def _ms(seconds: int | float) -> int:
    return _scaled(seconds, 1_000)


def _scaled(value: int | float, factor: int) -> int:
    """Returns value x factor, exactly where the product is whole; at least 1, since 0 means "not
    declared"."""
    product = Decimal(str(value)) * factor
    return max(1, int(product.to_integral_value(rounding=ROUND_HALF_EVEN)))
