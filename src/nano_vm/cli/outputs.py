"""Files that commands write: they are there completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable


def write_whole(path: str, parts: Iterable[bytes]) -> None:
    """Write a file. Whatever goes wrong before its end - in `parts`, too - leaves what was there before.

    What is no file, as a pipe or a device, is written to, and a link is followed: neither is replaced. A file that was
    there keeps its permissions.

    Raises:
        OSError: it cannot be written.
    """
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):
        with open(path, "wb") as file:
            file.writelines(parts)
        return
    target = os.path.realpath(path)
    # Not the file's own name and more: that may be as long as names can be.
    partial = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
            if mode is not None:
                os.chmod(partial, stat.S_IMODE(mode))
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        _sync_directory(os.path.dirname(target))
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def _sync_directory(directory: str) -> None:
    """The name has to survive a power loss as well as the contents. A directory that cannot be opened, or a file system
    that does not sync any, keeps nothing from being written: the file is whole either way."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode_of(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None
