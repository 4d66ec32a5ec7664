"""What ends a wait, read off a program's source and a run's journal: a second opinion on timers, events and approvals
(P1, P9).

No timer rings early, an event ends the wait it is meant for, the first that takes it, and only somebody in the role
approves. Like `edges` this is deliberately not the kernel's code; it follows SPEC §2 and §9.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Phase, Settled, State, StepStatus
from nano_vm.program.compiled import CompiledProgram

Wrong: TypeAlias = tuple[str, str]
Place: TypeAlias = tuple[str, int, int]  # step, occurrence, item (-1 without one)

_ACCEPT: Final = re.compile(r"\$event\.(\w+) (>=|!=|==) (\d+)")  # what random programs ask of events
_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
}


class Waits:
    """Follows the waits of one run, in the order they began.

    Invariant: `_since` holds when each of those that go on began, `_asked` what is asked of whom where somebody has to
    approve one action.
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._steps: dict[str, Mapping[str, Any]] = {}
        for step in source["steps"]:
            for one in [step, *step.get("parallel_steps", ())]:
                self._steps[one["id"]] = one
            if "step" in step:
                self._steps[step["step"]["id"]] = step["step"]
        self._since: dict[Place, int] = {}
        self._asked: dict[Place, ev.ApprovalRequested] = {}
        self._said: dict[Place, list[str]] = {}  # by whom an action was approved
        self._starter: str | None = None

    def broken_by(
        self, event: ev.Event, settled: Sequence[tuple[int, Settled]], program: CompiledProgram, state: State
    ) -> Wrong | None:
        """The promise, and what is wrong with how a wait has ended; or None."""
        gone = [place for place in self._since if not _is_waiting(program, state, place)]
        wrong: Wrong | None = None
        match event:
            case ev.RunStarted() if event.principal is not UNSET:
                self._starter = event.principal.get("id")
            case ev.ApprovalRequested():
                self._asked[_place_of(event)] = event
                self._said[_place_of(event)] = []
            case ev.TimerFired():
                wrong = self._rang(event, gone)
            case ev.EventReceived():
                wrong = self._came(event, gone, {program.steps[index].id: one for index, one in settled})
            case _:
                pass
        for place in gone:
            del self._since[place]
        for activity in state.active.values():
            if activity.phase is Phase.WAITING and activity.step >= 0:
                place = (program.steps[activity.step].id, activity.occurrence, activity.item)
                self._since.setdefault(place, state.now_ms)
        return wrong

    def _rang(self, event: ev.TimerFired, gone: Sequence[Place]) -> Wrong | None:
        place = _place_of(event)
        if place not in gone:
            return None  # of something else than a wait
        step = self._steps.get(event.step, {})
        seconds = step.get("seconds", step.get("timeout_seconds"))
        ask = self._asked.get(place)
        if ask is not None and event.at_ms < ask.due_ms:
            return (
                "P1",
                f"what is asked of `{event.step}` has expired {ask.due_ms - event.at_ms} ms too early",
            )
        if ask is not None or not isinstance(seconds, int | float):
            return None
        early_ms = self._since[place] + int(seconds * 1_000) - event.at_ms
        return ("P1", f"`{event.step}` has waited {early_ms} ms too short") if early_ms > 0 else None

    def _came(
        self, event: ev.EventReceived, gone: Sequence[Place], settled: Mapping[str, Settled]
    ) -> Wrong | None:
        if not gone:
            # One of several who have to approve, or an event that is kept.
            places = [place for place in self._asked if place in self._since and self._is_meant(place, event)]
            return self._approves(places[0], event, ended=False) if len(places) == 1 else None
        # A run that ends gives up what else waits.
        taking = [place for place in gone if len(gone) == 1 or place[0] in settled]
        if len(taking) != 1:
            return None
        place = taking[0]
        step = self._steps.get(place[0], {})
        if not self._is_meant(place, event):
            return "P1", f"an event ended `{place[0]}` that was meant for another step"
        if place in self._asked:
            return self._approves(place, event, ended=True)
        if step.get("type") == "wait" and "seconds" in step:
            return "P1", f"an event ended `{place[0]}`, which waits for a time"
        if "approvers" in step and not _holds(event, step["approvers"]):
            return "P9", f"`{place[0]}` was approved by nobody who may"
        if not _takes(step, event):
            return "P1", f"`{place[0]}` has taken an event that it does not accept"
        if event.name is not UNSET:
            others = [one for one in self._since if self._is_meant(one, event) and one not in self._asked]
            steps = {one: self._steps.get(one[0], {}) for one in others}
            known = all("accept" not in step or _ACCEPT.fullmatch(step["accept"]) for step in steps.values())
            first = next((one for one in others if known and _takes(steps[one], event)), place)
            if first != place:
                return "P1", f"an event ended `{place[0]}`, and `{first[0]}` has waited for it longer"
        one = settled.get(place[0])
        if one is not None and one.status is StepStatus.SUCCESS and "approvers" not in step:
            payload = None if event.payload is UNSET else event.payload
            if one.output != payload:
                return "P1", f"`{place[0]}` yields something else than the event that ended it"
        return None

    def _is_meant(self, place: Place, event: ev.EventReceived) -> bool:
        step = self._steps.get(place[0], {})
        if event.step is not UNSET and event.step != place[0]:
            return False
        if event.item is not UNSET and event.item != place[2]:
            return False
        name = step["event"] if "event" in step else place[0]
        return event.name is UNSET or event.name == name

    def _approves(self, place: Place, event: ev.EventReceived, *, ended: bool) -> Wrong | None:
        """Somebody has said something to an action that has to be approved."""
        ask, data = self._asked[place], event.payload if type(event.payload) is dict else {}
        who = event.principal if event.principal is not UNSET else {}
        if not all(_holds(event, roles) for roles in ask.roles):
            return "P9", f"`{place[0]}` was approved by nobody who may"
        if (data.get("action"), data.get("nonce")) != (ask.action, ask.nonce):
            return "P9", f"what was approved at `{place[0]}` is another action"
        if event.at_ms >= ask.due_ms:
            return "P9", f"`{place[0]}` was approved after the time for it"
        if ask.four_eyes is True and who.get("id") == self._starter:
            return "P9", f"who has started the run has approved `{place[0]}`"
        if data.get("approved") is not True:
            return None
        if who.get("id") in self._said[place]:
            return "P9", f"somebody has approved `{place[0]}` twice"
        self._said[place].append(str(who.get("id")))
        count = 1 if ask.count is UNSET else ask.count
        if ended is not (len(self._said[place]) >= count):
            return "P9", f"{len(self._said[place])} of {count} have approved `{place[0]}`"
        return None


def _place_of(event: Any) -> Place:
    return event.step, event.occurrence, -1 if event.item is UNSET else event.item


def _is_waiting(program: CompiledProgram, state: State, place: Place) -> bool:
    return any(
        activity.phase is Phase.WAITING
        and activity.step >= 0
        and (program.steps[activity.step].id, activity.occurrence, activity.item) == place
        for activity in state.active.values()
    )


def _holds(event: ev.EventReceived, roles: Sequence[str]) -> bool:
    held = event.principal.get("roles", ()) if event.principal is not UNSET else ()
    return any(role in held for role in roles)


def _takes(step: Mapping[str, Any], event: ev.EventReceived) -> bool:
    found = _ACCEPT.fullmatch(step.get("accept", ""))
    if found is None:
        return True
    data = event.payload if type(event.payload) is dict else {}
    value = data.get(found[1])
    return type(value) is int and _OPERATORS[found[2]](value, int(found[3]))


__all__ = ["Waits"]
