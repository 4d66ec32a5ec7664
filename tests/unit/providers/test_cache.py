"""The cache: what is answered from it, what is not, and what is never kept."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nano_vm import Completion, ExecutionVM, MockLLMAdapter, Program, SqliteStore, ToolCall, Usage
from nano_vm.compiler import compile_program
from nano_vm.errors import InputError, StoreError
from nano_vm.kernel.commands import CallModel
from nano_vm.kernel.events import UNSET, RunStarted, StepSucceeded
from nano_vm.kernel.state import State
from nano_vm.kernel.transition import apply, decide
from nano_vm.providers.cache import ModelCache, request_key
from nano_vm.providers.health import Health
from nano_vm.providers.model_store import MIGRATIONS, ModelStore
from nano_vm.runtime.calls import Calls
from nano_vm.runtime.ports import ModelCall
from nano_vm.runtime.system import SystemClock, SystemEntropy
from nano_vm.runtime.threads import ToolThreads

MESSAGES = [{"role": "user", "content": "hello"}]
PAID = {"prompt_tokens": 7, "completion_tokens": 3, "cost_usd": 0.5}


def ask(client: Any, content: str = "hello", **params: Any) -> Completion:
    return asyncio.run(client.complete([{"role": "user", "content": content}], **params))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore(tmp_path / "models") as store:
        yield store


def test_a_hit_costs_nothing_and_says_so(store: ModelStore) -> None:
    calls = (ToolCall("c1", "pay", "{}"),)
    inner = MockLLMAdapter(Completion(text="yes", tool_calls=calls, model="m", usage=Usage(**PAID)))
    cache = ModelCache(inner, store)
    first = ask(cache, temperature=0)
    assert (first.cached, first.usage.total_tokens) == (False, 10)
    second = ask(cache, temperature=0)
    assert (second.text, second.tool_calls, second.model, second.cached) == ("yes", calls, "m", True)
    assert second.usage == Usage(cost_usd=0.0)
    assert (inner.call_count, cache.hits, cache.misses) == (1, 1, 1)


def test_what_is_asked_is_the_address_and_nothing_else(store: ModelStore) -> None:
    inner = MockLLMAdapter("yes")
    cache = ModelCache(inner, store)
    for content, params in [
        ("hello", {}),
        ("hello!", {}),
        ("hello", {"temperature": 0}),
        ("hello", {"temperature": 1}),
        ("hello", {"model": "a"}),
        ("hello", {"model": "b"}),
        ("hello", {"tools": []}),
    ]:
        assert ask(cache, content, **params).cached is False
        assert ask(cache, content, **params).cached is True
    assert inner.call_count == 7
    # The order of members is no difference, and what has no digest is asked for every time.
    assert request_key(MESSAGES, {"a": 1, "b": 2}, None) == request_key(MESSAGES, {"b": 2, "a": 1}, None)
    assert request_key(MESSAGES, {"x": object()}, None) is None
    assert not ask(cache, x=object()).cached


def test_another_default_model_is_another_address(store: ModelStore) -> None:
    class Named(MockLLMAdapter):
        default_model = "large"

    assert not ask(ModelCache(MockLLMAdapter("a"), store)).cached
    named = ModelCache(Named("b"), store)
    assert ask(named).text == "b"
    assert ask(named, model="large").cached  # the same model, named or not


def test_a_fresh_call_goes_past_the_cache_and_renews_it(store: ModelStore) -> None:
    cache = ModelCache(MockLLMAdapter(["old", "new"]), store)
    assert ask(cache).text == "old"
    assert ask(cache, model_call=ModelCall(fresh=True)).text == "new"
    assert (ask(cache).text, ask(cache).cached) == ("new", True)


def test_what_is_private_leaves_no_byte(store: ModelStore, tmp_path: Path) -> None:
    inner = MockLLMAdapter("the patient is well")
    cache = ModelCache(inner, store)
    for _ in range(2):
        assert not ask(cache, model_call=ModelCall(private=True)).cached
    assert store.size() == (0, 0)
    assert b"patient" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_call_with_private_values_goes_past_the_cache(store: ModelStore) -> None:
    program = compile_program(
        Program.from_dict(
            {
                "name": "p",
                "inputs": {"type": "object", "properties": {"name": {"type": "string", "private": True}}},
                "steps": [{"id": "ask", "type": "llm", "prompt": "How is $name?"}],
            }
        )
    )
    started = RunStarted(at_ms=1, payload={"name": "Ada"}, program=program.hash)
    state = apply(program, State(run="r"), started)
    assert isinstance(state, State)
    (command,) = decide(program, state)
    calls = Calls(ModelCache(MockLLMAdapter("fine"), store), SystemClock(), SystemEntropy(), ToolThreads())
    for _ in range(2):
        assert isinstance(command, CallModel)
        outcome = asyncio.run(calls.model(program.steps[0], command, 0, []))
        assert type(outcome.event) is StepSucceeded
        assert outcome.event.cached is UNSET
    assert store.size() == (0, 0)


def test_failures_and_huge_answers_are_not_kept(store: ModelStore) -> None:
    cache = ModelCache(MockLLMAdapter([ValueError("no"), "x" * (1024 * 1024 + 1), "small"]), store)
    with pytest.raises(ValueError, match="no"):
        ask(cache)
    assert len(ask(cache).text) > 1024 * 1024
    assert (ask(cache).text, ask(cache).cached) == ("small", True)


def test_old_answers_are_asked_for_again(tmp_path: Path) -> None:
    now = [1_000_000]
    with ModelStore(tmp_path / "m", now_ms=lambda: now[0]) as store:
        cache = ModelCache(MockLLMAdapter(["old", "new"]), store, max_age_seconds=60, now_ms=lambda: now[0])
        assert ask(cache).text == "old"
        now[0] += 59_999
        assert ask(cache).text == "old"
        now[0] += 1
        assert ask(cache).text == "new"


def test_what_was_not_used_longest_goes_first(tmp_path: Path) -> None:
    now = [0]
    with ModelStore(tmp_path / "m", cache_bytes_max=100_000, now_ms=lambda: now[0]) as store:

        async def fill() -> None:
            for number in range(257):
                now[0] += 120_000
                await store.put(f"k{number}", b"x" * 1_000)
                await store.get("k0", -1)

        asyncio.run(fill())
        count, size = store.size()
        assert size <= 100_000
        assert count == 100 - 100 % 64 + 1 or 30 < count <= 100
        assert asyncio.run(store.get("k0", -1)) is not None
        assert asyncio.run(store.get("k1", -1)) is None
        store.clear()
        assert store.size() == (0, 0)
    assert b"xxxx" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


# --- in runs ------------------------------------------------------------------------------------------------------


def program(**fields: Any) -> dict[str, Any]:
    return {"name": "p", "steps": [{"id": "ask", "type": "llm", "prompt": "well?", **fields}]}


def test_a_hit_is_marked_in_the_trace_and_changes_no_hash(store: ModelStore, tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "runs.db") as runs:
        vm = ExecutionVM(llm=ModelCache(MockLLMAdapter("yes", usage=PAID), store), store=runs)
        first, second = vm.run_sync(program()), vm.run_sync(program())
        assert (first.total_tokens(), first.steps[0].cached) == (10, False)
        assert (second.total_tokens(), second.total_cost_usd(), second.steps[0].cached) == (0, 0.0, True)
        assert first.trace_hash == second.trace_hash
        assert vm.verify(second.trace_id)


def test_a_retry_after_a_gate_miss_bypasses_the_cache_and_a_bad_answer_is_not_given_again(
    store: ModelStore,
) -> None:
    inner = MockLLMAdapter(["maybe", "yes", "no"])
    vm = ExecutionVM(llm=ModelCache(inner, store))
    steps = program(allowed_outputs=["yes", "no"], on_error="retry", retry={"initial": 0.001})
    first = vm.run_sync(steps)
    assert (first.final_output, first.steps[0].attempts, inner.call_count) == ("yes", 2, 2)
    second = vm.run_sync(steps)
    # The bad answer was forgotten: the model is asked again, and its good answer is kept then.
    assert (second.final_output, second.steps[0].attempts, inner.call_count) == ("no", 1, 3)
    third = vm.run_sync(steps)
    assert (third.final_output, third.steps[0].cached, inner.call_count) == ("no", True, 3)


# --- the file -----------------------------------------------------------------------------------------------------


def test_files_that_are_not_ours_are_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    con = sqlite3.connect(other)
    con.execute("CREATE TABLE t (x)")
    con.commit()
    con.close()
    with SqliteStore(tmp_path / "runs.db"):
        pass
    text = tmp_path / "text"
    text.write_text("hello " * 1_000)
    newer = tmp_path / "newer"
    ModelStore(newer).close()
    con = sqlite3.connect(newer)
    con.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    con.close()
    for path, code in [
        (other, "STORE_FOREIGN"),
        (tmp_path / "runs.db", "STORE_FOREIGN"),
        (text, "STORE_FOREIGN"),
        (newer, "STORE_NEWER"),
        (tmp_path, "STORE_IO"),
        (tmp_path / "none" / "x", "STORE_IO"),
    ]:
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(StoreError) as caught:
            ModelStore(path)
        assert (path, caught.value.code) == (path, code)
        assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_file_that_fails_later_fails_nobody(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "m")
    cache = ModelCache(MockLLMAdapter("yes"), store)
    ask(cache)
    store.update("a", lambda known: Health(calls=known.calls + 1))
    store.close()  # as if the disk had gone
    assert not ask(cache).cached
    assert store.update("a", lambda known: Health(calls=known.calls + 1)).calls == 2
    assert store.load()["a"].calls == 2
    assert store.size() == (0, 0)


def test_a_file_whose_schema_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    ModelStore(path).close()
    data = path.read_bytes()
    assert data.count(b"CREATE TABLE answers") == 1
    path.write_bytes(data.replace(b"CREATE TABLE answers", b"CREATE TABL\xd5 answers"))
    with pytest.raises(StoreError) as refused:
        ModelStore(path)
    assert refused.value.code == "STORE_IO"


def test_damaged_rows_count_as_missing(tmp_path: Path) -> None:
    with ModelStore(tmp_path / "m") as store:
        cache = ModelCache(MockLLMAdapter("yes"), store)
        ask(cache)
        store.update("a", lambda known: Health(calls=5))
        con = sqlite3.connect(tmp_path / "m", isolation_level=None)
        for body in (b"{", b'{"text": 7}', b"\xff", b'{"text": "yes", "more": 1}'):
            con.execute("UPDATE answers SET body = ?", (body,))
            assert not ask(cache).cached
        for column, value in (("body", "text"), ("body", 7), ("used_at_ms", "now")):
            con.execute(f"UPDATE answers SET {column} = ?", (value,))
            assert not ask(cache).cached
        con.execute("UPDATE providers SET body = '{}x'")
        assert store.load() == {"a": Health()}
        con.execute("UPDATE providers SET body = x'7b22ff223a317d'")
        assert store.load() == {}
        assert store.update("a", lambda known: Health(calls=known.calls + 1)).calls == 1
        con.close()


def test_many_processes_may_count_in_one_record(tmp_path: Path) -> None:
    code = (
        "import sys, msgspec\n"
        "from nano_vm.providers.model_store import ModelStore\n"
        "with ModelStore(sys.argv[1]) as store:\n"
        "    for _ in range(100):\n"
        "        store.update('a', lambda known: msgspec.structs.replace(known, calls=known.calls + 1))\n"
    )
    source = str(Path(__file__).resolve().parents[3] / "src")
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "m")], env={"PYTHONPATH": source})
        for _ in range(3)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    with ModelStore(tmp_path / "m") as store:
        assert store.load()["a"].calls == 300


# --- Redis --------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A real server of our own, on a port of its own."""
    pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server is installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "Ready to accept" in line:
                break
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


