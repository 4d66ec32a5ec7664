"""The Python examples, each in a process of its own, in an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SOURCES = Path(__file__).resolve().parents[2] / "src"


def output(directory: Path, script: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_program_of_ones_own(tmp_path: Path) -> None:
    ended, verified = output(tmp_path, "own_program.py")
    assert ended == "SUCCESS ['count', 'short', 'title', 'post'] published: News: hello durable world"
    assert verified.startswith("('chain', ")


def test_a_run_goes_on_in_another_process(tmp_path: Path) -> None:
    (waiting,) = output(tmp_path, "resume_elsewhere.py", "start")
    run_id, status, *rest = waiting.split()
    assert (status, rest) == ("SUSPENDED", ["waits", "for", "parcel_arrived"])
    ended, again = output(tmp_path, "resume_elsewhere.py", "answer", run_id)
    assert ended == f"{run_id} SUCCESS thanks for 1.5 kg"
    assert again.endswith("True")


def test_a_keyed_payment_is_made_once(tmp_path: Path) -> None:
    first, second, totals = output(tmp_path, "keyed_payment.py")
    assert first.startswith("SUCCESS {'amount': 90, 'id': 'p1'}")
    assert second.startswith("SUCCESS {'amount': 90, 'id': 'p1'}")
    assert totals.endswith("payments: 1")


def test_a_transactional_tool_leaves_nothing_of_what_it_did_not_finish(tmp_path: Path) -> None:
    assert output(tmp_path, "transactional_tool.py") == [
        "60 SUCCESS {'ana': 40, 'bob': 60}",
        "70 FAILED OVERDRAWN",
        "30 SUCCESS {'ana': 10, 'bob': 90}",
    ]


def test_every_script_is_covered() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py") if not path.stem.endswith("_tools")}
    tested = Path(__file__).read_text()
    assert [name for name in sorted(scripts) if f'"{name}"' not in tested] == []
