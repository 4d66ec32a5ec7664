"""The outside of a simulation: it sends a run what it waits for, and finds out what became of unknown outcomes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nano_vm.kernel.state import Waiting
from nano_vm.testing.checkers import Checkers
from nano_vm.testing.loop import SimulatedClock
from nano_vm.testing.process import Process

_MOODS = ("", "", "", "no", "nobody", "late", "unwanted", "by name")


class Temper(NamedTuple):
    """How those who answer may be minded: `moods` draws for them. A `quiet` one says yes; what the others would come to
    in a program of your `own` is yours. `starter`: who began the run, and may be asked to approve of it."""

    moods: random.Random
    quiet: bool
    own: bool
    starter: dict[str, Any] | None

    def draw(self) -> str:
        mood = "" if self.quiet else self.moods.choice(_MOODS)
        return mood if mood == "by name" or not self.own else ""


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
        temper: Temper,
    ) -> None:
        self._run_id = run_id
        self._draw = draw
        self._clock = clock
        self._checkers = checkers
        self._answers = answers
        self._temper = temper
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
        mood = self._temper.draw()
        if wait.get("action"):  # it is of one exact action
            await self._approve(process, wait, step, mood)
            return
        data: Any = {"approved": mood != "no"} if wait["kind"] == "approval" else {"number": self._events}
        if mood == "unwanted" and wait["kind"] != "approval":
            data = {"number": 0}
        event = {
            "event": self._answers.get(str(wait.get("event")), data),
            "event_id": f"event-{self._events}",
            "step": step,
            "item": wait.get("item"),
            "principal": {"id": "ana", "roles": [] if mood == "nobody" else list(wait.get("approvers", ()))},
        }
        if mood == "by name" and wait["kind"] == "event" and "/" not in step:
            event |= {"step": None, "item": None, "name": wait["event"]}
        self.sent.append(event)
        await process.engine.resume(self._run_id, **event)

    async def _approve(self, process: Process, wait: Mapping[str, Any], step: str, mood: str) -> None:
        """Somebody says yes or no to what they were shown; or somebody who may not, too late, or to something else."""
        person = {"id": self._temper.moods.choice(["ana", "ben"]), "roles": list(wait.get("approvers", ()))}
        action, nonce = wait["action"], wait["nonce"]
        if mood == "nobody":
            person["roles"] = ["intern"]
        elif mood == "by name" and self._temper.starter is not None:
            person = self._temper.starter
        elif mood == "late":
            self._clock.skew_ms += max(0, wait["due_ms"] - self._clock.now_ms())
        elif mood == "unwanted":
            action = f"sha256:{'0' * 64}"
        answer = {"approved": mood != "no", "action": action, "nonce": nonce}
        if mood in ("late", "unwanted"):  # past whoever looks at it before it is sent
            name = step.rpartition("/")[2]
            await process.engine.resume(
                self._run_id,
                answer,
                step=step,
                item=wait.get("item"),
                principal=person,
                event_id=f"{name}-{self._events}",
            )
            return
        await process.engine.approve(
            self._run_id,
            mood != "no",
            step=step,
            item=wait.get("item"),
            action=action,
            nonce=nonce,
            principal=person,
        )

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
