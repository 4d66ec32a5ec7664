"""Limits are counted along the lane as the gate counts them: the same numbers, the same refusals, the same journal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano_vm import ExecutionVM, MemoryStore, MockLLMAdapter, SqliteStore, canonical, tool
from nano_vm.errors import NanoVMError, VerificationError
from nano_vm.journal.entry import Chain, open_events
from nano_vm.journal.replay import verify_run
from nano_vm.kernel.events import UNSET, PolicyDecided
from nano_vm.policy.decide import amount_of, counted_place, step_place
from nano_vm.policy.model import Limit
from nano_vm.policy.recheck import Recheck
from nano_vm.policy.tally import Tally
from nano_vm.testing.clock import VirtualClock

RULE = {"id": "r", "tools": ["pay"]}


@tool(effect="keyed", blocking=False)
def pay(amount: int) -> int:
    return amount


def program(*amounts: int) -> dict[str, Any]:
    steps = [
        {"id": f"s{number}", "type": "tool", "tool": "pay", "args": {"amount": amount}}
        for number, amount in enumerate(amounts)
    ]
    return {"name": "pays", "steps": steps}


def policy(**limit: Any) -> dict[str, Any]:
    return {"policy": "p", "rules": [{**RULE, "limits": [{"per": ["run"], **limit}]}]}


def counts_of(trace: Any) -> list[list[Any]]:
    return [
        [so_far, added]
        for event in trace.events
        if event.type == "PolicyDecided" and event.counts
        for _, so_far, added in event.counts
    ]


async def play(governing: dict[str, Any], flow: dict[str, Any], lane: bool, store: Any = None) -> Any:
    async with ExecutionVM(tools=[pay], policy=governing, store=store or MemoryStore()) as vm:
        vm.lane = lane
        trace = await vm.run(flow, principal="ana")
        vm.verify(trace.trace_id)
        return trace.status, trace.error, counts_of(trace), trace.final_output


@pytest.mark.parametrize("lane", [True, False])
def test_each_call_sees_what_those_before_it_have_added(lane: bool) -> None:
    status, _, counts, _ = asyncio.run(
        play(policy(max_sum=100, of="$args.amount"), program(10, 20, 30), lane)
    )
    assert status == "SUCCESS"
    assert counts == [[0, 10_000_000], [10_000_000, 20_000_000], [30_000_000, 30_000_000]]


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("durable", [True, False])
def test_the_call_that_would_exceed_a_limit_is_not_made(lane: bool, durable: bool, tmp_path: Any) -> None:
    store = SqliteStore(str(tmp_path / "runs.db")) if durable else MemoryStore()
    status, error, counts, _ = asyncio.run(play(policy(max_calls=2), program(1, 2, 3), lane, store))
    assert (status, error["type"], error["step"]) == ("FAILED", "CapabilityDeniedError", "s2")
    assert counts == [[0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize("durable", [True, False])
def test_runs_at_once_never_exceed_a_limit_together(durable: bool, tmp_path: Any) -> None:
    called: list[int] = []

    @tool(effect="irreversible", name="pay")
    async def count(amount: int) -> int:
        called.append(amount)
        await asyncio.sleep(0)
        return amount

    async def main() -> list[Any]:
        store = SqliteStore(str(tmp_path / "runs.db")) if durable else MemoryStore()
        governing = {"policy": "p", "rules": [{**RULE, "limits": [{"max_calls": 25, "per": ["principal"]}]}]}
        async with ExecutionVM(tools=[count], policy=governing, store=store) as vm:
            return await asyncio.gather(*(vm.run(program(*range(4)), principal="ana") for _ in range(20)))

    traces = asyncio.run(main())
    assert len(called) == 25
    assert {trace.error["type"] for trace in traces if trace.status == "FAILED"} == {"CapabilityDeniedError"}


def test_a_count_that_was_taken_back_is_missed() -> None:
    async def main() -> None:
        store = MemoryStore()
        governing = policy(max_calls=9, per=["principal"])
        async with ExecutionVM(tools=[pay], policy=governing, store=store) as vm:
            trace = await vm.run(program(1, 2), principal="ana")
            vm.verify(trace.trace_id)
            (key,) = {
                key for event in trace.events if event.type == "PolicyDecided" for key, _, _ in event.counts
            }
            store.count("another", [(key, -1, 9)], 0)
            vm.verify(trace.trace_id)  # each is still there
            store._counts[key].popitem()
            store._counts[key].popitem()
            store._totals[key] -= 1
            with pytest.raises(VerificationError) as raised:
                vm.verify(trace.trace_id)
            assert raised.value.code == "COUNT_MISSING"

    asyncio.run(main())


def edited(entries: list[Any], seq: int, so_far: int) -> list[Any]:
    """The journal with another number of what a decision has seen, sealed anew from there on."""
    chain, written = Chain("run"), []
    for entry in entries:
        event, *then = open_events(entry)
        for rider in (event, *then) if entry.seq == seq else ():
            if type(rider) is PolicyDecided:
                rider.counts = [[key, so_far, added] for key, _, added in rider.counts]
        written.append(chain.seal(event, entry.salt, entry.payload, then))
    return written


@pytest.mark.parametrize("lane", [True, False])
def test_no_decision_has_seen_less_than_was_counted_before_it(lane: bool) -> None:
    async def main() -> None:
        async with ExecutionVM(tools=[pay], policy=policy(max_calls=9), store=MemoryStore()) as vm:
            vm.lane = lane
            trace = await vm.run(program(1, 2, 3), principal="ana", trace_id="run")
            assert "own limits" in dict(vm.verify("run").steps)
            flow, entries = vm.load_program(trace.program_hash), vm.store.read("run")

            def check(entries: list[Any]) -> Recheck:
                recheck = Recheck(flow, vm.load_policy)
                verify_run(flow, None, entries, "run", watchers=(recheck,))
                return recheck

            assert check(entries).tallied == 3
            deciding = [entry.seq for entry in entries if b"PolicyDecided" in entry.facts]
            for number, seq in enumerate(deciding):
                check(edited(entries, seq, number))
                check(edited(entries, seq, number + 1))  # something that was counted, and then not allowed
                if number:
                    with pytest.raises(VerificationError) as raised:
                        check(edited(entries, seq, number - 1))
                    assert raised.value.code == "REPLAY_MISMATCH"
                    assert (raised.value.facts["seq"], raised.value.facts["code"]) == (seq, "POLICY")

    asyncio.run(main())


BOTH = {"id": "r", "tools": ["pay"], "models": ["default"], "limits": [{"max_calls": 3, "per": ["run"]}]}
MIXED: dict[str, Any] = {
    "name": "mixed",
    "steps": [
        {"id": "a", "type": "tool", "tool": "pay", "args": {"amount": 1}},
        {"id": "b", "type": "llm", "prompt": "say"},
        {"id": "c", "type": "tool", "tool": "pay", "args": {"amount": 2}},
        {"id": "d", "type": "llm", "prompt": "say"},
    ],
}


@pytest.mark.parametrize("lane", [True, False])
def test_models_and_tools_count_together_under_a_limit_of_the_run(lane: bool) -> None:
    async def main() -> None:
        governing = {"policy": "p", "rules": [BOTH]}
        store = MemoryStore()
        async with ExecutionVM(MockLLMAdapter("yes"), tools=[pay], policy=governing, store=store) as vm:
            vm.lane = lane
            trace = await vm.run(MIXED, principal="ana")
            assert counts_of(trace) == [[0, 1], [1, 1], [2, 1], [3, 1]]
            assert trace.error["step"] == "d"
            assert "1 amounts" in dict(vm.verify(trace.trace_id).steps)["limits"]

    asyncio.run(main())


@pytest.mark.parametrize("lane", [True, False])
def test_what_a_model_has_counted_is_seen_by_all_calls_after_it(lane: bool) -> None:
    more = [{"id": f"m{n}", "type": "tool", "tool": "pay", "args": {"amount": n}} for n in range(4)]
    steps = [more[0], *MIXED["steps"][:2], *more[1:]]
    rule = {**BOTH, "limits": [{"max_calls": 5, "per": ["run"]}]}

    async def main() -> None:
        governing, store = {"policy": "p", "rules": [rule]}, MemoryStore()
        async with ExecutionVM(MockLLMAdapter("yes"), tools=[pay], policy=governing, store=store) as vm:
            vm.lane = lane
            trace = await vm.run({"name": "more", "steps": steps}, principal="ana")
            assert counts_of(trace) == [[number, 1] for number in range(6)]
            assert trace.error["step"] == "m3"

    asyncio.run(main())


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("per", [["run", "minute"], ["minute"], ["principal", "minute"]])
def test_a_new_minute_counts_from_the_start(lane: bool, per: list[str]) -> None:
    clock = VirtualClock()

    @tool(effect="keyed", name="pay", blocking=False)
    def wait(amount: int) -> int:
        clock.advance(amount)
        return amount

    async def main() -> None:
        governing = policy(max_calls=3, per=per)
        store = MemoryStore()
        async with ExecutionVM(tools=[wait], policy=governing, store=store, clock=clock) as vm:
            vm.lane = lane
            trace = await vm.run(program(0, 60_000, 0, 0, 0, 0), principal="ana")
            assert counts_of(trace) == [[0, 1], [1, 1], [0, 1], [1, 1], [2, 1], [3, 1]]
            assert trace.error["step"] == "s5"
            vm.verify(trace.trace_id)

    asyncio.run(main())


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("begins", ["pay", "default"])
def test_what_a_version_of_a_policy_has_counted_counts_for_the_next(lane: bool, begins: str) -> None:
    """A rule is about tools, then about models as well; or the other way round."""
    alone = {name: said for name, said in BOTH.items() if name != ("models" if begins == "pay" else "tools")}
    other = {"models": ["default"]} if begins == "pay" else {"tools": ["pay", "turn"]}
    first = {"policy": "p", "rules": [alone, {"id": "free", "tools": ["turn"], **other}]}
    steps = [step for step in MIXED["steps"] if (step["type"] == "tool") == (begins == "pay")]
    again = [{**step, "id": f"{step['id']}{number}"} for number in (1, 2) for step in MIXED["steps"]]
    flow = {"name": "turns", "steps": [*steps, {"id": "t", "type": "tool", "tool": "turn"}, *again]}

    async def main() -> None:
        @tool(effect="keyed", name="turn", blocking=False)
        def turn() -> None:
            vm.set_policy({"policy": "p", "rules": [BOTH, {"id": "free", "tools": ["turn"]}]})

        tools, store = [pay, turn], MemoryStore()
        async with ExecutionVM(MockLLMAdapter("yes"), tools=tools, policy=first, store=store) as vm:
            vm.lane = lane
            trace = await vm.run(flow, principal="ana")
            assert trace.error["type"] == "CapabilityDeniedError"
            done = {event.step for event in trace.events if event.type == "StepSucceeded"}
            assert len(done - {"t"}) == 3

    asyncio.run(main())


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("effect", ["pure", "keyed"])
def test_a_count_is_in_the_journal_before_the_call(lane: bool, effect: str) -> None:
    """So a crash cannot make it forgotten, whatever the tool's effect."""
    seen: list[int] = []

    @tool(effect=effect, name="pay", blocking=False)
    def look(amount: int) -> int:
        entries = store.read("run")
        seen.append(sum(entry.facts.count(b'"counts":[[') for entry in entries))
        return amount

    async def main() -> None:
        governing = policy(max_calls=9)
        async with ExecutionVM(tools=[look], policy=governing, store=store) as vm:
            vm.lane = lane
            await vm.run(program(1, 2, 3), principal="ana", trace_id="run")

    store = MemoryStore()
    store.volatile = False
    asyncio.run(main())
    assert seen == [1, 2, 3]


