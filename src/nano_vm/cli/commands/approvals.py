"""List what waits for somebody's approval: the exact action, who may approve it, and until when.

  nano-vm approvals
  nano-vm approvals ID

exit codes: 0
"""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.approving import describe
from nano_vm.cli.console import Console
from nano_vm.cli.session import Session, command
from nano_vm.runtime.approvals import PendingApproval, pending


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", nargs="?", help="only those of this run")


def execute(args: argparse.Namespace, console: Console) -> int:
    with Session(args) as session:
        if args.run_id is None:
            found = session.engine.approvals(tenant=args.tenant)
        else:
            found = pending(session.engine, session.store.record(args.run_id))
        console.document({"approvals": [_plain(one) for one in found]})
        if not found:
            console.line("nothing waits for an approval")
        for one in found:
            for line in describe(one):
                console.line(line)
            words = ["resume", one.run_id, "--step", one.step]
            words += [] if one.item is None else ["--item", str(one.item)]
            words += ["--action", one.action, "--nonce", one.nonce] if one.action else []
            role = one.roles[0] if one.roles else "ROLE"
            line = command(args, *words, "--approve")
            console.line(f"  approve   {line} --principal YOU --role {role} --tools FILE")
        return exits.DONE


def _plain(found: PendingApproval) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__struct_fields__}
