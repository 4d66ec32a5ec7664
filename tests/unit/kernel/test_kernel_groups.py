"""Parallel and map: lanes settle each for itself, the group when all have."""

from __future__ import annotations

from typing import Any

import pytest

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool, StartTimer
from nano_vm.kernel.state import RunStatus, StepStatus
from unit.kernel.kernel_driving import Drive, tool


def parallel(*lanes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "both", "type": "parallel", "parallel_steps": list(lanes), **fields}


def mapped(lane: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "each", "type": "map", "over": "$items", "step": lane, **fields}


TWO = parallel(tool("x"), tool("y"))


def test_lanes_run_together_and_the_output_is_in_declared_order() -> None:
    run = Drive({"steps": [TWO, tool("after", args={"v": "$both.output", "x": "$x.output"})]}).start()
    assert run.todo() == ["CallTool:x", "CallTool:y"]
    run.begin("x").begin("y").succeed("y", 2)
    assert run.todo() == []
    run.succeed("x", 1)
    command = run.command("after")
    assert type(command) is CallTool
    assert command.args == {"v": {"x": 1, "y": 2}, "x": 1}
    assert list(command.args["v"]) == ["x", "y"]
    assert [step for step, _, _ in run.settled] == ["y", "x", "both"]


def test_no_more_lanes_than_allowed_are_in_progress() -> None:
    run = Drive(
        {"steps": [mapped(tool("one", args={"i": "$item", "n": "$index"}), max_concurrency=2)]}, items="abc"
    )
    run.inputs = {"items": ["a", "b", "c"]}
    run.start()
    assert run.todo() == ["CallTool:one.0", "CallTool:one.1"]
    assert [c.args for c in run.commands()] == [{"i": "a", "n": 0}, {"i": "b", "n": 1}]  # type: ignore[union-attr]
    assert run.offer(ev.StepStarted(**run.place("one", 2))) == "OUT_OF_ORDER"
    run.do("one", "B", 1)
    assert run.todo() == ["CallTool:one.0", "CallTool:one.2"]
    run.do("one", "C", 2).do("one", "A", 0)
    assert run.state.last_output == ["A", "B", "C"]
    assert run.offer(ev.StepStarted(**run.place("one", 1, attempt=1, occurrence=1))) == "DUPLICATE"


def test_lanes_are_told_apart_by_item() -> None:
    run = Drive({"steps": [mapped(tool("one"), max_concurrency=2), tool("z")]}, items=[1, 2]).start()
    assert run.offer(ev.StepStarted(**run.place("one"))) == "OUT_OF_ORDER"
    assert run.offer(ev.StepStarted(**run.place("one", 7))) == "OUT_OF_ORDER"
    run.do("one", 1, 0)
    assert run.offer(ev.StepStarted(**run.place("one", 0))) == "DUPLICATE"
    assert run.offer(ev.StepStarted(**run.place("one", 7))) == "OUT_OF_ORDER"


@pytest.mark.parametrize(
    ("items", "code"), [("text", "NOT_A_LIST"), ([1, 2, 3], "TOO_MANY_ITEMS"), ({"a": 1}, "NOT_A_LIST")]
)
def test_a_map_over_something_else_fails_before_its_first_lane(items: object, code: str) -> None:
    run = Drive({"steps": [mapped(tool("one"), max_items=2)]}, items=items).start().finish()
    assert run.status is RunStatus.FAILED
    assert run.state.error is not None
    assert run.state.error["type"] == code
    assert run.settled == [("each", "FAILED", None)]


def test_a_map_over_a_value_that_is_not_there_fails() -> None:
    step = {"id": "each", "type": "map", "over": "$a.output.list", "step": tool("one"), "on_error": "skip"}
    run = Drive({"steps": [tool("a"), step, tool("b")]}).start().do("a", {})
    assert run.todo() == ["CallTool:b"]
    assert run.settled[-1] == ("each", "SKIPPED", None)


def test_a_map_over_nothing_yields_an_empty_list() -> None:
    run = Drive({"steps": [mapped(tool("one")), tool("b", args={"v": "$each.output"})]}, items=[]).start()
    command = run.command("b")
    assert type(command) is CallTool
    assert command.args == {"v": []}


def test_one_failure_does_not_hide_its_siblings() -> None:
    run = (
        Drive({"steps": [parallel(tool("x"), {"id": "y", "type": "llm", "prompt": "?"})]})
        .start()
        .break_("x", "Broken")
    )
    assert run.todo() == ["CallModel:y"]
    run.do("y", 2, tokens_in=5).finish()
    assert run.status is RunStatus.FAILED
    assert run.state.error is not None
    assert (run.state.error["type"], run.state.error["message"]) == ("SUBSTEP_FAILED", "x: Broken")
    assert run.state.tokens == 5
    assert [(step, status) for step, status, _ in run.settled] == [
        ("x", "FAILED"),
        ("y", "SUCCESS"),
        ("both", "FAILED"),
    ]


