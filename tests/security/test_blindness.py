"""P8 on the wire: every byte that reaches a model server, and every argument that reaches a tool, is accounted for."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, OpenAICompatibleAdapter, SqliteStore, Vault, tool
from nano_vm.vault.kek import make_key_file

SECRET = "sk-live-0123456789"


class RawServer:
    """A model server that keeps every byte it is sent."""

    def __init__(self, answers: list[str]) -> None:
        self._answers = answers
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(30)
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65_536)
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                while len(body) < length:
                    body += connection.recv(65_536)
                self.requests.append(head + b"\r\n\r\n" + body)
                reply = json.dumps(
                    {
                        "choices": [
                            {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
                        ],
                        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
                    }
                ).encode()
                head_out = (
                    f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(reply)}\r\n"
                )
                connection.sendall(f"{head_out}connection: close\r\n\r\n".encode() + reply)

    def close(self) -> None:
        self._listener.close()
        self._thread.join(timeout=30)


PROGRAM = {
    "name": "credit",
    "description": "CONFIDENTIAL: how we decide",
    "max_tokens": 77_777,
    "max_cost_usd": 3.25,
    "max_steps": 55,
    "steps": [
        {
            "id": "look_up",
            "type": "tool",
            "tool": "look_up",
            "args": {"who": "$customer", "token": "vault://secret/key"},
        },
        {
            "id": "judge",
            "type": "llm",
            "system": "You are terse.",
            "prompt": "Is ${look_up.output.city} a city?",
            "params": {"temperature": 0},
            "allowed_outputs": ["yes", "no"],
            "on_error": "retry",
            "max_retries": 3,
            "retry": {"initial": 0.001, "jitter": False},
        },
        {"id": "tell", "type": "tool", "tool": "tell", "args": {"verdict": "$judge.output"}},
    ],
}
INPUTS = {"customer": "Ada Lovelace", "income": 123_456, "internal_score": "hidden-score-9"}


def header_names(request: bytes) -> set[str]:
    lines = request.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return {line.split(b":")[0].decode().lower() for line in lines}


@pytest.mark.parametrize("tracked", [False, True])
def test_a_model_server_is_sent_the_rendered_prompt_and_nothing_else(tmp_path: Path, tracked: bool) -> None:
    make_key_file(tmp_path / "runs.db.key")
    vault = Vault.beside(tmp_path / "runs.db")
    vault.put("key", SECRET)
    told: list[dict[str, Any]] = []

    @tool(secrets=["token"])
    def look_up(who: str, token: str) -> dict[str, Any]:
        assert token == SECRET
        return {"city": "Oslo", "debt": 98_765, "iban": "NO93-8601"}

    @tool
    def tell(**everything: Any) -> None:
        told.append(everything)

    server = RawServer(["perhaps", "yes"])
    try:
        adapter = OpenAICompatibleAdapter(
            f"http://127.0.0.1:{server.port}/v1", model="small", api_key="the-api-key"
        )
        vm = ExecutionVM(
            llm=adapter, tools=[look_up, tell], store=SqliteStore(tmp_path / "runs.db"), vault=vault
        )
        trace = vm.run_sync(PROGRAM, INPUTS, trace_id="trace-id-4711", principal="ana-the-clerk")
    finally:
        server.close()
    assert (trace.status, told) == ("SUCCESS", [{"verdict": "yes"}])

    first, second = (json.loads(request.split(b"\r\n\r\n", 1)[1]) for request in server.requests)
    messages = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Is Oslo a city?"},
    ]
    assert first["messages"] == messages
    # On a retry it is told what was wrong with its own last answer.
    assert second["messages"][:2] == messages
    assert [message["role"] for message in second["messages"][2:]] == ["assistant", "user"]
    assert second["messages"][2]["content"] == "perhaps"
    for body in (first, second):
        assert set(body) <= {"model", "messages", "temperature", "max_tokens", "stream", "stream_options"}
        assert (body["model"], body["temperature"]) == ("small", 0)
    for request in server.requests:
        assert header_names(request) <= {
            "host",
            "accept",
            "accept-encoding",
            "connection",
            "user-agent",
            "authorization",
            "content-type",
            "content-length",
        }
        others = [
            SECRET,
            "vault://",
            "Ada",
            "123456",
            "hidden-score",
            "98765",
            "NO93",
            "look_up",
            "tell",
            "credit",
            "CONFIDENTIAL",
            "trace-id-4711",
            "ana-the-clerk",
            "sha256",
            "3.25",
            "attempt",
            "retry",
            "retries",
            "policy",
            "budget",
        ]
        for word in others:
            assert word.encode() not in request, word


def test_a_tool_that_takes_anything_is_given_its_arguments_and_nothing_else() -> None:
    told: list[dict[str, Any]] = []

    @tool
    def act(**everything: Any) -> None:
        told.append(everything)

    steps = [{"id": "act", "type": "tool", "tool": "act", "args": {"a": 1, "b": {"c": "$x"}}}]
    ExecutionVM(tools=[act]).run_sync({"name": "p", "steps": steps}, {"x": 2})
    assert told == [{"a": 1, "b": {"c": 2}}]
