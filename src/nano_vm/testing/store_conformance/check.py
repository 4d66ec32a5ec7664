"""How a check of one store, or of two on the same data, becomes a test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nano_vm.journal.port import JournalStore


class Conformance:
    """What every part of the suite stands on."""

    def open_store(self, place: Path) -> JournalStore:
        """A store on the data in the directory `place`."""
        raise NotImplementedError


Check = Callable[..., Awaitable[None]]


def on_one_store(check: Check) -> Callable[[Any, Path], None]:
    """Make an async check of a store a test."""

    def test(self: Conformance, tmp_path: Path) -> None:
        with contextlib.closing(self.open_store(tmp_path)) as store:
            asyncio.run(_bounded(check(self, store)))

    return _named(test, check)


def on_two_stores(check: Check) -> Callable[[Any, Path], None]:
    """Make an async check of two stores on the same data a test."""

    def test(self: Conformance, tmp_path: Path) -> None:
        with contextlib.ExitStack() as stack:
            stores = [stack.enter_context(contextlib.closing(self.open_store(tmp_path))) for _ in range(2)]
            asyncio.run(_bounded(check(self, *stores)))

    return _named(test, check)


async def _bounded(check: Awaitable[None]) -> None:
    # Not a promise about speed: a store that never answers should fail its test, not hang it.
    async with asyncio.timeout(60):
        await check


def _named(test: Callable[[Any, Path], None], check: Check) -> Callable[[Any, Path], None]:
    test.__name__, test.__qualname__, test.__doc__ = check.__name__, check.__qualname__, check.__doc__
    return test