def test_a_skipped_lane_is_null_in_the_output() -> None:
    run = Drive({"steps": [parallel(tool("x", on_error="skip"), tool("y"))]}).start().break_("x").do("y", 1)
    assert run.state.last_output == {"x": None, "y": 1}


def test_lanes_that_fail_while_being_started_are_counted() -> None:
    # `$item.v` is missing in two of them: they fail before anything is dispatched.
    lane = tool("one", args={"v": "$item.v"})
    run = Drive({"steps": [mapped(lane, max_concurrency=1)]}, items=[{}, {"v": 1}, {}]).start()
    assert run.todo() == ["CallTool:one.1"]
    run.do("one", 1, 1).finish()
    assert run.state.error is not None
    assert run.state.error["message"] == "one[0]: UNRESOLVED_REFERENCE, one[2]: UNRESOLVED_REFERENCE"


def test_all_lanes_failing_while_being_started_settle_the_group() -> None:
    run = Drive({"steps": [mapped(tool("one", args={"v": "$item.v"}))]}, items=[{}] * 300).start().finish()
    assert run.status is RunStatus.FAILED
    assert len(run.settled) == 301


def test_a_retried_group_repeats_only_the_lanes_that_failed() -> None:
    group = mapped(tool("one", on_error="retry", max_retries=2), on_error="retry", max_retries=2)
    run = Drive({"steps": [group]}, items=[1, 2, 3]).start().do("one", "A", 0)
    run.break_("one", item=1).ring("one", 1).break_("one", item=1).do("one", "C", 2)
    [timer] = run.commands()
    assert type(timer) is StartTimer
    assert timer.step_id == "each"
    assert run.status is RunStatus.RUNNING
    run.ring("each")
    command = run.command("one", 1)
    assert run.todo() == ["CallTool:one.1"]
    # Attempts count on: no identity is used twice (P4).
    assert command.attempt == 3
    assert run.offer(ev.StepStarted(**run.place("one", 1, attempt=1))) == "STALE_ATTEMPT"
    assert run.offer(ev.StepStarted(**run.place("one", 0))) == "DUPLICATE"
    run.do("one", "B", 1)
    assert run.state.last_output == ["A", "B", "C"]


def test_a_group_that_keeps_failing_fails_for_good() -> None:
    run = Drive({"steps": [parallel(tool("x"), tool("y"), on_error="retry", max_retries=2)]}).start()
    run.do("x", 1).break_("y").ring("both").break_("y").finish()
    assert run.status is RunStatus.FAILED
    assert run.state.error is not None
    assert run.state.error["attempts"] == 2


def test_a_group_is_not_retried_when_a_lane_must_not_be_repeated() -> None:
    run = Drive({"steps": [parallel(tool("x"), tool("y"), on_error="retry", max_retries=3)]}).start()
    run.break_("x").break_("y", "VALUE_TOO_LARGE", retryable=False).finish()
    assert run.status is RunStatus.FAILED
    assert run.state.error is not None
    assert (run.state.error["type"], run.state.error["attempts"]) == ("SUBSTEP_FAILED", 1)


def test_a_group_in_a_loop_begins_again_with_every_occurrence() -> None:
    steps = [
        TWO,
        {
            "id": "again",
            "type": "condition",
            "condition": "$x.output == 1",
            "then": "both",
            "otherwise": "end",
        },
        tool("end"),
    ]
    run = Drive({"max_steps": 50, "steps": steps}).start().do("x", 1).do("y", 1)
    assert [c.occurrence for c in run.commands()] == [2, 2]
    assert run.offer(ev.StepStarted(**run.place("x", occurrence=1))) == "STALE_ATTEMPT"
    run.do("x", 2).do("y", 2)
    assert run.todo() == ["CallTool:end"]


# --- the run ends in mid-group ------------------------------------------------------------------------------


def test_a_cancelled_group_waits_for_what_is_under_way_and_drops_the_rest() -> None:
    lanes = [tool("x"), tool("y", on_error="retry"), tool("z"), {"id": "w", "type": "wait", "event": "e"}]
    run = Drive({"steps": [parallel(*lanes, max_concurrency=4)]}).start()
    run.begin("x").break_("y").cancel()
    assert run.commands() == []
    assert [(run.program.steps[s.step].id, s.status) for s in run.state.settled] == [("y", StepStatus.FAILED)]
    run.succeed("x", 1)
    assert run.finish().status is RunStatus.CANCELLED


def test_a_cancelled_group_with_nothing_under_way_ends_at_once() -> None:
    run = Drive({"steps": [mapped(tool("one"), max_concurrency=1)]}, items=[1, 2]).start().cancel()
    assert run.todo() == ["Finish:"]


def test_a_cancelled_group_in_its_back_off_ends_at_once() -> None:
    run = Drive({"steps": [parallel(tool("x"), tool("y"), on_error="retry")]}).start()
    run.do("x").break_("y").cancel()
    assert run.todo() == ["Finish:"]
    assert run.settled[-1][:2] == ("both", "FAILED")


