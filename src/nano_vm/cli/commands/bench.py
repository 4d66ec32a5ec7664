"""Measure the engine at work: ten scenarios, each with an invariant that is checked while it is timed.

  nano-vm bench                                 all ten, on a SQLite file that is synced in every commit
  nano-vm bench --quick                         the same checks on a fraction of the work
  nano-vm bench --only replay,budget --store memory
  nano-vm bench --store postgresql://…          over PostgreSQL, in schemas of its own, beside what is there
  nano-vm bench --plot bench.svg --json         the figures, and a picture of them

Absolute figures say something about this machine; ratios against other engines come from `make bench-peers`.
exit codes: 0 every invariant held, 1 one was broken (it is named)
"""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.arguments import whole
from nano_vm.cli.console import Console
from nano_vm.cli.grounds import grounds
from nano_vm.cli.outputs import write_whole
from nano_vm.errors import InputError

STORES = ("memory", "sqlite", "postgresql://…")
KINDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", metavar="NAMES", default="", help="scenarios, comma separated; `--only list` names them"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run of seconds: the checks are the same"
    )
    parser.add_argument(
        "--store",
        metavar="STORE",
        default=argparse.SUPPRESS,
        help="where journals go: memory, sqlite (default: in a file that is removed again), or postgresql://… (in "
        "schemas that are made for it, and dropped)",
    )
    parser.add_argument(
        "--seed", type=whole, default=1, metavar="N", help="everything random follows from it"
    )
    parser.add_argument(
        "--dir", metavar="DIR", help="where databases are made (default: a temporary directory)"
    )
    parser.add_argument("--plot", metavar="FILE", help="also draw the figures, as SVG")


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.testing.bench.setting import Options
    from nano_vm.testing.bench.suite import SCENARIOS, about, run_bench

    names = [name for name in args.only.split(",") if name]
    if names == ["list"]:
        for name in SCENARIOS:
            console.line(f"{name:<24} {about(name)}")
        console.document({"scenarios": [{"name": name, "about": about(name)} for name in SCENARIOS]})
        return exits.DONE
    for one in names:
        if one not in SCENARIOS:
            raise InputError(
                "USAGE", f"unknown scenario `{one[:60]}`", help=f"one of: {', '.join(SCENARIOS)}"
            )
    where = grounds(args.store, "bench", STORES)
    store, name = ("memory", "memory") if args.store == "memory" else (where.kind, where.name)
    options = Options(store=store, durability=args.durability, seed=args.seed, quick=args.quick)
    say = console.note if args.json else console.line
    say(f"store: {name}")
    say(
        f"{'scenario':<23} {'unit':<15} {'per s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'µs/step':>8} "
        f"{'MiB':>6} {'B/step':>7} {'checks':>7}  broken"
    )
    found = []
    for figures in run_bench(names, options, args.dir, where):
        found.append(figures)
        latency = figures.latency_ms
        say(
            f"{figures.name:<23} {figures.unit:<15} {figures.throughput:>8,.1f} "
            f"{latency.get('p50', 0):>8,.2f} {latency.get('p95', 0):>8,.2f} {latency.get('p99', 0):>8,.2f} "
            f"{figures.cpu_us_per_step:>8,.1f} {figures.peak_memory_bytes / 2**20:>6.0f} "
            f"{figures.stored_bytes_per_step:>7,.0f} {figures.checks:>7,}  {figures.violated or 'none'}",
            None if figures.holds else "bad",
        )
        for violation in figures.violations[:5]:
            say(f"    {violation}", "bad")
    if args.plot:
        _draw(args, found, store)
    code = exits.DONE if all(one.holds for one in found) else exits.FAILED
    console.document({"store": name, **_document(args, found, code)})
    say("every invariant held" if code == exits.DONE else "INVARIANTS BROKEN", "bad" if code else "good")
    return code


def _draw(args: argparse.Namespace, found: list[Any], store: str) -> None:
    from nano_vm.testing.bench.plot import svg

    where = "memory" if store == "memory" else f"{KINDS[store]}, durability {args.durability}"
    size = ", quick" if args.quick else ""
    try:
        write_whole(args.plot, [svg(found, f"nano-vm bench: {where}{size}").encode()])
    except OSError as error:
        raise InputError(
            "USAGE", f"cannot write `{args.plot}`: {(error.strerror or '').lower()}", help="name another file"
        ) from error


def _document(args: argparse.Namespace, found: list[Any], code: int) -> dict[str, Any]:
    import os
    import platform

    machine = {"cpus": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
    return {
        "machine": machine,
        "quick": args.quick,
        "seed": args.seed,
        "scenarios": [one.to_dict() for one in found],
        "exit_code": code,
    }
