"""Take up runs, fire timers and deliver mail until stopped: `recover --loop`.

  nano-vm worker --tools refund_tools.py

SIGTERM lets calls under way finish and ends with 0; runs that are not done are taken up by the next worker.
"""

from __future__ import annotations

import argparse

from nano_vm.cli.arguments import add_tools
from nano_vm.cli.commands import recover
from nano_vm.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    recover.add_loop_arguments(parser)
    add_tools(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    args.loop = True
    return recover.execute(args, console)
