"""nano-vm against its peers and against the limits, interleaved in one run, as ratios.

Every workload is run by every driver once per round, each driver in a process of its own; the order rotates
from round to round. A ratio is nano-vm's speed over the peer's in the same round, so 2.0 always reads
"nano-vm is twice as fast", whatever the unit; the table gives the median over the rounds, the smallest and
the largest, what is required, and whether it was met. No absolute figure is claimed; `--json` keeps the
samples.

The ratios are of elapsed time, and so are the verdicts. Where a workload is bound by the processor - all but the
durable ones - the column `cpu` gives the median ratio of processor time as well: on a machine that others
use too it is the steadier one.

    python benchmarks/compare.py --json bench-results/compare.json
    python benchmarks/compare.py --only W2,W4 --rounds 3
    python benchmarks/compare.py --quick            # a smoke run against the bare loops: no verdicts

Exit code: 0 every requirement met, 1 one was missed or a driver of nano-vm failed, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS_FOLDER = Path(__file__).resolve().parent / "peers"
TIMEOUT_SECONDS = 600
# Slow enough that one round must do.
ONE_ROUND = {
    ("dbos", "W4_full_100"),
    ("dbos", "W4_normal_100"),
    ("dbos_default", "W4_full_100"),
}


@dataclass(frozen=True)
class Peer:
    """A driver and the environment it runs in; `env` None is the interpreter of this script."""

    name: str
    driver: str
    variant: str = ""
    env: str | None = None

    @property
    def python(self) -> Path:
        if self.env is None:
            return Path(sys.executable)
        folder = PEERS_FOLDER / ".envs" / self.env
        return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("nano_vm", "drive_nano_vm.py"),
        Peer("llm_nano_vm", "drive_llm_nano_vm.py", env="llm_nano_vm"),
        Peer("langgraph", "drive_langgraph.py", env="langgraph"),
        Peer("langgraph_sync", "drive_langgraph.py", "sync", env="langgraph"),
        Peer("burr", "drive_burr.py", env="burr"),
        Peer("burr_sync", "drive_burr.py", "sync", env="burr"),
        Peer("dbos", "drive_dbos.py", env="dbos"),
        Peer("dbos_default", "drive_dbos.py", "default", env="dbos"),
        Peer("transitions", "drive_transitions.py", env="transitions"),
        Peer("bare_await", "drive_bare.py", "await"),
        Peer("bare_eager", "drive_bare.py", "eager"),
        Peer("bare_sqlite", "drive_bare.py", "sqlite"),
        Peer("bare_sqlite_20", "drive_bare.py", "sqlite_20"),
        Peer("bare_group", "drive_bare.py", "group"),
        Peer("bare_rows", "drive_bare.py", "rows"),
    )
}


@dataclass(frozen=True)
class Gate:
    """A requirement on nano-vm's speed over the peer's: at least `required`, better `target`."""

    workload: str
    peer: str
    required: float | None = None
    target: float | None = None


def within(times: float) -> float:
    """`within n times of a limit` as a ratio of speeds."""
    return 1 / times


GATES: tuple[Gate, ...] = (
    Gate("W2", "llm_nano_vm", 8, 12),
    Gate("W2", "burr", 8, 12),
    Gate("W2", "langgraph", 30, 45),
    Gate("W2", "transitions", 1.5, 2.5),
    Gate("W2", "bare_await", None, within(12)),
    Gate("W4_full_seq", "bare_sqlite_20", within(1.3)),
    Gate("W4_full_seq", "bare_sqlite", within(1.3)),
    Gate("W4_full_seq", "langgraph", 5),
    Gate("W4_full_seq", "langgraph_sync", 5),
    Gate("W4_normal_seq", "burr", 2.5),
    Gate("W4_normal_seq", "burr_sync", 2.5),
    Gate("W4_full_100", "burr", 8),
    Gate("W4_full_100", "langgraph", 60),
    Gate("W4_full_100", "bare_rows", within(2.5)),
    Gate("W4_full_100", "bare_group", None, within(2.5)),
    Gate("W4_full_100", "dbos", 1),
    Gate("W4_normal_100", "burr", 8),
    Gate("W4_normal_100", "langgraph", 60),
    Gate("W4_normal_100", "bare_rows", within(2.5)),
    Gate("W4_normal_100", "bare_group", None, within(2.5)),
    Gate("W4_normal_100", "dbos", 1),
    Gate("W5", "langgraph", 8),
    Gate("W5", "langgraph_sync", 8),
    Gate("W6", "llm_nano_vm", 3),
    Gate("W6_full", "langgraph", 1),
    Gate("W6_full", "dbos", 1),
    Gate("W5", "dbos", 1),
)
# Cost per step at 10,000 steps over that at 100: at most this.
GROWTH_MAX = 1.2


@dataclass
class Row:
    """One line of the table."""

    workload: str
    peer: str
    version: str
    unit: str
    ratios: list[float] = field(default_factory=list)
    cpu_ratios: list[float] = field(default_factory=list)  # empty where the disk has a say
    required: float | None = None
    target: float | None = None
    at_most: float | None = None

    @property
    def cpu_median(self) -> float | None:
        return statistics.median(self.cpu_ratios) if self.cpu_ratios else None

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def passed(self) -> bool | None:
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.required is None else self.median >= self.required

    def as_dict(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "peer": self.peer,
            "version": self.version,
            "ratios": self.ratios,
            "cpu_ratios": self.cpu_ratios,
            "cpu_median": self.cpu_median,
            "median": self.median,
            "min": min(self.ratios),
            "max": max(self.ratios),
            "required": self.required,
            "target": self.target,
            "at_most": self.at_most,
            "passed": self.passed,
        }


class DriverFailed(Exception):
    """A driver ended without a result; the message is its last line."""


def call_driver(peer: Peer, arguments: Sequence[str]) -> dict[str, Any]:
    environment = dict(os.environ, LANGSMITH_TRACING="false", PYTHONWARNINGS="ignore")
    if peer.env is not None:
        # llm-nano-vm's package is called nano_vm too: a path to this checkout would hide it.
        environment.pop("PYTHONPATH", None)
    command = [str(peer.python), str(PEERS_FOLDER / peer.driver), *arguments]
    if peer.variant:
        command += ["--variant", peer.variant]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise DriverFailed(f"no result within {TIMEOUT_SECONDS} s") from error
    if done.returncode != 0:
        raise DriverFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def discover(names: Sequence[str]) -> dict[str, list[str]]:
    """The workloads of every peer that is installed."""
    known: dict[str, list[str]] = {}
    for name in names:
        peer = PEERS[name]
        if not peer.python.exists():
            say(f"{name}: not installed, left out (python benchmarks/peers/setup.py {peer.env})")
            continue
        try:
            known[name] = call_driver(peer, ["--list"])["variants"][peer.variant]
        except DriverFailed as error:
            say(f"{name}: left out: {error}")
    return known


def selected(workload: str, only: str) -> bool:
    return not only or any(workload == part or workload.startswith(f"{part}_") for part in only.split(","))


Samples = dict[tuple[str, str], dict[int, dict[str, Any]]]  # (workload, peer) -> round -> result


@dataclass
class Run:
    """The samples of all rounds, and what went wrong."""

    samples: Samples = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def take(self, round_number: int, workload: str, name: str, arguments: Sequence[str]) -> None:
        key = (workload, name)
        if key in self.failures or (round_number > 0 and (name, workload) in ONE_ROUND):
            return
        try:
            result = call_driver(PEERS[name], [workload, *arguments])
        except DriverFailed as error:
            self.failures[key] = str(error)
            say(f"  {workload} {name}: {error}")
            return
        self.samples.setdefault(key, {})[round_number] = result


def rows_to_imitate(subject: str, known: Mapping[str, Sequence[str]]) -> list[str]:
    """Arguments that make the bare SQLite loops write what the subject writes."""
    if "W4_full_seq" not in known.get(subject, ()):
        return []
    try:
        checks = call_driver(PEERS[subject], ["W4_full_seq", "--seconds", "0.05"])["checks"]
    except DriverFailed as error:
        say(f"bare SQLite keeps its own row sizes: {error}")
        return []
    commits, rows, size = (checks[f"{what}_per_program"] for what in ("commits", "rows", "bytes"))
    say(f"{subject} stores a W2 program in {commits} commits, {rows} rows, {size:,} bytes")
    return ["--commits", str(commits), "--rows", str(rows), "--bytes", str(size)]


def measure(options: argparse.Namespace, known: Mapping[str, Sequence[str]]) -> Run:
    run = Run()
    subject = options.subject
    imitate = rows_to_imitate(subject, known)
    workloads = [workload for workload in known[subject] if selected(workload, options.only)]
    for round_number in range(options.rounds):
        for workload in workloads:
            names = [name for name in known if workload in known[name]]
            turn = round_number % len(names)
            say(f"round {round_number + 1}/{options.rounds}: {workload}")
            for name in names[turn:] + names[:turn]:
                arguments = ["--seconds", str(options.seconds)]
                if options.dir:
                    arguments += ["--dir", options.dir]
                run.take(round_number, workload, name, arguments + (imitate if "bare_" in name else []))
    return run


def ratio(subject: Mapping[str, Any], peer: Mapping[str, Any], by: str = "value") -> float:
    """Speed of the subject over that of the peer, by elapsed time or `by` "cpu_value"; a cost per step counts upside
    down."""
    if subject["unit"] == "us/step":
        return float(peer[by] / subject[by])
    return float(subject[by] / peer[by])


def is_cpu_bound(workload: str) -> bool:
    return not workload.startswith(("W3_full", "W4", "W5", "W6_full"))


def rows_of(run: Run, subject: str, *, judge: bool) -> list[Row]:
    gates = {(gate.workload, gate.peer): gate for gate in GATES} if judge and subject == "nano_vm" else {}
    rows: list[Row] = []
    for (workload, name), rounds in run.samples.items():
        own = run.samples.get((workload, subject), {})
        pairs = [(own[number], result) for number, result in rounds.items() if number in own]
        if name == subject or not pairs:
            continue
        gate = gates.get((workload, name), Gate(workload, name))
        row = Row(workload, name, pairs[0][1]["version"], pairs[0][1]["unit"])
        row.ratios = [ratio(mine, theirs) for mine, theirs in pairs]
        if is_cpu_bound(workload):
            row.cpu_ratios = [ratio(mine, theirs, "cpu_value") for mine, theirs in pairs]
        row.required, row.target = gate.required, gate.target
        rows.append(row)
    order = list(PEERS)
    rows.sort(key=lambda row: (row.workload, order.index(row.peer)))
    return rows + growth_rows(run, subject, judge=judge)


def growth_rows(run: Run, subject: str, *, judge: bool) -> list[Row]:
    """Cost per step at 10,000 steps over the cost at 100, for everyone who was measured at both."""
    rows = []
    for name in PEERS:
        short, long = run.samples.get(("W3_100", name), {}), run.samples.get(("W3_10000", name), {})
        both = sorted(short.keys() & long.keys())
        if not both:
            continue
        row = Row("W3 growth", name, short[both[0]]["version"], "")
        row.ratios = [long[number]["value"] / short[number]["value"] for number in both]
        row.at_most = GROWTH_MAX if judge and name == subject == "nano_vm" else None
        rows.append(row)
    return rows


def show(number: float) -> str:
    """Three significant figures, without an exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 1 else f"{number:.3g}"


