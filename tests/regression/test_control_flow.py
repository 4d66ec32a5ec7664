"""Control flow of the packages that came before: each of these went wrong there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from regression_stage import DONE, Tools, ask, decide, findings, play, program, run, tool_step

from nano_vm import PENDING, ExecutionVM, MockLLMAdapter, ProgramError, RunStatus, tool


def nested(**approve: Any) -> dict[str, Any]:
    return program(
        tool_step("score"),
        decide("first", "$score.output >= 5", "second", "reject"),
        decide("second", "$score.output >= 7", "approve", "reject"),
        tool_step("approve", **approve),
        tool_step("reject", **DONE),
    )


def test_an_approval_behind_two_conditions_never_falls_on_into_the_rejection() -> None:
    assert "AMBIGUOUS_BRANCH" in findings(nested())
    tools = Tools("approve", "reject", score=9)
    with pytest.raises(ProgramError):
        run(ExecutionVM(tools=tools), nested())
    assert tools.calls == []
    run(ExecutionVM(tools=tools), nested(**DONE))
    assert tools.calls == ["score", "approve"]


@pytest.mark.parametrize("waits", ["tool", "wait"])
def test_a_confirmed_payment_goes_on_where_its_program_says_and_not_at_the_next_index(waits: str) -> None:
    pause: dict[str, Any] = {"id": "pay", "type": "wait", "event": "confirmed"}
    if waits == "tool":
        pause = tool_step("pay")
    data = program(
        tool_step("score"),
        decide("choose", "$score.output > 1", "pay", "reject"),
        {**pause, "next_step": "ship"},
        tool_step("reject", **DONE),
        tool_step("ship", **DONE),
    )
    tools = Tools("reject", "ship", score=9, pay=PENDING)

    async def main() -> None:
        vm = ExecutionVM(tools=tools)
        parked = await vm.run(data)
        assert parked.status is RunStatus.SUSPENDED
        trace = await vm.resume(parked.trace_id, {"ok": True}, step="pay")
        assert trace.status is RunStatus.SUCCESS
        assert trace.path == ["score", "choose", "pay", "ship"]

    play(main())
    assert "reject" not in tools.calls


def test_a_resumed_terminal_step_ends_the_run() -> None:
    data = program(
        tool_step("score"),
        decide("choose", "$score.output > 1", "pay", "reject"),
        tool_step("pay", **DONE),
        tool_step("reject", **DONE),
    )
    tools = Tools("reject", score=9, pay=PENDING)

    async def main() -> None:
        vm = ExecutionVM(tools=tools)
        trace = await vm.resume((await vm.run(data)).trace_id, "paid")
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "paid")

    play(main())
    assert tools.calls == ["score", "pay"]


def test_branch_targets_count_against_the_budget() -> None:
    data = program(
        tool_step("a"),
        decide("c", "$a.output == 'a'", "b", "z"),
        tool_step("b", **DONE),
        tool_step("z", **DONE),
    )
    tools = Tools("a", "b", "z")
    assert run(ExecutionVM(tools=tools), {**data, "max_steps": 2}).status is RunStatus.BUDGET_EXCEEDED
    assert tools.calls == ["a"]
    assert run(ExecutionVM(tools=tools), {**data, "max_steps": 3}).status is RunStatus.SUCCESS


def test_parallel_model_calls_cannot_spend_beyond_the_token_budget() -> None:
    model = MockLLMAdapter("x", usage={"prompt_tokens": 1_000, "completion_tokens": 1_000})
    subs = [ask(f"s{number}") for number in range(10)]
    data = program({"id": "g", "type": "parallel", "parallel_steps": subs}, max_tokens=100)
    trace = run(ExecutionVM(llm=model), data)
    assert trace.status is RunStatus.BUDGET_EXCEEDED
    assert len(model.calls) <= 1


def test_parallel_sub_steps_count_against_the_step_budget() -> None:
    tools = Tools("act")
    subs = [tool_step(f"s{number}", "act") for number in range(10)]
    data = program({"id": "g", "type": "parallel", "parallel_steps": subs}, max_steps=5)
    assert run(ExecutionVM(tools=tools), data).status is RunStatus.BUDGET_EXCEEDED
    assert len(tools.calls) <= 5


def test_a_concurrency_of_nothing_is_refused_instead_of_hanging() -> None:
    subs = [tool_step("a")]
    data = program({"id": "g", "type": "parallel", "max_concurrency": 0, "parallel_steps": subs})
    assert findings(data) == {"BAD_VALUE"}


def test_time_outs_of_tools_are_obeyed() -> None:
    @tool(effect="idempotent")
    async def hang() -> None:
        await asyncio.Event().wait()

    trace = run(ExecutionVM(tools={"hang": hang}), program(tool_step("hang", timeout_seconds=0.01)))
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "TIMEOUT")


def test_a_program_that_goes_round_for_ever_is_refused_or_ended() -> None:
    tools = Tools("a")
    assert "CYCLE_WITHOUT_EXIT" in findings(program(tool_step("a", next_step="a"), max_steps=50))
    loop = program(
        tool_step("a"), decide("c", "$a.output == 'b'", "z", "a"), tool_step("z", "a"), max_steps=50
    )
    assert run(ExecutionVM(tools=tools), loop).status is RunStatus.BUDGET_EXCEEDED
    assert len(tools.calls) <= 50


def test_a_poll_loop_with_an_exit_and_a_budget_is_valid() -> None:
    loop = program(
        tool_step("a"), decide("c", "$a.output == 'b'", "z", "a"), tool_step("z", **DONE), max_steps=50
    )
    assert findings(loop) <= {"NO_FAILURE_TERMINAL"}


def test_a_thousand_steps_in_a_row_are_checked_and_run() -> None:
    data = program(*(tool_step(f"s{number}", "act") for number in range(1_000)))
    tools = Tools("act")
    assert findings(data) == set()
    assert run(ExecutionVM(tools=tools), data).status is RunStatus.SUCCESS
    assert len(tools.calls) == 1_000


def test_unknown_tools_and_undefined_variables_are_found_before_the_run() -> None:
    data = program(
        tool_step("a", "nobody", args={"x": "$nothing"}), inputs={"type": "object", "properties": {}}
    )
    assert {"UNKNOWN_TOOL", "UNKNOWN_REFERENCE"} <= findings(data, Tools("a"))
