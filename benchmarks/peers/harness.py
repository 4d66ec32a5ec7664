"""What the drivers share: the command line, the timing of a slice, the checks that the work was done.

A driver maps workload keys to functions `(Slice) -> Measured`, async or plain, and calls `run_driver`. The
result is one JSON line on standard output; a failed check is an exception, so a benchmark that did nothing
never prints.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import sqlite3
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads import WORKLOADS, Tools, Workload

WARM_UP_SHARE = 0.2


@dataclass
class Slice:
    """One driver's turn: what to run, for how long, and a folder of its own that vanishes afterwards."""

    workload: Workload
    seconds: float
    folder: Path
    options: argparse.Namespace
    checks: dict[str, Any] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.folder / "bench.db"


@dataclass(frozen=True)
class Measured:
    """Programs finished in the timed part, how long that took, and the processor time of this process in it (user and
    system, all threads)."""

    programs: int
    seconds: float
    cpu_seconds: float


class WorkNotDone(Exception):
    """A driver's programs did not do what the workload says."""


Driver = Callable[[Slice], Any]


def check_result(workload: Workload, value: object) -> None:
    if value != workload.result:
        raise WorkNotDone(f"{workload.key}: a program ended with {value!r}, not {workload.result!r}")


def check_calls(workload: Workload, tools: Tools, programs: int) -> None:
    expected = programs * workload.calls
    if tools.calls != expected:
        raise WorkNotDone(
            f"{workload.key}: {tools.calls} tool calls where {programs} programs need {expected}"
        )


async def time_programs(turn: Slice, tools: Tools, once: Callable[[], Awaitable[object]]) -> Measured:
    """Run `once` (one program, returning its result) again and again, `width` at a time.

    At least one wave warms up and at least one is timed, however short the slice.
    """
    workload = turn.workload
    tools.calls = 0
    total = 0

    async def wave() -> None:
        nonlocal total
        if workload.width == 1:
            check_result(workload, await once())
        else:
            for value in await asyncio.gather(*(once() for _ in range(workload.width))):
                check_result(workload, value)
        total += workload.width

    warm_until = time.perf_counter() + turn.seconds * WARM_UP_SHARE
    await wave()
    while time.perf_counter() < warm_until:
        await wave()
    before = total
    start, start_cpu = time.perf_counter(), time.process_time()
    while True:
        await wave()
        elapsed = time.perf_counter() - start
        if elapsed >= turn.seconds:
            cpu = time.process_time() - start_cpu
            break
    check_calls(workload, tools, total)
    turn.checks["tool_calls"] = tools.calls
    return Measured(total - before, elapsed, cpu)


def time_programs_sync(turn: Slice, tools: Tools, once: Callable[[], object]) -> Measured:
    """`time_programs` for engines that are driven by plain calls."""
    workload = turn.workload
    tools.calls = 0
    warm_until = time.perf_counter() + turn.seconds * WARM_UP_SHARE
    total = 0
    while True:
        check_result(workload, once())
        total += 1
        if time.perf_counter() >= warm_until:
            break
    before = total
    start, start_cpu = time.perf_counter(), time.process_time()
    while True:
        check_result(workload, once())
        total += 1
        elapsed = time.perf_counter() - start
        if elapsed >= turn.seconds:
            cpu = time.process_time() - start_cpu
            break
    check_calls(workload, tools, total)
    turn.checks["tool_calls"] = tools.calls
    return Measured(total - before, elapsed, cpu)


def commits_of(database: Path) -> int:
    """Transactions so far. In the write-ahead log these are the frames that carry a database size; with a rollback
    journal the header counts them (SQLite file format, §4.1 and §1.3.7)."""
    header = database.read_bytes()[:28] if database.exists() else b""
    if len(header) == 28 and header[18] == 1:
        return int(struct.unpack(">I", header[24:28])[0])
    return wal_commits(database)


def wal_commits(database: Path) -> int:
    """Transactions in the write-ahead log: frames that carry a database size (SQLite file format, §4.1)."""
    log = Path(f"{database}-wal")
    data = log.read_bytes() if log.exists() else b""
    if len(data) < 32:
        return 0
    page_size, salts = struct.unpack(">I", data[8:12])[0], data[16:24]
    commits = 0
    for start in range(32, len(data) - 24 - page_size + 1, 24 + page_size):
        header = data[start : start + 24]
        if header[8:16] == salts and header[4:8] != b"\0\0\0\0":
            commits += 1
    return commits


def stored(database: Path) -> tuple[int, int]:
    """(rows, bytes of values) of all tables in a database."""
    con = sqlite3.connect(database)
    try:
        tables = [
            name
            for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not name.startswith("sqlite_")
        ]
        rows = size = 0
        for table in tables:
            columns = [row[1] for row in con.execute(f'PRAGMA table_info("{table}")')]
            lengths = " + ".join(f'coalesce(length("{column}"), 0)' for column in columns)
            count, total = con.execute(
                f'SELECT count(*), coalesce(sum({lengths}), 0) FROM "{table}"'
            ).fetchone()
            rows += count
            size += total
        return rows, size
    finally:
        con.close()


