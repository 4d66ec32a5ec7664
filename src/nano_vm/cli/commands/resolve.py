"""Say what became of a step whose outcome is unknown, and drive the run on.

  nano-vm resolve ID charge --succeeded '{"receipt": "r-17"}' --tools shop_tools.py
  nano-vm resolve ID charge --failed "the bank has no such payment" --tools shop_tools.py
  nano-vm resolve ID charge --repeat --tools shop_tools.py        it did not happen: do it

exit codes: as for run
"""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli.acting import act
from nano_vm.cli.arguments import add_tools, json_value, whole
from nano_vm.cli.console import Console
from nano_vm.cli.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")
    parser.add_argument("step", metavar="STEP", help="the step whose outcome is unknown")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--succeeded", metavar="JSON", help="it happened; this is its output (JSON, @FILE or -)"
    )
    what.add_argument("--failed", metavar="MESSAGE", help="it did not happen, and shall count as failed")
    what.add_argument("--repeat", action="store_true", help="it did not happen: do it again")
    parser.add_argument("--item", metavar="N", type=whole, help="which element, inside a map")
    add_tools(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    resolution, value = _resolution(args)
    with Session(args, drives=True) as session:
        session.require_run(args.run_id)
        engine = session.engine
        return act(
            session,
            console,
            args.run_id,
            lambda: engine.resolve(
                args.run_id, args.step, resolution, value, item=args.item, principal=session.principal
            ),
        )


def _resolution(args: argparse.Namespace) -> tuple[str, Any]:
    if args.repeat:
        return "repeat", None
    if args.failed is not None:
        return "failed", args.failed
    return "succeeded", json_value(args.succeeded, "--succeeded")
