"""State survives, providers don't: a credit application whose model provider fails in the middle.

    python apps/provider_failover/run.py --failure-mode none     the primary stays well
    python apps/provider_failover/run.py --failure-mode retry    it answers 503: three attempts, then the backup
    python apps/provider_failover/run.py --failure-mode hard     it is killed in the middle of a request
    python apps/provider_failover/run.py --both                  all of them, compared
    python apps/provider_failover/run.py --scored                three providers, routed by health, latency and cost

The providers are real HTTP servers, in processes of their own on loopback. Runs are journaled in SQLite (--store).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano_vm import (
    ExecutionVM,
    ModelStore,
    OpenAICompatibleAdapter,
    Program,
    Provider,
    ProviderPool,
    SqliteStore,
    Trace,
    tool,
)

HERE = Path(__file__).resolve().parent
APPLICATION = {"applicant": "A-1001", "income": 48_000, "amount": 9_000}
MODES = ("none", "retry", "hard")
PRICES = {"alpha": (1.0, 2.0), "beta": (5.0, 10.0), "gamma": (0.5, 1.5)}


@tool(effect="pure")
def credit_score(applicant: str) -> int:
    """The credit bureau's score."""
    return 580 + sum(map(ord, applicant)) % 200


@tool(effect="keyed")
def open_account(applicant: str, limit: int) -> dict[str, Any]:
    """Opens the credit line. The bank honours the idempotency key."""
    return {"number": f"C-{applicant}", "limit": limit}


@tool(effect="pure")
def no_account() -> None:
    """Nothing is opened."""


TOOLS = [credit_score, open_account, no_account]


class ModelServer:
    """A model server in a process of its own, which is killed when it holds a request."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        self.killed = False
        command = [sys.executable, str(HERE / "model_server.py"), "--name", name, *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().split()[1])
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _watch(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "holding":
                self.killed = True
                self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._watching.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def servers(*wanted: tuple[str, ...]) -> Iterator[list[ModelServer]]:
    with contextlib.ExitStack() as stack:
        started = []
        for name, *options in wanted:
            server = ModelServer(name, *options)
            stack.callback(server.close)
            started.append(server)
        yield started


def provider(server: ModelServer) -> Provider:
    prices = {server.name: PRICES[server.name]} if server.name in PRICES else None
    return Provider(
        server.name, OpenAICompatibleAdapter(server.url, model=server.name, timeout_seconds=20, prices=prices)
    )


def run_mode(mode: str, directory: Path, trace_id: str) -> tuple[Trace, bool]:
    """One run of the application; also whether the primary was killed."""
    failing = {
        "none": (),
        "retry": ("--from-request", "2"),
        "hard": ("--from-request", "2", "--then", "hold"),
    }[mode]
    with (
        servers(("primary", *failing), ("backup",)) as started,
        ModelStore(directory / f"{mode}.db-models") as memory,
        SqliteStore(directory / "runs.db") as store,
    ):
        pool = ProviderPool([provider(server) for server in started], memory=memory)
        vm = ExecutionVM(llm=pool, tools=TOOLS, store=store)
        trace = vm.run_sync(Program.from_file(HERE / "credit.yaml"), APPLICATION, trace_id=trace_id)
        vm.verify(trace.trace_id)
        trace.to_dict()  # read it while the store is open
        return trace, started[0].killed


def summary(mode: str, trace: Trace, killed: bool) -> dict[str, Any]:
    return {
        "mode": mode,
        "status": trace.status.value,
        "outcome": trace.outcome,
        "decision": trace.outputs["decision"],
        "provider_final": trace.provider_final,
        "primary_killed": killed,
        "switches": [
            {name: switch[name] for name in ("step", "from", "to", "reason", "attempts", "error")}
            for switch in trace.switch_events
        ],
        "tokens": trace.total_tokens(),
        "trace_id": trace.trace_id,
        "trace_hash": trace.trace_hash,
        "outcome_hash": trace.outcome_hash,
    }


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the modes have in common, computed from their runs."""
    by_mode = {row["mode"]: row for row in rows}
    return {
        "trace_hash_equal_retry_hard": by_mode["retry"]["trace_hash"] == by_mode["hard"]["trace_hash"],
        "outcome_hash_equal_all": len({row["outcome_hash"] for row in rows}) == 1,
    }


