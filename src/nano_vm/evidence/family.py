"""The runs of a bundle as a family: each child is the run that its parent started, and ended as its parent was told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nano_vm import canonical
from nano_vm.errors import InputError, VerificationError
from nano_vm.evidence.bundle import children_of, program_of, told_of_children
from nano_vm.journal.entry import Entry, open_events
from nano_vm.kernel import events as ev
from nano_vm.kernel.ending import remaining_budgets
from nano_vm.kernel.labels import FEATURE
from nano_vm.kernel.reports import report_of
from nano_vm.kernel.state import RunStatus, Settled, State, activity_key
from nano_vm.program.compiled import SLOT_PRINCIPAL, CompiledProgram, CompiledStep

_UNSET = ev.UNSET
_DURATION = "duration_ms"


class _Given(NamedTuple):
    """What a child is started with: facts of its first entry, its inputs (None when they cannot be read any more), and
    how long it may take."""

    facts: dict[str, Any]
    inputs: bytes | None
    duration_ms: int | None


class Calls:
    """Watches a fold, as `Watcher` says, and notes what children are started with."""

    def __init__(self, program: CompiledProgram) -> None:
        self.program = program
        self.given: dict[str, _Given] = {}

    def before(self, entry: Entry, event: ev.Event, state: State) -> None:
        """Nothing is held against it."""

    def after(self, entry: Entry, event: ev.Event, state: State) -> None:
        # (What is shared with the run that a fork has left was started by that one, for somebody else.)
        if type(event) is ev.ChildStarted and state.seq > state.fork_seq:
            self.given[event.child] = self._given(event, state)

    def allows(self, event: ev.PolicyDecided, step: CompiledStep, args: Any, state: State) -> bool:
        return True

    def passed(self, steps: Sequence[int], settled: Sequence[Settled]) -> None:
        """Nothing of it is a child."""

    def _given(self, event: ev.ChildStarted, state: State) -> _Given:
        item = -1 if event.item is _UNSET else event.item
        activity = state.active[activity_key(self.program.step_index[event.step], item)]
        left = remaining_budgets(state)
        reserved = {
            "steps": event.reserved_steps,
            "tokens": event.reserved_tokens,
            "cost_nanousd": event.reserved_cost_nanousd,
        }
        budgets = {name: value or 0 for name, value in reserved.items() if name in left or value}
        principal = state.slots[SLOT_PRINCIPAL]
        parent = {"run": state.run, "step": event.step, "occurrence": event.occurrence}
        facts = {
            "budgets": budgets,
            "depth": state.depth + 1,
            "features": None if state.labels is None else [FEATURE],
            "forked": None,
            "key": None,
            "labels": None if state.labels is None else activity.labels or {},
            "parent": parent if item < 0 else {**parent, "item": item},
            "policy": state.policy or None,
            "principal": principal if type(principal) is dict else None,
            "programs": state.programs or None,
            "replanned": None,
        }
        try:
            inputs = canonical.encode(activity.request)
        except InputError:
            inputs = None
        return _Given(facts, inputs, left.get(_DURATION))


class Member(NamedTuple):
    """A run of the family, folded: `closed` says that payloads of it cannot be read."""

    program: CompiledProgram
    entries: Sequence[Entry]
    state: State
    given: Mapping[str, _Given]
    closed: bool


def verify_family(first: str, members: Mapping[str, Member]) -> None:
    """The runs other than the first are the children that the journals name, in the order they are named.

    Raises:
        VerificationError: CHILD_MISMATCH.
    """
    expected: list[str] = []
    todo = [first]
    while todo:
        run = todo.pop()
        if run in members and run not in expected:
            expected.append(run)
            told = list(told_of_children(members[run].entries))
            pinned = children_of(told)
            _links(run, members, told, pinned)
            todo += reversed(pinned)
    if expected != list(members):
        raise child_mismatch(first, "a run is there that nothing leads to, or out of order")


def _links(
    run: str,
    members: Mapping[str, Member],
    told: Iterable[tuple[Entry, Any, str]],
    pinned: Mapping[str, str],
) -> None:
    for entry, event, child in told:
        if isinstance(event, ev.ChildStarted):
            continue
        if not event.head:  # it never began
            if event.status == RunStatus.SUCCESS:
                raise child_mismatch(child, "it never began, and yet was a success", entry.seq)
        elif child not in members:
            raise child_mismatch(child, "the run that its parent saw the end of is missing", entry.seq)
        else:
            _ends(child, members[child], entry, event)
    families = {run, *_forked_from(members[run].entries)}
    for child, program_hash in pinned.items():
        if child in members:
            start = open_events(members[child].entries[0])[0]
            parent = getattr(start, "parent", None)
            of = parent.get("run") if isinstance(parent, dict) else None
            of_parent = isinstance(of, str) and of in families
            if not of_parent or program_of(members[child].entries) != program_hash:
                raise child_mismatch(child, "it does not belong to the run that names it")
            given = members[run].given.get(child)
            if given is not None and of == run:
                _begins(child, members[child].entries[0], start, given)


def _begins(child: str, entry: Entry, start: Any, given: _Given) -> None:
    """The child's first entry has what its parent gave it."""
    found = {name: getattr(start, name) for name in given.facts}
    budgets = {} if start.budgets is _UNSET else dict(start.budgets)
    duration_ms = budgets.pop(_DURATION, None)
    found["budgets"] = budgets
    for name, value in given.facts.items():
        same = None if found[name] is _UNSET else found[name]
        if canonical.encode(same) != canonical.encode(value):
            raise child_mismatch(child, f"its `{name}` is not what it was started with", 0)
    least = given.duration_ms is None or (duration_ms is not None and 0 <= duration_ms <= given.duration_ms)
    if (duration_ms is None) is not (given.duration_ms is None) or not least:
        raise child_mismatch(child, "it has more time than was left", 0)
    if given.inputs is not None and entry.salt and entry.payload != given.inputs:
        raise child_mismatch(child, "its inputs are not those that it was started with", 0)


