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
    """`os.urandom`, drawn in batches: one system call serves 256 salts. Safe across `fork`."""

    __slots__ = ("_pid", "_place", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._place = 4096
        self._pid = os.getpid()

    def salt(self) -> bytes:
        place = self._place
        if place >= 4096 or self._pid != os.getpid():
            self._pool = os.urandom(4096)
            self._pid = os.getpid()
            place = 0
        self._place = place + 16
        return self._pool[place : place + 16]

    def draw(self) -> int:
        return int.from_bytes(self.salt()[:8], "big") % 1_000_000
