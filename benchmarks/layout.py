"""Which SQLite row layout should a journal use?

Every candidate stores the same entries (about 330 bytes of facts, a 16-byte salt, about 30 bytes of
payload) with the same pragmas and with triggers that refuse UPDATE and DELETE. One program is 16 commits
holding 37 entries: what a 20-step program (15 tools, 5 conditions) needs when completed(k), the decisions
and started(k+1) share a commit.

Two patterns: `seq`, one run after another with one commit per step; `group`, 100 runs whose ready entries
share one transaction per tick. All candidates are visited once per round, so that drift of the machine hits
them alike; the table gives medians over the rounds, and in brackets the share of the best of its column.

    python benchmarks/layout.py                 # the whole table, about two minutes
    python benchmarks/layout.py --quick         # a smoke run of a few seconds
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FACTS_BYTES = 330
SALT_BYTES = 16
PAYLOAD_BYTES = 30
# Entries per commit of one program: 37 entries in 16 commits.
COMMITS = (2, 2, 2, 3, 2, 2, 3, 2, 2, 3, 2, 2, 3, 2, 3, 2)
ENTRIES = sum(COMMITS)
GROUP = 100

Entry = tuple[bytes, bytes, bytes]
Batch = list[tuple[str, int, list[Entry]]]


@dataclass(frozen=True)
class Layout:
    """One way to store entries: its tables, and how many rows a commit of one run becomes."""

    key: str
    note: str
    ddl: tuple[str, ...]
    packed: bool = False
    apart: bool = False
    surrogate: bool = False
    ordered: bool = False

    @property
    def columns(self) -> int:
        return 3 if self.packed or self.apart else 5


_ROW = "run TEXT NOT NULL, seq INTEGER NOT NULL, facts BLOB NOT NULL, salt BLOB, payload BLOB"
_SEGMENT = "run TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL"
_PRIVATE = "CREATE TABLE private (run {0} NOT NULL, seq INTEGER NOT NULL, body BLOB"
_INT_ROW = _ROW.replace("run TEXT", "run INTEGER")

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "a",
        "row per entry, rowid + UNIQUE(run,seq)",
        (f"CREATE TABLE entry ({_ROW})", "CREATE UNIQUE INDEX entry_at ON entry (run, seq)"),
    ),
    Layout(
        "a-int",
        "as a, run is an INTEGER key",
        (f"CREATE TABLE entry ({_INT_ROW})", "CREATE UNIQUE INDEX entry_at ON entry (run, seq)"),
        surrogate=True,
    ),
    Layout(
        "b",
        "row per entry, WITHOUT ROWID PK(run,seq)",
        (f"CREATE TABLE entry ({_ROW}, PRIMARY KEY (run, seq)) WITHOUT ROWID",),
    ),
    Layout(
        "b-int",
        "as b, run is an INTEGER key",
        (f"CREATE TABLE entry ({_INT_ROW}, PRIMARY KEY (run, seq)) WITHOUT ROWID",),
        surrogate=True,
    ),
    Layout(
        "c",
        "segment per commit and run, rowid + UNIQUE(run,first_seq)",
        (f"CREATE TABLE entry ({_SEGMENT})", "CREATE UNIQUE INDEX entry_at ON entry (run, seq)"),
        packed=True,
    ),
    Layout(
        "c-int",
        "as c, run is an INTEGER key",
        (
            f"CREATE TABLE entry ({_SEGMENT.replace('run TEXT', 'run INTEGER')})",
            "CREATE UNIQUE INDEX entry_at ON entry (run, seq)",
        ),
        packed=True,
        surrogate=True,
    ),
    Layout(
        "c-time",
        "as c, text run ids that begin with the time",
        (f"CREATE TABLE entry ({_SEGMENT})", "CREATE UNIQUE INDEX entry_at ON entry (run, seq)"),
        packed=True,
        ordered=True,
    ),
    Layout(
        "d",
        "segment per commit and run, WITHOUT ROWID",
        (f"CREATE TABLE entry ({_SEGMENT}, PRIMARY KEY (run, seq)) WITHOUT ROWID",),
        packed=True,
    ),
    Layout(
        "a-apart",
        "as a, salt+payload in a second table (erasable alone)",
        (
            "CREATE TABLE entry (run TEXT NOT NULL, seq INTEGER NOT NULL, facts BLOB NOT NULL)",
            "CREATE UNIQUE INDEX entry_at ON entry (run, seq)",
            _PRIVATE.format("TEXT") + ")",
            "CREATE UNIQUE INDEX private_at ON private (run, seq)",
        ),
        apart=True,
    ),
    Layout(
        "c-apart",
        "as c, the segment's salts+payloads in a second table",
        (
            f"CREATE TABLE entry ({_SEGMENT})",
            "CREATE UNIQUE INDEX entry_at ON entry (run, seq)",
            _PRIVATE.format("TEXT") + ")",
            "CREATE UNIQUE INDEX private_at ON private (run, seq)",
        ),
        packed=True,
        apart=True,
    ),
)

METHODS = ("many", "multi")  # executemany; one INSERT with several VALUES


def pack(parts: Iterable[bytes]) -> bytes:
    """Length-prefixed concatenation: what a segment costs to build."""
    out: list[bytes] = []
    for part in parts:
        out.append(struct.pack("<I", len(part)))
        out.append(part)
    return b"".join(out)


class Journal:
    """A database in one layout. `append` builds the rows, so that packing is part of what is measured."""

    def __init__(
        self, path: Path, layout: Layout, *, sync: str, page: int, method: str, secure: str, checkpoint: int
    ) -> None:
        self.layout = layout
        self.method = method
        self.path = path
        self.runs: dict[str, int] = {}
        self.con = sqlite3.connect(path, isolation_level=None, cached_statements=512)
        con = self.con
        con.execute(f"PRAGMA page_size={page}")
        con.execute("PRAGMA journal_mode=WAL")
        con.execute(f"PRAGMA synchronous={sync}")
        con.execute(f"PRAGMA secure_delete={secure}")
        con.execute(f"PRAGMA wal_autocheckpoint={checkpoint}")
        for statement in layout.ddl:
            con.execute(statement)
        for table in ("entry", "private") if layout.apart else ("entry",):
            for verb in ("UPDATE", "DELETE"):
                con.execute(
                    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END"
                )

    def append(self, batch: Batch) -> None:
        """One transaction holding the entries of every run in the batch."""
        layout, con = self.layout, self.con
        rows: list[tuple[object, ...]] = []
        private: list[tuple[object, ...]] = []
        for name, seq, entries in batch:
            run: object = self.runs.setdefault(name, len(self.runs) + 1) if layout.surrogate else name
            if layout.packed and layout.apart:
                rows.append((run, seq, pack([e[0] for e in entries])))
                private.append((run, seq, pack([part for e in entries for part in e[1:]])))
            elif layout.packed:
                rows.append((run, seq, pack([part for e in entries for part in e])))
            elif layout.apart:
                for offset, (facts, salt, payload) in enumerate(entries):
                    rows.append((run, seq + offset, facts))
                    private.append((run, seq + offset, salt + payload))
            else:
                for offset, entry in enumerate(entries):
                    rows.append((run, seq + offset, *entry))
        con.execute("BEGIN IMMEDIATE")
        self._insert("entry", layout.columns, rows)
        if private:
            self._insert("private", 3, private)
        con.execute("COMMIT")

    def _insert(self, table: str, columns: int, rows: Sequence[tuple[object, ...]]) -> None:
        marks = "(" + ",".join("?" * columns) + ")"
        if self.method == "many":
            self.con.executemany(f"INSERT INTO {table} VALUES {marks}", rows)
            return
        # 100 rows at a time: a bounded set of statement texts, so that the statement cache is hit.
        for start in range(0, len(rows), 100):
            part = rows[start : start + 100]
            flat = [value for row in part for value in row]
            self.con.execute(f"INSERT INTO {table} VALUES " + ",".join([marks] * len(part)), flat)

    def read(self, name: str) -> int:
        """Read one run back in order; returns the bytes read."""
        run: object = self.runs[name] if self.layout.surrogate else name
        found = self.con.execute("SELECT * FROM entry WHERE run = ? ORDER BY seq", (run,)).fetchall()
        if self.layout.apart:
            found += self.con.execute("SELECT * FROM private WHERE run = ? ORDER BY seq", (run,)).fetchall()
        return sum(len(value) for row in found for value in row[2:])

    def refuses_changes(self) -> bool:
        for statement in ("UPDATE entry SET seq = seq + 1", "DELETE FROM entry"):
            try:
                self.con.execute(statement)
            except sqlite3.IntegrityError:
                continue
            return False
        return True

    def bytes_used(self) -> int:
        self.con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.path.stat().st_size


def new_run(ordered: bool) -> str:
    """A 32-character id: random (the hard case for index locality) or beginning with the time."""
    if ordered:
        return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
    return os.urandom(16).hex()


def new_entries(count: int) -> list[Entry]:
    # One slice of fresh bytes per entry; cheap and incompressible, and the same work for every layout.
    body = os.urandom(FACTS_BYTES + SALT_BYTES + PAYLOAD_BYTES)
    facts, salt, payload = (
        body[:FACTS_BYTES],
        body[FACTS_BYTES : FACTS_BYTES + SALT_BYTES],
        body[-PAYLOAD_BYTES:],
    )
    return [(facts, salt, payload)] * count


def programs_one_wave(journal: Journal, width: int) -> list[str]:
    """Run `width` programs side by side to their end, one transaction per tick."""
    names = [new_run(journal.layout.ordered) for _ in range(width)]
    seq = 0
    for count in COMMITS:
        journal.append([(name, seq, new_entries(count)) for name in names])
        seq += count
    return names


def measure(journal: Journal, width: int, seconds: float) -> tuple[float, list[str]]:
    """Programs per second over at least one wave."""
    names: list[str] = []
    start = time.perf_counter()
    while True:
        names += programs_one_wave(journal, width)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return len(names) / elapsed, names


def measure_read(journal: Journal, names: Sequence[str]) -> float:
    """Microseconds to read one run back."""
    sample = names[:: max(1, len(names) // 200)]
    expected = ENTRIES * (FACTS_BYTES + SALT_BYTES + PAYLOAD_BYTES)
    start = time.perf_counter()
    for name in sample:
        found = journal.read(name)
        if found < expected:
            raise SystemExit(f"layout {journal.layout.key}: read {found} bytes of a run, expected {expected}")
    return (time.perf_counter() - start) / len(sample) * 1e6


def sweep(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Visit every candidate once per round; returns samples per candidate and column."""
    results: dict[str, dict[str, list[float]]] = {}
    layouts = [layout for layout in LAYOUTS if not options.only or layout.key in options.only.split(",")]
    for page in options.pages:
        for layout in layouts:
            for method in METHODS:
                results[f"{layout.key}/{method}/{page}"] = {}
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="layout-") as folder:
        for sync in ("FULL", "NORMAL"):
            for round_number in range(options.rounds):
                for page in options.pages:
                    for layout in layouts:
                        for method in METHODS:
                            path = Path(folder) / f"{sync}-{round_number}-{layout.key}-{method}-{page}.db"
                            sample = visit(path, layout, method, sync, page, options)
                            for column, value in sample.items():
                                results[f"{layout.key}/{method}/{page}"].setdefault(column, []).append(value)
                            for left in Path(folder).iterdir():
                                left.unlink()
    return results


