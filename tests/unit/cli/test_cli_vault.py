"""`nano-vm vault`: values come from standard input, and are shown nowhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from unit.cli.conftest import Cli

VALUE = "4242-secret-4242"


@pytest.fixture
def put(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def run(*words: str, value: str = VALUE):
        monkeypatch.setattr(sys, "stdin", io.StringIO(value))
        return cli("vault", "put", *words)

    return run


def test_a_secret_from_the_first_key_to_the_tool(cli: Cli, put, place: Path) -> None:
    assert cli("vault", "list").code == 2  # there is no key
    assert cli("vault", "init").code == 0
    assert cli("vault", "init").code == 2
    assert put("token", "--tool", "send", value=VALUE + "\n").code == 0
    listed = cli("vault", "list", "--json")
    assert [secret["reference"] for secret in listed.json["secrets"]] == ["vault://secret/token"]
    (place / "send.py").write_text(
        "from nano_vm import tool\n"
        "@tool(secrets=['token'])\n"
        "def send(token: str) -> str:\n"
        "    return f'sent {len(token)} {token}'\n"
    )
    (place / "send.yaml").write_text(
        "name: send\nsteps:\n  - {id: send, type: tool, tool: send, args: {token: 'vault://secret/token'}}\n"
    )
    done = cli("run", "send.yaml", "--tools", "send.py", "--json")
    assert done.code == 0
    assert done.json["final_output"] == f"sent {len(VALUE)} vault://secret/token"
    held = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert VALUE.encode() not in held
    assert VALUE not in listed.out + done.out + done.err


def test_keys_are_rotated(cli: Cli, put, place: Path) -> None:
    cli("vault", "init")
    put("token")
    first = cli("vault", "rotate", "token", "--json").json["key"]
    assert cli("vault", "rotate", "token", "--json").json["key"] != first
    before = (place / "nano-vm.db.key").read_bytes()
    assert cli("vault", "rotate", "--kek").code == 0
    assert (place / "nano-vm.db.key").read_bytes() != before
    assert not (place / "nano-vm.db.key.new").exists()
    assert (place / "nano-vm.db.key").stat().st_mode & 0o777 == 0o600
    assert cli("vault", "list").code == 0
    (place / "nano-vm.db.key").write_bytes(before)
    assert cli("vault", "rotate", "token").code == 2


def test_a_hold_forbids_replacing_a_secret(cli: Cli, put, place: Path) -> None:
    cli("vault", "init")
    put("token")
    assert cli("vault", "hold", "token", "--reason", "case 3").code == 0
    assert put("token", value="another").code == 4
    assert cli("vault", "release", "token").code == 0
    assert put("token", value="another").code == 0


def test_an_erased_secret_is_gone(cli: Cli, put, place: Path) -> None:
    cli("vault", "init")
    put("token")
    assert cli("vault", "erase", "token", "--reason", "old").code == 2  # by nobody
    cli("run", "greeting.yaml", "--tools", "tools.py", "--model", "mock:no", "--input", "name=a")
    done = cli("vault", "erase", "token", "--reason", "old", "--principal", "ana", "--json")
    assert (done.code, done.json["stage"], done.json["target"]) == (0, "done", "vault://secret/token")
    assert cli("vault", "list", "--json").json["secrets"] == []
    assert cli("vault", "erase", "token", "--reason", "old", "--principal", "ana").code == 2
    assert [path.name for path in (place / "nano-vm.db.keys" / "keys").iterdir()] == ["index"]


@pytest.mark.parametrize(
    "words",
    [
        ("vault",),
        ("vault", "steal"),
        ("vault", "put"),
        ("vault", "put", "a b"),
        ("vault", "put", "token", "--value", "x"),
        ("vault", "rotate"),
        ("vault", "rotate", "x", "--kek"),
        ("vault", "rotate", "none"),
        ("vault", "hold", "x"),
        ("vault", "list", "--key-file", "missing.key"),
    ],
)
def test_bad_words_are_usage_errors(cli: Cli, put, words: tuple[str, ...], place: Path) -> None:
    cli("vault", "init")
    done = put(*words[2:]) if words[1:2] == ("put",) else cli(*words)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_an_exposed_key_stops_every_command_that_would_use_it(cli: Cli, place: Path) -> None:
    cli("run", "greeting.yaml", "--tools", "tools.py", "--model", "mock:no", "--input", "name=a")
    cli("vault", "init")
    (place / "nano-vm.db.key").chmod(0o644)
    for words in (("vault", "list"), ("run", "greeting.yaml", "--tools", "tools.py", "--model", "mock:no")):
        assert cli(*words).code == 1
