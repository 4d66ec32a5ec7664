"""The time a call may take, which a tool that is at work may prolong."""

from __future__ import annotations

import asyncio
from typing import Any

from nano_vm.runtime.tooling import ToolContext


class TimedOutError(Exception):
    """Our own time-out, as opposed to one that a tool raised."""


async def within(call: Any, timeout_ms: int, context: ToolContext | None) -> Any:
    """What the call gives, if it does so in time; every heartbeat of its context starts the time anew. Raises
    TimedOutError."""
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(timeout_ms / 1_000)
    if context is not None:

        def heartbeat() -> None:
            loop.call_soon_threadsafe(_extend, limit, loop, timeout_ms)

        context._on_heartbeat = heartbeat
    try:
        async with limit:
            return await call
    except TimeoutError as error:
        if limit.expired():
            if context is not None:
                context.cancelled = True  # a thread cannot be stopped, but it may ask
            raise TimedOutError from error.__cause__
        raise


def _extend(limit: asyncio.Timeout, loop: asyncio.AbstractEventLoop, timeout_ms: int) -> None:
    try:
        limit.reschedule(loop.time() + timeout_ms / 1_000)
    except RuntimeError:
        pass  # it has ended in the meantime
