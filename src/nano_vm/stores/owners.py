"""Which owners of runs are alive on this machine.

A store object that owns runs holds an exclusive `flock` on a file of its own in `<database>-owners/`. The
kernel releases it when the process ends, however it ends; so a lock that can be had is proof that its owner
is dead. The name of an owner says where it lives: `<host>-<boot>-<pid>-<random>`. A lock is believed when the
owner has our boot id (same kernel) or our host id (same machine, perhaps before a restart); of anybody else,
and where the file is missing, only the lease tells.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import threading
import weakref
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from nano_vm.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows: leases alone decide
    fcntl = None  # type: ignore[assignment]

_TAKE_ATTEMPTS = 100
_NAME = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{12}")


def _digest_of(path: str, fallback: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    return sha256((text or fallback).encode()).hexdigest()[:8]


def _host() -> str:
    return _digest_of("/etc/machine-id", socket.gethostname())


def _boot() -> str:
    return _digest_of("/proc/sys/kernel/random/boot_id", "no boot id: " + socket.gethostname())


class OwnerLock:
    """The life sign of one store object, and its view of the others'.

    Args:
        directory: where the lock files lie; made when the first run is owned.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._host, self._boot = _host(), _boot()
        self.name = f"{self._host}-{self._boot}-{os.getpid()}-{secrets.token_hex(6)}"
        self._held: int | None = None
        self._mutex = threading.Lock()

    @property
    def is_held(self) -> bool:
        return self._held is not None

    def hold(self) -> None:
        """Take the lock; a no-op when it is held.

        Raises:
            StoreError: STORE_READ_ONLY or STORE_IO when the file cannot be made.
        """
        if self._held is not None or fcntl is None:
            return
        try:
            with self._mutex:
                if self._held is None:
                    self._held = self._take()
        except OSError as error:
            code = "STORE_READ_ONLY" if isinstance(error, PermissionError) else "STORE_IO"
            raise StoreError(
                code,
                f"the lock of a run's owner cannot be made in `{self.directory}`: {error.strerror}",
                help="make the directory of the database writable",
            ) from error
        _HOLDERS.add(self)

    def _take(self) -> int:
        path = self.directory / self.name
        gone: OSError | None = None
        for _ in range(_TAKE_ATTEMPTS):
            try:
                self.directory.mkdir(exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except (FileNotFoundError, FileExistsError) as error:
                # The last owner before us has just removed the directory: between the two calls, or while `mkdir`
                # looked what there was.
                gone = error
                continue
            gone = None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A sweeper may have locked and removed the file between the two calls.
                if os.fstat(fd).st_ino == os.stat(path).st_ino:
                    return fd
            except (BlockingIOError, FileNotFoundError):
                pass
            os.close(fd)
        raise gone or BlockingIOError(errno.EAGAIN, "somebody else holds it")

    def let_go(self, *, remove: bool) -> None:
        """Give the lock up. The file stays, as proof of death, unless nothing is owned any more
        (`remove`)."""
        held, self._held = self._held, None
        if held is None:
            return
        _HOLDERS.discard(self)
        if remove:
            with contextlib.suppress(OSError):
                os.unlink(self.directory / self.name)
                self.directory.rmdir()
        os.close(held)

    def forget(self) -> None:
        """After a fork: the child does not own what the parent owns, and must not keep its lock alive."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def is_dead(self, owner: str) -> bool:
        """Whether `owner` provably lives no more. False when it lives, and when nobody can tell."""
        if owner == self.name or not self._is_near(owner) or fcntl is None:
            return False
        return self._try(self.directory / owner, remove=False)

    def sweep(self, in_use: Iterable[str]) -> None:
        """Remove the files of dead owners, but for those in use: their runs still need the proof."""
        if fcntl is None:
            return
        try:
            names = os.listdir(self.directory)
        except OSError:
            return
        keep = {self.name, *in_use}
        for name in names:
            if name not in keep and self._is_near(name):
                self._try(self.directory / name, remove=True)

    def _is_near(self, owner: str) -> bool:
        match = _NAME.fullmatch(owner)
        return match is not None and (match[1] == self._host or match[2] == self._boot)

    def _try(self, path: Path, *, remove: bool) -> bool:
        """Whether nobody holds the lock at `path`."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # Shared, so that two who ask at the same time do not take each other for the owner.
            fcntl.flock(fd, (fcntl.LOCK_EX if remove else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if remove:
                os.unlink(path)
            return True
        except OSError:
            return False
        finally:
            os.close(fd)


_HOLDERS: weakref.WeakSet[OwnerLock] = weakref.WeakSet()


def _after_fork() -> None:
    for holder in list(_HOLDERS):
        holder.forget()
    _HOLDERS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
