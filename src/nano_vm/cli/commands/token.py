"""Make, list and revoke the bearer tokens of the gateway.

  nano-vm token create --principal ana --role operator --days 30
  nano-vm token list
  nano-vm token revoke ID

A token is shown once, when it is made; only its digest is kept.
"""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli.arguments import gateway_store, number
from nano_vm.cli.console import Console, printable
from nano_vm.errors import InputError
from nano_vm.gateway import tokens
from nano_vm.gateway.state import SUFFIX, GatewayState
from nano_vm.gateway.views import moment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("create", "list", "revoke"))
    parser.add_argument("id", nargs="?", metavar="ID", help="of the token that is revoked")
    parser.add_argument("--label", metavar="TEXT", default="", help="what it is for")
    parser.add_argument(
        "--days", metavar="N", type=number, default=90.0, help="how long it is valid (default: 90)"
    )


def execute(args: argparse.Namespace, console: Console) -> int:
    if (args.action == "revoke") != (args.id is not None):
        raise InputError(
            "USAGE", "`revoke` takes the id of a token, and nothing else does", help="token revoke ID"
        )
    state = GatewayState(gateway_store(args) + SUFFIX)
    try:
        if args.action == "create":
            if args.principal is None:
                raise InputError("USAGE", "whose token?", help="--principal ID --role operator")
            token, row = tokens.create(
                state, args.principal, tuple(args.role), args.tenant or "default", args.label, args.days
            )
            console.document({"token": token, **row})
            console.line(token)
            console.note(
                f"for {row['principal']} until {moment(row['expires_at_ms'])}; it is not shown again"
            )
        elif args.action == "list":
            rows = tokens.listing(state)
            console.document({"tokens": rows})
            for row in rows:
                console.line(_line(row))
            if not rows:
                console.line("no tokens")
        else:
            row = tokens.revoke(state, args.id)
            console.document(row)
            console.line(f"revoked {row['id']}")
    finally:
        state.close()
    return 0


def _line(row: dict[str, Any]) -> str:
    stands = "valid" if row["valid"] else ("revoked" if row["revoked_at_ms"] else "expired")
    return (
        f"{row['id']}  {stands:<7}  until {moment(row['expires_at_ms'])}  {printable(row['principal'])} "
        f"({', '.join(row['roles'])}) in {printable(row['tenant'])}  {printable(row['label'])}"
    ).rstrip()
