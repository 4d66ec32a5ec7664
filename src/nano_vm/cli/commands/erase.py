"""Erase a data subject's private values, or a secret, for good: their keys are destroyed.

  nano-vm erase --subject customer-17 --reason "asked on 3 May" --principal ana --tools shop_tools.py
  nano-vm erase --secret card-token --reason "no longer needed" --principal ana
  nano-vm erase --run ID --reason TEXT --principal ana     a run whose program names no subject
  nano-vm erase --complete                                   after a back-up was restored, or a crash

Runs of the subject that have not ended are cancelled first; --tools brings what undoes their steps: without it they are
named as not undone. Journals keep their hashes; what was private shows as [REDACTED_TOMBSTONE]. The receipt says who,
when, why, which keys and which runs.

exit codes: 0 done · 1 begun, and another process has a run that still has to be told · 2 nothing to erase · 4 a legal
hold forbids it
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.arguments import add_tools
from nano_vm.cli.commands.vault import subject_of
from nano_vm.cli.console import Console
from nano_vm.cli.driving import supervise
from nano_vm.cli.session import Session
from nano_vm.cli.views import moment
from nano_vm.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--subject", metavar="ID", help="a data subject, as programs name it")
    what.add_argument("--secret", metavar="ID", help="a secret of the vault")
    what.add_argument("--run", metavar="ID", help="a run whose program names no subject")
    what.add_argument(
        "--complete", action="store_true", help="erase again what a restored back-up brought back"
    )
    parser.add_argument("--reason", metavar="TEXT", help="why; on record for good")
    parser.add_argument("--receipt", metavar="FILE", help="also write the receipt, as JSON, to a new file")
    add_tools(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    with Session(args, drives=True) as session:
        engine = session.engine
        if args.complete:
            receipts: list[dict[str, Any]] = supervise(session, engine.replay_erasures)
            for receipt in receipts:
                _show(console, receipt)
            if not receipts:
                console.line("nothing was ever erased")
            console.document({"erasures": receipts})
            return exits.DONE if all(receipt["stage"] == "done" for receipt in receipts) else exits.FAILED
        if args.reason is None or session.principal is None:
            raise InputError(
                "USAGE", "an erasure has a reason and is somebody's", help="--reason TEXT --principal ID"
            )
        principal = session.principal
        receipt = supervise(
            session,
            lambda: engine.erase(
                subject=None if args.subject is None else subject_of(args.subject),
                secret=args.secret,
                run=args.run,
                reason=args.reason,
                by=principal,
                tenant=args.tenant,
            ),
        )
    return _conclude(console, receipt, args.receipt)


def erase_secret(args: argparse.Namespace, console: Console) -> int:
    """`nano-vm vault erase ID`."""
    with Session(args, create=True) as session:
        principal = session.principal
        if principal is None:
            raise InputError("USAGE", "an erasure is somebody's", help="--principal ID")
        engine = session.engine
        receipt = supervise(
            session,
            lambda: engine.erase(secret=args.id, reason=args.reason, by=principal, tenant=args.tenant),
        )
    return _conclude(console, receipt, None)


def _conclude(console: Console, receipt: dict[str, Any], path: str | None) -> int:
    _show(console, receipt)
    if path is not None:
        _write(path, receipt)
        console.note(f"receipt in {path}")
    console.document(receipt)
    return exits.DONE if receipt["stage"] == "done" else exits.FAILED


def _show(console: Console, receipt: dict[str, Any]) -> None:
    keys, runs = len(receipt["keys"]), len(receipt["runs"])
    console.line(
        f"{receipt['erasure']}  {moment(receipt['at_ms'])}  {receipt['kind']}: {keys} "
        f"{'key' if keys == 1 else 'keys'} destroyed, {runs} {'run' if runs == 1 else 'runs'} told"
    )
    if receipt["stage"] != "done":
        console.line("  another process has a run that is still to be told: `nano-vm recover` completes it")


def _write(path: str, receipt: dict[str, Any]) -> None:
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(json.dumps(receipt, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise InputError(
            "USAGE",
            f"the receipt cannot be written: {(error.strerror or 'error').lower()}",
            help="the erasure is done; `nano-vm erase --complete --json` shows its receipt again",
        ) from error
