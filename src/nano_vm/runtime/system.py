"""The real clock and the real entropy."""

from __future__ import annotations

import asyncio
import os
import time


class SystemClock:
    """Wall-clock time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep_until(self, at_ms: int) -> None:
        # Short naps: a wall clock that is set back or forth must not strand a timer.
        while (left := at_ms - self.now_ms()) > 0:
            await asyncio.sleep(min(left / 1_000, 30.0))


class SystemEntropy:
    """`os.urandom`, drawn in batches: one system call serves 256 salts. A forked child draws its own."""

    __slots__ = ("_forks", "_place", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._place = _POOL_BYTES
        self._forks = _forks

    def salt(self) -> bytes:
        place = self._place
        if place == _POOL_BYTES or self._forks != _forks:
            self._pool = os.urandom(_POOL_BYTES)
            self._forks = _forks
            place = 0
        self._place = end = place + 16
        return self._pool[place:end]

    def draw(self) -> int:
        return int.from_bytes(self.salt()[:8], "big") % 1_000_000


_POOL_BYTES = 4096
_forks = 0  # how often this process is a fork: a child must not use up its parent's pool again


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)
