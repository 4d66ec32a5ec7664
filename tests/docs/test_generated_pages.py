"""Generated pages are what their generator would write now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages() -> dict:
    return script("reference").PAGES


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_page_is_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == pages()[name](), "run `make reference`"


def test_the_figures_on_pages_are_those_of_the_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("figures").main(["--check"]) == 0, capsys.readouterr().out
