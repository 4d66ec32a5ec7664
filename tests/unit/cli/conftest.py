"""The command line, in this process and as a process of its own, in a directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nano_vm.cli.main import main

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
name: greeting
inputs:
  type: object
  properties: {name: {type: string}, times: {type: integer}}
  required: [name]
outputs: {text: $greet.output}
steps:
  - {id: greet, type: tool, tool: greet, args: {name: $name}}
  - {id: judge, type: llm, prompt: "Is ${greet.output} kind?", allowed_outputs: ["yes", "no"]}
  - {id: kind, type: condition, condition: $judge.output == 'yes', then: seal, otherwise: stop}
  - {id: seal, type: wait, approvers: [boss], is_terminal: true, outcome: sealed}
  - {id: stop, type: tool, tool: greet, args: {name: nobody}, is_terminal: true, final_status: FAILED,
     outcome: unkind}
"""

TOOLS = '''
import os
from nano_vm import tool

@tool(effect="keyed")
def greet(name: str) -> str:
    """Greets."""
    with open("effects.txt", "a") as file:
        file.write(name + "\\n")
    return "hello " + name

def not_a_tool(name: str) -> str:
    return name
'''


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Done]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a program and its tools; no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("NANO_VM_STORE", "NANO_VM_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    # Keys that whoever runs the tests keeps at home make `verify` expect signatures.
    if "NANO_VM_KEYS" not in os.environ:
        monkeypatch.setenv("NANO_VM_KEYS", str(tmp_path / ".keys"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "greeting.yaml").write_text(PROGRAM)
    (tmp_path / "tools.py").write_text(TOOLS)
    return tmp_path


@pytest.fixture
def cli(place: Path, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process."""

    def run(*argv: str) -> Done:
        capfd.readouterr()
        code = main([str(word) for word in argv])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Done(code, out, err)

    return run


def environment() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if not name.startswith("NANO_VM")}
    found.pop("OPENAI_API_KEY", None)
    return {**found, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def start(place: Path, *argv: str, **more: Any) -> subprocess.Popen[bytes]:
    """A command as a process."""
    settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen(
        [sys.executable, "-m", "nano_vm.cli", *argv], cwd=place, env=environment(), **settings
    )


@pytest.fixture
def process(place: Path) -> Cli:
    """Runs a command as a process of its own."""

    def run(*argv: str, stdin: bytes | None = None) -> Done:
        child = start(place, *argv, stdin=subprocess.PIPE)
        out, err = child.communicate(stdin or b"", timeout=60)
        assert b"Traceback" not in err
        return Done(child.returncode, out.decode(), err.decode())

    return run


RUN = ("run", "greeting.yaml", "--tools", "tools.py", "--model", "mock:yes", "--input", "name=ana")


@pytest.fixture
def waiting(cli: Cli) -> str:
    """The id of a run that waits for an approval."""
    done = cli(*RUN, "--json")
    assert done.code == 6
    trace_id: str = done.json["trace_id"]
    return trace_id


def effects(place: Path) -> list[str]:
    path = place / "effects.txt"
    return path.read_text().split() if path.exists() else []
