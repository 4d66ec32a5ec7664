"""Show the providers of a pool: who would be asked first now, whose circuit is open, and why.

nano-vm providers pool.yaml
nano-vm providers pool.yaml --reset      forget what is known: all circuits are closed

Records are kept beside the database (--store), so they are those of the runs there.
"""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.console import Console, printable
from nano_vm.cli.models import open_model_store
from nano_vm.observe.wording import duration, moment
from nano_vm.providers.naming import client_named
from nano_vm.providers.pool_file import load_pool

_STYLES = {"CLOSED": ("good", "good"), "HALF_OPEN": ("wait", "warn"), "OPEN": ("bad", "bad")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the pool: YAML or JSON (see `--model pool:FILE`)")
    parser.add_argument("--reset", action="store_true", help="forget the records of all providers first")


def execute(args: argparse.Namespace, console: Console) -> int:
    with open_model_store(args) as memory:
        pool = load_pool(args.file, named=client_named, memory=memory)
        if args.reset:
            memory.forget_providers()
        rows = pool.status()
    console.document({"file": args.file, "providers": rows})
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        symbol, style = _STYLES[row["circuit"]]
        mark = console.style(console.symbol(symbol), style)
        name = printable(row["name"])
        console.line(f"{row['place']:>3} {mark} {name:<{width}}  {row['circuit']:<9}  {_text(row)}".rstrip())
    return exits.DONE


def _text(row: dict[str, Any]) -> str:
    parts = []
    if row["model"]:
        parts.append(printable(row["model"]))
    if row["calls"]:
        parts.append(f"{row['calls']} calls, {row['failed']} failed")
        parts.append(f"health {row['health']:.2f}")
    else:
        parts.append("not asked yet")
    if row["latency_ms"]:
        parts.append(duration(row["latency_ms"]))
    if row["score"] is not None:
        parts.append(f"score {row['score']:.3f}")
    if row["circuit"] != "CLOSED":
        parts.append(f"until {moment(row['open_until_ms'])}")
    if row["last_error"]:
        parts.append(f"last error {printable(row['last_error'])} at {moment(row['last_failure_at_ms'])}")
    return " · ".join(parts)
