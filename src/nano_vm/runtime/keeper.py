"""Keeping the runs that an engine drives: their leases are renewed, what they have gathered is written, and mail from
others is looked for."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

from nano_vm.errors import NanoVMError

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

LOOK_SECONDS = 0.25
MAIL_EVERY = 4  # looks; in between only when the store says that somebody has written
RENEW_EVERY = 20  # looks


class Keeper:
    """Looks after the live runs of an engine while there are any, once for each event loop that drives some."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._looks: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}
        self._rounds = 0

    def keep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called when a run becomes live in this loop, the running one."""
        if loop not in self._looks:
            for other in [known for known in self._looks if known.is_closed()]:
                self._looks.pop(other, None)
            self._looks[loop] = loop.call_later(LOOK_SECONDS, _look, weakref.ref(self), loop)

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looks.pop(loop, None)
        engine = self._engine
        runs = [run for run in list(engine.live.values()) if run.loop is loop]
        if not runs:
            return
        self._rounds += 1
        for run in runs:
            run.keep_up()
        try:
            if self._rounds % RENEW_EVERY == 0:
                # Losing a lease shows at the next append, which is where it matters.
                engine.store.renew([run.record.run_id for run in runs], engine.clock.now_ms())
            if engine.store.changed() or self._rounds % MAIL_EVERY == 0:
                for run in runs:
                    if engine.store.mail(run.record.run_id):
                        run.mail_waits = True
                        run.wake()
        except NanoVMError:
            pass  # a busy database: the next look, or the next append, will tell
        self.keep(loop)

    def close(self) -> None:
        for loop, handle in list(self._looks.items()):
            if not loop.is_closed():
                handle.cancel()
        self._looks.clear()


def _look(kept: weakref.ref[Keeper], loop: asyncio.AbstractEventLoop) -> None:
    """The look that is due. The loop holds on to no engine for it: one that nobody uses any more goes at once, with all
    it has, instead of waiting for its next look - and, grown old by then, for the collector of garbage."""
    keeper = kept()
    if keeper is not None:
        keeper.look(loop)
