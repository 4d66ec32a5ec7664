"""Random programs, random events, a crash at any moment (P1, P4, P5, P10).

Two runs of one program are fed alike: one lives on, the other is thrown away and made again from a snapshot,
or by folding the journal, whenever the machine feels like it. Their snapshots stay byte-identical, and every
state keeps the invariants.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import UNSET, structs

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import (
    AwaitEvent,
    CallModel,
    CallTool,
    Command,
    Compensate,
    Finish,
    JudgeAction,
    Reconcile,
    StartChild,
    StartTimer,
    StopChild,
)
from nano_vm.kernel.normalize import normalize_event
from nano_vm.kernel.state import COMPENSATION_KEY, Phase, Rejection, Stage, State, restore, snapshot
from nano_vm.kernel.transition import apply, decide
from nano_vm.program.compiled import CompiledProgram, Kind
from unit.kernel.kernel_driving import compiled, started
from unit.kernel.kernel_invariants import check_invariants, check_taken

OUTPUTS = st.sampled_from([0, 1, 2, "x", None, [1, 2], {"v": 1}])
ERRORS = st.sampled_from(["fail", "skip", "retry"])


@st.composite
def programs(draw: st.DrawFn) -> dict[str, Any]:
    """A small program of any kind of step, in list order; every one compiles."""
    count = draw(st.integers(2, 5))
    steps: list[dict[str, Any]] = []
    for number in range(count):
        last = number == count - 1
        kinds = ["tool", "tool", "llm", "wait", "timer", "parallel", "map", "call", "agent", "condition"]
        kind = draw(st.sampled_from(kinds[:-1] if last else kinds))
        steps.append(draw(a_step(f"s{number}", kind, number, count)))
    return {
        "max_steps": draw(st.integers(3, 25)),
        "max_duration_seconds": 1_000,
        "steps": steps,
        "inputs": {"type": "object", "properties": {"n": {}, "items": {}}, "required": ["n", "items"]},
    }


@st.composite
def a_step(draw: st.DrawFn, name: str, kind: str, number: int, count: int) -> dict[str, Any]:
    if kind == "condition":
        # Straight on, or round and round until a budget ends it.
        then = f"s{draw(st.sampled_from([max(number - 1, 0), number + 1]))}"
        otherwise = f"s{number + 1}"
        return {"id": name, "type": "condition", "condition": "$n == 2", "then": then, "otherwise": otherwise}
    step: dict[str, Any] = {"id": name, "on_error": draw(ERRORS)}
    if step["on_error"] == "retry":
        step["max_retries"] = draw(st.integers(1, 3))
    if kind == "timer":
        return {"id": name, "type": "wait", "seconds": 5}
    if kind == "wait":
        del step["on_error"]
        step.pop("max_retries", None)
        return {**step, "type": "wait", "event": "go", "timeout_seconds": 9}
    if kind == "tool":
        if draw(st.booleans()):
            step["compensate"] = {"tool": "undo", "args": {"v": f"${name}.output"}}
        return {**step, "type": "tool", "tool": name, "args": {"n": "$n"}}
    if kind == "llm":
        return {**step, "type": "llm", "prompt": "?"}
    if kind == "agent":
        return {**step, **an_agent(name), "max_turns": draw(st.integers(1, 3))}
    if kind == "call":
        return {**step, "type": "call", "program": "child", "inputs": {"n": "$n"}}
    lane = {"id": f"{name}x", "type": "tool", "tool": "x", "args": {}, "on_error": draw(ERRORS)}
    if kind == "map":
        lane["args"] = {"v": "$item.v"}
        return {
            **step,
            "type": "map",
            "over": "$items",
            "step": lane,
            "max_concurrency": 2,
            "timeout_seconds": 50,
        }
    other = {"id": f"{name}y", "type": "wait", "event": "go"}
    if draw(st.booleans()):
        other = an_agent(f"{name}y")
    return {**step, "type": "parallel", "parallel_steps": [lane, other], "timeout_seconds": 50}


def an_agent(name: str) -> dict[str, Any]:
    return {"id": name, "type": "agent", "prompt": "?", "tools": ["find", "pay"], "max_turns": 2}


CALLS = [
    {"id": "c0", "name": "find", "arguments": {"q": "$n"}},
    {"id": "c1", "name": "drop", "arguments": {}},
    {"id": "c2", "name": "pay", "arguments": "nonsense"},
    {"id": "c3", "name": "pay", "arguments": {"amount": 1}},
]


class KernelMachine(RuleBasedStateMachine):
    """Drives one run by its own commands, and disturbs it."""

    @initialize(
        program=programs(),
        items=st.sampled_from([[], [{"v": 1}], [{"v": 1}, {}, {"v": 3}]]),
        n=st.sampled_from([1, 1, 2]),
    )
    def begin(self, program: dict[str, Any], items: list[Any], n: int) -> None:
        note(program)
        self.program: CompiledProgram = compiled(program)
        self.state = State(run="r")
        self.twin = State(run="r")
        self.journal: list[ev.Event] = []
        self.begun: set[str] = set()
        self.now = 1_000
        self.feed(started(self.program, {"n": n, "items": items}))

    def feed(self, event: ev.Event) -> str | None:
        """Give one event to both runs; what is accepted goes into the journal."""
        before = snapshot(self.state)
        copies = [structs.replace(event), structs.replace(event)]
        result = apply(self.program, self.state, copies[0])
        other = apply(self.program, self.twin, copies[1])
        assert type(result) is type(other)
        if type(result) is Rejection:
            assert snapshot(self.state) == before
            assert result == other
            return result.code
        self.journal.append(event)
        assert self.state.settled == self.twin.settled
        assert self.state.verdicts == self.twin.verdicts
        check_taken(event, self.state)
        check_invariants(self.program, self.state)
        return None

    # --- what a driver does -------------------------------------------------------------------------------

    def place(self, command: Command) -> dict[str, Any]:
        return {
            "at_ms": self.now,
            "step": command.step_id,
            "occurrence": command.occurrence,
            "item": UNSET if command.item < 0 else command.item,
            "attempt": command.attempt,
        }

    @rule(pick=st.integers(0, 9), resolution=st.sampled_from(["succeeded", "failed", "repeat"]))
    def obey(self, pick: int, resolution: str) -> None:
        """Do one of the things that the kernel asks for; it must be admissible."""
        commands = decide(self.program, self.state)
        if not commands:
            return
        command = commands[pick % len(commands)]
        place = self.place(command)
        if type(command) is CallTool or type(command) is CallModel:
            self.begin_once(command)
            assert self.feed(ev.StepStarted(**place)) is None
        elif type(command) is JudgeAction:
            self.begin_once(command)
            refused = command.fault or ("POLICY" if resolution == "failed" else "")
            proposed = ev.ActionProposed(
                **place,
                action=command.action,
                reason=refused or UNSET,
                tool=UNSET if command.tool is None else command.tool,
                verdict="rejected" if refused else "accepted",
            )
            assert self.feed(proposed) is None
        elif type(command) is StartChild:
            self.begin_once(command)
            event = ev.ChildStarted(**place, child=command.child, program=command.program)
            assert self.feed(event) is None
        elif type(command) is StartTimer:
            self.now = max(self.now, command.due_ms)
            place["at_ms"] = self.now
            assert self.feed(ev.TimerFired(**place)) is None
        elif type(command) is Compensate:
            self.begin_once(command)
            assert self.feed(ev.CompensationStarted(**place)) is None
        elif type(command) is Reconcile:
            facts = {**place, "by": "contract", "resolution": resolution, "payload": {"message": "m"}}
            if command.compensation:
                facts["compensation"] = True
            assert self.feed(ev.OutcomeResolved(**facts)) is None
        elif type(command) is StopChild:
            event = ev.ChildFinished(**place, head="h", status="CANCELLED", steps=0)
            assert self.feed(event) is None
        elif type(command) is Finish:
            outcome = UNSET if command.outcome is None else command.outcome
            incomplete = list(command.incomplete) or UNSET
            assert (
                self.feed(
                    ev.RunFinished(
                        at_ms=self.now, status=command.status, outcome=outcome, incomplete=incomplete
                    )
                )
                is None
            )
        else:
            assert type(command) is AwaitEvent

    def begin_once(self, command: Command) -> None:
        """P4: no command is ever given for an attempt that was begun before."""
        assert command.id not in self.begun
        self.begun.add(command.id)

    @precondition(lambda self: any(a.phase is Phase.STARTED for a in self.state.active.values()))
    @rule(pick=st.integers(0, 9), output=OUTPUTS, how=st.integers(0, 5))
    def settle(self, pick: int, output: Any, how: int) -> None:
        """Something that is under way comes to an end, or is lost."""
        under_way = [a for a in self.state.active.values() if a.phase is Phase.STARTED]
        activity = under_way[pick % len(under_way)]
        self.now += 1
        undo = activity.step < 0
        name = self.state.undo[-1].step if undo else self.program.steps[activity.step].id
        place: dict[str, Any] = {
            "at_ms": self.now,
            "step": name,
            "occurrence": activity.occurrence,
            "item": UNSET if activity.item < 0 else activity.item,
            "attempt": activity.attempt,
        }
        kind = None if undo else self.program.steps[activity.step].kind
        event: ev.Event
        if kind is Kind.CALL:
            undos = [{"step": "u", "occurrence": 1, "item": -1, "tool": "t", "args": {}}]
            if how == 0:
                event = ev.ChildSuspended(**place, waits=[{"kind": "event"}])
            else:
                status = "SUCCESS" if how < 4 else "FAILED"
                payload = {"output": output, "compensations": undos}
                event = ev.ChildFinished(**place, head="h", status=status, steps=1, payload=payload)
        elif how == 0:
            facts = {**place, "compensation": True} if undo else place
            event = ev.OutcomeUnknown(**facts, effect="keyed", reason=["CRASH", "TIMEOUT"][pick % 2])
        elif how == 1:
            failed = ev.CompensationFailed if undo else ev.StepFailed
            event = failed(**place, draw=pick * 100_000, error="E", retryable=True)
        elif kind is Kind.AGENT and how in (2, 3):
            calls = CALLS[pick % 4 :]
            event = ev.ModelTurned(
                **place, payload={"text": str(output), "calls": calls}, proposals=len(calls), tokens_out=how
            )
        elif how == 2 and kind is Kind.TOOL:
            event = ev.StepPending(**place)
        else:
            event = (ev.CompensationSucceeded if undo else ev.StepSucceeded)(**place, payload=output)
        assert self.feed(event) is None

    @rule(output=OUTPUTS, number=st.integers(0, 6), name=st.sampled_from(["go", None, "nope"]))
    def tell(self, output: Any, number: int, name: str | None) -> None:
        """Something arrives from outside, wanted or not."""
        self.now += 1
        named = UNSET if name is None else name
        self.feed(ev.EventReceived(at_ms=self.now, event_id=f"e{number}", name=named, payload=output))

    @precondition(lambda self: any(a.phase is Phase.CHILD_WAITING for a in self.state.active.values()))
    @rule()
    def child_goes_on(self) -> None:
        activity = next(a for a in self.state.active.values() if a.phase is Phase.CHILD_WAITING)
        step = self.program.steps[activity.step].id
        place: dict[str, Any] = {
            "at_ms": self.now,
            "step": step,
            "occurrence": activity.occurrence,
            "attempt": activity.attempt,
        }
        assert self.feed(ev.ChildResumed(**place)) is None

    # --- what the world does ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.journal) > 6)
    @rule()
    def cancel(self) -> None:
        code = self.feed(ev.RunCancelled(at_ms=self.now))
        assert code in (None, "OUT_OF_ORDER", "TERMINAL")

    @rule(pick=st.integers(0, 99), later=st.integers(0, 20_000))
    def repeat(self, pick: int, later: int) -> None:
        """Something that was accepted comes a second time: it is refused, unless it says nothing."""
        event = structs.replace(self.journal[pick % len(self.journal)])
        event.at_ms += later
        # A child may come to wait for the same thing again, and go on again: those name a state, not an
        # occasion.
        if event.type not in ("EventRefused", "ChildSuspended", "ChildResumed"):
            assert self.feed(event) is not None

    @rule(folded=st.booleans())
    def crash(self, folded: bool) -> None:
        """The twin dies. It comes back from a snapshot, or from its journal (P5)."""
        held = snapshot(self.twin)
        if folded:
            self.twin = State(run="r")
            for event in self.journal:
                assert apply(self.program, self.twin, structs.replace(event)) is self.twin
        else:
            self.twin = restore(held)
        assert snapshot(self.twin) == held

    @rule(pick=st.integers(0, 99))
    def read_back(self, pick: int) -> None:
        """What was accepted is well-formed: normalised, it is the same event."""
        event = self.journal[pick % len(self.journal)]
        raw = {name: value for name, value in structs.asdict(event).items() if value is not UNSET}
        assert normalize_event(event.type, raw) == event

    # --- always -------------------------------------------------------------------------------------------

    @invariant()
    def twins_agree(self) -> None:
        if hasattr(self, "state"):
            assert snapshot(self.state) == snapshot(self.twin)
            mine = [command.id for command in decide(self.program, self.state)]
            assert mine == [command.id for command in decide(self.program, self.twin)]
            assert len(set(mine)) == len(mine)

    @invariant()
    def steps_are_bounded(self) -> None:
        if hasattr(self, "state") and self.state.stage is not Stage.NEW:
            # P10: children may add what they were given on top, never more.
            children = sum(e.steps for e in self.journal if type(e) is ev.ChildFinished)
            assert self.state.steps <= self.state.steps_max + children
            compensating = self.state.active.get(COMPENSATION_KEY)
            assert compensating is None or compensating.failures < 3


TestKernel = KernelMachine.TestCase
TestKernel.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
