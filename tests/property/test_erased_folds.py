"""Random programs whose inputs are private tell the same before and after an erasure, but for the values (P5, P7).

What a kernel takes from values that are gone - lengths, accepted events, failures of templates, who was asked - has
to be noted somewhere, or a fold takes another way than the run did.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from nano_vm import ExecutionVM, MemoryStore, Program, ProgramError, Trace
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle
from nano_vm.testing.clock import VirtualClock
from property.flow_worlds import World, _asked, _children_of, _sound

PRIVATE = {
    "type": "object",
    "properties": {"msg": {"private": True}, "rows": {"private": True}, "limit": {"label": "trusted"}},
}
POLICY = {
    "policy": "p",
    "default": "allow",
    "rules": [
        {
            "id": "seen",
            "tools": ["pay"],
            "when": "$args.amount in ['a', 5, null]",
            "approval": {"roles": ["boss"]},
        },
        {"id": "few", "tools": ["echo"], "limits": [{"max_calls": 4, "per": ["run"]}]},
        {"id": "sum", "tools": ["flaky"], "limits": [{"max_sum": 9, "of": "$args.x", "per": ["day"]}]},
    ],
}
ANA, EVE = {"id": "ana", "roles": []}, {"id": "eve", "roles": ["boss"]}
ERASURE = {"reason": "asked", "by": "ana"}
OF_A_RUN = ("status", "outcome", "trace_hash", "outcome_hash", "total_tokens", "path", "rollbacks", "waiting")
OF_A_STEP = ("id", "type", "occurrence", "item", "status", "verdict", "attempts", "substituted")


def told(trace: Trace) -> Any:
    plain = trace.to_dict()
    steps = [
        [*(step[name] for name in OF_A_STEP), None if step["error"] is None else step["error"]["type"]]
        for step in plain["steps"]
    ]
    return [plain[name] for name in OF_A_RUN], steps, trace.state_snapshots


async def live(vm: ExecutionVM, clock: VirtualClock, world: World, program: Program) -> Trace:
    context = {"msg": world.words("a"), "rows": [world.words("a"), "a", world.words()], "limit": 5}
    trace = await vm.run(program, context, trace_id="run", principal=ANA)
    for turn in range(8 if vm.policy is None else 14):
        if trace.status != "SUSPENDED":
            break
        if (approvals := vm.approvals()) and approvals[0].tool:
            first = approvals[0]
            yes = world.rng.random() < 0.7
            trace = await vm.approve("run", yes, step=first.step, item=first.item, principal=EVE)
            continue
        asked = [found for wait in trace.waiting if (found := _asked(wait.to_dict(), "")) is not None]
        if asked:
            step, item = asked[0]
            trace = await vm.resume("run", world.words("a"), event_id=f"e{turn}", step=step, item=item)
        else:
            clock.advance(10_000)
            await vm.recover()
            trace = vm.trace("run")
    if not trace.status.is_terminal:
        trace = await vm.cancel("run", "enough")
    return trace


def play(seed: int, governed: bool = False) -> tuple[int, int] | None:
    """Runs the program of a seed and erases it. How many payloads were erased and how many decisions rest on them; None
    when no sound program came of it. `governed`: there are agents, and a policy that decides by private values."""
    rng = Random(seed)
    child = _sound(rng, "one", {}, governed)
    children = {} if child is None else {"one": child}
    found = _sound(rng, "p", children, governed)
    if found is None:
        return None
    program = Program.from_dict({**found.to_dict(), "inputs": PRIVATE})
    world, clock, store = World(rng), VirtualClock(), MemoryStore()
    vm = ExecutionVM(llm=world, tools=world.tools(), store=store, clock=clock)  # type: ignore[arg-type]
    vm.proves = False
    if governed:
        vm.set_policy(POLICY)
    try:
        for one in children.values():
            vm.save_program(one)
        asyncio.run(live(vm, clock, world, program))
    except ProgramError:
        return None
    runs = ["run", *(record.run_id for record in store.records(_children_of("run")))]
    before = {run: told(vm.trace(run)) for run in runs}
    for run in runs:
        bundle = export(store, run, opened=vm.read).data
        assert verify_bundle(bundle).run == run, f"seed {seed}, run {run}"
    receipt = asyncio.run(vm.erase(run="run", **ERASURE))
    assert receipt["stage"] == "done"
    closed = ""
    for run in runs:
        assert told(vm.trace(run)) == before[run], f"seed {seed}, run {run}"
        checked = dict(vm.verify(run).steps)
        if run in receipt["runs"]:
            closed += checked["closed"]
        verify_bundle(export(store, run, opened=vm.read).data)
    return len(receipt["runs"]), closed.count("at entry")


def campaign(first: int, count: int, governed: bool = False) -> None:
    erased = rested = 0
    for seed in range(first, first + count):
        found = play(seed, governed)
        if found is not None:
            erased += found[0]
            rested += found[1]
    assert erased > count // 2
    assert rested > count // 2  # else the programs were too tame to show anything


def test_random_programs_tell_the_same_after_an_erasure() -> None:
    campaign(0, 30)


def test_random_programs_under_a_policy_tell_the_same_after_an_erasure() -> None:
    campaign(0, 20, governed=True)


@pytest.mark.campaign
@pytest.mark.parametrize("governed", [False, True])
def test_many_random_programs_tell_the_same_after_an_erasure(governed: bool) -> None:
    campaign(1_000, 3_000, governed)
