"""Pools written down, what `--model` understands, and the command that shows providers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nano_vm.cli.main import main
from nano_vm.errors import InputError
from nano_vm.providers.mock import MockLLMAdapter
from nano_vm.providers.naming import client_named
from nano_vm.providers.openai_compatible import OpenAICompatibleAdapter
from nano_vm.providers.pool import ProviderPool
from nano_vm.providers.pool_file import load_pool

KEY = "sk-very-secret-key"
GOOD = """
routing: scored
attempts: 2
breaker: {failures: 5, cooldown_seconds: 0.5, cooldown_max_seconds: 60, probe_seconds: 3}
weights: {health: 1, latency: 0, cost: 2.5}
providers:
  - name: primary
    url: http://127.0.0.1:1/v1
    model: large
    models: {small: tiny}
    key_env: PRIMARY_KEY
    headers_env: {api-key: PRIMARY_KEY}
    timeout_seconds: 3
    idle_timeout_seconds: 1.5
    stream: true
    price: {input: 2.5, output: 10}
    requests_per_minute: 60
  - name: spare
    use: mock:yes
"""


def pool_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pool.yaml"
    path.write_text(text)
    return path


def load(tmp_path: Path, text: str, **environment: str) -> ProviderPool:
    return load_pool(pool_file(tmp_path, text), named=client_named, environment=environment)


def test_a_file_says_all_that_a_pool_can_be(tmp_path: Path) -> None:
    pool = load(tmp_path, GOOD, PRIMARY_KEY=KEY)
    primary, spare = sorted(pool.status(), key=lambda row: row["name"])
    assert (primary["model"], primary["requests_per_minute"]) == ("large", 60)
    assert primary["usd_per_million_tokens"] == [2.5, 10.0]
    assert (pool.price_known("small"), pool.price("small")) == (
        (2_500.0, 10_000.0),
        None,
    )  # the spare has none
    assert (spare["name"], spare["usd_per_million_tokens"], spare["circuit"]) == ("spare", None, "CLOSED")
    first = pool.order()[0].client.inner
    assert isinstance(first, OpenAICompatibleAdapter | MockLLMAdapter)
    assert KEY not in repr(pool.status())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("providers: []", 1),
        ("7", 1),
        ("providers: {a: b}", 1),
        ("providers: [7]", 1),
        ("routing: random\nproviders: [{name: a, use: 'mock:x'}]", 1),
        ("atempts: 3\nproviders: [{name: a, use: 'mock:x'}]", 1),
        ("attempts: 0\nproviders: [{name: a, use: 'mock:x'}]", 1),
        ("providers:\n- {name: a}", 2),
        ("providers:\n- {use: 'mock:x'}", 2),
        ("providers:\n- {name: a, use: 'mock:x', url: 'http://h/v1'}", 2),
        ("providers:\n- {name: a, use: 'mock:x', key_env: K}", 2),
        ("providers:\n- {name: a, use: 'nothing'}", 2),
        ("providers:\n- {name: a, use: 'pool:x.yaml'}", 2),
        ("providers:\n- {name: a, url: 'ftp://h'}", 2),
        ("providers:\n- {name: a, url: 'http://me:pw@h/v1'}", 2),
        ("providers:\n- {name: a, url: 'http://h/v1', key_env: UNSET_KEY}", 2),
        ("providers:\n- {name: a, url: 'http://h/v1', stream: maybe}", 2),
        ("providers:\n- {name: a, url: 'http://h/v1', timeout_seconds: -1}", 2),
        ("providers:\n- {name: a, url: 'http://h/v1', model: m, price: {input: free}}", 2),
        ("providers:\n- {name: a, use: 'mock:x', models: {a: 7}}", 2),
        ("providers:\n- {name: a, use: 'mock:x'}\n- {name: a, use: 'mock:x'}", 1),
        ("providers: [", 1),
    ],
)
def test_a_file_that_is_no_pool_is_refused_with_a_place(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    error = caught.value
    assert error.code in ("POOL", "PRICES")
    if error.code == "POOL":
        assert error.place is not None
        assert error.place.line == line
        assert error.place.file is not None
    assert "pw" not in str(error)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_pool(tmp_path / "none.yaml", named=client_named)
    assert caught.value.code == "POOL"


PROGRAM = "name: ask\nsteps: [{id: ask, type: llm, prompt: 'well?'}]\n"
DEAD = """
attempts: 1
breaker: {failures: 1}
providers:
  - {name: primary, url: 'http://127.0.0.1:9/v1', model: m}
  - {name: spare, use: 'mock:fine'}
"""


def call(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, Any]:
    code = main([str(word) for word in argv])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_line_runs_on_a_pool_and_shows_what_it_remembers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = pool_file(tmp_path, DEAD)
    Path("ask.yaml").write_text(PROGRAM)
    code, shown = call(capsys, "run", "ask.yaml", "--model", f"pool:{pool}", "--json")
    assert code == 0
    assert (shown["final_output"], shown["provider_final"]) == ("fine", "spare")
    assert [event["reason"] for event in shown["switch_events"]] == ["ProviderUnavailable"]
    # Another process: the circuit is open from the beginning.
    code, shown = call(capsys, "run", "ask.yaml", "--model", f"pool:{pool}", "--json")
    assert [event["error"] for event in shown["switch_events"]] == ["CIRCUIT_OPEN"]
    code, shown = call(capsys, "providers", pool, "--json")
    assert code == 0
    assert [(row["name"], row["circuit"], row["calls"]) for row in shown["providers"]] == [
        ("primary", "OPEN", 1),
        ("spare", "CLOSED", 2),
    ]
    assert main(["providers", str(pool)]) == 0
    assert "OPEN" in capsys.readouterr().out
    code, shown = call(capsys, "providers", pool, "--reset", "--json")
    assert [(row["circuit"], row["calls"]) for row in shown["providers"]] == [("CLOSED", 0)] * 2


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "what"],
        ["--model", "pool:none.yaml"],
        ["--model", "pool:"],
        ["--base-url", "http://h/v1"],
        ["--model", "mock:a", "--base-url", "http://h/v1"],
        ["--prices", "p.yaml"],
        ["--record", "t.jsonl"],
        ["--cache"],
        ["--replay", "none.jsonl"],
        ["--replay", "t.jsonl", "--model", "mock:a"],
        ["--replay", "t.jsonl", "--record", "u.jsonl"],
        ["--replay", "t.jsonl", "--cache"],
        ["--model", "openai:m", "--prices", "none.yaml"],
    ],
)
def test_options_that_make_no_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ask.yaml").write_text(PROGRAM)
    assert main(["run", "ask.yaml", *options, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] in ("USAGE", "POOL", "CASSETTE", "PRICES")
