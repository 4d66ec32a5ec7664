"""What a policy costs: the same program in memory, with and without one.

    python benchmarks/policies.py [--runs 200] [--rounds 9]

Prints the processor time of a run relative to the same run without a policy, interleaved, the best round of each:
`static` allows the tools by name, `conditions` looks at arguments, `principal` at who started the run as well, `limits`
counts the calls of each run, `spend` adds up an argument of them, `daily` counts in the store what all runs of a
principal do in a day. The journal is written either way. The limits are those that the contract is held to: what is
decided from the policy and the run alone costs less than a quarter of a step.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from nano_vm import ExecutionVM, Program, tool

STEPS = 20


def _limited(limit: dict[str, Any]) -> dict[str, Any]:
    return {"policy": "p", "rules": [{"id": "r", "tools": ["work"], "limits": [limit]}]}


POLICIES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "static": {"policy": "p", "tools": ["work"]},
    "conditions": {"policy": "p", "rules": [{"id": "r", "tools": ["work"], "when": "$args.n >= 0"}]},
    "principal": {
        "policy": "p",
        "rules": [{"id": "r", "tools": ["work"], "when": "$args.n < 99 and $principal.id == 'ana'"}],
    },
    "limits": _limited({"max_calls": 99, "per": ["run"]}),
    "spend": _limited({"max_sum": 999, "of": "$args.n", "per": ["run"]}),
    "daily": _limited({"max_calls": 10**9, "per": ["principal", "day"]}),
}


@tool(effect="keyed", blocking=False)
def work(n: int) -> int:
    return n


def program() -> Program:
    steps = [{"id": f"s{n}", "type": "tool", "tool": "work", "args": {"n": n}} for n in range(STEPS)]
    return Program.from_dict({"name": "work", "steps": steps})


async def measure(runs: int, rounds: int) -> dict[str, float]:
    """Microseconds of processor time that a step takes, by policy: the best round."""
    flow = program()
    found: dict[str, list[float]] = {name: [] for name in POLICIES}
    for _ in range(rounds):
        for name, policy in POLICIES.items():
            vm = ExecutionVM(tools=[work], policy=policy)
            await vm.run(flow, principal="ana")
            started = time.process_time()
            for _ in range(runs):
                trace = await vm.run(flow, principal="ana")
                assert trace.status == "SUCCESS"
            found[name].append((time.process_time() - started) / runs / STEPS * 1e6)
    return {name: min(times) for name, times in found.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    times = asyncio.run(measure(args.runs, args.rounds))
    for name, micros in times.items():
        print(f"{name:<11} {micros:8.1f} µs/step   {micros / times['none']:5.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
