"""Forks: time travel without repeating effects. A fork is a new run whose journal begins with a copy of another's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError, NotFoundError, RejectedError
from nano_vm.journal.entry import Entry, is_closed, open_event, open_events, read_facts
from nano_vm.journal.fold import fold
from nano_vm.journal.port import RunRecord, qualified
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.decide import child_run_id
from nano_vm.kernel.state import Phase, Rejection, Stage, State, restore, snapshot
from nano_vm.kernel.transition import apply
from nano_vm.program.compiled import FIRST_FREE_SLOT, CompiledProgram
from nano_vm.runtime.driver import Run
from nano_vm.runtime.journaled import defect
from nano_vm.runtime.recovery import lose_calls
from nano_vm.runtime.sealing import key_named_in

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

_UNSET = ev.UNSET
# Entries that say who owned the source run or what it refused mean nothing in a fork.
_NOT_COPIED = (ev.RunAdopted, ev.EventRefused, ev.RunFinished, ev.RunCancelled)


async def fork(
    engine: Engine,
    trace_id: str,
    at_step: str,
    changes: Mapping[str, Any] | None,
    occurrence: int | None,
    principal: str | Mapping[str, Any] | None,
    new_trace_id: str | None,
) -> Trace:
    """See `Engine.fork`.

    A step is entered by the entry before it: everything up to that entry is shared. What settles as it is entered - a
    condition, a map over nothing, a step whose arguments cannot be made - was decided by that entry; then the changes
    come before it, so that they bear on it. Where it is the start of the run, its inputs are the changed ones.
    """
    from nano_vm.runtime.rights import principal_of
    from nano_vm.runtime.starting import check_names

    engine.refuse_closed()
    source = engine.store.record(trace_id)
    check_names(new_trace_id, None, source.tenant)
    program = engine.load_program(source.program_hash)
    engine.refuse_paused(program, source.tenant)
    index = _top_level(program, at_step)
    entries = engine.read(trace_id)
    _require_readable(trace_id, entries)
    cut, decided_by = _cut(program, trace_id, entries, index, at_step, occurrence)
    changed, payload = _take_changes(engine, program, changes)
    who = principal_of(principal, source.tenant)
    now = engine.clock.now_ms()
    record = RunRecord(
        run_id=qualified(new_trace_id or engine.new_run_id(now), source.tenant),
        tenant=source.tenant,
        program_hash=source.program_hash,
        program_name=source.program_name,
        created_at_ms=now,
        updated_at_ms=now,
        owner=engine.store.owner,
        fence=1,
    )
    run = engine.new_run(record, program, who)
    if program.subject is not None:
        # The other run's: what is erased from now on is not sealed again, under a key that its subject gets afterwards.
        run.key_id = key_named_in(entries)
    shared = _shared(entries[:cut])
    _adopt_children(record.run_id, shared)
    early = _before_changes(program, shared, decided_by, changed)
    start = shared[0].event
    assert type(start) is ev.RunStarted
    _make_own(start, {"run": trace_id, "seq": len(early), "head": entries[cut - 1].digest}, who)
    # What the other run was pinned to stays in force; one that was pinned to nothing is pinned now.
    pinned = engine.policy if start.policy is _UNSET else engine.load_policy(start.policy)
    start.policy = _UNSET if pinned is None else pinned.hash
    await engine.govern(run, pinned)
    for part in early:
        _copy(run, part)
    if changed and run.state.stage is not Stage.GOING:
        raise RejectedError(
            "TERMINAL",
            f"run {trace_id} ended as it came to `{at_step}`: no value changes that",
            help="fork it at a step before, or start a new run",
            facts={"run_id": trace_id},
        )
    change = ev.ValuesChanged(
        at_ms=now, names=sorted(changed), payload=changed, principal=_UNSET if who is None else who
    )
    _leave(run, change, payload, shared[len(early) :])
    _begin_anew(run, now)
    await run.create()
    if run.state.status.is_terminal:
        await run.flush(run.update(release=True))
    else:
        await engine.drive(run)
    return engine.trace_of(run)


def _top_level(program: CompiledProgram, step_id: str) -> int:
    """The index of a step that stands in no other. Raises NotFoundError UNKNOWN_STEP."""
    index = program.step_index.get(step_id)
    if index is None or program.steps[index].parent >= 0:
        raise NotFoundError(
            "UNKNOWN_STEP",
            f"the program `{program.name}` has no top-level step `{step_id}`",
            help=f"steps: {', '.join(step.id for step in program.steps if step.parent < 0)}",
        )
    return index


def _require_readable(run_id: str, entries: Sequence[Entry]) -> None:
    """Raises InputError ERASED."""
    if any(is_closed(entry, read_facts(entry)) for entry in entries if not entry.salt):
        raise InputError(
            "ERASED",
            f"values of run {run_id} cannot be read any more, and a fork would go on with them",
            help="start a new run",
            facts={"run_id": run_id},
        )


def _before_changes(
    program: CompiledProgram, shared: list[_Part], decided_by: Sequence[int], changed: Mapping[str, Any]
) -> list[_Part]:
    """What of the shared prefix comes before the changes: all of it, unless its last event decided the step.

    Raises:
        InputError: as `_require_own_result`.
    """
    if not decided_by or not changed:
        return shared
    if len(shared) == 1:
        return [_with_inputs(program, shared[0], changed)]
    _require_own_result(program, shared[-1].event, decided_by, changed)
    return shared[:-1]


def _make_own(start: ev.RunStarted, forked: dict[str, Any], who: dict[str, Any] | None) -> None:
    """The other run's beginning as the fork's: who started that one, for whom and under which key is not copied."""
    start.forked = {**forked, **_before(start)}
    start.key = _UNSET
    start.parent = _UNSET
    start.principal = _UNSET if who is None else who


def _leave(run: Run, change: ev.ValuesChanged, payload: bytes, decided: Sequence[_Part]) -> None:
    """Leave the other run: with other values, which come before the event that `decided` the step, if one did.

    Raises:
        RejectedError: as `_still_comes`.
    """
    changed = change.payload
    # Time between the two is nobody's, as it is when values are changed: it does not count as duration.
    if not changed and not (run.state.duration_ms_max and run.state.stage is Stage.GOING):
        return
    later = [_with_changes(run.program, part, changed) for part in decided]
    later = [part for part in later if _still_comes(run, change, part)]
    change.early = True if later else _UNSET
    run.record_event(change, payload)
    for part in later:
        _copy(run, part)


def _take_changes(
    engine: Engine, program: CompiledProgram, changes: Mapping[str, Any] | None
) -> tuple[dict[str, Any], bytes]:
    """The changes under the names that the kernel has for values: an output key is another name for a step's output."""
    known = {name for name in program.slots[FIRST_FREE_SLOT:] if name}
    document = canonical.decode(engine.store.program(program.hash))["program"]
    keys = {key: f"{step['id']}.output" for step in _steps_of(document) if (key := step.get("output_key"))}
    changed = {}
    for name, value in (changes or {}).items():
        slot = name if name in known else keys.get(name, f"{name}.output")
        if slot not in known:
            raise InputError(
                "UNKNOWN_VALUE",
                f"the program has no value `{name}` to change",
                help=f"values: {', '.join(sorted(known | set(keys)))}",
            )
        changed[slot] = value
    return canonical.normalize(changed)


