"""Break the engine on purpose: real processes on a real database, killed with SIGKILL, raced, flooded and lied to.

  nano-vm chaos                             all scenarios, each round on a SQLite file of its own
  nano-vm chaos --store postgresql://…      over PostgreSQL: each round in a schema that is made for it, and dropped;
                                            runs that are in that database are not touched

scenarios: all thirteen by default; `simulate` runs seeded simulations instead, in virtual time; `soak` puts mixed load
on one database for a long time, kills at random, and watches memory and file handles.
exit codes: 0 no promise was broken, 1 one was (it is named)
"""

from __future__ import annotations

import argparse
import contextlib
import math
from typing import TYPE_CHECKING, Any

from nano_vm.cli import exits
from nano_vm.cli.arguments import number, whole
from nano_vm.cli.console import Console
from nano_vm.cli.grounds import grounds
from nano_vm.errors import InputError

if TYPE_CHECKING:
    from nano_vm.testing.databases import Grounds
    from nano_vm.testing.simulator import Report

SIMULATE = "simulate"
FULL_EVENTS = 1_000_000
SECONDS = 120.0
SOAK = "soak"
SOAK_SECONDS = 1_200.0
STORES = ("sqlite", "postgresql://…")
TOTALS = ("rounds", "runs", "events", "kills", "effects", "unknown", "refusals")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="which; `list` names them")
    parser.add_argument(
        "--store",
        metavar="STORE",
        default=argparse.SUPPRESS,
        help="sqlite (default: in files that are removed again), or postgresql://… (in schemas that are made for it, "
        "and dropped)",
    )
    parser.add_argument(
        "--seed", type=whole, default=1, metavar="N", help="everything random follows from it"
    )
    parser.add_argument(
        "--seeds", type=whole, default=100, metavar="N", help="of `simulate`: how many simulations"
    )
    parser.add_argument(
        "--rate", type=number, default=0.1, help="of `simulate`: the chance of a fault at one moment"
    )
    parser.add_argument(
        "--events", type=whole, default=None, metavar="N", help="repeat until at least this many events"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"the full campaign: {FULL_EVENTS:,} events, however long it takes",
    )
    parser.add_argument(
        "--seconds",
        type=number,
        default=None,
        metavar="S",
        help=f"the most time for all together (default: {SECONDS:.0f}; with --full none); of `soak`: how long "
        f"(default: {SOAK_SECONDS:.0f})",
    )


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.testing.chaos.campaign import SCENARIOS, run_campaign

    if args.scenarios == ["list"]:
        for one in SCENARIOS:
            console.line(f"{one.name:<24} {one.about}")
        console.document({"scenarios": [{"name": one.name, "about": one.about} for one in SCENARIOS]})
        return exits.DONE
    if args.scenarios == [SIMULATE]:
        return _simulate(args, console)
    if args.scenarios == [SOAK]:
        return _soak(args, console)
    known = {one.name for one in SCENARIOS}
    for name in args.scenarios:
        if name not in known:
            raise InputError(
                "USAGE",
                f"unknown scenario `{name[:60]}`",
                help=f"one of: {', '.join(sorted(known))}, {SIMULATE}, {SOAK}",
            )
    events = args.events if args.events is not None else FULL_EVENTS if args.full else 0
    seconds = args.seconds if args.seconds is not None else math.inf if args.full else SECONDS
    where = grounds(args.store, "chaos", STORES)
    # With --json the table goes where progress goes: a campaign may take an hour.
    say = console.note if args.json else console.line
    say(f"store: {where.name}")
    say(
        f"{'scenario':<24} {'rounds':>6} {'runs':>6} {'events':>8} {'kills':>6} {'effects':>8} {'unknown':>8}  broken"
    )
    rows: list[dict[str, Any]] = []
    campaign = run_campaign(
        args.scenarios,
        seed=args.seed,
        events=events,
        seconds=seconds,
        heard=lambda one: (
            console.note(f"  {one.name}, round {one.rounds}: {one.events} events") if events else None
        ),
        grounds=where,
    )
    for figures in campaign:
        rows.append(figures.to_dict())
        broken = len(figures.violations)
        say(
            f"{figures.name:<24} {figures.rounds:>6} {figures.runs:>6} {figures.events:>8} {figures.kills:>6} "
            f"{figures.effects:>8} {figures.unknown:>8}  {broken or 'none'}",
            "bad" if broken else None,
        )
        for violation in figures.violations[:5]:
            say(f"    {violation}", "bad")
    failed = any(row["violations"] for row in rows)
    code = exits.FAILED if failed else exits.DONE
    totals = {name: sum(row[name] for row in rows) for name in TOTALS}
    facts = {"seed": args.seed, "store": where.name}
    console.document({**facts, "totals": totals, "scenarios": rows, "exit_code": code})
    say(
        f"{totals['events']} events, {totals['kills']} kills, "
        f"{'PROMISES BROKEN' if failed else 'no promise broken'}",
        "bad" if failed else "good",
    )
    return code


