"""What changes between a decision and its action: the last look is just before the call, and nothing that may have
happened is given up."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import pytest
from runtime_stage import Counter, Opener, kinds, play, program, sound, tool_step

from nano_vm import ExecutionVM, RunStatus, tool
from nano_vm.kernel.events import PolicyDecided
from nano_vm.policy import load_policy
from nano_vm.testing.clock import VirtualClock

ANA = {"id": "ana", "roles": ["clerk"]}
EVE = {"id": "eve", "roles": ["boss"]}
LOOSE = {"policy": "p", "tools": ["act", "undo"]}
NO_ACT = load_policy({"policy": "p", "tools": ["undo"]})
NO_UNDO = load_policy({"policy": "p", "tools": ["act"]})
ASKING = {
    "policy": "p",
    "rules": [{"id": "ask", "tools": ["act"], "approval": {"roles": ["boss"], "expiry_seconds": 60}}],
}


@pytest.mark.parametrize(("resolution", "effects"), [("succeeded", [7]), ("repeat", [7, 7])])
def test_what_may_have_happened_is_not_given_up_because_repeating_it_is_denied_now(
    opener: Opener, resolution: str, effects: list[int]
) -> None:
    count = Counter()
    loose = load_policy(LOOSE)

    @tool(effect="keyed", blocking=False)
    def act(effect: int) -> int:
        count(effect)
        if len(count.effects) == 1:
            vm.set_policy(NO_ACT)
            raise ConnectionError("lost")
        return effect

    vm = opener(tools={"act": act}, policy=loose)

    async def main() -> None:
        trace = await vm.run(program(tool_step("a", args={"effect": 7})), principal=ANA)
        assert ([wait.kind for wait in trace.waiting], count.effects) == (["outcome"], [7])
        sound(vm, trace)
        vm.set_policy(loose)
        trace = await vm.resolve(trace.trace_id, "a", resolution, 7 if resolution == "succeeded" else None)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, effects)
        sound(vm, trace)

    play(main())


def test_nor_because_its_approval_is_over(opener: Opener, clock: VirtualClock) -> None:
    count = Counter()

    @tool(effect="keyed", blocking=False)
    def act(effect: int) -> None:
        count(effect)
        clock.advance(120_000)
        raise ConnectionError("lost")

    vm = opener(tools={"act": act}, policy=ASKING)

    async def main() -> None:
        trace = await vm.run(program(tool_step("a", args={"effect": 7})), principal=ANA)
        trace = await vm.approve(trace.trace_id, principal=EVE)
        assert ([wait.kind for wait in trace.waiting], count.effects) == (["outcome"], [7])
        trace = await vm.resolve(
            trace.trace_id, "a", "repeat"
        )  # somebody vouches that it did not happen: ask anew
        assert ([wait.kind for wait in trace.waiting], count.effects) == (["approval"], [7])
        sound(vm, trace)

    play(main())


def test_what_was_rolled_back_is_known_and_may_be_denied(opener: Opener) -> None:
    count = Counter()

    @tool(effect="transactional")
    async def act(effect: int) -> None:
        count(effect)
        vm.set_policy(NO_ACT)
        raise ConnectionError("lost")

    vm = opener(tools={"act": act}, policy=LOOSE)

    async def main() -> None:
        flow = program(tool_step("a", args={"effect": 7}, on_error="retry"))
        trace = await vm.run(flow, principal=ANA)
        assert (trace.status, trace.error["type"], count.effects) == (
            RunStatus.FAILED, "CapabilityDeniedError", [7],
        )  # fmt: skip
        sound(vm, trace)

    play(main())


def tighten_at(vm: ExecutionVM, kind: str, policy: Any) -> None:
    """Put the policy in force when an entry of that type has been handed to the store."""
    before = vm.store.append

    def append(run_id: str, fence: int, entries: Any, update: Any = None) -> Any:
        durable = before(run_id, fence, entries, update)
        if any(kind.encode() in entry.facts for entry in entries):
            vm.set_policy(policy)
        return durable

    vm.store.append = append  # type: ignore[method-assign]


@pytest.mark.parametrize("effect", ["keyed", "irreversible", "transactional"])
def test_a_compensation_is_looked_at_once_more_before_it_is_made(opener: Opener, effect: str) -> None:
    count = Counter()

    @tool(effect=effect)
    async def undo(effect: int) -> None:
        count(-effect)

    async def act(effect: int) -> None:
        count(effect)

    vm = opener(tools={"act": act, "undo": undo}, policy=LOOSE)
    flow = program(
        tool_step("a", args={"effect": 1}, compensate={"tool": "undo", "args": {"effect": 1}}),
        tool_step("b", args={"effect": 2}, is_terminal=True, final_status="FAILED"),
    )

    async def main() -> None:
        tighten_at(vm, "CompensationStarted", NO_UNDO)
        trace = await vm.run(flow, principal=ANA)
        assert (trace.status, count.effects) == (RunStatus.FAILED, [1, 2])
        assert trace.incomplete_compensations == ["a"]
        assert kinds(trace)[-4:] == [
            "CompensationStarted", "PolicyDecided", "CompensationFailed", "RunFinished",
        ]  # fmt: skip
        sound(vm, trace)

    play(main())


def test_a_transaction_that_waits_for_its_turn_is_looked_at_again(opener: Opener) -> None:
    count = Counter()

    @tool(effect="transactional")
    async def act(effect: int) -> None:
        count(effect)

    vm = opener(tools={"act": act}, policy=LOOSE)
    begin = vm.store.transaction

    @asynccontextmanager
    async def transaction() -> Any:
        async with begin() as found:
            vm.set_policy(NO_ACT)
            yield found

    vm.store.transaction = transaction  # type: ignore[method-assign]

    async def main() -> None:
        trace = await vm.run(program(tool_step("a", args={"effect": 1})), principal=ANA)
        assert (trace.status, trace.error["type"], count.effects) == (
            RunStatus.FAILED, "CapabilityDeniedError", [],
        )  # fmt: skip
        assert [e.decision for e in trace.events if type(e) is PolicyDecided] == ["allow", "deny"]
        sound(vm, trace)

    play(main())
