"""Limits hold: whatever is called, wherever it fails, however many runs there are at once, and whenever the policy is
tightened (P9)."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nano_vm import ExecutionVM, MemoryStore, StoreError, ToolContext, ToolError, tool
from nano_vm.testing.clock import VirtualClock

EFFECTS = ("pure", "idempotent", "keyed", "irreversible")


class Crash(GeneratorExit):
    """The process dies. (An event loop would not survive a KeyboardInterrupt in one of its tasks.)"""


def policy(calls: int, amount: int, shared: int, conditional: bool) -> dict[str, Any]:
    """Limits on calls and on a sum per run, and on calls of a day. With a condition, or in rules of their own."""
    own = [
        {"max_calls": calls, "per": ["run"]},
        {"max_sum": amount, "of": "$args.amount", "per": ["run"]},
    ]
    daily = [{"max_calls": shared, "per": ["day"]}]
    rules: list[dict[str, Any]]
    if conditional:
        rules = [{"id": "r", "tools": ["*"], "when": "$args.amount >= 0", "limits": own[:1]}]
        rules += [{"id": "s", "tools": ["pure", "keyed"], "limits": [own[1], *daily]}]
    else:
        rules = [{"id": "r", "tools": ["*"], "limits": own[:1]}]
    return {"policy": "p", "rules": rules}


class World:
    """Tools that are called, and the places where something happens: the process dies, the store fails, or the policy
    is tightened."""

    def __init__(self, crashes: set[int], tightened: tuple[int, dict[str, Any]] | None, pinned: Any) -> None:
        self.crashes = crashes
        self.tightened = tightened
        self.policy = pinned
        self.moment = 0
        self.called: dict[str, dict[tuple[str, int], tuple[str, int]]] = {}  # by run and action: tool, amount
        self.store = MemoryStore()
        self.store.volatile = False  # what it has outlives the process here
        self._append = self.store.append
        self.store.append = self.append  # type: ignore[method-assign]
        self.vms: list[ExecutionVM] = []
        self.exceeded = 0

    def passes(self, error: BaseException) -> None:
        self.moment += 1
        if self.tightened is not None and self.moment >= self.tightened[0]:
            self.policy, self.tightened = self.tightened[1], None
            # Of a process that has died, what was going on beside the death goes on here.
            for vm in self.vms:
                vm.set_policy(self.policy)
        if self.moment in self.crashes:
            raise error

    def append(self, *args: Any) -> None:
        self.passes(StoreError("STORE_FULL", "the disk is full"))
        self._append(*args)
        self.passes(StoreError("STORE_IO", "written, but who knows"))

    def holds(self, limit: bool) -> None:
        self.exceeded += not limit

    def takes(self, name: str, amount: int, ctx: ToolContext) -> None:
        """Another call would exceed no limit of the policy in force at this instant. (What is tightened while it is
        under way comes too late for it.)"""
        mine = self.called.setdefault(ctx.trace_id, {})
        action = ctx.step, ctx.occurrence
        others = [made for place, made in mine.items() if place != action]
        everything = [
            (made, one, place)
            for one, made_there in self.called.items()
            for place, made in made_there.items()
            if (one, place) != (ctx.trace_id, action)
        ]
        for rule in self.policy["rules"]:
            if rule["tools"] != ["*"] and name not in rule["tools"]:
                continue
            counted = [made for made in others if rule["tools"] == ["*"] or made[0] in rule["tools"]]
            for limit in rule["limits"]:
                if limit["per"] == ["day"]:
                    beside = [made for made, _, _ in everything if made[0] in rule["tools"]]
                    self.holds(len(beside) < limit["max_calls"])
                elif "max_sum" in limit:
                    self.holds(sum(made[1] for made in counted) + amount <= limit["max_sum"])
                else:
                    self.holds(len(counted) < limit["max_calls"])
        mine[action] = name, amount

    def tools(self) -> list[Any]:
        def make(effect: str) -> Any:
            async def act(amount: int, ctx: ToolContext) -> int:
                self.takes(effect, amount, ctx)
                self.passes(Crash())
                await asyncio.sleep(0)
                self.passes(Crash())
                if amount == 3 and ctx.attempt == 1:
                    raise ToolError("not yet", retryable=True)
                return amount

            act.__name__ = effect
            return tool(effect=effect)(act)

        return [make(effect) for effect in EFFECTS]


def program(calls: list[tuple[str, int]], looped: bool, width: int) -> dict[str, Any]:
    """One call after another, twice over where it loops, and the last ones at once."""
    steps: list[dict[str, Any]] = [
        {
            "id": f"s{place}",
            "type": "tool",
            "tool": effect,
            "args": {"amount": amount},
            "on_error": "retry",
            "retry": {"initial": 0.001},
        }
        for place, (effect, amount) in enumerate(calls)
    ]
    if width > 1 and len(steps) > width:
        together = steps[-width:]
        steps = [*steps[:-width], {"id": "g", "type": "parallel", "parallel_steps": together}]
    if looped:
        again = {"id": "again", "type": "condition", "condition": "$late is null", "then": "mark"}
        mark = {"id": "mark", "type": "tool", "tool": "pure", "args": {"amount": 0}, "output_key": "late"}
        end = {"id": "end", "type": "tool", "tool": "pure", "args": {"amount": 0}, "is_terminal": True}
        steps += [{**again, "otherwise": "end"}, {**mark, "next_step": steps[0]["id"]}, end]
    return {"name": "p", "max_steps": 90, "steps": steps}


@example([("pure", 0)] * 3, (3, 1, 1), False, False, 1, 2, {1, 2, 7}, (17, 1, 1), False)
@settings(max_examples=250, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from(EFFECTS), st.integers(0, 3)), min_size=1, max_size=6),
    limits=st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9)),
    conditional=st.booleans(),
    looped=st.booleans(),
    width=st.integers(1, 3),
    runs=st.integers(1, 2),
    crashes=st.sets(st.integers(1, 40), max_size=4),
    tightened=st.none() | st.tuples(st.integers(1, 30), st.integers(1, 4), st.integers(1, 5)),
    lane=st.booleans(),
)
def test_no_limit_is_ever_exceeded(
    calls: list[tuple[str, int]],
    limits: tuple[int, int, int],
    conditional: bool,
    looped: bool,
    width: int,
    runs: int,
    crashes: set[int],
    tightened: tuple[int, int, int] | None,
    lane: bool,
) -> None:
    pinned = policy(*limits, conditional)
    later = None if tightened is None else (tightened[0], policy(*tightened[1:], 9, conditional))
    world = World(crashes, later, pinned)
    flow, ids = program(calls, looped, width), ["a", "b"][:runs]

    async def main() -> None:
        for _ in range(len(crashes) + 3):
            vm = ExecutionVM(
                tools=world.tools(), store=world.store, clock=VirtualClock(), policy=world.policy
            )
            world.vms.append(vm)
            vm.lane = lane
            known = {view.run_id for view in vm.runs()}
            begun = [vm.run(flow, trace_id=run_id) for run_id in ids if run_id not in known]
            await asyncio.gather(*begun, return_exceptions=True)
            try:
                await vm.recover()
            except (Crash, StoreError):
                pass
        assert not world.exceeded
        for run_id in ids:
            trace = vm.trace(run_id)
            vm.verify(run_id)
            if trace.status.value == "SUSPENDED":
                assert {wait.kind for wait in trace.waiting} == {"outcome"}
                continue
            refused = trace.error is not None
            assert not refused or trace.error["type"] in ("CapabilityDeniedError", "SUBSTEP_FAILED")
            if refused and not conditional and tightened is None:
                assert len(world.called.get(run_id, ())) == limits[0]  # there was room for no other call

    asyncio.run(main())
