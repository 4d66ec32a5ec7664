"""An approval is of one exact action: shown, named by digest and nonce, used once, by somebody else, in time."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runtime_stage import Counter, Opener, kinds, play, program, refused, sound, tool_step, wait_step

from nano_vm import PENDING, ExecutionVM, NanoVMError, RunStatus, SqliteStore, Trace, tool
from nano_vm.gateway.views import waits_view
from nano_vm.journal.port import RunQuery
from nano_vm.kernel.events import ApprovalRequested, EventReceived, EventRefused, PolicyDecided
from nano_vm.testing.clock import VirtualClock
from nano_vm.vault.local import Vault

ANA = {"id": "ana", "roles": ["clerk", "boss"]}
EVE = {"id": "eve", "roles": ["boss"]}
BOB = {"id": "bob", "roles": ["boss"]}
DAY = 86_400_000

ASKING = {
    "policy": "p",
    "rules": [
        {"id": "few", "tools": ["act"], "when": "$args.effect < 5"},
        {
            "id": "many",
            "tools": ["act"],
            "when": "$args.effect >= 5",
            "approval": {"roles": ["boss"], "expiry_seconds": 3600},
        },
    ],
}
ACT = program(tool_step("a", args={"effect": "$n"}))
BOUND = program(
    {"id": "ok", "type": "wait", "approvers": ["boss"], "approves": "a"},
    {"id": "go", "type": "condition", "condition": "$ok.output.approved", "then": "a", "otherwise": "no"},
    tool_step("a", args={"effect": "$n"}, is_terminal=True),
    tool_step("no", args={"effect": 0}),
)


async def asked(vm: ExecutionVM, flow: dict[str, Any] = ACT, n: int = 7) -> str:
    trace = await vm.run(flow, {"n": n}, principal=ANA)
    assert trace.status is RunStatus.SUSPENDED, trace.error
    (wait,) = trace.waiting
    assert (wait.kind, wait.approvers, wait.tool) == ("approval", ("boss",), "act")
    sound(vm, trace)
    return trace.trace_id


def codes(trace: Trace) -> list[str]:
    return [event.code for event in trace.events if type(event) is EventRefused]


def machine(opener: Opener, count: Counter, policy: Any = ASKING, **options: Any) -> ExecutionVM:
    async def act(effect: int) -> int:  # in no thread: virtual time waits for it
        count(effect)
        return effect

    return opener(tools={"act": act}, policy=policy, **options)


def test_a_rule_that_asks_suspends_the_run_until_somebody_approves(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm)
        assert count.effects == []
        (found,) = vm.approvals()
        assert (found.run_id, found.step, found.tool, found.shown["args"]) == (
            run_id,
            "a",
            "act",
            {"effect": 7},
        )
        trace = await machine(opener, count).approve(run_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        assert vm.approvals() == []
        allowed = [e for e in trace.events if type(e) is PolicyDecided]
        assert [(e.decision, e.rule) for e in allowed] == [("ask", "many"), ("allow", "many")]
        assert allowed[1].approval == found.nonce
        sound(vm, trace)

    play(main())


def test_a_refused_action_is_never_done(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        trace = await vm.approve(await asked(vm), False, principal=EVE)
        assert (trace.status, trace.error["type"], count.effects) == (RunStatus.FAILED, "APPROVAL_DENIED", [])
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize(
    ("answer", "principal", "code"),
    [
        ({}, {"id": "eve", "roles": ["clerk"]}, "NOT_APPROVER"),
        ({}, None, "NOT_APPROVER"),
        ({}, ANA, "SELF_APPROVAL"),
        ({"action": "sha256:" + "0" * 64}, EVE, "APPROVAL_VOID"),
        ({"nonce": "00"}, EVE, "APPROVAL_VOID"),
        ({"action": None}, EVE, "APPROVAL_VOID"),
        ({"approved": "yes"}, EVE, "NOT_APPROVAL"),
    ],
)
def test_an_answer_that_does_not_count_is_refused_by_name_and_kept(
    opener: Opener, answer: dict[str, Any], principal: Any, code: str
) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm)
        (found,) = vm.approvals()
        right = {"approved": True, "action": found.action, "nonce": found.nonce}
        with refused(code):
            await vm.resume(run_id, {**right, **answer}, principal=principal)
        trace = vm.trace(run_id)
        assert (trace.status, codes(trace), count.effects) == (RunStatus.SUSPENDED, [code], [])
        trace = await vm.resume(run_id, right, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        sound(vm, trace)

    play(main())


def test_an_answer_that_names_no_action_approves_nothing(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm)
        with refused("APPROVAL_VOID"):
            await vm.resume(run_id, {"approved": True}, principal=EVE)
        assert count.effects == []

    play(main())


def test_an_approval_of_another_run_is_worth_nothing(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        first, second = await asked(vm), await asked(vm)
        shown = {found.run_id: found for found in vm.approvals()}
        assert shown[first].action == shown[second].action
        replayed = {"approved": True, "action": shown[first].action, "nonce": shown[first].nonce}
        with refused("APPROVAL_VOID"):
            await vm.resume(second, replayed, principal=EVE)
        assert count.effects == []

    play(main())


def test_an_approval_serves_once(opener: Opener) -> None:
    """A loop comes to the same step with the same arguments: the approval of the first time is used up."""
    count = Counter()
    flow = program(
        tool_step("a", args={"effect": "$n"}),
        wait_step("again"),
        {
            "id": "more",
            "type": "condition",
            "condition": "$again.output.more",
            "then": "a",
            "otherwise": "end",
        },
        tool_step("end", args={"effect": 0}),
        max_steps=20,
    )

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm, flow)
        (first,) = vm.approvals()
        yes = {"approved": True, "action": first.action, "nonce": first.nonce}
        await vm.resume(run_id, yes, event_id="e1", principal=EVE)
        trace = await vm.resume(run_id, {"more": True}, name="go")
        assert [wait.kind for wait in trace.waiting] == ["approval"]
        assert trace.waiting[0].nonce != first.nonce
        trace = await vm.resume(run_id, yes, event_id="e1", principal=EVE)  # a repetition: the stored answer
        assert trace.status is RunStatus.SUSPENDED
        with refused("APPROVAL_VOID"):
            await vm.resume(run_id, yes, event_id="e2", principal=EVE)
        assert count.effects == [7]
        sound(vm, vm.trace(run_id))

    play(main())


def test_retries_of_a_known_failure_are_the_same_action(opener: Opener) -> None:
    count = Counter()

    def act(effect: int) -> int:
        count(effect)
        if len(count.effects) < 2:
            raise ValueError("not yet")
        return effect

    async def main() -> None:
        vm = opener(tools={"act": act}, policy=ASKING)
        run_id = await asked(vm, program(tool_step("a", args={"effect": "$n"}, on_error="retry")))
        trace = await vm.approve(run_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7, 7])
        sound(vm, trace)

    play(main())


def test_an_approval_does_not_outlive_its_expiry(opener: Opener, clock: VirtualClock) -> None:
    """The back-off is longer than the approval is good for: the second attempt has to be approved anew."""
    count = Counter()

    def act(effect: int) -> int:
        count(effect)
        raise ValueError("not yet")

    flow = program(
        tool_step("a", args={"effect": "$n"}, on_error="retry", retry={"initial": 7200, "cap": 7200})
    )

    async def main() -> None:
        vm = opener(tools={"act": act}, policy=ASKING)
        trace = await vm.approve(await asked(vm, flow), principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUSPENDED, [7])
        requests = [e for e in trace.events if type(e) is ApprovalRequested]
        assert [e.reason for e in requests[1:]] == ["APPROVAL_EXPIRED"]
        sound(vm, trace)

    play(main())


def test_nobody_answering_blocks(opener: Opener, clock: VirtualClock) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm)
        (found,) = vm.approvals()
        assert found.due_ms == clock.now_ms() + 3_600_000
        clock.advance(3_600_000)
        with refused("APPROVAL_EXPIRED"):
            await vm.approve(run_id, principal=EVE)
        (trace,) = await vm.recover() or [vm.trace(run_id)]
        assert (trace.status, trace.error["type"], count.effects) == (
            RunStatus.FAILED,
            "APPROVAL_EXPIRED",
            [],
        )
        sound(vm, trace)

    play(main())


def test_two_people_where_two_are_asked_for(opener: Opener) -> None:
    count = Counter()
    policy = {
        "policy": "p",
        "rules": [{"id": "r", "tools": ["act"], "approval": {"roles": ["boss"], "count": 2}}],
    }

    async def main() -> None:
        vm = machine(opener, count, policy)
        run_id = await asked(vm)
        trace = await vm.approve(run_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUSPENDED, [])
        with refused("SELF_APPROVAL"):
            await vm.approve(run_id, principal=EVE, event_id="again")
        trace = await vm.approve(run_id, principal=BOB)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        sound(vm, trace)

    play(main())


def test_four_eyes_need_somebody_known_to_have_started_it(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        trace = await vm.run(ACT, {"n": 7})
        with refused("SELF_APPROVAL"):
            await vm.approve(trace.trace_id, principal=EVE)
        assert count.effects == []

    play(main())


# --- waits that are bound to an action ----------------------------------------------------------------------


def test_a_wait_may_be_bound_to_the_action_of_a_step(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count, policy=None)
        run_id = await asked(vm, BOUND)
        trace = await vm.approve(run_id, comment="fine", principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        assert trace.step("ok").output == {"approved": True, "comment": "fine", "by": "eve"}
        sound(vm, trace)
        again = await machine(opener, count, policy=None).run(BOUND, {"n": 7}, principal=ANA)
        again = await vm.approve(again.trace_id, comment="fine", principal=EVE)
        assert again.trace_hash == trace.trace_hash

    play(main())


def test_a_no_takes_the_programs_other_way(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count, policy=None)
        trace = await vm.approve(await asked(vm, BOUND), False, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [0])
        sound(vm, trace)

    play(main())


def test_what_has_changed_since_it_was_approved_has_to_be_approved_again(opener: Opener) -> None:
    """Between the request and the call the tool comes to be another one: the approval is void."""
    count = Counter()
    flow = program(
        tool_step("price", "next"),
        {"id": "ok", "type": "wait", "approvers": ["boss"], "approves": "a"},
        tool_step("a", args={"effect": "$price.output"}, is_terminal=True),
    )
    prices = iter([5])

    async def main() -> None:
        vm = opener(tools={"act": lambda effect: count(effect), "next": lambda: next(prices)})
        trace = await vm.run(flow, principal=ANA)
        first = trace.waiting[0]

        # The definition of the tool changes while the approver thinks.
        @tool(version="2")
        def act(effect: int) -> None:
            count(effect)

        other = opener(tools={"act": act, "next": vm.tools.spec("next").function})
        trace = await other.approve(trace.trace_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUSPENDED, [])
        (again,) = trace.waiting
        assert (again.step, again.kind) == ("a", "approval")
        assert again.action != first.action
        assert [e.reason for e in trace.events if type(e) is ApprovalRequested][1] == "APPROVAL_VOID"
        trace = await other.approve(trace.trace_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [5])
        sound(other, trace)

    play(main())


def test_a_way_around_the_wait_leads_to_the_same_question(opener: Opener) -> None:
    count = Counter()
    flow = program(
        {"id": "skip", "type": "condition", "condition": "$n > 5", "then": "a", "otherwise": "ok"},
        {"id": "ok", "type": "wait", "approvers": ["boss"], "approves": "a", "next_step": "a"},
        tool_step("a", args={"effect": "$n"}),
    )

    async def main() -> None:
        vm = machine(opener, count, policy=None)
        trace = await vm.run(flow, {"n": 7}, principal=ANA)
        assert (trace.status, trace.waiting[0].step, count.effects) == (RunStatus.SUSPENDED, "a", [])
        trace = await vm.approve(trace.trace_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        sound(vm, trace)

    play(main())


def test_the_wait_asks_for_what_the_policy_asks_for_too(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)  # four eyes: the program does not say so, the policy does
        run_id = await asked(vm, BOUND)
        with refused("SELF_APPROVAL"):
            await vm.approve(run_id, principal=ANA)
        trace = await vm.approve(run_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        assert kinds(trace).count("ApprovalRequested") == 1
        sound(vm, trace)

    play(main())


def test_a_fork_cannot_use_what_its_run_was_approved(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count, policy=None)
        trace = await vm.approve(await asked(vm, BOUND), principal=EVE)
        fork = await vm.fork(trace.trace_id, "a", principal=ANA)
        assert (fork.status, fork.waiting[0].step, count.effects) == (RunStatus.SUSPENDED, "a", [7])
        sound(vm, fork)

    play(main())


def test_whoever_approved_may_fork_the_run_and_has_still_approved_it_there(opener: Opener) -> None:
    count = Counter()
    flow = program(tool_step("a", args={"effect": "$n"}), tool_step("b", args={"effect": 1}))

    async def main() -> None:
        vm = machine(opener, count)
        trace = await vm.approve(await asked(vm, flow), principal=EVE)
        fork = await vm.fork(trace.trace_id, "b", principal=EVE)
        assert (fork.status, count.effects) == (RunStatus.SUCCESS, [7, 1, 1])
        sound(vm, fork)

    play(main())


def test_whoever_forks_a_run_is_none_of_those_who_approve_what_it_goes_on_to_do(opener: Opener) -> None:
    """Half of the approval was given before: by who starts the fork, so that another person is missing."""
    count = Counter()
    two = {
        "id": "two",
        "tools": ["act"],
        "when": "$args.effect >= 5",
        "approval": {"roles": ["boss"], "count": 2},
    }
    flow = program(
        tool_step("a", args={"effect": "$n"}, depends_on=[]),
        {"id": "w", "type": "wait", "event": "go", "depends_on": []},
        tool_step("b", args={"effect": 1}, depends_on=["w"]),
    )

    async def main() -> None:
        vm = machine(opener, count, {"policy": "p", "default": "allow", "rules": [two]})
        trace = await vm.run(flow, {"n": 7}, principal=ANA)
        await vm.approve(trace.trace_id, step="a", principal=EVE)
        await vm.resume(trace.trace_id, {}, name="go")
        fork = await vm.fork(trace.trace_id, "b", principal=EVE)
        fork = await vm.approve(fork.trace_id, step="a", principal=BOB)
        assert (fork.status, count.effects) == (RunStatus.SUSPENDED, [1, 1])
        fork = await vm.approve(fork.trace_id, step="a", principal={"id": "cid", "roles": ["boss"]})
        assert (fork.status, count.effects) == (RunStatus.SUCCESS, [1, 1, 7])
        sound(vm, fork)

    play(main())


def test_a_child_asks_through_its_parent(opener: Opener) -> None:
    count = Counter()
    child = program(tool_step("a", args={"effect": "$n"}), name="child")
    flow = program({"id": "k", "type": "call", "program": "child", "inputs": {"n": "$n"}})

    async def main() -> None:
        vm = machine(opener, count)
        vm.save_program(child)
        trace = await vm.run(flow, {"n": 7}, principal=ANA)
        (found,) = vm.approvals()
        assert (found.run_id, found.step, found.shown["args"]) == (trace.trace_id, "k/a", {"effect": 7})
        trace = await vm.approve(trace.trace_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        sound(vm, trace)
        sound(vm, vm.trace(f"{trace.trace_id}/k.1.1"))

    play(main())


def test_lanes_are_approved_one_by_one(opener: Opener) -> None:
    count = Counter()
    flow = program(
        {"id": "m", "type": "map", "over": "$n", "step": tool_step("each", "act", args={"effect": "$item"})}
    )

    async def main() -> None:
        vm = machine(opener, count)
        trace = await vm.run(flow, {"n": [6, 1, 8]}, principal=ANA)
        assert (trace.status, count.effects) == (RunStatus.SUSPENDED, [1])
        with refused("AMBIGUOUS"):
            await vm.approve(trace.trace_id, principal=EVE)
        await vm.approve(trace.trace_id, item=2, principal=EVE)
        trace = await vm.approve(trace.trace_id, False, item=0, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.FAILED, [1, 8])
        sound(vm, trace)

    play(main())


def test_cancelling_while_an_approval_is_asked_for_leaves_nothing_unknown(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm)
        trace = await vm.cancel(run_id)
        assert (trace.status, trace.steps, count.effects) == (RunStatus.CANCELLED, [], [])
        sound(vm, trace)

    play(main())


def test_tightening_between_approval_and_dispatch_wins(opener: Opener) -> None:
    count = Counter()
    tight = {"policy": "p", "rules": [{"id": "no", "tools": ["act"], "decision": "deny"}]}

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm)
        trace = await machine(opener, count, tight).approve(run_id, principal=EVE)
        assert (trace.status, trace.error["type"], count.effects) == (
            RunStatus.FAILED,
            "CapabilityDeniedError",
            [],
        )
        sound(vm, trace)

    play(main())


def test_many_answers_at_once_lead_to_one_action(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm)
        people = [{"id": f"p{n}", "roles": ["boss"]} for n in range(8)]
        answers = [
            vm.approve(run_id, n % 3 != 2, principal=who, event_id=f"e{n}") for n, who in enumerate(people)
        ]
        results = await asyncio.gather(*answers, return_exceptions=True)
        trace = vm.trace(run_id)
        assert trace.status.is_terminal
        assert count.effects in ([], [7])
        assert sum(not isinstance(result, Exception) for result in results) == 1
        sound(vm, trace)

    play(main())


def test_private_arguments_are_neither_shown_in_clear_nor_open_to_guesses(tmp_path: Path) -> None:
    """What approvers are shown of private arguments is stored encrypted, and the action's digest is keyed."""
    flow = {
        "name": "p",
        "inputs": {
            "type": "object",
            "properties": {"n": {"type": "integer", "private": True}, "who": {"type": "string"}},
            "required": ["n", "who"],
        },
        "subject": "$who",
        "steps": [
            {"id": "ok", "type": "wait", "approvers": ["boss"], "approves": "a"},
            {"id": "a", "type": "tool", "tool": "act", "args": {"effect": "$n"}},
        ],
    }
    count = Counter()

    async def main() -> None:
        for policy in (None, ASKING):
            path = tmp_path / f"{policy is None}.db"
            store, vault = SqliteStore(path), Vault.in_memory()
            vm = machine(partial(ExecutionVM, store=store, vault=vault), count, policy)
            trace = await vm.run(flow, {"n": 99_999_777, "who": "s-1"}, principal=ANA)
            (asked,) = vm.approvals()
            assert asked.shown["args"] == {"effect": 99_999_777}
            assert asked.action.startswith("hmac-sha256:")
            trace = await vm.approve(trace.trace_id, principal=EVE)
            assert trace.status is RunStatus.SUCCESS
            vm.verify(trace.trace_id)
            store.close()
            assert b"99999777" not in path.read_bytes()
        assert count.effects == [99_999_777] * 2

    play(main())


