"""The measures: their definitions, their ranges, and what they are functions of."""

from __future__ import annotations

from math import isclose, log2
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano_vm import ExecutionVM, MockLLMAdapter, TraceAnalyzer, tool
from nano_vm.observe import measures
from nano_vm.observe.analyzer import metrics_of
from nano_vm.observe.baseline import learn
from nano_vm.observe.trajectory import Move, Trajectory, of_trace

NAMES = st.lists(st.sampled_from("abcd"), max_size=12)


def trajectory(*path: str, **facts: Any) -> Trajectory:
    moves = tuple(Move(activity=name) for name in path)
    return Trajectory(id=facts.pop("id", "r"), source="test", moves=moves, **facts)


def test_the_worked_example_of_the_guide() -> None:
    run = trajectory(
        "look", "pay", "pay", "notify", actions=("l", "p", "p", "n"), transitions=12, violations=3
    )
    assert measures.transition_entropy(run.pairs()) == pytest.approx(
        0.4
    )  # 2 of 5 moves start at `pay`: 1 bit each
    assert measures.absolute_entropy(run) == pytest.approx(log2(5))
    assert measures.tool_churn(run) == 0.25
    assert measures.violation_rate(run) == 0.25
    assert (
        measures.normalized_entropy(run) == 1.0
    )  # without a graph: of what was seen, as uncertain as can be
    graph = {"look": ("pay", "(end)"), "pay": ("notify", "pay", "(end)"), "notify": ("(end)",)}
    known = trajectory("look", "pay", "pay", "notify", graph=graph)
    # one of 5 moves starts at `look` (1 bit is possible), two at `pay` (log2 3)
    assert measures.normalized_entropy(known) == pytest.approx(0.4 / ((1 + 2 * log2(3)) / 5))


def test_a_straight_line_has_no_entropy_however_long_it_is() -> None:
    line = trajectory(*[f"s{number}" for number in range(100)])
    assert measures.transition_entropy(line.pairs()) == 0.0
    assert measures.normalized_entropy(line) == 0.0
    assert measures.absolute_entropy(line) > measures.UNCALIBRATED_BITS  # which is why that rule is no rule


def test_an_endless_alternation_is_no_uncertainty_but_churn() -> None:
    run = trajectory(*["a", "b"] * 50, actions=("x", "y") * 50)
    assert measures.normalized_entropy(run) < 0.2
    assert measures.tool_churn(run) == 0.98


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=NAMES, other=NAMES, rollbacks=st.integers(0, 3))
def test_ranges_and_symmetry(path: list[str], other: list[str], rollbacks: int) -> None:
    run = trajectory(*path, actions=tuple(path), rollbacks=min(rollbacks, len(path)))
    assert 0 <= measures.rollback_density(run) <= 1
    assert 0 <= measures.tool_churn(run) < 1
    assert 0 <= measures.normalized_entropy(run) <= 1
    assert 0 <= measures.transition_entropy(run.pairs()) <= measures.absolute_entropy(run) + 1e-9
    there = measures.path_variance(path, [(other, 1)])
    assert isclose(there, measures.path_variance(other, [(path, 3)]))
    assert 0 <= there <= 1
    assert (there == 0) is (path == other)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(paths=st.lists(NAMES, min_size=1, max_size=8), strange=NAMES)
def test_a_baseline_is_a_probability_and_what_it_has_seen_surprises_less(
    paths: list[list[str]], strange: list[str]
) -> None:
    runs = [trajectory(*path) for path in paths]
    baseline = learn(runs)
    for state, row in baseline.counts.items():
        known = sum(baseline.probability(state, following) for following in row)
        assert isclose(known + baseline.probability(state, "never heard of"), 1.0)
    assert all(score >= 0 for score in baseline.scores)
    alien = trajectory(*[f"{name}!" for name in strange], "x!")
    assert baseline.surprisal(alien) >= min(baseline.surprisal(run) for run in runs)
    assert learn(runs).to_bytes() == type(baseline).from_bytes(baseline.to_bytes()).to_bytes()


def steps() -> list[dict[str, Any]]:
    retry = {"on_error": "retry", "max_retries": 3, "retry": {"initial": 0.001, "cap": 0.001}}
    return [
        {
            "id": "pay",
            "type": "tool",
            "tool": "pay",
            "args": {"n": 1},
            "compensate": {"tool": "undo"},
            **retry,
        },
        {"id": "q", "type": "condition", "condition": "$pay.output == 1", "then": "ask", "otherwise": "end"},
        {
            "id": "ask",
            "type": "agent",
            "prompt": "?",
            "tools": ["pay"],
            "max_turns": 1,
            "on_failure": "end",
            "next_step": "end",
        },
        {
            "id": "end",
            "type": "tool",
            "tool": "pay",
            "args": {"n": 2},
            "is_terminal": True,
            "final_status": "FAILED",
        },
    ]


def test_a_run_becomes_a_trajectory() -> None:
    failures = iter([True, False, False, False])

    @tool(effect="idempotent")
    def pay(n: int) -> int:
        if next(failures):
            raise ValueError("no")
        return n

    @tool(effect="idempotent")
    def undo() -> None:
        pass

    from nano_vm import Completion, ToolCall

    model = MockLLMAdapter(Completion(tool_calls=(ToolCall("c", "pay", '{"n": 1}'),)))
    vm = ExecutionVM(llm=model, tools=[pay, undo])
    trace = vm.run_sync({"name": "t", "steps": steps()})
    run = of_trace(trace)
    assert run.path == ["pay", "pay", "q", "ask", "end"]
    assert [move.failed for move in run.moves] == [True, False, False, True, False]
    assert (run.status, run.ending) == ("FAILED", "(FAILED)")
    assert len(run.actions) == 3
    assert len(set(run.actions)) == 2  # the retry is the same action; `end` is another one
    assert run.rollbacks == 1
    assert run.violations == 1  # what the agent proposed in its last turn
    assert run.graph["q"] == ("(end)", "ask", "ask.pay", "end")
    assert set(run.graph["ask"]) == {"ask", "end", "(end)"}
    measured = TraceAnalyzer(trace).metrics(learn([run]))
    assert measured["rollback_density"] == 0.2
    assert measured["tool_churn"] == pytest.approx(1 / 3)
    assert measured["path_variance"] == 0.0
    assert measured == metrics_of(
        of_trace(vm.trace(trace.trace_id)), learn([run])
    )  # P12: a function of the trace


def test_lanes_stand_before_their_group_in_the_same_order_every_time() -> None:
    @tool(effect="pure")
    def one(v: int) -> int:
        return v

    lane = {"id": "x", "type": "tool", "tool": "one", "args": {"v": "$item"}}
    group = {"id": "m", "type": "map", "over": [1, 2, 3], "step": lane}
    dag = {"id": "d", "type": "tool", "tool": "one", "args": {"v": 1}, "depends_on": ["m"]}
    vm = ExecutionVM(tools=[one])
    run = of_trace(vm.run_sync({"name": "t", "steps": [group, dag]}))
    assert sorted(run.path[:4]) == ["m", "x", "x", "x"]
    assert run.path[4:] == ["d"]
    graph = of_trace(vm.run_sync({"name": "t", "steps": [group]})).graph
    assert graph == {"(start)": ("m", "x"), "m": ("(end)",), "x": ("(end)", "m", "x")}
