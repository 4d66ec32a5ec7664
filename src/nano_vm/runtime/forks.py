"""Forks: time travel without repeating effects. A fork is a new run whose journal begins with a copy of another's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm import canonical
from nano_vm.errors import InputError, NotFoundError
from nano_vm.journal.entry import Entry, is_closed, open_event, open_events, read_facts
from nano_vm.journal.fold import fold
from nano_vm.journal.port import RunRecord, qualified
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.decide import child_run_id
from nano_vm.kernel.state import Phase, State
from nano_vm.program.compiled import FIRST_FREE_SLOT, CompiledProgram
from nano_vm.runtime.driver import Run
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

    A step is entered by the entry before it: everything up to that entry is shared. When `at_step` is a condition, it
    was evaluated by that entry; then the changes come before it, so that they bear on the verdict.
    """
    from nano_vm.runtime.rights import principal_of
    from nano_vm.runtime.starting import check_names

    engine.refuse_closed()
    source = engine.store.record(trace_id)
    check_names(new_trace_id, None, source.tenant)
    program = engine.load_program(source.program_hash)
    engine.refuse_paused(program, source.tenant)
    index = program.step_index.get(at_step)
    if index is None or program.steps[index].parent >= 0:
        raise NotFoundError("UNKNOWN_STEP", f"the program `{program.name}` has no top-level step `{at_step}`")
    entries = engine.read(trace_id)
    if any(is_closed(entry, read_facts(entry)) for entry in entries if not entry.salt):
        raise InputError(
            "ERASED",
            f"values of run {trace_id} cannot be read any more, and a fork would go on with them",
            help="start a new run",
            facts={"run_id": trace_id},
        )
    cut, decides = _cut(program, trace_id, entries, index, at_step, occurrence)
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
    early = shared[:-1] if decides and changed and len(shared) > 1 else shared
    start = shared[0].event
    assert type(start) is ev.RunStarted
    start.forked = {"run": trace_id, "seq": len(early), "head": entries[cut - 1].digest}
    start.key = _UNSET
    start.parent = _UNSET
    start.principal = _UNSET if who is None else who
    # What the other run was pinned to stays in force; one that was pinned to nothing is pinned now.
    pinned = engine.policy if start.policy is _UNSET else engine.load_policy(start.policy)
    start.policy = _UNSET if pinned is None else pinned.hash
    await engine.govern(run, pinned)
    for part in early:
        _copy(run, part)
    if changed:
        run.record_event(
            ev.ValuesChanged(
                at_ms=now,
                names=sorted(changed),
                payload=changed,
                principal=_UNSET if who is None else who,
            ),
            payload,
        )
        for part in shared[len(early) :]:
            _copy(run, _with_changes(program, part, changed))
    _begin_anew(run, now)
    await run.create()
    if run.state.status.is_terminal:
        await run.flush(run.update(release=True))
    else:
        await engine.drive(run)
    return engine.trace_of(run)


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
    event = part.event
    if hasattr(event, "verdicts"):
        event.verdicts = _UNSET  # they are taken anew, from the values of the fork
    if hasattr(event, "label"):
        event.label = _UNSET
    if not part.rides or run.record_intent(event) is not None:
        run.record_event(event, part.payload)


def _with_changes(program: CompiledProgram, part: _Part, changed: Mapping[str, Any]) -> _Part:
    """The shared event just before a condition, its own result replaced when the changes name it."""
    event = part.event
    if type(event) not in (ev.StepSucceeded, ev.EventReceived, ev.OutcomeResolved):
        return part
    index = program.step_index.get(event.step) if event.step is not _UNSET else None
    if index is None:
        return part
    step = program.steps[index]
    for slot in (step.output_slot, step.key_slot):
        if slot >= 0 and program.slots[slot] in changed:
            event.payload, encoded = canonical.normalize(changed[program.slots[slot]])
            if type(event) is not ev.EventReceived:
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
) -> tuple[int, bool]:
    """How many entries come before the step is at work, and whether the last of them decided it (a condition)."""
    reached: list[tuple[int, bool]] = []
    seen = 0

    def look(entry: Entry, event: ev.Event, state: State) -> None:
        nonlocal seen
        settled = any(result.step == index for result in state.settled)
        if state.occurrences[index] > seen:
            seen = state.occurrences[index]
            if occurrence is None or seen == occurrence:
                reached.append((entry.seq + 1, settled and bool(state.verdicts)))

    fold(program, trace_id, entries, verify=True, on_transition=look)
    if not reached:
        raise NotFoundError("UNKNOWN_STEP", f"run {trace_id} has not come to step `{step_id}`")
    return reached[-1]
