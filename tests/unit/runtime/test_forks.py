"""Forks: time travel that repeats nothing of what it shares, whatever the other run had under way."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from runtime_stage import Counter, Opener, play, program, refused, sound, tool_step, wait_step

from nano_vm import ExecutionVM, MockLLMAdapter, NotFoundError, RunStatus, Trace, tool
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle
from nano_vm.kernel.events import PolicyDecided


def test_a_fork_shares_the_prefix_and_repeats_nothing(opener: Opener) -> None:
    count = Counter()

    def act(name: str, n: int) -> int:
        count(name)
        return n + 1

    steps = [
        tool_step("a", args={"name": "a", "n": "$n"}, output_key="x"),
        {"id": "c", "type": "condition", "condition": "$x > 5", "then": "big", "otherwise": "small"},
        tool_step("big", args={"name": "big", "n": "$x"}, is_terminal=True),
        tool_step("small", args={"name": "small", "n": "$x"}, is_terminal=True),
    ]
    vm = opener(tools={"act": act})

    async def main() -> None:
        source = await vm.run(program(*steps), {"n": 1})
        assert source.path == ["a", "c", "small"]
        fork = await vm.fork(source.trace_id, "c", {"x": 9})
        assert (fork.path, fork.final_output) == (["a", "c", "big"], 10)
        assert count.effects == ["a", "small", "big"]
        later = await vm.fork(source.trace_id, "small", {"x": 4})
        assert later.final_output == 5
        again = await vm.fork(source.trace_id, "a")
        assert again.trace_hash == source.trace_hash
        for trace in (source, fork, later, again):
            sound(vm, trace)
        with refused("UNKNOWN_STEP"):
            await vm.fork(source.trace_id, "big")
        with refused("UNKNOWN_VALUE"):
            await vm.fork(source.trace_id, "small", {"nope": 1})

    play(main())


def _after(step: dict[str, Any], *others: str) -> dict[str, Any]:
    return {**step, "depends_on": list(others)}


async def _until_done(vm: ExecutionVM, run_id: str, step_id: str) -> None:
    while True:
        with contextlib.suppress(NotFoundError):
            step = vm.trace(run_id).step(step_id)
            if step is not None and step.finished_at_ms is not None:
                return
        await asyncio.sleep(0)


SLOW_BESIDE = [
    _after(tool_step("slow", "slow")),
    _after(tool_step("quick", "quick")),
    _after(tool_step("next", "quick"), "quick"),
]


@pytest.mark.parametrize("effect", ["irreversible", "idempotent", "pure"])
def test_a_call_that_the_other_run_waits_for(opener: Opener, effect: str) -> None:
    """The fork is not told what comes of it: as after a crash it is repeated where that does no harm."""

    async def main() -> None:
        gate, calls = asyncio.Event(), Counter()

        @tool(effect=effect)
        async def slow() -> str:
            calls("slow")
            await gate.wait()
            return "done"

        async def quick() -> int:
            return 1

        vm = opener(tools=[slow, quick])
        driving = asyncio.create_task(vm.run(program(*SLOW_BESIDE), trace_id="source"))
        await _until_done(vm, "source", "next")
        forking = asyncio.create_task(vm.fork("source", "next", new_trace_id="fork"))
        for _ in range(20):
            await asyncio.sleep(0)
        gate.set()
        source, fork = await driving, await forking
        assert source.status is RunStatus.SUCCESS
        if effect == "irreversible":
            assert [(wait.kind, wait.step) for wait in fork.waiting] == [("outcome", "slow")]
            assert calls.effects == ["slow"]
            fork = await vm.resolve("fork", "slow", "succeeded", "done")
        assert fork.status is RunStatus.SUCCESS
        assert fork.trace_hash == source.trace_hash
        sound(vm, source)
        sound(vm, fork)

    play(main())


KID = program(tool_step("before", "note"), wait_step("w"), tool_step("after", "note"), name="kid")


def _bundled(vm: ExecutionVM, trace: Trace) -> list[str]:
    made = export(vm.store, trace.trace_id)
    verify_bundle(made.data)
    return made.runs


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "at work"])
def test_children_of_the_other_run_stay_its_own(opener: Opener, waits: bool) -> None:
    async def main() -> None:
        notes, gate = Counter(), asyncio.Event()

        async def note() -> int:
            notes("note")
            if not waits:
                await gate.wait()
            return 1

        async def quick() -> int:
            return 1

        call = {"id": "call", "type": "call", "program": "kid", "inputs": {}}
        steps = [
            _after(call),
            _after(tool_step("quick", "quick")),
            _after(tool_step("next", "quick"), "quick"),
        ]
        vm = opener(tools=[note, quick])
        vm.save_program(KID)
        driving = asyncio.create_task(vm.run(program(*steps), trace_id="source"))
        await _until_done(vm, "source", "next")
        if waits:
            assert (await driving).status is RunStatus.SUSPENDED
        forking = asyncio.create_task(vm.fork("source", "next", new_trace_id="fork"))
        while len(notes.effects) < 2:
            await asyncio.sleep(0)
        gate.set()
        for trace in (await forking, await driving):
            assert [wait.kind for wait in trace.waiting] == ["child"]
            assert _bundled(vm, trace) == [trace.trace_id, f"{trace.trace_id}/call.1.1"]
        assert notes.effects == ["note"] * 2
        for name in ("fork", "source"):
            trace = await vm.resume(name, {"x": 1}, step="call/w")
            assert trace.status is RunStatus.SUCCESS
            assert _bundled(vm, trace) == [name, f"{name}/call.1.1"]
            sound(vm, trace)
        assert notes.effects == ["note"] * 4

    play(main())


def test_a_child_that_has_ended_is_shared(opener: Opener) -> None:
    async def main() -> None:
        notes = Counter()

        async def note() -> int:
            notes("note")
            return 1

        call = {"id": "call", "type": "call", "program": "kid", "inputs": {}}
        vm = opener(tools=[note])
        vm.save_program(program(tool_step("only", "note"), name="kid"))
        await vm.run(program(call, tool_step("next", "note")), trace_id="source")
        fork = await vm.fork("source", "next", new_trace_id="fork")
        assert _bundled(vm, fork) == ["fork", "source/call.1.1"]
        assert notes.effects == ["note"] * 3

    play(main())


# --- what a policy requires -----------------------------------------------------------------------------------

REQUIRING = {
    "policy": "p",
    "default": "allow",
    "rules": [{"id": "after", "tools": ["act"], "requires": ["check"]}],
}
CHECKED = [
    tool_step("first", "check", args={"n": "$n"}),
    {"id": "c", "type": "condition", "condition": "$n > 5", "then": "big", "otherwise": "small"},
    tool_step("big", args={"n": "$n"}, is_terminal=True),
    tool_step("small", args={"n": "$n"}, is_terminal=True),
]


def _checking(opener: Opener, effect: str, **options: Any) -> ExecutionVM:
    @tool(effect=effect)
    def check(n: int) -> int:
        return n

    def act(n: int) -> int:
        return n

    return opener(tools=[check, act], **options)


def _last_decision(trace: Trace) -> tuple[str, str, str]:
    event = [event for event in trace.events if type(event) is PolicyDecided][-1]
    return event.step, event.decision, event.reason


@pytest.mark.parametrize("effect", ["irreversible", "pure"])
@pytest.mark.parametrize(
    ("at_step", "changes", "decided"),
    [
        ("small", {"n": 2}, ("small", "deny", "REQUIRES")),
        ("small", {"first": 9}, ("small", "deny", "REQUIRES")),
        ("c", {"n": 9}, ("big", "deny", "REQUIRES")),  # before the result that led to the condition
        ("c", {"first": 9}, ("small", "deny", "REQUIRES")),
        ("first", {"n": 9}, ("big", "allow", "RULE")),  # checked anew
        ("small", None, ("small", "allow", "RULE")),
        ("c", {}, ("small", "allow", "RULE")),
    ],
)
def test_what_was_met_with_other_values_does_not_count(
    opener: Opener, effect: str, at_step: str, changes: dict[str, int] | None, decided: tuple[str, str, str]
) -> None:
    async def main() -> None:
        vm = _checking(opener, effect, policy=REQUIRING)
        source = await vm.run(program(*CHECKED), {"n": 1})
        fork = await vm.fork(source.trace_id, at_step, changes)
        assert _last_decision(fork) == decided
        sound(vm, fork)
        again = await vm.fork(fork.trace_id, fork.path[-1])
        assert _last_decision(again) == decided
        sound(vm, again)

    play(main())


def test_a_check_that_was_under_way_when_the_fork_left_does_not_count(opener: Opener) -> None:
    """The fork repeats it, for its outcome is unknown: with what it was given before."""

    async def main() -> None:
        gate = asyncio.Event()

        @tool(effect="idempotent")
        async def check(n: int) -> int:
            await gate.wait()
            return n

        async def quick() -> int:
            return 1

        def act(n: int) -> int:
            return n

        steps = [
            _after(tool_step("first", "check", args={"n": "$n"})),
            _after(tool_step("quick", "quick")),
            _after(tool_step("next", "quick"), "quick"),
            _after(tool_step("end", "act", args={"n": "$n"}), "first", "next"),
        ]
        vm = opener(tools=[check, quick, act], policy=REQUIRING)
        driving = asyncio.create_task(vm.run(program(*steps), {"n": 1}, trace_id="source"))
        await _until_done(vm, "source", "next")
        forking = asyncio.create_task(vm.fork("source", "next", {"n": 9}))
        for _ in range(20):
            await asyncio.sleep(0)
        gate.set()
        source, fork = await driving, await forking
        assert _last_decision(source) == ("end", "allow", "RULE")
        assert _last_decision(fork) == ("end", "deny", "REQUIRES")
        sound(vm, fork)

    play(main())


def test_a_lane_that_begins_after_the_change_counts(opener: Opener) -> None:
    async def main() -> None:
        lanes = [tool_step("first", "check", args={"n": "$n"})]
        steps = [
            tool_step("before", "check", args={"n": 0}),
            {"id": "g", "type": "parallel", "parallel_steps": lanes},
            tool_step("end", args={"n": "$n"}),
        ]
        vm = _checking(opener, "irreversible", policy=REQUIRING)
        source = await vm.run(program(*steps), {"n": 1})
        fork = await vm.fork(source.trace_id, "g", {"n": 9})
        assert (fork.status, fork.final_output) == (RunStatus.SUCCESS, 9)
        sound(vm, fork)

    play(main())


def test_a_run_without_a_policy_can_be_forked_into_one_that_has_it(opener: Opener) -> None:
    async def main() -> None:
        free = _checking(opener, "pure")
        source = await free.run(program(*CHECKED), {"n": 1})
        vm = _checking(opener, "pure", policy=REQUIRING)
        fork = await vm.fork(source.trace_id, "c", {"n": 9})
        assert _last_decision(fork) == ("big", "deny", "REQUIRES")
        sound(vm, fork)

    play(main())


# --- changes --------------------------------------------------------------------------------------------------


def test_a_fork_is_forked_with_the_values_that_it_went_on_with(opener: Opener) -> None:
    async def main() -> None:
        vm = _checking(opener, "irreversible")
        source = await vm.run(program(*CHECKED), {"n": 1})
        at_step = await vm.fork(source.trace_id, "small", {"n": 3})
        at_condition = await vm.fork(source.trace_id, "c", {"n": 9})
        for forked, step, changes, output in [
            (at_step, "small", None, 3),
            (at_step, "small", {"n": 4}, 4),
            (at_condition, "big", None, 9),
            (at_condition, "c", None, 9),
            (at_condition, "c", {"n": 2}, 2),
            (at_condition, "first", None, 1),  # its values were changed after it
        ]:
            again = await vm.fork(forked.trace_id, step, changes)
            assert again.final_output == output
            sound(vm, again)

    play(main())


def test_a_condition_that_a_run_begins_with_is_decided_by_the_changed_inputs(opener: Opener) -> None:
    async def main() -> None:
        vm = _checking(opener, "irreversible")
        source = await vm.run(program(*CHECKED[1:]), {"n": 1})
        fork = await vm.fork(source.trace_id, "c", {"n": 9})
        assert (source.path, fork.path, fork.final_output) == (["c", "small"], ["c", "big"], 9)
        sound(vm, fork)

    play(main())


@pytest.mark.parametrize("named", ["w", "w.output", "k"])
@pytest.mark.parametrize("who", [{}, {"approvers": ["boss"]}], ids=["event", "approval"])
def test_an_answer_is_not_changed_behind_a_condition_it_decided(
    opener: Opener, who: dict[str, Any], named: str
) -> None:
    """It was lost without a word; put in its place it would stand in the journal as what somebody had said."""

    async def main() -> None:
        steps = [
            wait_step("w", output_key="k", **who),
            {
                "id": "c",
                "type": "condition",
                "condition": "$w.output.approved == true",
                "then": "yes",
                "otherwise": "no",
            },
            tool_step("yes", args={"n": 1}, is_terminal=True),
            tool_step("no", args={"n": 0}, is_terminal=True),
        ]
        vm = _checking(opener, "irreversible")
        source = await vm.run(program(*steps), principal={"id": "ana", "roles": ["clerk"]})
        boss = {"id": "eve", "roles": ["boss"]}
        await vm.resume(source.trace_id, {"approved": False}, principal=boss)
        with refused("VALUE_ANSWERED"):
            await vm.fork(source.trace_id, "c", {named: {"approved": True}})
        fork = await vm.fork(source.trace_id, "w")
        fork = await vm.resume(fork.trace_id, {"approved": True}, principal=boss)
        assert fork.path == ["w", "c", "yes"]
        sound(vm, fork)

    play(main())


def test_a_condition_behind_a_timer_is_decided_by_the_changed_inputs(opener: Opener) -> None:
    async def main() -> None:
        vm = _checking(opener, "irreversible")
        source = await vm.run(
            program({"id": "w", "type": "wait", "seconds": 1}, *CHECKED[1:]), {"n": 1}, trace_id="source"
        )
        vm.clock.advance(2_000)
        await vm.recover()
        fork = await vm.fork(source.trace_id, "c", {"n": 9})
        assert fork.path == ["w", "c", "big"]
        sound(vm, fork)

    play(main())


def test_a_change_that_the_steps_gate_does_not_admit_is_refused(opener: Opener) -> None:
    async def main() -> None:
        steps = [
            {"id": "ask", "type": "llm", "prompt": "sure?", "allowed_outputs": ["yes", "no"]},
            {"id": "c", "type": "condition", "condition": "$ask.output == 'yes'", "then": "big", "otherwise": "small"},
            tool_step("big", args={"n": 9}, is_terminal=True),
            tool_step("small", args={"n": 1}, is_terminal=True),
        ]  # fmt: skip
        vm = _checking(opener, "irreversible", llm=MockLLMAdapter("no"))
        source = await vm.run(program(*steps))
        with refused("GATE"):
            await vm.fork(source.trace_id, "c", {"ask": "perhaps"})
        fork = await vm.fork(source.trace_id, "c", {"ask": "yes"})
        assert fork.path == ["ask", "c", "big"]
        sound(vm, fork)

    play(main())


def test_a_fork_where_the_budget_ended_the_run_changes_nothing(opener: Opener) -> None:
    async def main() -> None:
        vm = _checking(opener, "irreversible")
        a, b, c = (tool_step(name, args={"n": "$n"}) for name in "abc")
        group = {"id": "g", "type": "parallel", "parallel_steps": [b, c]}
        source = await vm.run(program(a, group, max_steps=2), {"n": 1})
        assert source.status is RunStatus.BUDGET_EXCEEDED
        with refused("TERMINAL"):
            await vm.fork(source.trace_id, "g", {"n": 2})
        fork = await vm.fork(source.trace_id, "a", {"n": 2})
        assert fork.status is RunStatus.BUDGET_EXCEEDED
        sound(vm, fork)

    play(main())


def test_a_child_that_has_ended_is_shared_by_forks_of_forks(opener: Opener) -> None:
    async def main() -> None:
        vm = _checking(opener, "irreversible")
        vm.save_program(program(tool_step("only", args={"n": 1}), name="kid"))
        steps = [
            {"id": "call", "type": "call", "program": "kid", "inputs": {}},
            tool_step("mid", args={"n": "$n"}),
            tool_step("end", args={"n": "$n"}),
        ]
        trace = await vm.run(program(*steps), {"n": 1}, trace_id="f0")
        for number in (1, 2, 3):
            trace = await vm.fork(trace.trace_id, "end", {"n": number}, new_trace_id=f"f{number}")
            assert trace.final_output == number
            assert _bundled(vm, trace) == [trace.trace_id, "f0/call.1.1"]

    play(main())