def test_what_a_person_approves_as_it_stands_may_be_untrusted(opener: Opener) -> None:
    count = Counter()

    async def act(effect: Any) -> Any:
        count(effect)
        return effect

    guarded = {"act": tool(protected=["effect"])(act)}
    asks = {"policy": "p", "rules": [{"id": "all", "tools": ["act"], "approval": {"roles": ["boss"]}}]}

    async def main() -> None:
        with refused("TAINTED_PARAMETER"):
            await opener(tools=guarded).run(ACT, {"n": 7}, principal=ANA)
        vm = opener(tools=guarded, policy=asks)
        run_id = await asked(vm)
        assert count.effects == []
        trace = await vm.approve(run_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        sound(vm, trace)
        run_id = await asked(vm)
        trace = await vm.approve(run_id, approved=False, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.FAILED, [7])
        # The program itself may ask, too; what it does not ask for stays where it is.
        bound = opener(tools=guarded)
        flow = {**BOUND, "steps": [*BOUND["steps"][:3], tool_step("no", "other")]}
        bound.register_tool("other", lambda: None)
        run_id = await asked(bound, flow)
        trace = await bound.approve(run_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7, 7])
        with refused("TAINTED_PARAMETER"):
            await bound.run(
                BOUND | {"steps": [*BOUND["steps"][:3], tool_step("no", args={"effect": "$n"})]}, {"n": 1}
            )

    play(main())


