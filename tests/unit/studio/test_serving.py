"""The command that serves the studio: on loopback, for loopback, and until it is told to stop."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("streamlit", reason="the extra [studio] is not installed")

from nano_vm.cli.main import main
from nano_vm.studio.launch import options
from unit.studio.studio_stage import Stage


@pytest.fixture(scope="module")
def address(filled: Stage) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "nano_vm.cli", "studio", "--store", str(filled.path), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    assert (said["acting"], said["store"]) == (False, str(filled.path))
    yield said["listening"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()


def ask(address: str, path: str = "/", **headers: str) -> tuple[int, dict[str, str]]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def test_only_this_machine_is_listened_to_and_the_address_holds_a_key(address: str) -> None:
    parts = urlsplit(address)
    assert parts.hostname == "127.0.0.1"
    assert len(parse_qs(parts.query)["key"][0]) >= 32
    assert ask(address)[0] == 200
    listening = [
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{parts.port:04X}")
    ]
    assert listening == [f"0100007F:{parts.port:04X}"]


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def session(address: str, **headers: str) -> int:
    """What opening a session is answered with: everything that is shown comes over one."""
    origin = f"http://127.0.0.1:{urlsplit(address).port}"
    return ask(address, "/_stcore/stream", **{"Origin": origin, **UPGRADE, **headers})[0]


def test_a_session_is_opened_by_a_page_of_the_studio_alone(address: str) -> None:
    assert session(address) == 101
    assert session(address, Origin="https://evil.example") != 101


def test_a_name_that_somebody_else_points_at_this_machine_opens_no_session(address: str) -> None:
    assert session(address, Host="evil.example", Origin="http://evil.example") != 101


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["studio", "--store", str(tmp_path / "no.db"), "--port", port, "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["facts"]["port"]) == ("GATEWAY_ADDRESS", int(port))
    assert main(["studio", "--store", str(tmp_path / "no.db"), "--port", "99999"]) == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--tools", "nowhere.py"], 2),
        (["--policy", "nowhere.yaml"], 2),
        (["--role", "operator"], 2),
        (["--principal", "ana", "--role", "operator", "--model", "nonsense"], 2),
    ],
)
def test_what_is_wrong_with_the_options_is_said_before_anything_is_served(
    tmp_path: Path, words: list[str], code: int
) -> None:
    assert main(["studio", "--store", str(tmp_path / "no.db"), "--port", "0", *words]) == code


def test_nothing_in_the_options_calls_out() -> None:
    given: dict[str, Any] = options(1)
    assert given["browser_gatherUsageStats"] is False
    assert given["server_address"] == "127.0.0.1"
    assert given["client_showErrorDetails"] == "none"
