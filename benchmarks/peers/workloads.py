"""The workloads every driver runs: the same steps, the same values, the same proof that they ran.

A program dict is written so that nano-vm and llm-nano-vm take the very same one. Peers without such a
language get the same graph in their own idiom; a condition is a conditional edge where the peer has edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONCURRENT = 100
FAN_OUT = 10


@dataclass(frozen=True)
class Workload:
    """What one program of a workload must do: `steps` executed, `calls` of tools, `result` at its end."""

    key: str
    title: str
    steps: int
    calls: int
    result: object
    unit: str = "programs/s"
    width: int = 1
    sync: str | None = None
    loop_limit: int = 0
    commits: int | None = None  # the fewest a durable engine can do with; None: one per call of a tool


class Tools:
    """Trivial tools that count their calls, so that a benchmark which does nothing fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.count = 0

    async def add_one(self, x: int) -> int:
        self.calls += 1
        return x + 1

    def add_one_sync(self, x: int) -> int:
        self.calls += 1
        return x + 1

    async def lookup(self, order_id: int) -> dict[str, int]:
        self.calls += 1
        return {"id": order_id, "amount": 40}

    async def refund(self, amount: int) -> int:
        self.calls += 1
        return amount

    async def notify(self, amount: int) -> int:
        self.calls += 1
        return amount

    async def reject(self) -> str:
        raise AssertionError("a benchmark took the wrong branch")

    async def tick(self) -> int:
        self.calls += 1
        self.count += 1
        return self.count

    async def done(self, n: int) -> int:
        self.calls += 1
        return n


def w1_program() -> dict[str, Any]:
    """Four steps: look the order up, decide, refund, notify."""
    return {
        "name": "refund",
        "max_steps": 10,
        "steps": [
            {
                "id": "lookup",
                "type": "tool",
                "tool": "lookup",
                "args": {"order_id": "$order_id"},
                "next_step": "check",
            },
            {
                "id": "check",
                "type": "condition",
                "condition": "$lookup.output.amount <= 100",
                "then": "refund",
                "otherwise": "reject",
            },
            {
                "id": "refund",
                "type": "tool",
                "tool": "refund",
                "args": {"amount": "$lookup.output.amount"},
                "output_key": "refunded",
                "next_step": "notify",
            },
            {
                "id": "notify",
                "type": "tool",
                "tool": "notify",
                "args": {"amount": "$refunded"},
                "is_terminal": True,
            },
            {"id": "reject", "type": "tool", "tool": "reject", "is_terminal": True},
        ],
    }


def w2_program(tool: str = "add_one") -> dict[str, Any]:
    """Twenty steps: five times a condition and three tools, each tool adding one to the value before it."""
    steps: list[dict[str, Any]] = []
    value = "x"
    number = 0
    for block in range(5):
        steps.append(
            {
                "id": f"c{block + 1}",
                "type": "condition",
                "condition": f"${value} >= {number}",
                "then": f"t{number + 1}",
                "otherwise": "reject",
            }
        )
        for position in range(3):
            number += 1
            step: dict[str, Any] = {
                "id": f"t{number}",
                "type": "tool",
                "tool": tool,
                "args": {"x": f"${value}"},
                "output_key": f"v{number}",
            }
            if number == 15:
                step["is_terminal"] = True
            elif position == 2:
                step["next_step"] = f"c{block + 2}"
            else:
                step["next_step"] = f"t{number + 1}"
            steps.append(step)
            value = f"v{number}"
    steps.append({"id": "reject", "type": "tool", "tool": "reject", "is_terminal": True})
    return {"name": "twenty", "max_steps": 50, "steps": steps}


def w3_program(limit: int) -> dict[str, Any]:
    """A loop: a tool and a condition, `limit` times, then one last tool."""
    return {
        "name": "loop",
        "max_steps": 2 * limit + 10,
        "steps": [
            {"id": "tick", "type": "tool", "tool": "tick", "output_key": "n", "next_step": "again"},
            {
                "id": "again",
                "type": "condition",
                "condition": "$n < $limit",
                "then": "tick",
                "otherwise": "done",
            },
            {"id": "done", "type": "tool", "tool": "done", "args": {"n": "$n"}, "is_terminal": True},
        ],
    }


def w5_program() -> dict[str, Any]:
    """A tool, a wait for an event, a tool that uses the event's payload."""
    return {
        "name": "approval",
        "max_steps": 10,
        "steps": [
            {
                "id": "before",
                "type": "tool",
                "tool": "add_one",
                "args": {"x": "$x"},
                "output_key": "first",
                "next_step": "hold",
            },
            {
                "id": "hold",
                "type": "wait",
                "event": "approval",
                "output_key": "answer",
                "next_step": "after",
            },
            {
                "id": "after",
                "type": "tool",
                "tool": "add_one",
                "args": {"x": "$answer.value"},
                "is_terminal": True,
            },
        ],
    }


def w6_program() -> dict[str, Any]:
    """Ten parallel sub-steps."""
    return {
        "name": "fan",
        "max_steps": 50,
        "steps": [
            {
                "id": "fan",
                "type": "parallel",
                "parallel_steps": [
                    {"id": f"p{n}", "type": "tool", "tool": "add_one", "args": {"x": "$x"}}
                    for n in range(FAN_OUT)
                ],
                "is_terminal": True,
            }
        ],
    }


def _loop(steps: int, sync: str | None = None) -> Workload:
    limit = steps // 2
    return Workload(
        f"W3_full_{steps}" if sync else f"W3_{steps}",
        f"loop of {steps:,} steps" + (", each durable, FULL" if sync else ""),
        2 * limit + 1,
        limit + 1,
        limit,
        "us/step",
        sync=sync,
        loop_limit=limit,
    )


_ALL = (
    Workload("W1", "4-step refund", 4, 3, 40),
    Workload("W2", "20 steps (15 tools, 5 conditions)", 20, 15, 15),
    Workload("W2_sync", "W2 with plain functions as tools", 20, 15, 15),
    _loop(100),
    _loop(1_000),
    _loop(10_000),
    _loop(100, "FULL"),
    Workload("W4_full_seq", "W2 durable, FULL, one after another", 20, 15, 15, sync="FULL"),
    Workload("W4_full_100", "W2 durable, FULL, 100 at once", 20, 15, 15, width=CONCURRENT, sync="FULL"),
    Workload("W4_normal_seq", "W2 durable, NORMAL, one after another", 20, 15, 15, sync="NORMAL"),
    Workload("W4_normal_100", "W2 durable, NORMAL, 100 at once", 20, 15, 15, width=CONCURRENT, sync="NORMAL"),
    Workload("W5", "suspend, then resume in a fresh engine object, FULL", 3, 2, 42, sync="FULL"),
    Workload("W5_reopen", "W5 with the database closed and opened again between", 3, 2, 42, sync="FULL"),
    Workload("W6", "10 parallel sub-steps", FAN_OUT, FAN_OUT, FAN_OUT),
    # Sub-steps that begin together may share a commit: one before them and one after is the least.
    Workload("W6_full", "W6 durable, FULL", FAN_OUT, FAN_OUT, FAN_OUT, sync="FULL", commits=2),
)
WORKLOADS: dict[str, Workload] = {workload.key: workload for workload in _ALL}
EVENT = {"value": 41}