@pytest.mark.parametrize("step", [None, "a"])
def test_what_is_said_to_an_approval_that_is_gone_is_no_answer_of_the_tool(
    opener: Opener, step: str | None
) -> None:
    async def main() -> None:
        vm = opener(tools={"act": lambda effect: PENDING}, policy=ASKING)
        run_id = (await vm.run(program(tool_step("a", args={"effect": 7})), principal=ANA)).trace_id
        trace = await vm.approve(run_id, principal=EVE)
        assert [wait.kind for wait in trace.waiting] == ["tool"]
        with refused("NOT_WAITING"):
            await vm.approve(run_id, step=step, comment="once more", principal=EVE)
        assert [wait.kind for wait in vm.trace(run_id).waiting] == ["tool"]
        trace = await vm.resume(run_id, 1, step="a")
        assert trace.status is RunStatus.SUCCESS
        sound(vm, trace)

    play(main())


# --- where maps call programs -----------------------------------------------------------------------------------


def mapped(over: Any, called: str) -> dict[str, Any]:
    """A map that calls a program for each element."""
    step = {"id": "c", "type": "call", "program": called, "inputs": {"n": "$item"}}
    return {"id": "m", "type": "map", "over": over, "step": step}


EACH = program(
    {"id": "e", "type": "map", "over": "$n", "step": tool_step("a", args={"effect": "$item"})}, name="each"
)


