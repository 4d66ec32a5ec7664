"""The arrows of the architecture, and what import-linter cannot see."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "nano_vm"
MODULES = sorted(PACKAGE.rglob("*.py"))
DETERMINISTIC = ("errors.py", "canonical.py", "expr", "program", "compiler", "kernel", "journal", "policy")

# The one place of the core that touches a file: reading a program that the caller names.
READS_FILES = {"program/document.py"}
# Loading a public name on first use, and a command of the command line when it is chosen.
LOADS_MODULES = {"__init__.py"}

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
NOT_DETERMINISTIC_CALLS = {"open", "hash", "id", "print", "vars", "globals"}
# `id` marks containers that are open while a value is copied, never anything that is kept.
# In the checker it names nodes of a tree that lives as long as the check.
USES_IDENTITY = {
    "expr/checker.py",
    "program/document.py",
    "canonical.py",
    "program/yaml_text.py",
    "program/json_text.py",
    "program/schema_steps.py",
}
NOW = {
    "now",
    "utcnow",
    "today",
    "time",
    "monotonic",
    "perf_counter",
    "time_ns",
    "urandom",
    "getenv",
    "environ",
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def core() -> list[Path]:
    return [path for path in MODULES if name_of(path).split("/")[0] in DETERMINISTIC]


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node.lineno


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_imports_point_inwards() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_runs_text_as_code(path: Path) -> None:
    tree = tree_of(path)
    assert [call for call in calls(tree) if call[0] in FORBIDDEN_CALLS] == []
    modules = set(imports(tree))
    assert modules.isdisjoint({"pickle", "marshal", "shelve", "dill", "cloudpickle", "code", "runpy"})
    if not name_of(path).startswith("cli/"):
        assert name_of(path) in LOADS_MODULES or not any(name.startswith("importlib") for name in modules)


@pytest.mark.parametrize("path", core(), ids=name_of)
def test_the_deterministic_core_touches_nothing_outside(path: Path) -> None:
    tree = tree_of(path)
    name = name_of(path)
    allowed = {"id"} if name in USES_IDENTITY else set()
    found = [
        call
        for call in calls(tree)
        if call[0] in NOT_DETERMINISTIC_CALLS - allowed and not _in_dunder_hash(tree, call[1])
    ]
    assert found == []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in ("datetime", "date", "time", "os"):
                assert node.attr not in NOW, f"{path}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and name not in READS_FILES:
            touches = {
                "open",
                "read_text",
                "read_bytes",
                "write_text",
                "write_bytes",
                "exists",
                "iterdir",
                "stat",
            }
            assert node.func.attr not in touches, f"{path}:{node.lineno}"


def _in_dunder_hash(tree: ast.Module, line: int) -> bool:
    """`hash()` inside `__hash__` serves dicts in memory; it never reaches a digest."""
    return any(
        isinstance(node, ast.FunctionDef)
        and node.name == "__hash__"
        and node.lineno <= line <= (node.end_lineno or node.lineno)
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize(
    "path", [p for p in core() if name_of(p).startswith(("kernel", "journal"))], ids=name_of
)
def test_no_set_is_iterated_where_order_would_show(path: Path) -> None:
    """Sets of strings have another order in every process; what is journaled or hashed must not follow it."""
    for node in ast.walk(tree_of(path)):
        loops: list[ast.expr] = []
        if isinstance(node, ast.For):
            loops = [node.iter]
        elif isinstance(node, ast.ListComp | ast.DictComp | ast.GeneratorExp):
            loops = [generator.iter for generator in node.generators]
        for iterated in loops:
            is_set = isinstance(iterated, ast.Set | ast.SetComp) or (
                isinstance(iterated, ast.Call)
                and isinstance(iterated.func, ast.Name)
                and iterated.func.id in ("set", "frozenset")
            )
            assert not is_set, f"{path}:{iterated.lineno}: sort it"


def test_no_room_has_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "core", "manager", "misc"}
    assert [
        name_of(path) for path in MODULES if vague & set(name_of(path).removesuffix(".py").split("/"))
    ] == []


def test_files_are_opened_with_an_encoding_or_as_bytes() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        if "read_text" not in text and "write_text" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            method = (
                node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            )
            if isinstance(node, ast.Call) and method in ("read_text", "write_text"):
                assert any(word.arg == "encoding" for word in node.keywords), f"{path}:{node.lineno}"
