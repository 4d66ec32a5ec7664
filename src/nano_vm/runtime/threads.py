"""Threads for blocking tools.

A hung tool must not stall other runs, nor keep the process from ending. The standard executor does both: its workers
are bounded, and the interpreter waits for them at exit. Here a call takes an idle daemon thread or a new one.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

THREADS_MAX = 512


class ThreadsExhaustedError(RuntimeError):
    """All `THREADS_MAX` threads are taken by tools that have not returned."""


class ToolThreads:
    """Runs blocking calls, each in a thread of its own while it lasts. Idle threads end when this is closed, and when
    nobody has it any more."""

    def __init__(self) -> None:
        self._pool: _Pool | None = None

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` in a thread, in a copy of the current context, and wait for its result.

        Raises: what `function` raises, and ThreadsExhaustedError.
        """
        if self._pool is None:
            self._pool = _Pool()
            weakref.finalize(self, self._pool.close).atexit = False
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._pool.submit(partial(_do, loop, future, contextvars.copy_context(), function))
        try:
            return await future
        finally:
            del future  # the error in it holds this frame

    def close(self) -> None:
        """Let idle threads end; busy ones end with their call or with the process."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


class _Pool:
    """The threads of one `ToolThreads`, which know this and not their owner: they would keep it for good."""

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[Callable[[], None] | None]] = []
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._idle:
                self._idle.pop().put(job)
                return
            if self._count >= THREADS_MAX:
                raise ThreadsExhaustedError(f"{THREADS_MAX} tool threads are busy")
            self._count += 1
        inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        inbox.put(job)
        threading.Thread(target=self._work, args=(inbox,), daemon=True, name="nano-vm-tool").start()

    def _work(self, inbox: SimpleQueue[Callable[[], None] | None]) -> None:
        while (job := inbox.get()) is not None:
            job()
            del job
            with self._lock:
                if self._closed:
                    return
                self._idle.append(inbox)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)


def _do(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    context: contextvars.Context,
    function: Callable[[], Any],
) -> None:
    try:
        result = context.run(function)
    except BaseException as error:  # handed to the waiting task
        _post(loop, future, None, error)
    else:
        _post(loop, future, result, None)
    finally:
        del future  # as above


def _post(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], result: Any, error: BaseException | None
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):
            future.set_exception(RuntimeError(f"the tool raised {error!r}"))
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        pass  # the loop is closed: nobody waits any more
