"""The adapter against somebody else's server, `llmock`, in an environment of its own: `-m campaign`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from typing import Any

import pytest

from nano_vm import ExecutionVM, OpenAICompatibleAdapter, Provider, ProviderPool

COMMAND_VARIABLE = "NANO_VM_LLMOCK"  # the program, where it is installed
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "pay",
            "description": "Pays.",
            "parameters": {
                "type": "object",
                "properties": {"amount": {"type": "integer"}},
                "required": ["amount"],
            },
        },
    }
]
pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    if os.environ.get(COMMAND_VARIABLE):
        return os.environ[COMMAND_VARIABLE]
    place = tmp_path_factory.mktemp("llmock") / "env"
    venv.create(place, with_pip=True)
    command = [str(place / "bin" / "python"), "-m", "pip", "install", "-qq", "llmock==0.2.2"]
    if subprocess.run(command, capture_output=True, timeout=600).returncode:
        pytest.skip("llmock cannot be installed here")
    return str(place / "bin" / "llmock")


@contextlib.contextmanager
def serving(program: str, *options: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ("--host", "127.0.0.1", "--port", str(port), "--log-level", "error")
    server = subprocess.Popen(
        [program, "serve", *address, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            assert server.poll() is None
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except urllib.error.HTTPError as answer:
                answer.close()
                break
            except OSError:
                continue
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def adapter(url: str, **options: Any) -> OpenAICompatibleAdapter:
    return OpenAICompatibleAdapter(url, model="gpt-4o-mini", api_key="sk-test", **options)


@pytest.mark.parametrize("stream", [False, True])
def test_texts_tools_and_results_go_back_and_forth(program: str, stream: bool) -> None:
    async def talk(url: str) -> None:
        client = adapter(url, stream=stream)
        said = await client.complete([{"role": "user", "content": "hello"}], temperature=0)
        assert said.text
        assert said.usage.completion_tokens > 0
        ask = {"role": "user", "content": "pay 5"}
        (call,) = (await client.complete([ask], tools=TOOLS)).tool_calls
        assert call.name == "pay"
        messages = [
            ask,
            {"role": "assistant", "content": "", "tool_calls": [call.to_message()]},
            {"role": "tool", "tool_call_id": call.id, "content": "paid"},
        ]
        done = await client.complete(messages, tools=TOOLS)
        assert done.text
        assert not done.tool_calls

    with serving(program) as url:
        asyncio.run(talk(url))


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        ("truncate", {"MODEL_HTTP", "MODEL_TRUNCATED", "MODEL_REPLY"}),
        ("disconnect", {"MODEL_HTTP"}),
        ("malformed", {"MODEL_REPLY", "MODEL_HTTP"}),
        ("stall", {"MODEL_TIMEOUT"}),
    ],
)
def test_a_broken_stream_is_never_taken_for_an_answer(program: str, fault: str, codes: set[str]) -> None:
    step = {"id": "ask", "type": "llm", "prompt": "hello there"}
    with serving(program, "--stream-fault", f"{fault}=1.0", "--stream-stall-seconds", "30") as url:
        vm = ExecutionVM(llm=adapter(url, stream=True, idle_timeout_seconds=0.5))
        for _ in range(10):
            trace = vm.run_sync({"name": "p", "steps": [step]})
            assert trace.error is not None, trace.final_output
            assert trace.error["type"] in codes


def test_a_pool_brings_every_run_home_through_a_storm(program: str) -> None:
    storm = ("--error-rate", "503=0.4", "--error-rate", "429=0.3", "--stream-fault", "disconnect=0.3")
    step = {"id": "ask", "type": "llm", "prompt": "hello there"}

    async def runs(vm: ExecutionVM) -> list[Any]:
        return await asyncio.gather(*(vm.run({"name": "p", "steps": [step]}) for _ in range(60)))

    with serving(program, *storm) as bad, serving(program) as good:
        providers = [Provider("flaky", adapter(bad, stream=True)), Provider("good", adapter(good))]
        vm = ExecutionVM(llm=ProviderPool(providers))
        traces = asyncio.run(runs(vm))
        assert {trace.status.value for trace in traces} == {"SUCCESS"}
        assert any(trace.switch_events for trace in traces)
        assert all(trace.switch_events or trace.provider_final == "flaky" for trace in traces)
