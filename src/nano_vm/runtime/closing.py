"""How an engine is shut down: what it drives is let go, and what was asked of it is told so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nano_vm.errors import RuntimeFault, StoreError

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

_Ask = TypeVar("_Ask", bound=Callable[..., Coroutine[Any, Any, Any]])


def shutting_down() -> RuntimeFault:
    """SHUTTING_DOWN: another engine may be asked."""
    return RuntimeFault("SHUTTING_DOWN", "the engine has been closed", help="ask another one")


def in_flight(method: _Ask) -> _Ask:
    """A call that finds the store closed because its engine was closed meanwhile says so: SHUTTING_DOWN, which another
    engine may be asked after, and not the STORE_CLOSED of somebody who has closed a store too early."""

    @wraps(method)
    async def asked(self: Engine, *args: Any, **options: Any) -> Any:
        try:
            return await method(self, *args, **options)
        except StoreError as error:
            if error.code != "STORE_CLOSED" or not self.draining:
                raise
            raise shutting_down() from error

    return cast(_Ask, asked)


async def drain(engine: Engine, grace_seconds: float) -> None:
    """See `Engine.drain`."""
    engine.draining = True
    await asyncio.gather(*(other.drain(grace_seconds) for other in engine.companions))
    waiting: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    for run in list(engine.live.values()):
        if run.loop is loop:
            waiting.append(loop.create_task(run.wait_until_settled()))
            run.wake()
        elif run.loop is not None and not run.loop.is_closed():
            run.loop.call_soon_threadsafe(run.wake)
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=grace_seconds)
        for task in late:
            task.cancel()
    engine.keeper.close()
    engine.threads.close()


__all__ = ["drain", "in_flight", "shutting_down"]
