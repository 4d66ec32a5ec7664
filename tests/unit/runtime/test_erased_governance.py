"""Approvals, decisions and proposals about private values: verified with the key, without it, and after the erasure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from runtime_stage import play, program, tool_step

from nano_vm import Completion, ExecutionVM, MemoryStore, MockLLMAdapter, RunStatus, ToolCall, Trace, tool
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle
from nano_vm.vault.local import Vault

ANA = {"id": "ana", "roles": ["clerk"]}
EVE, BOB = {"id": "eve", "roles": ["boss"]}, {"id": "bob", "roles": ["boss"]}
PRIVATE = {
    "inputs": {
        "type": "object",
        "properties": {"n": {"type": "integer", "private": True}, "who": {"type": "string", "private": True}},
        "required": ["n", "who"],
    },
    "subject": "$who",
}
ACT = tool_step("a", args={"effect": "$n"}, on_failure="end", next_step="end")
END = tool_step("end", "done")
POLICY = {
    "policy": "p",
    "tools": ["done"],
    "models": ["*"],
    "rules": [
        {"id": "few", "tools": ["act"], "when": "$args.effect < 5", "limits": [{"max_calls": 9, "per": ["day"]}]},
        {"id": "many", "tools": ["act"], "when": "$args.effect >= 5 and $args.effect < 100",
         "approval": {"roles": ["boss"], "count": 2}},
        {"id": "sum", "tools": ["act"], "when": "$args.effect == 100",
         "limits": [{"max_sum": 999, "of": "$args.effect", "per": ["day"]}]},
    ],
}  # fmt: skip
MAP = {"id": "m", "type": "map", "over": [1, 2], "step": tool_step("a", args={"effect": "$n"})}
WAIT = {"id": "ok", "type": "wait", "approvers": ["boss"], "approves": "a"}
FLOWS: dict[str, tuple[dict[str, Any], int]] = {
    "allowed": (program(ACT, END, **PRIVATE), 3),
    "approved": (program(ACT, END, **PRIVATE), 7),
    "denied": (program(ACT, END, **PRIVATE), 700),
    "a sum of what is private": (program(ACT, END, **PRIVATE), 100),
    "a wait": (program(WAIT, ACT, END, **PRIVATE), 7),
    "lanes": (program(MAP, END, **PRIVATE), 7),
    "an agent": (
        program({"id": "m", "type": "agent", "prompt": "$n", "tools": ["act", "done"]}, END, **PRIVATE),
        7,
    ),
}  # fmt: skip


async def two_say(vm: ExecutionVM, trace: Trace, answer: bool, names: bool) -> Trace:
    """`names`: whether the answers name the item that they are about, or the nonce alone."""
    while trace.status is RunStatus.SUSPENDED:
        found = vm.approvals()[0]
        said = {"approved": answer, "action": found.action, "nonce": found.nonce}
        for who in (EVE, BOB):
            if any(one.nonce == found.nonce for one in vm.approvals()):
                item = found.item if names else None
                trace = await vm.resume(trace.trace_id, said, step=found.step, item=item, principal=who)
    return trace


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("name", FLOWS)
def test_what_was_decided_about_private_values_still_verifies_when_they_are_gone(
    name: str, answer: bool, names: bool
) -> None:
    flow, n = FLOWS[name]
    calls = [ToolCall(str(at), "act", f'{{"effect": {number}}}') for at, number in enumerate((1, 50, 5000))]
    model = MockLLMAdapter([Completion(tool_calls=tuple(calls)), "done"])

    @tool(effect="keyed", blocking=False)
    def act(effect: int) -> int:
        return effect

    async def main() -> None:
        vm = ExecutionVM(
            model, {"act": act, "done": lambda: 1}, MemoryStore(), vault=Vault.in_memory(), policy=POLICY
        )
        trace = await two_say(vm, await vm.run(flow, {"n": n, "who": "s-1"}, principal=ANA), answer, names)
        run_id, hashes = trace.trace_id, (trace.trace_hash, trace.outcome_hash)
        decisions = verified(lambda: vm.verify(run_id).steps)
        assert decisions > 0
        bundle = export(vm.store, run_id, opened=vm.read).data
        assert verify_bundle(bundle).receipt["status"] == trace.status.value
        await vm.erase(subject="s-1", reason="asked", by=ANA)
        verified(lambda: vm.verify(run_id).steps)
        again = vm.trace(run_id)
        assert (again.status, again.trace_hash, again.outcome_hash) == (trace.status, *hashes)
        erased = export(vm.store, run_id, opened=vm.read).data
        assert verify_bundle(erased).receipt["hashes"]["trace_hash"] == hashes[0]

    play(main())


def test_what_was_decided_about_undoing_a_child_still_verifies_when_its_private_output_is_gone() -> None:
    """The arguments of one compensation are private, those of the other are not, and both came with the output."""
    undo = {"tool": "back", "args": {"effect": "$b.output"}}
    kept = {"tool": "back", "args": {"effect": 1}}
    steps = [
        tool_step("b", args={"effect": "$n"}, compensate=undo),
        tool_step("c", args={"effect": 2}, compensate=kept),
        tool_step("d", args={"effect": "$n"}),
    ]
    failing = {"final_status": "FAILED", "is_terminal": True}
    calling = {"id": "call", "type": "call", "program": "child", "inputs": {"n": "$n", "who": "$who"}}
    flow = program(calling, tool_step("end", args={"effect": 0}, **failing), **PRIVATE)

    @tool(effect="keyed", blocking=False)
    def act(effect: int) -> int:
        return effect

    async def main() -> None:
        vm = ExecutionVM(
            None,
            {"act": act, "back": act},
            MemoryStore(),
            vault=Vault.in_memory(),
            policy={
                "policy": "p",
                "tools": ["act"],
                "rules": [{"id": "r", "tools": ["back"], "when": "$args.effect < 9"}],
            },
        )
        vm.save_program(program(*steps, name="child", **PRIVATE))
        trace = await vm.run(flow, {"n": 7, "who": "s-1"}, principal=ANA)
        run_id = trace.trace_id
        assert [event.step for event in trace.events if event.type == "CompensationSucceeded"] == [
            "call/c",
            "call/b",
        ]
        assert verify_bundle(export(vm.store, run_id, opened=vm.read).data).receipt["status"] == "FAILED"
        await vm.erase(subject="s-1", reason="asked", by=ANA)
        assert verified(lambda: vm.verify(run_id).steps) == 2  # `end`, and the undoing of `c`
        assert verify_bundle(export(vm.store, run_id, opened=vm.read).data).receipt["status"] == "FAILED"

    play(main())


def verified(steps: Callable[[], Any]) -> int:
    """How many decisions were made again."""
    told = dict(steps())
    return int(told.get("decisions", "0 ").split()[0])
