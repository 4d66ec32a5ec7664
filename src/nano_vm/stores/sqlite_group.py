"""Group commit: what becomes ready in one tick of the event loop is committed together.

The first append of a tick asks the loop to call `_flush` after the callbacks that are ready already; by then
every run that could go on has added its own. One commit, one fsync, then all of them are told. While a commit
waits - for another process, or for a tool's transaction - the next group gathers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from nano_vm.journal.entry import Chain
from nano_vm.journal.plain import Success
from nano_vm.stores import rules
from nano_vm.stores.sqlite_writer import Writer
from nano_vm.stores.work import Work, finish, tell

# How long the event loop may be held up by a lock of somebody else. After that a thread waits in its place.
INLINE_PATIENCE_MS = 3
_LOOK_AGAIN_S = 0.01


class GroupCommit:
    """The queue in front of a `Writer`.

    Calls without a running event loop are committed at once. Calls from a second event loop (in another
    thread) commit what the first has gathered and take its place.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._mutex = threading.Lock()  # guards the four fields below; never held during a commit
        self._pending: list[Work] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._job: Future[None] | None = None  # a group waits in the thread
        self._executor: ThreadPoolExecutor | None = None
        self.lone = False  # the last group was a single work
        self.alone = False  # one run is being driven and no other is ready: there is no group to wait for

    def submit(
        self, work: Work, loop: asyncio.AbstractEventLoop | None = None
    ) -> asyncio.Future[None] | None:
        """Commit the work together with others: None when that has happened, else a future. `loop`: the one that runs
        here, where that is known: asking for it takes a system call before Python 3.12."""
        if loop is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self.drain()
                self._commit_now((work,))
                if work.error is not None:
                    raise work.error from None
                return None
        if self.alone and loop is self._loop and self._commit_alone(work):
            if work.error is not None:
                raise work.error from None
            return None
        future = work.future = loop.create_future()
        if loop is not self._loop:
            self.drain()
        with self._mutex:
            if loop is not self._loop:
                self._loop, self._scheduled = loop, False
            self._pending.append(work)
            if self._scheduled or self._job is not None:
                return future
            self._scheduled = True
        loop.call_soon(self._flush, loop)
        return future

    def append_alone(
        self,
        run_id: str,
        fence: int,
        chain: Chain,
        success: Success,
        salt: bytes,
        loop: asyncio.AbstractEventLoop | None,
    ) -> bool:
        """Seal a success at the end of a chain and commit it, where one run is being driven, in this `loop`. False, and
        nothing is done, where that has to go by way of `submit`.

        Raises:
            StoreError: it could not be written.
        """
        if not self.alone or loop is None or loop is not self._loop or not self._takes_turn():
            return False
        try:
            return self._writer.try_append_plain(run_id, fence, chain, success, salt)
        finally:
            self._writer.lock.release()

    def drain(self) -> None:
        """Commit whatever has been submitted, in this thread, so that what follows comes after it.

        Raises:
            StoreError: STORE_LOCKED in the thread of an open tool's transaction, which must end first.
        """
        while True:
            with self._mutex:
                job, waiting = self._job, bool(self._pending)
            if job is not None:
                self._wait_for(job)
                with self._mutex:
                    if self._job is job:
                        self._job = None
                continue
            if not waiting:
                return
            works: list[Work] = []
            try:
                with self._writer.lock:
                    # Refused before anything is taken: what was told to be durable has to be.
                    self._writer.wait_for_tool()
                    with self._mutex:
                        if self._job is None:
                            works = self._take()
                    if works:
                        self._writer.try_commit(works, self._writer.busy_timeout_ms)
            except BaseException:
                _interrupted(works)
                raise
            finally:
                tell(works)

    def _wait_for(self, job: Future[None]) -> None:
        """Wait for the group in the thread. That waits for a tool's transaction, which may open at any moment: when it
        is one that only this thread can end, waiting on would be for ever."""
        while True:
            with self._writer.lock:
                if not job.done():
                    self._writer.wait_for_tool()
            try:
                return job.result(_LOOK_AGAIN_S)
            except TimeoutError:
                if job.done():
                    raise

    def resume(self) -> None:
        """Flush what gathered while a tool's transaction was open; callable from any thread."""
        with self._mutex:
            loop = self._loop
            if (
                not self._pending
                or self._scheduled
                or self._job is not None
                or loop is None
                or loop.is_closed()
            ):
                return
            self._scheduled = True
        loop.call_soon_threadsafe(self._flush, loop)

    def close(self) -> None:
        """Refuse what could not be committed any more, and let the thread go. The writer is closed by now."""
        with self._mutex:
            works = self._take()
        for work in works:
            work.error = rules.closed()
        tell(works)
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True)

    @property
    def at_work(self) -> bool:
        return self._job is not None

    def forget(self) -> None:
        """Drop what has been gathered: nobody is told, as after the death of the process."""
        with self._mutex:
            self._take()

    def _take(self) -> list[Work]:
        works, self._pending = self._pending, []
        return works

    def _takes_turn(self) -> bool:
        """Whether nothing is ahead and nobody holds the database; then the caller has the writer's lock."""
        # Only this thread puts anything ahead, and whoever else takes it from there holds the writer's lock.
        if self._pending or self._scheduled or self._job is not None:
            return False
        lock = self._writer.lock
        if not lock.acquire(blocking=False):
            return False
        if self._writer.tool_open:
            lock.release()
            return False
        return True

    def _commit_alone(self, work: Work) -> bool:
        """Commit without waiting for the loop, where it is this work's turn."""
        if not self._takes_turn():
            return False
        writer = self._writer
        try:
            return writer.try_append(work) or writer.try_commit((work,), INLINE_PATIENCE_MS)
        finally:
            writer.lock.release()

    def _commit_now(self, works: Sequence[Work]) -> None:
        writer = self._writer
        with writer.lock:
            writer.wait_for_tool()
            if len(works) != 1 or not writer.try_append(works[0]):
                writer.try_commit(works, writer.busy_timeout_ms)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        writer = self._writer
        with self._mutex:
            if loop is not self._loop:
                return
            self._scheduled = False
            if self._job is not None or writer.tool_open:
                return  # whoever is under way flushes when it is done
            works = self._take()
        if not works:
            return
        self.lone = len(works) == 1
        done = False
        if writer.lock.acquire(timeout=INLINE_PATIENCE_MS / 1000):
            try:
                done = not writer.tool_open and writer.try_commit(works, INLINE_PATIENCE_MS)
            finally:
                writer.lock.release()
        if not done:
            self._hand_over(works, loop)
        elif self.lone:
            _wake(works, loop)
        else:
            self._wake_together(works, loop)

    def _wake_together(self, works: list[Work], loop: asyncio.AbstractEventLoop) -> None:
        """`_wake`, after which the next group waits for those as well who go on by way of the loop."""
        with self._mutex:
            self._scheduled = True  # by us, once all of them have been told
        try:
            _wake(works, loop)
        finally:
            with self._mutex:
                again = loop is self._loop and bool(self._pending)
                if loop is self._loop:
                    self._scheduled = again
            if again:
                loop.call_soon(self._flush, loop)

    def _hand_over(self, works: list[Work], loop: asyncio.AbstractEventLoop) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="nano-vm-commit")
        with self._mutex:
            self._job = self._executor.submit(self._commit_in_thread, works)
            job = self._job
        job.add_done_callback(lambda _: self._job_done(job, works, loop))

    def _commit_in_thread(self, works: list[Work]) -> None:
        writer = self._writer
        with writer.lock:
            if writer.wait_until_tool_ends():
                writer.try_commit(works, writer.busy_timeout_ms)
                return
        for work in works:
            work.error = rules.closed()

    def _job_done(self, job: Future[None], works: list[Work], loop: asyncio.AbstractEventLoop) -> None:
        with self._mutex:
            if self._job is job:
                self._job = None
        if job.cancelled() or job.exception() is not None:
            _interrupted(works)
        tell(works)
        self.resume()


def _interrupted(works: Sequence[Work]) -> None:
    """Nobody knows whether these were committed; nobody may be told that they were."""
    for work in works:
        if work.error is None:
            work.error = rules.closed("the commit was interrupted")


def _wake(works: Sequence[Work], loop: asyncio.AbstractEventLoop) -> None:
    """`finish` of works in `loop`, between its tasks. Who waits for one goes on at once, in the order of the works,
    instead of by way of the loop: it would do no more than call them in this order, one handle each. Works that another
    thread submitted while this group gathered are told in their own loop."""
    own = [work for work in works if work.future is None or work.future.get_loop() is loop]
    if len(own) < len(works):
        tell([work for work in works if work not in own])
    rest = iter(own)
    for work in rest:
        future: Any = work.future
        waiting = None if future is None or work.error is not None else getattr(future, "_callbacks", None)
        if waiting is None or len(waiting) != 1:
            finish((work,))
            continue
        ((go_on, context),) = waiting
        future.remove_done_callback(go_on)
        future.set_result(None)
        try:
            context.run(go_on, future)
        except BaseException:  # the loop is being stopped
            finish(list(rest))
            raise
