"""Runs of every kind, in memory, with time and salts that repeat: what receipts and bundles are made of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from nano_vm import ExecutionVM, MemoryStore, MockLLMAdapter, Program, ToolError
from nano_vm.errors import NanoVMError
from nano_vm.testing.clock import VirtualClock


class Seeded:
    """The `Entropy` port, from a seed."""

    def __init__(self, seed: int = 7) -> None:
        self.random = random.Random(seed)

    def salt(self) -> bytes:
        return self.random.randbytes(16)

    def draw(self) -> int:
        return self.random.randrange(1_000_000)


def machine(policy: Any = None, **tools: Callable[..., Any]) -> ExecutionVM:
    return ExecutionVM(
        llm=MockLLMAdapter("yes"),
        tools=tools,
        store=MemoryStore(),
        policy=policy,
        clock=VirtualClock(),
        entropy=Seeded(),
    )


REFUND = Program.from_dict(
    {
        "name": "refund",
        "inputs": {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]},
        "steps": [
            {"id": "judge", "type": "llm", "prompt": "Refund ${amount}?", "allowed_outputs": ["yes", "no"]},
            {
                "id": "justified",
                "type": "condition",
                "condition": "$judge.output == 'yes'",
                "then": "pay",
                "otherwise": "refuse",
            },
            {
                "id": "pay",
                "type": "tool",
                "tool": "pay",
                "args": {"amount": "$amount"},
                "is_terminal": True,
                "outcome": "refunded",
            },
            {
                "id": "refuse",
                "type": "tool",
                "tool": "tell",
                "is_terminal": True,
                "final_status": "FAILED",
                "outcome": "refused",
            },
        ],
    }
)

APPROVAL = Program.from_dict(
    {
        "name": "approval",
        "steps": [
            {"id": "begin", "type": "tool", "tool": "tell"},
            {"id": "ask", "type": "wait", "approvers": ["boss"]},
            {"id": "end", "type": "tool", "tool": "tell", "is_terminal": True},
        ],
    }
)

SHAKY = Program.from_dict(
    {
        "name": "shaky",
        "max_steps": 20,
        "steps": [
            {
                "id": "try",
                "type": "tool",
                "tool": "shaky",
                "on_error": "retry",
                "max_retries": 3,
                "compensate": {"tool": "tell"},
            },
            {"id": "fail", "type": "tool", "tool": "broken", "is_terminal": True},
        ],
    }
)

INNER = Program.from_dict({"name": "inner", "steps": [{"id": "deep", "type": "tool", "tool": "tell"}]})
OUTER = Program.from_dict(
    {
        "name": "outer",
        "steps": [
            {"id": "first", "type": "call", "program": "inner", "inputs": {}},
            {
                "id": "each",
                "type": "map",
                "over": [1, 2],
                "max_items": 4,
                "step": {"id": "lane", "type": "call", "program": "inner", "inputs": {}},
            },
        ],
    }
)


POLICY = {
    "policy": "money",
    "rules": [
        {"id": "small", "tools": ["pay"], "when": "$args.amount < 100"},
        {
            "id": "large",
            "tools": ["pay"],
            "when": "$args.amount >= 100",
            "approval": {"roles": ["boss"], "expiry_seconds": 3600},
            "limits": [{"max_sum": 5000, "of": "$args.amount", "per": ["principal", "day"]}],
        },
        {"id": "rest", "tools": ["tell"]},
        {"id": "any", "models": ["*"]},
    ],
}


def governed() -> tuple[ExecutionVM, str]:
    """A policy asks for an approval and counts; the tenant is not the default one."""

    async def main() -> ExecutionVM:
        vm = machine(POLICY, pay=pay, tell=tell)
        ana = {"id": "ana", "roles": ["clerk"], "tenant": "acme"}
        await vm.run(REFUND, {"amount": 410}, trace_id="governed-1", principal=ana)
        await vm.approve("acme::governed-1", principal={"id": "eve", "roles": ["boss"], "tenant": "acme"})
        return vm

    return asyncio.run(main()), "acme::governed-1"


def denied() -> tuple[ExecutionVM, str]:
    """What the limit does not allow."""
    vm = machine(POLICY, pay=pay, tell=tell)
    vm.run_sync(REFUND, context={"amount": 6_000}, trace_id="denied-1", principal={"id": "ana", "roles": []})
    return vm, "denied-1"


def pay(amount: int) -> dict[str, Any]:
    return {"paid": amount, "note": "to A-1001"}


def tell() -> str:
    return "told"


class _Shaky:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls < 3:
            raise ToolError("not yet", retryable=True)
        return "at last"


def broken() -> str:
    raise ToolError("the secret reason", retryable=False)


def refund() -> tuple[ExecutionVM, str]:
    vm = machine(pay=pay, tell=tell)
    vm.run_sync(REFUND, context={"amount": 41}, trace_id="refund-1", principal="ana")
    return vm, "refund-1"


def waiting() -> tuple[ExecutionVM, str]:
    vm = machine(tell=tell)
    vm.run_sync(APPROVAL, trace_id="approval-1")
    return vm, "approval-1"


def approved() -> tuple[ExecutionVM, str]:
    """Refused once to somebody without the role, then approved, then told again although it has ended."""
    vm, run = waiting()

    async def go() -> None:
        for who in (
            {"id": "eve", "roles": []},
            {"id": "bob", "roles": ["boss"]},
            {"id": "bob", "roles": ["boss"]},
        ):
            try:
                await vm.resume(run, {"approved": True}, step="ask", event_id=f"e-{next(ids)}", principal=who)
            except NanoVMError:
                pass

    ids = iter(range(9))
    asyncio.run(go())
    return vm, run


def shaky() -> tuple[ExecutionVM, str]:
    vm = machine(shaky=_Shaky().__call__, broken=broken, tell=tell)
    vm.run_sync(SHAKY, trace_id="shaky-1")
    return vm, "shaky-1"


def family() -> tuple[ExecutionVM, str]:
    vm = machine(tell=tell)
    vm.save_program(INNER)
    vm.run_sync(OUTER, trace_id="outer-1")
    return vm, "outer-1"


def forked() -> tuple[ExecutionVM, str]:
    vm, run = family()
    trace = asyncio.run(vm.fork(run, "each", {}, new_trace_id="fork-1"))
    return vm, trace.trace_id


PICKY = Program.from_dict(
    {
        "name": "picky",
        "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        "steps": [{"id": "deep", "type": "tool", "tool": "tell"}],
    }
)


def unborn() -> tuple[ExecutionVM, str]:
    """Two of its three children were refused what they were given, and never began."""
    vm = machine(tell=tell)
    vm.save_program(PICKY)
    call = {"type": "call", "program": "picky", "inputs": {"n": "$n"}, "on_error": "skip"}
    lane = {"id": "lane", "type": "call", "program": "picky", "inputs": {"n": "$item"}, "on_error": "skip"}
    steps = [{"id": "first", **call}, {"id": "each", "type": "map", "over": ["one", 2], "step": lane}]
    vm.run_sync({"name": "outer", "steps": steps}, {"n": "zero"}, trace_id="unborn-1")
    return vm, "unborn-1"


KINDS: dict[str, Callable[[], tuple[ExecutionVM, str]]] = {
    "refund": refund,
    "waiting": waiting,
    "approved": approved,
    "shaky": shaky,
    "family": family,
    "forked": forked,
    "unborn": unborn,
    "governed": governed,
    "denied": denied,
}
