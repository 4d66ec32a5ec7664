"""Running the engine for a command: signals end it gracefully, timers are waited for, runs are taken up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from nano_vm.cli import exits
from nano_vm.cli.session import Session
from nano_vm.errors import NanoVMError
from nano_vm.kernel.state import RunStatus

if TYPE_CHECKING:
    from nano_vm.journal.trace import Trace
    from nano_vm.runtime.engine import Progress

T = TypeVar("T")
Listen = Callable[["Progress"], None]
GRACE_SECONDS = 30.0
SAME_SIGNAL_SECONDS = 1.0  # SIGTERMs closer together than this are one
POLL_SECONDS = 0.05


class Interrupted(Exception):
    """A signal ended the command; runs that are not done can be recovered."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.exit_code = code


def supervise(session: Session, operation: Callable[[], Awaitable[T]]) -> T:
    """Run an operation to its end and close the engine. On the first SIGINT or SIGTERM the engine is closed: calls
    under way finish (at most `GRACE_SECONDS`), everything is journaled, runs stay recoverable. A second signal ends the
    process at once (a second SIGTERM only when it is not the same one, sent again within a second).

    Raises:
        Interrupted: after a signal, unless the operation was done by then.
    """
    return asyncio.run(_supervised(session, operation))


async def _supervised(session: Session, operation: Callable[[], Awaitable[T]]) -> T:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def restore() -> None:
        """From here on a signal has its usual effect."""
        for each in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(each)

    def tell(number: int) -> None:
        if told.done():
            return
        told.set_result(number)
        session.engine.draining = True  # no step begins from here on, in whatever thread
        # `timeout` and process managers send SIGTERM to a process, and then to its group. A person means it.
        if number == signal.SIGTERM:
            loop.call_later(SAME_SIGNAL_SECONDS, restore)
        else:
            restore()
        if not session.args.quiet:
            sys.stderr.write("stopping: calls under way may finish; once more ends them at once\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        # Not in a thread other than the main one, nor on every platform.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, tell, number)
    task = asyncio.ensure_future(_wrap(operation))
    try:
        await asyncio.wait((task, told), return_when=asyncio.FIRST_COMPLETED)
        if told.done() and not task.done():
            await session.engine.close(GRACE_SECONDS)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, NanoVMError):
                await task
            code = exits.INTERRUPTED if told.result() == signal.SIGINT else exits.TERMINATED
            raise Interrupted(code)
        return await task
    finally:
        restore()
        if told.done():
            # What is left is to leave. The same signal may still be on its way, and would hide how it went.
            with contextlib.suppress(ValueError):
                signal.signal(told.result(), signal.SIG_IGN)


async def _wrap(operation: Callable[[], Awaitable[T]]) -> T:
    return await operation()


def wakes_at_ms(trace: Trace) -> int:
    """When a suspended run's next timer is due; 0 when it waits for no timer alone, and so for somebody."""
    if trace.status is not RunStatus.SUSPENDED:
        return 0
    return min((wait["due_ms"] for wait in flat_waits(trace) if wait["kind"] == "timer"), default=0)


def flat_waits(trace: Trace) -> list[dict[str, Any]]:
    """The waits of a run and of its children."""
    from nano_vm.runtime.ways import places

    return [place.named for place in places(trace.trace_id, [wait.to_dict() for wait in trace.waiting])]


async def wait_through(session: Session, trace: Trace) -> Trace:
    """Sleep through timers until the run ends or waits for a person or an event."""
    while due := wakes_at_ms(trace):
        await session.engine.clock.sleep_until(due)
        taken = await session.engine.take_up(trace.trace_id)
        if taken is None:  # another worker was quicker: see what it makes of the run
            await asyncio.sleep(POLL_SECONDS)
            taken = session.engine.trace(trace.trace_id)
            while taken.status is RunStatus.RUNNING:
                await asyncio.sleep(POLL_SECONDS)
                taken = session.engine.trace(trace.trace_id)
        trace = taken
    return trace
