"""The key-encryption key: it wraps data keys and is stored with none of them.

It comes from a file that only its owner may read, from an environment variable, or from a service of yours: anything
with the three members of `KeyWrapper` will do.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import stat
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from nano_vm.errors import VaultError
from nano_vm.vault import cipher

KEY_VARIABLE = "NANO_VM_VAULT_KEY"
_PREFIX = "nano-vm-vault-key-1:"
_FILE_BYTES_MAX = 4_096


class KeyWrapper(Protocol):
    """Wraps data keys. An external key service implements this; the key-encryption key never leaves it.

    `id` names the key-encryption key, so that a rotation knows what is still wrapped by the old one. `bound` is
    authenticated with the key and not stored in it. `unwrap` raises `VaultError` for what it did not wrap.
    """

    @property
    def id(self) -> str: ...

    def wrap(self, key: bytes, bound: bytes) -> bytes: ...

    def unwrap(self, wrapped: bytes, bound: bytes) -> bytes: ...


class LocalKey:
    """A key-encryption key in this process. Its `repr` shows its id, never the key."""

    __slots__ = ("_key", "id")

    def __init__(self, key: bytes) -> None:
        if len(key) != cipher.KEY_BYTES:
            raise _invalid(f"it has {len(key)} bytes")
        self._key = key
        self.id = sha256(b"nano-vm vault key id\n" + key).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"<LocalKey {self.id}>"

    def wrap(self, key: bytes, bound: bytes) -> bytes:
        return cipher.seal(self._key, key, bound)

    def unwrap(self, wrapped: bytes, bound: bytes) -> bytes:
        return cipher.unseal(self._key, wrapped, bound)


def key_from_file(path: str | os.PathLike[str]) -> LocalKey:
    """The key in a file that nobody but its owner may read or write.

    Raises:
        VaultError: VAULT_KEY_MISSING, VAULT_KEY_EXPOSED (permissions or owner), VAULT_KEY_INVALID.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise VaultError(
            "VAULT_KEY_MISSING",
            f"the key file `{os.fspath(path)}` cannot be read: {(error.strerror or 'error').lower()}",
            help="`nano-vm vault init` makes one; or set $" + KEY_VARIABLE,
            facts={"path": os.fspath(path)},
        ) from None
    try:
        # Of the file that is open, not of the name: it cannot be exchanged in between.
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise _invalid(f"`{os.fspath(path)}` is a directory")
        check_private(os.fspath(path), about)
        text = os.read(descriptor, _FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if b"\0" in text and not _is_at(path, about):
        return key_from_file(path)  # a rotation has just put another in its place, and overwrites this one
    return LocalKey(_decode(text.decode("ascii", "replace").strip()))


def keys_from_file(path: str | os.PathLike[str]) -> list[LocalKey]:
    """The key in a file, and the one that a rotation under way, or cut, puts in its place (`next_key_file`).

    Raises:
        VaultError: see `key_from_file`.
    """
    # In this order: a rotation that ends in between has put the next one where the other is read.
    beside = next_key_file(path)
    following = []
    if os.path.exists(beside):
        try:
            following = [key_from_file(beside)]
        except VaultError:
            if os.path.exists(beside):
                raise
    return [key_from_file(path), *following]


def next_key_file(path: str | os.PathLike[str]) -> Path:
    """Where a rotation keeps the next key until everything is under it."""
    return Path(f"{os.fspath(path)}.new")


def check_private(path: str, about: os.stat_result) -> None:
    """Refuse what others than the owner may read or write.

    Raises:
        VaultError: VAULT_KEY_EXPOSED.
    """
    if os.name != "posix":
        return  # access is ruled by lists that `stat` does not show
    if stat.S_IMODE(about.st_mode) & 0o077:
        mode = f"{stat.S_IMODE(about.st_mode):04o}"
        wanted = "700" if stat.S_ISDIR(about.st_mode) else "600"
        raise VaultError(
            "VAULT_KEY_EXPOSED",
            f"`{path}` has the permissions {mode}: others than its owner may get at it",
            help=f"chmod {wanted} {path}; if others may have read it, make a new key: nano-vm vault rotate --kek",
            facts={"path": path, "mode": mode},
        )
    if about.st_uid not in (os.geteuid(), 0):
        raise VaultError(
            "VAULT_KEY_EXPOSED",
            f"`{path}` belongs to another user",
            help="the key file has to belong to the user that runs nano-vm",
            facts={"path": path, "owner": about.st_uid},
        )


def key_from_environment(name: str = KEY_VARIABLE) -> LocalKey | None:
    """The key in an environment variable, base64 or hexadecimal; None when the variable is not set.

    Raises:
        VaultError: VAULT_KEY_INVALID.
    """
    text = os.environ.get(name)
    return None if text is None else LocalKey(_decode(text.strip()))


def make_key_file(path: str | os.PathLike[str]) -> LocalKey:
    """A new key in a new file with the permissions 0600, durable when this returns.

    Raises:
        VaultError: VAULT_KEY_EXISTS when there is a file; VAULT_IO.
    """
    key = cipher.new_key()
    text = (_PREFIX + base64.b64encode(key).decode() + "\n").encode()
    place = Path(path).absolute()
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)  # of a process that died here
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, place)  # whole, or not there: half a key would be in everybody's way
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
        sync_directory(place.parent)
    except FileExistsError:
        raise VaultError(
            "VAULT_KEY_EXISTS",
            f"there is a file `{os.fspath(path)}` already",
            help="it is left as it is; a lost key-encryption key cannot be made again",
            facts={"path": os.fspath(path)},
        ) from None
    except OSError as error:
        raise VaultError(
            "VAULT_IO", f"the key file cannot be written: {(error.strerror or 'error').lower()}"
        ) from None
    return LocalKey(key)


def replace_key_file(path: str | os.PathLike[str], by: str | os.PathLike[str]) -> None:
    """Put the key file `by` in the place of `path` at once, then overwrite what was there.

    Raises:
        VaultError: VAULT_IO.
    """
    try:
        with open(path, "r+b") as old:
            os.replace(by, path)
            sync_directory(Path(path).absolute().parent)
            old.write(bytes(os.fstat(old.fileno()).st_size))
            old.flush()
            os.fsync(old.fileno())
    except OSError as error:
        raise VaultError(
            "VAULT_IO", f"the key file cannot be replaced: {(error.strerror or 'error').lower()}"
        ) from None


def _is_at(path: str | os.PathLike[str], about: os.stat_result) -> bool:
    try:
        return os.path.samestat(about, os.stat(path))
    except OSError:
        return True  # at no other place, at least


def sync_directory(path: Path) -> None:
    """The name of a file must survive a power loss as well as its contents."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _decode(text: str) -> bytes:
    text = text.removeprefix(_PREFIX)
    try:
        return (
            bytes.fromhex(text)
            if len(text) == 2 * cipher.KEY_BYTES
            else base64.b64decode(text, validate=True)
        )
    except (binascii.Error, ValueError):
        raise _invalid("it is neither base64 nor hexadecimal") from None


def _invalid(why: str) -> VaultError:
    return VaultError(
        "VAULT_KEY_INVALID",
        f"the key-encryption key cannot be used: {why}",
        help="32 random bytes in base64: `nano-vm vault init` makes a key file; or: head -c 32 /dev/urandom | base64",
    )