def _ends(child: str, member: Member, entry: Entry, event: ev.ChildFinished) -> None:
    """What the parent was told of the child's end is what it came to."""
    digests = [part.digest for part in member.entries]
    if event.head not in digests:
        raise child_mismatch(child, "it is not the run that its parent saw the end of", entry.seq)
    seen = member.entries[: digests.index(event.head) + 1]
    ended = any(
        type(one) is ev.RunFinished
        for part in seen
        if b'"RunFinished"' in part.facts
        for one in open_events(part)
    )
    if not ended:
        raise child_mismatch(child, "its parent saw an end that it had not come to", entry.seq)
    report = report_of(member.program, member.state)
    told = (event.status, event.steps, event.tokens, event.cost_nanousd, event.output_label, event.undo_label)
    found = (
        report.status,
        report.steps,
        report.tokens or _UNSET,
        report.cost_nanousd or _UNSET,
        _UNSET if report.output_label is None else report.output_label,
        report.undo_label or _UNSET,
    )
    same = told == found
    if same and entry.salt and not member.closed:
        same = _encoded(report.details) == entry.payload
    if not same:
        raise child_mismatch(child, "it did not end as its parent was told", entry.seq)


def _encoded(value: Any) -> bytes | None:
    try:
        return canonical.encode(value)
    except InputError:
        return None


def _forked_from(entries: Sequence[Entry]) -> list[str]:
    """The runs whose prefix this one shares, and with it the children that were started there."""
    forked = getattr(open_events(entries[0])[0], "forked", None)
    if not isinstance(forked, dict):
        return []
    before = forked.get("before")
    named = [forked.get("run"), *(before if isinstance(before, list) else ())]
    return [run for run in named if isinstance(run, str)]


def child_mismatch(run: str, what: str, seq: int | None = None) -> VerificationError:
    facts: dict[str, Any] = {"run": run}
    if seq is not None:
        facts["seq"] = seq
    return VerificationError("CHILD_MISMATCH", f"child run `{run}`: {what}", facts=facts)
