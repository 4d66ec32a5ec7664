"""Escalation: an engine whose runs go wrong begins no more of them, and somebody hears of it - before collapse."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nano_vm import (
    DriftMonitor,
    ExecutionVM,
    MemoryStore,
    Program,
    SqliteStore,
    ToolError,
    learn_baseline,
    tool,
)
from nano_vm.cli.main import main
from nano_vm.errors import CapabilityDeniedError, InputError, StoreError
from nano_vm.observe.alerts import WebhookAlert
from nano_vm.observe.archetypes import ArchetypeMonitor, learn_archetypes
from nano_vm.observe.drift import Health
from nano_vm.observe.escalation import Escalation
from nano_vm.observe.trajectory import of_trace
from nano_vm.testing.clock import VirtualClock

PROGRAM = Program.from_dict(
    {
        "name": "pay",
        "steps": [
            {
                "id": "charge",
                "type": "tool",
                "tool": "charge",
                "args": {"n": "$n"},
                "on_error": "retry",
                "retry": {"initial": 0.001},
            }
        ],
    }
)


def machine(store: Any = None) -> ExecutionVM:
    """Runs with a negative number need a second attempt."""
    seen: set[int] = set()

    @tool(effect="idempotent")
    def charge(n: int) -> int:
        if n < 0 and n not in seen:
            seen.add(n)
            raise ToolError("busy")
        return n

    return ExecutionVM(tools=[charge], store=store, clock=VirtualClock())


def healthy(vm: ExecutionVM, count: int = 100) -> list[Any]:
    """One of twenty needs a second attempt."""
    numbers = (-(n + 1) if n % 20 == 0 else n for n in range(count))
    return [of_trace(vm.run_sync(PROGRAM, {"n": n})) for n in numbers]


def drift_until_paused(vm: ExecutionVM, most: int = 200) -> int | None:
    """Every run needs a second attempt now: after how many nothing begins any more."""
    for n in range(most):
        try:
            vm.run_sync(PROGRAM, {"n": -1_000 - n})
        except CapabilityDeniedError:
            return n
    return None


@pytest.mark.parametrize("kinds", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_nothing_begins_any_more_when_runs_have_degraded(kinds: bool, stored: bool, tmp_path: Path) -> None:
    vm = machine(SqliteStore(tmp_path / "runs.db", durability="normal") if stored else None)
    runs = healthy(vm)
    monitor = ArchetypeMonitor(learn_archetypes(runs)) if kinds else DriftMonitor(learn_baseline(runs))
    told: list[Health] = []
    escalation = Escalation(vm, monitor, alert=lambda report: told.append(report.health))
    healthy(vm, 40)
    assert told == []
    stopped = drift_until_paused(vm)
    assert stopped is not None
    assert stopped < 40
    assert told[-1] is Health.DEGRADED
    (pause,) = vm.paused()
    assert (pause.program, pause.by) == (PROGRAM.hash, "drift-watch")
    assert "`charge` is followed by `charge`" in pause.reason
    asyncio.run(vm.lift_pause(PROGRAM.hash, by="ana"))
    escalation.close()
    assert vm.listeners == []
    assert vm.run_sync(PROGRAM, {"n": 1}).status == "SUCCESS"
    vm.store.close()


def test_an_alert_alone_pauses_nothing() -> None:
    vm = machine()
    told: list[Health] = []
    monitor = DriftMonitor(learn_baseline(healthy(vm)))
    Escalation(vm, monitor, alert=lambda report: told.append(report.health), pause_at=None)
    assert drift_until_paused(vm, 60) is None
    assert told
    assert vm.paused() == []


def test_it_may_pause_earlier() -> None:
    vm, late = machine(), machine()
    Escalation(vm, DriftMonitor(learn_baseline(healthy(vm))), pause_at=Health.DRIFTING)
    Escalation(late, DriftMonitor(learn_baseline(healthy(late))))
    first, second = drift_until_paused(vm), drift_until_paused(late)
    assert first is not None
    assert second is not None
    assert first <= second


def test_runs_of_other_programs_and_tenants_do_not_count() -> None:
    vm = machine()
    monitor = DriftMonitor(learn_baseline(healthy(vm)))
    Escalation(vm, monitor, tenant="acme")
    other = Program.from_dict({**PROGRAM.to_dict(), "version": "2"})
    for n in range(30):
        vm.run_sync(other, {"n": -5_000 - n})
        vm.run_sync(PROGRAM, {"n": -6_000 - n})
    assert monitor.report().runs == 0
    for n in range(30):
        try:
            vm.run_sync(PROGRAM, {"n": -7_000 - n}, tenant="acme")
        except CapabilityDeniedError:
            break
    (pause,) = vm.paused()
    assert pause.tenant == "acme"


def test_a_store_that_is_busy_is_asked_again() -> None:
    class Busy(MemoryStore):
        refusals = 2

        def mark_pause(self, pause: Any) -> None:
            if self.refusals:
                self.refusals -= 1
                raise StoreError("STORE_LOCKED", "busy")
            super().mark_pause(pause)

    vm = machine(Busy())
    Escalation(vm, DriftMonitor(learn_baseline(healthy(vm))))
    assert drift_until_paused(vm) is not None


def test_an_alert_that_fails_holds_up_nobody() -> None:
    async def watched() -> None:
        vm = machine()

        def failing(report: Any) -> None:
            raise ValueError("no network")

        loop = asyncio.get_running_loop()
        heard: list[str] = []
        loop.set_exception_handler(lambda _, facts: heard.append(str(facts["exception"])))
        runs = [of_trace(await vm.run(PROGRAM, {"n": n})) for n in range(40)]
        Escalation(vm, DriftMonitor(learn_baseline(runs)), alert=failing, pause_at=None)
        for n in range(40):
            assert (await vm.run(PROGRAM, {"n": -100 - n})).status == "SUCCESS"
        assert "no network" in heard

    asyncio.run(watched())


def test_the_command_line_pauses_and_lets_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> Any:
        return json.loads(capsys.readouterr().out)

    path = str(tmp_path / "runs.db")
    vm = machine(SqliteStore(path, durability="normal"))
    healthy(vm, 60)
    for n in range(40):
        vm.run_sync(PROGRAM, {"n": -1_000 - n})
    vm.store.close()
    words = ["drift", "pay", "--store", path, "--baseline-runs", "60", "--json"]
    assert main(words) == 0
    assert "paused" not in said()
    assert main([*words, "--pause", "--check"]) == 1
    assert said()["paused"] is True
    assert main(["drift", "--paused", "--store", path, "--json"]) == 0
    (held,) = said()["paused"]
    assert (held["program"], held["by"]) == (PROGRAM.hash, "drift-watch")
    vm = machine(SqliteStore(path, durability="normal"))
    with pytest.raises(CapabilityDeniedError):
        vm.run_sync(PROGRAM, {"n": 1})
    vm.store.close()
    assert (
        main(["drift", "pay", "--resume", "--reason", "mended", "--as", "ana", "--store", path, "--json"])
        == 0
    )
    assert [one["program"] for one in said()["lifted"]] == [PROGRAM.hash]
    assert main(["drift", "pay", "--resume", "--store", path]) == 0
    assert "was not paused" in capsys.readouterr().out
    assert main(["drift", "--paused", "--store", path]) == 0
    assert "nothing is paused" in capsys.readouterr().out
    assert (
        main(
            ["drift", "pay", "--store", path, "--baseline-runs", "30", "--limit", "100", "--pause", "--json"]
        )
        == 0
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--pause", "--store", "x"],
        ["p", "--paused"],
        ["p", "--pause", "--resume"],
        ["f", "--from", "xes", "--pause"],
        ["f", "--from", "xes", "--resume"],
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift", *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "USAGE"


@contextmanager
def receiver(*statuses: int) -> Iterator[tuple[str, list[Any]]]:
    """An HTTP server that answers with these statuses, then with 204; and what came."""
    came: list[Any] = []
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            status = left.pop(0) if left else 204
            if status == 0:  # what is there speaks something else
                self.wfile.write(b"SSH-2.0-x\r\n")
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook?token=hunter2", came
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_alert_arrives_over_http_and_no_run_waits_for_it() -> None:
    vm = machine()
    with receiver(503) as (address, came):
        alert = WebhookAlert(address, program="pay")
        Escalation(vm, DriftMonitor(learn_baseline(healthy(vm))), alert=alert)
        assert drift_until_paused(vm) is not None
        alert.close()
    assert alert.failures == []
    assert [report["health"] for report in came][-1] == "DEGRADED"
    assert came[0] == came[1]  # the first answer was 503: sent again
    assert came[-1]["program"] == "pay"
    assert came[-1]["evidence"][0]["to"] == "charge"


@pytest.mark.parametrize("statuses", [(404,), (500, 502, 503), (302,), (307,), (0, 0, 0)])
def test_an_alert_that_does_not_arrive_is_kept_and_its_address_is_not_told(statuses: tuple[int, ...]) -> None:
    vm = machine()
    report = DriftMonitor(learn_baseline(healthy(vm, 40))).report()
    with receiver(*statuses) as (address, came):
        alert = WebhookAlert(address)
        alert(report)
        alert.close()
    assert len(came) == len(statuses)
    (failure,) = alert.failures
    assert failure.code == "ALERT_FAILED"
    assert failure.retryable
    assert "hunter2" not in f"{failure} {failure.facts}"
    gone = WebhookAlert(address)  # nobody listens there any more
    gone(report)
    gone.close()
    assert [one.code for one in gone.failures] == ["ALERT_FAILED"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "file:///etc/passwd",
        "ftp://host/x",
        "http://",
        "host",
        "http://[::1",
        "http://host:99999/x",
        "http://host/a b",
        "http://h\u00f6st/x",
    ],
)
def test_an_alert_goes_to_http_addresses_alone(address: str) -> None:
    with pytest.raises(InputError) as refused:
        WebhookAlert(address)
    assert refused.value.code == "USAGE"


def test_the_command_line_alerts_unless_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "runs.db")
    vm = machine(SqliteStore(path, durability="normal"))
    healthy(vm, 80)
    words = ["drift", "pay", "--store", path, "--baseline-runs", "60", "--json"]
    with receiver() as (address, came):
        assert main([*words, "--alert", address]) == 0
        assert came == []
        for n in range(30):
            vm.run_sync(PROGRAM, {"n": -1_000 - n})
        vm.store.close()
        capsys.readouterr()
        assert main([*words, "--alert", address]) == 0
        (report,) = came
        assert report == json.loads(capsys.readouterr().out)
        assert report["program"]["name"] == "pay"
    assert main([*words, "--alert", address]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "ALERT_FAILED"
    assert main([*words, "--alert", "mail:ana"]) == 2
    capsys.readouterr()
