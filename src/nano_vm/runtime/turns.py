"""How many runs of one engine may be in progress at once: the others wait for their turn."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from nano_vm.errors import InputError
from nano_vm.runtime.driver import Run


class Turns:
    """At most `most` runs at a time, in each event loop. What a tool runs in the same engine is part of the run that
    calls it: that would wait for what it runs, and what it runs for its turn.

    Raises:
        InputError: USAGE for less than one.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise InputError(
                "USAGE",
                f"no number of runs is {most}",
                help="max_concurrent_runs is how many runs may be in progress, 0 for any number of them",
            )
        self._most = most
        self._free: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def drive(self, run: Run) -> None:
        """`Run.drive`, once there are fewer runs in progress than there may be."""
        if self in _ours.get():
            await run.drive()
            return
        free = self._free.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._most))
        try:
            await free.acquire()
        except BaseException:
            await run.give_up()
            raise
        token = _ours.set(_ours.get() | {self})
        try:
            await run.drive()
        finally:
            free.release()
            # A coroutine that nobody finished is closed in another context.
            with contextlib.suppress(ValueError):
                _ours.reset(token)


# Whose turn it is, of the runs that the current task is part of.
_ours: ContextVar[frozenset[Turns]] = ContextVar("nano_vm_turns", default=frozenset())
