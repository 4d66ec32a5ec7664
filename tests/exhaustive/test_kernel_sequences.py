"""Every sequence of events over small programs, to a useful depth: promises P1, P4 and P10, and what a
refusal is.

States are explored breadth first and recognised by their snapshots, so that every sequence that leads to a
state is covered by one of them. In each state every event that the program's steps could give rise to is
offered, admissible or not: early, late, repeated, for other attempts, occurrences and items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import (
    CallModel,
    CallTool,
    Command,
    Compensate,
    Finish,
    JudgeAction,
    Reconcile,
    StartChild,
    StartTimer,
)
from nano_vm.kernel.state import COMPENSATION_KEY, Rejection, Stage, State, StepStatus, restore, snapshot
from nano_vm.kernel.transition import apply, decide
from nano_vm.program.compiled import CompiledProgram, Kind
from unit.kernel.kernel_driving import compiled, started, tool
from unit.kernel.kernel_invariants import check_invariants, check_taken

STATES_MAX = 1_000  # per program: what is beyond is left to the stateful property test


class Case(NamedTuple):
    program: dict[str, Any]
    inputs: dict[str, Any]
    outputs: tuple[Any, ...] = (1,)
    states_max: int = STATES_MAX


NO_JITTER = {"jitter": False}
MAP = {
    "id": "m",
    "type": "map",
    "over": "$items",
    "step": tool("one", args={"v": "$item.v"}),
    "max_concurrency": 2,
    "on_error": "retry",
    "max_retries": 2,
    "retry": NO_JITTER,
}
AGENT = {"id": "m", "type": "agent", "prompt": "?", "tools": ["find"], "max_turns": 2}
PROPOSED = [
    {"id": "c0", "name": "find", "arguments": {}},
    {"id": "c1", "name": "drop", "arguments": {}},
]
CASES = {
    "linear": Case({"steps": [tool("a"), tool("b", on_error="skip"), tool("c")]}, {}),
    "branch": Case(
        {
            "steps": [
                tool("a"),
                {
                    "id": "q",
                    "type": "condition",
                    "condition": "$a.output == 1",
                    "then": "x",
                    "otherwise": "y",
                },
                tool("x", is_terminal=True),
                tool("y", is_terminal=True, final_status="FAILED"),
            ]
        },
        {},
        (1, 2),
    ),
    "loop": Case(
        {
            "max_steps": 5,
            "steps": [
                tool("a"),
                {
                    "id": "q",
                    "type": "condition",
                    "condition": "$a.output == 1",
                    "then": "a",
                    "otherwise": "b",
                },
                tool("b"),
            ],
        },
        {},
        (1, 2),
    ),
    "parallel": Case(
        {
            "steps": [
                {
                    "id": "g",
                    "type": "parallel",
                    "parallel_steps": [tool("x"), tool("y", on_error="skip")],
                    "timeout_seconds": 9,
                },
                tool("b"),
            ]
        },
        {},
    ),
    "parallel_then_condition": Case(
        {
            "steps": [
                {
                    "id": "g",
                    "type": "parallel",
                    "parallel_steps": [tool("x"), tool("y")],
                    "timeout_seconds": 9,
                    "on_error": "skip",
                },
                {
                    "id": "c",
                    "type": "condition",
                    "condition": "$g.output != null",
                    "then": "b",
                    "otherwise": "b",
                },
                tool("b"),
            ]
        },
        {},
    ),
    "map": Case({"steps": [MAP]}, {"items": [{"v": 1}, {"v": 2}]}),
    "map_fails": Case({"steps": [MAP, tool("b")]}, {"items": [{"v": 1}, {}]}),
    "wait": Case(
        {
            "steps": [
                tool("a"),
                {"id": "w", "type": "wait", "event": "go", "accept": "$event == 1", "timeout_seconds": 9},
                {"id": "ok", "type": "wait", "approvers": ["boss"]},
                tool("b"),
            ]
        },
        {},
        (1, 2),
    ),
    "retry": Case(
        {
            "steps": [
                tool("a", on_error="retry", max_retries=2, on_failure="mend", retry=NO_JITTER),
                tool("b", is_terminal=True),
                tool("mend"),
            ]
        },
        {},
    ),
    "saga": Case(
        {
            "steps": [
                tool("a", compensate={"tool": "undo_a", "args": {}}),
                tool("b", compensate={"tool": "undo_b", "args": {"v": "$b.output"}}),
                tool("c"),
            ]
        },
        {},
    ),
    "call": Case(
        {
            "steps": [
                {
                    "id": "c",
                    "type": "call",
                    "program": "child",
                    "inputs": {},
                    "timeout_seconds": 9,
                    "on_failure": "b",
                },
                tool("a", is_terminal=True),
                tool("b"),
            ]
        },
        {},
    ),
    "agent": Case(
        {"steps": [{**AGENT, "on_failure": "b"}, tool("a", is_terminal=True), tool("b")]}, {}, (1,), 300
    ),
    "agent_in_parallel": Case(
        {
            "max_steps": 7,
            "steps": [
                {
                    "id": "g",
                    "type": "parallel",
                    "parallel_steps": [AGENT, tool("y", on_error="skip")],
                    "timeout_seconds": 9,
                    "on_error": "retry",
                    "max_retries": 2,
                    "retry": NO_JITTER,
                }
            ],
        },
        {},
        (1,),
        300,
    ),
    "dag": Case(
        {
            "steps": [
                tool("a"),
                {
                    "id": "q",
                    "type": "condition",
                    "condition": "$a.output == 1",
                    "then": "x",
                    "otherwise": "y",
                    "depends_on": ["a"],
                },
                tool("x", depends_on=["q"]),
                tool("y", depends_on=["q"]),
                tool("i"),
                tool("z", depends_on=["x", "y", "i"]),
            ]
        },
        {},
        (1, 2),
    ),
}


# --- every event there is -----------------------------------------------------------------------------------


def events(case: Case, program: CompiledProgram, state: State) -> Iterator[ev.Event]:
    """Everything that could be said in this state, sensible or not."""
    soon = state.now_ms + 1
    due = max((activity.due_ms for activity in state.active.values()), default=0)
    yield started(program, case.inputs)
    yield ev.RunCancelled(at_ms=soon)
    yield ev.EventRefused(at_ms=soon, code="TERMINAL", event_id="e")
    yield ev.ValuesChanged(at_ms=soon, names=[])
    for status in ("SUCCESS", "FAILED", "CANCELLED", "BUDGET_EXCEEDED"):
        yield ev.RunFinished(at_ms=soon, status=status, incomplete=list(state.incomplete) or UNSET)
    if program.events or any(step.kind is Kind.WAIT for step in program.steps):
        yield from _outside(case, program, soon)
    for step in program.steps:
        if step.kind is not Kind.CONDITION:
            for place in _places(program, state, step.index):
                yield from _about_step(case, program, step.kind, {**place, "at_ms": soon}, due)
    if state.undo:
        yield from _about_compensation(state, soon)


def _outside(case: Case, program: CompiledProgram, soon: int) -> Iterator[ev.Event]:
    boss = {"id": "ann", "roles": ["boss"], "tenant": "t"}
    for event_id in ("e1", "e2"):
        for payload in case.outputs:
            yield ev.EventReceived(at_ms=soon, event_id=event_id, name="go", payload=payload)
        yield ev.EventReceived(
            at_ms=soon, event_id=event_id, step="ok", payload={"approved": True}, principal=boss
        )
        yield ev.EventReceived(at_ms=soon, event_id=event_id, payload=1)


def _places(program: CompiledProgram, state: State, index: int) -> Iterator[dict[str, Any]]:
    step = program.steps[index]
    occurrence = state.occurrences[index] if state.occurrences else 0
    in_map = step.parent >= 0 and program.steps[step.parent].kind in (Kind.MAP, Kind.AGENT)
    for item in (0, 1, 2) if in_map else (UNSET,):
        key = index if item is UNSET else (item + 1) << 24 | index
        activity = state.active.get(key)
        attempt = activity.attempt if activity else 1
        for occurrence_told, attempt_told in {
            (max(occurrence, 1), attempt),
            (max(occurrence, 1), max(attempt - 1, 1)),
            (max(occurrence - 1, 1), 1),
            (occurrence + 1, 1),
        }:
            yield {"step": step.id, "item": item, "occurrence": occurrence_told, "attempt": attempt_told}


def _about_step(
    case: Case, program: CompiledProgram, kind: Kind, place: dict[str, Any], due: int
) -> Iterator[ev.Event]:
    yield ev.TimerFired(**place)
    yield ev.TimerFired(**{**place, "at_ms": max(due, place["at_ms"])})
    yield ev.StepStarted(**place)
    yield ev.StepFailed(**place, draw=0, error="E", retryable=True)
    yield ev.OutcomeUnknown(**place, effect="keyed", reason="CRASH")
    for output in case.outputs:
        yield ev.StepSucceeded(**place, payload=output)
    yield ev.StepSucceeded(**place, payload=case.outputs[0], pure=True)
    if kind is Kind.AGENT:
        yield from _about_agent(place)
    if kind is Kind.CALL:
        item = -1 if place["item"] is UNSET else place["item"]
        child = f"r/{place['step']}.{place['occurrence']}.{place['attempt']}"
        assert item == -1
        yield ev.ChildStarted(**place, child=child, program="child")
        yield ev.ChildSuspended(**place, waits=[{"kind": "event"}])
        yield ev.ChildResumed(**place)
        for status in ("SUCCESS", "CANCELLED"):
            yield ev.ChildFinished(**place, head="h", status=status, steps=1)
    else:
        yield ev.StepPending(**place)
        yield ev.OutcomeResolved(**place, by="contract", resolution="succeeded", payload=case.outputs[0])
        yield ev.OutcomeResolved(**place, by="contract", resolution="failed")
        yield ev.OutcomeResolved(**place, by="contract", resolution="repeat")


def _about_agent(place: dict[str, Any]) -> Iterator[ev.Event]:
    for calls in (PROPOSED, PROPOSED[:1]):
        payload = {"text": "", "calls": calls}
        yield ev.ModelTurned(**place, payload=payload, proposals=len(calls))
    told = [{"role": "user", "content": "no"}]
    yield ev.ModelTurned(**place, payload={"text": "", "calls": [], "feedback": told}, proposals=0)
    yield ev.StepFailed(**place, draw=0, error="GATE", retryable=True, payload={"feedback": told})
    for action in (0, 1, 2):
        for name in ("find", UNSET):
            facts = {**place, "action": action, "tool": name}
            yield ev.ActionProposed(**facts, verdict="accepted")
            yield ev.ActionProposed(**facts, verdict="rejected", reason="POLICY")
        yield ev.ActionProposed(**place, action=action, verdict="rejected", reason="UNLISTED_TOOL")
        yield ev.ActionProposed(**place, action=action, tool="find", verdict="rejected", reason="MAX_TURNS")


def _about_compensation(state: State, soon: int) -> Iterator[ev.Event]:
    activity = state.active.get(COMPENSATION_KEY)
    attempt = activity.attempt if activity else 1
    for step in {undo.step for undo in state.undo}:
        for attempt_told in {attempt, max(attempt - 1, 1)}:
            place = {"at_ms": soon, "step": step, "occurrence": 1, "attempt": attempt_told}
            yield ev.CompensationStarted(**place)
            yield ev.CompensationSucceeded(**place)
            yield ev.CompensationFailed(**place, draw=0, error="E", retryable=True)
            yield ev.OutcomeUnknown(**place, compensation=True, effect="keyed", reason="CRASH")
            yield ev.OutcomeResolved(**place, compensation=True, by="contract", resolution="succeeded")
            due = max(activity.due_ms if activity else 0, soon)
            yield ev.TimerFired(**{**place, "at_ms": due})


def obeyed(command: Command, now_ms: int) -> ev.Event | None:
    """The event by which a driver begins to do what it is told; None where there is nothing to begin."""
    place: dict[str, Any] = {
        "at_ms": now_ms,
        "step": command.step_id,
        "occurrence": command.occurrence,
        "item": UNSET if command.item < 0 else command.item,
        "attempt": command.attempt,
    }
    if type(command) is CallTool:
        return ev.StepStarted(**place, payload=command.args)
    if type(command) is CallModel:
        return ev.StepStarted(**place, payload=command.request)
    if type(command) is JudgeAction:
        name = UNSET if command.tool is None else command.tool
        reason = command.fault or UNSET
        verdict = "rejected" if command.fault else "accepted"
        return ev.ActionProposed(**place, action=command.action, tool=name, reason=reason, verdict=verdict)
    if type(command) is StartChild:
        return ev.ChildStarted(**place, child=command.child, program=command.program, payload=command.inputs)
    if type(command) is StartTimer:
        return ev.TimerFired(**{**place, "at_ms": max(command.due_ms, now_ms)})
    if type(command) is Compensate:
        return ev.CompensationStarted(**place, payload=command.args)
    if type(command) is Reconcile:
        undoing = True if command.compensation else UNSET
        return ev.OutcomeResolved(**place, by="contract", resolution="failed", compensation=undoing)
    if type(command) is Finish:
        incomplete = list(command.incomplete) or UNSET
        outcome = UNSET if command.outcome is None else command.outcome
        return ev.RunFinished(at_ms=now_ms, status=command.status, outcome=outcome, incomplete=incomplete)
    return None


# --- the graph, read from the program that the author wrote -------------------------------------------------


class Graph:
    """What may follow what, taken from the dict and not from the compiled form."""

    def __init__(self, program: dict[str, Any]) -> None:
        self.steps = {step["id"]: step for step in program["steps"]}
        order = list(self.steps)
        self.after = {name: order[i + 1] if i + 1 < len(order) else None for i, name in enumerate(order)}
        self.first = order[0]
        self.is_dag = any("depends_on" in step for step in self.steps.values())

    def follows(self, name: str, status: StepStatus, verdict: Any) -> str | None:
        """The one step that a settled one leads to; None where the run ends."""
        step = self.steps[name]
        if step["type"] == "condition":
            return step["then"] if verdict else step["otherwise"]
        if status is StepStatus.FAILED:
            return step.get("on_failure")
        if step.get("is_terminal"):
            return None
        return step.get("next_step", self.after[name])

    def taken(self, name: str, settled: dict[str, tuple[StepStatus, Any]]) -> bool | None:
        """DAG: whether a step runs (True) or is skipped (False); None while a dependency has not settled."""
        edges = set(self.steps[name].get("depends_on", ()))
        for other, step in self.steps.items():
            if step["type"] == "condition" and name in (step["then"], step["otherwise"]):
                edges.add(other)
        taken = not edges
        for other in edges:
            if other not in settled:
                return None
            status, verdict = settled[other]
            step = self.steps[other]
            chosen = step["type"] != "condition" or step["then" if verdict else "otherwise"] == name
            taken = taken or (status is StepStatus.SUCCESS and chosen)
        return taken


class Node(NamedTuple):
    state: bytes
    key: bytes  # the same but for `seq`: how many entries a journal has is not a difference between states
    settled: frozenset[tuple[int, int, int, Any]]  # P4: (step, occurrence, item, what) that have settled
    dispatched: frozenset[tuple[int, int, int, int]]  # attempts that were begun
    results: dict[str, tuple[StepStatus, Any]]  # DAG: what is known of each step


class Explorer:
    """Breadth-first search over the states of one program."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.program = compiled({"max_steps": 6, **case.program})
        self.graph = Graph(case.program)
        self.ids = [step.id for step in self.program.steps]
        self.transitions = 0
        self.ends: Counter[str] = Counter()

    def explore(self) -> int:
        nothing = snapshot(State(run="r"))
        first = Node(nothing, nothing, frozenset(), frozenset(), {})
        seen = {first.key}
        queue = [first]
        for node in queue:
            for after in self.successors(node):
                if after.key not in seen and len(seen) < self.case.states_max:
                    seen.add(after.key)
                    queue.append(after)
        return len(seen)

    def successors(self, node: Node) -> Iterator[Node]:
        before = restore(node.state)
        state = restore(node.state)
        assert snapshot(state) == node.state
        untouched = repr(state)  # shows all of it, in less than half of the time of a snapshot
        for command in decide(self.program, state):
            # What is commanded is admissible: `decide` and `apply` are of one mind.
            told = obeyed(command, state.now_ms)
            if told is not None:
                assert type(apply(self.program, restore(node.state), told)) is State, command
        offered = list(events(self.case, self.program, state))
        admitted = 0
        for event in offered:
            result = apply(self.program, state, event)
            if type(result) is Rejection:
                assert result.code != "MALFORMED", event
                assert repr(state) == untouched, event
                continue
            admitted += 1
            self.transitions += 1
            assert result is state
            check_taken(event, state)
            if event.at_ms == before.now_ms + 1:
                # A refused event is offered as one that comes later, so that a clock that it moved would
                # show. An admitted one is taken as coming now, so that the same state is recognised however
                # it was come to.
                state = restore(node.state)
                event.at_ms = before.now_ms
                assert apply(self.program, state, event) is state
            yield self.after(node, before, event, state)
            state = restore(node.state)
        assert snapshot(state) == node.state
        assert snapshot(before) == node.state
        if state.stage is Stage.ENDED:
            assert admitted == 1, "only the annex follows a terminal status"
            self.ends[state.ending] += 1
        elif state.stage is not Stage.NEW:
            # P10, beside what the invariants say: some event takes the run further.
            assert admitted > 1

    def after(self, node: Node, before: State, event: ev.Event, state: State) -> Node:
        check_invariants(self.program, state)
        if before.stage is Stage.ENDED:
            state.seq -= 1
            assert snapshot(state) == node.state
            state.seq += 1
        self.check_order(before, state, node.results)
        if type(event) in (ev.StepSucceeded, ev.StepPending) and event.pure is UNSET:
            # P3: what has an effect has been begun.
            assert self.attempt_of(event) in node.dispatched
        settled = self.check_settled(node, state)
        dispatched = self.check_dispatched(node, event, state)
        results = dict(node.results)
        for each in state.settled:
            if self.program.steps[each.step].parent < 0:
                results[self.ids[each.step]] = (each.status, each.output)
        reached = snapshot(state)
        assert {c.id for c in decide(self.program, state)} == {
            c.id for c in decide(self.program, restore(reached))
        }
        state.seq = 0  # nobody has it any more
        return Node(reached, snapshot(state), settled, dispatched, results)

    def check_settled(self, node: Node, state: State) -> frozenset[tuple[int, int, int, Any]]:
        """P4: what has settled never settles again; a lane that failed may, when its group is retried."""
        fresh: set[tuple[int, int, int, Any]] = set()
        for each in state.settled:
            place = (each.step, each.occurrence, each.item)
            is_lane = self.program.steps[each.step].parent >= 0
            again = is_lane and each.status is StepStatus.FAILED
            identity = (*place, each.attempts if again else "settled")
            assert not {identity, (*place, "settled")} & (node.settled | fresh)
            fresh.add(identity)
        return node.settled | fresh

    def check_dispatched(
        self, node: Node, event: ev.Event, state: State
    ) -> frozenset[tuple[int, int, int, int]]:
        """P4: no attempt begins twice."""
        if type(event) not in (ev.StepStarted, ev.ChildStarted, ev.CompensationStarted):
            return node.dispatched
        identity = self.attempt_of(event)
        assert identity not in node.dispatched
        return node.dispatched | {identity}

    def attempt_of(self, event: Any) -> tuple[int, int, int, int]:
        index = self.program.step_index[event.step]
        if type(event) is ev.CompensationStarted:
            index = -index - 1
        return index, event.occurrence, -1 if event.item is UNSET else event.item, event.attempt

    def check_order(self, before: State, state: State, results: dict[str, tuple[StepStatus, Any]]) -> None:
        """P1: what was entered is what the author's graph says follows what has settled, and nothing else."""
        was = before.occurrences or [0] * len(self.ids)
        entered: Counter[str] = Counter()
        for index, count in enumerate(state.occurrences):
            if self.program.steps[index].parent < 0:
                entered[self.ids[index]] += count - was[index]
        top = [each for each in state.settled if self.program.steps[each.step].parent < 0]
        if self.graph.is_dag:
            known = dict(results)
            for each in top:
                known[self.ids[each.step]] = (each.status, each.output)
            for name, count in entered.items():
                if count:
                    skipped = known.get(name, (None,))[0] is StepStatus.SKIPPED
                    assert self.graph.taken(name, known) is (not skipped)
                    assert name not in results
            if state.stage is Stage.GOING:
                for name in self.graph.steps:
                    assert (self.graph.taken(name, known) is None) == (
                        state.occurrences[self.program.step_index[name]] == 0
                    )
            return
        expected: Counter[str] = Counter()
        if before.stage is Stage.NEW:
            expected[self.graph.first] += 1
        if before.stage is not Stage.ENDING:
            for each in top:
                target = self.graph.follows(self.ids[each.step], each.status, each.output)
                if target is not None:
                    expected[target] += 1
        assert not entered - expected
        if state.stage is Stage.GOING:
            assert not expected - entered


@pytest.mark.parametrize("name", CASES)
def test_no_sequence_of_events_breaks_a_promise(name: str) -> None:
    explorer = Explorer(CASES[name])
    states = explorer.explore()
    assert states > 20
    assert explorer.transitions > 40
    assert {"CANCELLED", "FAILED" if name == "map_fails" else "SUCCESS"} <= explorer.ends.keys()