@pytest.mark.parametrize("end", ["succeed", "fail", "repeat", "pending"])
def test_an_unknown_lane_of_a_cancelled_group_is_waited_for(end: str) -> None:
    run = Drive({"steps": [TWO]}).start().begin("x").lose("x").begin("y").cancel()
    run.succeed("y", 1)
    assert run.waits() == [("outcome", "x")]
    if end == "succeed":
        run.succeed("x", 1)
    elif end == "fail":
        run.fail("x")
    elif end == "repeat":
        run.resolve("x", "repeat")
    else:
        run.must(ev.StepPending(**run.place("x")))
    assert run.finish().status is RunStatus.CANCELLED


def test_a_budget_that_ends_in_mid_group_waits_for_the_lanes_under_way() -> None:
    run = Drive({"max_steps": 3, "steps": [mapped(tool("one"), max_concurrency=2)]}, items=[1, 2, 3]).start()
    run.begin("one", 0).begin("one", 1).succeed("one", 1, 0)
    assert run.commands() == []
    run.succeed("one", 2, 1).finish()
    assert run.status is RunStatus.BUDGET_EXCEEDED


def test_repeating_a_lane_beyond_the_budget_ends_the_run() -> None:
    run = Drive({"max_steps": 3, "steps": [TWO]}).start().begin("x").lose("x").begin("y").lose("y")
    run.resolve("x", "repeat")
    assert run.waits() == [("outcome", "y")]
    run.resolve("y", "failed")
    assert run.finish().status is RunStatus.BUDGET_EXCEEDED


# --- time-outs ----------------------------------------------------------------------------------------------


def test_a_group_that_takes_too_long_starts_nothing_more_and_lets_the_rest_settle() -> None:
    group = mapped(tool("one", on_error="retry"), max_concurrency=3, timeout_seconds=5)
    run = Drive({"steps": [group]}, items=[1, 2, 3, 4]).start()
    run.begin("one", 0).break_("one", item=1, draw=999_999)
    run.now += 10
    assert run.todo() == ["CallTool:one.2", "StartTimer:each", "StartTimer:one.1"]
    assert run.timer("each") is None
    assert run.commands() == []
    run.succeed("one", 1, 0).finish()
    assert run.state.error is not None
    assert run.state.error["type"] == "TIMEOUT"
    assert run.state.error["message"] == "one[1]: Boom, one[2]: TIMEOUT"


def test_a_timed_out_group_takes_its_fallback() -> None:
    group = parallel(tool("x"), tool("y"), timeout_seconds=5, on_timeout="fallback", fallback={"x": 0})
    run = Drive({"steps": [group, tool("b")]}).start().begin("x").ring("both").succeed("x", 1)
    assert run.todo() == ["CallTool:b"]
    assert run.settled[-1] == ("both", "SUCCESS", {"x": 0})
    assert run.state.last_output == {"x": 0}


@pytest.mark.parametrize("end", ["fail", "pending", "repeat"])
def test_a_lane_of_a_timed_out_group_is_not_tried_again(end: str) -> None:
    lanes = [tool("x", on_error="retry"), tool("y")]
    run = Drive(
        {
            "steps": [
                parallel(*lanes, timeout_seconds=5, on_failure="b"),
                tool("z", is_terminal=True),
                tool("b"),
            ]
        }
    )
    run.start().begin("x")
    if end == "repeat":
        run.lose("x")
    run.ring("both")
    if end == "fail":
        run.fail("x")
    elif end == "pending":
        run.must(ev.StepPending(**run.place("x")))
    else:
        assert run.waits() == [("outcome", "x")]
        run.resolve("x", "repeat", by="contract")
    assert run.todo() == ["CallTool:b"]


def test_a_retried_group_has_its_time_again() -> None:
    group = parallel(tool("x"), tool("y"), timeout_seconds=5, on_error="retry")
    run = Drive({"steps": [group]}).start().do("x").break_("y").ring("both")
    [_, timer] = run.commands()
    assert type(timer) is StartTimer
    assert timer.due_ms == run.now + 5_000


def test_timers_of_one_attempt_have_ids_of_their_own() -> None:
    group = parallel(tool("x"), tool("y"), timeout_seconds=5, on_error="retry")
    run = Drive({"steps": [group]}).start()
    ids = {c.id for c in run.commands()}
    run.do("x").break_("y")
    ids |= {c.id for c in run.commands()}
    run.ring("both")
    ids |= {c.id for c in run.commands()}
    assert sum(each.startswith("StartTimer:both") for each in ids) == 3


def test_the_final_output_is_the_groups_and_never_a_lanes() -> None:
    run = Drive({"steps": [tool("a"), TWO]}).start().do("a", "first").do("x", 1).break_("y").finish()
    assert run.state.last_output == "first"


def test_a_group_whose_first_lane_does_not_fit_the_budget_ends_the_run() -> None:
    run = Drive({"max_steps": 1, "steps": [TWO]}).start()
    assert run.todo() == ["Finish:"]
    assert run.finish().status is RunStatus.BUDGET_EXCEEDED
