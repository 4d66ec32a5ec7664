"""End a run: calls under way settle, what must be undone is undone, then it is CANCELLED.

exit codes: 0 cancelled, 1 it had ended before, 6 an unknown outcome has to be resolved first
"""

from __future__ import annotations

import argparse

from nano_vm.cli import exits
from nano_vm.cli.acting import act
from nano_vm.cli.arguments import add_tools
from nano_vm.cli.console import Console
from nano_vm.cli.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")
    parser.add_argument("--reason", metavar="TEXT", default="", help="why; recorded in the journal")
    add_tools(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    with Session(args, drives=True) as session:
        session.require_run(args.run_id, only_compensations=True)
        engine = session.engine
        code = act(
            session,
            console,
            args.run_id,
            lambda: engine.cancel(args.run_id, args.reason, principal=session.principal),
        )
        return exits.DONE if code == exits.STOPPED else code
