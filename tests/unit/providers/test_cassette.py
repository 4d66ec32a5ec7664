"""Cassettes: recorded once, played back alike, never mistaken for another tape."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from nano_vm import Completion, ExecutionVM, MockLLMAdapter, Provider, ProviderPool, ToolCall, Usage
from nano_vm.cli.main import main
from nano_vm.errors import InputError
from nano_vm.providers.cache import request_key
from nano_vm.providers.cassette import CassettePlayer, CassetteRecorder, PlayedFailure
from nano_vm.providers.faults import ModelError
from nano_vm.runtime.ports import ModelCall

SECRET = "sk-very-secret-key"


def ask(client: Any, content: str = "hello", **params: Any) -> Completion:
    return asyncio.run(client.complete([{"role": "user", "content": content}], **params))


def test_a_tape_plays_back_what_was_recorded(tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    whole = Completion(
        text="näh\u2028",
        tool_calls=(ToolCall("c1", "pay", "{}"),),
        usage=Usage(prompt_tokens=3, completion_tokens=4, cost_usd=0.25),
        model="m",
    )
    recorder = CassetteRecorder(MockLLMAdapter([whole, "second", "third"]), tape)
    recorded = [ask(recorder, tools=[]), ask(recorder, tools=[]), ask(recorder, "other")]
    player = CassettePlayer(tape)
    assert player.left == 3
    assert ask(player, "other") == recorded[2]
    assert [ask(player, tools=[]), ask(player, tools=[])] == recorded[:2]
    assert player.left == 0
    for content, params in (("hello", {"tools": []}), ("hello", {}), ("never", {})):
        with pytest.raises(ModelError) as caught:
            ask(player, content, **params)
        assert (caught.value.code, caught.value.retryable) == ("CASSETTE_MISS", False)
    assert stat.S_IMODE(tape.stat().st_mode) == 0o600


def test_failures_and_switches_are_on_the_tape_and_other_peoples_words_are_not(tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    down = MockLLMAdapter(ConnectionError(f"cannot reach it with {SECRET}"))
    pool = ProviderPool(
        [Provider("a", down), Provider("b", MockLLMAdapter([ValueError(SECRET), "yes"]))], attempts=1
    )
    recorder = CassetteRecorder(pool, tape)
    with pytest.raises(ValueError, match=SECRET):
        ask(recorder)
    answer = ask(recorder)
    assert SECRET.encode() not in tape.read_bytes()
    player = CassettePlayer(tape)
    with pytest.raises(PlayedFailure) as caught:
        ask(player)
    assert (caught.value.code, caught.value.retryable, caught.value.provider) == ("ValueError", True, "b")
    assert [switch.origin for switch in caught.value.switches] == ["a"]
    assert ask(player) == answer


def test_a_tape_can_be_recorded_on(tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    ask(CassetteRecorder(MockLLMAdapter("a"), tape))
    ask(CassetteRecorder(MockLLMAdapter("b"), tape))
    player = CassettePlayer(tape)
    assert [ask(player).text, ask(player).text] == ["a", "b"]


def test_private_requests_are_not_recorded(tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    answer = ask(CassetteRecorder(MockLLMAdapter("answered"), tape), model_call=ModelCall(private=True))
    assert answer.text == "answered"
    assert b"hello" not in tape.read_bytes()
    assert b"answered" not in tape.read_bytes()
    with pytest.raises(ModelError) as caught:
        ask(CassettePlayer(tape))
    assert caught.value.code == "CASSETTE_MISS"


HEADER = '{"cassette":1}\n'
CALL = f'{{"digest":"{request_key([], {}, None)}","answer":{{"text":"a"}}}}'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("hello\n", 1),
        ('{"cassette":2}\n', 1),
        (HEADER + CALL[:-5], 2),
        (HEADER + CALL + "\n" + "[]\n", 3),
        (HEADER + '{"digest":"x"}\n', 2),
        (HEADER + CALL.replace('"answer"', '"params":{"model":"other"},"answer"') + "\n", 2),
        (HEADER + '{"digest":"x","answer":{},"failure":{"code":"X"}}\n', 2),
        (HEADER + '{"digest":"x","answer":{"text":7}}\n', 2),
        (HEADER + '{"digest":"x","answer":{},"more":1}\n', 2),
        (HEADER + '{"answer":{}}\n', 2),
        (HEADER + "[" * 100_000 + "\n", 2),
    ],
)
def test_what_is_no_tape_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    tape = tmp_path / "tape.jsonl"
    tape.write_text(text)
    makers: list[Any] = [CassettePlayer]
    if text:
        makers.append(lambda path: CassetteRecorder(MockLLMAdapter(""), path))
    for make in makers:
        with pytest.raises(InputError) as caught:
            make(tape)
        assert caught.value.code == "CASSETTE"
        assert caught.value.place is not None
        assert caught.value.place.line == line
    assert tape.read_text() == text
    for path in (tmp_path, tmp_path / "none" / "t"):
        with pytest.raises(InputError):
            CassetteRecorder(MockLLMAdapter(""), path)
    with pytest.raises(InputError):
        CassettePlayer(tmp_path / "none")


PROGRAM = """
name: assess
inputs: {type: object, properties: {text: {type: string}}, required: [text]}
steps:
  - id: assess
    type: llm
    prompt: "Assess: $text"
    allowed_outputs: [low, high]
    on_error: retry
    retry: {initial: 0.001}
  - {id: say, type: llm, prompt: "Say it: $assess.output"}
"""


def test_a_run_is_recorded_and_replayed_without_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(PROGRAM)
    Path("answers.yaml").write_text(
        '- "hm"\n- {text: low, prompt_tokens: 3, cost_usd: 0.5}\n- "It is low."\n'
    )

    def run(*options: str) -> tuple[int, Any]:
        code = main(["run", "p.yaml", "--input", "text=it", *options, "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, recorded = run("--model", "script:answers.yaml", "--record", "tape.jsonl")
    assert (code, recorded["final_output"]) == (0, "It is low.")
    code, replayed = run("--replay", "tape.jsonl")
    assert code == 0
    for name in ("trace_hash", "outcome_hash", "total_tokens", "total_cost_usd", "path"):
        assert replayed[name] == recorded[name]
    assert replayed["steps"][0]["attempts"] == 2
    Path("p.yaml").write_text(PROGRAM.replace("Assess:", "Judge:"))
    code, missed = run("--replay", "tape.jsonl")
    assert (code, missed["error"]["type"]) == (1, "CASSETTE_MISS")


def test_the_cache_is_an_option_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("name: p\nsteps: [{id: ask, type: llm, prompt: 'well?'}]\n")
    found = []
    for answer in ("first", "second"):
        assert main(["run", "p.yaml", "--model", f"mock:{answer}", "--cache", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [run["final_output"] for run in found] == ["first", "first"]
    assert [run["steps"][0]["cached"] for run in found] == [False, True]


def test_a_tape_serves_a_vm(tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    program = {"name": "p", "steps": [{"id": "ask", "type": "llm", "prompt": "well?"}]}
    first = ExecutionVM(llm=CassetteRecorder(MockLLMAdapter("fine"), tape)).run_sync(program)
    assert ExecutionVM(llm=CassettePlayer(tape)).run_sync(program).trace_hash == first.trace_hash


def test_a_tape_that_two_processes_begin_at_once_plays(tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    tape.write_text(HEADER + HEADER + CALL + "\n")
    assert CassettePlayer(tape).left == 1
