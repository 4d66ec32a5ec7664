"""Whatever runs at once draws on one budget: nothing is spent twice, and nothing is refused that would have fitted."""

from __future__ import annotations

from typing import Any

import pytest
from runtime_stage import Opener, play, program, sound, tool_step, wait_step

from nano_vm import Completion, MockLLMAdapter, RunStatus, Usage


def llm(step_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "llm", "prompt": "?", **fields}


def calls(count: int) -> dict[str, Any]:
    lanes = [{"id": f"c{number}", "type": "call", "program": "child"} for number in range(count)]
    return {"id": "g", "type": "parallel", "parallel_steps": lanes}


class Metered:
    """A model that uses all the tokens it may, and has a price."""

    def __init__(self) -> None:
        self.calls = 0

    def price(self, model: Any) -> tuple[int, int]:
        return 1_000_000, 1_000_000  # $0.001 a token

    async def complete(self, messages: Any, max_tokens: int = 10) -> Completion:
        self.calls += 1
        usage = Usage(prompt_tokens=1, completion_tokens=max_tokens, cost_usd=(1 + max_tokens) / 1_000)
        return Completion(text="x", usage=usage)


@pytest.mark.parametrize("budget", [{"max_tokens": 100}, {"max_cost_usd": 0.1}])
def test_children_that_run_at_once_share_what_is_left(opener: Opener, budget: dict[str, Any]) -> None:
    model = Metered()
    vm = opener(llm=model)
    vm.save_program(
        program(*(llm(f"k{number}", params={"max_tokens": 9}) for number in range(4)), name="child")
    )
    trace = play(vm.run(program(calls(5), **budget)))
    assert model.calls > 0
    assert trace.total_tokens() <= 100
    assert trace.total_cost_usd() <= 0.1
    assert trace.status is not RunStatus.SUCCESS
    sound(vm, trace)


def test_children_that_run_at_once_share_the_steps(opener: Opener) -> None:
    done: list[int] = []
    vm = opener(tools={"act": lambda: done.append(1)})
    vm.save_program(program(*(tool_step(f"k{number}") for number in range(6)), name="child"))
    assert play(vm.run(program(calls(5), max_steps=14))).status is not RunStatus.SUCCESS
    assert len(done) <= 14
    done.clear()
    trace = play(vm.run(program(calls(5), tool_step("z"), max_steps=60)))
    assert (trace.status, len(done)) == (RunStatus.SUCCESS, 31)
    sound(vm, trace)


def test_a_child_that_runs_alone_may_spend_all_that_is_left_and_gives_back_the_rest(opener: Opener) -> None:
    vm = opener(tools={"act": lambda: 1})
    vm.save_program(program(wait_step("w"), tool_step("k"), name="child"))
    each = {"id": "m", "type": "map", "over": "$list", "max_concurrency": 1}
    flow = program({**each, "step": {"id": "c", "type": "call", "program": "child"}}, max_steps=10)

    async def main() -> None:
        trace = await vm.run(flow, {"list": [1, 2, 3]})
        while trace.status is RunStatus.SUSPENDED:
            trace = await vm.resume(trace.trace_id, len(trace.steps), name="go")
        assert trace.status is RunStatus.SUCCESS
        sound(vm, trace)

    play(main())


def test_model_calls_that_fit_one_after_another_wait_for_each_other(opener: Opener) -> None:
    model = MockLLMAdapter("x", usage={"prompt_tokens": 10, "completion_tokens": 10})
    vm = opener(llm=model)
    group = {"id": "g", "type": "parallel", "parallel_steps": [llm(f"s{number}") for number in range(5)]}
    trace = play(vm.run(program(group, max_tokens=2_000)))
    assert (trace.status, trace.total_tokens()) == (RunStatus.SUCCESS, 100)
    sound(vm, trace)


def test_a_model_that_ignores_its_limit_spends_beyond_it_once(opener: Opener) -> None:
    model = MockLLMAdapter("x", usage={"prompt_tokens": 1_000, "completion_tokens": 1_000})
    vm = opener(llm=model)
    flow = program({"id": "m", "type": "map", "over": [1] * 10, "step": llm("q")}, max_tokens=100)
    trace = play(vm.run(flow))
    assert (trace.status, model.call_count) == (RunStatus.BUDGET_EXCEEDED, 1)
    sound(vm, trace)
