"""The real clock and the real entropy."""

from __future__ import annotations

import asyncio
import os
import struct
import time
import weakref
from collections.abc import Iterator
from itertools import islice


class SystemClock:
    """Wall-clock time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep_until(self, at_ms: int) -> None:
        # Short naps: a wall clock that is set back or forth must not strand a timer.
        while (left := at_ms - self.now_ms()) > 0:
            await asyncio.sleep(min(left / 1_000, 30.0))


class SystemEntropy:
    """`os.urandom`, drawn in batches that grow with use: one system call serves up to 256 salts. A forked child draws
    its own."""

    __slots__ = ("__weakref__", "_draws", "_salts")

    def __init__(self) -> None:
        self._salts = _NONE
        self._draws = _DRAWS_FIRST
        _pools.add(self)

    # Threads may draw at once: what is taken from an iterator is taken in one piece, and it gives nothing away twice.
    # Where two of them have drawn anew, the salts of one are left unused.

    def salt(self) -> bytes:
        salt = next(self._salts, None)
        if salt is None:
            self._salts = drawn = self._drawn()
            salt = next(drawn)
        return salt

    def salts(self, count: int) -> list[bytes]:
        """As many salts: what `count` calls of `salt` give, for less."""
        taken = list(islice(self._salts, count))
        while len(taken) < count:
            drawn = self._drawn()
            taken += islice(drawn, count - len(taken))
            self._salts = drawn
        return taken

    def _drawn(self) -> Iterator[bytes]:
        draws = self._draws
        self._draws = min(4 * draws, _DRAWS_MAX)
        return iter(_SPLIT[draws](os.urandom(16 * draws)))

    def draw(self) -> int:
        return int.from_bytes(self.salt()[:8], "big") % 1_000_000


_DRAWS_FIRST = 4
_DRAWS_MAX = 256
_SPLIT = {draws: struct.Struct("16s" * draws).unpack for draws in (4, 16, 64, 256)}
_NONE: Iterator[bytes] = iter(())
_pools: weakref.WeakSet[SystemEntropy] = weakref.WeakSet()


def _forked() -> None:
    """A child must not use up its parent's pool again."""
    for entropy in _pools:
        entropy._salts = _NONE


os.register_at_fork(after_in_child=_forked)