@pytest.mark.parametrize(
    ("over", "called"),
    [([7, 8], ACT), ([[7], [8]], EACH), ([[5, 6], [7, 8]], EACH), ([[[5], [6, 7]], [[8, 9]]], mapped("$n", "each"))],
)  # fmt: skip
@pytest.mark.parametrize("by", ["action", "nonce", "the gateway's words"])
def test_an_approval_reaches_the_one_call_of_many_that_asks(
    opener: Opener, over: Any, called: dict[str, Any], by: str
) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        vm.save_program(EACH)
        vm.save_program({**called, "name": "called"} if "steps" in called else program(called, name="called"))
        trace = await vm.run(program(mapped(over, "called")), principal=ANA)
        left = vm.approvals()
        while left:
            *_, last = left
            if by == "action":
                trace = await machine(opener, count).approve(
                    trace.trace_id, action=last.action, principal=EVE
                )
            elif by == "nonce":
                data = {"approved": True, "action": last.action, "nonce": last.nonce}
                trace = await vm.resume(trace.trace_id, data, principal=EVE, step=last.step, item=last.item)
            else:
                (wait,) = (wait for wait in waits_view(trace) if wait["nonce"] == last.nonce)
                answer = wait["answer_with"]["arguments"]
                trace = await vm.approve(
                    trace.trace_id, step=answer["step"], item=answer.get("item"), principal=EVE
                )
            assert count.effects[-1] == last.shown["args"]["effect"]
            left = vm.approvals()
        assert trace.status is RunStatus.SUCCESS
        assert len(count.effects) == len(set(count.effects))
        sound(vm, trace)

    play(main())