def test_redis_keeps_answers_too(redis_url: str) -> None:
    from nano_vm.providers.redis_answers import RedisAnswers

    answers = RedisAnswers(redis_url)
    cache = ModelCache(MockLLMAdapter(["yes", "no"], usage=PAID), answers)
    assert [ask(cache).cached, ask(cache).cached] == [False, True]
    # Another process would find it as well.
    other = ModelCache(MockLLMAdapter("?"), RedisAnswers(redis_url))
    assert (ask(other).text, ask(other).cached) == ("yes", True)

    async def rest() -> None:
        assert await answers.get("nothing", 0) is None
        await answers.put("k", b"body")
        assert await answers.get("k", 0) == b"body"
        assert await answers.get("k", time.time_ns() // 1_000_000 + 60_000) is None
        await answers.drop("k")
        assert await answers.get("k", 0) is None
        await answers.clear()

    asyncio.run(rest())
    assert not ask(cache).cached
    assert answers.failures == 0


def test_the_command_line_caches_in_redis_where_the_environment_says_so(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nano_vm.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANO_VM_CACHE_URL", redis_url)
    Path("p.yaml").write_text("name: p\nsteps: [{id: ask, type: llm, prompt: 'well?'}]\n")
    for answer in ("first", "second"):
        assert (
            main(
                ["run", "p.yaml", "--model", f"mock:{answer}", "--cache", "--store", f"{answer}.db", "--json"]
            )
            == 0
        )
        assert '"final_output": "first"' in capsys.readouterr().out


def test_a_redis_that_is_not_there_fails_no_run() -> None:
    pytest.importorskip("redis")
    from nano_vm.providers.redis_answers import RedisAnswers

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = RedisAnswers(f"redis://:secret@127.0.0.1:{port}/0")
    assert ask(ModelCache(MockLLMAdapter("yes"), answers)).text == "yes"
    assert answers.failures == 2
    assert "secret" not in repr(answers)
    with pytest.raises(InputError) as caught:
        RedisAnswers("http://:secret@host")
    assert caught.value.code == "USAGE"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("redis", "from nano_vm.providers.redis_answers import RedisAnswers\nRedisAnswers('redis://h')"),
        ("litellm", "from nano_vm import LiteLLMAdapter\nLiteLLMAdapter('groq/x')"),
    ],
)
def test_a_missing_extra_is_named(module: str, make: str) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
import nano_vm.errors
try:
    exec({make!r})
except nano_vm.errors.NanoVMError as error:
    sys.exit(0 if error.code == "EXTRA_MISSING" and "nano-vm[{module}]" in error.help else 1)
sys.exit(2)
"""
    source = str(Path(__file__).resolve().parents[3] / "src")
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, timeout=60).returncode == 0
    )