def test_an_action_counts_once_however_often_it_is_decided() -> None:
    tally = Tally()
    for _ in range(2):
        tally.add("k", 3, "s", 1)
    assert (tally.so_far("k", "s", 1), tally.so_far("k", "s", 2), tally.totals) == (0, 3, {"k": 3})
    assert (tally.has("s", 1), tally.has("s", 2), tally.has("t", 1)) == (True, False, False)
    tally.add("k", 4, "s", 1, undoes=True)
    tally.add("k", 5, "s", 1, item=0)
    assert tally.so_far("k", "s", 1) == 9
    tally.remember("s", 2, {"k": 5})
    assert (tally.so_far("k", "s", 2), tally.so_far("j", "s", 2)) == (7, 0)


def test_what_only_models_take_no_tool_adds() -> None:
    with pytest.raises(NanoVMError) as raised:
        amount_of(Limit(maximum=9, per=("run",), unit="tokens"), {})
    assert raised.value.code == "NO_PRICE"


@pytest.mark.parametrize(
    ("says", "total"),
    [
        ({"decision": "allow"}, 2),
        ({"decision": "deny"}, 0),
        ({"decision": "ask"}, 0),
        ({"decision": "allow", "model": "default"}, 0),
        ({"decision": "allow", "counts": UNSET}, 0),
        ({"decision": "allow", "item": 1}, 2),
    ],
)
def test_what_a_decision_lets_through_is_counted(says: dict[str, Any], total: int) -> None:
    event = PolicyDecided(
        **{"counts": [["k", 5, 2]], **says},
        at_ms=1,
        attempt=1,
        occurrence=1,
        reason="RULE",
        rule="r",
        step="s",
    )
    tally = Tally()
    tally.note(event)
    assert tally.totals.get("k", 0) == total


@given(
    st.text(max_size=40), st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True), st.integers(1, 2**40)
)
def test_the_place_of_a_step_is_put_together_as_any_other(run: str, step: str, occurrence: int) -> None:
    try:
        prefix = canonical.encode([run, "step"])[:-1]
    except Exception:
        return  # no text that JSON has
    assert step_place(prefix, step, occurrence) == counted_place(run, "step", step, occurrence, -1, None)