def test_an_approval_is_named_by_its_step_and_the_element_that_calls(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        vm.save_program({**ACT, "name": "called"})
        trace = await vm.run(program(mapped([7, 8, 9], "called")), principal=ANA)
        assert [each.step for each in vm.approvals()] == ["c[0]/a", "c[1]/a", "c[2]/a"]
        with refused("AMBIGUOUS"):
            await vm.approve(trace.trace_id, step="c/a", principal=EVE)
        await vm.approve(trace.trace_id, step="c/a", item=1, principal=EVE)
        await vm.approve(trace.trace_id, step="c[2]/a", principal=EVE)
        trace = await vm.approve(trace.trace_id, principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [8, 9, 7])

    play(main())


# --- the same answer again ----------------------------------------------------------------------------------------

TWO = {"policy": "p", "rules": [{"id": "r", "tools": ["act"], "approval": {"roles": ["boss"], "count": 2}}]}
UNBOUND = program({"id": "ok", "type": "wait", "approvers": ["boss"]}, wait_step("w"))
GONE_ON = program(tool_step("a", args={"effect": "$n"}), wait_step("w"))


def heads(vm: ExecutionVM, run_id: str) -> list[tuple[str, str]]:
    """Every run of the tree, and where its journal stands."""
    below = [record.run_id for record in vm.store.records(RunQuery(parent=run_id))]
    return [(run_id, vm.trace(run_id).head)] + [head for child in below for head in heads(vm, child)]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("event_id", [None, "e1"])
@pytest.mark.parametrize("where", ["goes on", "has ended", "unbound", "called", "called by a map"])
def test_the_same_approval_again_is_answered_alike_and_another_is_refused(
    opener: Opener, where: str, event_id: str | None, fresh: bool
) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count)
        vm.save_program({**GONE_ON, "name": "called"})
        calls: dict[str, Any] = {"id": "c", "type": "call", "program": "called", "inputs": {"n": "$n"}}
        flow = {
            "goes on": GONE_ON,
            "has ended": ACT,
            "unbound": UNBOUND,
            "called": program(calls),
            "called by a map": program(mapped([8, 7], "called")),
        }[where]
        run_id = (await vm.run(flow, {"n": 7}, principal=ANA)).trace_id
        step = vm.approvals()[-1].step
        said = {"step": step, "comment": "fine", "event_id": event_id}
        first = await vm.approve(run_id, principal=EVE, **said)
        done, stands = list(count.effects), heads(vm, run_id)
        other = machine(opener, count) if fresh else vm
        for again in (said, {**said, "step": None} if "map" not in where else said):
            trace = await other.approve(run_id, principal=EVE, **again)
            assert (trace.trace_id, trace.status) == (run_id, first.status)
        assert (count.effects, heads(vm, run_id)) == (done, stands)
        gone = {"EVENT_CONFLICT"} if event_id else {"NOT_WAITING", "TERMINAL"}
        for different in ({"approved": False}, {"comment": "no"}, {"comment": None}):
            with pytest.raises(NanoVMError) as refusal:
                await other.approve(run_id, principal=EVE, **{**said, **different})
            assert refusal.value.code in gone
        assert count.effects == done
        for each, _ in stands:
            sound(vm, vm.trace(each))

    play(main())


