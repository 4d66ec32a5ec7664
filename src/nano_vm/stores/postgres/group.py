"""Group commit: what gathers while one commit is on its way is committed by the next.

The way to the server takes longer than all the rest, so it is taken in a thread, and the event loop goes on.
"""

from __future__ import annotations

import asyncio
import threading

from nano_vm.stores import rules
from nano_vm.stores.postgres.writer import Writer
from nano_vm.stores.work import Work, tell

_IDLE_S = 1.0  # after which the thread ends; the next append starts another


class GroupCommit:
    """The queue in front of a `Writer`. Calls without a running event loop are committed when they return."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._changed = threading.Condition()
        self._pending: list[Work] = []
        self._at_work = False
        self._runs = False
        self._closed = False

    @property
    def at_work(self) -> bool:
        """Whether anything is on its way."""
        with self._changed:
            return self._at_work or bool(self._pending)

    def submit(
        self, work: Work, loop: asyncio.AbstractEventLoop | None = None
    ) -> asyncio.Future[None] | None:
        """None when the work is committed, else a future. Works are committed in the order of the calls. `loop`: the
        one that runs here, where that is known."""
        if loop is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self._commit_now(work)
                return None
        future = work.future = loop.create_future()
        with self._changed:
            if self._closed:
                raise rules.closed()
            self._pending.append(work)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="nano-vm-commit", daemon=True).start()
            elif not self._at_work:
                self._changed.notify_all()
        return future

    def drain(self) -> None:
        """Wait until what has been submitted is committed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending and not self._at_work)

    def close(self) -> None:
        """Commit what has been submitted, and let the thread go."""
        self.drain()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def forget(self) -> None:
        """Drop what has been gathered: nobody is told, as after the death of the process."""
        with self._changed:
            self._closed = True
            self._pending = []
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._at_work)

    def _commit_now(self, work: Work) -> None:
        self.drain()
        with self._writer.lock:
            self._writer.commit((work,))
        if work.error is not None:
            raise work.error from None

    def _run(self) -> None:
        try:
            while (works := self._next()) is not None:
                self._commit(works)
        except BaseException:
            with self._changed:
                self._runs = self._at_work = False
                self._changed.notify_all()
            raise

    def _next(self) -> list[Work] | None:
        with self._changed:
            self._at_work = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._pending or self._closed, _IDLE_S)
            if not self._pending:
                self._runs = False  # here, so that whoever submits after this starts another thread
                return None
            works, self._pending = self._pending, []
            self._at_work = True
            return works

    def _commit(self, works: list[Work]) -> None:
        try:
            with self._writer.lock:
                self._writer.commit(works)
        except BaseException:
            for work in works:
                if work.error is None:
                    # Nobody knows whether it was committed; nobody may be told that it was.
                    work.error = rules.closed("the commit was interrupted")
            raise
        finally:
            tell(works)
