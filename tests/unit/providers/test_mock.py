"""The mock: constant, sequence, map; failures, usage and latencies as scripted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nano_vm import Completion, MockLLMAdapter, ToolCall, Usage


def ask(adapter: MockLLMAdapter, text: str = "hello", **params: Any) -> Completion:
    return asyncio.run(adapter.complete([{"role": "user", "content": text}], **params))


def test_constant_sequence_and_map() -> None:
    assert [ask(MockLLMAdapter("yes")).text, ask(MockLLMAdapter()).text, ask(MockLLMAdapter([])).text] == [
        "yes",
        "",
        "",
    ]
    sequence = MockLLMAdapter(["a", "b"])
    assert [ask(sequence).text for _ in range(3)] == ["a", "b", "a"]
    mapping = MockLLMAdapter({"risk": "low", "name": "Ada", "__default__": "ok"})
    assert [ask(mapping, text).text for text in ("the risk?", "name", "else")] == ["low", "Ada", "ok"]
    assert ask(MockLLMAdapter({"risk": "low"}), "else").text == ""


def test_a_map_answers_the_last_user_message_whatever_else_is_there() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "risk"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "c1", "content": "name"},
    ]
    mapping = MockLLMAdapter({"risk": "low", "name": "Ada"})
    assert asyncio.run(mapping.complete(messages)).text == "low"


def test_failures_and_whole_completions_are_answers_too() -> None:
    whole = Completion(tool_calls=(ToolCall("c1", "pay", "{}"),), usage=Usage(prompt_tokens=1))
    adapter = MockLLMAdapter([ValueError("no"), whole, "done"], usage={"prompt_tokens": 3, "cost_usd": 0.5})
    with pytest.raises(ValueError, match="no"):
        ask(adapter, tools=[])
    assert ask(adapter) is whole
    assert ask(adapter).usage == Usage(prompt_tokens=3, cost_usd=0.5)
    assert adapter.call_count == 3
    assert adapter.params[0] == {"tools": []}
    adapter.reset()
    assert (adapter.call_count, adapter.params) == (0, [])
    with pytest.raises(ValueError, match="no"):
        ask(adapter)
    with pytest.raises(KeyError):
        ask(MockLLMAdapter({"hello": KeyError("x")}))


def test_latencies_are_waited_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    adapter = MockLLMAdapter("yes", latency_seconds=[0.5, 0, 2])
    for _ in range(4):
        ask(adapter)
    ask(MockLLMAdapter("yes", latency_seconds=3))
    assert waited == [0.5, 2, 0.5, 3]
