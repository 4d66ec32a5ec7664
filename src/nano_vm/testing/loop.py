"""An event loop in which time is a number: it moves only when nothing else can happen.

A day of back-off passes in no time, and two runs of the same program with the same seed take the same turns.
What is handed to an executor is done on the spot. Other threads are the one thing it has no power over: while one is at
work, the loop waits for it, and two runs may differ in what happens meanwhile.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

START_MS = 1_800_000_000_000
_T = TypeVar("_T")


class _Selector(selectors.DefaultSelector):
    """Instead of sleeping, it says how long the loop would have slept."""

    def __init__(self, advance: Callable[[float | None], None], working: Callable[[], bool]) -> None:
        super().__init__()
        self._advance = advance
        self._working = working

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self._working():
            return super().select(0.001)  # a thread is at work: it answers through the loop's own socket
        # One that has just stopped may have answered since we looked.
        ready = super().select(0)
        if ready:
            return ready
        self._advance(timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """A loop whose `time()` is virtual.

    `working` says whether a thread is doing something for the loop. A loop that has nothing to run, nothing to wait
    for and no thread at work is stuck for good: that is an error, never a hang.
    """

    def __init__(self, working: Callable[[], bool] = lambda: False) -> None:
        self._virtual = 0.0
        super().__init__(_Selector(self._advance, working))

    def time(self) -> float:
        return self._virtual

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call it here and now: a thread would finish whenever it likes."""
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def _advance(self, timeout: float | None) -> None:
        if timeout is None:
            raise RuntimeError("the simulated loop has nothing to do and nothing to wait for")
        self._virtual += max(timeout, 0.000_001)


class SimulatedClock:
    """The `Clock` port on top of a `SimulatedLoop`: wall-clock time that can jump (`skew_ms`). `latest_ms` is the
    latest that it has shown."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.skew_ms = 0
        self.latest_ms = 0

    def now_ms(self) -> int:
        now_ms = START_MS + int(self._loop.time() * 1_000) + self.skew_ms
        self.latest_ms = max(self.latest_ms, now_ms)
        return now_ms

    async def sleep_until(self, at_ms: int) -> None:
        while (left := at_ms - self.now_ms()) > 0:
            # Naps, as with a real clock: one that jumps must not strand a timer.
            await asyncio.sleep(min(left, 30_000) / 1_000)


def run(main: Coroutine[Any, Any, _T], loop: SimulatedLoop) -> _T:
    """Run `main` to its end in `loop` and close it; tasks left over are cancelled."""
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            loop.close()