def test_what_somebody_else_has_approved_is_not_ones_own_approval(opener: Opener) -> None:
    async def main() -> None:
        vm = machine(opener, Counter())
        run_id = await asked(vm, GONE_ON)
        (found,) = vm.approvals()
        await vm.approve(run_id, action=found.action, principal=EVE)
        stands = heads(vm, run_id)
        await vm.approve(run_id, action=found.action, principal=EVE)
        assert heads(vm, run_id) == stands
        for action in (None, found.action):
            with refused("NOT_WAITING"):
                await vm.approve(run_id, action=action, principal=BOB)
        with refused("NOT_WAITING"):
            await vm.approve(run_id, action="sha256:" + "0" * 64, principal=EVE)
        assert codes(vm.trace(run_id)) == ["NOT_WAITING"] * 3

    play(main())


def test_one_of_two_who_repeats_it_counts_once(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        vm = machine(opener, count, TWO)
        run_id = await asked(vm)
        await vm.approve(run_id, principal=EVE)
        stands = heads(vm, run_id)
        trace = await vm.approve(run_id, principal=EVE)
        assert (trace.status, heads(vm, run_id), count.effects) == (RunStatus.SUSPENDED, stands, [])
        with refused("SELF_APPROVAL"):  # what is another answer is none of a second person
            await vm.approve(run_id, False, principal=EVE)
        trace = await vm.approve(run_id, principal=BOB)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        sound(vm, trace)

    play(main())


def test_a_repetition_under_its_id_approves_nothing_that_is_asked_since(opener: Opener) -> None:
    """The run comes to ask for the same action again: the old answer is not the answer to the new question."""
    count = Counter()
    flow = program(tool_step("a", args={"effect": "$n"}), tool_step("b", args={"effect": "$n"}))

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm, flow)
        (first,) = vm.approvals()
        await vm.approve(run_id, action=first.action, event_id="e1", principal=EVE)
        (second,) = vm.approvals()
        assert (second.action, second.step) == (first.action, "b")
        stands = heads(vm, run_id)
        trace = await vm.approve(run_id, action=first.action, event_id="e1", principal=EVE)
        assert (trace.status, count.effects, heads(vm, run_id)) == (RunStatus.SUSPENDED, [7], stands)
        trace = await vm.approve(run_id, action=second.action, event_id="e2", principal=EVE)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7, 7])
        sound(vm, trace)

    play(main())


