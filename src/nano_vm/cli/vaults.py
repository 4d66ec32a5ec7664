"""The vault that belongs to the database a command works with."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nano_vm.cli.arguments import beside_store, is_address, store_path
from nano_vm.errors import InputError, VaultError

if TYPE_CHECKING:
    from nano_vm.vault.local import Vault

KEY_VARIABLE = "NANO_VM_VAULT_KEY"


def vault_directory(args: argparse.Namespace) -> Path:
    return Path(f"{beside_store(args)}.keys")


def key_path(args: argparse.Namespace) -> Path:
    """The key file that `--key-file` names, or the one beside the database."""
    return Path(args.key_file or f"{beside_store(args)}.key")


def require_vault(args: argparse.Namespace) -> Vault:
    """The vault beside the database, with the key that the options, the environment or the file beside the database
    give, in this order; its directory is made when it is missing.

    Raises:
        VaultError: VAULT_KEY_MISSING, VAULT_KEY_EXPOSED, VAULT_KEY_INVALID; see `Vault`.
    """
    from nano_vm.vault.local import Vault

    return Vault.beside(beside_store(args), key_file=args.key_file)


def own_vault(args: argparse.Namespace) -> Vault:
    """`require_vault`, of the database that the command names: one that is no file may have the name of another one. A
    vault that belongs to none yet may be worked with before the database has tables.

    Raises:
        VaultError: VAULT_FOREIGN, and as `require_vault`. StoreError, InputError: whose it is cannot be found out.
    """
    vault = require_vault(args)
    if not is_address(store_path(args)):
        return vault
    try:
        identity = _identity(args)
    except InputError as error:
        if error.code != "STORE_NOT_FOUND" or vault.is_marked:
            raise
        return vault
    vault.belong(identity)
    return vault


def check_new(args: argparse.Namespace) -> None:
    """Refuse to make a key for a vault that lies there already. Whose it is counts first: another database's, which has
    the same name, is no reason to rotate.

    Raises:
        VaultError: VAULT_FOREIGN, VAULT_KEY_EXISTS. StoreError, InputError: whose it is cannot be found out.
    """
    from nano_vm.vault.cabinet import DirectoryCabinet
    from nano_vm.vault.local import check_store, is_marked

    directory = vault_directory(args)
    if not os.path.isdir(directory):
        return
    cabinet = DirectoryCabinet(directory)
    if is_address(store_path(args)) and is_marked(cabinet):
        check_store(cabinet, _identity(args))
    if os.path.exists(directory / "keys" / "index"):
        raise VaultError(
            "VAULT_KEY_EXISTS",
            f"the vault `{directory}` has a key-encryption key already",
            help="`nano-vm vault rotate --kek` makes a new one for it",
        )


def _identity(args: argparse.Namespace) -> str:
    """What tells the database that the command names from others of its name."""
    from nano_vm.cli.session import open_store

    with contextlib.closing(open_store(args)) as store:
        return str(getattr(store, "identity", ""))


def open_vault(args: argparse.Namespace, store: str | None = None) -> Vault | None:
    """The vault beside the database, where there is one and its key is at hand; else None: then no secret opens, and
    private values stay sealed. `store`: the identity of a database that is not a file beside it: others have its name.

    Raises:
        VaultError: the key is there and cannot be used, or the vault is damaged, or another database's (VAULT_FOREIGN).
    """
    is_there = os.path.isdir(vault_directory(args))
    has_key = args.key_file is not None or KEY_VARIABLE in os.environ or os.path.exists(key_path(args))
    if not is_there and not has_key:
        return None
    try:
        vault = require_vault(args)
    except VaultError as error:
        if error.code == "VAULT_KEY_MISSING" and args.key_file is None:
            return None
        raise
    if store is not None:
        vault.belong(store)
    return vault
