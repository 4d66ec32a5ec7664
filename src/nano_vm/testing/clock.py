"""A clock that moves only when nothing else can happen, so that hours of back-off pass in no time."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

START_MS = 1_800_000_000_000
_QUIET_ROUNDS = 3  # turns of the loop without anything to run before time moves


class VirtualClock:
    """Implements the `Clock` port.

    Args:
        now_ms: where time begins, epoch milliseconds.
        auto: whether time jumps to the next sleeper as soon as the event loop has nothing else to do. Work in
            threads counts as nothing: give blocking tools no reason to race against a timer. Without it only
            `advance` moves time.
    """

    def __init__(self, now_ms: int = START_MS, *, auto: bool = True) -> None:
        self._now_ms = now_ms
        self._auto = auto
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = count()
        self._pumps: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self.slept: list[int] = []  # every time that somebody slept until

    def now_ms(self) -> int:
        return self._now_ms

    async def sleep_until(self, at_ms: int) -> None:
        """Return once the clock shows `at_ms`."""
        self.slept.append(at_ms)
        if at_ms <= self._now_ms:
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._sleepers, (at_ms, next(self._order), turn))
        if self._auto and (loop not in self._pumps or self._pumps[loop].done()):
            self._pumps[loop] = loop.create_task(self._pump(loop))
        await turn

    def advance(self, milliseconds: int) -> None:
        """Move time forward and wake whoever is due, in the order of their times."""
        self._move(self._now_ms + milliseconds)

    def _move(self, at_ms: int) -> None:
        self._now_ms = max(self._now_ms, at_ms)
        while self._sleepers and self._sleepers[0][0] <= self._now_ms:
            _, _, turn = heapq.heappop(self._sleepers)
            if not turn.done() and not turn.get_loop().is_closed():
                turn.set_result(None)

    async def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        quiet = 0
        while True:
            await asyncio.sleep(0)
            self._sleepers = [sleeper for sleeper in self._sleepers if not sleeper[2].done()]
            heapq.heapify(self._sleepers)
            mine = [at_ms for at_ms, _, turn in self._sleepers if turn.get_loop() is loop]
            if not mine:
                del self._pumps[loop]
                return
            ready = getattr(loop, "_ready", ())
            quiet = 0 if ready else quiet + 1
            if quiet >= _QUIET_ROUNDS:
                quiet = 0
                self._move(min(mine))
