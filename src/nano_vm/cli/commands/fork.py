"""Start a new run that shares another's history up to a step. Steps before it are not repeated.

  nano-vm fork ID risk --set 'reason="a new reason"' --tools refund_tools.py --model mock:low

exit codes: as for run
"""

from __future__ import annotations

import argparse

from nano_vm.cli.acting import act
from nano_vm.cli.arguments import add_tools, assignments, whole
from nano_vm.cli.console import Console
from nano_vm.cli.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run to fork")
    parser.add_argument("step", metavar="STEP", help="the first step that is taken anew")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change a value; JSON if it is JSON, else text",
    )
    parser.add_argument(
        "--occurrence", metavar="N", type=whole, help="which time the run came to the step (the last)"
    )
    parser.add_argument("--trace-id", metavar="ID", help="the id of the new run (default: a new one)")
    add_tools(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    changes = assignments(args.set, "--set")
    with Session(args, drives=True) as session:
        engine = session.engine
        session.require(engine.load_program(session.store.record(args.run_id).program_hash))
        return act(
            session,
            console,
            None,  # what is copied has not happened now: only the end is shown
            lambda: engine.fork(
                args.run_id,
                args.step,
                changes,
                occurrence=args.occurrence,
                principal=session.principal,
                new_trace_id=args.trace_id,
            ),
        )