def scored(directory: Path) -> dict[str, Any]:
    """Six applications over three providers: `gamma` is cheap and slow, `beta` dear, and `alpha` fails from its sixth
    request on."""
    wanted = (("alpha", "--from-request", "6"), ("beta",), ("gamma", "--latency-ms", "150"))
    runs = []
    with (
        servers(*wanted) as started,
        ModelStore(directory / "scored.db-models") as memory,
        SqliteStore(directory / "runs.db") as store,
    ):
        pool = ProviderPool([provider(server) for server in started], routing="scored", memory=memory)
        vm = ExecutionVM(llm=pool, tools=TOOLS, store=store)
        program = Program.from_file(HERE / "credit.yaml")
        for number in range(6):
            application = {**APPLICATION, "applicant": f"A-{1001 + number}"}
            trace = vm.run_sync(program, application)
            answered = [step.provider for step in trace.steps if step.provider is not None]
            runs.append(
                {"status": trace.status.value, "answered": answered, "switches": len(trace.switch_events)}
            )
        return {"runs": runs, "providers": pool.status()}


# --- showing it ---------------------------------------------------------------------------------------------------


def show_run(row: dict[str, Any]) -> None:
    print(f"{row['mode']}: {row['status']} ({row['outcome']}), answered last by {row['provider_final']}")
    if row["primary_killed"]:
        print("  the primary was killed in the middle of a request")
    for switch in row["switches"]:
        what = f"{switch['attempts']} attempts, {switch['error']}"
        print(f"  at `{switch['step']}`: {switch['from']} -> {switch['to']}  {switch['reason']} ({what})")
    print(f"  trace_hash    {row['trace_hash']}\n  outcome_hash  {row['outcome_hash']}")


def show_table(rows: list[dict[str, Any]]) -> None:
    lines: list[tuple[str, list[str]]] = [("", [row["mode"] for row in rows])]
    for title, name in (
        ("status", "status"),
        ("decision", "decision"),
        ("answered last by", "provider_final"),
    ):
        lines.append((title, [str(row[name]) for row in rows]))
    for reason in ("RetryLimitExceeded", "ProviderUnavailable"):
        lines.append((reason, [str(sum(s["reason"] == reason for s in row["switches"])) for row in rows]))
    for name in ("tokens", "trace_hash", "outcome_hash"):
        lines.append((name, [str(row[name])[:23] for row in rows]))
    for title, cells in lines:
        print(f"{title:<20}" + "".join(f"{cell:<26}" for cell in cells).rstrip())


def show_scored(found: dict[str, Any]) -> None:
    for number, run in enumerate(found["runs"], 1):
        answered = ", ".join(run["answered"])
        print(f"application {number}: {run['status']}, answered by {answered}, {run['switches']} switches")
    for row in found["providers"]:
        print(
            f"{row['place']}. {row['name']:<6} {row['circuit']:<9} score {row['score']:.3f}  health {row['health']:.2f}"
            f"  {row['latency_ms']:.0f} ms  {row['calls']} calls, {row['failed']} failed"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--failure-mode", choices=MODES, default="hard")
    parser.add_argument("--both", action="store_true", help="all modes, compared")
    parser.add_argument("--scored", action="store_true", help="three providers, scored routing")
    parser.add_argument(
        "--store", metavar="DIRECTORY", help="keep the database here (default: a temporary one)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(args.store or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        if args.scored:
            found = scored(directory)
            good = all(run["status"] == "SUCCESS" for run in found["runs"])
            print(json.dumps(found, indent=2)) if args.json else show_scored(found)
            return 0 if good else 1
        tag = os.urandom(3).hex()
        modes = MODES if args.both else (args.failure_mode,)
        rows = [summary(mode, *run_mode(mode, directory, f"{mode}-{tag}")) for mode in modes]
        equal = compare(rows) if args.both else {}
        if args.json:
            print(json.dumps({"runs": rows, **equal}, indent=2))
        elif args.both:
            show_table(rows)
            for name, holds in equal.items():
                print(f"{name}: {'yes' if holds else 'NO'}")
        else:
            show_run(rows[0])
        if args.store and not args.json:
            database = directory / "runs.db"
            other = rows[-2]["trace_id"] if args.both else "OTHER"
            print(f"explained by: nano-vm diff {other} {rows[-1]['trace_id']} --store {database}")
        return 0 if all(row["status"] == "SUCCESS" for row in rows) and all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
