"""Model steps: adapters of every accepted shape, gates, and what a model may see (P2, P8)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from runtime_stage import Opener, play, program, sound, tool_step

from nano_vm import Completion, MockLLMAdapter, RunStatus, ToolCall, Usage


def ask(step_id: str = "ask", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "llm", "prompt": "Decide: $q", **fields}


class Bare:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.seen: list[Any] = []

    async def complete(self, messages: list[dict[str, Any]]) -> Any:
        self.seen.append([dict(message) for message in messages])
        messages.append({"role": "user", "content": "tampered"})
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Open(Bare):
    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Any:
        self.params = params
        params.get("nested", {}).clear()
        return await super().complete(messages)


class Named(Bare):
    async def complete(self, messages: list[dict[str, Any]], temperature: float = 1.0) -> Any:
        self.temperature = temperature
        return await super().complete(messages)


@pytest.mark.parametrize(
    ("answer", "tokens", "cost"),
    [
        ("yes", 0, 0.0),
        (
            Completion(
                text="yes", usage=Usage(prompt_tokens=3, completion_tokens=4, cost_usd=0.5), model="m"
            ),
            7,
            0.5,
        ),
        (("yes", {"prompt_tokens": 3, "completion_tokens": 4, "cost_usd": None}), 7, 0.0),
        (("yes", {"prompt_tokens": None}), 0, 0.0),
        (("yes", None), 0, 0.0),
    ],
)
def test_adapters_may_answer_in_several_ways(opener: Opener, answer: Any, tokens: int, cost: float) -> None:
    for adapter in (Bare(answer), Open(answer), Named(answer)):
        vm = opener(llm=adapter)
        trace = play(vm.run(program(ask(params={"temperature": 0.5, "nested": {"deep": 1}})), {"q": "now?"}))
        assert (trace.final_output, trace.total_tokens(), trace.total_cost_usd()) == ("yes", tokens, cost)
        assert adapter.seen == [[{"role": "user", "content": "Decide: now?"}]]
        sound(vm, trace)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        7,
        {"text": "yes"},
        ("yes", {"prompt_tokens": -1}),
        ("yes", {"prompt_tokens": 1.5}),
        ("yes", {"cost_usd": float("nan")}),
        ("yes", {"cost_usd": -1}),
        Completion(text="yes", usage=Usage(prompt_tokens=10**18)),
        Completion(text=5),  # type: ignore[arg-type]
        "lone \ud800",
        ValueError("down"),
        SystemExit(1),
        asyncio.CancelledError(),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_whatever_an_adapter_does_is_a_failure_of_the_step(opener: Opener, answer: Any) -> None:
    vm = opener(llm=Bare(answer))
    trace = play(vm.run(program(ask()), {"q": 1}))
    assert trace.status is RunStatus.FAILED
    sound(vm, trace)


def test_without_an_adapter_the_step_fails(opener: Opener) -> None:
    assert play(opener().run(program(ask()), {"q": 1})).error["type"] == "NO_MODEL"


def test_the_enum_gate_strips_and_folds(opener: Opener) -> None:
    vm = opener(llm=MockLLMAdapter(["  Yes\n", "yes.", "YES"]))
    gate: dict[str, Any] = {"allowed_outputs": ["yes", "no"]}
    assert play(vm.run(program(ask(**gate, normalize="casefold")), {"q": 1})).final_output == "yes"
    assert play(vm.run(program(ask(**gate)), {"q": 1})).error["type"] == "GATE"
    skipped = play(vm.run(program(ask(**gate, on_error="skip")), {"q": 1}))
    assert (skipped.final_output, skipped.step("ask").substituted) == ("yes", True)


def test_a_retry_is_told_what_was_wrong_and_nothing_else(opener: Opener) -> None:
    adapter = Bare("not json", '{"n": "x"}', '```json\n{"n": 5}\n```')
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    vm = opener(llm=adapter, tools={"act": lambda: "secret"})
    steps = [tool_step("a"), ask(output_schema=schema, on_error="retry", system="Be brief.")]
    trace = play(vm.run(program(*steps, max_tokens=90_000), {"q": "?", "card": "4111"}))
    assert trace.final_output == {"n": 5}
    assert [len(messages) for messages in adapter.seen] == [2, 4, 6]
    assert adapter.seen[1][:2] == adapter.seen[0]
    assert [message["role"] for message in adapter.seen[2]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    shown = str(adapter.seen)
    assert "secret" not in shown
    assert "4111" not in shown
    assert "90000" not in shown
    assert trace.step("ask").attempts == 3
    sound(vm, trace)


def test_rejected_answers_are_paid_for(opener: Opener) -> None:
    vm = opener(
        llm=MockLLMAdapter(
            ["maybe", "yes"], usage={"prompt_tokens": 10, "completion_tokens": 1, "cost_usd": 0.1}
        )
    )
    trace = play(vm.run(program(ask(allowed_outputs=["yes"], on_error="retry")), {"q": 1}))
    assert (trace.total_tokens(), trace.total_cost_usd()) == (22, 0.2)


def test_a_slow_model_times_out_or_falls_back(opener: Opener) -> None:
    class Slow:
        async def complete(self, messages: Any) -> str:
            await asyncio.Event().wait()
            return ""

    vm = opener(llm=Slow())
    late = play(vm.run(program(ask(timeout_seconds=0.01)), {"q": 1}))
    assert late.error["type"] == "TIMEOUT"
    fallback = ask(timeout_seconds=0.01, on_timeout="fallback", fallback="none")
    trace = play(vm.run(program(fallback), {"q": 1}))
    assert (trace.final_output, trace.step("ask").substituted) == ("none", True)


def test_a_model_call_in_flight_at_a_crash_is_made_again(opener: Opener) -> None:
    adapter = Bare(KeyboardInterrupt(), "yes")

    async def main() -> None:
        with pytest.raises(KeyboardInterrupt):
            await opener(llm=adapter).run(program(ask()), {"q": 1}, trace_id="r")
        vm = opener(llm=adapter)
        (trace,) = await vm.recover()
        assert trace.final_output == "yes"
        sound(vm, trace)

    play(main())


def test_cancelling_does_not_wait_for_a_model(opener: Opener) -> None:
    started = asyncio.Event()

    class Slow:
        async def complete(self, messages: Any) -> str:
            started.set()
            await asyncio.Event().wait()
            return ""

    async def main() -> None:
        vm = opener(llm=Slow())
        running = asyncio.ensure_future(vm.run(program(ask()), {"q": 1}, trace_id="r"))
        await started.wait()
        trace = await vm.cancel("r")
        assert trace.status is (await running).status is RunStatus.CANCELLED
        sound(vm, trace)

    play(main())


def test_tool_calls_in_an_answer_to_a_step_without_tools_are_a_paid_failure(opener: Opener) -> None:
    call = ToolCall("c1", "pay", "{}")
    answer = Completion(text="yes", tool_calls=(call,), usage=Usage(prompt_tokens=3), model="m")
    vm = opener(llm=Bare(answer))
    trace = play(vm.run(program(ask()), {"q": "now?"}))
    assert trace.status is RunStatus.FAILED
    assert trace.error is not None
    assert trace.error["type"] == "MODEL_REPLY"
    assert trace.total_tokens() == 3
    sound(vm, trace)


@pytest.mark.parametrize("calls", [("pay",), ({"id": "c1"},), (ToolCall("c1", "pay", {}),)])  # type: ignore[arg-type]
def test_tool_calls_that_are_none_are_a_failure(opener: Opener, calls: Any) -> None:
    vm = opener(llm=Bare(Completion(tool_calls=calls)))
    trace = play(vm.run(program(ask()), {"q": "now?"}))
    assert trace.error is not None
    assert trace.error["type"] == "TypeError"
    sound(vm, trace)


def test_what_a_failed_attempt_has_cost_is_paid_for(opener: Opener) -> None:
    class Truncated(Exception):
        usage = Usage(prompt_tokens=5, completion_tokens=7, cost_usd=0.25)

    class Absurd(Exception):
        usage = Usage(prompt_tokens=-5)

    vm = opener(llm=Bare(Truncated(), Absurd(), "yes"))
    trace = play(vm.run(program(ask(on_error="retry", retry={"initial": 0.001})), {"q": "now?"}))
    assert (trace.final_output, trace.total_tokens(), trace.total_cost_usd()) == ("yes", 12, 0.25)
    sound(vm, trace)


@pytest.mark.parametrize(
    "text",
    [
        '{"risk": "low", "risk": "high"}',
        '{"risk": NaN}',
        '{"risk": "low"} ',
        "[" * 5_000,
        "x" * (1024 * 1024 + 1),
    ],
)
def test_what_readers_would_not_agree_on_misses_the_gate(opener: Opener, text: str) -> None:
    schema = {"type": "object", "properties": {"risk": {"enum": ["low", "high"]}}, "required": ["risk"]}
    vm = opener(llm=Bare(text))
    trace = play(vm.run(program(ask(output_schema=schema)), {"q": "now?"}))
    if text == '{"risk": "low"} ':
        assert trace.final_output == {"risk": "low"}
    else:
        assert trace.error is not None
        assert trace.error["type"] == "GATE"
    sound(vm, trace)
