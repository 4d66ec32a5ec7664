"""Comparing two runs: where their traces part, and whether they came to the same."""

from __future__ import annotations

from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.journal.ledger import TraceStep
from nano_vm.journal.trace import Trace


class StepDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One occurrence of a step that is not the same in both traces.

    `fields` names what differs: status, output, verdict, error - or `presence`, when only one trace has it
    (then the other side is None).
    """

    step: str
    occurrence: int
    item: int | None
    fields: tuple[str, ...]
    a: TraceStep | None
    b: TraceStep | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "occurrence": self.occurrence,
            "item": self.item,
            "fields": list(self.fields),
            "a": None if self.a is None else self.a.to_dict(),
            "b": None if self.b is None else self.b.to_dict(),
        }


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """Two traces compared. `parts_at` is where they part: the first difference in the order in which the
    steps settled; None when every step result is the same.

    `differences` begin with those of `a`'s steps, in the order they settled, then come the steps that only
    `b` has. `execution_equivalent` - another path perhaps, but the same business outcome - is equality of
    `outcome_hash`.
    """

    a: str
    b: str
    same_program: bool
    same_status: bool
    same_trace_hash: bool
    execution_equivalent: bool
    parts_at: StepDifference | None
    differences: tuple[StepDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object with all of it."""
        return {
            "a": self.a,
            "b": self.b,
            "same_program": self.same_program,
            "same_status": self.same_status,
            "same_trace_hash": self.same_trace_hash,
            "execution_equivalent": self.execution_equivalent,
            "parts_at": None if self.parts_at is None else self.parts_at.to_dict(),
            "differences": [difference.to_dict() for difference in self.differences],
        }


def diff(a: Trace, b: Trace) -> Diff:
    """Compare the step results of two runs, of the same program or not.

    Raises:
        InputError: USAGE for what is no trace.
    """
    for given in (a, b):
        if not isinstance(given, Trace):
            raise InputError(
                "USAGE",
                f"a {type(given).__name__} is no trace",
                help="diff(vm.trace(first), vm.trace(second))",
            )
    others = {_place(step): step for step in b.steps}
    differences: list[StepDifference] = []
    orders: list[int] = []
    places = set()
    for order, step in enumerate(a.steps):
        place = _place(step)
        places.add(place)
        found = _compare(step, others.get(place))
        if found is not None:
            differences.append(found)
            orders.append(order)
    for order, step in enumerate(b.steps):
        if _place(step) not in places:
            differences.append(_difference(step, ("presence",), None, step))
            orders.append(order)
    # A tie goes to the first: what both traces have comes before what only `b` has.
    parts_at = differences[orders.index(min(orders))] if orders else None
    return Diff(
        a=a.trace_id,
        b=b.trace_id,
        same_program=a.program_hash == b.program_hash,
        same_status=a.status == b.status,
        same_trace_hash=a.trace_hash == b.trace_hash,
        execution_equivalent=a.outcome_hash == b.outcome_hash,
        parts_at=parts_at,
        differences=tuple(differences),
    )


def _place(step: TraceStep) -> tuple[str, int, int | None]:
    return step.id, step.occurrence, step.item


def _compare(a: TraceStep, b: TraceStep | None) -> StepDifference | None:
    if b is None:
        return _difference(a, ("presence",), a, None)
    fields = [
        name
        for name, same in (
            ("status", a.status == b.status),
            ("output", _equal(a.output, b.output)),
            ("verdict", a.verdict is b.verdict),
            ("error", _error_type(a) == _error_type(b)),
        )
        if not same
    ]
    return _difference(a, tuple(fields), a, b) if fields else None


def _equal(a: Any, b: Any) -> bool:
    # Canonical bytes, because Python takes True for 1.
    return canonical.encode(a) == canonical.encode(b)


def _error_type(step: TraceStep) -> str | None:
    return None if step.error is None else step.error["type"]


def _difference(
    step: TraceStep, fields: tuple[str, ...], a: TraceStep | None, b: TraceStep | None
) -> StepDifference:
    return StepDifference(step=step.id, occurrence=step.occurrence, item=step.item, fields=fields, a=a, b=b)
