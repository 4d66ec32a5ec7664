"""Data keys: one per data subject or secret, wrapped by the key-encryption key, each in a file of its own.

A data key is two keys of 32 bytes: one encrypts, the other makes keyed digests. Rotation draws a new one for encrypting
and keeps the other, so that the same content goes on having the same digest. A key's id is random; who it belongs to is
known by its `handle`, an HMAC of tenant, kind and name under the vault's index key.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError, VaultError
from nano_vm.vault import cipher
from nano_vm.vault.cabinet import Cabinet
from nano_vm.vault.kek import KeyWrapper

_INDEX = "index"
_CACHED_MAX = 10_000


class DataKey(NamedTuple):
    """`encrypting` and `digesting` are 32 bytes each."""

    encrypting: bytes
    digesting: bytes

    def __repr__(self) -> str:
        return "<DataKey>"


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored of a data key. `kek` is the id of the key that wraps it."""

    id: str
    kind: str  # "subject", "secret" or "index"
    tenant: str
    handle: str
    created_at_ms: int
    kek: str
    wrapped: str  # base64


_decode = msgspec.json.Decoder(KeyFile).decode


class Keys:
    """The data keys of one vault.

    Args:
        wrappers: key-encryption keys that data keys may be wrapped by; a vault is begun under the first.
        renew: gives those there are now, when a data key is wrapped by none of these: there was a rotation meanwhile.
    """

    def __init__(
        self,
        cabinet: Cabinet,
        wrappers: Sequence[KeyWrapper],
        renew: Callable[[], Sequence[KeyWrapper]] | None = None,
    ) -> None:
        self._cabinet = cabinet
        self._wrappers = wrappers
        self._renew = renew
        self._cached: dict[str, DataKey] = {}
        self._index_key: bytes | None = None

    def handle(self, kind: str, tenant: str, name: Any) -> str:
        """Stands for a name of that kind in that tenant; tells nothing without the vault's index key."""
        return cipher.keyed_digest(self._index(), canonical.encode([kind, tenant, name]))[:40]

    def make(self, kind: str, tenant: str, handle: str, at_ms: int, digesting: bytes | None = None) -> str:
        """A new data key, durable when this returns. Returns its id, "k" and 24 hexadecimal digits."""
        key_id = "k" + cipher.chance(12).hex()
        key = DataKey(cipher.new_key(), digesting or cipher.new_key())
        # A rotation holds the lock while it wraps all keys there are: none comes behind it under the key it destroys.
        with self._cabinet.lock():
            self._store(self._file(key_id, kind, tenant, handle, at_ms, key, self._current()))
        return key_id

    def key(self, key_id: str) -> DataKey | None:
        """A data key; None when there is none of that id - any more.

        Raises:
            VaultError: VAULT_KEY_WRONG, VAULT_DAMAGED.
        """
        # Another process may have destroyed it: what the cabinet does not have, nobody uses.
        if not self._cabinet.has("keys", key_id):
            self._cached.pop(key_id, None)
            return None
        held = self._cached.get(key_id)
        if held is None:
            stored = self.stored(key_id)
            if stored is None:
                return None
            held = self._unwrapped(stored)
            if len(self._cached) >= _CACHED_MAX:
                self._cached.clear()
            self._cached[key_id] = held
        return held

    def stored(self, key_id: str) -> KeyFile | None:
        """Raises VaultError VAULT_DAMAGED."""
        data = self._cabinet.read("keys", key_id)
        if data is None:
            return None
        try:
            stored = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise damaged("a key file cannot be read", key_id) from None
        if stored.id != key_id:
            raise damaged("a key file is not where it belongs", key_id)
        return stored

    def destroy(self, key_id: str) -> bool:
        """Overwrite and remove; False when there was nothing to destroy."""
        self._cached.pop(key_id, None)
        return self._cabinet.destroy("keys", key_id)

    def rewrap(self, to: KeyWrapper) -> int:
        """Wrap every data key by another key-encryption key. What was done before a crash is not done again. Returns
        how many were wrapped anew."""
        count = 0
        with self._cabinet.lock():
            self._wrappers = [to, *(old for old in self._wrappers if old.id != to.id)]
            for key_id in self._cabinet.names("keys"):
                stored = self.stored(key_id)
                if stored is None or stored.kek == to.id:
                    continue
                key = self._unwrapped(stored)
                wrapped = self._file(
                    key_id, stored.kind, stored.tenant, stored.handle, stored.created_at_ms, key, to
                )
                self._store(wrapped)
                count += 1
            self._wrappers = [to]
        return count

    def _index(self) -> bytes:
        if self._index_key is None:
            with self._cabinet.lock():
                stored = self.stored(_INDEX)
                if stored is None:
                    key = DataKey(cipher.new_key(), cipher.new_key())
                    self._store(self._file(_INDEX, "index", "", "", 0, key, self._wrappers[0]))
                else:
                    key = self._unwrapped(stored)
            self._index_key = key.digesting
        return self._index_key

    def _file(
        self, key_id: str, kind: str, tenant: str, handle: str, at_ms: int, key: DataKey, by: KeyWrapper
    ) -> KeyFile:
        wrapped = by.wrap(key.encrypting + key.digesting, cipher.binding("key", key_id, kind, tenant, handle))
        text = base64.b64encode(wrapped).decode()
        return KeyFile(
            id=key_id, kind=kind, tenant=tenant, handle=handle, created_at_ms=at_ms, kek=by.id, wrapped=text
        )

    def _store(self, file: KeyFile) -> None:
        self._cabinet.write("keys", file.id, canonical.encode(msgspec.to_builtins(file)) + b"\n")

    def _unwrapped(self, stored: KeyFile) -> DataKey:
        bound = cipher.binding("key", stored.id, stored.kind, stored.tenant, stored.handle)
        stored, by = self._wrapper(stored)
        try:
            plain = by.unwrap(base64.b64decode(stored.wrapped, validate=True), bound)
        except (VaultError, ValueError):
            raise damaged("a data key does not open: its file was changed", stored.id) from None
        if len(plain) != 2 * cipher.KEY_BYTES:
            raise damaged("a data key has the wrong length", stored.id)
        return DataKey(plain[: cipher.KEY_BYTES], plain[cipher.KEY_BYTES :])

    def _current(self) -> KeyWrapper:
        """What new data keys are wrapped by: what the vault's index key is wrapped by, which a rotation begins with."""
        stored = self.stored(_INDEX)
        return self._wrappers[0] if stored is None else self._wrapper(stored)[1]

    def _wrapper(self, stored: KeyFile) -> tuple[KeyFile, KeyWrapper]:
        """What a data key is wrapped by, and the key as it is stored now. Raises VaultError VAULT_KEY_WRONG."""
        given = {wrapper.id: wrapper for wrapper in self._wrappers}
        if stored.kek not in given and self._renew is not None:
            with self._cabinet.lock():  # no rotation is under way
                self._wrappers = self._renew()
                stored = self.stored(stored.id) or stored
            given = {wrapper.id: wrapper for wrapper in self._wrappers}
        if stored.kek not in given:
            raise VaultError(
                "VAULT_KEY_WRONG",
                f"the vault is under the key-encryption key {stored.kek}, and that is not the one given",
                help="name the key file that belongs to this vault with --key-file",
                facts={"wanted": stored.kek, "given": list(given)},
            )
        return stored, given[stored.kek]


def subject_name(subject: Any) -> Any:
    """A data subject's name as it is compared: a text or a whole number.

    Raises:
        InputError: SUBJECT.
    """
    if type(subject) is str and 0 < len(subject) <= 1_024:
        return subject
    if type(subject) is int:
        return subject
    raise InputError(
        "SUBJECT",
        "a data subject is named by a text of 1 to 1,024 characters or by a whole number",
        help="let the program's `subject` refer to such a value: subject: $customer_id",
    )


def damaged(what: str, name: str) -> VaultError:
    return VaultError(
        "VAULT_DAMAGED",
        f"{what} (`{name}`)",
        help="restore the vault's directory from a back-up; what was erased stays erased",
        facts={"name": name},
    )
