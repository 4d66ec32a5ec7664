"""Does a step cost at 10,000 steps what it costs at 100, and is memory per step bounded?

Runs nano-vm alone, each length in a process of its own, the lengths interleaved in rounds. Two shapes:
`loop`, a tool and a condition again and again (each name bound anew in every turn), and `chain`, a program
that really has that many steps. Memory is the growth of the process's peak over one run, per step; short
runs do not move it.

    python benchmarks/steps.py                       # loop, in memory, 10 to 100,000 steps
    python benchmarks/steps.py --store normal        # journaled in SQLite
    python benchmarks/steps.py --shape chain
    python benchmarks/steps.py --quick               # a smoke run without verdicts

Exit code: 0 every requirement met, 1 one was missed or a length did not finish.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LENGTHS = (10, 100, 1_000, 10_000, 100_000)
GROWTH_MAX = 1.2
# What the long run may cost per step in memory, over the run a tenth as long.
MEMORY_GROWTH_MAX = 1.2


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def chain_program(steps: int) -> dict[str, Any]:
    """`steps` tools in a row, each fed by the one before."""
    rows = [
        {
            "id": f"t{number}",
            "type": "tool",
            "tool": "add_one",
            "args": {"x": f"$v{number - 1}" if number > 1 else "$x"},
            "output_key": f"v{number}",
        }
        for number in range(1, steps + 1)
    ]
    return {"name": "chain", "max_steps": steps + 10, "steps": rows}


def run_child(options: argparse.Namespace) -> None:
    """One length, measured in this process; prints one JSON line."""
    sys.path.insert(0, str(HERE / "peers"))
    if importlib.util.find_spec("nano_vm") is None:
        sys.path.insert(0, str(HERE.parent / "src"))
    with tempfile.TemporaryDirectory(prefix="steps-", dir=options.dir, ignore_cleanup_errors=True) as folder:
        print(json.dumps(asyncio.run(measure_length(options, Path(folder)))))


async def measure_length(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import workloads as w

    from nano_vm import ExecutionVM, Program, SqliteStore

    steps = options.child
    tools = w.Tools()
    functions = {"tick": tools.tick, "done": tools.done, "add_one": tools.add_one, "reject": tools.reject}
    if options.shape == "loop":
        limit = max(1, steps // 2)
        source, context, expected = w.w3_program(limit), {"limit": limit}, limit
        executed = 2 * limit + 1
    else:
        source, context, expected, executed = chain_program(steps), {"x": 0}, steps, steps

    def new_vm(name: str) -> ExecutionVM:
        if options.store == "memory":
            return ExecutionVM(llm=None, tools=functions)
        store = SqliteStore(str(folder / f"{name}.db"), durability=options.store)
        return ExecutionVM(llm=None, tools=functions, store=store)

    async def run_once(vm: ExecutionVM, program: Program) -> None:
        tools.count = 0
        before = tools.calls
        trace = await vm.run(program, context=context)
        calls = tools.calls - before
        if trace.status != "SUCCESS" or trace.final_output != expected:
            raise SystemExit(f"{steps} steps ended {trace.status} with {trace.final_output!r}")
        if calls != (expected + 1 if options.shape == "loop" else steps):
            raise SystemExit(f"{calls} tool calls in a run of {steps} steps")

    # Warm up with a small program, so that what is loaded once is not counted as growth.
    small = Program.from_dict(w.w3_program(5))
    await new_vm("warm").run(small, context={"limit": 5})
    vm = new_vm("run")
    start = time.perf_counter()
    program = Program.from_dict(source)
    vm.compile(program)  # kept by the engine: the runs below do not pay for it again
    compile_seconds = time.perf_counter() - start
    base = peak_bytes()
    start = time.perf_counter()
    await run_once(vm, program)
    elapsed, runs = time.perf_counter() - start, 1
    growth = max(0, peak_bytes() - base)
    while elapsed < options.seconds:
        if runs % 500 == 0:
            vm = new_vm(f"run{runs}")
            vm.compile(program)
        start = time.perf_counter()
        await run_once(vm, program)
        elapsed += time.perf_counter() - start
        runs += 1
    return {
        "steps": executed,
        "us_per_step": elapsed / (runs * executed) * 1e6,
        "bytes_per_step": growth / executed,
        "compile_us_per_step": compile_seconds / len(source["steps"]) * 1e6,
        "runs": runs,
    }


def spawn(steps: int, options: argparse.Namespace) -> dict[str, Any] | str:
    """The measurement of a length, or why there is none."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(steps)]
    command += ["--store", options.store, "--shape", options.shape, "--seconds", str(options.seconds)]
    if options.dir:
        command += ["--dir", options.dir]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return f"not finished within {options.timeout} s"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def verdicts(results: dict[int, list[dict[str, Any]]]) -> list[tuple[str, float, float, bool]]:
    """(what, ratio, at most, met), for the pairs of lengths that were measured."""

    def pair(long: int, short: int, what: str, floor: float) -> float | None:
        if not results.get(long) or not results.get(short):
            return None
        return statistics.median(
            one[what] / max(other[what], floor)
            for one, other in zip(results[long], results[short], strict=False)
        )

    found: list[tuple[str, float, float, bool]] = []
    cost = pair(10_000, 100, "us_per_step", 1e-3)
    if cost is not None:
        found.append(("time per step, 10,000 steps over 100", cost, GROWTH_MAX, cost <= GROWTH_MAX))
    # Below 64 bytes per step the shorter run's growth is the allocator's noise.
    memory = pair(100_000, 10_000, "bytes_per_step", 64)
    if memory is not None:
        met = memory <= MEMORY_GROWTH_MAX
        found.append(("memory per step, 100,000 steps over 10,000", memory, MEMORY_GROWTH_MAX, met))
    return found