def _simulate(args: argparse.Namespace, console: Console) -> int:
    where = grounds(args.store, "chaos", STORES)
    transitions = crashes = faults = 0
    broken: list[dict[str, Any]] = []
    for seed in range(args.seed, args.seed + args.seeds):
        report = _simulated(where, seed, args.rate)
        transitions += report.transitions
        crashes += report.crashes
        faults += len(report.faults)
        if report.findings:
            first = report.findings[0]
            broken.append({"promise": first.promise, "what": first.what, "seed": seed, "rerun": report.rerun})
            console.line(f"seed {seed}: {first.promise} {first.what}", "bad")
            console.line(f"    again: {report.rerun}")
    code = exits.FAILED if broken else exits.DONE
    console.document(
        {
            "store": where.name,
            "seeds": args.seeds,
            "transitions": transitions,
            "faults": faults,
            "crashes": crashes,
            "broken": broken,
            "exit_code": code,
        }
    )
    console.line(
        f"{where.name}: {args.seeds} simulations, {transitions} transitions, {faults} faults, {crashes} crashes: "
        f"{len(broken) or 'no'} promises broken",
        "bad" if broken else "good",
    )
    return code


def _simulated(where: Grounds, seed: int, rate: float) -> Report:
    from nano_vm.testing.databases import Schemas
    from nano_vm.testing.simulator import simulate

    if not isinstance(where, Schemas):
        return simulate([seed], rate=rate)[0]
    with contextlib.ExitStack() as made:
        return simulate([seed], rate=rate, database=lambda: made.enter_context(where.fresh()).address)[0]


def _soak(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.testing.chaos import soak as soaking

    def heard(report: soaking.Report) -> None:
        console.note(
            f"  {report.seconds:.0f} s: {report.kills} kills, memory {_mebibytes(report.memory_bytes)}, "
            f"handles {report.handles.get('last', 0)}, database {report.database_bytes / 2**20:.0f} MiB"
        )

    where = grounds(args.store, "chaos", STORES)
    seconds = args.seconds if args.seconds is not None else SOAK_SECONDS
    report = soaking.soak(seconds, seed=args.seed, durability=args.durability, heard=heard, grounds=where)
    code = exits.FAILED if report.violations else exits.DONE
    console.document({"seed": args.seed, "store": where.name, **report.to_dict(), "exit_code": code})
    console.line(
        f"{where.name}: {report.seconds:.0f} s, {report.runs} runs, {report.events} events, {report.kills} kills, "
        f"{report.effects} effects"
    )
    console.line(
        f"memory {_mebibytes(report.memory_bytes)}, handles {report.handles.get('warm', 0)} -> "
        f"{report.handles.get('last', 0)}, threads {report.threads.get('warm', 0)} -> {report.threads.get('last', 0)}, "
        f"write-ahead log at most {report.log_bytes_max / 2**20:.0f} MiB"
    )
    for violation in report.violations[:10]:
        console.line(f"    {violation}", "bad")
    flat = "" if report.flat is None else ", memory and handles flat"
    console.line(
        f"PROMISES BROKEN: {len(report.violations)}" if report.violations else f"no promise broken{flat}",
        "bad" if report.violations else "good",
    )
    return code


def _mebibytes(memory: dict[str, int]) -> str:
    return f"{memory.get('warm', 0) / 2**20:.1f} -> {memory.get('last', 0) / 2**20:.1f} MiB"
