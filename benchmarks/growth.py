"""What happens to a cost when the work grows: ratios, not times.

    steps     10 to 100,000 steps in one run: time and memory per step        (benchmarks/steps.py, loop)
    turns     100 to 10,000 turns of one run that waits in each: time to take it up, make a turn, and wait again
    runs      1 to 1,000 runs at once on one SQLite file: time per run
    payload   100 bytes to 1 MB through a tool: time per KiB
    journal   1 to 1,000,000 runs in one database: opening it, listing, reading, verifying, starting

    python benchmarks/growth.py                                  # the journal up to 100,000 runs: some minutes
    python benchmarks/growth.py --only journal --most 1000000    # about 2.5 GB of disk
    python benchmarks/growth.py --quick                          # a smoke run without verdicts

A curve is flat when its last point costs at most so many times its base. Every point of `journal` is measured in a
fresh process, on runs drawn from the whole database; nine of ten have ended, one waits for an event.

Exit code: 0 every curve is flat, 1 one is not.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("nano_vm") is None:
    sys.path.insert(0, str(HERE.parent / "src"))

from nano_vm import ExecutionVM, Program, SqliteStore, tool  # noqa: E402
from nano_vm.errors import StoreError  # noqa: E402
from nano_vm.journal.port import RunQuery  # noqa: E402

import steps as step_lengths  # noqa: E402

CURVES = ("steps", "turns", "runs", "payload", "journal")
TURNS = (100, 1_000, 10_000)
WIDTHS = (1, 10, 100, 1_000)
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
COUNTS = (1, 1_000, 10_000, 100_000, 1_000_000)
# At most this many times the cost at the base. A tree that is a thousand times as large is deeper by a level or two,
# and its pages are no longer all in memory.
FLAT = {"steps": 1.2, "memory": 1.2, "turns": 1.2, "runs": 1.2, "payload": 1.2, "journal": 3.0}
WAITING = 10  # one run in so many waits for an event


def curve(name: str, what: str, base: int, points: dict[int, float], at_most: float) -> dict[str, Any]:
    """A curve as data: cost over the cost at `base`."""
    ratios = {x: round(value / points[base], 3) for x, value in points.items()} if base in points else {}
    last = ratios[max(ratios)] if ratios else None
    flat = None if last is None or max(ratios) == base else last <= at_most
    return {
        "curve": name,
        "what": what,
        "base": base,
        "ratios": {str(x): ratio for x, ratio in ratios.items()},
        "at_most": at_most,
        "flat": flat,
    }


# --- steps ------------------------------------------------------------------------------------------------------------


def steps_curve(options: argparse.Namespace) -> list[dict[str, Any]]:
    lengths = (10, 100) if options.quick else step_lengths.LENGTHS
    given = argparse.Namespace(
        store="memory", shape="loop", seconds=0.01 if options.quick else 0.5, timeout=600, dir=options.dir
    )
    found: dict[int, list[dict[str, Any]]] = {length: [] for length in lengths}
    for _ in range(options.rounds):
        for length in lengths:
            measured = step_lengths.spawn(length, given)
            if isinstance(measured, str):
                raise SystemExit(f"{length} steps: {measured}")
            found[length].append(measured)

    def median(length: int, what: str) -> float:
        return statistics.median(row[what] for row in found[length])

    times = {length: median(length, "us_per_step") for length in lengths}
    curves = [curve("steps", "time per step", 100, times, FLAT["steps"])]
    # Peak memory moves in steps of the allocator's arenas: short runs say nothing.
    memory = {length: median(length, "bytes_per_step") for length in lengths if length >= 10_000}
    if memory:
        curves.append(curve("steps", "memory per step", 10_000, memory, FLAT["memory"]))
    return curves


# --- turns of one run -------------------------------------------------------------------------------------------------

LOOP = {
    "name": "loop",
    "max_steps": 100_000,
    "steps": [
        {"id": "work", "type": "tool", "tool": "mark", "args": {"x": 1}},
        {"id": "turn", "type": "wait", "event": "go"},
        {
            "id": "more",
            "type": "condition",
            "condition": "$turn.output.n >= 0",
            "then": "work",
            "otherwise": "end",
        },
        {"id": "end", "type": "tool", "tool": "mark", "args": {"x": 2}},
    ],
}
TIMED_TURNS = 50


def turns_curve(options: argparse.Namespace) -> list[dict[str, Any]]:
    counts = (10, 100) if options.quick else TURNS
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            for count, seconds in asyncio.run(time_turns(Path(folder) / "runs.db", counts)).items():
                found[count].append(seconds)
    times = {count: statistics.median(seconds) for count, seconds in found.items()}
    return [curve("turns", "time per turn, durability normal", 100, times, FLAT["turns"])]


async def time_turns(database: Path, counts: Sequence[int]) -> dict[int, float]:
    """Seconds of processor time that a turn takes, after so many of them: one engine, as that of a worker."""

    @tool(effect="idempotent", blocking=False)
    def mark(x: int) -> int:
        return x

    times: dict[int, float] = {}
    with SqliteStore(database, durability="normal") as store:
        vm = ExecutionVM(tools=[mark], store=store)
        run_id = (await vm.run(Program.from_dict(LOOP), {})).trace_id
        done = 0

        async def turns(most: int) -> None:
            nonlocal done
            while done < most:
                await vm.resume(run_id, {"n": done}, name="go")
                done += 1

        for count in counts:
            await turns(count)
            before = time.process_time()
            await turns(count + TIMED_TURNS)
            times[count] = (time.process_time() - before) / TIMED_TURNS
        await vm.resume(run_id, {"n": -1}, name="go")
        if vm.trace(run_id).status != "SUCCESS":
            raise SystemExit("the loop did not come to its end")
    return times


# --- runs at once -----------------------------------------------------------------------------------------------------

TEN = {
    "name": "ten",
    "max_steps": 20,
    "steps": [{"id": f"s{n}", "type": "tool", "tool": "mark", "args": {"x": "$x"}} for n in range(10)],
}


def runs_curve(options: argparse.Namespace) -> list[dict[str, Any]]:
    widths = (1, 10) if options.quick else WIDTHS
    total = 20 if options.quick else 2_000
    found: dict[int, list[float]] = {width: [] for width in widths}
    for _ in range(options.rounds):
        for width in widths:
            with tempfile.TemporaryDirectory(dir=options.dir) as folder:
                found[width].append(
                    asyncio.run(time_runs(Path(folder) / "runs.db", width, max(total, width)))
                )
    times = {width: statistics.median(seconds) for width, seconds in found.items()}
    return [curve("runs", "time per run, durability normal", 1, times, FLAT["runs"])]


async def time_runs(database: Path, width: int, total: int) -> float:
    calls = 0

    @tool(effect="idempotent", blocking=False)
    def mark(x: int) -> int:
        nonlocal calls
        calls += 1
        return x

    program = Program.from_dict(TEN)
    with SqliteStore(database, durability="normal") as store:
        vm = ExecutionVM(tools=[mark], store=store)
        await asyncio.gather(*(vm.run(program, {"x": 0}) for _ in range(min(width, 20))))
        calls = 0
        left = iter(range(total))

        async def lane() -> None:
            for number in left:
                trace = await vm.run(program, {"x": number})
                if trace.status != "SUCCESS":
                    raise SystemExit(f"a run ended {trace.status}")

        began = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(width)))
        took = time.perf_counter() - began
    if calls != 10 * total:
        raise SystemExit(f"{calls} calls in {total} runs")
    return took / total


# --- payloads ---------------------------------------------------------------------------------------------------------


def payload_curve(options: argparse.Namespace) -> list[dict[str, Any]]:
    sizes = (100, 10_000) if options.quick else SIZES
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(options.rounds):
        for size in sizes:
            with tempfile.TemporaryDirectory(dir=options.dir) as folder:
                runs = 3 if options.quick else max(20, min(400, 40_000_000 // size))
                found[size].append(asyncio.run(time_payloads(Path(folder) / "runs.db", size, runs)))
    base = 10_000  # below, a step costs what a step costs
    times = {
        size: statistics.median(seconds) / size
        for size, seconds in found.items()
        if size >= base or options.quick
    }
    return [curve("payload", "time per KiB of payload", base, times, FLAT["payload"])]


async def time_payloads(database: Path, size: int, runs: int) -> float:
    """Seconds per run that takes a text of `size` bytes in, hands it through a tool, and journals what comes out."""

    @tool(effect="idempotent", blocking=False)
    def change(text: str) -> str:
        return text[::-1]

    program = Program.from_dict(
        {"name": "carry", "steps": [{"id": "s", "type": "tool", "tool": "change", "args": {"text": "$text"}}]}
    )
    draw = random.Random(size)
    with SqliteStore(database, durability="normal") as store:
        vm = ExecutionVM(tools=[change], store=store)
        await vm.run(program, {"text": "warm"})
        took = 0.0
        for _ in range(runs):
            text = draw.randbytes(
                size // 2
            ).hex()  # large payloads are kept once, by content: each is another
            began = time.perf_counter()
            trace = await vm.run(program, {"text": text})
            took += time.perf_counter() - began
            if trace.final_output != text[::-1]:
                raise SystemExit("a payload came out as another")
    return took / runs


# --- runs in one journal ----------------------------------------------------------------------------------------------

ENDS = {"name": "ends", "steps": [{"id": "s", "type": "tool", "tool": "note", "args": {"x": "$x"}}]}
WAITS = {
    "name": "waits",
    "steps": [
        {"id": "s", "type": "tool", "tool": "note", "args": {"x": "$x"}},
        {"id": "w", "type": "wait", "event": "go"},
    ],
}
RARE = {**ENDS, "name": "rare"}


def note(x: int) -> dict[str, int]:
    return {"x": x}


def engine(store: SqliteStore) -> ExecutionVM:
    return ExecutionVM(tools=[tool(effect="idempotent", blocking=False)(note)], store=store)


async def fill(database: Path, first: int, count: int) -> None:
    """Real runs by the real engine, many at once: number `first` to `first + count - 1`."""
    with SqliteStore(database, durability="normal") as store:
        vm = engine(store)
        programs = [Program.from_dict(one) for one in (ENDS, WAITS, RARE)]
        numbers = iter(range(first, first + count))

        async def lane() -> None:
            for number in numbers:
                kind = 2 if number == 0 else number % WAITING == 1
                options: dict[str, Any] = {"tenant": "rare"} if kind == 2 else {}
                name = f"run-{number}"
                await vm.run(programs[kind], {"x": number}, trace_id=name, idempotency_key=name, **options)

        await asyncio.gather(*(lane() for _ in range(500)))


def journal_curve(options: argparse.Namespace) -> list[dict[str, Any]]:
    counts = [count for count in ((1, 100) if options.quick else COUNTS) if count <= options.most]
    if options.most not in counts and not options.quick:
        counts.append(options.most)
    measured: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        database = Path(folder) / "runs.db"
        held = 0
        for count in counts:
            began = time.perf_counter()
            asyncio.run(fill(database, held, count - held))
            say(f"{count:,} runs: {count - held:,} more in {time.perf_counter() - began:.0f} s")
            held = count
            done = subprocess.run(
                [sys.executable, __file__, "--child", str(database), "--most", str(count)],
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                raise SystemExit(done.stderr.strip().splitlines()[-1])
            measured[count] = json.loads(done.stdout)
            size = sum(file.stat().st_size for file in Path(folder).glob("runs.db*") if file.is_file())
            say("  " + ", ".join(f"{what} {value * 1e3:.2f} ms" for what, value in measured[count].items()))
            say(f"  {size / count:,.0f} bytes per run")
    base = 100 if options.quick else 1_000
    return [
        curve("journal", what, base, {n: row[what] for n, row in measured.items()}, FLAT["journal"])
        for what in measured[counts[-1]]
    ]


def journal_child(database: Path, count: int) -> None:
    """Every operation on a database of `count` runs, in a fresh process; prints seconds as JSON."""
    draw = random.Random(count)
    rounds = 30

    def opened() -> None:
        SqliteStore(database, durability="normal").close()

    found = {"open": repeat(10, opened)}
    with SqliteStore(database, durability="normal") as store:
        vm = engine(store)

        def some() -> str:
            number = draw.randrange(count)
            return "rare::run-0" if number == 0 else f"run-{number}"

        def owners() -> None:
            if store.claimable(vm.clock.now_ms()):
                raise SystemExit("a run is claimable where none should be")

        newest: Sequence[Any] = vm.runs(limit=50)
        found |= {
            "list the newest": repeat(rounds, lambda: vm.runs(limit=50)),
            "list a page": repeat(
                rounds, lambda: store.records(RunQuery(limit=50, after=newest[len(newest) // 2].run_id))
            ),
            "list what waits": repeat(rounds, lambda: vm.runs(status="SUSPENDED", limit=50)),
            "list a rare program": repeat(
                rounds, lambda: store.records(RunQuery(program_name="rare", limit=50))
            ),
            "list a rare tenant": repeat(rounds, lambda: store.records(RunQuery(tenant="rare", limit=50))),
            "list of two kinds": repeat(
                rounds, lambda: store.records(RunQuery(tenant="rare", status="SUSPENDED", limit=50))
            ),
            "look for work": repeat(rounds, owners),
            "get a trace": repeat(rounds, lambda: vm.trace(some()).to_dict()),
            "find by key": repeat(
                rounds, lambda: store.find_key("default", "ends", f"run-{draw.randrange(count)}")
            ),
            "verify a run": repeat(rounds, lambda: vm.verify(some())),
        }
        program = Program.from_dict(ENDS)
        found["start and finish"] = asyncio.run(started(vm, program, rounds))
    print(json.dumps(found))


async def started(vm: ExecutionVM, program: Program, rounds: int) -> float:
    took = []
    for number in range(rounds + 3):
        began = time.perf_counter()
        await vm.run(program, {"x": number})
        took.append(time.perf_counter() - began)
    return statistics.median(took[3:])


def repeat(rounds: int, work: Callable[[], Any]) -> float:
    """The median time of `work`, in seconds; the first calls warm up."""
    took = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        try:
            work()
        except StoreError as error:
            raise SystemExit(f"{error.code} {error}") from error
        took.append(time.perf_counter() - began)
    return statistics.median(took[2:])


# --- the report -------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(curves: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name in CURVES:
        chosen = [one for one in curves if one["curve"] == name]
        if not chosen:
            continue
        points = list(dict.fromkeys(x for one in chosen for x in one["ratios"]))
        lines.append(f"{name:<34}" + "".join(f"{int(x):>11,}" for x in points) + f"{'at most':>10}  verdict")
        for one in chosen:
            shown = "".join(
                f"{one['ratios'][x]:>10.2f}x" if x in one["ratios"] else f"{'-':>11}" for x in points
            )
            verdict = {None: "", True: "flat", False: "GROWS"}[one["flat"]]
            lines.append(f"  {one['what']:<32}{shown}{one['at_most']:>9.1f}x  {verdict}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Costs as the work grows, as ratios.")
    parser.add_argument("--only", default="", help=f"curves, comma separated, of {', '.join(CURVES)}")
    parser.add_argument(
        "--most", type=int, default=100_000, help="runs in the largest database (default 100,000)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=None, help="where databases go (default: the temporary directory)")
    parser.add_argument("--json", default=None, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two points of each, no verdicts")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        journal_child(Path(options.child), options.most)
        return 0
    names = [name for name in options.only.split(",") if name] or list(CURVES)
    if not set(names) <= set(CURVES):
        parser.error(f"unknown curve; choose from {', '.join(CURVES)}")
    if options.quick:
        options.rounds = 1
    makers = {
        "steps": steps_curve,
        "turns": turns_curve,
        "runs": runs_curve,
        "payload": payload_curve,
        "journal": journal_curve,
    }
    curves = [found for name in names for found in makers[name](options)]
    print("cost over the cost at the base")
    print(table(curves))
    if options.json:
        machine = {"cpus": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
        Path(options.json).write_text(json.dumps({"machine": machine, "curves": curves}, indent=1) + "\n")
    return 1 if not options.quick and any(one["flat"] is False for one in curves) else 0


if __name__ == "__main__":
    raise SystemExit(main())
