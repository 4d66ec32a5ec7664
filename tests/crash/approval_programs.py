"""An approval in a process that dies on the way to the action: see `test_approval_kill.py`.

    python approval_programs.py DIRECTORY PROGRAM DURABILITY

Approves what run `r0` waits for. `CRASH_AT=n` kills the process at the n-th boundary: before and after whatever it
writes - the answer, the policy, what limits count, decision and intent, outcome - and before and after the effect.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import crash_programs
from crash_programs import TOOLS, Watched, boundary, step

from nano_vm import ExecutionVM, SqliteStore
from nano_vm.runtime.ports import Clock

ANA = {"id": "ana", "roles": ["clerk"]}
EVE = {"id": "eve", "roles": ["boss"]}
BOB = {"id": "bob", "roles": ["boss"]}
EXPIRY_SECONDS = 3_600
KINDS = ("irreversible", "keyed", "reconcilable", "transactional", "pure")


def act(kind: str) -> dict[str, Any]:
    return {"id": "A", "type": "tool", "tool": kind, "args": {"name": "$name"}}


WAIT = {"id": "ok", "type": "wait", "approvers": ["boss"], "approves": "A"}
PROGRAMS: dict[str, dict[str, Any]] = {
    **{kind: {"name": kind, "steps": [act(kind), step("keyed", "Z")]} for kind in KINDS},
    **{f"bound-{kind}": {"name": f"bound-{kind}", "steps": [WAIT, act(kind), step("keyed", "Z")]} for kind in KINDS},
    "map": {"name": "map", "steps": [
        {"id": "m", "type": "map", "over": ["M0", "M1"], "step": step("keyed", "each") | {"args": {"name": "$item"}}},
        step("keyed", "Z"),
    ]},
}  # fmt: skip


def policy(**act: Any) -> dict[str, Any]:
    """What is done under the name A or M… is asked for, and counted: six a day."""
    return {
        "policy": "p",
        "rules": [
            {"id": "end", "tools": ["keyed"], "when": "$args.name == 'Z'"},
            {
                "id": "act",
                "tools": list(KINDS),
                "when": "$args.name != 'Z'",
                "approval": {"roles": ["boss"], "expiry_seconds": EXPIRY_SECONDS},
                "limits": [{"max_calls": 6, "per": ["principal", "day"]}],
                **act,
            },
        ],
    }


ASKING = policy()
TIGHT = {
    "policy": "p",
    "rules": [
        {"id": "end", "tools": ["keyed"], "when": "$args.name == 'Z'"},
        {"id": "no", "tools": list(KINDS), "when": "$args.name != 'Z'", "decision": "deny"},
    ],
}


class Everything(Watched):
    """Whatever is written on the way from an approval to its action is a boundary."""

    def put_policy(self, *args: Any) -> None:
        boundary("before the policy")
        super().put_policy(*args)
        boundary("after the policy")

    def count(self, *args: Any) -> Any:
        boundary("before counting")
        counted = super().count(*args)
        boundary("after counting")
        return counted

    def claim(self, *args: Any) -> Any:
        boundary("before the claim")
        fence = super().claim(*args)
        boundary("after the claim")
        return fence


class Later:
    """The real clock, some hours on."""

    def __init__(self, clock: Clock, later_ms: int) -> None:
        self._clock = clock
        self._later_ms = later_ms

    def now_ms(self) -> int:
        return self._clock.now_ms() + self._later_ms

    async def sleep_until(self, at_ms: int) -> None:
        await self._clock.sleep_until(at_ms - self._later_ms)


def machine(place: Path, store: SqliteStore, policy: Any = ASKING, **options: Any) -> ExecutionVM:
    crash_programs.PLACE = place
    return ExecutionVM(tools=TOOLS, store=store, policy=policy, **options)


async def approve(vm: ExecutionVM) -> None:
    for found in vm.approvals():
        await vm.approve(found.run_id, item=found.item, principal=EVE, event_id=f"eve-{found.item}")


def main() -> None:
    directory, _, durability = sys.argv[1:4]
    place = Path(directory)
    store = Everything(place / "runs.db", durability="full" if durability == "full" else "normal")
    asyncio.run(approve(machine(place, store)))
    (place / "boundaries").write_text(str(crash_programs._boundaries))


if __name__ == "__main__":
    main()