def test_the_same_approval_many_times_at_once_is_one(opener: Opener) -> None:
    count = Counter()

    async def main() -> None:
        one, other = machine(opener, count), machine(opener, count)
        run_id = await asked(one, GONE_ON)
        traces = await asyncio.gather(
            *(vm.approve(run_id, step="a", principal=EVE) for vm in (one, other, one, other))
        )
        assert {trace.trace_id for trace in traces} == {run_id}
        trace = one.trace(run_id)
        assert (count.effects, codes(trace)) == ([7], [])
        assert kinds(trace).count("EventReceived") == 1
        sound(one, trace)

    play(main())


def test_a_private_approval_is_repeated_too(tmp_path: Path) -> None:
    count = Counter()
    flow = program(
        tool_step("a", args={"effect": "$n"}),
        wait_step("w"),
        inputs={"type": "object", "properties": {"n": {"type": "integer", "private": True}}},
    )

    async def main() -> None:
        store = SqliteStore(tmp_path / "runs.db")
        vm = machine(partial(ExecutionVM, store=store, vault=Vault.in_memory()), count)
        run_id = (await vm.run(flow, {"n": 7}, principal=ANA)).trace_id
        await vm.approve(run_id, principal=EVE)
        stands = heads(vm, run_id)
        trace = await vm.approve(run_id, principal=EVE)
        assert (trace.status, count.effects, heads(vm, run_id)) == (RunStatus.SUSPENDED, [7], stands)
        store.close()

    play(main())


def test_a_question_says_who_may_answer_it(opener: Opener) -> None:
    policy = {
        "policy": "p",
        "rules": [
            {"id": "r", "tools": ["act"], "approval": {"roles": ["boss"], "count": 2, "four_eyes": True}},
            {"id": "q", "tools": ["act"], "approval": {"roles": ["cfo", "clerk"], "four_eyes": False}},
        ],
    }
    both = {"id": "max", "roles": ["boss", "cfo"]}

    async def main() -> None:
        vm = machine(opener, Counter(), policy)
        run_id = (await vm.run(ACT, {"n": 7}, principal=ANA)).trace_id
        (found,) = vm.approvals()
        assert (found.groups, found.not_by) == ((("boss",), ("cfo", "clerk")), ("ana",))
        assert [found.missing(who["roles"]) for who in (EVE, both, ANA)] == [("cfo", "clerk"), (), ()]
        with refused("NOT_APPROVER"):
            await vm.approve(run_id, principal=EVE)
        await vm.approve(run_id, principal=both)
        (found,) = vm.approvals()
        assert found.not_by == ("ana", "max")
        unbound = (await vm.run(UNBOUND, principal=ANA)).trace_id
        (found,) = [each for each in vm.approvals() if each.run_id == unbound]
        assert (found.groups, found.not_by) == ((("boss",),), ())

    play(main())


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("event_id", [None, "given"])
def test_two_who_approve_the_same_at_once_are_two(opener: Opener, event_id: str | None, apart: bool) -> None:
    """What one says is never taken for a repetition of what another has said."""
    count = Counter()

    async def main() -> None:
        one = machine(opener, count, TWO)
        other = machine(opener, count, TWO) if apart else one
        run_id = await asked(one)
        ids = [None, None] if event_id is None else ["eve's", "bob's"]
        await asyncio.gather(
            one.approve(run_id, principal=EVE, event_id=ids[0]),
            other.approve(run_id, principal=BOB, event_id=ids[1]),
        )
        trace = one.trace(run_id)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        sound(one, trace)

    play(main())


