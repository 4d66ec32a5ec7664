"""A process dies in the middle of a model call: the call may be made again, and finished ones never are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "sk-very-secret-key"
PROGRAM = """
name: three
steps:
  - {id: one, type: llm, prompt: "step one", output_key: first}
  - {id: two, type: llm, prompt: "step two after $first"}
  - id: both
    type: parallel
    parallel_steps:
      - {id: left, type: llm, prompt: "step left"}
      - {id: right, type: llm, prompt: "step right"}
"""


class Server(ThreadingHTTPServer):
    """Counts what it is asked; what is in `held` is never answered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.held: set[str] = set()
        self.holding = threading.Event()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        word = request["messages"][-1]["content"].split()[1]
        self.server.asked.append(word)
        if word in self.server.held:
            self.server.holding.set()
            self.server.over.wait(60)
            self.close_connection = True
            return
        choice = {"message": {"content": f"did {word}"}, "finish_reason": "stop"}
        body = json.dumps(
            {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        ).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def command(tmp_path: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "nano_vm.cli", *words, "--store", str(tmp_path / "runs.db"), "--json"]


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"),
    "NANO_VM_API_KEY": KEY,
}


@pytest.mark.parametrize(
    ("held", "asked", "pool"),
    [
        ("one", {"one": 2, "two": 1, "left": 1, "right": 1}, False),
        ("two", {"one": 1, "two": 2, "left": 1, "right": 1}, True),
        ("right", {"one": 1, "two": 1, "left": 1, "right": 2}, False),
    ],
)
def test_finished_model_calls_are_not_repeated(
    server: Server, tmp_path: Path, held: str, asked: dict[str, int], pool: bool
) -> None:
    (tmp_path / "p.yaml").write_text(PROGRAM)
    model = f"{server.url}#m"
    if pool:
        (tmp_path / "pool.yaml").write_text(
            "providers:\n"
            "  - {name: nobody, url: 'http://127.0.0.1:9/v1', model: m, key_env: NANO_VM_API_KEY}\n"
            f"  - {{name: backup, url: '{server.url}', model: m, key_env: NANO_VM_API_KEY}}\n"
        )
        model = f"pool:{tmp_path / 'pool.yaml'}"
    server.held.add(held)
    words = ("run", str(tmp_path / "p.yaml"), "--model", model, "--trace-id", "t")
    dying = subprocess.Popen(command(tmp_path, *words), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    assert server.holding.wait(60)
    while held == "right" and "left" not in server.asked:
        assert dying.poll() is None
        server.over.wait(0.01)
    if held == "right":
        _until_journaled(tmp_path, "left", dying)
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    server.held.clear()
    server.over.set()
    done = subprocess.run(
        command(tmp_path, "recover", "--model", model), env=ENVIRONMENT, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        command(tmp_path, "trace", "t"), env=ENVIRONMENT, capture_output=True, timeout=60, check=True
    )
    trace = json.loads(shown.stdout)
    assert trace["status"] == "SUCCESS"
    assert trace["final_output"] == {"left": "did left", "right": "did right"}
    assert {word: server.asked.count(word) for word in asked} == asked
    assert (trace["provider_final"] == "backup") is pool
    verified = subprocess.run(command(tmp_path, "verify", "--all"), env=ENVIRONMENT, capture_output=True)
    assert verified.returncode == 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes()


def _until_journaled(tmp_path: Path, step: str, process: subprocess.Popen[bytes]) -> None:
    from nano_vm import SqliteStore

    with SqliteStore(tmp_path / "runs.db") as store:
        while not any(b"did " + step.encode() in (entry.payload or b"") for entry in store.read("t")):
            assert process.poll() is None
            threading.Event().wait(0.01)
