"""Real journals for tests: small compiled programs, and a driver that runs them through the kernel.

The programs are compiled by hand, so that these tests say something about the journal alone. The driver is a
runner reduced to its essence: it asks `decide`, answers with events, applies them and seals what was
applied. Time and salts come from counters and seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.expr.reference import UNSET as UNBOUND
from nano_vm.journal.entry import RIDER_TYPES, Chain, Entry
from nano_vm.journal.trace import Trace
from nano_vm.kernel import commands as cmd
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Rejection, RunStatus, State
from nano_vm.kernel.transition import apply, decide
from nano_vm.program.compiled import (
    END,
    FIRST_FREE_SLOT,
    NO_TARGET,
    Budgets,
    CallAction,
    Compensation,
    CompiledProgram,
    CompiledStep,
    ConditionAction,
    Kind,
    MapAction,
    ModelAction,
    Output,
    ParallelAction,
    Retry,
    Template,
    ToolAction,
    WaitAction,
)

RESERVED = ("item", "index", "event", "run", "principal", "args")
PENDING = object()
UNKNOWN = object()


class ToolBroke(Exception):
    """A known failure of a tool in these tests: (error type, message, retryable)."""

    def __init__(self, error: str, message: str = "", retryable: bool = True) -> None:
        super().__init__(error)
        self.error, self.message, self.retryable = error, message, retryable


# --- programs compiled by hand ------------------------------------------------------------------------------


class Build:
    """A little compiler: `"$name.output.field"` anywhere in arguments refers to a slot."""

    def __init__(self, name: str, inputs: tuple[str, ...] = (), **known: Any) -> None:
        self.name, self.inputs, self.known = name, inputs, known
        self.slots = [*RESERVED, *inputs]
        self.steps: list[dict[str, Any]] = []

    def step(self, id: str, kind: Kind, action: Callable[[Build], Any], **fields: Any) -> Build:
        entry = {"id": id, "kind": kind, "action": action, **fields}
        if kind is not Kind.CONDITION:
            entry["output_slot"] = len(self.slots)
            self.slots.append(f"{id}.output")
        if fields.pop("error", False):
            del entry["error"]
            entry["error_slot"] = len(self.slots)
            self.slots.append(f"{id}.error")
        self.steps.append(entry)
        return self

    def tool(self, id: str, tool: str, args: dict[str, Any] | None = None, **fields: Any) -> Build:
        return self.step(id, Kind.TOOL, lambda b: ToolAction(tool, b.template(args or {})), **fields)

    def llm(self, id: str, prompt: str, allowed: tuple[str, ...] = (), **fields: Any) -> Build:
        return self.step(
            id, Kind.LLM, lambda b: ModelAction(b.template(prompt), allowed_outputs=allowed), **fields
        )

    def when(
        self, id: str, ref: str, test: Callable[[Any], bool], then: Any, otherwise: Any, **fields: Any
    ) -> Build:
        def action(b: Build) -> ConditionAction:
            render = b.template(ref).render
            return ConditionAction(
                lambda slots: test(render(slots)), then=b.index(then), otherwise=b.index(otherwise)
            )

        return self.step(id, Kind.CONDITION, action, **fields)

    def template(self, value: Any) -> Template:
        return Template(self._render(value), constant=False)

    def _render(self, value: Any) -> Callable[[list[Any]], Any]:
        if type(value) is dict:
            parts = {key: self._render(item) for key, item in value.items()}
            return lambda slots: {key: render(slots) for key, render in parts.items()}
        if type(value) is list:
            items = [self._render(item) for item in value]
            return lambda slots: [render(slots) for render in items]
        if type(value) is str and value.startswith("$"):
            parts_of = value[1:].split(".")
            size = 2 if len(parts_of) > 1 and parts_of[1] in ("output", "error") else 1
            slot, path = self.slots.index(".".join(parts_of[:size])), parts_of[size:]

            def resolve(slots: list[Any]) -> Any:
                found = slots[slot]
                if found is UNBOUND:
                    raise NanoVMError("UNASSIGNED_REFERENCE", "not assigned")
                for part in path:
                    if type(found) is not dict or part not in found:
                        raise NanoVMError("UNRESOLVED_REFERENCE", "no such part")
                    found = found[part]
                return found

            return resolve
        return lambda slots: value

    def index(self, target: Any) -> int:
        if target is None:
            return NO_TARGET
        if target == "end":
            return END
        return next(i for i, step in enumerate(self.steps) if step["id"] == target)

    def done(self) -> CompiledProgram:
        steps = []
        for index, fields in enumerate(self.steps):
            known = dict(fields)
            known["action"] = known["action"](self)
            known["parent"] = self.index(known.get("parent"))
            known["on_failure"] = self.index(known.get("on_failure"))
            follows = next(
                (i for i in range(index + 1, len(self.steps)) if "parent" not in self.steps[i]),
                END,
            )
            if known.get("is_terminal"):
                follows = END
            known["next"] = self.index(known["next"]) if "next" in known else follows
            if "compensate" in known:
                tool, args = known.pop("compensate")
                known["compensation"] = Compensation(tool, self.template(args))
            steps.append(CompiledStep(index=index, rank=index, **known))
        outputs = self.known.pop("outputs", {})
        return CompiledProgram(
            hash=canonical.digest_value({"name": self.name, "steps": [step["id"] for step in self.steps]}),
            name=self.name,
            version="1.0",
            steps=tuple(steps),
            slots=tuple(self.slots),
            input_slots={name: FIRST_FREE_SLOT + i for i, name in enumerate(self.inputs)},
            optional_inputs=self.known.pop("optional", {}),
            inputs_schema=None,
            outputs=tuple(Output(name, self.template(ref)) for name, ref in outputs.items()),
            budgets=self.known.pop("budgets", Budgets()),
            is_dag=False,
            entry=0,
            roots=(),
            step_index={step["id"]: i for i, step in enumerate(self.steps)},
            events=frozenset(self.known.pop("events", ())),
            calls=tuple(self.known.pop("calls", ())),
        )


def refund() -> CompiledProgram:
    """look up, let a model classify, branch, pay or refuse."""
    return (
        Build(
            "refund", ("order", "amount"), outputs={"paid": "$pay.output.paid", "class": "$classify.output"}
        )
        .tool("lookup", "orders.get", {"id": "$order"})
        .llm("classify", "$lookup.output.text", ("yes", "no"), on_error="retry", retry=Retry(jitter=True))
        .when("decide", "$classify.output", lambda value: value == "yes", "pay", "refuse")
        .tool("pay", "payments.refund", {"amount": "$amount"}, is_terminal=True, outcome="refunded")
        .tool("refuse", "mail.send", {"text": "no"}, is_terminal=True, outcome="refused")
        .done()
    )


def wide() -> CompiledProgram:
    """A loop, a map, a parallel, a wait and an approval."""
    return (
        Build("wide", ("items",), events=("paid",))
        .tool("tick", "count", {})
        .when("again", "$tick.output", lambda value: value < 3, "tick", "each")
        .step(
            "each", Kind.MAP, lambda b: MapAction(b.template("$items"), b.index("one"), 100, 2), next="both"
        )
        .tool("one", "double", {"value": "$item"}, parent="each")
        .step(
            "both",
            Kind.PARALLEL,
            lambda b: ParallelAction((b.index("left"), b.index("right")), 2),
            next="paid",
        )
        .tool("left", "double", {"value": 1}, parent="both", on_error="skip")
        .tool("right", "double", {"value": 2}, parent="both", on_error="retry", retry=Retry(jitter=False))
        .step("paid", Kind.WAIT, lambda b: WaitAction(event="paid"))
        .step("nap", Kind.WAIT, lambda b: WaitAction(delay=b.template(2.5)))
        .step("ask", Kind.WAIT, lambda b: WaitAction(approvers=("boss",)))
        .done()
    )


def saga() -> CompiledProgram:
    """Two steps that can be undone, a call, and one that fails for good."""
    return (
        Build("saga", calls=("child",))
        .tool("book", "book", {"what": "room"}, compensate=("unbook", {"id": "$book.output.id"}))
        .tool("hold", "hold", {}, compensate=("unhold", {"id": "$hold.output.id"}))
        .step("sub", Kind.CALL, lambda b: CallAction("child", b.template({"x": "$hold.output.id"})))
        .tool("charge", "charge", {}, error=True, on_failure="note")
        .tool("note", "note", {"why": "$charge.error.type"}, is_terminal=True, final_status="FAILED")
        .done()
    )


def loop(times: int, inputs: tuple[str, ...] = ()) -> CompiledProgram:
    """`tick` and a condition, `times` times over: two settled steps per round."""
    return (
        Build("loop", inputs, budgets=Budgets(steps_max=10_000_000))
        .tool("tick", "count", {"a": 1, "b": "text"})
        .when("again", "$tick.output", lambda value: value < times, "tick", "end")
        .done()
    )


def chain(length: int) -> CompiledProgram:
    """`length` tools in a row."""
    build = Build("chain", budgets=Budgets(steps_max=10_000_000))
    for number in range(length):
        build.tool(f"s{number}", "count", {"n": number})
    return build.done()


# --- the driver ---------------------------------------------------------------------------------------------


class Driver:
    """Drives one run and seals its journal.

    Args:
        tools: name -> function of the rendered arguments; `ToolBroke`, PENDING and UNKNOWN are honoured.
        model: function of the messages; the answer, or (answer, tokens in, tokens out, nano-dollars).
        seed: of the salts and of the back-off's draws.
        pure: names of tools without effects, which have no intent.
        riders: intents and the end of the run ride with the event before them, and say no request.
    """

    def __init__(
        self,
        program: CompiledProgram,
        run_id: str = "run-1",
        tools: dict[str, Callable[[Any], Any]] | None = None,
        model: Callable[[list[dict[str, str]]], Any] = lambda messages: "yes",
        seed: int = 1,
        pure: frozenset[str] = frozenset(),
        riders: bool = False,
        step_ms: int = 7,
    ) -> None:
        self.program, self.tools, self.model, self.pure = program, tools or {}, model, pure
        self.state = State(run=run_id)
        self.riders = riders
        self._chain = Chain(run_id)
        self._entries: list[Entry] = []
        self._open: tuple[Any, bytes | None] | None = None  # an event, not sealed yet, and its payload
        self._then: list[Any] = []  # what rides with it
        self.now_ms = 1_700_000_000_000
        self.step_ms = step_ms
        self._salts = random.Random(seed)
        self._draws = random.Random(42)

    def start(self, inputs: dict[str, Any] | None = None, **facts: Any) -> Driver:
        self.send(ev.RunStarted(at_ms=self.now_ms, program=self.program.hash, payload=inputs or {}, **facts))
        return self

    @property
    def entries(self) -> list[Entry]:
        self._seal()
        return self._entries

    @property
    def chain(self) -> Chain:
        self._seal()
        return self._chain

    def _seal(self) -> None:
        if self._open is not None:
            event, payload = self._open
            self._open = None
            then, self._then = self._then, []
            self._entries.append(self._chain.seal(event, self._salts.randbytes(16), payload, then))

    def send(self, event: Any) -> Rejection | None:
        """Apply one event and, if it is admissible, journal it."""
        rides = self.riders and self._open is not None and event.type in RIDER_TYPES
        if rides and hasattr(event, "payload"):
            event.payload = msgspec.UNSET
        if getattr(event, "payload", msgspec.UNSET) is not msgspec.UNSET:
            event.payload, payload = canonical.normalize(event.payload)
        else:
            payload = None
        after = apply(self.program, self.state, event)
        if type(after) is Rejection:
            return after
        if self.state.verdicts and hasattr(event, "verdicts"):
            event.verdicts = self.state.verdicts
        if rides:
            self._then.append(event)
        else:
            self._seal()
            self._open = event, payload
        return None

    def go(self, steps_max: int = 1_000_000) -> Driver:
        """On until the run has ended or only an event from outside can help."""
        for _ in range(steps_max):
            if self.state.status.is_terminal:
                return self
            moved = False
            for command in decide(self.program, self.state):
                self.now_ms += self.step_ms
                moved = self._act(command)
                if moved:
                    break
            if not moved:
                return self
        return self

    def event(self, event_id: str, payload: Any = None, **facts: Any) -> Rejection | None:
        self.now_ms += self.step_ms
        return self.send(ev.EventReceived(at_ms=self.now_ms, event_id=event_id, payload=payload, **facts))

    def _where(self, command: Any) -> dict[str, Any]:
        where = {
            "at_ms": self.now_ms,
            "step": command.step_id,
            "occurrence": command.occurrence,
            "attempt": command.attempt,
        }
        if command.item >= 0:
            where["item"] = command.item
        return where

    def _act(self, command: cmd.Command) -> bool:
        where = self._where(command)
        match command:
            case cmd.CallTool():
                self._call(command, where)
            case cmd.CallModel():
                self._complete(command, where)
            case cmd.StartTimer():
                self.now_ms = max(self.now_ms, command.due_ms)
                return self.send(ev.TimerFired(**{**where, "at_ms": self.now_ms})) is None
            case cmd.StartChild():
                self._sent(ev.ChildStarted(child=command.child, program=command.program, **where))
                self._sent(
                    ev.ChildFinished(
                        head="sha256:" + "1" * 64,
                        status="SUCCESS",
                        steps=1,
                        tokens=5,
                        cost_nanousd=7,
                        payload={"output": command.inputs, "compensations": []},
                        **where,
                    )
                )
            case cmd.Compensate():
                self._sent(ev.CompensationStarted(payload=command.args, **where))
                self._undo(command, where)
            case cmd.Finish():
                incomplete = list(command.incomplete) or msgspec.UNSET
                outcome = command.outcome or msgspec.UNSET
                self._sent(
                    ev.RunFinished(
                        at_ms=self.now_ms, status=command.status, outcome=outcome, incomplete=incomplete
                    )
                )
            case _:
                return False
        return True

    def _sent(self, event: Any) -> None:
        rejection = self.send(event)
        assert rejection is None, rejection

    def _call(self, command: cmd.CallTool, where: dict[str, Any]) -> None:
        pure: dict[str, Any] = {"pure": True} if command.tool in self.pure else {}
        if not pure:
            self._sent(ev.StepStarted(payload=command.args, effect="irreversible", **where))
        self.now_ms += self.step_ms
        where["at_ms"] = self.now_ms
        try:
            value = self.tools[command.tool](command.args)
        except ToolBroke as broke:
            self._sent(
                ev.StepFailed(
                    draw=self._draws.randrange(1_000_000),
                    error=broke.error,
                    retryable=broke.retryable,
                    payload={"message": broke.message},
                    **pure,
                    **where,
                )
            )
            return
        if value is PENDING:
            self._sent(ev.StepPending(**pure, **where))
        elif value is UNKNOWN:
            self._sent(ev.OutcomeUnknown(effect="irreversible", reason="CRASH", **where))
        else:
            self._sent(ev.StepSucceeded(payload=value, **pure, **where))

    def _complete(self, command: cmd.CallModel, where: dict[str, Any]) -> None:
        self._sent(ev.StepStarted(payload=command.request, reserved_tokens=50, **where))
        self.now_ms += self.step_ms
        where["at_ms"] = self.now_ms
        answer = self.model(command.request["messages"])
        text, tokens_in, tokens_out, cost = answer if type(answer) is tuple else (answer, 3, 2, 11)
        spent = {"tokens_in": tokens_in, "tokens_out": tokens_out, "cost_nanousd": cost, "model": "m-1"}
        event = ev.StepSucceeded(payload=text, **spent, **where)
        if self.send(event) is not None:
            self._sent(
                ev.StepFailed(
                    draw=self._draws.randrange(1_000_000),
                    error="GATE",
                    retryable=True,
                    payload={"message": "not allowed", "feedback": [{"role": "user", "content": "again"}]},
                    **spent,
                    **where,
                )
            )

    def _undo(self, command: cmd.Compensate, where: dict[str, Any]) -> None:
        self.now_ms += self.step_ms
        where["at_ms"] = self.now_ms
        try:
            value = self.tools[command.tool](command.args)
        except ToolBroke as broke:
            self._sent(
                ev.CompensationFailed(
                    draw=0, error=broke.error, retryable=False, payload={"message": broke.message}, **where
                )
            )
        else:
            self._sent(ev.CompensationSucceeded(payload=value, **where))


# --- journals that many tests use ---------------------------------------------------------------------------


def trace_of(run: Driver, with_state: bool = False) -> Trace:
    return Trace(run.program, run.state.run, lambda: run.entries, run.state if with_state else None)


def counter() -> Callable[[Any], int]:
    count = 0

    def tick(_args: Any) -> int:
        nonlocal count
        count += 1
        return count

    return tick


def refund_run(
    seed: int = 1,
    run_id: str = "run-1",
    answers: tuple[Any, ...] = ("maybe", "yes"),
    riders: bool = False,
) -> Driver:
    """A finished refund: the model needs a second attempt, then the money is paid."""
    given = iter(answers)
    return (
        Driver(
            refund(),
            run_id,
            {
                "orders.get": lambda args: {"text": f"order {args['id']}", "ä": [1, 2.5, None, True]},
                "payments.refund": lambda args: {"paid": args["amount"]},
                "mail.send": lambda args: None,
            },
            lambda messages: next(given),
            seed,
            riders=riders,
        )
        .start({"order": "o-1", "amount": 99.5}, principal={"tenant": "t", "roles": ["ops"], "id": "ann"})
        .go()
    )


def wide_run(seed: int = 1, run_id: str = "run-2", items: tuple[int, ...] = (1, 2, 3)) -> Driver:
    """A finished run of `wide`, with failures, waits and an approval on the way."""
    fails = iter([True, False, False])

    def double(args: Any) -> int:
        if args["value"] == 2 and next(fails, False):
            raise ToolBroke("Flaky", "try again")
        return int(args["value"]) * 2

    run = Driver(wide(), run_id, {"count": counter(), "double": double}, seed=seed, pure=frozenset({"count"}))
    run.start({"items": [v * 10 for v in items]})
    run.go()
    assert run.state.status is RunStatus.SUSPENDED
    assert run.event("e-1", {"amount": 5}, name="paid") is None
    run.go()
    boss = {"id": "bob", "roles": ["boss"]}
    assert run.event("e-2", {"approved": True}, step="ask", principal=boss) is None
    return run.go()


def saga_run(seed: int = 1, run_id: str = "run-3", undo_fails: bool = False, riders: bool = False) -> Driver:
    """A run that fails and undoes what it did."""

    def charge(_args: Any) -> Any:
        raise ToolBroke("CardDeclined", "insufficient funds", retryable=False)

    def unhold(_args: Any) -> Any:
        if undo_fails:
            raise ToolBroke("Gone", "no such hold")
        return None

    tools: dict[str, Callable[[Any], Any]] = {
        "book": lambda args: {"id": 1},
        "hold": lambda args: {"id": 2},
        "charge": charge,
        "note": lambda args: args["why"],
        "unbook": lambda args: "unbooked",
        "unhold": unhold,
    }
    return Driver(saga(), run_id, tools, seed=seed, riders=riders).start({}).go()


def ridden_refund(**fields: Any) -> Driver:
    """`refund_run` as the runtime writes it."""
    return refund_run(riders=True, **{"run_id": "run-4", **fields})


def ridden_saga(**fields: Any) -> Driver:
    """`saga_run` as the runtime writes it."""
    return saga_run(riders=True, **{"run_id": "run-5", **fields})


def loop_run(times: int, seed: int = 1, pure: bool = False) -> Driver:
    """A finished loop of `times` rounds."""
    names = frozenset({"count"}) if pure else frozenset()
    return Driver(loop(times), "run-loop", {"count": counter()}, seed=seed, pure=names).start({}).go()
