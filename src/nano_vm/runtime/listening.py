"""What others hear of runs: every event, once it is durable."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from nano_vm.journal.entry import Entry
    from nano_vm.kernel import events as ev
    from nano_vm.runtime.engine import Engine
    from nano_vm.runtime.journaled import JournaledRun


class Progress(msgspec.Struct, frozen=True):
    """One journaled event, as `stream` yields it."""

    run_id: str
    seq: int
    type: str
    event: Any
    digest: str


def publish(engine: Engine, run: JournaledRun, heard: list[tuple[Entry, ev.Event]]) -> None:
    """Tell the listeners. They listen and never decide: what one of them raises goes to the loop's handler, and the
    others are told all the same."""
    run_id = run.record.run_id
    for entry, event in heard:
        progress = Progress(run_id, entry.seq, event.type, event, entry.digest)
        tell = [] if run.listener is None else [partial(run.listener, progress)]
        tell += [partial(listener, run_id, progress) for listener in engine.listeners]
        for one in tell:
            try:
                one()
            except Exception as error:
                facts = {"message": f"a listener of run {run_id} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(facts)


__all__ = ["Progress", "publish"]
