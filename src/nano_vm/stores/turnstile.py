"""Who may have a tool's transaction, and when: one at a time, in order, and nobody who waits for itself."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from nano_vm.errors import StoreError

T = TypeVar("T")

inside_tool: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar(
    "nano_vm_inside_tool", default=frozenset()
)


class Turnstile:
    """Lets one tool's transaction in at a time, in order, from any number of event loops."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait for our turn.

        Raises:
            StoreError: STORE_LOCKED in the context of a transaction that is inside: it would wait for itself.
        """
        refuse_inside(self)
        with self._mutex:
            if not self._busy:
                self._busy = True
                return
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with self._mutex:
                was_waiting = turn in self._waiting
                if was_waiting:
                    self._waiting.remove(turn)
            if not was_waiting:
                self.leave()  # our turn had come already: pass it on
            raise

    def leave(self) -> None:
        with self._mutex:
            while self._waiting:
                turn = self._waiting.popleft()
                loop = turn.get_loop()
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_let_in, turn)
                    return
            self._busy = False

    def mark_inside(self) -> contextvars.Token[frozenset[int]]:
        """Remember in this context, and in tasks started from it, that a transaction is open."""
        return inside_tool.set(inside_tool.get() | {id(self)})


def refuse_inside(turnstile: Turnstile) -> None:
    """Raises StoreError STORE_LOCKED in the context of an open transaction of this store."""
    if id(turnstile) in inside_tool.get():
        raise StoreError(
            "STORE_LOCKED",
            "a transactional tool cannot wait for its own store",
            help="write through the transaction it was given, and start runs outside of it",
        )


def _let_in(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


async def begun_in_thread(begin: Callable[[], T], give_back: Callable[[T], None]) -> T:
    """`begin()` in a thread, which cannot be stopped: who is cancelled meanwhile waits for it, and gives back what it
    has begun. Nobody else may come through the turnstile before."""
    beginning = asyncio.get_running_loop().run_in_executor(None, begin)
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        while not beginning.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({beginning})
        if beginning.exception() is None:
            give_back(beginning.result())
        raise
