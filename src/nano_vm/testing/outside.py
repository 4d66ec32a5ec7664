"""The outside of a simulation: it sends a run what it waits for, and finds out what became of unknown outcomes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from nano_vm.kernel.state import Waiting
from nano_vm.testing.checkers import Checkers
from nano_vm.testing.loop import SimulatedClock
from nano_vm.testing.process import Process


class Outside:
    """Whoever answers one run.

    Args:
        draw: the chance that all of the simulation has.
        checkers: they know what has happened outside.
        answers: event name -> data; made up for others.
    """

    def __init__(
        self,
        run_id: str,
        draw: random.Random,
        clock: SimulatedClock,
        checkers: Checkers,
        answers: Mapping[str, Any],
    ) -> None:
        self._run_id = run_id
        self._draw = draw
        self._clock = clock
        self._checkers = checkers
        self._answers = answers
        self._events = 0
        self.sent: list[dict[str, Any]] = []  # events, as `resume` takes them

    async def give(
        self, process: Process, waits: Iterable[Waiting | Mapping[str, Any]], way: str = ""
    ) -> None:
        """Give a waiting run what it waits for."""
        for one in waits:
            wait = one.to_dict() if isinstance(one, Waiting) else dict(one)
            step = f"{way}{wait['step']}"
            if wait["kind"] == "child":
                await self.give(process, wait.get("waits", ()), f"{step}/")
            elif wait["kind"] == "outcome":
                await self._resolve(process, wait, step)
            elif wait.get("due_ms") and not (wait.get("action") and self._draw.random() < 0.8):
                self._clock.skew_ms += max(0, wait["due_ms"] - self._clock.now_ms())
            else:
                await self._send(process, wait, step)

    async def _send(self, process: Process, wait: Mapping[str, Any], step: str) -> None:
        self._events += 1
        data: Any = {"approved": True} if wait["kind"] == "approval" else {"number": self._events}
        data = self._answers.get(str(wait.get("event")), data)
        roles = list(wait.get("approvers", ()))
        event = {
            "event": data,
            "event_id": f"event-{self._events}",
            "step": step,
            "item": wait.get("item"),
            "principal": {"id": "ana", "roles": roles},
        }
        if wait.get("action"):  # it is of one exact action
            ana = event["principal"]
            await process.engine.approve(
                self._run_id, True, step=step, item=wait.get("item"), action=wait["action"], principal=ana
            )
            return
        self.sent.append(event)
        await process.engine.resume(self._run_id, **event)

    async def _resolve(self, process: Process, wait: Mapping[str, Any], step: str) -> None:
        """An operator looks outside, and says what happened."""
        run_id, name = self._owner_of(step)
        place = (run_id, name, wait["occurrence"], wait.get("item"), wait["attempt"])
        key = self._checkers.keys.get(place)
        happened = key is not None and self._checkers.effects[run_id, key] > 0
        happened |= self._checkers.plain[run_id, name] >= wait["occurrence"]
        resolution = "succeeded" if happened else self._draw.choice(["repeat", "failed"])
        value = {"said": f"token-{name}"} if happened else None
        await process.engine.resolve(self._run_id, step, resolution, value, item=wait.get("item"))

    def _owner_of(self, step: str) -> tuple[str, str]:
        """The run that a step belongs to: of the children of a call, the one that is alive."""
        way, _, name = step.rpartition("/")
        if not way:
            return self._run_id, name
        called = f"{self._run_id}/{way.partition('/')[0]}."
        alive = [one for one in self._checkers.runs if one.startswith(called)]
        return (alive[-1] if alive else self._run_id), name
