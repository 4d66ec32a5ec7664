"""Erasures that have begun and gone no further, as a crash leaves them."""

from __future__ import annotations

from typing import Any

from nano_vm import Vault
from nano_vm.vault.erasures import Erasure


def begin_erasure(vault: Vault, **asked: Any) -> Erasure:
    """Decide that something is erased, and let nothing open with its keys any more. They are still there."""
    return vault.begin_announced(vault.announce_erasure(**asked))
