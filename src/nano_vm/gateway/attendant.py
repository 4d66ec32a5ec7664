"""Taking up runs while the gateway serves: what a dead process left, due timers, mail. `nano-vm worker`, inside."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from nano_vm.errors import Fault, NanoVMError, NotFoundError
from nano_vm.gateway.faults import log
from nano_vm.gateway.service import Gateway
from nano_vm.journal.trace import Trace
from nano_vm.kernel.state import RunStatus
from nano_vm.runtime.needs import Needs

BATCH = 100


class Attendant:
    """Looks every so often, from `run`, until it is cancelled."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._left: set[str] = set()  # runs we cannot drive, named once in the log
        self._failed: set[str] = set()  # runs that could not be driven on, named once in the log
        self._erasing_fails = False
        self.rounds = 0
        self.taken_total = 0
        self.failing = False  # the last look failed: `/ready` says so

    async def run(self) -> None:
        while True:
            try:
                await self.look()
                self.failing = False
            except NanoVMError as error:
                if not self.failing:
                    log.warning("cannot look for runs: %s", error.code)
                self.failing = True
            except Exception:
                log.exception("looking for runs failed")
                self.failing = True
            self.rounds += 1
            await asyncio.sleep(self._gateway.config.recover_seconds)

    async def look(self) -> None:
        """Start everything that can be taken up now, each in a task of its own."""
        gateway = self._gateway
        engine = gateway.engine
        if engine.draining:
            return
        if gateway.mounts is not None:
            gateway.mounts.refresh()
        await self.complete_erasures()
        held = self._held()
        under_way = set(gateway.driving.values())
        room = gateway.config.limits.runs - len(gateway.driving)
        most = BATCH + len(self._left) + len(held)
        for run_id in gateway.store.claimable(engine.clock.now_ms(), most):
            if room <= 0:
                return
            if run_id in held or run_id in under_way or run_id in engine.live or not self._able(run_id):
                continue
            room -= 1
            self.taken_total += 1
            gateway.take_up(run_id).add_done_callback(partial(self._took, run_id))

    def _held(self) -> set[str]:
        """Runs that somebody takes step by step. One that has ended otherwise is held no longer."""
        held = self._gateway.state.held()
        for run_id in held:
            with contextlib.suppress(NotFoundError):  # it is about to be begun
                if RunStatus(self._gateway.store.record(run_id).status).is_terminal:
                    self._gateway.state.let_go(run_id)
        return held

    async def complete_erasures(self) -> None:
        """What a crash has cut, or a restored back-up has brought back, before anything is taken up. Returns when it is
        done, or soon: it keeps no run from being driven."""
        try:
            if await self._gateway.engine.complete_erasures(soon=True):
                self._erasing_fails = False
        except Exception as error:
            if not self._erasing_fails:
                code = error.code if isinstance(error, NanoVMError) else "INTERNAL"
                log.warning("an erasure cannot be completed: %s", code, exc_info=code == "INTERNAL")
            self._erasing_fails = True

    def _took(self, run_id: str, task: asyncio.Task[Trace]) -> None:
        """Nobody waits for what was taken up here, so the log says what went wrong."""
        error = None if task.cancelled() else task.exception()
        if not isinstance(error, NanoVMError):
            self._failed.discard(run_id)
        elif error.fault is not Fault.CALLER and run_id not in self._failed:
            self._failed.add(run_id)
            log.warning("run %s could not be driven on: %s", run_id, error.code)

    def _able(self, run_id: str) -> bool:
        """Whether the tools and the model that the run needs are here; if not it is left for another worker."""
        engine = self._gateway.engine
        try:
            needs = Needs(engine)
            needs.add(engine.load_program(self._gateway.store.record(run_id).program_hash))
        except NanoVMError as error:
            return self._leave(run_id, error.code)
        missing = sorted(name for name in needs.tools if engine.tools.spec(name) is None)
        if missing:
            return self._leave(run_id, f"no tool {', '.join(missing)}")
        if needs.model and engine.llm is None:
            return self._leave(run_id, "no model")
        self._left.discard(run_id)
        return True

    def _leave(self, run_id: str, why: str) -> bool:
        if run_id not in self._left:
            self._left.add(run_id)
            log.warning("run %s is left untouched: %s", run_id, why)
        return False
