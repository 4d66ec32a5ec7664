"""What an attack came to: plain data, for the command line, the studio and tests."""

from __future__ import annotations

from typing import Any

import msgspec

NAIVE, GOVERNED = "naive", "governed"


class Injector(msgspec.Struct, frozen=True):
    """An attack: its name is the word after `--inject`."""

    name: str
    title: str
    attack: str
    promise: str


class Attempt(msgspec.Struct, frozen=True):
    """One try: what was done, whether it came to what the attacker wanted, and what the answer was."""

    what: str
    through: bool
    answer: str


class Effect(msgspec.Struct, frozen=True):
    """A line of the bank's ledger."""

    what: str
    detail: str


class StepLine(msgspec.Struct, frozen=True):
    """Where a step stands: SUCCESS, FAILED, SKIPPED, UNKNOWN, RUNNING or PENDING."""

    step: str
    status: str
    text: str


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two reviews after the attack. `held`: nothing got through."""

    name: str
    held: bool
    verdict: str
    status: str
    attempts: tuple[Attempt, ...]
    steps: tuple[StepLine, ...] = ()
    effects: tuple[Effect, ...] = ()
    evidence: tuple[str, ...] = ()
    store: str | None = None
    trace_id: str | None = None


class LabResult(msgspec.Struct, frozen=True):
    """One attack, on both."""

    injector: Injector
    naive: Side
    governed: Side


def to_dict(result: LabResult) -> dict[str, Any]:
    """The result as JSON has it."""
    data: dict[str, Any] = msgspec.to_builtins(result)
    return data
