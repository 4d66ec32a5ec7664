"""Keep secrets, and the keys of private values, outside the database.

  nano-vm vault init                          make the key-encryption key: a file that only you may read
  nano-vm vault put card-token                asks for the value, or reads it from standard input
  nano-vm vault put card-token --tool charge  only this tool may open it
  nano-vm vault list
  nano-vm vault rotate card-token             a new data key for one secret; --subject ID for a data subject
  nano-vm vault rotate --kek                  a new key-encryption key; every data key is wrapped anew
  nano-vm vault erase card-token --reason "no longer needed" --principal ana      for good
  nano-vm vault hold --subject ID --reason "case 17"      no erasure until `release`
  nano-vm vault release --subject ID

Values are never given on the command line: it is seen by others and kept in histories. Programs write
`vault://secret/card-token`, and only tools that declare the parameter as a secret are given the value.

exit codes: 0 done · 2 no such secret, no key · 4 a legal hold forbids it · 5 the vault is damaged
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from nano_vm.cli import exits
from nano_vm.cli.arguments import add_global, principal
from nano_vm.cli.console import Console, printable
from nano_vm.cli.vaults import KEY_VARIABLE, check_new, key_path, own_vault, require_vault, vault_directory
from nano_vm.cli.views import moment
from nano_vm.errors import InputError

if TYPE_CHECKING:
    from nano_vm.vault.local import Vault


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("init", help="make a key-encryption key in a file of its own")
    put = actions.add_parser("put", help="keep a secret; its value comes from a prompt or standard input")
    put.add_argument("id", metavar="ID", help="letters, digits, `.`, `_`, `-`; not secret itself")
    put.add_argument(
        "--tool", metavar="NAME", action="append", default=[], help="only this tool may open it (repeatable)"
    )
    actions.add_parser("list", help="the secrets there are, without their values")
    rotate = actions.add_parser("rotate", help="a new data key, or a new key-encryption key")
    what = rotate.add_mutually_exclusive_group(required=True)
    what.add_argument("id", metavar="ID", nargs="?", help="a secret")
    what.add_argument("--subject", metavar="ID", help="a data subject: the key of its new values")
    what.add_argument("--kek", action="store_true", help="the key-encryption key")
    erase = actions.add_parser("erase", help="destroy a secret's key: nothing brings it back")
    erase.add_argument("id", metavar="ID", help="a secret; for data subjects: nano-vm erase")
    erase.add_argument("--reason", metavar="TEXT", required=True, help="why; on record for good")
    for name, summary in (("hold", "forbid the erasure of something"), ("release", "allow it again")):
        holding = actions.add_parser(name, help=summary)
        held = holding.add_mutually_exclusive_group(required=True)
        held.add_argument("id", metavar="ID", nargs="?", help="a secret")
        held.add_argument("--subject", metavar="ID", help="a data subject")
        if name == "hold":
            holding.add_argument(
                "--reason", metavar="TEXT", required=True, help="why; shown to who is refused"
            )
    for action in actions.choices.values():
        add_global(action)


def execute(args: argparse.Namespace, console: Console) -> int:
    args.tenant = args.tenant or "default"
    if args.action == "init":
        return _init(args, console)
    if args.action == "rotate" and args.kek:
        return _rotate_kek(args, console)
    if args.action == "erase":
        from nano_vm.cli.commands.erase import erase_secret

        return erase_secret(args, console)
    vault = own_vault(args)
    if args.action == "put":
        reference = vault.put(args.id, _value(args.id), tenant=args.tenant, tools=args.tool)
        console.line(f"kept as {reference}")
        console.document({"secret": reference, "tools": args.tool})
    elif args.action == "list":
        _list(args, console, vault)
    elif args.action == "rotate":
        key = (
            vault.rotate(args.id, tenant=args.tenant)
            if args.id is not None
            else vault.rotate_subject(subject_of(args.subject), tenant=args.tenant)
        )
        console.line(f"new values are under the data key {key}")
        console.document({"key": key})
    elif args.action == "hold":
        by = principal(args) or {"id": _user(), "roles": []}
        target = _target(args)
        vault.hold(**target, tenant=args.tenant, reason=args.reason, by=by)
        console.line("held: no erasure until it is released")
        console.document({"held": True})
    else:
        released = vault.release(**_target(args), tenant=args.tenant)
        console.line("released" if released else "nothing was held")
        console.document({"released": released})
    return exits.DONE


def subject_of(text: str) -> Any:
    """A data subject as programs have it: `17` is a number, anything else a text; `"17"` in quotes is a text, too."""
    if text.isdecimal() and len(text) < 16 and str(int(text)) == text:
        return int(text)
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text


def _target(args: argparse.Namespace) -> dict[str, Any]:
    return {"secret": args.id} if args.id is not None else {"subject": subject_of(args.subject)}


def _init(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.vault.kek import make_key_file

    path = key_path(args)
    if args.key_file is None and KEY_VARIABLE in os.environ:
        raise InputError(
            "USAGE",
            f"${KEY_VARIABLE} is set, and would be used instead of a file",
            help=f"unset {KEY_VARIABLE}",
        )
    directory = vault_directory(args)
    check_new(args)
    key = make_key_file(path)
    require_vault(args)
    console.line(f"key-encryption key {key.id} in {path}")
    console.line(f"data keys and secrets in {directory}")
    console.note(
        "keep a copy of the key file apart from the database and from the vault: without it nothing opens"
    )
    console.document({"key_file": str(path), "key": key.id, "vault": str(directory)})
    return exits.DONE


def _value(secret_id: str) -> str:
    if sys.stdin.isatty():
        import getpass

        value = getpass.getpass(f"value of {secret_id} (not shown): ")
        if getpass.getpass("again: ") != value:
            raise InputError("SECRET_VALUE", "the two values differ", help="nothing was kept; try again")
        return value
    return sys.stdin.read().removesuffix("\n").removesuffix("\r")


def _list(args: argparse.Namespace, console: Console, vault: Vault) -> None:
    secrets = vault.secrets(args.tenant)
    for secret in secrets:
        tools = ", ".join(secret.tools) or "any tool that declares a secret"
        held = "  held" if secret.held else ""
        console.line(
            f"{secret.reference}  changed {moment(secret.changed_at_ms)}  for {printable(tools)}{held}"
        )
    if not secrets:
        console.line("no secrets")
    console.document({"secrets": [secret._asdict() for secret in secrets]})


def _rotate_kek(args: argparse.Namespace, console: Console) -> int:
    """The new key is durable before the first data key is wrapped by it, and the old one goes when none is left under
    it; a crash in between leaves both, and the next call goes on."""
    from nano_vm.vault.cabinet import DirectoryCabinet
    from nano_vm.vault.kek import keys_from_file, make_key_file, next_key_file, replace_key_file
    from nano_vm.vault.local import Vault

    if args.key_file is None and KEY_VARIABLE in os.environ:
        raise InputError(
            "USAGE",
            f"the key comes from ${KEY_VARIABLE}, where it cannot be changed from here",
            help="rotate from a key file: --key-file FILE; or from Python: vault.rotate_kek(LocalKey(…))",
        )
    path = key_path(args)
    beside = next_key_file(path)
    keys_from_file(path)  # before anything is made
    own_vault(args)
    cabinet = DirectoryCabinet(vault_directory(args))
    with cabinet.lock():  # of two rotations at once the second begins where the first has ended
        old, *begun = keys_from_file(path)
        new = begun[0] if begun else make_key_file(beside)
        count = Vault(cabinet, [old, new]).rotate_kek(new)
        replace_key_file(path, beside)
    console.line(f"{count} data keys are under the key-encryption key {new.id} now; the old one is destroyed")
    console.document({"key": new.id, "wrapped": count})
    return exits.DONE


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