def table(rows: Sequence[Row], failures: Mapping[tuple[str, str], str], subject: str) -> str:
    lines = [
        f"{subject}'s speed over the peer's (>1: {subject} is faster); by elapsed time, `cpu` by processor time",
        "W3 growth: time per step at 10,000 steps over that at 100, for each alone",
        f"{'workload':<14} {'peer':<15} {'version':<14} {'median':>8} {'min':>8} {'max':>8} {'cpu':>8}"
        f"  {'required':>9} {'target':>8}  verdict",
    ]
    for row in rows:
        required = f"<= {show(row.at_most)}" if row.at_most is not None else ""
        if row.required is not None:
            required = f">= {show(row.required)}"
        target = "" if row.target is None else f">= {show(row.target)}"
        cpu = "" if row.cpu_median is None else show(row.cpu_median)
        verdict = {None: "", True: "pass", False: "MISSED"}[row.passed]
        if row.target is not None and row.median >= row.target:
            verdict = f"{verdict}, target met".lstrip(", ")
        line = (
            f"{row.workload:<14} {row.peer:<15} {row.version:<14} {show(row.median):>8}"
            f" {show(min(row.ratios)):>8} {show(max(row.ratios)):>8} {cpu:>8}  {required:>9} {target:>8}  {verdict}"
        )
        lines.append(line.rstrip())
    lines += [f"{workload:<14} {name:<15} failed: {why}" for (workload, name), why in failures.items()]
    return "\n".join(lines)


