"""Scripts of answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nano_vm.errors import InputError
from nano_vm.providers.script import ScriptError, load_script
from nano_vm.runtime.ports import ToolCall


def ask(adapter: Any, prompt: str = "hello") -> Any:
    return asyncio.run(adapter.complete([{"role": "user", "content": prompt}]))


def script(tmp_path: Path, text: str, name: str = "script.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_text_is_always_the_answer(tmp_path: Path) -> None:
    adapter = load_script(script(tmp_path, '"yes"', "s.json"))
    assert [ask(adapter).text, ask(adapter).text] == ["yes", "yes"]


def test_a_mapping_answers_by_what_the_prompt_contains(tmp_path: Path) -> None:
    adapter = load_script(script(tmp_path, "damaged: low\n__default__: high\n"))
    assert ask(adapter, "it arrived damaged").text == "low"
    assert ask(adapter, "give me money").text == "high"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.yaml", "- one\n- {text: two, prompt_tokens: 3, completion_tokens: 4, cost_usd: 0.5, model: m}\n"),
        (
            "s.jsonl",
            '"one"\n\n{"text":"two","prompt_tokens":3,"completion_tokens":4,"cost_usd":0.5,"model":"m"}\n',
        ),
    ],
)
def test_a_sequence_ends(tmp_path: Path, name: str, text: str) -> None:
    adapter = load_script(script(tmp_path, text, name))
    assert ask(adapter).text == "one"
    second = ask(adapter)
    assert (second.text, second.model) == ("two", "m")
    assert (second.usage.prompt_tokens, second.usage.completion_tokens, second.usage.cost_usd) == (3, 4, 0.5)
    with pytest.raises(ScriptError) as caught:
        ask(adapter)
    assert (caught.value.code, caught.value.retryable) == ("SCRIPT_EXHAUSTED", False)


def test_a_script_can_fail_on_purpose(tmp_path: Path) -> None:
    adapter = load_script(script(tmp_path, "- {error: MODEL_HTTP, retryable: false}\n"))
    with pytest.raises(ScriptError) as caught:
        ask(adapter)
    assert (caught.value.code, caught.value.retryable) == ("MODEL_HTTP", False)


def test_a_script_can_propose_tool_calls(tmp_path: Path) -> None:
    text = """
- tool_calls: [{name: pay, arguments: {amount: 5}}, {name: look}, {name: pay, arguments: "{not json"}]
  prompt_tokens: 3
- {text: Done., tool_calls: []}
"""
    adapter = load_script(script(tmp_path, text))
    first = ask(adapter)
    assert first.tool_calls == (
        ToolCall("call_1_0", "pay", '{"amount":5}'),
        ToolCall("call_1_1", "look", "{}"),
        ToolCall("call_1_2", "pay", "{not json"),
    )
    assert (first.text, first.usage.prompt_tokens) == ("", 3)
    assert ask(adapter).tool_calls == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.yaml", "- {tool_calls: 7}\n"),
        ("s.yaml", "- {tool_calls: [{arguments: {}}]}\n"),
        ("s.yaml", "- {tool_calls: [{name: pay, id: x}]}\n"),
        ("s.yaml", "- {text: a, model: 7}\n"),
        ("s.yaml", "- {text: a, latency_seconds: long}\n"),
        ("s.yaml", "7\n"),
        ("s.yaml", ""),
        ("s.yaml", "a: [1]\n"),
        ("s.yaml", "- 7\n"),
        ("s.yaml", "- {txt: yes}\n"),
        ("s.yaml", "- {text: 'a', error: b}\n"),
        ("s.yaml", "- {text: 7}\n"),
        ("s.yaml", "- {text: a, prompt_tokens: many}\n"),
        ("s.yaml", "- {text: a, cost_usd: much}\n"),
        ("s.json", '["a",'),
        ("s.jsonl", '"a"\n{"text":\n'),
    ],
)
def test_what_is_no_script_is_refused_with_its_place(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        load_script(script(tmp_path, text, name))
    assert caught.value.code == "SCRIPT"
    assert caught.value.place is not None


@pytest.mark.parametrize("name", ["none.yaml", "none.jsonl"])
def test_a_missing_script_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_script(tmp_path / name)
    assert caught.value.code == "SCRIPT"
