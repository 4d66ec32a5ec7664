"""What does the store add to a bare SQLite loop?

One step-commit is an append of two or three sealed entries, as the runtime makes them. Measured side by side,
in turns: the store, and a loop that does nothing but BEGIN, INSERT the same rows, COMMIT. `one`: one
run, each append awaited; `many`: 100 tasks, whose appends of one tick share a commit.

    python benchmarks/store_append.py            # about half a minute
    python benchmarks/store_append.py --quick    # a smoke run
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.port import RunRecord
from nano_vm.kernel.events import StepStarted, StepSucceeded
from nano_vm.stores.memory import MemoryStore
from nano_vm.stores.segments import pack
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.stores.sqlite_schema import connect

SIZES = (2, 2, 2, 3, 2, 2, 3, 2, 2, 3, 2, 2, 3, 2, 3, 2)  # entries per commit of a 20-step program
WIDTH = 100


def step_entries(run_id: str) -> list[list[Entry]]:
    """The appends of one run, sealed beforehand: sealing is not the store's work."""
    chain = Chain(run_id)
    appends = []
    for number, size in enumerate(SIZES):
        events = [
            StepSucceeded(
                at_ms=1_790_000_000_000 + number,
                attempt=1,
                occurrence=1,
                step=f"charge_{number}",
                tokens_in=321,
            ),
            StepStarted(
                at_ms=1_790_000_000_000 + number,
                attempt=1,
                effect="irreversible",
                occurrence=1,
                step=f"notify_{number}",
            ),
            StepStarted(at_ms=1_790_000_000_000 + number, attempt=1, occurrence=1, step=f"other_{number}"),
        ]
        appends.append(
            [chain.seal(event, os.urandom(16), b'{"amount":1250,"to":"account"}') for event in events[:size]]
        )
    return appends


def record(run_id: str, owner: str) -> RunRecord:
    return RunRecord(
        run_id=run_id,
        program_hash="sha256:" + "0" * 64,
        program_name="refund",
        created_at_ms=1,
        updated_at_ms=1,
        owner=owner,
    )


async def drive_store(store: Any, runs: Sequence[tuple[str, list[list[Entry]]]], width: int) -> float:
    """Seconds for all appends of `runs`, `width` at a time."""
    for run_id, _ in runs:
        store.create(record(run_id, store.owner), [])
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    async def one(run_id: str, appends: list[list[Entry]]) -> None:
        for entries in appends:
            done = store.append(run_id, 1, entries)
            if done is not None:
                await done

    start = time.perf_counter()
    for first in range(0, len(runs), width):
        if width == 1:
            await one(*runs[first])
        else:
            await asyncio.gather(*(one(*run) for run in runs[first : first + width]))
    return time.perf_counter() - start


def drive_bare(con: Any, base: int, runs: Sequence[tuple[str, list[list[Entry]]]], width: int) -> float:
    """The same rows, packed beforehand, in a loop."""
    rows = [[pack(entries, {})[0] for entries in appends] for _, appends in runs]
    insert = "INSERT INTO nvm_segments (run, seq, digests, facts, payloads) VALUES (?,?,?,?,?)"
    start = time.perf_counter()
    for first in range(0, len(rows), width):
        group = list(enumerate(rows[first : first + width], base + first))
        for step in range(len(SIZES)):
            con.execute("BEGIN IMMEDIATE")
            con.executemany(insert, [(no, *appends[step]) for no, appends in group])
            con.execute("COMMIT")
    return time.perf_counter() - start


def measure(
    folder: Path, rounds: int, waves: int, parts: int = 3, single: int = 100
) -> dict[str, dict[str, list[float]]]:
    """Microseconds per step-commit, by case and contender."""
    found: dict[str, dict[str, list[float]]] = {}
    for durability in ("full", "normal"):
        for round_number in range(rounds):
            store = SqliteStore(folder / f"store-{durability}-{round_number}.db", durability)
            bare_path = folder / f"bare-{durability}-{round_number}.db"
            SqliteStore(bare_path).close()
            con = connect(bare_path, synchronous=durability.upper(), busy_timeout_ms=0)
            base = 1
            for case, width, count in (("many", WIDTH, WIDTH * waves), ("one", 1, single)):
                for part in range(parts):
                    runs = [
                        (f"{case}-{part}-{n:030}", step_entries(f"{case}-{part}-{n:030}"))
                        for n in range(count)
                    ]
                    commits = count * len(SIZES)
                    cell = found.setdefault(f"{durability} {case}", {"store": [], "bare": []})
                    cell["store"].append(asyncio.run(drive_store(store, runs, width)) / commits * 1e6)
                    cell["bare"].append(drive_bare(con, base, runs, width) / commits * 1e6)
                    base += count
            con.close()
            store.close()
    memory = MemoryStore()
    runs = [(f"m{n}", step_entries(f"m{n}")) for n in range(50)]
    seconds = asyncio.run(drive_store(memory, runs, 1))
    found["memory one"] = {"store": [seconds / len(runs) / len(SIZES) * 1e6], "bare": []}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="The store's cost per step-commit beside a bare SQLite loop."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--waves", type=int, default=5, help="hundreds of runs per slice (default 5)")
    parser.add_argument("--dir", default=None, help="where the databases go (default: temporary)")
    parser.add_argument("--quick", action="store_true", help="one short round")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.waves = 1, 1
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="store-append-") as folder:
        short = (1, 2) if options.quick else (3, 100)
        found = measure(Path(folder), options.rounds, options.waves, *short)
    print(f"{'us per step-commit':<22}{'store':>10}{'bare':>10}{'ratio':>8}")
    for case, cell in found.items():
        store = statistics.median(cell["store"])
        if cell["bare"]:
            bare = statistics.median(cell["bare"])
            ratio = statistics.median([s / b for s, b in zip(cell["store"], cell["bare"], strict=True)])
            print(f"{case:<22}{store:>10.1f}{bare:>10.1f}{ratio:>8.2f}")
        else:
            print(f"{case:<22}{store:>10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
