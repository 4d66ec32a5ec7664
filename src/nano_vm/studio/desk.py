"""Acting: what somebody decides in the studio is carried out by an engine of its own, in a thread of its own.

A page never waits for a run: it hands a job in, and sees what becomes of it in the store, as every other process does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from nano_vm.errors import InputError, NanoVMError
from nano_vm.runtime.engine import Engine

JOBS_KEPT = 50
GRACE_SECONDS = 20.0


class Acting(Protocol):
    """An engine with tools, model and keys: the command line's session."""

    engine: Engine

    def require_run(self, run_id: str, *, only_compensations: bool = False) -> None:
        """Raises InputError TOOLS_MISSING, MODEL_MISSING when it could not drive the run on."""


class Job(msgspec.Struct):
    """Something that was asked for. `state` is "working", "left", "done" or "failed"; `result` is a run's id. What was
    left for a worker has a `mail` id."""

    number: int
    what: str
    run_id: str
    at: float
    state: str = "working"
    result: str | None = None
    mail: str | None = None
    error: NanoVMError | None = None
    unexpected: str | None = None


class Desk:
    """Carries out jobs.

    Args:
        open_acting: opens the session, when the first job comes in.
        principal: who acts, as it is journaled.
    """

    def __init__(
        self, open_acting: Callable[[], AbstractContextManager[Acting]], principal: dict[str, Any] | None
    ) -> None:
        self.principal = principal
        self._open = open_acting
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Acting | None = None
        self._thread: threading.Thread | None = None
        self._futures: set[concurrent.futures.Future[None]] = set()
        self._stack = contextlib.ExitStack()

    def submit(
        self,
        what: str,
        run_id: str,
        operation: Callable[[Engine], Awaitable[Any]],
        *,
        leave: Callable[[Engine], Awaitable[str]] | None = None,
        only_compensations: bool = False,
    ) -> Job:
        """Have something done. What comes of it is in the job, and in the store.

        Args:
            operation: gives a trace, or None.
            leave: does the same without driving the run on, where its tools or its model are not at hand; gives the
                mail's id.
            only_compensations: the run is ended by it.
        """
        with self._lock:
            self._count += 1
            job = Job(self._count, what, run_id, time.time())
            self._jobs.append(job)
            del self._jobs[:-JOBS_KEPT]
            loop = self._started()
            future = asyncio.run_coroutine_threadsafe(
                self._carry_out(job, operation, leave, only_compensations), loop
            )
            self._futures.add(future)
            future.add_done_callback(self._futures.discard)
        return job

    def jobs(self, run_id: str | None = None) -> list[Job]:
        """The newest jobs first."""
        with self._lock:
            return [job for job in reversed(self._jobs) if run_id in (None, job.run_id, job.result)]

    def wait(self, seconds: float = 30.0) -> list[Job]:
        """Wait until nothing is under way, and return all jobs, the newest first. For tests and scripts."""
        with self._lock:
            futures = list(self._futures)
        concurrent.futures.wait(futures, seconds)
        return self.jobs()

    def close(self) -> None:
        """Let what is under way finish, for a while; everything is journaled, and what is not done is recovered."""
        with self._lock:
            loop, thread, session = self._loop, self._thread, self._session
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        if session is not None:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(session.engine.close(GRACE_SECONDS), loop).result(
                    GRACE_SECONDS + 5
                )
        loop.call_soon_threadsafe(loop.stop)
        thread.join(GRACE_SECONDS)

    # --- inside -----------------------------------------------------------------------------------------------

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(loop,), name="nano-vm-desk", daemon=True)
            self._thread.start()
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        with self._stack:
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            self._session = None
        loop.close()

    async def _carry_out(
        self,
        job: Job,
        operation: Callable[[Engine], Awaitable[Any]],
        leave: Callable[[Engine], Awaitable[str]] | None,
        only_compensations: bool,
    ) -> None:
        try:
            if self._session is None:
                self._session = self._stack.enter_context(self._open())
            try:
                self._session.require_run(job.run_id, only_compensations=only_compensations)
            except InputError as error:
                if leave is None or error.code not in ("TOOLS_MISSING", "MODEL_MISSING"):
                    raise
                job.mail = await leave(self._session.engine)
                job.result, job.state = job.run_id, "left"
                return
            trace = await operation(self._session.engine)
            job.result = getattr(trace, "trace_id", None)
            job.state = "done"
        except NanoVMError as error:
            job.error, job.state = error, "failed"
        except asyncio.CancelledError:
            job.unexpected, job.state = "the studio was stopped", "failed"
            raise
        except Exception as error:
            job.unexpected, job.state = type(error).__name__, "failed"
