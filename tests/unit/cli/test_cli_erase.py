"""`nano-vm erase`: from a private run to its tombstones, through the real command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from begun_erasures import begin_erasure
from nano_vm import Vault
from unit.cli.conftest import Cli, start

NAME = "Ada Lovelace of St James"
PROGRAM = """
name: claim
subject: $who
inputs: {type: object, properties: {who: {type: string, private: true}}, required: [who]}
steps:
  - {id: a, type: tool, tool: echo, args: {x: $who}}
  - {id: s, type: tool, tool: split, args: {x: $a.output}}
  - {id: m, type: map, over: $s.output, max_items: 9, step: {id: one, type: tool, tool: echo, args: {x: $item}}}
  - {id: w, type: wait, event: go, private: true}
"""


@pytest.fixture
def claim(cli: Cli, place: Path) -> str:
    (place / "claim.yaml").write_text(PROGRAM)
    (place / "echo.py").write_text(
        "from nano_vm import tool\n@tool(effect='idempotent')\ndef echo(x: str) -> str: return x\n"
        "@tool(effect='idempotent')\ndef split(x: str) -> list: return x.split()\n"
    )
    assert cli("vault", "init").code == 0
    done = cli("run", "claim.yaml", "--tools", "echo.py", "--input", f"who={NAME}", "--json")
    assert done.code == 6
    return done.json["trace_id"]


def erase(cli: Cli, *more: str):
    return cli(
        "erase", "--subject", NAME, "--reason", "asked", "--principal", "ana", "--tools", "echo.py", *more
    )


def test_a_private_run_is_erased_and_every_view_shows_tombstones(cli: Cli, claim: str, place: Path) -> None:
    assert NAME in cli("trace", claim, "--json").out
    done = erase(cli, "--json", "--receipt", "receipt.json")
    assert done.code == 0
    assert done.json == json.loads((place / "receipt.json").read_text())
    assert (done.json["stage"], done.json["runs"]) == ("done", [claim])
    for words in (
        ("trace", claim),
        ("trace", claim, "--json"),
        ("trace", claim, "--events"),
        ("trace", claim, "--events", "--json"),
        ("trace", claim, "--as", "receipt"),
        ("runs", "--json"),
        ("watch", claim, "--once"),
        ("replay", claim),
    ):
        shown = cli(*words)
        assert NAME not in shown.out + shown.err, words
    assert "[REDACTED_TOMBSTONE]" in cli("trace", claim, "--json").out
    assert cli("verify", claim).code == 0
    held = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert NAME.encode() not in held
    assert erase(cli).code == 2
    assert cli("erase", "--complete", "--json").json["erasures"] == [done.json]


@pytest.mark.parametrize("command", ["recover", "worker"])
def test_an_erasure_that_a_crash_has_cut_is_completed(
    cli: Cli, claim: str, place: Path, command: str
) -> None:
    (database,) = place.glob("*.db")
    begin_erasure(Vault.beside(database), subject=NAME, reason="asked", by={"id": "ana"})
    if command == "recover":
        assert cli("recover", "--tools", "echo.py").code == 0
    else:
        worker = start(place, "worker", "--tools", "echo.py", "--interval", "0.05")
        while [one.stage for one in Vault.beside(database).all_erasures()] != ["done"]:
            assert worker.poll() is None
        worker.terminate()
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    (erasure,) = Vault.beside(database).all_erasures()
    assert (erasure.stage, erasure.runs) == ("done", [claim])
    assert cli("verify", claim).code == 0
    assert NAME not in cli("trace", claim, "--json").out


def test_an_erasure_is_left_for_want_of_tools_that_undo_until_somebody_says_that_it_is_to_be_done(
    cli: Cli, claim: str, place: Path
) -> None:
    (place / "undone.yaml").write_text(
        PROGRAM.replace("claim", "undone").replace(
            "args: {x: $who}}", "args: {x: $who}, compensate: {tool: echo, args: {x: $who}}}"
        )
    )
    run = cli("run", "undone.yaml", "--tools", "echo.py", "--input", f"who={NAME}", "--json").json["trace_id"]
    (database,) = place.glob("*.db")
    begin_erasure(Vault.beside(database), subject=NAME, reason="asked", by={"id": "ana"})
    left = cli("recover", "--json")
    assert left.code == 2
    assert [(one["trace_id"], one["error"]["code"]) for one in left.json["left"]] == [(None, "TOOLS_MISSING")]
    listed = {one["trace_id"]: one["status"] for one in cli("runs", "--json").json["runs"]}
    assert listed == {claim: "CANCELLED", run: "SUSPENDED"}
    assert NAME not in cli("trace", run, "--json").out
    assert cli("erase", "--complete").code == 0
    assert cli("trace", run, "--json").json["incomplete_compensations"] == ["a"]
    assert cli("verify", "--all").code == 0


def test_bundles_of_private_runs_hold_no_value_and_verify_without_the_keys(
    cli: Cli, claim: str, place: Path
) -> None:
    """Before the erasure and after it; offline, by somebody who has neither the store nor the vault."""
    away = place / "away"
    away.mkdir()
    for name, erased in (("before", False), ("after", True)):
        if erased:
            assert erase(cli).code == 0
        receipt = cli("receipt", claim, "--json").json
        assert cli("export", claim, "-o", f"away/{name}.bundle", "--unsigned").code == 0
        data = (away / f"{name}.bundle").read_bytes()
        assert NAME.encode() not in data
        assert bool(receipt["erased"]) is erased
        shown = cli("verify", f"away/{name}.bundle", "--json", "--store", "away/none.db")
        assert shown.code == 0, shown.out
        assert ("erased" if erased else "sealed") in shown.out
        assert cli("export", claim, "-o", f"away/{name}.part", "--unsigned", "--disclose", "a").code == 0
        assert NAME.encode() not in (away / f"{name}.part").read_bytes()
        assert cli("verify", f"away/{name}.part", "--store", "away/none.db").code == 0


def test_without_the_keys_the_command_line_shows_and_starts_nothing(
    cli: Cli, claim: str, place: Path
) -> None:
    (place / "nano-vm.db.key").unlink()
    shown = cli("trace", claim, "--json")
    assert NAME not in shown.out
    assert cli("resume", claim, "--event", "1", "--name", "go", "--tools", "echo.py").code != 0
    assert cli("run", "claim.yaml", "--tools", "echo.py", "--input", f"who={NAME}").code != 0
    shutil.rmtree(place / "nano-vm.db.keys")
    assert NAME not in cli("trace", claim, "--json").out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("--subject", "x"), 2),
        (("--subject", "x", "--reason", "r"), 2),
        (("--subject", "nobody", "--reason", "r", "--principal", "ana"), 2),
        (("--secret", "none", "--reason", "r", "--principal", "ana"), 2),
        (("--run", "none", "--reason", "r", "--principal", "ana"), 2),
        (("--subject", "x", "--secret", "y", "--reason", "r", "--principal", "ana"), 2),
    ],
)
def test_what_cannot_be_erased_is_named(cli: Cli, claim: str, words: tuple[str, ...], code: int) -> None:
    assert cli("erase", *words).code == code


def test_a_hold_refuses(cli: Cli, claim: str) -> None:
    assert cli("vault", "hold", "--subject", NAME, "--reason", "case 3").code == 0
    assert erase(cli).code == 4
    assert cli("vault", "release", "--subject", NAME).code == 0
    assert erase(cli).code == 0
