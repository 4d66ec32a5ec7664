"""One key is one execution; a killed gateway loses and repeats nothing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import random
import signal
import socket
import sqlite3
import urllib.parse
from pathlib import Path

import pytest
from gateway_stage import (
    ADDER,
    ERAS,
    LEGACY,
    MODERN,
    PAYER,
    ROOT,
    SLOW,
    Served,
    call,
    connected,
    program,
    run,
    until,
)

from begun_erasures import begin_erasure
from nano_vm import ExecutionVM, SqliteStore, Vault
from nano_vm.vault.kek import make_key_file

SLOW_PAY = program(
    "slow_pay",
    {"id": "wait", "type": "tool", "tool": "slow_pay", "args": {"name": "$name"}},
    inputs={"name": "string"},
)
TWO = program(
    "two",
    {"id": "first", "type": "tool", "tool": "pay", "args": {"amount": "$amount"}},
    {"id": "second", "type": "tool", "tool": "slow", "args": {"name": "$name"}},
    inputs={"amount": "integer", "name": "string"},
)


def test_one_key_is_one_execution_across_calls_eras_and_processes(tmp_path: Path) -> None:
    async def session(one: Served, other: Served) -> None:
        async with (
            connected(one, MODERN) as first,
            connected(one, LEGACY) as second,
            connected(other, MODERN) as third,
        ):
            clients = [first, second, third] * 8
            arguments = {"program": PAYER, "inputs": {"amount": 5}, "idempotency_key": "k"}
            answers = await asyncio.gather(*(call(client, "run_program", **arguments) for client in clients))
            assert {answer["trace_id"] for answer in answers} == {answers[0]["trace_id"]}
            assert {answer["status"] for answer in answers} == {"SUCCESS"}
            conflict = await call(third, "run_program", **{**arguments, "inputs": {"amount": 6}})
            assert conflict["error"]["code"] == "KEY_CONFLICT"
        assert one.effects("pay") == 1

    with Served(tmp_path) as one, Served(tmp_path) as other:
        run(session(one, other))


@pytest.mark.parametrize("era", ERAS[:1])
def test_a_killed_gateway_takes_its_runs_up_again(tmp_path: Path, era: str) -> None:
    with Served(tmp_path) as served:
        kill_and_take_up(served, era)


def kill_and_take_up(served: Served, era: str) -> None:
    asked = {"program": TWO, "inputs": {"amount": 3, "name": "gate"}, "idempotency_key": "once"}
    risky = {"program": SLOW_PAY, "inputs": {"name": "risky"}}

    async def before() -> tuple[str, str]:
        async with connected(served, era) as client:
            safe = await call(client, "run_program", **asked, wait_seconds=0)
            unsafe = await call(client, "run_program", **risky, wait_seconds=0)
            while not (served.effects("gate") and served.effects("risky")):
                await asyncio.sleep(0.01)
            return safe["trace_id"], unsafe["trace_id"]

    safe, unsafe = run(before())
    served.kill()
    served.go("gate")
    served.go("risky")
    served.start()

    async def after() -> None:
        async with connected(served, era) as client:
            ended = await until(client, safe, "SUCCESS")
            assert ended["path"] == ["first", "second"]
            repeated = await call(client, "run_program", **asked)
            assert (repeated["trace_id"], repeated["status"]) == (safe, "SUCCESS")
            # What nobody knows is not repeated: the run waits, and says for what.
            waits = await until(client, unsafe, "SUSPENDED")
            assert [wait["kind"] for wait in waits["waiting"]] == ["outcome"]
            answer = waits["waiting"][0]["answer_with"]
            settled = await call(client, answer["tool"], **answer["arguments"])
            assert settled["status"] == "SUCCESS"

    run(after())
    assert served.stop() == 0
    assert (served.effects("pay"), served.effects("risky")) == (1, 1)
    assert served.cli("verify")["ok"] is True


PRIVATE = program("private", {"id": "w", "type": "wait", "event": "go"}, subject="$who") | {
    "inputs": {"type": "object", "properties": {"who": {"type": "string", "private": True}}}
}


def test_a_gateway_completes_the_erasure_that_a_crash_has_cut(tmp_path: Path) -> None:
    make_key_file(tmp_path / "runs.db.key")
    vault = Vault.beside(tmp_path / "runs.db")
    with SqliteStore(tmp_path / "runs.db") as store:
        ExecutionVM(store=store, vault=vault).run_sync(PRIVATE, {"who": "Ada"}, trace_id="r")
    begin_erasure(vault, subject="Ada", reason="asked", by={"id": "ana"})
    with Served(tmp_path) as served:  # before it answers
        (erasure,) = Vault.beside(tmp_path / "runs.db").all_erasures()
        assert (erasure.stage, erasure.runs) == ("done", ["r"])
        assert served.cli("verify", "r")["ok"] is True


def test_what_a_gateway_takes_up_and_cannot_drive_is_in_its_log_once(tmp_path: Path) -> None:
    config = tmp_path / "gateway.json"
    config.write_text(json.dumps({"recover_seconds": 0.05}))
    with SqliteStore(tmp_path / "runs.db") as store:
        vm = ExecutionVM(store=store, tools={"add": lambda a, b: a + b})
        asyncio.run(vm.start(ADDER, {"a": 1}, trace_id="broken"))
        asyncio.run(vm.start(ADDER, {"a": 2}, trace_id="sound"))
    with contextlib.closing(sqlite3.connect(tmp_path / "runs.db")) as con, con:
        con.execute("DROP TRIGGER nvm_segments_no_update")
        con.execute(
            "UPDATE nvm_segments SET facts = replace(CAST(facts AS TEXT), 'RunStarted', 'RunStarned') "
            "WHERE run = (SELECT no FROM nvm_runs WHERE run_id = 'broken')"
        )
    with Served(tmp_path, "--config", str(config)) as served:

        async def session() -> None:
            async with connected(served) as client:
                await until(client, "sound", "SUCCESS")
                for _ in range(3):  # whole rounds of looking lie between these
                    done = await call(client, "run_program", program=ADDER, inputs={"a": 3}, paused=True)
                    await call(client, "step_run", trace_id=done["trace_id"], finish=True)

        run(session())
    told = (tmp_path / "server.log").read_text()
    assert told.count("run broken could not be driven on") == 1, told


def test_a_stopped_gateway_drains(tmp_path: Path) -> None:
    """Calls under way finish, and are journaled, before the process ends; a call that waits is answered."""
    with Served(tmp_path) as served:
        stop_and_drain(served)


def stop_and_drain(served: Served) -> None:
    answers: list[dict[str, object]] = []

    async def session() -> None:
        async with connected(served, LEGACY) as client:
            await (
                client.list_tools()
            )  # else the client asks for the schema of the answer, when nobody is there
            asked = asyncio.ensure_future(
                call(client, "run_program", program=SLOW, inputs={"name": "held"}, idempotency_key="k")
            )
            while not served.effects("held"):
                await asyncio.sleep(0.01)
            assert served.process is not None
            served.process.send_signal(signal.SIGTERM)
            served.go("held")
            answers.append(await asked)

    with contextlib.suppress(Exception):  # closing its session, the client finds nobody
        run(session())
    (answer,) = answers
    assert served.stop() == 0
    assert answer["status"] in ("SUCCESS", "RUNNING")
    assert served.effects("held") == 1
    assert served.cli("verify")["ok"] is True
    served.start()

    async def again() -> dict[str, object]:
        async with connected(served) as client:
            return await call(
                client, "run_program", program=SLOW, inputs={"name": "held"}, idempotency_key="k"
            )

    assert run(again())["trace_id"] == answer["trace_id"]
    assert served.effects("held") == 1


def storm(directory: Path, kills: int, seed: int) -> None:
    """Clients that repeat their calls until they are answered, and a gateway that dies again and again: every key ends
    SUCCESS with one effect."""
    with Served(directory) as served:
        weather(served, kills, random.Random(seed))


def weather(served: Served, kills: int, chance: random.Random) -> None:
    wanted = kills * 6
    answered: dict[str, str] = {}

    async def ask(key: str) -> None:
        for _ in range(500):
            try:
                async with connected(served, chance.choice(ERAS), read_timeout_seconds=10) as client:
                    ran = await call(
                        client, "run_program", program=PAYER, inputs={"amount": 1}, idempotency_key=key
                    )
                    while ran.get("status") == "RUNNING":
                        ran = await call(client, "get_trace", trace_id=ran["trace_id"])
                    if "status" in ran:
                        answered[key] = ran["trace_id"]
                        return
            except Exception:
                await asyncio.sleep(0.02)

    async def killing() -> None:
        for count in range(kills):
            target = wanted * (count + 1) // (kills + 1)
            while len(answered) < target:
                await asyncio.sleep(0.005)
            await asyncio.sleep(chance.random() * 0.02)
            await asyncio.to_thread(served.kill)
            await asyncio.to_thread(served.start)

    async def all_of_it() -> None:
        lanes = asyncio.Semaphore(8)

        async def lane(number: int) -> None:
            async with lanes:
                await ask(f"key-{number}")

        await asyncio.gather(killing(), *(lane(number) for number in range(wanted)))

    run(all_of_it())
    assert len(answered) == wanted

    async def afterwards() -> int:
        unknown = 0
        async with connected(served) as client:
            for run_id in answered.values():
                trace = await until(client, run_id, "SUCCESS", "SUSPENDED")
                unknown += trace["status"] == "SUSPENDED"
        return unknown

    unknown = run(afterwards())
    assert served.stop() == 0
    # A run that was killed in the middle of its payment waits for somebody who knows; none is paid twice.
    assert wanted - unknown <= served.effects("pay") <= wanted
    assert len(set(answered.values())) == wanted
    assert served.cli("verify")["ok"] is True


def test_a_few_kills_lose_nothing(tmp_path: Path) -> None:
    storm(tmp_path, 1, 1)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(10))
def test_fifty_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    storm(tmp_path, 5, seed)


def test_a_huge_program_and_a_large_input_are_refused_or_run(tmp_path: Path) -> None:
    async def session(served: Served) -> None:
        steps = [
            {"id": f"s{number}", "type": "tool", "tool": "add", "args": {"a": 1, "b": number}}
            for number in range(2_000)
        ]
        huge = program("huge", *steps)
        async with connected(served) as client:
            ran, other = await asyncio.gather(
                call(client, "run_program", program=huge),
                call(client, "run_program", program=ADDER, inputs={"a": 1}),
            )
            assert (ran["status"], ran["output"], other["output"]) == ("SUCCESS", 2_000, 2)
            trace = await call(client, "get_trace", trace_id=ran["trace_id"], limit=5)
            assert (len(trace["steps"]), trace["steps_total"], trace["next_offset"]) == (5, 2_000, 5)

    with Served(tmp_path) as served:
        run(session(served))


def test_who_does_not_read_or_finish_holds_nobody_up(tmp_path: Path) -> None:
    """Clients that ask and never read, and clients that never finish asking."""
    ask = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}).encode()
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nMCP-Protocol-Version: {MODERN}\r\n"
        f"Mcp-Method: tools/list\r\nAccept: application/json, text/event-stream\r\nContent-Length: {len(ask)}\r\n\r\n"
    ).encode()

    async def session(served: Served) -> None:
        async with connected(served) as client:
            assert (await call(client, "run_program", program=ADDER, inputs={"a": 1}))["output"] == 2

    with Served(tmp_path) as served, contextlib.ExitStack() as sockets:
        address = urllib.parse.urlsplit(served.url)
        for number in range(60):
            one = sockets.enter_context(socket.create_connection((address.hostname, address.port)))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(20):  # answers that are never read fill what the system keeps for them
                    one.sendall(head + ask if number % 2 else head + ask[:10])
        assert served.http("/health")[0] == 200
        run(session(served))


META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def test_text_that_is_not_unicode_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    """JSON can write an unpaired surrogate; no client library would."""
    lone = "\ud800"
    with Served(tmp_path) as served:

        def asked(method: str, name: str, arguments: dict[str, object], **meta: str) -> object:
            headers = {
                "Content-Type": "application/json",
                "Accept": "application/json, text/event-stream",
                "MCP-Protocol-Version": MODERN,
                "Mcp-Method": method,
                "Mcp-Name": name,
            }
            params = {"name": name, "arguments": arguments, "_meta": {**META, **meta}}
            message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            answer = json.loads(served.http("/mcp", json.dumps(message).encode(), headers)[2])
            if "error" in answer:
                return answer["error"]["data"]["code"]
            return answer["result"]["structuredContent"].get("error", {}).get("code")

        assert asked("tools/call", "save_program", {"program": ADDER}) is None
        for name, arguments in (
            ("get_trace", {"trace_id": lone}),
            ("get_trace", {"trace_id": 1, "outputs": lone}),
            ("list_runs", {"program": lone}),
            ("list_programs", {"after": {lone: 1}}),
            ("get_program", {"program": lone}),
            ("run_program", {"program": "adder", "inputs": {"a": 1}, "idempotency_key": lone}),
            ("run_program", {"program": "adder", "inputs": {"a": lone}}),
            ("program_adder", {"a": lone}),
        ):
            assert asked("tools/call", name, arguments) == "VALUE_STRING", (name, arguments)
        assert (
            asked("tools/call", "program_adder", {"a": 1}, **{"io.nano-vm/idempotencyKey": lone})
            == "VALUE_STRING"
        )
        assert asked("prompts/get", "explain_run", {"trace_id": lone}) == "VALUE_STRING"
        assert asked("prompts/get", "write_program", {"goal": lone}) == "VALUE_STRING"
        assert "INTERNAL" not in (tmp_path / "server.log").read_text()


@pytest.mark.campaign
def test_the_benchmark_runs() -> None:
    path = ROOT / "benchmarks" / "gateway.py"
    spec = importlib.util.spec_from_file_location("benchmark_gateway", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    found = module.main(["--calls", "6", "--clients", "4"])
    assert found["round trip, ratio"] > 0