def values_table(run: Run) -> str:
    """The raw medians; for looking into a ratio, not for quoting."""
    lines = ["raw medians on this machine, in this run"]
    for (workload, name), rounds in sorted(run.samples.items()):
        results = list(rounds.values())
        value = statistics.median(result["value"] for result in results)
        lines.append(f"{workload:<14} {name:<15} {value:>14,.1f} {results[0]['unit']}")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="nano-vm against its peers, as ratios.")
    parser.add_argument(
        "--only", default="", help="workloads, comma separated; W4 means every W4_…, W3_full every W3_full_…"
    )
    parser.add_argument("--peers", default="", help="peers, comma separated (default all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one slice (default 1)")
    parser.add_argument("--subject", default="nano_vm", choices=list(PEERS), help="whose speed is compared")
    parser.add_argument(
        "--dir", default=None, help="where the databases go (default: the temporary directory)"
    )
    parser.add_argument("--json", default=None, metavar="FILE", help="write samples and verdicts")
    parser.add_argument("--values", action="store_true", help="also print raw medians")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one short round, bare loops only")
    options = parser.parse_args(argv)
    names = [name for name in options.peers.split(",") if name]
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        parser.error(f"unknown peer {', '.join(unknown)}; choose from {', '.join(PEERS)}")
    if options.quick:
        options.rounds, options.seconds = 1, 0.02
        names = names or [name for name, peer in PEERS.items() if peer.env is None]
    names = names or list(PEERS)
    options.names = [options.subject, *(name for name in names if name != options.subject)]
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if sys.version_info < (3, 12) and "bare_eager" in options.names and options.subject != "bare_eager":
        options.names.remove("bare_eager")
    known = discover(options.names)
    if options.subject not in known:
        say(f"{options.subject} cannot be run, so there is nothing to compare")
        return 1
    run = measure(options, known)
    rows = rows_of(run, options.subject, judge=not options.quick)
    print(table(rows, run.failures, options.subject))
    if options.values:
        print()
        print(values_table(run))
    if options.json:
        report = {
            "machine": {
                "cpus": os.cpu_count(),
                "system": platform.platform(),
                "python": sys.version.split()[0],
            },
            "rounds": options.rounds,
            "seconds": options.seconds,
            "subject": options.subject,
            "rows": [row.as_dict() for row in rows],
            "samples": [result for rounds in run.samples.values() for result in rounds.values()],
            "failures": [[workload, name, why] for (workload, name), why in run.failures.items()],
        }
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    own_failure = any(name == options.subject for _, name in run.failures)
    return 1 if own_failure or any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
