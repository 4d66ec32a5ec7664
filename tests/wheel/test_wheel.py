"""What a user installs: the built wheel, alone with what it declares, in a fresh environment. Works without a network:
the declared dependencies are copied from the environment that runs the tests, and nothing else is."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def built_wheel(directory: Path) -> Path:
    # From a copy, so that nothing untracked by the build's rules can slip in and nothing is left in the tree.
    tree = directory / "tree"
    tree.mkdir()
    for name in ("src", "examples", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignore)
        else:
            shutil.copy(source, tree / name)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel


def declared(wheel: Path) -> list[str]:
    """Names of everything the wheel needs without extras, and what that needs in turn."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    pending = [
        line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Requires-Dist:")
    ]
    found: list[str] = []
    while pending:
        requirement = Requirement(pending.pop())
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name not in found:
            found.append(name)
            pending += metadata.requires(name) or []
    return found


class Installed:
    """The wheel in an environment of its own."""

    def __init__(self, directory: Path) -> None:
        self.wheel = built_wheel(directory)
        self.home = directory / "env"
        venv.create(self.home, with_pip=False, symlinks=True)
        self.python = self.home / "bin" / "python"
        (site,) = self.home.glob("lib/python3*/site-packages")
        for name in declared(self.wheel):
            for file in metadata.files(name) or []:
                if ".." in file.parts:
                    continue  # scripts
                target = site / str(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)
        with zipfile.ZipFile(self.wheel) as archive:
            archive.extractall(site)
        self.directory = directory / "elsewhere"
        self.directory.mkdir()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return subprocess.run(
            [str(self.python), "-c", "from nano_vm.cli.main import entrypoint; entrypoint()", *arguments],
            cwd=self.directory,
            env={**kept, "NANO_VM_LEDGER": str(self.directory / "ledger.jsonl")},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_the_licence_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    assert {"nano_vm/py.typed", "nano_vm/cli/demo_data/refund.yaml", "nano_vm/demos/kyc/review.yaml"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"nano_vm"}
    assert not any(name.endswith((".pyc", ".db")) for name in names)


def test_the_bare_wheel_needs_only_a_handful(installed: Installed) -> None:
    direct = [Requirement(text) for text in metadata.requires("nano-vm") or []]
    plain = [requirement for requirement in direct if requirement.marker is None]
    assert len(plain) <= 4
    found = subprocess.run(
        [str(installed.python), "-c", "import httpx"],
        capture_output=True,
        cwd=installed.directory,
        timeout=60,
    )
    assert found.returncode != 0


def test_the_bare_wheel_runs_and_verifies_a_program(installed: Installed) -> None:
    for name in ("refund.yaml", "refund_tools.py"):
        shutil.copy(ROOT / "examples" / name, installed.directory)
    ran = installed.run(
        "run",
        "refund.yaml",
        "--tools",
        "refund_tools.py",
        "--model",
        "mock:yes",
        "--input",
        "order_id=A-1001",
        "--input",
        "message=broken",
        "--json",
    )
    assert ran.returncode == 0, ran.stderr
    trace = json.loads(ran.stdout)
    assert trace["status"] == "SUCCESS"
    assert len((installed.directory / "ledger.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    verified = installed.run("verify", "--all")
    assert verified.returncode == 0, verified.stderr


def test_the_bare_wheel_shows_the_demonstration(installed: Installed) -> None:
    shown = installed.run("demo", "refund")
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_the_laboratory_names_the_extra_that_it_needs(installed: Installed) -> None:
    refused = installed.run("demo", "kyc", "--json")
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "nano-vm[vault]" in refused.stdout + refused.stderr


def test_an_extra_that_is_missing_is_named(installed: Installed) -> None:
    (installed.directory / "ask.yaml").write_text(
        "name: ask\nsteps:\n  - {id: ask, type: llm, prompt: hello}\n", encoding="utf-8"
    )
    refused = installed.run("run", "ask.yaml", "--model", "http://127.0.0.1:9/v1#m", "--json")
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "nano-vm[http]" in refused.stdout + refused.stderr
