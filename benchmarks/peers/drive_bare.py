"""The limits: the same work without any engine.

`await`: the workload's awaits and comparisons, nothing more; W2 walks a table of steps and binds every
value to its name, because that data flow is part of the work. `sqlite`: that, and the rows nano-vm writes,
in as many commits as nano-vm needs (numbers measured on nano-vm and handed over with --commits, --rows,
--bytes). `sqlite_20`: one commit per step. `group`: 100 programs in lockstep whose rows share one
transaction per commit, in a table that holds nothing else. `rows`: `group`, but the very rows that nano-vm stores, in
its own tables with their indexes and guards: what is left of nano-vm when nothing is computed. `postgres`: `sqlite` and
`group` in the PostgreSQL database of --url.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import sqlite3
import sys
from pathlib import Path
from typing import Any

if importlib.util.find_spec("nano_vm") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import workloads as w
from harness import (
    Measured,
    Slice,
    WorkNotDone,
    check_calls,
    check_result,
    probe_durability,
    run_driver,
    time_programs,
    time_programs_sync,
)

# W2 as a table: (name read, name bound), and for a condition (name read, None). A condition's limit is its
# number.
TWENTY: tuple[tuple[str, str | None, int], ...] = tuple(
    (f"v{number}", None, number)
    if position == 0
    else (f"v{number + position - 1}", f"v{number + position}", 0)
    for number in range(0, 15, 3)
    for position in range(4)
)
LAST = "v15"


async def refund(turn: Slice) -> Measured:
    tools = w.Tools()

    async def once() -> object:
        order = await tools.lookup(7)
        if order["amount"] > 100:
            return await tools.reject()
        return await tools.notify(await tools.refund(order["amount"]))

    return await time_programs(turn, tools, once)


async def twenty_once(tools: w.Tools) -> int:
    values = {"v0": 0}
    add_one = tools.add_one
    for source, target, least in TWENTY:
        if target is not None:
            values[target] = await add_one(x=values[source])
        elif values[source] < least:
            raise WorkNotDone("the wrong branch was taken")
    return values[LAST]


async def twenty(turn: Slice) -> Measured:
    tools = w.Tools()
    return await time_programs(turn, tools, lambda: twenty_once(tools))


def twenty_sync(turn: Slice) -> Measured:
    tools = w.Tools()

    def once() -> object:
        values = {"v0": 0}
        for source, target, least in TWENTY:
            if target is not None:
                values[target] = tools.add_one_sync(x=values[source])
            elif values[source] < least:
                raise WorkNotDone("the wrong branch was taken")
        return values[LAST]

    return time_programs_sync(turn, tools, once)


async def loop(turn: Slice) -> Measured:
    tools = w.Tools()
    limit = turn.workload.loop_limit

    async def once() -> object:
        tools.count = n = 0
        while n < limit:
            n = await tools.tick()
        return await tools.done(n)

    return await time_programs(turn, tools, once)


async def gather(turn: Slice) -> Measured:
    tools = w.Tools()

    async def once() -> object:
        return sum(await asyncio.gather(*(tools.add_one(0) for _ in range(w.FAN_OUT))))

    return await time_programs(turn, tools, once)


async def gather_eager(turn: Slice) -> Measured:
    if sys.version_info < (3, 12):
        raise SystemExit("eager tasks need Python 3.12")
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    return await gather(turn)


class Log:
    """A journal table and nothing else: rows of opaque bytes, spread evenly over a program's commits."""

    def __init__(self, commits: int, rows: int, size: int) -> None:
        rows = max(rows, commits)
        self.body = os.urandom(max(1, size // rows))
        self.runs = 0
        # seqs[k] = the places of the rows that commit k writes
        edges = [rows * k // commits for k in range(commits + 1)]
        self.seqs = [range(edges[k], edges[k + 1]) for k in range(commits)]
        self.con: Any = None

    def begin(self) -> int:
        self.runs += 1
        return self.runs

    def commit(self, runs: range, number: int) -> None:
        raise NotImplementedError


class SqliteLog(Log):
    def __init__(self, path: Path, sync: str, *shape: int) -> None:
        super().__init__(*shape)
        self.con = sqlite3.connect(path, isolation_level=None)
        self.con.execute("PRAGMA journal_mode=WAL")
        self.con.execute(f"PRAGMA synchronous={sync}")
        self.con.execute("CREATE TABLE log (run INTEGER NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL)")
        self.con.execute("CREATE UNIQUE INDEX log_at ON log (run, seq)")

    def commit(self, runs: range, number: int) -> None:
        body = self.body
        self.con.execute("BEGIN IMMEDIATE")
        self.con.executemany(
            "INSERT INTO log VALUES (?,?,?)", [(run, seq, body) for run in runs for seq in self.seqs[number]]
        )
        self.con.execute("COMMIT")


class RecordedLog(Log):
    """The rows of a program that nano-vm has run, over and over under other run ids, in a database of its own making:
    the run's row with its first segment, one segment a commit, and with the last one what became of the run."""

    def __init__(self, path: Path, sync: str, recorded: Path) -> None:
        from nano_vm import SqliteStore
        from nano_vm.stores import sqlite_batch
        from nano_vm.stores.rows import RUN_COLUMNS
        from nano_vm.stores.sqlite_schema import connect

        con = sqlite3.connect(recorded)
        (self.run,) = con.execute(f"SELECT {RUN_COLUMNS} FROM nvm_runs").fetchall()
        self.segments = con.execute("SELECT seq, digests, facts, payloads FROM nvm_segments").fetchall()
        con.close()
        super().__init__(len(self.segments), len(self.segments), 1)
        names = [name.strip() for name in RUN_COLUMNS.split(",")]
        ended = dict(zip(names, self.run, strict=True))
        updated = [
            "status",
            "outcome",
            "waits",
            "wake_at_ms",
            "updated_at_ms",
            "length",
            "head",
            "seal",
            "owner",
        ]
        self.ending = (*(ended[name] for name in updated), 1)
        self.run = (*self.run[1:7], "RUNNING", None, *self.run[9:14], "", "owner" * 6, *self.run[16:])
        self.sql = sqlite_batch
        SqliteStore(path).close()
        self.con = connect(path, synchronous=sync, busy_timeout_ms=0)

    def commit(self, runs: range, number: int) -> None:
        con, segment, sql = self.con, self.segments[number], self.sql
        con.execute("BEGIN IMMEDIATE")
        if number == 0:
            con.executemany(sql.INSERT_RUN, [(f"{run:036x}", *self.run) for run in runs])
        whole = len(runs) - len(runs) % sql.ROWS
        for first in range(0, whole, sql.ROWS):
            values = [value for run in runs[first : first + sql.ROWS] for value in (run, *segment)]
            con.execute(sql.INSERT_SEGMENTS, values)
        con.executemany(sql.INSERT_SEGMENT, [(run, *segment) for run in runs[whole:]])
        if number == len(self.segments) - 1:
            con.executemany(sql.UPDATE_RUN, [(*self.ending, run) for run in runs])
        con.execute("COMMIT")


class PostgresLog(Log):
    """All rows of a commit in one statement: one way to the server and back."""

    def __init__(self, url: str, sync: str, *shape: int) -> None:
        import psycopg

        super().__init__(*shape)
        self.con = psycopg.connect(url, autocommit=True)
        self.con.execute(f"SET synchronous_commit = {'on' if sync == 'FULL' else 'off'}")
        self.con.execute("CREATE TABLE log (run bigint NOT NULL, seq bigint NOT NULL, body bytea NOT NULL)")
        self.con.execute("CREATE UNIQUE INDEX log_at ON log (run, seq)")

    def commit(self, runs: range, number: int) -> None:
        rows = [(run, seq) for run in runs for seq in self.seqs[number]]
        self.con.execute(
            "INSERT INTO log SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[])",
            ([run for run, _ in rows], [seq for _, seq in rows], [self.body] * len(rows)),
        )


def log_of(turn: Slice, commits: int, rows: int, size: int) -> Log:
    sync = str(turn.workload.sync)
    if turn.options.url:
        return PostgresLog(turn.options.url, sync, commits, rows, size)
    return SqliteLog(turn.database, sync, commits, rows, size)


async def log_seq(turn: Slice, commits: int, rows: int, size: int) -> Measured:
    tools = w.Tools()
    log = log_of(turn, commits, rows, size)
    # Which commits follow which step; the first ones belong to the start of the run.
    per_step = [range(commits * k // 20, commits * (k + 1) // 20) for k in range(20)]

    async def once() -> object:
        values = {"v0": 0}
        run = log.begin()
        for (source, target, least), numbers in zip(TWENTY, per_step, strict=True):
            if target is not None:
                values[target] = await tools.add_one(x=values[source])
            elif values[source] < least:
                raise WorkNotDone("the wrong branch was taken")
            for number in numbers:
                log.commit(range(run, run + 1), number)
        return values[LAST]

    await probe_durability(turn, once)
    return await time_programs(turn, tools, once)


async def log_as_nano_vm(turn: Slice) -> Measured:
    options = turn.options
    return await log_seq(turn, options.commits, options.rows, options.bytes)


async def log_20(turn: Slice) -> Measured:
    return await log_seq(turn, 20, 20, 20 * 100)


async def log_group(turn: Slice) -> Measured:
    options = turn.options
    log = log_of(turn, options.commits, options.rows, options.bytes)
    measured = await in_lockstep(turn, log, options.commits)
    rows = log.con.execute("SELECT count(*) FROM log").fetchone()[0]
    if rows != log.runs * max(options.rows, options.commits):
        raise WorkNotDone(f"{rows} rows stored for {log.runs} programs")
    return measured


async def log_rows(turn: Slice) -> Measured:
    from nano_vm import ExecutionVM, Program, SqliteStore

    tools, recorded = w.Tools(), turn.folder / "recorded.db"
    functions = {"add_one": tools.add_one, "reject": tools.reject}
    async with ExecutionVM(llm=None, tools=functions, store=SqliteStore(recorded)) as vm:
        await vm.run(Program.from_dict(w.w2_program()), context={"x": 0})
    log = RecordedLog(turn.database, str(turn.workload.sync), recorded)
    measured = await in_lockstep(turn, log, len(log.segments))
    for table, each in (("nvm_runs", 1), ("nvm_segments", len(log.segments))):
        rows = log.con.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        if rows != log.runs * each:
            raise WorkNotDone(f"{rows} rows of {table} stored for {log.runs} programs")
    if log.con.execute("SELECT count(*) FROM nvm_runs WHERE status <> 'SUCCESS'").fetchone() != (0,):
        raise WorkNotDone("a run has not ended")
    return measured


async def in_lockstep(turn: Slice, log: Log, commits: int) -> Measured:
    """All programs advance together; what they wrote in a step is committed in one transaction."""
    workload, tools = turn.workload, w.Tools()
    per_step = [range(commits * k // 20, commits * (k + 1) // 20) for k in range(20)]
    wave_workload = w.Workload(
        workload.key, workload.title, 20, workload.calls * workload.width, workload.result, workload.unit
    )

    async def once() -> object:
        runs = [log.begin() for _ in range(workload.width)]
        programs = [{"v0": 0} for _ in runs]
        for (source, target, least), numbers in zip(TWENTY, per_step, strict=True):
            for values in programs:
                if target is not None:
                    values[target] = await tools.add_one(x=values[source])
                elif values[source] < least:
                    raise WorkNotDone("the wrong branch was taken")
            for number in numbers:
                log.commit(range(runs[0], runs[-1] + 1), number)
        for values in programs:
            check_result(workload, values[LAST])
        return programs[0][LAST]

    wave = Slice(wave_workload, turn.seconds, turn.folder, turn.options, turn.checks)
    measured = await time_programs(wave, tools, once)
    check_calls(workload, tools, log.runs)
    return Measured(measured.programs * workload.width, measured.seconds, measured.cpu_seconds)


AWAIT = {
    "W1": refund,
    "W2": twenty,
    "W2_sync": twenty_sync,
    "W3_100": loop,
    "W3_1000": loop,
    "W3_10000": loop,
    "W6": gather,
}
VARIANTS = {
    "await": AWAIT,
    "eager": {"W6": gather_eager},
    "sqlite": {"W4_full_seq": log_as_nano_vm, "W4_normal_seq": log_as_nano_vm},
    "sqlite_20": {"W4_full_seq": log_20, "W4_normal_seq": log_20},
    "group": {"W4_full_100": log_group, "W4_normal_100": log_group},
    "rows": {"W4_full_100": log_rows, "W4_normal_100": log_rows},
    "postgres": {"W4_full_seq": log_as_nano_vm, "W4_full_100": log_group, "W4_normal_100": log_group},
}

if __name__ == "__main__":
    raise SystemExit(run_driver("bare", f"Python {platform.python_version()}", VARIANTS))
