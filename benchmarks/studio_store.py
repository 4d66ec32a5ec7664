"""A database for looking at: many short runs, some that wait or fail, and one very long one."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from nano_vm import ExecutionVM, MockLLMAdapter, tool
from nano_vm.stores.sqlite import SqliteJournalStore

SHORT = {
    "name": "refund",
    "version": "1.0",
    "inputs": {
        "type": "object",
        "properties": {"order": {"type": "integer"}, "amount": {"type": "number"}},
        "required": ["order", "amount"],
        "additionalProperties": False,
    },
    "steps": [
        {
            "id": "find_order",
            "type": "tool",
            "tool": "find_order",
            "args": {"order": "$order"},
            "output_key": "found",
        },
        {
            "id": "assess",
            "type": "llm",
            "prompt": "Is order $order for $amount a fraud? Answer low or high.",
            "allowed_outputs": ["low", "high"],
            "output_key": "risk",
            "params": {"max_tokens": 10},
        },
        {
            "id": "large",
            "type": "condition",
            "condition": "$amount > 490",
            "then": "approval",
            "otherwise": "pay",
        },
        {"id": "approval", "type": "wait", "approvers": ["supervisor"], "output_key": "decision"},
        {
            "id": "approved",
            "type": "condition",
            "condition": "$decision.approved == true",
            "then": "pay",
            "otherwise": "refuse",
        },
        {
            "id": "pay",
            "type": "tool",
            "tool": "pay",
            "args": {"order": "$order", "amount": "$amount"},
            "is_terminal": True,
            "outcome": "refunded",
        },
        {
            "id": "refuse",
            "type": "tool",
            "tool": "find_order",
            "args": {"order": "$order"},
            "is_terminal": True,
            "final_status": "FAILED",
            "outcome": "refused",
        },
    ],
}
LONG = {
    "name": "long_poll",
    "version": "1.0",
    "max_steps": 100_000,
    "inputs": {
        "type": "object",
        "properties": {"rounds": {"type": "integer"}},
        "required": ["rounds"],
        "additionalProperties": False,
    },
    "steps": [
        {"id": "count", "type": "tool", "tool": "count", "args": {}, "output_key": "number"},
        {
            "id": "again",
            "type": "condition",
            "condition": "$number < $rounds",
            "then": "count",
            "otherwise": "done",
        },
        {"id": "done", "type": "tool", "tool": "count", "args": {}, "is_terminal": True},
    ],
}


USAGE = {"prompt_tokens": 120, "completion_tokens": 2, "cost_usd": 0.00021}


def tools():
    counted = 0

    @tool(effect="idempotent")
    def find_order(order: int) -> dict:
        return {"order": order, "customer": f"customer {order % 97}", "refundable": True}

    @tool(effect="idempotent")
    def pay(order: int, amount: float) -> dict:
        if order % 53 == 0:
            raise ValueError("the bank says no")
        return {"receipt": f"r-{order}", "amount": amount}

    @tool(effect="idempotent")
    def count() -> int:
        nonlocal counted
        counted += 1
        return counted

    return [find_order, pay, count]


async def fill(path: Path, runs: int, steps: int, group: int = 200) -> None:
    """Write the database: `runs` short runs, about 1 in 50 of which waits for an approval, and one of `steps` steps."""
    store = SqliteJournalStore(path, durability="normal")
    vm = ExecutionVM(llm=MockLLMAdapter("low", usage=USAGE), tools=tools(), store=store)
    try:
        for first in range(0, runs, group):
            await asyncio.gather(
                *(
                    vm.run(
                        SHORT,
                        context={"order": order, "amount": (order * 7) % 500},
                        trace_id=f"refund-{order:05d}",
                    )
                    for order in range(first, min(first + group, runs))
                )
            )
        if steps:
            await vm.run(LONG, context={"rounds": steps // 2}, trace_id="long-run")
    finally:
        await vm.close()
        store.close()


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
