"""Every type of step and what its fields do, through the public API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from runtime_stage import Counter, Opener, kinds, play, program, refused, sound, tool_step, wait_step

from nano_vm import MockLLMAdapter, RunStatus


def echo(value: Any = None) -> Any:
    return value


def test_typed_arguments_keep_their_type_and_text_interpolates(opener: Opener) -> None:
    vm = opener(tools={"echo": echo})
    args = {"value": {"n": "$n", "text": "n is $n, ${list}", "cash": "$$5", "deep": ["$list"]}}
    trace = play(vm.run(program(tool_step("a", "echo", args=args)), {"n": 5, "list": [1, "x"]}))
    assert trace.final_output == {"n": 5, "text": 'n is 5, [1,"x"]', "cash": "$5", "deep": [[1, "x"]]}
    sound(vm, trace)


def test_a_value_is_never_scanned_for_references_again(opener: Opener) -> None:
    vm = opener(tools={"echo": echo}, llm=MockLLMAdapter("$secret ${secret}"))
    steps = [
        {"id": "ask", "type": "llm", "prompt": "Q $user", "output_key": "answer"},
        tool_step("a", "echo", args={"value": "$answer"}),
    ]
    trace = play(vm.run(program(*steps), {"user": "$secret"}))
    assert trace.final_output == "$secret ${secret}"


def test_a_condition_takes_one_branch_and_the_other_never_runs(opener: Opener) -> None:
    count = Counter()

    def act(name: str) -> None:
        count(name)

    steps = [
        {"id": "c1", "type": "condition", "condition": "$n > 1", "then": "c2", "otherwise": "reject"},
        {"id": "c2", "type": "condition", "condition": "$n > 2", "then": "approve", "otherwise": "reject"},
        tool_step("approve", args={"name": "approve"}, is_terminal=True, outcome="approved"),
        tool_step(
            "reject", args={"name": "reject"}, is_terminal=True, final_status="FAILED", outcome="rejected"
        ),
    ]
    vm = opener(tools={"act": act})
    approved = play(vm.run(program(*steps), {"n": 3}))
    rejected = play(vm.run(program(*steps), {"n": 2}))
    assert (approved.status, approved.outcome) == (RunStatus.SUCCESS, "approved")
    assert (rejected.status, rejected.outcome) == (RunStatus.FAILED, "rejected")
    assert count.effects == ["approve", "reject"]
    assert approved.path == ["c1", "c2", "approve"]


def test_a_missing_branch_fails_the_run(opener: Opener) -> None:
    vm = opener(tools={"echo": echo})
    steps = [{"id": "c", "type": "condition", "condition": "$n > 1", "then": "a"}, tool_step("a", "echo")]
    trace = play(vm.run(program(*steps), {"n": 1}))
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "NO_BRANCH")
    sound(vm, trace)


def test_resume_obeys_branch_next_step_and_terminal(opener: Opener) -> None:
    count = Counter()

    def act(name: str) -> None:
        count(name)

    steps = [
        wait_step("confirm", output_key="answer"),
        {
            "id": "c",
            "type": "condition",
            "condition": "$answer.ok == true",
            "then": "pay",
            "otherwise": "reject",
        },
        tool_step("pay", args={"name": "pay"}, next_step="mail"),
        tool_step("reject", args={"name": "reject"}, is_terminal=True),
        tool_step("mail", args={"name": "mail"}, is_terminal=True),
    ]
    vm = opener(tools={"act": act})

    async def main() -> None:
        trace = await vm.run(program(*steps))
        sound(vm, trace)
        trace = await vm.resume(trace.trace_id, {"ok": True})
        assert trace.status is RunStatus.SUCCESS
        assert count.effects == ["pay", "mail"]
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_parallel_keeps_declared_order_and_its_concurrency(opener: Opener, limit: int | None) -> None:
    under_way = most = 0

    async def act(name: str) -> str:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range({"a": 9, "b": 5, "c": 1}[name]):
            await asyncio.sleep(0)
        under_way -= 1
        return name

    group: dict[str, Any] = {
        "id": "g",
        "type": "parallel",
        "parallel_steps": [tool_step(name, args={"name": name}) for name in "abc"],
    }
    if limit:
        group["max_concurrency"] = limit
    vm = opener(tools={"act": act})
    trace = play(vm.run(program(group)))
    assert list(trace.final_output.items()) == [("a", "a"), ("b", "b"), ("c", "c")]
    assert most == (limit or 3)
    sound(vm, trace)


def test_one_failure_hides_neither_effects_nor_tokens_of_its_siblings(opener: Opener) -> None:
    def broken() -> None:
        raise ValueError("no")

    count = Counter()

    def act() -> str:
        count("act")
        return "done"

    group = {
        "id": "g",
        "type": "parallel",
        "parallel_steps": [
            tool_step("bad", "broken"),
            tool_step("good"),
            {"id": "ask", "type": "llm", "prompt": "hello"},
        ],
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "cost_usd": 0.25}
    vm = opener(tools={"broken": broken, "act": act}, llm=MockLLMAdapter("hi", usage=usage))
    trace = play(vm.run(program(group)))
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "SUBSTEP_FAILED")
    assert {step.id: step.status.value for step in trace.steps} == {
        "bad": "FAILED",
        "good": "SUCCESS",
        "ask": "SUCCESS",
        "g": "FAILED",
    }
    assert (trace.total_tokens(), trace.total_cost_usd(), count.effects) == (12, 0.25, ["act"])
    sound(vm, trace)


def test_a_retried_parallel_repeats_only_what_failed(opener: Opener) -> None:
    count = Counter()

    def act(name: str) -> str:
        count(name)
        if name == "b" and count.count("b") < 3:
            raise ValueError
        return name

    group = {
        "id": "g",
        "type": "parallel",
        "on_error": "retry",
        "parallel_steps": [tool_step(name, args={"name": name}) for name in "ab"],
    }
    vm = opener(tools={"act": act})
    trace = play(vm.run(program(group)))
    assert trace.final_output == {"a": "a", "b": "b"}
    assert (count.count("a"), count.count("b")) == (1, 3)
    sound(vm, trace)


def test_map_runs_a_step_for_every_element_in_order(opener: Opener) -> None:
    async def act(item: int, index: int) -> int:
        for _ in range(5 - index):
            await asyncio.sleep(0)
        return item * 10 + index

    step = {
        "id": "m",
        "type": "map",
        "over": "$list",
        "max_concurrency": 2,
        "step": tool_step("one", args={"item": "$item", "index": "$index"}),
    }
    vm = opener(tools={"act": act})
    assert play(vm.run(program(step), {"list": [3, 1, 2]})).final_output == [30, 11, 22]
    assert play(vm.run(program(step), {"list": []})).final_output == []


def test_a_map_that_is_too_long_fails_before_its_first_element(opener: Opener) -> None:
    count = Counter()
    step = {
        "id": "m",
        "type": "map",
        "over": "$list",
        "max_items": 2,
        "step": tool_step("one", args={"effect": "$item"}),
    }
    vm = opener(tools={"act": lambda effect: count(effect)})
    trace = play(vm.run(program(step), {"list": [1, 2, 3]}))
    assert (trace.status, trace.error["type"], count.effects) == (RunStatus.FAILED, "TOO_MANY_ITEMS", [])
    trace = play(vm.run(program(step), {"list": "text"}))
    assert trace.error["type"] == "NOT_A_LIST"


def test_siblings_of_a_failed_element_finish_and_keep_their_effects(opener: Opener) -> None:
    count = Counter()

    def act(effect: int) -> None:
        if effect == 2:
            raise ValueError
        count(effect)

    step = {"id": "m", "type": "map", "over": "$list", "step": tool_step("one", args={"effect": "$item"})}
    trace = play(opener(tools={"act": act}).run(program(step), {"list": [1, 2, 3]}))
    assert trace.status is RunStatus.FAILED
    assert sorted(count.effects) == [1, 3]


def test_a_dag_runs_what_is_independent_at_once_and_skips_what_was_not_taken(opener: Opener) -> None:
    seen: list[str] = []

    async def act(name: str) -> str:
        seen.append(f"+{name}")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        seen.append(f"-{name}")
        return name

    steps = [
        tool_step("a", args={"name": "a"}, depends_on=[]),
        tool_step("b", args={"name": "b"}, depends_on=[]),
        {
            "id": "c",
            "type": "condition",
            "condition": "$a.output == 'a'",
            "then": "yes",
            "otherwise": "no",
            "depends_on": ["a", "b"],
        },
        tool_step("yes", args={"name": "yes"}, depends_on=["c"]),
        tool_step("no", args={"name": "no"}, depends_on=["c"]),
        tool_step("end", args={"name": "end"}, depends_on=["yes", "no"]),
    ]
    vm = opener(tools={"act": act})
    trace = play(vm.run(program(*steps)))
    assert trace.status is RunStatus.SUCCESS
    assert seen[:2] == ["+a", "+b"]
    assert "+no" not in seen
    assert trace.step("no").status.value == "SKIPPED"
    sound(vm, trace)


def test_a_loop_ends_by_its_budget_or_its_exit(opener: Opener) -> None:
    def act(n: int) -> int:
        return n + 1

    steps = [
        tool_step("start", args={"n": 0}, output_key="n"),
        {"id": "c", "type": "condition", "condition": "$n < 5", "then": "more", "otherwise": "end"},
        tool_step("more", args={"n": "$n"}, output_key="n2", next_step="set"),
        tool_step("set", "echo", args={"value": "$n2"}, next_step="end"),
        tool_step("end", "echo", args={"value": "done"}, is_terminal=True),
    ]
    vm = opener(tools={"act": act, "echo": echo})
    assert play(vm.run(program(*steps))).status is RunStatus.SUCCESS
    loop = program(
        tool_step("a", args={"n": 1}),
        {"id": "c", "type": "condition", "condition": "$a.output == 99", "then": "end", "otherwise": "a"},
        tool_step("end", "echo", is_terminal=True),
        max_steps=11,
    )
    trace = play(vm.run(loop))
    assert trace.status is RunStatus.BUDGET_EXCEEDED
    sound(vm, trace)


def test_inputs_are_checked_before_anything_starts(opener: Opener) -> None:
    count = Counter()
    vm = opener(tools={"act": lambda: count(1)})
    declared = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}, "required": ["n"]}
    checked = program(tool_step("a"), inputs=declared)

    async def main() -> None:
        with refused("INPUT_MISSING"):
            await vm.run(checked)
        with refused("INPUT_UNKNOWN"):
            await vm.run(checked, {"n": 1, "m": 2})
        with refused("INPUT_INVALID"):
            await vm.run(checked, {"n": 6})
        with refused("VALUE_NOT_JSON"):
            await vm.run(checked, {"n": {1, 2}})
        with refused("INPUT_MISSING"):
            await vm.run(program(tool_step("a", args={"x": "$nowhere"}), name="q") | {}, {})

    vm.tools.add(lambda x=0: count(x), "act")
    play(main())
    assert count.effects == []
    assert vm.runs() == []


def test_a_program_that_is_wrong_never_starts(opener: Opener) -> None:
    vm = opener(tools={"echo": echo})
    with refused("UNKNOWN_TOOL"):
        play(vm.run(program(tool_step("a", "eco"))))
    assert vm.runs() == []


def test_intents_come_before_effects_and_outcomes_before_results(opener: Opener) -> None:
    vm = opener(tools={})
    seen: list[list[str]] = []

    async def act() -> str:
        (record,) = vm.runs()
        seen.append(list(kinds(vm.trace(record.run_id))))
        return "x"

    vm.register_tool("act", act)
    trace = play(vm.run(program(tool_step("a"), tool_step("b"))))
    assert seen[0] == ["RunStarted", "StepStarted"]
    assert seen[1] == ["RunStarted", "StepStarted", "StepSucceeded", "StepStarted"]
    assert kinds(trace)[-1] == "RunFinished"
