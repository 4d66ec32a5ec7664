"""Order (P1) and budgets (P10): which step comes next, and when the run ends instead."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus, State, StepStatus, snapshot
from nano_vm.kernel.transition import apply, decide
from unit.kernel.kernel_driving import Drive, compiled, started, tool

BRANCH = {
    "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    "steps": [
        {"id": "big", "type": "condition", "condition": "$n > 10", "then": "large", "otherwise": "small"},
        tool("large", args={"n": "$n"}, is_terminal=True, outcome="was_large"),
        tool("small", args={"n": "$n"}, next_step="done"),
        tool("done"),
    ],
}


def test_steps_run_in_list_order_and_the_run_succeeds_after_the_last() -> None:
    run = Drive({"steps": [tool("a"), tool("b")]}).start()
    assert run.todo() == ["CallTool:a"]
    run.do("a", 1)
    assert run.todo() == ["CallTool:b"]
    run.do("b", 2)
    assert run.todo() == ["Finish:"]
    assert run.status is RunStatus.RUNNING
    run.finish()
    assert run.status is RunStatus.SUCCESS
    assert run.state.last_output == 2


@pytest.mark.parametrize(("n", "path"), [(11, ["big", "large"]), (10, ["big", "small", "done"])])
def test_a_condition_takes_the_branch_its_values_say(n: int, path: list[str]) -> None:
    run = Drive(BRANCH, n=n).start()
    assert run.state.verdicts == [["big", 1, n > 10]]
    for step in path[1:]:
        assert run.command(step).args == ({} if step == "done" else {"n": n})
        run.do(step)
    run.finish()
    assert [step for step, _, _ in run.settled] == path
    assert run.state.outcome == ("was_large" if n > 10 else None)


def test_a_missing_branch_is_a_failure_and_never_falls_through() -> None:
    steps = [
        {"id": "c", "type": "condition", "condition": "$n == 1", "then": "a"},
        tool("a"),
    ]
    run = Drive({"steps": steps}, n=2).start()
    assert run.state.verdicts == [["c", 1, "NO_BRANCH"]]
    run.finish()
    assert run.status is RunStatus.FAILED
    assert run.state.error is not None
    assert run.state.error["type"] == "NO_BRANCH"
    assert run.settled == [("c", "FAILED", None)]


def test_a_condition_that_cannot_be_evaluated_fails_the_run() -> None:
    steps = [
        {"id": "c", "type": "condition", "condition": "$n > 1", "then": "a", "otherwise": "a"},
        tool("a"),
    ]
    run = Drive({"steps": steps}, n="three").start().finish()
    assert run.status is RunStatus.FAILED
    assert run.state.error is not None
    assert run.state.error["type"] == "TYPE_MISMATCH"


def test_a_value_that_cannot_be_rendered_fails_the_step_without_an_attempt() -> None:
    run = Drive({"steps": [tool("a", output_key="x"), tool("b", args={"v": "$x.deep"})]}).start()
    run.do("a", {"other": 1}).finish()
    assert run.status is RunStatus.FAILED
    assert run.settled[-1][:2] == ("b", "FAILED")


def test_a_governed_failure_ends_the_run_failed_with_its_outcome() -> None:
    steps = [tool("a", is_terminal=True, final_status="FAILED", outcome="refused")]
    run = Drive({"steps": steps}).start().do("a", 1).finish()
    assert run.status is RunStatus.FAILED
    assert run.state.outcome == "refused"
    assert run.state.error is not None
    assert run.state.error["type"] == "GOVERNED_FAILURE"


def test_on_failure_is_a_governed_path_and_the_error_is_a_value() -> None:
    steps = [
        tool("a", on_failure="mend"),
        tool("b", is_terminal=True),
        tool("mend", args={"why": "$a.error.type", "n": "$a.error.attempts"}),
    ]
    run = Drive({"steps": steps}).start().break_("a", "Broken")
    assert run.command("mend").args == {"why": "Broken", "n": 1}
    run.do("mend").finish()
    assert run.status is RunStatus.SUCCESS
    assert [step for step, _, _ in run.settled] == ["a", "mend"]


def test_on_error_skip_goes_on_with_null() -> None:
    run = Drive({"steps": [tool("a", on_error="skip", output_key="x"), tool("b", args={"x": "$x"})]}).start()
    run.break_("a")
    assert run.settled == [("a", "SKIPPED", None)]
    assert run.command("b").args == {"x": None}


def test_a_loop_with_an_exit_ends_and_each_round_is_an_occurrence() -> None:
    steps = [
        tool("poll", output_key="state"),
        {
            "id": "again",
            "type": "condition",
            "condition": "$state == 'busy'",
            "then": "poll",
            "otherwise": "end",
        },
        tool("end"),
    ]
    run = Drive({"max_steps": 50, "steps": steps}).start()
    for _ in range(3):
        run.do("poll", "busy")
    assert run.command("poll").occurrence == 4
    run.do("poll", "ready").do("end").finish()
    assert run.status is RunStatus.SUCCESS
    assert run.state.steps == 4 + 4 + 1


LOOP = [
    tool("poll", output_key="state", tool="poll"),
    {"id": "again", "type": "condition", "condition": "$state == 'busy'", "then": "poll", "otherwise": "end"},
    tool("end"),
]


def test_the_step_budget_is_checked_before_the_next_step() -> None:
    run = Drive({"max_steps": 5, "steps": LOOP}).start().do("poll", "busy").do("poll", "busy")
    assert run.todo() == ["CallTool:poll"]
    run.do("poll", "busy")
    assert run.todo() == ["Finish:"]
    run.finish()
    assert run.status is RunStatus.BUDGET_EXCEEDED
    assert run.state.steps == 5
    assert run.state.error is not None
    assert run.state.error["message"] == "steps"


def test_every_attempt_counts_against_the_step_budget() -> None:
    steps = [tool("a", on_error="retry", max_retries=9)]
    run = Drive({"max_steps": 2, "steps": steps}).start().break_("a").ring("a").break_("a")
    assert run.timer("a") is None
    run.finish()
    assert run.status is RunStatus.BUDGET_EXCEEDED
    assert run.settled == [("a", "FAILED", None)]


def test_every_lane_counts_against_the_step_budget() -> None:
    step = {"id": "m", "type": "map", "over": "$items", "step": tool("one")}
    run = Drive({"max_steps": 3, "steps": [step]}, items=[1, 2, 3]).start()
    # The map and two lanes are three steps: nothing has been dispatched, so the run ends at once.
    assert run.todo() == ["Finish:"]
    run.finish()
    assert run.status is RunStatus.BUDGET_EXCEEDED


@pytest.mark.parametrize(
    ("budget", "usage", "name"),
    [
        ({"max_tokens": 100}, {"tokens_in": 60, "tokens_out": 41}, "tokens"),
        ({"max_cost_usd": 0.001}, {"cost_nanousd": 1_000_001}, "cost_nanousd"),
    ],
)
def test_spent_tokens_and_cost_end_the_run_before_the_next_step(
    budget: dict[str, Any], usage: dict[str, int], name: str
) -> None:
    steps = [{"id": "ask", "type": "llm", "prompt": "?"}, tool("b")]
    run = Drive({**budget, "steps": steps}).start().do("ask", "!", **usage).finish()
    assert run.status is RunStatus.BUDGET_EXCEEDED
    assert run.state.error is not None
    assert run.state.error["message"] == name
    fits = Drive({**budget, "steps": steps}).start().do("ask", "!")
    assert fits.todo() == ["CallTool:b"]


def test_duration_is_a_budget_and_suspended_time_is_free() -> None:
    steps = [tool("a"), {"id": "w", "type": "wait", "event": "go"}, tool("b"), tool("c")]
    run = Drive({"max_duration_seconds": 10, "steps": steps}).start().do("a")
    run.now += 3_600_000
    assert run.event("e1", 1, name="go") is None
    assert run.todo() == ["CallTool:b"]
    run.begin("b")
    run.now += 10_001
    run.succeed("b").finish()
    assert run.status is RunStatus.BUDGET_EXCEEDED


def test_a_run_that_changes_nothing_stalls_and_a_wait_resets_the_count() -> None:
    steps = [
        tool("poll", output_key="state"),
        {"id": "pause", "type": "wait", "seconds": 1},
        {
            "id": "again",
            "type": "condition",
            "condition": "$state == 'x'",
            "then": "poll",
            "otherwise": "end",
        },
        tool("end"),
    ]
    run = Drive({"max_stalled_steps": 2, "max_steps": 99, "steps": steps}).start()
    for _ in range(5):
        run.do("poll", "x").ring("pause")
    assert run.status is RunStatus.RUNNING
    bare = Drive({"max_stalled_steps": 2, "max_steps": 99, "steps": LOOP}).start()
    bare.do("poll", "busy").do("poll", "busy").do("poll", "busy").finish()
    assert bare.status is RunStatus.STALLED


def test_an_event_that_brings_nothing_new_does_not_stall() -> None:
    steps = [
        {"id": "w", "type": "wait", "event": "go", "output_key": "v"},
        {"id": "again", "type": "condition", "condition": "$v == 1", "then": "w", "otherwise": "end"},
        tool("end"),
    ]
    run = Drive({"max_stalled_steps": 1, "max_steps": 99, "steps": steps}).start()
    for number in range(4):
        assert run.event(f"e{number}", 1, name="go") is None
    assert run.waits() == [("event", "w")]


def test_a_parents_budgets_tighten_the_programs_own() -> None:
    program = {"max_steps": 50, "max_tokens": 10, "steps": [tool("a")]}
    given = {"steps": 3, "tokens": 20, "cost_nanousd": 0, "duration_ms": 7}
    state = Drive(program).start(budgets=given).state
    assert (state.steps_max, state.tokens_max, state.cost_nanousd_max, state.duration_ms_max) == (3, 10, 1, 7)
    none_left = Drive(program).start(budgets={"steps": 0})
    assert none_left.finish().status is RunStatus.BUDGET_EXCEEDED


# --- depth and cost -----------------------------------------------------------------------------------------


def _chain(count: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"id": f"c{i}", "type": "condition", "condition": "$n == 1", "then": "continue", "otherwise": "end"}
        for i in range(count)
    ]
    return {"max_steps": count + 10, "steps": [*steps, tool("end")]}


def test_a_hundred_thousand_chained_conditions_do_not_deepen_the_stack() -> None:
    program = compiled(_chain(100))
    # Compiled once and repeated: the chain is what matters, not the compiler.
    first = program.steps[0]
    count = 100_000
    steps = tuple(
        type(first)(
            **{
                **{name: getattr(first, name) for name in first.__struct_fields__},
                "index": i,
                "rank": i,
                "action": type(first.action)(first.action.test, i + 1, i + 1),  # type: ignore[union-attr]
            }
        )
        for i in range(count)
    )
    end = program.steps[-1]
    last = type(end)(**{**{n: getattr(end, n) for n in end.__struct_fields__}, "index": count, "rank": count})
    fields = {name: getattr(program, name) for name in program.__struct_fields__}
    budgets = type(program.budgets)(steps_max=count + 10)
    long = type(program)(**{**fields, "steps": (*steps, last), "budgets": budgets})
    state = State(run="r")
    assert apply(long, state, started(long, {"n": 1})) is state
    assert len(state.settled) == count
    assert [command.step for command in decide(long, state)] == [count]


def test_ten_thousand_failures_handed_on_do_not_deepen_the_stack() -> None:
    count = 10_000
    steps = [tool(f"s{i}", args={"v": "$x.output.none"}, on_failure=f"s{i + 1}") for i in range(300)]
    program = compiled({"max_steps": count + 400, "steps": [tool("x"), *steps, tool("s300")]})
    fields = {name: getattr(program, name) for name in program.__struct_fields__}
    model = program.steps[1]
    many = tuple(
        type(model)(
            **{
                **{name: getattr(model, name) for name in model.__struct_fields__},
                "index": i,
                "rank": i,
                "on_failure": i + 1,
            }
        )
        for i in range(1, count)
    )
    end = program.steps[-1]
    last = type(end)(**{**{n: getattr(end, n) for n in end.__struct_fields__}, "index": count, "rank": count})
    long = type(program)(**{**fields, "steps": (program.steps[0], *many, last)})
    run = Drive(long).start().begin("x")
    event = ev.StepSucceeded(**run.place("x"), payload={})
    assert apply(long, run.state, event) is run.state
    assert sum(each.status is StepStatus.FAILED for each in run.state.settled) == count - 1


def _calls_of_one_round(run: Drive) -> int:
    """Function calls - Python's and C's - of one step, counted instead of timed."""
    begin = ev.StepStarted(**run.place("poll"))
    end = ev.StepSucceeded(**run.place("poll", payload="busy"))
    calls = 0

    def count(frame: Any, what: str, arg: Any) -> None:
        nonlocal calls
        calls += what in ("call", "c_call")

    sys.setprofile(count)
    try:
        decide(run.program, run.state)
        apply(run.program, run.state, begin)
        apply(run.program, run.state, end)
    finally:
        sys.setprofile(None)
    return calls


def test_the_ten_thousandth_step_costs_what_the_tenth_costs() -> None:
    run = Drive({"max_steps": 10**6, "steps": LOOP}).start()
    costs = [_calls_of_one_round(run) for _ in range(10_000)]
    assert len(set(costs[10:])) == 1


def test_a_state_does_not_grow_with_the_steps_that_were_taken() -> None:
    run = Drive({"max_steps": 10**6, "steps": LOOP}).start().do("poll", "busy")
    size = len(snapshot(run.state))
    for _ in range(200):
        run.do("poll", "busy")
    assert len(snapshot(run.state)) <= size + 20  # a few more digits
