"""Show a run's governance envelopes: per successful step its policy, the state it left, and what it committed to.

nano-vm envelopes ID        one line of canonical JSON per step, without any value
"""

from __future__ import annotations

import argparse

from nano_vm.cli import exits
from nano_vm.cli.console import Console
from nano_vm.cli.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm import canonical
    from nano_vm.evidence.envelope import envelopes

    with Session(args) as session:
        found = envelopes(session.engine.trace(args.run_id))
    console.document({"trace_id": args.run_id, "envelopes": found})
    for envelope in found:
        console.line(canonical.encode(envelope).decode())
    return exits.DONE
