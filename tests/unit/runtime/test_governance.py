"""A governed run: nothing is dispatched that was not decided, and every decision can be made again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from runtime_stage import Counter, Opener, kinds, play, program, refused, sound, tool_step, wait_step

from nano_vm import (
    ExecutionVM,
    MockLLMAdapter,
    NanoVMError,
    Program,
    ProgramValidator,
    RunStatus,
    Trace,
    tool,
)
from nano_vm.kernel.events import PolicyDecided
from nano_vm.policy import load_policy

ANA = {"id": "ana", "roles": ["clerk"]}


def rules(*given: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"policy": "p", "rules": [{"tools": ["act"], **rule} for rule in given], **fields}


def decisions(trace: Trace) -> list[tuple[str, str, str]]:
    return [(e.step, e.decision, e.rule) for e in trace.events if type(e) is PolicyDecided]


async def done(
    vm: ExecutionVM, flow: dict[str, Any], context: Any = None, *, proves: bool = True, **options: Any
) -> Trace:
    """Run it. `proves`: the program is held against the policy before it starts, as is usual."""
    vm.proves = proves
    trace = await vm.run(flow, context, principal=ANA, **options)
    sound(vm, trace)
    return trace


def test_what_the_policy_allows_runs_and_the_decision_is_journaled(opener: Opener) -> None:
    count = Counter()
    flow = program(tool_step("a", args={"effect": 1}), tool_step("b", args={"effect": 2}))

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: count(effect)}, policy=rules({"id": "yes"}))
        trace = await done(vm, flow)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [1, 2])
        assert decisions(trace) == [("a", "allow", "yes"), ("b", "allow", "yes")]
        assert trace.events[0].policy == vm.policy.hash

    play(main())


@pytest.mark.parametrize(
    ("policy", "rule", "reason"),
    [
        (rules({"id": "a", "tools": ["other"]}), "default", "DEFAULT"),
        (rules({"id": "no", "decision": "deny"}), "no", "RULE"),
        (rules({"id": "few", "when": "$args.effect < 5"}), "default", "DEFAULT"),
        (rules({"id": "after", "requires": ["check"]}), "after", "REQUIRES"),
        (rules({"id": "odd", "when": "$args.nothing == 1"}), "odd", "CONDITION"),
    ],
)
def test_what_is_denied_never_starts(opener: Opener, policy: dict[str, Any], rule: str, reason: str) -> None:
    count = Counter()
    flow = program(tool_step("a", args={"effect": 7}))

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: count(effect)}, policy=policy)
        trace = await done(vm, flow, proves=False)
        assert (trace.status, count.effects) == (RunStatus.FAILED, [])
        assert trace.error["type"] == "CapabilityDeniedError"
        assert kinds(trace) == ["RunStarted", "PolicyDecided", "StepFailed", "RunFinished"]
        (event,) = [e for e in trace.events if type(e) is PolicyDecided]
        assert (event.decision, event.rule, event.reason) == ("deny", rule, reason)

    play(main())


@pytest.mark.parametrize(
    ("flow", "policy", "code"),
    [
        (program(tool_step("a", args={"effect": 1})), {"policy": "p", "tools": ["other"]}, "DENIED_TOOL"),
        (
            program({"id": "m", "type": "map", "over": [1], "step": tool_step("a", args={"effect": 1})}),
            rules({"id": "no", "decision": "deny"}),
            "DENIED_TOOL",
        ),
        (
            program(tool_step("b", "other", compensate={"tool": "act", "args": {"effect": 1}})),
            {"policy": "p", "tools": ["other"]},
            "DENIED_TOOL",
        ),
        (
            program(
                {"id": "way", "type": "condition", "condition": "$n > 1", "then": "b", "otherwise": "a"},
                tool_step("b", "other", next_step="a"),
                tool_step("a", args={"effect": 1}),
            ),
            rules({"id": "after", "requires": ["other"]}, {"id": "all", "tools": ["other"]}),
            "GUARD_MISSED",
        ),
    ],
)
def test_a_program_that_its_policy_would_stop_does_not_start(
    opener: Opener, flow: dict[str, Any], policy: dict[str, Any], code: str
) -> None:
    """The findings of `check --policy`; also in programs that are called, however deep."""
    count = Counter()

    async def main() -> None:
        tools = {"act": lambda effect: count(effect), "other": lambda: 1}
        expected = ProgramValidator(
            Program.from_dict(flow), tools=opener(tools=tools).tools.schemas(), policy=policy
        ).validate()
        assert [finding.code for finding in expected.errors] == [code]
        vm = opener(tools=tools, policy=policy)
        with pytest.raises(NanoVMError) as caught:
            await vm.run(flow, {"n": 5}, principal=ANA)
        assert caught.value.code == code
        assert [f.code for f in caught.value.diagnostics if f.severity == "error"] == [code]
        assert vm.runs() == []
        # Where it was stored before there was such a policy, and is called.
        other = opener(tools=tools)
        other.save_program({**flow, "name": "deep"})
        other.save_program(
            program({"id": "k", "type": "call", "program": "deep", "inputs": {"n": 5}}, name="mid")
        )
        top = program(
            {"id": "m", "type": "map", "over": [1], "step": {"id": "k", "type": "call", "program": "mid"}}
        )
        with pytest.raises(NanoVMError) as caught:
            await vm.run({**top, "name": "top"}, principal=ANA)
        (found,) = caught.value.diagnostics
        assert (found.code, found.place.step, found.place.field) == (code, "k", "program")
        assert "`mid`, `deep`" in found.message
        assert (vm.runs(), count.effects) == ([], [])

    play(main())


def test_a_refusal_is_a_governed_event_and_is_not_retried(opener: Opener) -> None:
    flow = program(
        tool_step("a", args={"effect": 1}, on_error="retry", on_failure="plan_b", is_terminal=True),
        tool_step("plan_b", "other", args={"why": "$a.error.type"}, is_terminal=True),
    )

    async def main() -> None:
        vm = opener(
            tools={"act": lambda effect: None, "other": lambda why: why},
            policy={"policy": "p", "tools": ["other"]},
        )
        trace = await done(vm, flow, proves=False)
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "CapabilityDeniedError")
        assert decisions(trace) == [("a", "deny", "default"), ("plan_b", "allow", "tools")]

    play(main())


@pytest.mark.parametrize("effect", ["pure", "idempotent", "keyed", "irreversible", "transactional"])
def test_every_effect_class_passes_the_gate(opener: Opener, effect: str) -> None:
    count = Counter()

    @tool(effect=effect)
    def act(effect: int) -> int:
        count(effect)
        return effect

    flow = program(tool_step("a", args={"effect": 1}), tool_step("b", args={"effect": 9}))

    async def main() -> None:
        trace = await done(
            opener(tools={"act": act}, policy=rules({"id": "few", "when": "$args.effect < 5"})), flow
        )
        assert (trace.status, count.effects) == (RunStatus.FAILED, [1])
        assert decisions(trace) == [("a", "allow", "few"), ("b", "deny", "default")]

    play(main())


def test_lanes_maps_and_children_pass_the_same_gate(opener: Opener) -> None:
    count = Counter()
    policy = rules({"id": "few", "when": "$args.effect < 5"})
    child = program(tool_step("c", args={"effect": "$n"}), name="child")
    flow = program(
        {
            "id": "p",
            "type": "parallel",
            "parallel_steps": [tool_step("l1", args={"effect": 1}), tool_step("l2", args={"effect": 6})],
            "on_failure": "m",
        },
        {
            "id": "m",
            "type": "map",
            "over": [2, 7],
            "step": tool_step("each", args={"effect": "$item"}),
            "on_failure": "k",
        },
        {"id": "k", "type": "call", "program": "child", "inputs": {"n": 8}},
    )

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: count(effect)}, policy=policy)
        vm.save_program(child)
        trace = await done(vm, flow)
        assert sorted(count.effects) == [1, 2]
        assert trace.error["type"] == "CHILD_FAILED"
        assert {(s, d) for s, d, _ in decisions(trace)} == {
            ("l1", "allow"), ("l2", "deny"), ("each", "allow"), ("each", "deny")
        }  # fmt: skip
        below = vm.trace(f"{trace.trace_id}/k.1.1")
        assert decisions(below) == [("c", "deny", "default")]
        assert below.events[0].policy == trace.events[0].policy
        sound(vm, below)

    play(main())


def test_compensations_pass_the_gate_too(opener: Opener) -> None:
    count = Counter()
    flow = program(
        tool_step("a", args={"effect": 1}, compensate={"tool": "undo", "args": {"effect": 1}}),
        tool_step("b", args={"effect": 2}, compensate={"tool": "undo", "args": {"effect": 2}}),
        tool_step("c", args={"effect": 9}),
    )
    policy = rules(
        {"id": "few", "when": "$args.effect < 5"},
        {"id": "undoing", "tools": ["undo"], "when": "$args.effect == 2"},
    )

    async def main() -> None:
        vm = opener(
            tools={"act": lambda effect: count(effect), "undo": lambda effect: count(-effect)}, policy=policy
        )
        trace = await done(vm, flow)
        assert (trace.status, count.effects) == (RunStatus.FAILED, [1, 2, -2])
        assert trace.incomplete_compensations == ["a"]
        assert decisions(trace)[-2:] == [("b", "allow", "undoing"), ("a", "deny", "default")]

    play(main())


def test_models_are_allowed_by_name(opener: Opener) -> None:
    flow = program(
        {"id": "m", "type": "llm", "prompt": "?", "on_failure": "n"},
        {"id": "n", "type": "llm", "prompt": "?", "model": "big"},
    )

    async def main() -> None:
        llm = MockLLMAdapter("yes")
        trace = await done(opener(tools={}, llm=llm, policy={"policy": "p", "models": ["default"]}), flow)
        assert (trace.status, trace.error["step"]) == (RunStatus.FAILED, "n")
        assert decisions(trace) == [("m", "allow", "models"), ("n", "deny", "default")]

    play(main())


def test_what_must_precede_is_what_has_really_succeeded(opener: Opener) -> None:
    policy = {
        "policy": "p",
        "tools": ["check"],
        "rules": [{"id": "after", "tools": ["act"], "requires": ["check"]}],
    }

    def check(ok: bool) -> bool:
        if not ok:
            raise ValueError("no")
        return ok

    def flow(ok: bool) -> dict[str, Any]:
        return program(
            tool_step("check_it", "check", args={"ok": ok}, on_error="skip"),
            tool_step("a", args={"effect": 1}),
        )

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: effect, "check": check}, policy=policy)
        assert (await done(vm, flow(True), proves=False)).status is RunStatus.SUCCESS
        assert (await done(vm, flow(False), proves=False)).status is RunStatus.FAILED
        # A step that is merely called so is not the tool.
        lookalike = program(
            tool_step("check", "check", args={"ok": False}, on_failure="a"),
            tool_step("a", args={"effect": 1}),
        )
        assert (await done(vm, lookalike, proves=False)).error["type"] == "CapabilityDeniedError"

    play(main())


def test_what_has_preceded_is_still_known_after_a_resume_elsewhere(opener: Opener) -> None:
    policy = {
        "policy": "p",
        "tools": ["check"],
        "rules": [{"id": "after", "tools": ["act"], "requires": ["check"]}],
    }
    flow = program(tool_step("c", "check"), wait_step("w"), tool_step("a", args={"effect": 1}))
    tools = {"act": lambda effect: effect, "check": lambda: True}

    async def main() -> None:
        trace = await done(opener(tools=tools, policy=policy), flow)
        other = opener(tools=tools)
        trace = await other.resume(trace.trace_id, {})
        assert trace.status is RunStatus.SUCCESS
        sound(other, trace)

    play(main())


def test_a_policy_that_was_tightened_meanwhile_holds_at_once(opener: Opener) -> None:
    count = Counter()
    flow = program(wait_step("w"), tool_step("a", args={"effect": 7}))
    loose, tight = rules({"id": "yes"}), rules({"id": "few", "when": "$args.effect < 5"})
    tools = {"act": lambda effect: count(effect)}

    async def main() -> None:
        trace = await done(opener(tools=tools, policy=loose), flow)
        other = opener(tools=tools, policy=tight)
        trace = await other.resume(trace.trace_id, {})
        assert (trace.status, count.effects) == (RunStatus.FAILED, [])
        (event,) = [e for e in trace.events if type(e) is PolicyDecided]
        assert (event.policy, event.current) == (other.policy.hash, other.policy.hash)
        sound(other, trace)

    play(main())


@pytest.mark.parametrize("effect", ["pure", "keyed"])
def test_a_run_from_before_there_was_a_policy_is_held_against_the_one_in_force(
    opener: Opener, effect: str
) -> None:
    count = Counter()

    @tool(effect=effect, blocking=False)
    def act(effect: int) -> None:
        count(effect)

    flow = program(
        wait_step("w"),
        tool_step("a", args={"effect": 1}),
        tool_step("b", args={"effect": 2}),
        tool_step("c", args={"effect": 7}),
    )

    async def main() -> None:
        trace = await done(opener(tools={"act": act}), flow)
        other = opener(tools={"act": act}, policy=rules({"id": "few", "when": "$args.effect < 5"}))
        trace = await other.resume(trace.trace_id, {})
        assert (trace.status, count.effects) == (RunStatus.FAILED, [1, 2])
        assert [decision for _, decision, _ in decisions(trace)] == ["allow", "allow", "deny"]
        sound(other, trace)

    play(main())


def test_a_policy_that_was_loosened_meanwhile_does_not_help(opener: Opener) -> None:
    count = Counter()
    flow = program(wait_step("w"), tool_step("a", args={"effect": 7}))
    loose, tight = rules({"id": "yes"}), rules({"id": "few", "when": "$args.effect < 5"})
    tools = {"act": lambda effect: count(effect)}

    async def main() -> None:
        for later in (loose, None):
            trace = await done(opener(tools=tools, policy=tight), flow)
            other = opener(tools=tools, policy=later)
            trace = await other.resume(trace.trace_id, {})
            assert (trace.status, count.effects) == (RunStatus.FAILED, [])
            sound(other, trace)

    play(main())


def test_a_policy_tightened_between_intent_and_call_still_stops_it(opener: Opener) -> None:
    """While the intent is being made durable the policy in force changes: the call is looked at again."""
    count = Counter()
    flow = program(tool_step("a", args={"effect": 7}))
    tight = load_policy(rules({"id": "few", "when": "$args.effect < 5"}))

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: count(effect)}, policy=rules({"id": "yes"}))
        conflict = vm.calls.tool
        before = vm.store.create

        def tighten(record: Any, entries: Any) -> Any:
            durable = before(record, entries)
            vm.set_policy(tight)
            return durable

        vm.store.create = tighten  # type: ignore[method-assign]
        trace = await vm.run(flow, principal=ANA)
        assert conflict == vm.calls.tool
        if "StepStarted" in kinds(trace):
            assert kinds(trace)[-4:] == ["StepStarted", "PolicyDecided", "StepFailed", "RunFinished"]
        assert (trace.status, count.effects) == (RunStatus.FAILED, [])
        sound(vm, trace)

    play(main())


def test_a_retry_is_decided_again_after_its_back_off(opener: Opener) -> None:
    count = Counter()
    tight = rules({"id": "no", "decision": "deny"})

    async def main() -> None:
        vm = opener(tools={}, policy=rules({"id": "yes"}))

        def act(effect: int) -> None:
            count(effect)
            vm.set_policy(tight)
            raise ValueError("once more")

        vm.register_tool("act", act)
        trace = await done(vm, program(tool_step("a", args={"effect": 1}, on_error="retry")))
        assert (trace.status, count.effects) == (RunStatus.FAILED, [1])
        assert decisions(trace) == [("a", "allow", "yes"), ("a", "deny", "no")]

    play(main())


def test_limits_count_across_runs_and_are_journaled_with_what_they_saw(opener: Opener) -> None:
    count = Counter()
    policy = rules({"id": "few", "limits": [{"max_calls": 2, "per": ["principal", "day"]}]})
    flow = program(tool_step("a", args={"effect": 1}))

    async def main() -> None:
        tools = {"act": lambda effect: count(effect)}
        traces = [await done(opener(tools=tools, policy=policy), flow) for _ in range(3)]
        assert [trace.status.value for trace in traces] == ["SUCCESS", "SUCCESS", "FAILED"]
        saw = [e.counts[0][1:] for trace in traces for e in trace.events if type(e) is PolicyDecided]
        assert saw == [[0, 1], [1, 1], [2, 1]]
        vm = opener(tools=tools, policy=policy)
        other = await vm.run(flow, principal={"id": "bob", "roles": []})
        assert other.status is RunStatus.SUCCESS
        assert len(count.effects) == 3

    play(main())


def test_runs_at_once_never_exceed_a_limit_together(opener: Opener) -> None:
    count = Counter()
    policy = rules({"id": "sum", "limits": [{"max_sum": 10, "of": "$args.effect", "per": ["day"]}]})
    flow = program(tool_step("a", args={"effect": 3}))

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: count(effect)}, policy=policy)
        traces = await asyncio.gather(*(vm.run(flow, principal=ANA) for _ in range(8)))
        assert sum(count.effects) == 9
        assert sum(trace.status is RunStatus.SUCCESS for trace in traces) == 3
        for trace in traces:
            sound(vm, trace)

    play(main())


def test_a_run_whose_policy_is_gone_is_not_guessed_at(opener: Opener) -> None:
    flow = program(wait_step("w"), tool_step("a", args={"effect": 7}))

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: effect}, policy=rules({"id": "yes"}))
        trace = await done(vm, flow)
        other = opener(tools=vm.tools)

        def missing(policy_hash: str) -> bytes:
            from nano_vm.stores.rules import policy_not_found

            raise policy_not_found(policy_hash)

        other.store.policy = missing  # type: ignore[method-assign]
        held = other._policies
        held.clear()
        with refused("POLICY_MISSING"):
            await other.resume(trace.trace_id, {})
        assert other.store.record(trace.trace_id).owner is None

    play(main())


def test_a_fork_stays_under_the_policy_of_its_run(opener: Opener) -> None:
    count = Counter()
    flow = program(tool_step("a", args={"effect": 1}), tool_step("b", args={"effect": "$a.output"}))
    policy = rules({"id": "few", "when": "$args.effect < 5"})

    async def main() -> None:
        def act(effect: int) -> int:
            count(effect)
            return effect

        vm = opener(tools={"act": act}, policy=policy)
        trace = await done(vm, flow)
        other = opener(tools={"act": act})
        fork = await other.fork(trace.trace_id, "b", {"a": 9})
        assert (fork.status, count.effects) == (RunStatus.FAILED, [1, 1])
        sound(other, fork)

    play(main())


@pytest.mark.parametrize("effect", ["pure", "keyed"])
@pytest.mark.parametrize("before", [[], ["look"]])
@pytest.mark.parametrize("lane", [True, False])
def test_what_settles_at_once_counts_for_what_is_required(
    opener: Opener, effect: str, before: list[str], lane: bool
) -> None:
    """A map over nothing, as the first step of a run too."""
    look, act = (tool(name=name, effect=effect, blocking=False)(lambda: 1) for name in ("look", "act"))
    each = {"id": "m", "type": "map", "over": "$n", "step": tool_step("e", "look")}
    flow = program(*(tool_step("z", name) for name in before), each, tool_step("b", "act"))
    required = {"id": "r", "tools": ["act"], "requires": ["step:m"]}
    vm = opener(tools=[look, act], policy={"policy": "p", "tools": ["look"], "rules": [required]})
    vm.lane = lane
    trace = play(vm.run(flow, {"n": []}))
    sound(vm, trace)
    assert trace.status is RunStatus.SUCCESS
