"""What a user may rely on is listed once, documented, and typed."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import nano_vm
from nano_vm import _PUBLIC

SOURCE = Path(nano_vm.__file__).read_text(encoding="utf-8")


def typed_imports() -> dict[str, tuple[str, str]]:
    """Public name -> (module, name there), as type checkers see it."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.parse(SOURCE).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                assert line.module is not None
                for alias in line.names:
                    assert alias.asname is not None, "an explicit re-export reads `from m import A as A`"
                    found[alias.asname] = (line.module, alias.name)
    return found


def test_the_lazy_table_equals_what_type_checkers_see() -> None:
    assert typed_imports() == _PUBLIC


def test_every_public_name_is_imported_under_its_own_name() -> None:
    """`from m import A as B` exports nothing to a strict type checker."""
    assert [name for name, (_, there) in typed_imports().items() if name != there] == []


def test_all_lists_the_public_names_and_nothing_else() -> None:
    assert sorted(nano_vm.__all__) == sorted(["__version__", *_PUBLIC])
    assert sorted(dir(nano_vm)) == sorted(nano_vm.__all__)


@pytest.mark.parametrize("name", sorted(_PUBLIC))
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(nano_vm, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        own = value.__doc__ if inspect.isfunction(value) else vars(value).get("__doc__")
        assert own, f"{name} has no docstring of its own"
        assert not (own.startswith(f"{name}(") and "msgspec" in own)


@pytest.mark.parametrize(
    "name", ["ExecutionVM", "Program", "Trace", "ToolSet", "ToolContext", "MockLLMAdapter", "Reconciled"]
)
def test_public_methods_are_typed(name: str) -> None:
    kind = getattr(nano_vm, name)
    for member, value in inspect.getmembers(kind, inspect.isfunction):
        if member.startswith("_") or not value.__module__.startswith("nano_vm"):
            continue
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty, member
        for parameter in list(signature.parameters.values())[1:]:
            assert parameter.annotation is not inspect.Parameter.empty, (member, parameter.name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        nano_vm.Progam  # noqa: B018


def test_the_package_says_it_is_typed() -> None:
    assert (Path(nano_vm.__file__).parent / "py.typed").exists()
