"""What does it cost to track labels, to have every call decided by a policy, and to prove where values may flow?

Runs nano-vm alone, in memory. The program has 20 steps, 15 tools and 5 conditions, once with a tool whose parameter is
protected and once without: the difference is what tracking costs. With a policy that allows the tool by its name every
call has its decision in the journal; with a rule on arguments every call's are looked at. The general path is what runs
take where the lane (`nano_vm.kernel.lane`) does not go. The kinds are interleaved in rounds; the best round of each
counts. The proof is made of a program of 1,000 steps, 250 of them guards.

    python benchmarks/governance.py
    python benchmarks/governance.py --quick          # a smoke run without verdicts

Exit code: 0 every requirement met, 1 one was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

from nano_vm import ExecutionVM, Program, tool
from nano_vm.compiler import check as check_alone
from nano_vm.policy.check import check

GOVERNED_MAX = 1.25  # a step with labels and decisions, over one with neither
PROOF_SECONDS_MAX = 1.0  # of 1,000 steps


@tool(effect="keyed", may_suspend=False)
async def act(amount: Any) -> Any:
    return amount


@tool(effect="keyed", may_suspend=False, protected=["amount"])
async def guarded(amount: Any) -> Any:
    return amount


def program(name: str) -> Program:
    """15 tools in a row and 5 conditions, each tool fed by the one before."""
    steps: list[dict[str, Any]] = []
    last = "$limit"
    for number in range(20):
        if number % 4 == 3:
            condition = {"id": f"c{number}", "type": "condition", "condition": f"{last} == 5"}
            steps.append({**condition, "then": "continue", "otherwise": "end"})
            continue
        steps.append({"id": f"t{number}", "type": "tool", "tool": name, "args": {"amount": last}})
        last = f"$t{number}.output"
    steps.append({"id": "good", "type": "tool", "tool": name, "args": {"amount": last}, "is_terminal": True})
    steps.append({"id": "end", "type": "tool", "tool": "act", "args": {"amount": 1}, "outcome": "other"})
    steps[-1]["is_terminal"] = True
    inputs = {"type": "object", "properties": {"limit": {"type": "integer", "label": "trusted"}}}
    if name == "act":
        del inputs["properties"]["limit"]["label"]  # type: ignore[index]
    return Program.from_dict({"name": name, "inputs": inputs, "steps": steps})


async def tracking(rounds: int, runs: int) -> dict[str, float]:
    """CPU microseconds per step, by kind."""
    policy = {"policy": "p", "tools": ["act", "guarded"]}
    rule = {"id": "r", "tools": ["act", "guarded"], "when": "$args.amount >= 0"}
    free, governed = ExecutionVM(tools=[act, guarded]), ExecutionVM(tools=[act, guarded], policy=policy)
    looking = ExecutionVM(tools=[act, guarded], policy={"policy": "p", "rules": [rule]})
    kinds = {
        "none": (free, program("act"), True),
        "labels": (free, program("guarded"), True),
        "policy": (governed, program("act"), True),
        "both": (governed, program("guarded"), True),
        "rules": (looking, program("act"), True),
        "rules+labels": (looking, program("guarded"), True),
        "general": (free, program("act"), False),
    }
    best = dict.fromkeys(kinds, float("inf"))
    for _ in range(rounds):
        for kind, (vm, one, lane) in kinds.items():
            vm.lane = lane
            started = time.process_time()
            for _ in range(runs):
                trace = await vm.run(one, {"limit": 5})
            best[kind] = min(best[kind], (time.process_time() - started) / runs / 21 * 1e6)
            assert trace.status == "SUCCESS", trace.error
    await free.close()
    await governed.close()
    await looking.close()
    return best


def proof(steps: int) -> tuple[float, float]:
    """CPU seconds of a check without and with the proof."""
    rows: list[dict[str, Any]] = []
    for number in range(0, steps, 4):
        value = f"$e{number}.output"
        guard = {"id": f"g{number}", "type": "condition", "condition": f"{value} in ['a', 'b']"}
        rows += [
            {
                "id": f"m{number}",
                "type": "llm",
                "prompt": f"${'x' if not number else f'e{number - 4}.output'}",
            },
            {"id": f"e{number}", "type": "tool", "tool": "act", "args": {"amount": f"$m{number}.output"}},
            {**guard, "then": "continue", "otherwise": "end"},
            {"id": f"p{number}", "type": "tool", "tool": "guarded", "args": {"amount": value}},
        ]
    rows[-1]["is_terminal"] = True
    rows.append({"id": "end", "type": "tool", "tool": "act", "args": {"amount": 1}, "outcome": "no"})
    rows[-1]["is_terminal"] = True
    inputs = {"type": "object", "properties": {"x": {}}}
    one = Program.from_dict({"inputs": inputs, "max_steps": 2 * steps, "steps": rows})
    schemas = ExecutionVM(tools=[act, guarded]).tools.schemas()
    spent = []
    for function in (check_alone, check):
        started = time.process_time()
        report = function(one, schemas)
        spent.append(time.process_time() - started)
        assert not report.errors, report.errors[0]
    return spent[0], spent[1]


def main() -> int:
    parser = argparse.ArgumentParser(description="What governing costs.")
    parser.add_argument("--quick", action="store_true", help="a smoke run without verdicts")
    quick = parser.parse_args().quick
    best = asyncio.run(tracking(2 if quick else 12, 3 if quick else 60))
    for kind, spent in best.items():
        print(f"{kind:12} {spent:7.1f} µs a step {spent / best['none']:6.2f}")
    both, looked = best["both"] / best["none"], best["rules+labels"] / best["none"]
    print(f"labels and decisions over neither: {both:.2f} (at most {GOVERNED_MAX})")
    print(f"labels and rules on arguments over neither: {looked:.2f} (at most {GOVERNED_MAX})")
    alone, proved = proof(100 if quick else 1_000)
    print(f"check of {100 if quick else 1_000} steps: {alone:.2f} s, with the proof {proved:.2f} s")
    if quick:
        return 0
    return 0 if max(both, looked) <= GOVERNED_MAX and proved <= PROOF_SECONDS_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
