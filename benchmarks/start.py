"""How fast does it start: `import nano_vm`, `nano-vm --help`, the check of a 1,000-step program?

These limits are absolute, because a person waits for them; beside each stands its ratio to the bare
interpreter's start, measured in the same rounds. CPU time is user plus system time of the whole process.

    python benchmarks/start.py
    python benchmarks/start.py --quick      # one round, without verdicts

Exit code: 0 every limit kept, 1 one was missed or a command failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src"
COMMAND_LINE = "import sys; from nano_vm.cli.main import entrypoint; sys.exit(entrypoint())"
PROGRAM_STEPS = 1_000


@dataclass
class Question:
    """A command, and the limit on its wall or CPU seconds (over those of a bare start, for an import)."""

    name: str
    command: list[str]
    limit: float | None
    measure: str = "wall"
    over_bare: bool = False
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    problem: str = ""


def thousand_steps() -> dict[str, Any]:
    """1,000 steps (250 times a condition and three tools, each fed by the one before) and a rejection."""
    steps: list[dict[str, Any]] = []
    value, number = "x", 0
    for block in range(PROGRAM_STEPS // 4):
        steps.append(
            {
                "id": f"c{block}",
                "type": "condition",
                "condition": f"${value} >= {number}",
                "then": f"t{number + 1}",
                "otherwise": "reject",
            }
        )
        for position in range(3):
            number += 1
            step = {
                "id": f"t{number}",
                "type": "tool",
                "tool": "add_one",
                "args": {"x": f"${value}"},
                "output_key": f"v{number}",
            }
            last = number == PROGRAM_STEPS // 4 * 3
            following = f"c{block + 1}" if position == 2 else f"t{number + 1}"
            steps.append({**step, "is_terminal": True} if last else {**step, "next_step": following})
            value = f"v{number}"
    steps.append({"id": "reject", "type": "tool", "tool": "reject", "is_terminal": True})
    return {"name": "thousand", "max_steps": 2_000, "steps": steps}


def as_yaml(program: dict[str, Any]) -> str:
    """The program in block style, as a person writes it; no YAML library needed."""
    lines = [f"name: {program['name']}", f"max_steps: {program['max_steps']}", "steps:"]
    for step in program["steps"]:
        for place, (key, value) in enumerate(step.items()):
            lead = "  - " if place == 0 else "    "
            if isinstance(value, dict):
                lines.append(f"{lead}{key}:")
                lines += [f'      {name}: "{inner}"' for name, inner in value.items()]
            elif isinstance(value, bool):
                lines.append(f"{lead}{key}: {str(value).lower()}")
            else:
                lines.append(f'{lead}{key}: "{value}"')
    return "\n".join(lines) + "\n"


def questions(folder: Path) -> list[Question]:
    program = thousand_steps()
    (folder / "thousand.json").write_text(json.dumps(program))
    (folder / "thousand.yaml").write_text(as_yaml(program))
    python = sys.executable
    return [
        Question("bare interpreter", [python, "-c", "pass"], None),
        Question("import nano_vm", [python, "-c", "import nano_vm"], 0.15, "cpu", over_bare=True),
        Question(
            "import of the public names",
            [python, "-c", "from nano_vm import ExecutionVM, Program, SqliteStore"],
            0.15,
            "cpu",
            over_bare=True,
        ),
        Question("nano-vm --help", [python, "-c", COMMAND_LINE, "--help"], 0.4),
        Question("check 1,000 steps, YAML", [python, "-c", COMMAND_LINE, "check", "thousand.yaml"], 1.0),
        Question("check 1,000 steps, JSON", [python, "-c", COMMAND_LINE, "check", "thousand.json"], 1.0),
    ]


def environment_with_nano_vm() -> dict[str, str]:
    """The environment of the commands: the installed nano-vm, or else this checkout's."""
    environment = dict(os.environ)
    probe = [sys.executable, "-c", "import nano_vm"]
    if subprocess.run(probe, capture_output=True, cwd=tempfile.gettempdir()).returncode != 0:
        parts = (environment.get("PYTHONPATH", ""), str(SOURCE))
        environment["PYTHONPATH"] = os.pathsep.join(part for part in parts if part)
    return environment


def ask(question: Question, folder: Path, environment: dict[str, str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(question.command, capture_output=True, text=True, cwd=folder, env=environment)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        message = (done.stderr.strip() or done.stdout.strip()).splitlines()
        question.problem = (message or [f"exit code {done.returncode}"])[-1]
        return
    question.wall.append(wall)
    question.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def judge(question: Question, bare: Question) -> tuple[float, bool | None]:
    """The seconds that count, and whether they keep the limit."""
    samples, base = (question.cpu, bare.cpu) if question.measure == "cpu" else (question.wall, bare.wall)
    value = statistics.median(samples)
    if question.over_bare:
        value = max(0.0, value - statistics.median(base))
    return value, None if question.limit is None else value < question.limit


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Import, help and check: how long a person waits.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", default=None, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one round, no verdicts")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 1
    environment = environment_with_nano_vm()
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        folder = Path(name)
        asked = questions(folder)
        for question in asked:
            ask(question, folder, environment)  # once unmeasured: byte code and file cache
            question.wall.clear()
            question.cpu.clear()
        for _ in range(options.rounds):
            for question in asked:
                if not question.problem:
                    ask(question, folder, environment)
    bare = asked[0]
    print(f"{'what':<28} {'measured':>9} {'limit':>7} {'x bare':>7}  verdict")
    missed = 0
    report: list[dict[str, Any]] = []
    for question in asked:
        if question.problem:
            print(f"{question.name:<28} failed: {question.problem}")
            missed += 1
            continue
        value, kept = judge(question, bare)
        times_bare = statistics.median(question.cpu) / max(statistics.median(bare.cpu), 1e-9)
        if options.quick:
            kept = None
        missed += kept is False
        limit = "" if question.limit is None else f"{question.limit:.2f} s"
        verdict = {None: "", True: "pass", False: "MISSED"}[kept]
        note = f" ({question.measure}{', over bare' if question.over_bare else ''})"
        print(f"{question.name:<28} {value:>7.3f} s {limit:>7} {times_bare:>6.1f}x  {verdict}{note}")
        report.append({"what": question.name, "seconds": value, "limit": question.limit, "kept": kept})
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
