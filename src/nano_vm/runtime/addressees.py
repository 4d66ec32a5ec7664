"""Whom a letter to a run is meant for: the run, or one of those below it that wait for something.

A run that calls others is told what they wait for through it, so a letter finds its way down - unless several of them
may be meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm.kernel.decide import all_waits, child_of, child_run_id
from nano_vm.kernel.state import Phase
from nano_vm.program.compiled import CallAction
from nano_vm.runtime.letters import kinds_for
from nano_vm.runtime.ways import inward

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run
    from nano_vm.runtime.engine import Engine


class Addressee(NamedTuple):
    """Who waits for a letter: a run that is being driven here, and the id of its child when that one is parked; the
    letter as it is to be passed on; the kind of the wait."""

    run: Run
    child: str | None
    letter: dict[str, Any]
    kind: str


def addressees(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> list[Addressee]:
    """All that the letter may be meant for. Of its own waits a run chooses itself."""
    with run.hold:
        return _addressees_of(engine, run, kind, letter)


def _addressees_of(engine: Engine, run: Run, kind: str, letter: dict[str, Any]) -> list[Addressee]:
    found: list[Addressee] = []
    for wait in all_waits(run.program, run.state):
        fits = _fits(kind, letter, wait.to_dict())
        if fits is None:
            continue
        if wait.kind != "child":
            if all(other.child is not None for other in found):
                found.append(Addressee(run, None, letter, fits))
            continue
        item = -1 if wait.item is None else wait.item
        child = child_run_id(run.state.run, wait.step, wait.occurrence, item, wait.attempt)
        inner = inward(letter, wait.step, wait.item)
        assert inner is not None
        found.append(Addressee(run, child, inner, fits))
    for activity in run.state.active.values():
        if activity.phase is not Phase.STARTED or activity.step < 0:
            continue
        step = run.program.steps[activity.step]
        if type(step.action) is CallAction:
            child = child_of(run.state, step, activity)
            live = engine.live_here(child)
            inner = inward(letter, step.id, None if activity.item < 0 else activity.item)
            if live is not None and inner is not None:
                found += addressees(engine, live, kind, inner)
    return found


def stirring(run: Run, kind: str, letter: dict[str, Any]) -> list[Addressee]:
    """Children that are about to be taken up for a letter, and may take this one too: they still wait, although the run
    says so no longer."""
    found = []
    with run.hold:
        for activity in run.state.active.values():
            if activity.phase is Phase.STARTED and activity.step >= 0 and run.letters:
                step, item = run.program.steps[activity.step], activity.item
                child = child_of(run.state, step, activity)
                inner = inward(letter, step.id, None if item < 0 else item)
                if child in run.letters and inner is not None:
                    found.append(Addressee(run, child, inner, kind))
    return found


def takes_any(kind: str, letter: dict[str, Any], found: list[Addressee]) -> bool:
    """An event meant for a kind of event goes to the wait that began first; an approval, an answer or a resolution is
    meant for one thing only."""
    named = kind == "event" and (letter["name"] is not None or letter["step"] is not None)
    return named and all(one.kind == "event" for one in found)


def _fits(kind: str, letter: dict[str, Any], wait: dict[str, Any]) -> str | None:
    """The kind of wait that the letter may be meant for, here or below; None when it is not meant for this one."""
    if wait["kind"] == "child":
        inner = inward(letter, wait["step"], wait.get("item"))
        found = () if inner is None else (_fits(kind, inner, one) for one in wait.get("waits", ()))
        return next((one for one in found if one is not None), None)
    if wait["kind"] not in kinds_for(kind, letter):
        return None
    if letter["step"] is not None and wait["step"] != letter["step"]:
        return None
    if letter.get("item") is not None and wait.get("item") != letter["item"]:
        return None
    fits = kind == "resolve" or letter["name"] is None or wait.get("event") == letter["name"]
    return str(wait["kind"]) if fits else None
