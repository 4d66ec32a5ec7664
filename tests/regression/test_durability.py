"""What happened twice, vanished, or was only in memory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from regression_stage import DONE, Tools, play, program, run, tool_step

import nano_vm
from nano_vm import PENDING, ExecutionVM, NanoVMError, RunStatus, SqliteStore
from nano_vm.testing.clock import VirtualClock

WAITS = program(tool_step("pay"), {"id": "w", "type": "wait", "event": "go"}, tool_step("ship"))


def test_a_run_waits_in_the_store_and_not_in_memory(tmp_path: Path) -> None:
    tools = Tools("pay", "ship")
    with SqliteStore(tmp_path / "r.db") as store:
        run_id = run(ExecutionVM(tools=tools, store=store), WAITS).trace_id
    with SqliteStore(tmp_path / "r.db") as store:
        trace = play(ExecutionVM(tools=tools, store=store).resume(run_id, 1))
    assert trace.status is RunStatus.SUCCESS
    assert tools.calls == ["pay", "ship"]


CHARGES = """
import os, signal, sys
from nano_vm import ExecutionVM, SqliteStore

def note(word):
    with open(sys.argv[2], "a") as file:
        file.write(word + "\\n")

def charge():
    note("charge")

def mail():
    note("mail")
    os.kill(os.getpid(), signal.SIGKILL)

steps = [{"id": name, "type": "tool", "tool": name} for name in ("charge", "mail")]
vm = ExecutionVM(tools=[charge, mail], store=SqliteStore(sys.argv[1]))
vm.run_sync({"name": "p", "steps": steps}, trace_id="r")
"""


def test_a_killed_process_charges_once(tmp_path: Path) -> None:
    database, notes = tmp_path / "r.db", tmp_path / "notes"
    source = str(Path(nano_vm.__file__).parents[1])
    argv = [sys.executable, "-c", CHARGES, str(database), str(notes)]
    killed = subprocess.run(argv, env={**os.environ, "PYTHONPATH": source}, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    tools = Tools("charge", "mail")
    with SqliteStore(database) as store:
        vm = ExecutionVM(tools=tools, store=store)
        (trace,) = play(vm.recover())
        assert trace.status is RunStatus.SUSPENDED
        assert [(wait.kind, wait.step) for wait in trace.waiting] == [("outcome", "mail")]
        trace = play(vm.resolve("r", "mail", "succeeded"))
        assert trace.status is RunStatus.SUCCESS
    assert tools.calls == []
    assert notes.read_text().split() == ["charge", "mail"]


def test_three_resumes_at_once_ship_once(tmp_path: Path) -> None:
    tools = Tools("pay", "ship")

    async def main() -> None:
        vms = [ExecutionVM(tools=tools, store=SqliteStore(tmp_path / "r.db")) for _ in range(3)]
        run_id = (await vms[0].run(WAITS)).trace_id
        calls = [vm.resume(run_id, number) for number, vm in enumerate(vms)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(one, NanoVMError) for one in found) == 2, found
        assert vms[0].trace(run_id).status is RunStatus.SUCCESS
        for vm in vms:
            await vm.close()

    play(main())
    assert tools.calls.count("ship") == 1


def test_one_idempotency_key_is_one_execution(tmp_path: Path) -> None:
    tools = Tools("pay")

    async def main() -> None:
        async with ExecutionVM(tools=tools, store=SqliteStore(tmp_path / "r.db")) as vm:
            calls = [vm.run(program(tool_step("pay")), {"n": 1}, idempotency_key="k") for _ in range(5)]
            assert len({trace.trace_id for trace in await asyncio.gather(*calls)}) == 1

    play(main())
    assert tools.calls == ["pay"]


def test_a_failed_run_is_given_back_as_failed() -> None:
    vm = ExecutionVM(tools=Tools(pay=ValueError("no")))
    for _ in range(2):
        trace = run(vm, program(tool_step("pay")), idempotency_key="k")
        assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "ValueError")


def group(*subs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "g", "type": "parallel", "parallel_steps": list(subs), **fields}


def test_a_retried_parallel_does_not_charge_again() -> None:
    tools = Tools("charge", mail=ValueError("no"))
    data = program(group(tool_step("charge"), tool_step("mail"), on_error="retry", max_retries=3))
    trace = run(ExecutionVM(tools=tools, clock=VirtualClock()), data)
    assert trace.status is RunStatus.FAILED
    assert (tools.calls.count("charge"), tools.calls.count("mail")) == (1, 3)


def test_a_charge_stays_in_the_trace_when_its_sibling_fails() -> None:
    trace = run(
        ExecutionVM(tools=Tools("charge", mail=ValueError("no"))),
        program(group(tool_step("charge"), tool_step("mail"))),
    )
    assert trace.status is RunStatus.FAILED
    charge = trace.step("charge")
    assert (charge.status.value, charge.output) == ("SUCCESS", "charge")


def test_max_retries_counts_attempts() -> None:
    tools = Tools(pay=ValueError("no"))
    data = program(tool_step("pay", on_error="retry", max_retries=3))
    assert run(ExecutionVM(tools=tools, clock=VirtualClock()), data).step("pay").attempts == 3
    assert tools.calls == ["pay"] * 3


def test_a_tool_that_answers_later_is_called_once() -> None:
    tools = Tools("ship", pay=PENDING)

    async def main() -> None:
        vm = ExecutionVM(tools=tools)
        parked = await vm.run(program(tool_step("pay"), tool_step("ship", **DONE)))
        await vm.resume(parked.trace_id, "paid", event_id="e")
        again = await vm.resume(parked.trace_id, "paid", event_id="e")
        assert again.step("pay").output == "paid"

    play(main())
    assert tools.calls == ["pay", "ship"]
