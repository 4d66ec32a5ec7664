"""Runs that live in memory and that nobody has seen yet.

Nobody can before the loop gives way to others or a tool asks the store, so until then they need not be in it: most
are put there once, when they have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class _Store(Protocol):
    def expect(self, run_id: str, appear: Callable[[], None]) -> None: ...

    def expect_no_more(self, run_id: str) -> None: ...

    def await_expected(self) -> None: ...


class Appearances:
    """The runs of one engine that have still to appear in its store."""

    __slots__ = ("_due", "_store", "expect_no_more")

    def __init__(self, store: Any) -> None:
        self._store: _Store = store
        self._due: asyncio.AbstractEventLoop | None = None  # the loop that calls us when it turns
        self.expect_no_more = store.expect_no_more

    def expect(self, run_id: str, appear: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Call `appear` when the loop turns, or as soon as somebody asks, unless it is not expected any more."""
        self._store.expect(run_id, appear)
        if self._due is not loop:
            self._due = loop
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._due is loop:
            self._due = None
        self._store.await_expected()
