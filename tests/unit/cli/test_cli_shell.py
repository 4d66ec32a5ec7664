"""Help, checks, completion, the schema, and the demonstration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest

from nano_vm.cli.main import COMMANDS, main
from unit.cli.conftest import ROOT, RUN, Cli, environment


def test_help_names_every_command_and_exits_with_0(process: Cli) -> None:
    done = process("--help")
    assert done.code == 0
    assert all(f"  {name} " in done.out for name in COMMANDS)
    assert process("--version").code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_the_global_options(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.code == 0
    assert f"nano-vm {command}" in done.out
    for option in ("--store", "--json", "--debug", "--quiet", "--principal", "--role", "--durability"):
        assert option in done.out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom nano_vm.cli.main import main\nmain(['--help'])\n"
        "heavy = {'rich', 'httpx', 'asyncio', 'sqlite3', 'yaml', 'jsonschema_rs', 'msgspec'} & set(sys.modules)\n"
        "sys.exit(f'{sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_check_accepts_several_files_and_standard_input(process: Cli, place: Path) -> None:
    (place / "b.json").write_text(
        '{"steps": [{"id": "a", "type": "tool", "tool": "greet", "args": {"name": "x"}}]}'
    )
    done = process("check", "greeting.yaml", "b.json", "-", "--json", stdin=b"name: c\nsteps: []\n")
    assert done.code == 3
    assert [file["ok"] for file in done.json["files"]] == [True, True, False]
    assert process("check", "greeting.yaml", "--tools", "tools.py").code == 0
    (place / "other.py").write_text("def other() -> int:\n    return 1\n")
    done = process("check", "greeting.yaml", "--tools", "other.py", "--json")
    assert {finding["code"] for finding in done.json["files"][0]["findings"]} >= {"UNKNOWN_TOOL"}


def test_check_writes_sarif(cli: Cli, place: Path) -> None:
    (place / "bad.yaml").write_text(
        "name: x\nsteps:\n  - {id: a, type: tool, tool: greet, next_step: nowhere}\n"
    )
    done = cli("check", "bad.yaml", "--format", "sarif")
    assert done.code == 3
    assert done.json["version"] == "2.1.0"
    (run,) = done.json["runs"]
    result = next(result for result in run["results"] if result["ruleId"] == "MISSING_TARGET")
    assert result["level"] == "error"
    region = result["locations"][0]["physicalLocation"]["region"]
    assert region["startLine"] == 3
    assert region["startColumn"] > 1
    assert "MISSING_TARGET" in {rule["id"] for rule in run["tool"]["driver"]["rules"]}


def test_names_in_findings_are_references_and_move_no_cursor(cli: Cli, place: Path) -> None:
    name = "100% sure #1.yaml"
    text = 'name: x\nsteps: [{id: "a\\u001b[2J", type: wait, event: e}]\n'
    for file in (name, "we\nird.yaml"):
        (place / file).write_text(text)
    done = cli("check", name, str(place / name), "--format", "sarif")
    found = [
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for run in done.json["runs"]
        for result in run["results"]
    ]
    assert found == ["100%25%20sure%20%231.yaml", (place / name).as_uri()]
    done = cli("check", "we\nird.yaml")
    assert "\x1b" not in done.out + done.err
    assert "we\nird" not in done.out + done.err


def test_the_schema_accepts_the_program_that_runs(cli: Cli, place: Path) -> None:
    import yaml

    schema = json.loads(cli("schema").out)
    assert jsonschema_rs.validator_for(schema).is_valid(yaml.safe_load((place / "greeting.yaml").read_text()))
    assert not jsonschema_rs.validator_for(schema).is_valid({"steps": 1})
    assert cli("schema", "--json").json == schema


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(cli: Cli, shell: str) -> None:
    done = cli("completion", shell)
    assert done.code == 0
    for word in (*COMMANDS, "idempotency-key", "succeeded"):
        assert word in done.out


def test_bash_completes_commands_options_and_choices(cli: Cli, place: Path) -> None:
    (place / "complete.sh").write_text(
        cli("completion", "bash").out
        + 'complete_it() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _nano_vm; echo "${COMPREPLY[*]}"; }\n'
        "complete_it nano-vm ver\ncomplete_it nano-vm resume --app\ncomplete_it nano-vm --json completion z\n"
    )
    done = subprocess.run(
        ["bash", "complete.sh"], cwd=place, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["verify", "--approve", "zsh"]


def test_doctor_is_content_with_a_sound_database(cli: Cli, waiting: str) -> None:
    done = cli("doctor", "--json")
    assert done.code == 0
    assert {finding["what"] for finding in done.json["findings"]} >= {
        "version",
        "store",
        "integrity",
        "runs",
        "disk",
    }
    assert cli("doctor").code == 0


def test_human_output_is_plain_without_a_terminal(cli: Cli, waiting: str) -> None:
    for words in (RUN, ("runs",), ("trace", waiting), ("verify",), ("doctor",), ("watch", "--once")):
        done = cli(*words)
        assert "\x1b" not in done.out + done.err


def test_colours_and_the_live_tree_are_for_terminals(place: Path) -> None:
    pty = pytest.importorskip("pty")
    for setting, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "nano_vm.cli", *RUN],
            cwd=place,
            env={**environment(), "TERM": "xterm", **setting},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        out = b""
        while True:
            try:
                chunk = os.read(ours, 65_536)
            except OSError:
                break
            if not chunk:
                break
            out += chunk
        os.close(ours)
        assert child.wait(timeout=60) == 6
        assert b"SUSPENDED" in out
        assert (b"\x1b[" in out) is coloured


def test_a_closed_pipe_is_not_a_defect(place: Path) -> None:
    from unit.cli.conftest import start

    child = start(place, "schema")
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(timeout=60) in (0, 1)
    assert err == b""


def test_the_demonstration_keeps_its_promises(place: Path, process: Cli) -> None:
    done = process("demo", "refund", "--keep", "kept", "--json")
    assert done.code == 0, done.err
    result = done.json
    assert [line["effect"] for line in result["ledger"]] == ["reserve", "refund", "notify"]
    assert result["tampered"]["exit_code"] == 5
    assert result["tampered"]["bytes"] == 1
    kept = place / "kept"
    assert {path.name for path in kept.iterdir()} >= {
        "demo.db",
        "refund.yaml",
        "refund_tools.py",
        "ledger.jsonl",
    }
    for command, code in ((("verify",), 0), (("trace", "demo-refund"), 0), (("check", "refund.yaml"), 0)):
        store = () if command[0] == "check" else ("--store", "demo.db")
        child = subprocess.run(
            [sys.executable, "-m", "nano_vm.cli", *command, *store],
            cwd=kept,
            env=environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert child.returncode == code


def test_the_demonstration_speaks_to_people(place: Path, process: Cli) -> None:
    done = process("demo")
    assert done.code == 0, done.err
    numbers = [line.split(".")[0] for line in done.out.splitlines() if line[:1].isdigit()]
    assert numbers == [str(number) for number in range(1, 9)]
    assert str(ROOT) not in done.out.replace(sys.executable, "")


def test_main_never_raises() -> None:
    assert main(["check", "\0"]) == 2


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("module", "code"), [("nano_vm.cli.arguments", -signal.SIGINT), ("nano_vm.cli.commands.schema", 130)]
)
def test_an_interrupt_while_the_command_line_is_brought_in_has_no_traceback(module: str, code: int) -> None:
    program = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "sys.argv = ['nano-vm', 'schema']\n"
        "import runpy\n"
        "runpy.run_module('nano_vm.cli', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
