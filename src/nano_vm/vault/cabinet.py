"""Where the vault keeps what it keeps: a directory with one small file per thing, or the memory of this process.

A file is written beside its place and moved there, so that it is whole or not there. Destroying overwrites the
bytes, syncs them, removes the name and syncs the directory. (A file system or disk that writes elsewhere than where it
was told - copy-on-write, flash - may keep the old bytes for a while. They are data keys wrapped by the
key-encryption key; rotating that one and destroying the old one makes them worthless.)
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from nano_vm.errors import VaultError
from nano_vm.vault.kek import check_private, sync_directory

try:
    import fcntl
except ImportError:  # Windows: one process at a time is the operator's business there
    fcntl = None  # type: ignore[assignment]

FILE_BYTES_MAX = 1024 * 1024
_NAME = re.compile(r"[a-z0-9]{1,64}\Z").match
DRAWERS = ("keys", "secrets", "subjects", "holds", "marks")


class Cabinet(Protocol):
    """Named pieces of data in drawers, and one list of lines. All calls raise VaultError VAULT_IO."""

    @property
    def volatile(self) -> bool:
        """Whether all of it is gone with the process."""

    def read(self, drawer: str, name: str) -> bytes | None: ...

    def has(self, drawer: str, name: str) -> bool: ...

    def write(self, drawer: str, name: str, data: bytes) -> None:
        """Durably, in place of what was there."""

    def destroy(self, drawer: str, name: str) -> bool:
        """Overwrite and remove; False when it was not there."""

    def names(self, drawer: str) -> list[str]: ...

    def lines(self) -> list[bytes]:
        """The list of erasures, oldest first; a last line that was not written to its end is left out."""

    def add_line(self, line: bytes) -> None:
        """Durably."""

    def stamp(self) -> tuple[int, int]:
        """Changes whenever a line has been added."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else changes anything inside; may be entered again by the same thread."""


class MemoryCabinet:
    """A cabinet for stores that live in memory, and for tests."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], bytes] = {}
        self._lines: list[bytes] = []
        self._mutex = threading.RLock()

    @property
    def volatile(self) -> bool:
        return True

    def read(self, drawer: str, name: str) -> bytes | None:
        return self._held.get((drawer, name))

    def has(self, drawer: str, name: str) -> bool:
        return (drawer, name) in self._held

    def write(self, drawer: str, name: str, data: bytes) -> None:
        self._held[drawer, name] = data

    def destroy(self, drawer: str, name: str) -> bool:
        return self._held.pop((drawer, name), None) is not None

    def names(self, drawer: str) -> list[str]:
        return sorted(name for held, name in self._held if held == drawer)

    def lines(self) -> list[bytes]:
        return list(self._lines)

    def add_line(self, line: bytes) -> None:
        self._lines.append(line)

    def stamp(self) -> tuple[int, int]:
        return len(self._lines), 0

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return _held(self._mutex)


@contextlib.contextmanager
def _held(mutex: threading.RLock) -> Iterator[None]:
    with mutex:
        yield


class DirectoryCabinet:
    """A directory of its own, `0700`, with files of `0600`.

    Args:
        path: made when it is missing, in a directory that exists.

    Raises:
        VaultError: VAULT_KEY_EXPOSED when others may enter it; VAULT_IO.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self._mutex = threading.RLock()
        self._depth = 0
        self._lock_file: int | None = None
        with _io():
            self.path.mkdir(mode=0o700, exist_ok=True)
            check_private(str(self.path), self.path.stat())
            for drawer in DRAWERS:
                (self.path / drawer).mkdir(mode=0o700, exist_ok=True)
        self._list = self.path / "erasures.jsonl"

    @property
    def volatile(self) -> bool:
        return False

    def read(self, drawer: str, name: str) -> bytes | None:
        place = self._place(drawer, name)
        with _io():
            data = _contents(place)
            if data is not None and b"\0" in data:
                # Somebody else is overwriting it, having put another in its place or about to remove it.
                with self.lock():
                    data = _contents(place)
            # Nothing but zeros is left of what somebody was about to remove who died over it: it is destroyed.
            return data if data is None or data.strip(b"\0") else None

    def has(self, drawer: str, name: str) -> bool:
        with _io():
            return os.path.exists(self._place(drawer, name))

    def write(self, drawer: str, name: str, data: bytes) -> None:
        place = self._place(drawer, name)
        with _io(), self.lock():
            beside = place.with_name(f".{place.name}.new")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)  # of a process that died here
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # What was there is wrapped key material too: once the new file stands, the old bytes are overwritten.
            old = _opened(place)
            os.replace(beside, place)
            sync_directory(place.parent)
            if old is not None:
                _fill_with_zeros(old)

    def destroy(self, drawer: str, name: str) -> bool:
        place = self._place(drawer, name)
        with _io(), self.lock():
            found = False
            for leftover in (place, place.with_name(f".{place.name}.new")):
                opened = _opened(leftover)
                if opened is not None:
                    found = True
                    _fill_with_zeros(opened)
                    os.unlink(leftover)
            sync_directory(place.parent)
            return found

    def names(self, drawer: str) -> list[str]:
        with _io():
            return sorted(name for name in os.listdir(self.path / drawer) if not name.startswith("."))

    def lines(self) -> list[bytes]:
        with _io():
            try:
                data = self._list.read_bytes()
            except FileNotFoundError:
                return []
        return data.split(b"\n")[:-1]

    def add_line(self, line: bytes) -> None:
        with _io(), self.lock():
            descriptor = os.open(self._list, os.O_RDWR | os.O_CREAT, 0o600)
            with open(descriptor, "r+b") as file:
                data = file.read()
                # A line that was cut by a crash was never promised to anybody.
                file.seek(data.rfind(b"\n") + 1)
                file.truncate()
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self.path)

    def stamp(self) -> tuple[int, int]:
        try:
            about = os.stat(self._list)
        except OSError:
            return 0, 0
        return about.st_size, about.st_mtime_ns

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with self._mutex:
            if self._depth == 0 and fcntl is not None:
                with _io():
                    self._lock_file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
                    fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._lock_file is not None:
                    os.close(self._lock_file)
                    self._lock_file = None

    def _place(self, drawer: str, name: str) -> Path:
        if _NAME(name) is None:  # read from a file that was changed: the vault makes no such name
            raise VaultError("VAULT_DAMAGED", "a name in the vault was changed", facts={"name": name})
        return self.path / drawer / name


def _contents(place: Path) -> bytes | None:
    try:
        with open(place, "rb") as file:
            return file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return None


def _opened(place: Path) -> int | None:
    try:
        return os.open(place, os.O_WRONLY)
    except FileNotFoundError:
        return None


def _fill_with_zeros(descriptor: int) -> None:
    try:
        os.write(descriptor, bytes(os.fstat(descriptor).st_size))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _io() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VaultError(
            "VAULT_IO",
            f"the vault cannot be read or written: {(error.strerror or type(error).__name__).lower()}",
            help="look at the directory's permissions and the disk's free space",
        ) from None
