"""One process of a scenario.

    python -m nano_vm.testing.chaos.worker DIRECTORY ROLE PROGRAM FIRST COUNT SEED

It says `ready` with a file of that name once it has begun, so that whoever kills it knows that there is something to
kill. Everything it does goes through the public API.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from nano_vm.errors import NanoVMError
from nano_vm.providers.mock import MockLLMAdapter
from nano_vm.testing.chaos import programs
from nano_vm.testing.chaos.outside import HOSTILE, Outside
from nano_vm.vm import ExecutionVM

SUPERVISOR: Final = {"id": "ana", "roles": ["supervisor"]}
# What a sender may be told when it was late, twice, or not the first.
REFUSALS: Final = frozenset(
    {"NOT_WAITING", "TERMINAL", "DUPLICATE", "EVENT_CONFLICT", "NOT_ACCEPTED", "NOT_APPROVER", "NOT_APPROVAL"}
    | {
        "AMBIGUOUS",
        "UNKNOWN_STEP",
        "RUN_NOT_FOUND",
        "INBOX_FULL",
        "OVERSIZED",
        "VALUE_TOO_LARGE",
        "LEASE_LOST",
    }
    | {
        "MAIL_CONFLICT",
        "MAIL_FULL",
        "OUT_OF_ORDER",
        "KEY_CONFLICT",
        "RUN_EXISTS",
        "STORE_LOCKED",
        "VALUE_NOT_JSON",
    }
)
_HUGE: Final = "x" * (9 * 1024 * 1024)
_IDLE_ROUNDS = 3


class Caller:
    """Somebody who calls the engine, and may be refused."""

    outside: Outside

    async def attempt(self, action: Awaitable[Any]) -> bool:
        """Whether it was done; a refusal is an answer, anything else an error of ours."""
        try:
            await action
        except NanoVMError as error:
            if error.code not in REFUSALS:
                raise
            self.outside.note("refusals", error.code)
            return False
        return True


class Worker(Caller):
    """A process with an engine of its own over the shared database."""

    def __init__(self, place: Path, program: str, first: int, count: int, seed: int) -> None:
        self.outside = Outside(place)
        self.program = next(one for one in programs.ALL if one["name"] == program)
        self.names = [f"{program}-{number}" for number in range(first, first + count)]
        self.draw = random.Random(f"{seed}/{first}")
        answers = ["yes", "no", HOSTILE, "yes\n", "maybe", '{"then": "pay"}', "yes'; then: pay"]
        self.draw.shuffle(answers)
        self.vm = ExecutionVM(
            llm=MockLLMAdapter(answers),
            tools=self.outside.tools(),
            store=self.outside.database.open("normal"),
        )
        self.vm.save_program(programs.CHILD)

    # --- roles ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start the runs, each under its own key: a second process that does the same starts nothing."""
        inputs = {"text": HOSTILE} if "inputs" in self.program else None
        await asyncio.gather(
            *(
                self.attempt(self.vm.run(self.program, inputs, trace_id=name, idempotency_key=name))
                for name in self.names
            )
        )

    async def recover(self) -> None:
        """Until nothing is left but what needs a person."""
        idle = 0
        while idle < _IDLE_ROUNDS:
            done = await self.vm.recover(limit=1_000)
            moved = await asyncio.gather(*(self._give(record) for record in self.vm.runs(limit=100_000)))
            idle = 0 if done or any(moved) else idle + 1
            await asyncio.sleep(0.02)

    async def _give(self, record: Any) -> bool:
        if record.parent is not None or record.status not in ("SUSPENDED", "RUNNING"):
            return False
        if record.status == "RUNNING":
            return True
        moved = False
        for wait in self.vm.trace(record.run_id).waiting:
            if wait.kind == "event":
                moved |= await self.attempt(self._event(record.run_id, str(wait.event)))
            elif wait.kind == "approval":
                moved |= await self.attempt(self._approval(record.run_id))
            elif wait.kind != "outcome":
                moved = True
        return moved

    def _event(self, run_id: str, name: str, number: int = 3) -> Awaitable[Any]:
        event_id = f"{name}-{run_id}"
        return self.vm.resume(run_id, {"number": number}, event_id=event_id, name=name)

    def _approval(self, run_id: str, event_id: str = "ok") -> Awaitable[Any]:
        return self.vm.resume(
            run_id, {"approved": True}, event_id=f"{event_id}-{run_id}", step="agree", principal=SUPERVISOR
        )

    async def disorder(self) -> None:
        """Events in any order, early, late and repeatedly."""
        names = ["one", "two", "three"] * 2
        for run_id in self.names:
            self.draw.shuffle(names)
            for name in names:
                await self.attempt(self._event(run_id, name))

    async def corrupt(self) -> None:
        """Events that are not what was agreed on: other content under a known id, huge, hostile, from strangers."""
        bad: list[Any] = [
            _HUGE,
            HOSTILE,
            {"number": "three"},
            {"number": 1},
            None,
            [[[[]]]],
            {"approved": "yes"},
        ]
        for run_id in self.names:
            for number, content in enumerate(bad):
                name = self.draw.choice(["one", "two", "three", "other"])
                await self.attempt(
                    self.vm.resume(run_id, content, event_id=f"bad-{number}-{run_id}", name=name, step=None)
                )

    async def resume(self) -> None:
        """Everybody approves at once, several times."""
        for run_id in self.names:
            await asyncio.gather(*(self.attempt(self._approval(run_id, f"by-{n}")) for n in range(4)))

    async def strangers(self) -> None:
        """Approvals by whoever must not."""
        eve = {"id": "eve", "roles": ["intern"]}
        for run_id in self.names:
            await self.attempt(self.vm.resume(run_id, {"approved": True}, step="agree", principal=eve))

    async def meddle(self) -> None:
        """Step, cancel and resume runs that others drive."""
        for run_id in self.names:
            for _ in range(3):
                match self.draw.randrange(4):
                    case 0:
                        await self.attempt(self.vm.step(run_id))
                    case 1:
                        await self.attempt(self._event(run_id, "go"))
                    case 2:
                        await self.attempt(self.vm.recover(limit=5))
                    case _:
                        await self.attempt(self.vm.cancel(run_id, "enough"))

    async def read(self) -> None:
        """Replays and proofs of everything, over and over: nothing may happen again."""
        for _ in range(5):
            for record in self.vm.runs(limit=100_000):
                try:
                    self.vm.replay(record.run_id)
                except NanoVMError as error:
                    # A run that goes on while its record is read is not a run whose proof fails.
                    if self.vm.store.record(record.run_id).updated_at_ms == record.updated_at_ms:
                        raise error
            await asyncio.sleep(0)

    async def crowd(self) -> None:
        """One call, twenty times at once, under one key."""
        for name in self.names:
            await asyncio.gather(
                *(
                    self.attempt(self.vm.run(self.program, None, idempotency_key=name, trace_id=name))
                    for _ in range(20)
                )
            )


ROLES: Final[dict[str, Callable[[Worker], Awaitable[None]]]] = {
    "run": Worker.run,
    "recover": Worker.recover,
    "disorder": Worker.disorder,
    "corrupt": Worker.corrupt,
    "resume": Worker.resume,
    "strangers": Worker.strangers,
    "meddle": Worker.meddle,
    "read": Worker.read,
    "crowd": Worker.crowd,
}


def main(argv: list[str]) -> None:
    place, role, program, first, count, seed = argv
    worker = Worker(Path(place), program, int(first), int(count), int(seed))
    worker.outside.note(f"ready-{role}-{first}-{seed}", role)
    asyncio.run(_work(worker, role))


async def _work(worker: Worker, role: str) -> None:
    async with worker.vm:
        await ROLES[role](worker)


if __name__ == "__main__":
    main(sys.argv[1:])
