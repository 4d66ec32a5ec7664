"""Look at runs, approvals, programs and evidence in a browser on this machine.

Needs the extra: pip install 'nano-vm[studio]'

  nano-vm studio                                         read-only, on 127.0.0.1:8501
  nano-vm studio --principal ana --role approver --role supervisor --tools refund_tools.py
  nano-vm studio --principal ops --role operator --tools refund_tools.py --model mock:yes --policy refund.policy.yaml

Nobody acts without a principal and a role that may act: operator, approver, admin; a role of yours answers the
approvals that ask for it. What is acted on is driven on here, with --tools and --model. The address that is printed
holds a key: whoever has it is let in. Private values and secrets are never shown. Ctrl-C stops the studio and harms no
run.

exit codes: 0 stopped · 1 the extra is missing, or the port is taken · 2 usage
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano_vm.cli.arguments import add_tools, is_address, principal, shown_store, store_path, whole
from nano_vm.cli.console import Console
from nano_vm.errors import InputError

if TYPE_CHECKING:
    from nano_vm.studio.settings import SecretLine, Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", metavar="PORT", type=whole, default=8501, help="(default: 8501; 0: a free one)"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.add_argument(
        "--no-key", action="store_true", help="let in whoever can reach the port on this machine"
    )
    add_tools(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.studio.launch import require_extra, serve

    require_extra()
    settings = make_settings(args)

    def announce(address: str) -> None:
        who = settings.principal
        if console.json_only:
            console.json_line(
                {"listening": address, "store": shown_store(args), "acting": settings.desk is not None}
            )
        else:
            console.line(f"studio of {shown_store(args)}")
            console.line(f"  {address}", "bold")
            acting = "read-only" if settings.desk is None or who is None else f"acting as {who['id']}"
            console.note(f"  {acting}; stop with Ctrl-C")
        sys.stdout.flush()
        if args.open:
            import webbrowser

            webbrowser.open(address)

    serve(settings, args.port, announce)
    return 0


def make_settings(args: argparse.Namespace) -> Settings:
    """What the options say. Tools, policy and model are loaded now, so that what is wrong with them is said now.

    Raises:
        what loading them raises.
    """
    from nano_vm.cli.session import Session, command, open_store
    from nano_vm.studio.desk import Desk
    from nano_vm.studio.launch import new_key
    from nano_vm.studio.settings import Settings, rights_of

    who = principal(args)
    policy, schemas = None, None
    if args.policy:
        from nano_vm.policy.load import load_policy

        policy = load_policy(args.policy)
    if args.tools:
        from nano_vm.cli.toolfiles import load_tools

        schemas = load_tools(args.tools).schemas()
    acts = who is not None and bool(rights_of(who) - {"read", "verify"})
    if acts and args.model:
        from nano_vm.cli.models import Model

        Model(args).close()
    desk = Desk(lambda: Session(args, drives=True), who) if acts else None
    try:
        open_store(
            args
        ).close()  # one that is there and cannot be opened is said now; one to come is waited for
    except InputError as error:
        if error.code != "STORE_NOT_FOUND":
            raise
    return Settings(
        open_store=lambda: open_store(args),
        path=None if is_address(store_path(args)) else Path(store_path(args)).absolute(),
        principal=who,
        tenant=args.tenant,
        desk=desk,
        secrets=_secrets(args),
        schemas=schemas,
        policy=policy,
        command=lambda *words, **options: command(args, *words, **options),
        key=None if args.no_key else new_key(),
    )


def _secrets(args: argparse.Namespace) -> Any:
    """Lists the vault's secrets without their values, where there is a vault and its key."""
    from nano_vm.cli.vaults import open_vault, vault_directory

    if not vault_directory(args).is_dir():
        return None

    def listed() -> list[SecretLine]:
        from nano_vm.studio.settings import SecretLine

        vault = open_vault(args)
        if vault is None:
            raise InputError(
                "USAGE", "the vault's key is not at hand", help="--key-file FILE, or $NANO_VM_VAULT_KEY"
            )
        found = vault.secrets(args.tenant or "default")
        return [
            SecretLine(each.reference, tuple(each.tools), each.changed_at_ms, each.held) for each in found
        ]

    return listed