def visit(
    path: Path, layout: Layout, method: str, sync: str, page: int, options: argparse.Namespace
) -> dict[str, float]:
    journal = Journal(
        path,
        layout,
        sync=sync,
        page=page,
        method=method,
        secure=options.secure_delete,
        checkpoint=options.checkpoint,
    )
    names: list[str] = []
    for _ in range(options.preload):
        names += programs_one_wave(journal, GROUP)
    sample: dict[str, float] = {}
    sample[f"seq {sync}"], done = measure(journal, 1, options.seconds)
    names += done
    sample[f"group {sync}"], done = measure(journal, GROUP, options.seconds)
    names += done
    rows = journal.con.execute("SELECT count(*) FROM entry").fetchone()[0]
    wanted = len(names) * (len(COMMITS) if layout.packed else ENTRIES)
    if rows != wanted or not journal.refuses_changes():
        raise SystemExit(
            f"layout {layout.key}: {rows} rows where {wanted} were written, or changes not refused"
        )
    sample["read us"] = measure_read(journal, names)
    sample["KB/prog"] = journal.bytes_used() / len(names) / 1024
    journal.con.close()
    return sample


COLUMNS = ("seq FULL", "group FULL", "seq NORMAL", "group NORMAL", "read us", "KB/prog")


def table(results: dict[str, dict[str, list[float]]]) -> str:
    medians = {key: {c: statistics.median(v) for c, v in row.items()} for key, row in results.items()}
    best = {
        c: (min if c in ("read us", "KB/prog") else max)(row[c] for row in medians.values()) for c in COLUMNS
    }
    lines = [
        "programs/s (37 entries in 16 commits), median; in brackets: share of the column's best",
        f"{'layout/method/page':<22}" + "".join(f"{c:>17}" for c in COLUMNS),
    ]
    for key, row in medians.items():
        cells = []
        for c in COLUMNS:
            share = best[c] / row[c] if c in ("read us", "KB/prog") else row[c] / best[c]
            cells.append(
                f"{row[c]:>10,.0f} ({share:.2f})" if c != "KB/prog" else f"{row[c]:>10,.1f} ({share:.2f})"
            )
        lines.append(f"{key:<22}" + "".join(f"{cell:>17}" for cell in cells))
    lines.append("")
    lines += [f"{layout.key:<9} {layout.note}" for layout in LAYOUTS]
    lines.append(
        "many = executemany, multi = INSERT with up to 100 VALUES; `read us` = one run read back whole"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare SQLite row layouts for a journal.")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one slice (default 0.5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=int, nargs="+", default=[4096], help="page sizes to try")
    parser.add_argument("--preload", type=int, default=10, help="hundreds of programs stored beforehand")
    parser.add_argument("--secure-delete", default="ON", choices=("ON", "FAST", "OFF"))
    parser.add_argument("--checkpoint", type=int, default=1000, help="wal_autocheckpoint, pages")
    parser.add_argument("--only", default="", help="layouts, comma separated")
    parser.add_argument(
        "--dir", default=None, help="where the databases go (default: the temporary directory)"
    )
    parser.add_argument("--json", default=None, metavar="FILE")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: one short round, nothing preloaded"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.seconds, options.rounds, options.preload = 0.01, 1, 0
    results = sweep(options)
    print(f"SQLite {sqlite3.sqlite_version}, Python {sys.version.split()[0]}, {options.rounds} rounds")
    print(table(results))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
