"""Figures over all journals: tokens and cost, decisions, policies. Read once, in the order of commits, then only what
is new; and a slice at a time, so that no page waits for a large store.

Counted are model calls that have settled, in the run that made them: a child's are the child's, and what a fork shares
with another run is that run's. Nothing counts twice.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import NamedTuple

import msgspec

from nano_vm.journal.entry import Entry, open_events
from nano_vm.kernel import events as ev
from nano_vm.studio.library import Library

SLICE_SECONDS = 0.4
BATCH = 2_000
DAY_MS = 86_400_000
_MARKS = (b'"tokens_', b'"cost_nanousd"', b'"PolicyDecided"', b'"RunStarted"', b'"EventRefused"', b'"Erased"')


class Cell(NamedTuple):
    """Where spending belongs: program (its hash), model, and day (days since the epoch, UTC)."""

    program: str
    model: str
    day: int


class Spent(msgspec.Struct):
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_nanousd: int = 0

    def add(self, other: Spent) -> None:
        self.calls += other.calls
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.cost_nanousd += other.cost_nanousd


class Meter:
    """Follows one store. Safe to call from any thread."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.cells: dict[Cell, Spent] = defaultdict(Spent)
        self.runs: dict[str, Spent] = defaultdict(Spent)
        self.policies: dict[str, int] = defaultdict(int)  # hash -> runs pinned to it
        self.decisions: dict[tuple[str, str], int] = defaultdict(int)  # (decision, rule) -> how often
        self.refusals: dict[str, int] = defaultdict(int)
        self.erased: list[tuple[str, str, int]] = []  # (run, reason, when)
        self.entries = 0
        self.complete = False
        self._programs: dict[str, str] = {}  # run -> hash of its program
        self._forked: dict[str, int] = {}  # run -> when it was forked; what is older was copied
        self._cursor = 0
        self._lock = threading.Lock()

    def advance(self, seconds: float = SLICE_SECONDS) -> bool:
        """Read on for about so long. Returns whether everything has been read."""
        until = time.monotonic() + seconds
        with self._lock:
            while True:
                cursor, found = self.library.store.tail(self._cursor, BATCH, self.library.settings.tenant)
                for run_id, entry in found:
                    self._take(run_id, entry)
                self._cursor = cursor
                self.entries += len(found)
                self.complete = len(found) < BATCH
                if self.complete or time.monotonic() >= until:
                    return self.complete

    def _take(self, run_id: str, entry: Entry) -> None:
        if not any(mark in entry.facts for mark in _MARKS):
            return
        for event in open_events(entry):
            match event:
                case ev.RunStarted():
                    self._programs[run_id] = event.program
                    if event.forked is not ev.UNSET:
                        self._forked[run_id] = self.library.record(run_id).created_at_ms
                    if event.policy is not ev.UNSET:
                        self.policies[event.policy] += 1
                case ev.StepSucceeded() | ev.StepFailed() | ev.ModelTurned():
                    self._spend(run_id, event)
                case ev.PolicyDecided():
                    self.decisions[event.decision, event.rule] += 1
                case ev.EventRefused():
                    self.refusals[event.code] += 1
                case ev.Erased():
                    self.erased.append((run_id, event.reason, event.at_ms))
                case _:
                    pass

    def _spend(self, run_id: str, event: ev.StepSucceeded | ev.StepFailed | ev.ModelTurned) -> None:
        spent = Spent(1, event.tokens_in or 0, event.tokens_out or 0, event.cost_nanousd or 0)
        if event.at_ms < self._forked.get(run_id, 0):
            return
        if not (spent.tokens_in or spent.tokens_out or spent.cost_nanousd):
            return
        cell = Cell(self._programs.get(run_id, ""), event.model or "-", event.at_ms // DAY_MS)
        self.cells[cell].add(spent)
        self.runs[run_id].add(spent)

    def by(self, name: str) -> dict[str | int, Spent]:
        """Spending by "program", "model" or "day"."""
        found: dict[str | int, Spent] = defaultdict(Spent)
        with self._lock:
            for cell, spent in self.cells.items():
                belongs = getattr(cell, name)
                found[self.library.program_name(belongs) if name == "program" else belongs].add(spent)
        return dict(found)

    def total(self) -> Spent:
        total = Spent()
        for spent in self.by("program").values():
            total.add(spent)
        return total
