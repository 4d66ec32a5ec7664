"""What the gateway adds to a call: round trips beside a bare server of the official SDK, and a hundred clients at once.

    python benchmarks/gateway.py [--calls N] [--clients N]

Both servers run over HTTP in processes of their own, on loopback; the client posts by hand, so that its own cost does
not hide theirs. The bare server's tool adds two numbers. The gateway's runs a program with a tool that does the same:
one journaled, durable run per call (SQLite, every commit synced).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2

ROOT = Path(__file__).resolve().parents[1]
MODERN = "2026-07-28"

BARE = """
import asyncio, socket, sys
import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server


async def list_tools(ctx, params):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    return types.ListToolsResult(tools=[types.Tool(name="add", description="Adds.", input_schema=schema)])


async def call_tool(ctx, params):
    total = params.arguments["a"] + params.arguments["b"]
    content = [types.TextContent(type="text", text=str(total))]
    return types.CallToolResult(content=content, structured_content={"result": total})


server = Server("bare", on_list_tools=list_tools, on_call_tool=call_tool)
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp", flush=True)
config = uvicorn.Config(server.streamable_http_app(), log_level="error", access_log=False)
asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
"""

TOOLS = """
from nano_vm import tool


@tool(effect="pure", blocking=False)
def add(a: int, b: int) -> int:
    return a + b
"""

PROGRAM = {
    "name": "adder",
    "inputs": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
    "steps": [{"id": "sum", "type": "tool", "tool": "add", "args": {"a": "$a", "b": "$b"}}],
}


class Caller:
    """Posts calls of one tool to a server."""

    def __init__(self, web: httpx2.AsyncClient, url: str, tool: str) -> None:
        self.web, self.url, self.tool = web, url, tool
        self.headers = {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "MCP-Protocol-Version": MODERN,
            "Mcp-Method": "tools/call",
            "Mcp-Name": tool,
        }

    async def call(self, arguments: dict, tool: str | None = None) -> dict:
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params = {"name": tool or self.tool, "arguments": arguments, "_meta": meta}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {**self.headers, "Mcp-Name": tool} if tool else self.headers
        answer = await self.web.post(self.url, content=json.dumps(body), headers=headers)
        text = answer.text
        if "event-stream" in answer.headers["content-type"]:
            text = [line for line in text.splitlines() if line.startswith("data: ")][-1][6:]
        result: dict = json.loads(text)["result"]
        assert not result.get("isError"), result
        return result


async def sequential(caller: Caller, calls: int) -> list[float]:
    times = []
    for number in range(calls + 20):
        began = time.perf_counter()
        await caller.call({"a": number, "b": 1})
        if number >= 20:
            times.append(time.perf_counter() - began)
    return times


async def crowd(caller: Caller, clients: int, calls: int) -> list[float]:
    times: list[float] = []

    async def client(number: int) -> None:
        for turn in range(calls):
            began = time.perf_counter()
            await caller.call({"a": number, "b": turn})
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return times


def start(words: list[str]) -> tuple[subprocess.Popen, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    return process, json.loads(line)["listening"] if line.startswith("{") else line


async def measure(calls: int, clients: int, directory: Path) -> dict[str, float]:
    (directory / "bare.py").write_text(BARE)
    (directory / "tools.py").write_text(TOOLS)
    gateway = [
        sys.executable,
        "-m",
        "nano_vm.cli",
        "--store",
        str(directory / "runs.db"),
        "mcp",
        "serve",
        "--json",
    ]
    (directory / "gateway.json").write_text(json.dumps({"limits": {"requests_per_minute": 10_000_000}}))
    options = [
        "--port",
        "0",
        "--tools",
        str(directory / "tools.py"),
        "--config",
        str(directory / "gateway.json"),
    ]
    bare, bare_url = start([sys.executable, str(directory / "bare.py")])
    ours, ours_url = start([*gateway, *options])
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    found: dict[str, float] = {}
    try:
        async with httpx2.AsyncClient(limits=limits, timeout=120) as web:
            plain, program = Caller(web, bare_url, "add"), Caller(web, ours_url, "program_adder")
            await program.call({"program": PROGRAM}, "save_program")
            rounds = {"bare": [], "gateway": []}
            for _ in range(3):  # side by side, so that both see the same machine
                rounds["bare"] += await sequential(plain, calls // 3)
                rounds["gateway"] += await sequential(program, calls // 3)
            for name, times in rounds.items():
                found[f"{name} p50 ms"] = statistics.median(times) * 1_000
            found["round trip, ratio"] = found["gateway p50 ms"] / found["bare p50 ms"]
            for name, caller in (("bare", plain), ("gateway", program)):
                began = time.perf_counter()
                times = sorted(await crowd(caller, clients, 5))
                found[f"{name} {clients} clients, p50 ms"] = statistics.median(times) * 1_000
                found[f"{name} {clients} clients, p99 ms"] = times[int(len(times) * 0.99)] * 1_000
                found[f"{name} {clients} clients, calls/s"] = len(times) / (time.perf_counter() - began)
            found["p99, ratio"] = (
                found[f"gateway {clients} clients, p99 ms"] / found[f"bare {clients} clients, p99 ms"]
            )
    finally:
        for process in (bare, ours):
            process.terminate()
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()
    return found


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--clients", type=int, default=100)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        found = asyncio.run(measure(options.calls, options.clients, Path(place)))
    for name, value in found.items():
        print(f"{name:<36} {value:10.2f}")
    return found


if __name__ == "__main__":
    main()
