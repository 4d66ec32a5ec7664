"""Any sequence of effects, any place to fail: what is journaled as finished never runs again (P1, P3, P4, P10)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm import ExecutionVM, MemoryStore, Reconciled, StoreError, ToolContext, tool
from nano_vm.testing.clock import VirtualClock

EFFECTS = ("pure", "idempotent", "keyed", "reconcilable", "irreversible")


class Crash(GeneratorExit):
    """The process dies. (An event loop would not survive a KeyboardInterrupt in one of its tasks.)"""


class World:
    """Effects outside of the runtime, and the places where it fails."""

    def __init__(self, crashes: set[int]) -> None:
        self.crashes = crashes
        self.moment = 0
        self.done: Counter[tuple[str, str]] = Counter()
        self.store = MemoryStore()
        self.store.volatile = False  # what it has outlives the process here
        self._append = self.store.append
        self.store.append = self.append  # type: ignore[method-assign]

    def passes(self, error: BaseException) -> None:
        self.moment += 1
        if self.moment in self.crashes:
            raise error

    def append(self, *args: Any) -> None:
        self.passes(StoreError("STORE_FULL", "the disk is full"))
        self._append(*args)
        self.passes(StoreError("STORE_IO", "written, but who knows"))

    def tools(self) -> list[Any]:
        def find_out(ctx: ToolContext) -> Reconciled:
            happened = self.done["reconcilable", ctx.idempotency_key]
            return Reconciled.succeeded("found") if happened else Reconciled.not_executed()

        def make(effect: str) -> Any:
            async def act(ctx: ToolContext) -> str:
                self.passes(Crash())
                if effect != "keyed" or not self.done[effect, ctx.idempotency_key]:
                    self.done[effect, ctx.idempotency_key] += 1
                self.passes(Crash())
                return effect

            act.__name__ = effect
            return tool(effect=effect, reconcile=find_out if effect == "reconcilable" else None)(act)

        return [make(effect) for effect in EFFECTS]


@settings(max_examples=120, deadline=None)
@given(
    effects=st.lists(st.sampled_from(EFFECTS), min_size=1, max_size=6),
    width=st.integers(1, 3),
    crashes=st.sets(st.integers(1, 40), max_size=5),
)
def test_finished_steps_never_run_again(effects: list[str], width: int, crashes: set[int]) -> None:
    world = World(crashes)
    lanes = [{"id": f"s{place}", "type": "tool", "tool": effect} for place, effect in enumerate(effects)]
    steps: list[dict[str, Any]] = lanes
    if width > 1:
        group = {
            "id": "g",
            "type": "parallel",
            "max_concurrency": width,
            "parallel_steps": lanes[:-1] or lanes,
        }
        steps = [group, *([lanes[-1]] if len(lanes) > 1 else [])]

    async def main() -> None:
        finished: dict[tuple[str, int], int] = {}
        for _ in range(len(crashes) + 2):
            vm = ExecutionVM(tools=world.tools(), store=world.store, clock=VirtualClock())
            try:
                if vm.runs():
                    await vm.recover()
                else:
                    await vm.run({"name": "p", "steps": steps}, trace_id="r")
            except (Crash, StoreError):
                pass
            if vm.runs():
                assert world.store.record("r").owner is None
                succeeded = {
                    (event.step, event.occurrence): seq
                    for seq, event in enumerate(vm.trace("r").events)
                    if event.type == "StepSucceeded"
                }
                assert finished.items() <= succeeded.items()
                finished = succeeded
        trace = vm.trace("r")
        vm.verify("r")
        assert trace.status.value in ("SUCCESS", "SUSPENDED")
        assert trace.status.value == "SUCCESS" or {wait.kind for wait in trace.waiting} == {"outcome"}
        for (effect, _), count in world.done.items():
            assert count == 1 or effect in ("pure", "idempotent"), world.done

    asyncio.run(main())
