"""Counts for Prometheus: read by its own reader, over real HTTP, and equal to what the runs did."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from nano_vm import (
    DriftMonitor,
    ExecutionVM,
    MockLLMAdapter,
    Program,
    SqliteStore,
    ToolCall,
    Usage,
    learn_baseline,
    tool,
)
from nano_vm.cli.main import main
from nano_vm.observe.prometheus import CONTENT_TYPE, SECONDS, SERIES_MAX, MetricsServer, RunMetrics
from nano_vm.observe.trajectory import Move, Trajectory
from nano_vm.runtime.ports import Completion
from nano_vm.testing.clock import VirtualClock
from unit.runtime.runtime_stage import refused

parser = pytest.importorskip("prometheus_client.parser")

PROGRAM: dict[str, Any] = {
    "name": 'or"der\\',
    "steps": [
        {"id": "look", "type": "tool", "tool": "look", "args": {"q": "$q"}},
        {"id": "ask", "type": "llm", "prompt": "$q"},
        {"id": "act", "type": "agent", "prompt": "$q", "tools": ["pay"]},
        {"id": "pay", "type": "tool", "tool": "pay", "args": {"n": 1}, "on_error": "retry"},
        {"id": "go", "type": "wait", "seconds": 2, "is_terminal": True, "outcome": "done"},
    ],
}


def machine() -> ExecutionVM:
    failures = iter([True, False])

    @tool(effect="pure")
    def look(q: str) -> str:
        return f"found {q}"

    @tool(effect="idempotent")
    async def pay(n: int) -> int:
        if n == 1 and next(failures):
            raise ValueError("hunter2")
        return n

    proposal = Completion(
        tool_calls=(ToolCall("c", "pay", '{"n": 2}'), ToolCall("d", "drop", "{}")), model="m1"
    )
    model = MockLLMAdapter(
        ["fine", proposal, "done"], usage=Usage(prompt_tokens=5, completion_tokens=7, cost_usd=0.25)
    )
    return ExecutionVM(llm=model, tools=[look, pay], clock=VirtualClock())


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """As Prometheus's own reader sees it."""
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def total(found: dict[Any, float], name: str, **labels: str) -> float:
    return sum(
        value
        for (sample, held), value in found.items()
        if sample == name and labels.items() <= dict(held).items()
    )


def run(vm: ExecutionVM) -> None:
    async def main() -> None:
        trace = await vm.run(PROGRAM, {"q": "secret-order"}, trace_id="r1")
        assert trace.status == "SUSPENDED"
        vm.clock.advance(2_000)
        await vm.recover()
        assert vm.trace("r1").status == "SUCCESS"

    asyncio.run(main())


def test_the_counts_are_what_the_run_did() -> None:
    vm = machine()
    metrics = RunMetrics(vm)
    run(vm)
    found = samples(metrics.text())
    name = PROGRAM["name"]
    assert total(found, "nano_vm_runs_total", workflow=name, status="SUCCESS") == 1
    assert total(found, "nano_vm_tool_attempts_total") == 4
    assert total(found, "nano_vm_tool_attempts_total", tool="pay", error="ValueError") == 1
    assert total(found, "nano_vm_retries_total") == 1
    assert total(found, "nano_vm_llm_calls_total") == 3
    assert total(found, "nano_vm_tokens_total", type="input") == 10
    assert total(found, "nano_vm_cost_usd_total") == 0.5
    assert total(found, "nano_vm_refusals_total", code="UNLISTED_TOOL") == 1
    assert total(found, "nano_vm_run_seconds_count", workflow=name) == 1
    assert total(found, "nano_vm_run_seconds_sum") >= 2
    buckets = [
        value
        for (sample, held), value in sorted(found.items(), key=str)
        if sample == "nano_vm_run_seconds_bucket"
    ]
    assert len(buckets) == len(SECONDS) + 1
    text = metrics.text()
    assert "secret-order" not in text
    assert "hunter2" not in text
    assert "r1" not in text


def test_a_replay_counts_nothing() -> None:
    vm = machine()
    metrics = RunMetrics(vm)
    run(vm)
    before = metrics.text()
    vm.replay("r1")
    vm.verify("r1")
    assert metrics.text() == before
    metrics.close()
    assert vm.listeners == []


def test_the_health_of_a_program_is_a_gauge() -> None:
    healthy = [
        Trajectory(id=str(n), source="made", moves=(Move(activity="a"),), status="SUCCESS") for n in range(30)
    ]
    monitor = DriftMonitor(learn_baseline(healthy))
    metrics = RunMetrics(ExecutionVM(), monitors={"p": monitor})
    assert total(samples(metrics.text()), "nano_vm_drift_health", monitor="p") == 0
    strange = Trajectory(id="x", source="made", moves=(Move(activity="b"),) * 9, status="FAILED")
    for _ in range(20):
        monitor.observe(strange)
    assert total(samples(metrics.text()), "nano_vm_drift_health", monitor="p") == 2


def test_a_worker_serves_what_it_counts(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("name: p\nsteps: [{id: a, type: llm, prompt: x}]\n", encoding="utf-8")
    store = SqliteStore(tmp_path / "runs.db")
    vm = ExecutionVM(MockLLMAdapter("yes"), store=store)
    asyncio.run(vm.start(Program.from_file(file)))
    store.close()
    words = ["worker", "--metrics", "0", "--interval", "0.05", "--model", "mock:yes"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "nano_vm.cli", *words, "--store", str(tmp_path / "runs.db")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stderr is not None
        line = next(line for line in worker.stderr if line.startswith("metrics at "))
        address = line.split()[2]
        found: dict[Any, float] = {}
        while not total(found, "nano_vm_runs_total", workflow="p", status="SUCCESS"):
            assert worker.poll() is None
            with urllib.request.urlopen(address, timeout=10) as answer:
                found = samples(answer.read().decode())
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
        if worker.stderr is not None:
            worker.stderr.close()


@pytest.mark.parametrize(
    "words",
    [
        ["recover", "--metrics", "0"],
        ["worker", "--metrics", "x"],
        ["worker", "--metrics", "1:99999"],
        ["worker", "--metrics", "256.0.0.1:0"],
    ],
)
def test_a_port_that_is_none_is_a_usage_error(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--store", str(tmp_path / "runs.db"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "USAGE"


def test_labels_that_never_end_are_counted_together() -> None:
    metrics = RunMetrics(ExecutionVM())
    for number in range(SERIES_MAX + 50):
        metrics._count("nano_vm_denials_total", "p", f"rule-{number}")
    found = samples(metrics.text())
    assert total(found, "nano_vm_denials_total", workflow="other") == 50
    assert total(found, "nano_vm_denials_total") == SERIES_MAX + 50


def test_prometheus_gets_it_over_http() -> None:
    vm = machine()
    with MetricsServer(RunMetrics(vm)) as server:
        run(vm)
        with urllib.request.urlopen(server.address, timeout=10) as answer:
            assert answer.headers["content-type"] == CONTENT_TYPE
            assert total(samples(answer.read().decode()), "nano_vm_runs_total") == 1
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(server.address.removesuffix("/metrics") + "/other", timeout=10)
        assert missing.value.code == 404
        missing.value.close()
        port = int(server.address.split(":")[2].split("/")[0])
        with refused("USAGE"):
            MetricsServer(RunMetrics(vm), port=port)
