"""What is on its way into a commit, and how whoever waits for it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import msgspec

from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.plain import Success
from nano_vm.journal.port import RunRecord, RunUpdate

NOBODY = -1  # a fence that no caller holds


class Work(msgspec.Struct, eq=False):
    """One call of `create`, `append` or `annex` on its way into a commit. Whoever commits sets `error`.

    A `plain` one is a success that is sealed when it is written, together with those of other runs: `packed` is its
    place and its row then.
    """

    run_id: str
    entries: Sequence[Entry] = ()
    fence: int = NOBODY
    update: RunUpdate | None = None
    record: RunRecord | None = None
    build: Callable[[int, str], Sequence[Entry]] | None = None
    plain: tuple[Chain, Success, bytes] | None = None
    packed: tuple[int, bytearray, bytearray, bytearray] | None = None
    future: asyncio.Future[None] | None = None
    error: BaseException | None = None


def tell(works: Sequence[Work]) -> None:
    """Finish the futures of works from any thread, each in its own loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Work]] = {}
    for work in works:
        if work.future is not None:
            by_loop.setdefault(work.future.get_loop(), []).append(work)
    for loop, told in by_loop.items():
        with contextlib.suppress(RuntimeError):  # it is closed: nobody waits there any more
            loop.call_soon_threadsafe(finish, told)


def finish(works: Sequence[Work]) -> None:
    """Finish the futures of works in the loop they came from."""
    for work in works:
        future = work.future
        if future is not None and not future.done():
            if work.error is None:
                future.set_result(None)
            else:
                future.set_exception(work.error)
