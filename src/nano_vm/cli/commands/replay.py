"""Fold a run's journal again and compare every transition with what was recorded. Nothing is executed.

exit codes: 0 the same, 5 not the same (the first bad entry is named)
"""

from __future__ import annotations

import argparse

from nano_vm.cli import exits
from nano_vm.cli.console import Console
from nano_vm.cli.session import Session
from nano_vm.cli.views import show_end, show_steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")


def execute(args: argparse.Namespace, console: Console) -> int:
    with Session(args) as session:
        trace = session.engine.replay(args.run_id)
        console.document({**trace.to_dict(), "replayed": True, "exit_code": exits.DONE})
        if not console.quiet:
            show_steps(console, session.engine.load_program(trace.program_hash), trace)
            show_end(console, trace)
        console.line(f"REPLAYED: {len(trace.entries)} entries, every transition as recorded", "good")
        return exits.DONE
