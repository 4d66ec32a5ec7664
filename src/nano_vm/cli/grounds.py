"""Where commands that break or load a database on purpose may do so: never where anybody's runs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nano_vm.cli.arguments import is_address
from nano_vm.errors import InputError

if TYPE_CHECKING:
    from nano_vm.testing.databases import Files, Schemas


def grounds(store: str | None, purpose: str, kinds: Sequence[str]) -> Files | Schemas:
    """What `--store` says: files of their own by default; the variable that other commands heed counts for nothing.

    Args:
        purpose: what the schemas are for, in a word.
        kinds: what may be given, as shown to people; an address among it.

    Raises:
        InputError: USAGE for anything else, a database file included. RuntimeFault: EXTRA_MISSING.
    """
    from nano_vm.testing.databases import Files, Schemas

    if store is not None and is_address(store):
        return Schemas(store, purpose)
    if store is None or store in kinds:
        return Files()
    raise InputError(
        "USAGE",
        f"`{store[:60]}` is no store for `nano-vm {purpose}`",
        help=f"one of: {', '.join(kinds)}. It makes databases of its own, and touches no runs that are there",
    )
