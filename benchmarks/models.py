"""What model calls cost beside the model: the adapter, the pool's switch-over, the cache, many runs at once.

The model is an HTTP server in a process of its own on loopback, which answers at once or after a given time.

    python benchmarks/models.py
    python benchmarks/models.py --quick      # one small round, without verdicts

Printed are ratios taken within one round, interleaved; median, smallest and largest over the rounds.

  adapter    a call through OpenAICompatibleAdapter / the same call with bare httpx on a kept connection
  pool       a call through a ProviderPool with a ModelStore / through its adapter alone
  hit        a cached answer / a miss against a server that answers at once; also in milliseconds
  switch     from the kill of a provider in the middle of a request to the answer of the next / a call; also in ms
  many       200 runs at once against a slow server / the server's latency

Exit code: 0 every requirement met, 1 one was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src"
sys.path.insert(0, str(SOURCE))

from nano_vm import (  # noqa: E402
    ExecutionVM,
    ModelCache,
    ModelStore,
    OpenAICompatibleAdapter,
    Provider,
    ProviderPool,
)

MESSAGES = [{"role": "user", "content": "Is the cup damaged? Answer yes or no."}]
PROGRAM = {"name": "ask", "steps": [{"id": "ask", "type": "llm", "prompt": MESSAGES[0]["content"]}]}
LIMITS = {"adapter": 1.5, "pool": 1.5, "hit": 0.5, "hit_ms": 10.0, "switch_ms": 1_000.0, "many": 1.75}


# --- the server -----------------------------------------------------------------------------------------------


async def serve(latency_s: float, hold: bool) -> None:
    """OpenAI-style completions, as little of HTTP as a client needs. With `hold` a request is never answered."""
    body = json.dumps(
        {
            "model": "m",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13},
        }
    ).encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                if hold:
                    print("holding", flush=True)
                    await asyncio.Event().wait()
                if latency_s:
                    await asyncio.sleep(latency_s)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1_024)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until whoever started us is gone


class Server:
    def __init__(self, latency_s: float = 0.0, *, hold: bool = False) -> None:
        command = [sys.executable, __file__, "--serve", str(latency_s), *(["--hold"] if hold else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().split()[1]}/v1"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def wait_until_it_holds(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "holding\n"


# --- the questions --------------------------------------------------------------------------------------------


async def timed(call: Callable[[], Awaitable[Any]], times: int) -> float:
    """Seconds of one call, the median of `times`."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


async def calls(url: str, times: int, directory: Path) -> dict[str, float]:
    import httpx

    adapter = OpenAICompatibleAdapter(url, model="m", api_key="key")
    with ModelStore(directory / "pool") as memory, ModelStore(directory / "cache") as kept:
        pool = ProviderPool([Provider("only", adapter)], memory=memory)
        cache = ModelCache(adapter, kept)
        number = 0

        async def miss() -> None:
            nonlocal number
            number += 1
            await cache.complete([{"role": "user", "content": f"{MESSAGES[0]['content']} {number}"}])

        async with httpx.AsyncClient(headers={"authorization": "Bearer key"}) as client:

            async def bare() -> None:
                reply = await client.post(
                    f"{url}/chat/completions", json={"model": "m", "messages": MESSAGES}
                )
                reply.raise_for_status()
                assert reply.json()["choices"][0]["message"]["content"] == "yes"

            await bare()
            await cache.complete(MESSAGES)
            found = {
                "bare": await timed(bare, times),
                "adapter": await timed(lambda: adapter.complete(MESSAGES), times),
                "pool": await timed(lambda: pool.complete(MESSAGES), times),
                "miss": await timed(miss, times),
                "hit": await timed(lambda: cache.complete(MESSAGES), times),
            }
        assert cache.hits == times
    return {
        "adapter": found["adapter"] / found["bare"],
        "pool": found["pool"] / found["adapter"],
        "hit": found["hit"] / found["miss"],
        "hit_ms": found["hit"] * 1_000,
    }


async def switch(backup_url: str, directory: Path) -> dict[str, float]:
    """A provider is killed in the middle of a request."""
    with Server(hold=True) as primary, ModelStore(directory / "switch") as memory:
        backup = OpenAICompatibleAdapter(backup_url, model="m")
        await backup.complete(MESSAGES)
        call = await timed(lambda: backup.complete(MESSAGES), 5)
        pool = ProviderPool(
            [
                Provider("primary", OpenAICompatibleAdapter(primary.url, model="m")),
                Provider("backup", backup),
            ],
            memory=memory,
        )
        task = asyncio.create_task(pool.complete(MESSAGES))
        await asyncio.to_thread(primary.wait_until_it_holds)
        began = time.perf_counter()
        primary.process.kill()
        answer = await task
        took = time.perf_counter() - began
        assert answer.provider == "backup"
        return {"switch": took / call, "switch_ms": took * 1_000}


async def many(latency_s: float, runs: int) -> dict[str, float]:
    """Runs at once against a server that takes its time."""
    with Server(latency_s) as server:
        vm = ExecutionVM(llm=OpenAICompatibleAdapter(server.url, model="m", timeout_seconds=60))
        began = time.perf_counter()
        traces = await asyncio.gather(*(vm.run(PROGRAM) for _ in range(runs)))
        took = time.perf_counter() - began
        assert [trace.final_output for trace in traces] == ["yes"] * runs
        return {"many": took / latency_s}


def measure(rounds: int, times: int, latency_s: float, runs: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, Server() as server:
        for number in range(rounds):
            directory = Path(temporary) / str(number)
            directory.mkdir()
            for part in (
                asyncio.run(calls(server.url, times, directory)),
                asyncio.run(switch(server.url, directory)),
                asyncio.run(many(latency_s, runs)),
            ):
                for name, value in part.items():
                    found.setdefault(name, []).append(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        asyncio.run(serve(args.serve, args.hold))
        return 0
    found = measure(1, 5, 0.2, 10) if args.quick else measure(args.rounds, 200, 2.0, 200)
    missed = []
    rows = []
    for name, values in found.items():
        median = statistics.median(values)
        limit = LIMITS.get(name)
        met = limit is None or median <= limit
        if not met:
            missed.append(name)
        rows.append(
            {
                "name": name,
                "median": median,
                "least": min(values),
                "most": max(values),
                "limit": limit,
                "met": met,
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            unit = " ms" if row["name"].endswith("_ms") else "×"
            limit = (
                ""
                if row["limit"] is None
                else f"  (at most {row['limit']:g}{unit}{'' if row['met'] else ' - MISSED'})"
            )
            print(
                f"{row['name']:<10} {row['median']:8.3f}{unit}  {row['least']:.3f} … {row['most']:.3f}{limit}"
            )
    return 1 if missed and not args.quick else 0


if __name__ == "__main__":
    sys.exit(main())
