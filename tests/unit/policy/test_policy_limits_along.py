"""Limits are counted along the lane as the gate counts them: the same numbers, the same refusals, the same journal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano_vm import ExecutionVM, MemoryStore, SqliteStore, canonical, tool
from nano_vm.errors import VerificationError
from nano_vm.policy.decide import counted_place, step_place

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


@given(
    st.text(max_size=40), st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True), st.integers(1, 2**40)
)
def test_the_place_of_a_step_is_put_together_as_any_other(run: str, step: str, occurrence: int) -> None:
    try:
        prefix = canonical.encode([run, "step"])[:-1]
    except Exception:
        return  # no text that JSON has
    assert step_place(prefix, step, occurrence) == counted_place(run, "step", step, occurrence, -1, None)
