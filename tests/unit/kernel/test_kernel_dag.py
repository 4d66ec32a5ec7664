"""Declarative DAGs: a step runs when its dependencies have settled and at least one was taken."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus, StepStatus, snapshot
from unit.kernel.kernel_driving import Drive, compiled, tool

DIAMOND = {
    "steps": [
        tool("a"),
        tool("b", depends_on=["a"]),
        tool("c", depends_on=["a"]),
        tool("d", args={"b": "$b.output", "c": "$c.output"}, depends_on=["b", "c"]),
    ]
}
CHOICE = {
    "steps": [
        tool("a"),
        {
            "id": "q",
            "type": "condition",
            "condition": "$a.output == 1",
            "then": "yes",
            "otherwise": "no",
            "depends_on": ["a"],
        },
        tool("yes", depends_on=["q"]),
        tool("no", depends_on=["q"]),
        tool("no2", depends_on=["no"]),
        tool("join", depends_on=["yes", "no2"]),
    ]
}


def test_independent_steps_run_together_and_a_join_waits_for_all() -> None:
    run = Drive(DIAMOND).start().do("a")
    assert run.todo() == ["CallTool:b", "CallTool:c"]
    run.do("c", "C")
    assert run.todo() == ["CallTool:b"]
    run.do("b", "B")
    assert run.command("d").args == {"b": "B", "c": "C"}  # type: ignore[union-attr]
    assert run.do("d").finish().status is RunStatus.SUCCESS


def test_an_untaken_branch_is_skipped_and_so_is_what_only_it_leads_to() -> None:
    run = Drive(CHOICE).start().do("a", 1)
    assert run.todo() == ["CallTool:yes"]
    assert [(step, status) for step, status, _ in run.settled if status == "SKIPPED"] == [
        ("no", "SKIPPED"),
        ("no2", "SKIPPED"),
    ]
    assert run.offer(ev.StepStarted(**run.place("no"))) == "DUPLICATE"
    run.do("yes", 1)
    assert run.todo() == ["CallTool:join"]
    other = Drive(CHOICE).start().do("a", 2)
    assert other.todo() == ["CallTool:no"]
    assert other.do("no").do("no2").do("join").finish().status is RunStatus.SUCCESS


def test_a_step_none_of_whose_dependencies_was_taken_is_skipped_to_the_end() -> None:
    steps = [
        {"id": "q", "type": "condition", "condition": "$n == 1", "then": "x", "otherwise": "y"},
        tool("x"),
        tool("y"),
        tool("y2", depends_on=["y"]),
    ]
    run = Drive({"steps": steps}, n=1)
    if not run.program.is_dag:
        raise AssertionError("not a DAG")
    run.start().do("x").finish()
    assert run.status is RunStatus.SUCCESS
    assert ("y2", "SKIPPED", None) in run.settled


def test_a_failure_takes_its_own_edge_and_skips_the_others() -> None:
    steps = [
        tool("a", on_failure="mend"),
        tool("b", depends_on=["a"]),
        tool("mend", args={"why": "$a.error.type"}, depends_on=["a"]),
        tool("end", depends_on=["b", "mend"]),
    ]
    run = Drive({"steps": steps}).start().break_("a", "Broken")
    assert run.todo() == ["CallTool:mend"]
    assert ("b", "SKIPPED", None) in run.settled
    run.do("mend")
    assert run.todo() == ["CallTool:end"]
    well = Drive({"steps": steps}).start().do("a")
    assert well.todo() == ["CallTool:b"]
    assert ("mend", "SKIPPED", None) in well.settled


def test_a_step_that_its_author_let_be_skipped_counts_as_done() -> None:
    steps = [tool("a", on_error="skip"), tool("b", args={"v": "$a.output"}, depends_on=["a"])]
    run = Drive({"steps": steps}).start().break_("a")
    assert run.command("b").args == {"v": None}  # type: ignore[union-attr]


def test_a_failure_without_a_handler_ends_the_run_and_waits_for_what_is_under_way() -> None:
    run = Drive(DIAMOND).start().do("a").begin("b").break_("c")
    assert run.commands() == []
    run.succeed("b").finish()
    assert run.status is RunStatus.FAILED
    assert all(step != "d" for step, _, _ in run.settled)


def test_a_terminal_step_ends_a_dag_with_its_own_output() -> None:
    steps = [
        tool("root"),
        tool("t", depends_on=["root"], is_terminal=True),
        tool("slow", depends_on=["root"]),
    ]
    run = Drive({"steps": steps}).start().do("root").begin("slow").do("t", "T")
    assert run.commands() == []
    run.succeed("slow", "S").finish()
    assert run.status is RunStatus.SUCCESS
    assert run.state.last_output == "T"


def test_the_final_output_does_not_depend_on_who_finishes_last() -> None:
    steps = [tool("root"), *(tool(name, depends_on=["root"]) for name in "xyz")]
    outputs = set()
    for order in permutations("xyz"):
        run = Drive({"steps": steps}).start().do("root")
        for name in order:
            run.do(name, name.upper())
        outputs.add(run.finish().state.last_output)
    assert outputs == {"Z"}


def test_a_group_is_one_step_of_a_dag() -> None:
    group = {"id": "g", "type": "parallel", "parallel_steps": [tool("x"), tool("y")], "depends_on": ["a"]}
    run = (
        Drive({"steps": [tool("a"), group, tool("z", depends_on=["g"])]})
        .start()
        .do("a")
        .do("x", 1)
        .do("y", 2)
    )
    assert run.todo() == ["CallTool:z"]


def test_a_budget_ends_a_dag_before_the_step_that_does_not_fit() -> None:
    run = Drive({**DIAMOND, "max_steps": 2}).start().do("a").finish()
    assert run.status is RunStatus.BUDGET_EXCEEDED


def test_a_long_skip_is_told_without_recursion() -> None:
    count = 3_000
    steps: list[dict[str, Any]] = [
        {"id": "q", "type": "condition", "condition": "$n == 1", "then": "x", "otherwise": "s0"},
        tool("x"),
        tool("s0"),
        *(tool(f"s{i}", depends_on=[f"s{i - 1}"]) for i in range(1, count)),
    ]
    program = compiled({"max_steps": count, "steps": steps})
    run = Drive(program, n=1).start()
    skipped = [each for each in run.state.settled if each.status is StepStatus.SKIPPED]
    assert len(skipped) == count
    assert run.todo() == ["CallTool:x"]
    assert snapshot(run.state)


def test_an_untaken_condition_is_skipped_with_both_its_branches() -> None:
    inner = {"id": "q2", "type": "condition", "condition": "$n == 1", "then": "x2", "otherwise": "y2"}
    steps = [
        {"id": "q1", "type": "condition", "condition": "$n == 1", "then": "x", "otherwise": "q2"},
        tool("x"),
        {**inner, "depends_on": ["q1"]},
        tool("x2"),
        tool("y2"),
        tool("join", depends_on=["x", "x2", "y2"]),
    ]
    run = Drive({"steps": steps}, n=1).start()
    assert [step for step, status, _ in run.settled if status == "SKIPPED"] == ["q2", "x2", "y2"]
    run.do("x")
    assert run.todo() == ["CallTool:join"]