class DurabilityProbe:
    """Counts what one program costs the database, and insists that every tool step was committed on its own.

    Made when the store stands and has run one program; `finish` is called after exactly one more.
    """

    def __init__(self, turn: Slice) -> None:
        self.turn = turn
        self.commits = commits_of(turn.database)
        self.rows, self.size = stored(turn.database)

    def finish(self) -> None:
        turn, checks = self.turn, self.turn.checks
        rows, size = stored(turn.database)
        commits = commits_of(turn.database) - self.commits
        checks["commits_per_program"] = commits
        checks["rows_per_program"] = rows - self.rows
        checks["bytes_per_program"] = size - self.size
        needed = turn.workload.calls if turn.workload.commits is None else turn.workload.commits
        if commits < needed:
            raise WorkNotDone(f"{turn.workload.key}: {commits} commits where {needed} are needed")


class PostgresProbe:
    """What one program writes to the server's log; and that it writes at all."""

    def __init__(self, turn: Slice) -> None:
        self.turn = turn
        self.written = self._written()

    def _written(self) -> int:
        import psycopg

        with psycopg.connect(self.turn.options.url, autocommit=True) as con:
            row = con.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
            assert row is not None
            return int(row[0])

    def finish(self) -> None:
        written = self._written() - self.written
        self.turn.checks["wal_bytes_per_program"] = written
        if written < self.turn.workload.calls * 100:
            raise WorkNotDone(f"{self.turn.workload.key}: {written} bytes were logged")


async def probe_durability(turn: Slice, once: Callable[[], Awaitable[object]]) -> None:
    check_result(turn.workload, await once())
    probe = PostgresProbe(turn) if turn.options.url else DurabilityProbe(turn)
    check_result(turn.workload, await once())
    probe.finish()


def probe_durability_sync(turn: Slice, once: Callable[[], object]) -> None:
    check_result(turn.workload, once())
    probe = DurabilityProbe(turn)
    check_result(turn.workload, once())
    probe.finish()


def report(peer: str, version: str, turn: Slice, measured: Measured) -> dict[str, Any]:
    def rate(seconds: float) -> float:
        if turn.workload.unit == "us/step":
            return seconds / (measured.programs * turn.workload.steps) * 1e6
        return measured.programs / seconds

    return {
        "peer": peer,
        "version": version,
        "workload": turn.workload.key,
        "unit": turn.workload.unit,
        "value": rate(measured.seconds),
        "cpu_value": rate(measured.cpu_seconds),
        "n": measured.programs,
        "checks": turn.checks,
    }


def run_driver(
    peer: str, version: str, variants: Mapping[str, Mapping[str, Driver]], argv: Sequence[str] | None = None
) -> int:
    """The command line of a driver: `driver.py WORKLOAD --seconds S` prints one JSON line.

    `variants` maps the name of a variant ("" is the plain one) to its workloads; a variant reports as
    `peer_variant`.
    """
    parser = argparse.ArgumentParser(description=f"Run one workload on {peer}.")
    parser.add_argument("workload", nargs="?", choices=sorted(WORKLOADS), help="what to run")
    parser.add_argument("--variant", default=next(iter(variants)), choices=list(variants), help="another way")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the timed part (default 2)")
    parser.add_argument(
        "--dir", default=None, help="where the databases go (default: the temporary directory)"
    )
    parser.add_argument("--url", default="", help="a PostgreSQL database, for the variant `postgres`")
    parser.add_argument("--commits", type=int, default=16, help="bare SQLite: commits per program")
    parser.add_argument("--rows", type=int, default=16, help="bare SQLite: rows per program")
    parser.add_argument("--bytes", type=int, default=14_000, help="bare SQLite: bytes per program")
    parser.add_argument("--list", action="store_true", help="print the variants and their workloads")
    options = parser.parse_args(argv)
    if options.list or options.workload is None:
        known = {variant: list(drivers) for variant, drivers in variants.items()}
        print(json.dumps({"peer": peer, "version": version, "variants": known}))
        return 0
    drivers = variants[options.variant]
    if options.workload not in drivers:
        parser.error(f"{peer} has no {options.workload} in this variant; it knows {', '.join(drivers)}")
    if options.variant:
        peer = f"{peer}_{options.variant}"
    # A peer may still write to its files from a thread while the folder goes: that is no failure of the
    # benchmark.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.dir, ignore_cleanup_errors=True) as folder:
        turn = Slice(WORKLOADS[options.workload], options.seconds, Path(folder), options)
        driver = drivers[options.workload]
        measured = asyncio.run(driver(turn)) if inspect.iscoroutinefunction(driver) else driver(turn)
        turn.checks["python"] = sys.version.split()[0]
        print(json.dumps(report(peer, version, turn, measured)), flush=True)
    return 0