def _steps_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for step in document["steps"]:
        yield step
        yield from step.get("parallel_steps", ())


class _Part(NamedTuple):
    """One event of the shared prefix. One that `rides` stands in the entry of the event before it."""

    event: Any
    payload: bytes | None
    rides: bool


def _shared(entries: Sequence[Entry]) -> list[_Part]:
    """The events of the prefix. What rides with the last of them belongs to the step that is taken anew."""
    parts = []
    for entry in entries:
        events = open_events(entry) if entry is not entries[-1] else [open_event(entry)]
        for place, event in enumerate(events):
            if type(event) not in _NOT_COPIED:
                parts.append(_Part(event, entry.payload if place == 0 else None, place > 0))
    return parts


def _adopt_children(run_id: str, shared: Sequence[_Part]) -> None:
    """The children that had begun and not ended are the other run's. The fork has its own in their place: they begin
    anew, under its name."""
    at_work: dict[tuple[str, int, Any], ev.ChildStarted] = {}
    for event, _, _ in shared:
        if type(event) is ev.ChildStarted:
            at_work[event.step, event.occurrence, event.item] = event
        elif type(event) is ev.ChildFinished:
            del at_work[event.step, event.occurrence, event.item]
    for event in at_work.values():
        item = -1 if event.item is _UNSET else event.item
        event.child = child_run_id(run_id, event.step, event.occurrence, item, event.attempt)


def _begin_anew(run: Run, now_ms: int) -> None:
    """What the other run had under way when the fork left it: it is told what comes of its calls, and its children stay
    its own."""
    lose_calls(run, now_ms)
    for activity in list(run.state.active.values()):
        if activity.phase is Phase.CHILD_WAITING:
            run.record_event(
                ev.ChildResumed(
                    at_ms=now_ms,
                    attempt=activity.attempt,
                    item=activity.item if activity.item >= 0 else _UNSET,
                    occurrence=activity.occurrence,
                    step=run.program.steps[activity.step].id,
                )
            )


def _copy(run: Run, part: _Part) -> None:
    event = _unjudged(part.event)
    if not part.rides or run.record_intent(event) is not None:
        run.record_event(event, part.payload)


