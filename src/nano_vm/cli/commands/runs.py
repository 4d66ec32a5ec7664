"""List runs, newest first.

nano-vm runs --status SUSPENDED
"""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.arguments import whole
from nano_vm.cli.console import Console, printable
from nano_vm.cli.session import Session
from nano_vm.cli.views import STATUS_STYLES, moment
from nano_vm.errors import InputError
from nano_vm.journal.port import RunRecord
from nano_vm.kernel.state import RunStatus

LIMIT_MAX = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--status", choices=[status.value for status in RunStatus], help="only runs in this status"
    )
    parser.add_argument("--program", metavar="NAME", help="only runs of this program")
    parser.add_argument("--limit", metavar="N", type=whole, default=20, help="at most so many (default: 20)")


def execute(args: argparse.Namespace, console: Console) -> int:
    if not 0 < args.limit <= LIMIT_MAX:
        raise InputError("USAGE", f"--limit is a number from 1 to {LIMIT_MAX}", help="--limit 20")
    with Session(args) as session:
        records = session.engine.runs(status=args.status, program=args.program, limit=args.limit)
        console.document({"runs": [_plain(record) for record in records]})
        if not records:
            console.line("no runs")
            return exits.DONE
        wide = max(len(record.run_id) for record in records)
        name = max(len(printable(record.program_name)) for record in records)
        for record in records:
            status = console.style(f"{record.status:<15}", STATUS_STYLES.get(record.status, "bad"))
            waits = ", ".join(f"{wait['kind']} `{wait['step']}`" for wait in record.waits)
            note = f"waits for {waits}" if waits else record.outcome or ""
            console.line(
                f"{record.run_id:<{wide}}  {status}  {printable(record.program_name):<{name}}  "
                f"{moment(record.created_at_ms)}  {printable(note)}".rstrip()
            )
        return exits.DONE


def _plain(record: RunRecord) -> dict[str, Any]:
    return {
        "trace_id": record.run_id,
        "status": record.status,
        "outcome": record.outcome,
        "program": {"name": record.program_name, "hash": record.program_hash},
        "tenant": record.tenant,
        "created_at_ms": record.created_at_ms,
        "updated_at_ms": record.updated_at_ms,
        "waits": record.waits,
        "wake_at_ms": record.wake_at_ms,
        "entries": record.length,
    }
