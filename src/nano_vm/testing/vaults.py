"""Where the keys of a simulation lie: outside of every process and of the store, drawn from the seed.

The simulated processes share one cabinet, as processes share a directory. Whoever writes or destroys something there
may die just before or just after.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from nano_vm.errors import RuntimeFault
from nano_vm.vault import cipher
from nano_vm.vault.cabinet import MemoryCabinet
from nano_vm.vault.kek import LocalKey
from nano_vm.vault.local import Vault

_KEK = bytes(range(cipher.KEY_BYTES))


def is_available() -> bool:
    """Whether private values can be encrypted here: that takes the extra `vault`."""
    try:
        cipher.seal(bytes(cipher.KEY_BYTES), b"", b"")
    except RuntimeFault:
        return False
    return True


class SharedCabinet(MemoryCabinet):
    """Outlives the processes that use it, as a directory does."""

    @property
    def volatile(self) -> bool:
        return False

    def copy(self) -> SharedCabinet:
        """A back-up of it."""
        copy = SharedCabinet()
        copy._held, copy._lines = dict(self._held), list(self._lines)
        return copy

    def everything(self) -> Iterator[bytes]:
        """All that lies here, as bytes."""
        yield from self._held.values()
        yield from self._lines


class WatchedCabinet:
    """One process's way to the shared cabinet."""

    def __init__(self, shared: SharedCabinet, passes: Callable[[str], Any]) -> None:
        self._shared = shared
        self._passes = passes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared, name)

    def write(self, drawer: str, name: str, data: bytes) -> None:
        self._passes("vault")
        self._shared.write(drawer, name, data)
        self._passes("vaulted")

    def destroy(self, drawer: str, name: str) -> bool:
        self._passes("vault")
        found = self._shared.destroy(drawer, name)
        self._passes("vaulted")
        return found

    def add_line(self, line: bytes) -> None:
        self._passes("vault")
        self._shared.add_line(line)
        self._passes("vaulted")


def vault_on(cabinet: Any) -> Vault:
    """A vault as a process opens it: with the key-encryption key that all of them are given."""
    return Vault(cabinet, LocalKey(_KEK))


@contextlib.contextmanager
def seeded(seed: object) -> Iterator[None]:
    """Inside, the vault's chance follows from the seed."""
    held = cipher.chance
    cipher.chance = random.Random(f"vault {seed}").randbytes
    try:
        yield
    finally:
        cipher.chance = held


__all__ = ["SharedCabinet", "WatchedCabinet", "is_available", "seeded", "vault_on"]
