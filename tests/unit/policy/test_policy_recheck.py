"""What a journal says was decided is decided again: a decision that the policy does not make is found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from nano_vm import Completion, ExecutionVM, MemoryStore, MockLLMAdapter, ToolCall, VerificationError
from nano_vm.journal.entry import Chain, Entry, open_events
from nano_vm.journal.replay import verify_run
from nano_vm.kernel.events import ActionProposed, PolicyDecided
from nano_vm.policy import load_policy
from nano_vm.policy.recheck import Recheck

POLICY = {
    "policy": "p",
    "tools": ["check"],
    "rules": [
        {"id": "few", "tools": ["act"], "when": "$args.n < 5", "limits": [{"max_calls": 9, "per": ["run"]}]},
        {
            "id": "many",
            "tools": ["act"],
            "when": "$args.n >= 5",
            "requires": ["check"],
            "approval": {"roles": ["boss"]},
        },
    ],
}
FLOW = {
    "name": "p",
    "steps": [
        {"id": "c", "type": "tool", "tool": "check"},
        {"id": "a", "type": "tool", "tool": "act", "args": {"n": 1}},
        {"id": "b", "type": "tool", "tool": "act", "args": {"n": 7}},
    ],
}


def journal() -> tuple[ExecutionVM, str]:
    async def main() -> tuple[ExecutionVM, str]:
        vm = ExecutionVM(
            tools={"act": lambda n: n, "check": lambda: True}, policy=POLICY, store=MemoryStore()
        )
        trace = await vm.run(FLOW, principal="ana")
        trace = await vm.approve(trace.trace_id, principal={"id": "eve", "roles": ["boss"]})
        assert trace.status == "SUCCESS"
        return vm, trace.trace_id

    return asyncio.run(main())


def rewritten(run_id: str, entries: list[Entry], change: Callable[[PolicyDecided], Any]) -> list[Entry]:
    """The journal as somebody would write it who can write all of it: sealed anew, decisions changed."""
    chain = Chain(run_id)
    found = []
    for entry in entries:
        events = open_events(entry)
        for number, event in enumerate(events):
            if type(event) is PolicyDecided:
                events[number] = change(event)
        found.append(chain.seal(events[0], entry.salt, entry.payload, events[1:]))
    return found


def verify(vm: ExecutionVM, run_id: str, entries: list[Entry]) -> None:
    program = vm.load_program(vm.store.record(run_id).program_hash)
    verify_run(program, None, entries, run_id, watchers=(Recheck(program, vm.load_policy),))


def test_what_was_decided_is_decided_again() -> None:
    vm, run_id = journal()
    assert dict(vm.verify(run_id).steps)["decisions"].startswith("4 ")
    verify(vm, run_id, rewritten(run_id, vm.store.read(run_id), lambda event: event))


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("a", {"rule": "tools"}),
        ("a", {"rule": "many"}),
        ("c", {"rule": "default"}),
        ("a", {"counts": msgspec.UNSET}),
        ("a", {"counts": [["sha256:" + "0" * 64, 0, 1]]}),
        ("a", {"action": "sha256:" + "0" * 64}),
        ("a", {"policy": "sha256:" + "0" * 64}),
        ("a", {"schema": "sha256:" + "0" * 64}),
        ("b", {"rule": "few"}),
    ],
)
def test_a_decision_that_the_policy_does_not_make_is_found(step: str, change: dict[str, Any]) -> None:
    vm, run_id = journal()

    def falsify(event: PolicyDecided) -> PolicyDecided:
        return msgspec.structs.replace(event, **change) if event.step == step else event

    with pytest.raises(VerificationError) as caught:
        verify(vm, run_id, rewritten(run_id, vm.store.read(run_id), falsify))
    assert caught.value.code == "REPLAY_MISMATCH"


LOOKS = {
    "policy": "p",
    "rules": [
        {"id": "few", "tools": ["act"], "when": "$args.n < 5"},
        {"id": "many", "tools": ["act"], "when": "$args.n >= 5 and $principal.id == 'ana'"},
        {"id": "never", "tools": ["act"], "when": "$args.n == 99", "decision": "deny"},
        {"id": "first", "tools": ["check"], "when": "$run.program == 'p'"},
    ],
}


def looked_at(lane: bool, policy: Any = LOOKS) -> tuple[ExecutionVM, str]:
    async def main() -> tuple[ExecutionVM, str]:
        vm = ExecutionVM(tools={"act": lambda n: n, "check": lambda: 1}, policy=policy, store=MemoryStore())
        vm.lane = lane
        trace = await vm.run(FLOW, principal="ana")
        assert trace.status == "SUCCESS"
        return vm, trace.trace_id

    return asyncio.run(main())


@pytest.mark.parametrize("lane", [True, False])
def test_what_arguments_decide_names_its_rule_and_is_decided_again(lane: bool) -> None:
    vm, run_id = looked_at(lane)
    assert dict(vm.verify(run_id).steps)["decisions"].startswith("3 ")
    decided = [e for entry in vm.store.read(run_id) for e in open_events(entry) if type(e) is PolicyDecided]
    assert [event.rule for event in decided] == ["first", "few", "many"]
    assert all(event.action is msgspec.UNSET for event in decided)


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "few"},
        {"rule": "never"},
        {"rule": "default"},
        {"policy": "sha256:" + "0" * 64},
        {"reason": "LIMIT"},
        {"decision": "ask"},
        {"counts": [["sha256:" + "0" * 64, 0, 1]]},
        {"action": "sha256:" + "0" * 64},
        {"schema": "sha256:" + "0" * 64},
        {"tool": "check"},
    ],
)
def test_a_decision_about_arguments_that_the_policy_does_not_make_is_found(change: dict[str, Any]) -> None:
    vm, run_id = looked_at(True)

    def falsify(event: PolicyDecided) -> PolicyDecided:
        return msgspec.structs.replace(event, **change) if event.step == "b" else event

    with pytest.raises(VerificationError) as caught:
        verify(vm, run_id, rewritten(run_id, vm.store.read(run_id), falsify))
    assert caught.value.code == "REPLAY_MISMATCH"


@pytest.mark.parametrize(
    "rule",
    [
        {"decision": "deny"},
        {"limits": [{"max_calls": 9, "per": ["run"]}]},
        {"approval": {"roles": ["boss"]}},
        {"when": "$args.n < 7"},
        {"requires": ["undo"]},
    ],
)
def test_a_bare_allowance_of_what_the_policy_demands_more_of_is_found(rule: dict[str, Any]) -> None:
    """Somebody runs under a loose policy and claims the pinned one: the same rule by name, with a demand."""
    loose = load_policy(LOOKS)
    strict = load_policy(
        {**LOOKS, "rules": [*LOOKS["rules"][:1], {**LOOKS["rules"][1], **rule}, *LOOKS["rules"][2:]]}
    )
    vm, run_id = looked_at(True, loose)
    program = vm.load_program(vm.store.record(run_id).program_hash)
    chain, claimed = Chain(run_id), []
    for entry in vm.store.read(run_id):
        events = open_events(entry)
        if entry.seq == 0:
            events[0] = msgspec.structs.replace(events[0], policy=strict.hash)
        claimed.append(chain.seal(events[0], entry.salt, entry.payload, events[1:]))
    with pytest.raises(VerificationError) as caught:
        verify_run(program, None, claimed, run_id, watchers=(Recheck(program, lambda policy_hash: strict),))
    assert caught.value.code == "REPLAY_MISMATCH"


def test_an_allowance_in_place_of_a_question_is_found() -> None:
    """Under the pinned policy the second call needs an approval: a journal in which it was simply allowed fails."""
    vm, _ = journal()
    loose = load_policy({"policy": "p", "tools": ["check", "act"]})

    async def main() -> str:
        other = ExecutionVM(tools=vm.tools, policy=loose, store=vm.store)
        return (await other.run(FLOW, principal="ana")).trace_id

    other = asyncio.run(main())
    entries = vm.store.read(other)
    pinned = vm.policy
    assert pinned is not None

    def claim(event: PolicyDecided) -> PolicyDecided:
        return msgspec.structs.replace(event, policy=pinned.hash)

    forged = rewritten(other, entries, claim)
    chain, found = Chain(other), []
    for entry in forged:
        events = open_events(entry)
        if entry.seq == 0:
            events[0] = msgspec.structs.replace(events[0], policy=pinned.hash)
        found.append(chain.seal(events[0], entry.salt, entry.payload, events[1:]))
    with pytest.raises(VerificationError) as caught:
        verify(vm, other, found)
    assert (caught.value.code, caught.value.facts["code"]) == ("REPLAY_MISMATCH", "POLICY")


def test_a_policy_that_is_not_at_hand_is_said_to_be() -> None:
    vm, run_id = journal()
    program = vm.load_program(vm.store.record(run_id).program_hash)

    def find(policy_hash: str) -> Any:
        from nano_vm.stores.rules import policy_not_found

        raise policy_not_found(policy_hash)

    with pytest.raises(VerificationError) as caught:
        verify_run(program, None, vm.store.read(run_id), run_id, watchers=(Recheck(program, find),))
    assert caught.value.code == "POLICY_UNKNOWN"


@pytest.mark.parametrize(
    "counts",
    [msgspec.UNSET, [], [["sha256:" + "0" * 64, 0, 1]], "more before"],
)
def test_what_was_reserved_for_a_model_has_to_fit_the_limit(counts: Any) -> None:
    policy = {
        "policy": "p",
        "rules": [{"id": "m", "models": ["default"], "limits": [{"max_tokens": 200, "per": ["day"]}]}],
    }
    flow = {
        "name": "p",
        "steps": [{"id": "m", "type": "llm", "prompt": "?", "params": {"max_tokens": 150}}],
    }
    vm = ExecutionVM(MockLLMAdapter("yes"), store=MemoryStore(), policy=policy)
    run_id = vm.run_sync(flow).trace_id
    vm.verify(run_id)

    def falsify(event: PolicyDecided) -> PolicyDecided:
        found = [[key, so_far + 100, added] for key, so_far, added in event.counts or []]
        return msgspec.structs.replace(event, counts=found if counts == "more before" else counts)

    with pytest.raises(VerificationError) as caught:
        verify(vm, run_id, rewritten(run_id, vm.store.read(run_id), falsify))
    assert caught.value.code == "REPLAY_MISMATCH"


AGENT = {"name": "p", "steps": [{"id": "m", "type": "agent", "prompt": "?", "tools": ["act", "check"]}]}
PROPOSED = {
    "policy": "p",
    "tools": ["check"],
    "models": ["*"],
    "rules": [{"id": "few", "tools": ["act"], "limits": [{"max_sum": 5, "of": "$args.n", "per": ["run"]}]}],
}


@pytest.mark.parametrize(
    "change",
    [
        {"decided": msgspec.UNSET},
        {"decided": {"rule": "other"}},
        {"decided": {"reason": "RULE"}},
        {"decided": {"policy": "sha256:" + "0" * 64}},
        {"decided": {"current": "sha256:" + "0" * 64}},
        {"decided": {"counts": 7}},
        {"decided": {"counts": [[1]]}},
        {"decided": {"rule": {}}},
        {"reason": "SOMETHING"},
        {"action": 1},  # the one that the policy allows
    ],
)
def test_a_proposal_that_the_policy_does_not_deny_is_not_rejected_in_its_name(change: dict[str, Any]) -> None:
    calls = (ToolCall("1", "act", '{"n": 7}'), ToolCall("2", "check", "{}"))
    model = MockLLMAdapter([Completion(tool_calls=calls), "done"])
    tools = {"act": lambda n: n, "check": lambda: True}
    vm = ExecutionVM(model, tools, MemoryStore(), policy=PROPOSED)
    run_id = vm.run_sync(AGENT).trace_id
    vm.verify(run_id)
    entries = vm.store.read(run_id)

    def falsified(event: Any) -> Any:
        if type(event) is not ActionProposed:
            return event
        if "action" in change:  # the denial is moved to the other call
            if event.action == 0:
                return msgspec.structs.replace(
                    event, decided=msgspec.UNSET, reason=msgspec.UNSET, verdict="accepted"
                )
            denied = {"policy": vm.policy.hash, "reason": "RULE", "rule": "tools"}
            return msgspec.structs.replace(
                event, decided=denied, reason="CapabilityDeniedError", verdict="rejected"
            )
        if event.action:
            return event
        fields = dict(change)
        if type(fields.get("decided")) is dict:
            fields["decided"] = {**event.decided, **fields["decided"]}
        return msgspec.structs.replace(event, **fields)

    chain, found = Chain(run_id), []
    for entry in entries:
        events = [falsified(event) for event in open_events(entry)]
        found.append(chain.seal(events[0], entry.salt, entry.payload, events[1:]))
    with pytest.raises(VerificationError) as caught:
        verify(vm, run_id, found)
    assert caught.value.code in ("REPLAY_MISMATCH", "POLICY_UNKNOWN")


def test_a_decision_before_the_start_of_a_run_is_refused_and_not_looked_at() -> None:
    vm, run_id = journal()
    decided = PolicyDecided(
        at_ms=1, attempt=1, decision="allow", occurrence=1, reason="RULE", rule="tools", step="c"
    )
    with pytest.raises(VerificationError) as caught:
        verify(vm, run_id, [Chain(run_id).seal(decided, b"", None)])
    assert (caught.value.code, caught.value.facts["code"]) == ("REPLAY_MISMATCH", "OUT_OF_ORDER")


@pytest.mark.parametrize("lane", [True, False])
def test_what_settles_at_once_after_a_plain_tool_meets_requirements(lane: bool) -> None:
    policy = {
        "policy": "p",
        "tools": ["check"],
        "rules": [{"id": "after", "tools": ["act"], "requires": ["step:none"]}],
    }
    steps = [
        {"id": "c", "type": "tool", "tool": "check"},
        {"id": "none", "type": "map", "over": [], "step": {"id": "i", "type": "tool", "tool": "check"}},
        {"id": "a", "type": "tool", "tool": "act", "args": {"n": 1}},
    ]
    vm = ExecutionVM(tools={"act": lambda n: n, "check": lambda: 1}, policy=policy, store=MemoryStore())
    vm.lane = lane
    trace = vm.run_sync({"name": "p", "steps": steps})
    assert trace.status == "SUCCESS"
    assert dict(vm.verify(trace.trace_id).steps)["decisions"].startswith("2 ")
