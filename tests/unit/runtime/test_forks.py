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
from nano_vm.testing.clock import VirtualClock


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


def test_a_fork_where_the_budget_ended_the_run_ends_there_as_well_whatever_is_changed(opener: Opener) -> None:
    async def main() -> None:
        vm = _checking(opener, "irreversible")
        a, b, c = (tool_step(name, args={"n": "$n"}) for name in "abc")
        group = {"id": "g", "type": "parallel", "parallel_steps": [b, c]}
        source = await vm.run(program(a, group, max_steps=2), {"n": 1})
        assert source.status is RunStatus.BUDGET_EXCEEDED
        for at_step in ("g", "a"):
            fork = await vm.fork(source.trace_id, at_step, {"n": 2})
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


# --- what the changes reach -------------------------------------------------------------------------------------


def _chain(*names: str) -> list[dict[str, Any]]:
    """Steps each of which is given what the one before it has yielded, and the first one `n`."""
    given = ["$n", *(f"${name}.output" for name in names)]
    return [tool_step(name, args={"name": name, "n": n}) for name, n in zip(names, given, strict=False)]


def test_a_fork_of_a_fork_takes_the_changes_of_both_along(opener: Opener) -> None:
    count = Counter()

    def act(name: str, n: int) -> int:
        count(name)
        return n + 1

    vm = opener(tools={"act": act})

    async def main() -> None:
        source = await vm.run(program(*_chain("a", "b", "c", "d")), {"n": 1})
        fork = await vm.fork(source.trace_id, "b", {"a.output": 10})
        again = await vm.fork(fork.trace_id, "d", {"c.output": 100})
        plain = await vm.fork(again.trace_id, "d")
        early = await vm.fork(again.trace_id, "b", {"a.output": 20})  # before the first change was made
        made = (source, fork, again, plain, early)
        assert [trace.final_output for trace in made] == [5, 13, 101, 101, 23]
        assert plain.trace_hash == again.trace_hash
        assert "".join(count.effects) == "abcd" + "bcd" + "d" + "d" + "bcd"
        for trace in made:
            sound(vm, trace)
            verify_bundle(export(vm.store, trace.trace_id).data)

    play(main())


_BIG = {"id": "c", "type": "condition", "condition": "$n > 5", "then": "big"}
_SMALL = tool_step("small", args={"n": 0}, is_terminal=True)
_MAP = {"id": "m", "type": "map", "over": "$a.output", "step": tool_step("each", args={"n": "$item"})}
_SETTLED_AT_ONCE: dict[str, tuple[list[dict[str, Any]], Any, str, dict[str, Any], list[str]]] = {
    "a condition before anything else": (
        [_BIG | {"otherwise": "small"}, tool_step("big", args={"n": 1}, is_terminal=True), _SMALL],
        1,
        "c",
        {"n": 9},
        ["c", "big"],
    ),
    "a condition that ended the run": (
        [_BIG, tool_step("big", args={"n": 1})],
        1,
        "c",
        {"n": 9},
        ["c", "big"],
    ),
    "a map over nothing": (
        [tool_step("a", args={"n": "$n"}), _MAP],
        [],
        "m",
        {"a.output": [4]},
        ["a", "each", "m"],
    ),
    "arguments that cannot be made": (
        [tool_step("a", args={"n": "$n"}), tool_step("b", args={"n": "$a.output.id"})],
        {},
        "b",
        {"a.output": {"id": 5}},
        ["a", "b"],
    ),
}


@pytest.mark.parametrize("what", _SETTLED_AT_ONCE)
def test_changes_bear_on_what_settled_as_it_was_entered(opener: Opener, what: str) -> None:
    steps, n, at_step, changes, path = _SETTLED_AT_ONCE[what]
    vm = opener(tools={"act": lambda n: n})

    async def main() -> None:
        source = await vm.run(program(*steps), {"n": n})
        fork = await vm.fork(source.trace_id, at_step, changes)
        assert (fork.status, fork.path) == (RunStatus.SUCCESS, path)
        again = await vm.fork(fork.trace_id, at_step, changes)
        assert again.trace_hash == fork.trace_hash
        for trace in (source, fork, again):
            sound(vm, trace)
            verify_bundle(export(vm.store, trace.trace_id).data)

    play(main())


def test_a_later_turn_of_a_loop_is_come_to_whatever_is_changed(opener: Opener) -> None:
    steps = [
        tool_step("a", args={"n": "$n"}),
        {"id": "c", "type": "condition", "condition": "$a.output > 5", "then": "end", "otherwise": "a"},
        tool_step("end", args={"n": "$a.output"}),
    ]
    vm = opener(tools={"act": lambda n: n})

    async def main() -> None:
        source = await vm.run(program(*steps, max_steps=7), {"n": 1})
        assert source.status is RunStatus.BUDGET_EXCEEDED
        fork = await vm.fork(source.trace_id, "a", {"a.output": 9, "n": 8}, occurrence=2)
        assert (fork.path, fork.final_output) == (["a", "c", "a", "c", "end"], 8)
        sound(vm, fork)

    play(main())


_WAITS: dict[str, dict[str, Any]] = {
    "a timer": {"id": "w", "type": "wait", "seconds": "$n"},
    "an event": wait_step("w", accept="$event.n == $n"),
    "a group": {"id": "w", "type": "parallel", "timeout_seconds": 5, "on_timeout": "fallback", "fallback": 1}
    | {"parallel_steps": [wait_step("late", event="late")]},
}


@pytest.mark.parametrize("what", _WAITS)
def test_a_wait_that_would_not_have_ended_with_the_changes_is_waited_for_again(
    opener: Opener, clock: VirtualClock, what: str
) -> None:
    steps = [
        _WAITS[what],
        _BIG | {"otherwise": "small"},
        tool_step("big", args={"n": "$n"}, is_terminal=True),
        _SMALL,
    ]
    vm = opener(tools={"act": lambda n: n})

    async def go_on(trace: Trace, n: int) -> Trace:
        assert [wait.step for wait in trace.waiting] == ["late" if what == "a group" else "w"]
        if what == "an event":
            return await vm.resume(trace.trace_id, {"n": n})
        clock.advance(n * 1_000)
        return (await vm.recover())[0]

    async def main() -> None:
        source = await go_on(await vm.run(program(*steps), {"n": 5}), 5)
        assert source.path[-1] == "small"
        fork = await vm.fork(source.trace_id, "c", {"n": 60})
        assert fork.status is RunStatus.SUSPENDED
        sound(vm, fork)
        fork = await go_on(fork, 60)
        assert (fork.path[-1], fork.final_output) == ("big", 60)
        sound(vm, fork)

    play(main())


@pytest.mark.parametrize("changes", [None, {"b.output": 2}])
def test_the_time_between_a_run_and_its_fork_is_no_duration(
    opener: Opener, clock: VirtualClock, changes: dict[str, Any] | None
) -> None:
    vm = opener(tools={"act": lambda name, n: n})

    async def main() -> None:
        source = await vm.run(program(*_chain("a", "b", "c", "d"), max_duration_seconds=9), {"n": 1})
        clock.advance(86_400_000)
        fork = await vm.fork(source.trace_id, "c", changes)
        assert (fork.status, fork.final_output) == (RunStatus.SUCCESS, 2 if changes else 1)
        again = await vm.fork(fork.trace_id, "d")
        assert again.status is RunStatus.SUCCESS
        for trace in (fork, again):
            sound(vm, trace)

    play(main())
