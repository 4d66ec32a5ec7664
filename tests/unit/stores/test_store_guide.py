"""What the guide says can be executed, and the benchmark still runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nano_vm.stores.migrations import MIGRATIONS

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs/guides/stores.md").read_text()


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, object] = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, "docs/guides/stores.md", "exec"), scope)


def test_the_guide_names_every_table() -> None:
    statements = [statement for migration in MIGRATIONS for statement in migration]
    tables = {match[1] for s in statements if (match := re.match(r"CREATE (?:TABLE|VIEW) (\w+)", s))}
    assert set(re.findall(r"`(nvm_[a-z_]+)`", GUIDE)) >= tables


def test_the_benchmark_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/store_append.py"), "--quick"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 6