def _unjudged(event: Any) -> Any:
    """Verdicts and labels are taken anew, from the values of the fork."""
    if hasattr(event, "verdicts"):
        event.verdicts = _UNSET
    if hasattr(event, "label"):
        event.label = _UNSET
    return event


def _still_comes(run: Run, change: ev.ValuesChanged, part: _Part) -> bool:
    """Whether the event that decided the step comes after the changes as well. A wait may have another time then, or
    accept other events: the fork waits once more.

    Raises:
        RejectedError: GATE: the step may not have the result that the changes give it.
    """
    trial = restore(snapshot(run.state))
    event = _unjudged(part.event)
    for each in (msgspec.structs.replace(change, early=True), event):
        rejection = apply(run.program, trial, each)
    if type(rejection) is not Rejection:
        return True
    if type(event) is ev.TimerFired or type(event) is ev.EventReceived:
        return False
    if rejection.code == "GATE":
        raise RejectedError(
            "GATE",
            f"the change is none: {rejection.message}",
            help="give the step a result that its program admits",
            facts={"step": event.step},
        )
    defect(run.record.run_id, event, rejection)


def _before(start: ev.RunStarted) -> dict[str, Any]:
    """The runs that the other one had been forked from, the last one first: children that began there are theirs."""
    if start.forked is _UNSET:
        return {}
    return {"before": [start.forked["run"], *start.forked.get("before", ())]}


def _with_inputs(program: CompiledProgram, part: _Part, changed: Mapping[str, Any]) -> _Part:
    """The beginning of a run whose first step was decided as it was entered: its inputs are changed before that."""
    inputs = {name: value for name, value in changed.items() if name in program.input_slots}
    event = part.event
    event.payload, encoded = canonical.normalize({**event.payload, **inputs})
    return part._replace(payload=encoded)


def _require_own_result(
    program: CompiledProgram, event: ev.Event, decided_by: Sequence[int], changed: Mapping[str, Any]
) -> None:
    """The event that decided the step can bring another result where it brings one of its own. Nobody's answer is
    changed: it would stand in the journal as what they said.

    Raises:
        InputError: VALUE_ANSWERED.
    """
    own = event.step if type(event) is ev.StepSucceeded or type(event) is ev.OutcomeResolved else None
    for index in decided_by:
        step = program.steps[index]
        slots = (step.output_slot, step.key_slot, step.error_slot)
        if step.id != own and any(slot >= 0 and program.slots[slot] in changed for slot in slots):
            raise InputError(
                "VALUE_ANSWERED",
                f"what `{step.id}` came to had decided the step as it was entered",
                help=f"fork at `{step.id}`, and give it another answer there",
                facts={"step": step.id},
            )


def _with_changes(program: CompiledProgram, part: _Part, changed: Mapping[str, Any]) -> _Part:
    """The shared event that decided the step, its own result replaced when the changes name it."""
    event = part.event
    if type(event) is not ev.StepSucceeded and type(event) is not ev.OutcomeResolved:
        return part
    step = program.steps[program.step_index[event.step]]
    for slot in (step.output_slot, step.key_slot):
        if slot >= 0 and program.slots[slot] in changed:
            event.payload, encoded = canonical.normalize(changed[program.slots[slot]])
            event.declared = "untrusted"  # nothing vouches for what somebody has changed
            return part._replace(payload=encoded)
    return part


def _cut(
    program: CompiledProgram,
    trace_id: str,
    entries: Sequence[Entry],
    index: int,
    step_id: str,
    occurrence: int | None,
) -> tuple[int, list[int]]:
    """How many entries come before the step is at work, and what the last of them settled if it decided what came of
    the step: a condition, a map over nothing, a call whose arguments cannot be made."""
    reached: list[tuple[int, list[int]]] = []
    seen = 0

    def look(entry: Entry, event: ev.Event, state: State) -> None:
        nonlocal seen
        if type(event) is ev.ValuesChanged and event.early is _UNSET and reached[-1:] == [(entry.seq, [])]:
            # Where this run left another one with values of its own, it came to the step with those.
            reached[-1] = entry.seq + 1, []
        if state.occurrences[index] > seen:
            seen = state.occurrences[index]
            if occurrence is None or seen == occurrence:
                # (That of a lane settles with its group.)
                decides = state.stage is not Stage.GOING or any(
                    result.step == index and result.occurrence == seen for result in state.settled
                )
                settled = [result.step for result in state.settled]
                reached.append((entry.seq + 1, settled if decides else []))

    fold(program, trace_id, entries, verify=True, on_transition=look)
    if not reached:
        raise NotFoundError("UNKNOWN_STEP", f"run {trace_id} has not come to step `{step_id}`")
    return reached[-1]
