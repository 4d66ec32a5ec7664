"""What importing nano-vm costs, and that optional parts are optional. Each check runs in a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"

BLOCKER = """
import sys

class Blocked:
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked({names!r}))
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    return set(json.loads(python(f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")))


def test_importing_the_package_loads_nothing_of_weight() -> None:
    loaded = loaded_by("import nano_vm")
    heavy = {"asyncio", "sqlite3", "yaml", "rich", "httpx", "jsonschema_rs", "msgspec", "argparse", "logging"}
    assert loaded & heavy == set()
    assert {name for name in loaded if name.startswith("nano_vm")} == {"nano_vm"}


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("Program", {"asyncio", "sqlite3", "rich", "httpx", "logging", "nano_vm.runtime.engine"}),
        ("ExecutionVM", {"rich", "httpx", "argparse", "cryptography", "nano_vm.cli", "nano_vm.vault"}),
        ("Vault", {"rich", "httpx", "argparse", "cryptography", "sqlite3", "asyncio", "nano_vm.cli"}),
        ("SqliteStore", {"rich", "httpx", "argparse", "nano_vm.cli", "nano_vm.runtime.engine"}),
        ("tool", {"sqlite3", "rich", "httpx", "argparse", "nano_vm.cli"}),
        ("NanoVMError", {"asyncio", "sqlite3", "yaml", "rich", "httpx", "jsonschema_rs", "msgspec"}),
    ],
)
def test_a_public_name_loads_only_what_it_needs(name: str, absent: set[str]) -> None:
    assert loaded_by(f"from nano_vm import {name}") & absent == set()


def test_importing_sets_no_handler_filter_or_hook() -> None:
    python(
        "import sys, warnings, signal, logging\n"
        "before = (list(warnings.filters), sys.excepthook, list(logging.root.handlers), "
        "signal.getsignal(signal.SIGTERM), sys.getrecursionlimit())\n"
        "import nano_vm\n"
        "for name in nano_vm.__all__: getattr(nano_vm, name)\n"
        "after = (list(warnings.filters), sys.excepthook, list(logging.root.handlers), "
        "signal.getsignal(signal.SIGTERM), sys.getrecursionlimit())\n"
        "assert before[1:] == after[1:] and len(before[0]) == len(after[0]), (before, after)\n"
    )


def test_everything_but_the_http_adapter_works_without_the_extra() -> None:
    code = BLOCKER.replace("{names!r}", "{'httpx', 'rich'}") + (
        "import nano_vm\n"
        "for name in nano_vm.__all__: getattr(nano_vm, name)\n"
        "vm = nano_vm.ExecutionVM(llm=nano_vm.MockLLMAdapter('yes'))\n"
        "trace = vm.run_sync({'name': 'p', 'steps': [{'id': 'a', 'type': 'llm', 'prompt': 'hello'}]})\n"
        "assert trace.final_output == 'yes'\n"
        "try:\n"
        "    nano_vm.OpenAICompatibleAdapter('http://127.0.0.1:9/v1', model='m')\n"
        "except nano_vm.RuntimeFault as error:\n"
        "    assert error.code == 'EXTRA_MISSING', error.code\n"
        "    assert 'nano-vm[http]' in error.help, error.help\n"
        "    print('refused')\n"
    )
    assert python(code).strip() == "refused"


def test_only_what_is_encrypted_needs_the_vaults_extra() -> None:
    code = BLOCKER.replace("{names!r}", "{'cryptography'}") + (
        "import nano_vm\n"
        "steps = [{'id': 'a', 'type': 'tool', 'tool': 'f'}]\n"
        "vm = nano_vm.ExecutionVM(tools={'f': lambda: 1})\n"
        "assert vm.run_sync({'name': 'p', 'steps': steps}).final_output == 1\n"
        "steps[0]['private'] = True\n"
        "try:\n"
        "    vm.run_sync({'name': 'q', 'steps': steps})\n"
        "except nano_vm.RuntimeFault as error:\n"
        "    assert error.code == 'EXTRA_MISSING', error.code\n"
        "    assert 'nano-vm[vault]' in error.help, error.help\n"
        "    print('refused')\n"
    )
    assert python(code).strip() == "refused"


def test_telemetry_is_optional_and_named_when_it_is_missing() -> None:
    code = BLOCKER.replace("{names!r}", repr({"opentelemetry"})) + (
        "from nano_vm import ExecutionVM, NanoVMError\n"
        "from nano_vm.observe.telemetry import Otlp, Telemetry\n"
        "for make in (lambda vm: Telemetry(vm), lambda vm: Otlp(vm, 'http://127.0.0.1:1')):\n"
        "    try:\n"
        "        make(ExecutionVM())\n"
        "    except NanoVMError as error:\n"
        "        print(error.code, 'nano-vm[otel]' in (error.help or ''))\n"
    )
    assert python(code) == "EXTRA_MISSING True\n" * 2


def test_the_studio_is_optional_and_named_when_it_is_missing() -> None:
    code = BLOCKER.replace("{names!r}", repr({"streamlit"})) + (
        "from nano_vm.cli.main import main\n"
        "import contextlib, io\n"
        "said = io.StringIO()\n"
        "with contextlib.redirect_stderr(said):\n"
        "    assert main(['studio']) == 1\n"
        "print(said.getvalue().split()[0], 'nano-vm[studio]' in said.getvalue())\n"
    )
    assert python(code) == "EXTRA_MISSING True\n"


def test_only_the_pages_of_the_studio_know_streamlit() -> None:
    loaded = loaded_by(
        "import nano_vm.studio.library, nano_vm.studio.meter, nano_vm.studio.projections, nano_vm.studio.desk"
    )
    assert "streamlit" not in loaded
