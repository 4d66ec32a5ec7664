"""Everything a page shows is executed, page by page, in an empty directory beside a copy of `examples/`.

- ```python blocks of one page run one after another in one namespace.
- ```python file=NAME and ```yaml file=NAME are written to NAME first.
- ```yaml blocks are programs, or lists of steps: they must have no errors (lists: no errors of form).
- ```console blocks: each `$ command` is run by a shell; it must exit with 0, or as a `# exit N` after it says. Where
  output is shown, its lines must occur in this order, as parts of lines; `…` stands for anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import postgres_server
from nano_vm import Program
from nano_vm.compiler import check
from nano_vm.policy.load import check_policy
from nano_vm.program.document import from_yaml

with contextlib.suppress(ImportError):
    # Where its clients' servers complain is what standard error is when it is imported: not that of some test.
    import mcp.client.stdio  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
EXECUTED = {"python", "console", "yaml"}
SHOWN = {"", "text", "json", "sql", "ini"}


class Block(NamedTuple):
    kind: str
    file: str | None
    body: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        kind, _, rest = match["info"].strip().partition(" ")
        file = rest.removeprefix("file=") if rest.startswith("file=") else None
        found.append(Block(kind, file, match["body"], text.count("\n", 0, match.start()) + 1))
    return found


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_the_page_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if page.name in ("postgres.md", "chaos.md", "bench.md"):
        monkeypatch.setenv("NANO_VM_STORE", postgres_server.fresh_url())
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page):
        where = f"{title(page)}:{block.line}"
        assert block.kind in EXECUTED | SHOWN, f"{where}: `{block.kind}` blocks are not executed"
        if block.file is not None:
            (tmp_path / block.file).write_text(block.body, encoding="utf-8")
        if block.kind == "yaml":
            check_yaml(block.body, where)
        elif block.kind == "console":
            run_console(block, where, tmp_path)
        elif block.kind == "python" and block.file is None:
            code = compile("\n" * block.line + block.body, str(page), "exec", dont_inherit=True)
            exec(code, module.__dict__)


def check_yaml(body: str, where: str) -> None:
    if re.search(r"^steps:", body, re.MULTILINE):
        report = check(from_yaml(body, where))
        assert [str(finding) for finding in report.errors] == []
    elif body.lstrip().startswith("- "):
        indented = "".join(f"  {line}" for line in body.splitlines(keepends=True))
        assert Program.from_yaml(f"name: fragment\nsteps:\n{indented}", where)
    elif body.startswith("policy:"):
        assert [str(finding) for finding in check_policy(from_yaml(body, where)).diagnostics] == []
    else:
        pytest.fail(f"{where}: neither a program, nor a list of steps, nor a policy")


def run_console(block: Block, where: str, directory: Path) -> None:
    shim = directory / ".bin"
    shim.mkdir(exist_ok=True)
    command = shim / "nano-vm"
    command.write_text(
        f"#!/bin/sh\nexec '{sys.executable}' -c 'from nano_vm.cli.main import entrypoint; entrypoint()' \"$@\"\n",
        encoding="utf-8",
    )
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{shim}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "NANO_VM_KEYS": str(directory / ".keys"),  # not those of whoever runs the tests
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    for shown, expected in commands(block.body):
        wanted = re.search(r"#\s*exit (\d+)\s*$", shown)
        done = subprocess.run(
            ["bash", "-c", f"{shown}\nexit $?"],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        output = done.stdout + done.stderr
        assert done.returncode == int(wanted[1] if wanted else 0), f"{where}: {shown}\n{output}"
        compare(expected, output, f"{where}: {shown}")


def commands(body: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    here = None  # the word that ends a here-document
    for line in body.splitlines():
        if here is not None:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
            here = None if line == here else here
        elif line.startswith("$ "):
            found.append((line[2:], []))
            opened = re.search(r"<< '(\w+)'$", line)
            here = opened[1] if opened else None
        elif found and found[-1][0].endswith("\\"):
            found[-1] = (found[-1][0] + "\n" + line, found[-1][1])
        elif found:
            found[-1][1].append(line)
    return found


def compare(expected: list[str], output: str, where: str) -> None:
    """The expected lines occur in the output in this order; white space is not compared."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    position = 0
    for wanted in expected:
        words = " ".join(wanted.split())
        if words in ("", "…"):
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in words.split("…")))
        for index in range(position, len(lines)):
            if pattern.search(lines[index]):
                position = index + 1
                break
        else:
            pytest.fail(f"{where}\nnot found: {wanted}\nin:\n{output}")


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=title
)
def test_every_link_leads_somewhere(page: Path) -> None:
    dead = []
    for match in LINK.finditer(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        target = match["target"].partition("#")[0]
        if target and "://" not in target and not (page.parent / target).exists():
            dead.append(match["target"])
    assert dead == []


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_threat_and_every_control_that_is_claimed_names_a_test() -> None:
    rows = [
        line
        for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    claimed = [row for row in rows if not row.startswith(("| threat |", "| control |"))]
    assert len(claimed) > 100
    assert [row for row in claimed if not re.search(r"`tests/[\w/]+\.py::\w+` \|$", row)] == []
    states = [row.split(" | ")[1] for row in claimed if re.match(r"\| \d+\.\d+\.\d+ \|", row)]
    assert set(states) == {"kept", "in part"}


def test_the_specification_lists_its_texts_and_vectors() -> None:
    listed = (ROOT / "spec" / "README.md").read_text(encoding="utf-8")
    files = [
        *(ROOT / "spec").glob("*.md"),
        *(ROOT / "spec").glob("*.json"),
        *(ROOT / "spec" / "vectors").glob("*.json"),
    ]
    assert [file.name for file in sorted(files) if file.name != "README.md" and file.name not in listed] == []