@pytest.mark.parametrize("flow", [UNBOUND, GONE_ON])
@pytest.mark.parametrize("called", [False, True])
def test_nobody_is_told_that_they_have_approved_what_somebody_else_did(
    opener: Opener, flow: dict[str, Any], called: bool
) -> None:
    async def main() -> None:
        vm = machine(opener, Counter())
        vm.save_program({**flow, "name": "called"})
        call = {"id": "c", "type": "call", "program": "called", "inputs": {"n": "$n"}}
        whole = program(call if flow is GONE_ON else {**call, "inputs": {}}) if called else flow
        run_id = (await vm.run(whole, {"n": 7} if flow is GONE_ON else None, principal=ANA)).trace_id
        (found,) = vm.approvals()
        await vm.approve(run_id, step=found.step, event_id="e1", principal=EVE)
        with refused("EVENT_CONFLICT"):
            await vm.approve(run_id, step=found.step, event_id="e1", principal=BOB)
        other = (await vm.run(whole, {"n": 8} if flow is GONE_ON else None, principal=ANA)).trace_id
        await vm.approve(other, step=found.step, principal=EVE)
        data = vm.trace(other).events  # the words that were taken, from somebody else
        said = next((each for each in data if type(each) is EventReceived), None)
        with refused("NOT_WAITING"):
            await vm.approve(other, step=found.step, principal=BOB)
        if said is not None:
            with refused("NOT_WAITING"):
                await vm.resume(other, said.payload, step=found.step, principal=BOB)
        with refused("NOT_WAITING"):
            await vm.approve(other, step=found.step)

    play(main())


def test_two_approve_at_once_what_a_called_program_asks(opener: Opener) -> None:
    count = Counter()
    call = {"id": "c", "type": "call", "program": "called", "inputs": {"n": "$n"}}

    async def main() -> None:
        vm = machine(opener, count, TWO)
        vm.save_program({**ACT, "name": "called"})
        run_id = (await vm.run(program(call), {"n": 7}, principal=ANA)).trace_id
        await asyncio.gather(*(vm.approve(run_id, principal=who) for who in (EVE, EVE, BOB, EVE)))
        trace = vm.trace(run_id)
        assert (trace.status, count.effects) == (RunStatus.SUCCESS, [7])
        for each, _ in heads(vm, run_id):
            assert codes(vm.trace(each)) == []
            sound(vm, vm.trace(each))

    play(main())


@pytest.mark.parametrize("step", [None, "ok"])
def test_whoever_approves_an_action_approves_nothing_else(opener: Opener, step: str | None) -> None:
    """What waits now is bound to no action: it is not the one that was seen."""

    async def main() -> None:
        vm = machine(opener, Counter())
        flow = program(tool_step("a", args={"effect": "$n"}), *UNBOUND["steps"])
        run_id = await asked(vm, flow)
        (seen,) = vm.approvals()
        await vm.approve(run_id, principal=EVE)
        with refused("NOT_WAITING"):
            await vm.approve(run_id, step=step, action=seen.action, principal=BOB)
        assert [wait.step for wait in vm.trace(run_id).waiting] == ["ok"]
        trace = await vm.approve(run_id, step="ok", principal=BOB)
        assert [wait.step for wait in trace.waiting] == ["w"]
        sound(vm, trace)

    play(main())


def test_who_names_an_action_that_is_asked_for_again_says_which_question_is_meant(opener: Opener) -> None:
    count = Counter()
    flow = program(
        tool_step("a", args={"effect": "$n"}),
        {"id": "more", "type": "condition", "condition": "$a.output == 7", "then": "a", "otherwise": "end"},
        tool_step("end", args={"effect": 0}),
        max_steps=7,
    )

    async def main() -> None:
        vm = machine(opener, count)
        run_id = await asked(vm, flow)
        (first,) = vm.approvals()
        await vm.approve(run_id, action=first.action, principal=EVE)
        (second,) = vm.approvals()
        assert (second.action, second.nonce != first.nonce) == (first.action, True)
        # It may be the first answer, sent again.
        with refused("AMBIGUOUS"):
            await vm.approve(run_id, action=first.action, principal=EVE)
        await vm.approve(run_id, action=first.action, nonce=first.nonce, principal=EVE)
        assert count.effects == [7]
        with refused("APPROVAL_VOID"):
            await vm.approve(run_id, action=first.action, nonce=first.nonce, principal=BOB)
        trace = await vm.approve(run_id, action=second.action, nonce=second.nonce, principal=EVE)
        assert count.effects == [7, 7]
        trace = await vm.approve(run_id, action=second.action, event_id="third", principal=EVE)
        assert count.effects == [7, 7, 7]
        sound(vm, trace)

    play(main())
