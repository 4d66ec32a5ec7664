"""What calls a model or an effect in another way than the engine expects is told what to change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from nano_vm import Completion, ExecutionVM, InputError, ModelCache, ModelStore, NanoVMError, Planner, Program
from nano_vm.canonical import encode
from nano_vm.program.schema_faults import faults, wanted_by

ASK = {"name": "ask", "steps": [{"id": "ask", "type": "llm", "prompt": "hi"}]}


class Plain:
    def complete(self, messages: list[Any], **params: Any) -> str:
        return "yes"


class Streaming:
    async def complete(self, messages: list[Any], **params: Any) -> AsyncIterator[str]:
        yield "yes"


class Answers:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def complete(self, messages: list[Any], **params: Any) -> Any:
        return self.answer


@pytest.mark.parametrize("adapter", [Plain(), Streaming()])
def test_an_adapter_that_is_not_async_is_told_to_be(adapter: Any, tmp_path: Any) -> None:
    for llm in (adapter, ModelCache(adapter, ModelStore(tmp_path / "models"))):
        trace = ExecutionVM(llm=llm).run_sync(ASK)
        assert (trace.error or {})["type"] == "TypeError"
        assert "async def" in (trace.error or {})["message"]
    with pytest.raises(TypeError, match="async def"):
        Planner(adapter).generate_sync("say hello")


@pytest.mark.parametrize("answer", [("yes", "free"), ("yes", 5), Completion(text="yes", usage={"a": 1})])  # type: ignore[arg-type]
def test_usage_of_another_kind_is_named(answer: Any) -> None:
    trace = ExecutionVM(llm=Answers(answer)).run_sync(ASK)
    assert (trace.status, (trace.error or {})["type"]) == ("FAILED", "TypeError")
    assert "usage" in (trace.error or {})["message"]


def test_a_function_that_hands_on_a_coroutine_is_told_to_await_it() -> None:
    async def slow(n: int) -> int:
        return n

    vm = ExecutionVM(tools={"slow": lambda n: slow(n)})
    step = {"id": "s", "type": "tool", "tool": "slow", "args": {"n": 1}}
    trace = vm.run_sync({"name": "p", "steps": [step]})
    assert (trace.error or {})["type"] == "VALUE_NOT_JSON"
    assert "async def" in (trace.error or {})["message"]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"n": 0}, "minimum: 1"),
        ({"n": "secret"}, 'type: "integer"'),
        ({"n": 1, "l": ["secret"]}, 'enum: ["a","b"]'),
        ({}, 'required: ["n"]'),
    ],
)
def test_an_input_that_does_not_fit_says_what_would(value: Any, wanted: str) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1}, "l": {"items": {"$ref": "#/$defs/x"}}},
        "required": ["n"],
        "$defs": {"x": {"enum": ["a", "b"]}},
    }
    assert [wanted_by(schema, fault) for fault in faults(encode(schema), value)] == [wanted]
    program = {"name": "p", "inputs": schema, "steps": [{"id": "w", "type": "wait", "event": "e"}]}
    with pytest.raises(InputError) as caught:
        ExecutionVM().run_sync(program, value)
    assert caught.value.code in ("INPUT_INVALID", "INPUT_MISSING")
    assert "secret" not in str(caught.value)


def test_a_number_in_the_place_of_a_text_is_quoted_as_it_was_written() -> None:
    for version in ("1.0", "1.10", "2e0", "true"):
        with pytest.raises(NanoVMError) as caught:
            Program.from_yaml(f"name: p\nversion: {version}\nsteps: [{{id: w, type: wait, event: e}}]\n")
        assert (caught.value.code, caught.value.help) == ("WRONG_TYPE", f'write "{version}" in quotes')
