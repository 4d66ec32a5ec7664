"""What the tests of the gateway share: a real server process on loopback, and the official client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from mcp import StdioServerParameters
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from nano_vm.gateway import tokens
from nano_vm.gateway.state import SUFFIX, GatewayState

ROOT = Path(__file__).resolve().parents[2]
MODERN, LEGACY = "2026-07-28", "legacy"
ERAS = (MODERN, LEGACY)

TOOLS = '''
import pathlib, time
from nano_vm import tool, PENDING

HERE = pathlib.Path(__file__).parent


def note(name):
    with open(HERE / f"{name}.effects", "a") as file:
        file.write("x")


@tool(effect="pure", blocking=False)
def add(a: int, b: int) -> int:
    return a + b


@tool
def pay(amount: int) -> dict:
    note("pay")
    return {"paid": amount}


@tool(effect="idempotent")
def slow(name: str) -> str:
    """Comes back when the file NAME.go is there."""
    note(name)
    while not (HERE / f"{name}.go").exists():
        time.sleep(0.01)
    return name


@tool
def slow_pay(name: str) -> str:
    note(name)
    while not (HERE / f"{name}.go").exists():
        time.sleep(0.01)
    return name


@tool
def broken(secret: str) -> str:
    raise RuntimeError(f"it broke with {secret}")
'''


def program(
    name: str, *steps: dict[str, Any], inputs: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    declared = {key: {"type": kind} for key, kind in (inputs or {}).items()}
    schema = {"type": "object", "properties": declared, "required": list(declared)}
    return {"name": name, "inputs": schema, "steps": list(steps), **more}


ADDER = program(
    "adder",
    {"id": "sum", "type": "tool", "tool": "add", "args": {"a": "$a", "b": 1}},
    inputs={"a": "integer"},
)
PAYER = program(
    "payer",
    {"id": "pay", "type": "tool", "tool": "pay", "args": {"amount": "$amount"}},
    inputs={"amount": "integer"},
)
SLOW = program(
    "slow",
    {"id": "wait", "type": "tool", "tool": "slow", "args": {"name": "$name"}},
    inputs={"name": "string"},
)
APPROVED = program(
    "approved",
    {"id": "ask", "type": "wait", "approvers": ["supervisor"]},
    {
        "id": "ok",
        "type": "condition",
        "condition": "$ask.output.approved == true",
        "then": "pay",
        "otherwise": "no",
    },
    {"id": "pay", "type": "tool", "tool": "pay", "args": {"amount": "$amount"}, "is_terminal": True},
    {
        "id": "no",
        "type": "tool",
        "tool": "add",
        "args": {"a": 0, "b": 0},
        "is_terminal": True,
        "outcome": "denied",
    },
    inputs={"amount": "integer"},
)
LOOP = program(
    "loop",
    {"id": "again", "type": "tool", "tool": "add", "args": {"a": "$n", "b": 1}},
    {"id": "test", "type": "condition", "condition": "$n > 100", "then": "end", "otherwise": "again"},
    {"id": "end", "type": "tool", "tool": "add", "args": {"a": 0, "b": 0}, "is_terminal": True},
    inputs={"n": "integer"},
    max_steps=5_000,
)


class Served:
    """A gateway in a process of its own, over HTTP."""

    def __init__(
        self, directory: Path, *options: str, env: dict[str, str] | None = None, store: str = "runs.db"
    ):
        self.directory = directory
        self.store = directory / store
        self.command = [sys.executable, "-m", "nano_vm.cli", "--store", str(self.store)]
        tools = directory / "tools.py"
        if not tools.exists():
            tools.write_text(TOOLS)
        self.options = ("--port", "0", "--tools", str(tools), *options)
        self.env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **(env or {})}
        self.process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> Served:
        self.log = open(self.directory / "server.log", "a")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*self.command, "mcp", "serve", "--json", *self.options],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=self.env,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.directory / "server.log").read_text()
        self.url = json.loads(line)["listening"]
        return self

    def __enter__(self) -> Served:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if not self.log.closed:
            self.stop()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    @property
    def base(self) -> str:
        return self.url.rsplit("/", 1)[0]

    def cli(self, *words: str) -> Any:
        """A command on the same database; its JSON document."""
        done = subprocess.run(
            [*self.command, *words, "--json"], capture_output=True, text=True, env=self.env, timeout=120
        )
        return json.loads(done.stdout)

    def token(self, principal: str, *roles: str, tenant: str = "default", days: float = 90.0) -> str:
        state = GatewayState(str(self.store) + SUFFIX)
        try:
            return tokens.create(state, principal, roles, tenant, days=days)[0]
        finally:
            state.close()

    def effects(self, name: str) -> int:
        path = self.directory / f"{name}.effects"
        return len(path.read_text()) if path.exists() else 0

    def go(self, name: str) -> None:
        (self.directory / f"{name}.go").touch()

    def http(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """A request by hand: (status, headers, text)."""
        request = urllib.request.Request(self.base + path, data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()


@asynccontextmanager
async def connected(
    target: Any, era: str = MODERN, token: str | None = None, **options: Any
) -> AsyncIterator[Client]:
    """The official client. `target` is a `Served` or a directory to start a stdio server in."""
    if isinstance(target, Served):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # Without verification no certificates are read: on loopback there are none, and reading them takes its time.
        async with httpx2.AsyncClient(headers=headers, timeout=60, verify=False) as web:
            transport = streamable_http_client(target.url, http_client=web)
            async with Client(transport, mode=era, **options) as client:
                yield client
    else:
        served = Served(target)
        words = [*served.command, "mcp", "--tools", str(target / "tools.py")]
        parameters = StdioServerParameters(command=words[0], args=words[1:], env=served.env)
        async with Client(parameters, mode=era, **options) as client:
            yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """A tool's structured result; an error is the document of the error."""
    result = await client.call_tool(tool, arguments)
    assert isinstance(result.structured_content, dict), result
    assert result.is_error or "code" not in (result.structured_content.get("error") or {})
    return result.structured_content


async def until(client: Client, run_id: str, *statuses: str) -> dict[str, Any]:
    """The run once it has one of the statuses."""
    while True:
        trace = await call(client, "get_trace", trace_id=run_id)
        if trace["status"] in statuses:
            return trace
        await asyncio.sleep(0.02)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)