def table(results: dict[int, list[dict[str, Any]]], problems: dict[int, str]) -> str:
    base = results.get(100) or next((rows for rows in results.values() if rows), [])
    unit = statistics.median(row["us_per_step"] for row in base) if base else 1.0
    lines = [f"{'steps':>9} {'time/step':>10} {'us/step':>9} {'bytes/step':>11} {'compile us/step':>16}"]
    for length, rows in results.items():
        if length in problems:
            lines.append(f"{length:>9,} {problems[length]}")
            continue
        time_per_step, memory, compiling = (
            statistics.median(row[what] for row in rows)
            for what in ("us_per_step", "bytes_per_step", "compile_us_per_step")
        )
        # Peak memory moves in steps of the allocator's arenas: below 1,000 steps it says nothing.
        shown = f"{memory:,.0f}" if length >= 1_000 else "-"
        lines.append(
            f"{length:>9,} {time_per_step / unit:>9.2f}x {time_per_step:>9.2f} {shown:>11} {compiling:>16.2f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cost and memory of a step, by the length of the run.")
    parser.add_argument("--store", choices=("memory", "normal", "full"), default="memory")
    parser.add_argument("--shape", choices=("loop", "chain"), default="loop")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="repeat short runs for so long")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one length")
    parser.add_argument(
        "--dir", default=None, help="where the databases go (default: the temporary directory)"
    )
    parser.add_argument("--json", default=None, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 10 and 100 steps, one round")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        run_child(options)
        return 0
    if options.quick:
        options.lengths, options.rounds, options.seconds = [10, 100], 1, 0.01
    results: dict[int, list[dict[str, Any]]] = {length: [] for length in options.lengths}
    problems: dict[int, str] = {}
    for _ in range(options.rounds):
        for length in options.lengths:
            if length in problems:
                continue
            measured = spawn(length, options)
            if isinstance(measured, str):
                problems[length] = measured
            else:
                results[length].append(measured)
    print(f"{options.shape}, store {options.store}, {options.rounds} rounds")
    print(table(results, problems))
    judged = verdicts(results)
    for what, found, at_most, met in judged:
        print(f"{what}: {found:.2f} (at most {at_most}) {'pass' if met else 'MISSED'}")
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps({"results": results, "problems": problems}, indent=1) + "\n")
    return 1 if problems or not all(met for *_, met in judged) else 0


if __name__ == "__main__":
    raise SystemExit(main())
