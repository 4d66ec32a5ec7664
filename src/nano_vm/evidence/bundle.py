"""Evidence bundles: a run with everything that is needed to check it, in one file, without the store it lived in."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from nano_vm import canonical
from nano_vm.compiler import compile_program
from nano_vm.errors import NotFoundError, RuntimeFault, VerificationError
from nano_vm.evidence import container
from nano_vm.evidence.container import Contents, LogLine, ShownLine, SignatureLine
from nano_vm.evidence.keys import SigningKey
from nano_vm.evidence.log import Log
from nano_vm.evidence.note import check_origin, sign_checkpoint
from nano_vm.evidence.receipt import receipt
from nano_vm.evidence.sign import DISCLOSURE_TYPE, sign, statement
from nano_vm.journal.disclosure import disclose
from nano_vm.journal.entry import Entry, erased_keys, open_events, read_facts
from nano_vm.journal.notes import record
from nano_vm.journal.port import DEFAULT_TENANT, TENANT_SEPARATOR, JournalStore
from nano_vm.journal.recall import Notes
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.model import Program

RUNS_MAX = 10_000
_OVER_VALUES = ("outcome_hash", "trace_hash")


Opened: TypeAlias = Callable[[str], list[Entry]]  # the entries of a run, as far as the caller has their keys


class Exported(NamedTuple):
    """A bundle and what went into it."""

    data: bytes
    runs: list[str]
    entries: int
    signed_by: str | None


def export(
    store: JournalStore,
    run_id: str,
    *,
    key: SigningKey | None = None,
    origin: str | None = None,
    opened: Opened | None = None,
) -> Exported:
    """The bundle of a run and of all runs that it called.

    Args:
        key: signs the receipt, and a checkpoint of the log that the bundle proves its runs to be in.
        origin: name of the log in the checkpoint; by default after its first leaf.
        opened: reads a run with its sealed values opened; then the bundle says what it needs to be checked without
            them. The values stay sealed in it.

    Raises:
        NotFoundError: RUN_NOT_FOUND. VerificationError: when a journal cannot be folded.
    """
    run_id = store.record(run_id).run_id  # a tenant may leave its own name out
    journals = list(_journals(store, run_id))
    programs = {program_of(entries): b"" for _, entries in journals}
    for program_hash in programs:
        programs[program_hash] = store.program(program_hash)
    recall = {run: _notes(programs, run, entries, opened) for run, entries in journals}
    made = receipt(_trace(programs, *journals[0], recall[run_id]))
    contents = Contents(
        kind=container.RUN,
        run=run_id,
        programs=[programs[program_hash] for program_hash in sorted(programs)],
        policies=[store.policy(policy_hash) for policy_hash in policies_of(journals)],
        journals=journals,
        recall=recall,
        receipt=canonical.encode(made),
    )
    if key is not None:
        heads = [(run, entries[-1].digest) for run, entries in journals]
        contents.logs = _log_lines(store, journals, key, origin)
        held, note = container.contents_digest(contents), contents.logs[0].checkpoint
        signed = sign(statement(made, heads, contents=held, checkpoint=note), key)
        contents.signature = SignatureLine(signed, key.public.text)
    count = sum(len(entries) for _, entries in journals)
    return Exported(
        container.write(contents), [run for run, _ in journals], count, None if key is None else key.name
    )


def export_steps(
    store: JournalStore,
    run_id: str,
    steps: Sequence[str],
    *,
    key: SigningKey | None = None,
    opened: Opened | None = None,
) -> Exported:
    """A bundle that shows the chosen steps of a run alone, each with a proof of its place.

    Of these steps it shows results and messages; of the entry that began the run, and of those that began the steps,
    facts only. It proves that they are part of a run with this receipt; that the receipt is right only its signature
    vouches for.

    Raises:
        NotFoundError: RUN_NOT_FOUND, UNKNOWN_STEP for a step that the run did not come to.
    """
    run_id = store.record(run_id).run_id  # a tenant may leave its own name out
    entries = _portable(store.read(run_id))
    program_hash = program_of(entries)
    programs = {program_hash: store.program(program_hash)}
    notes = _notes(programs, run_id, entries, opened)
    made = without_values(receipt(_trace(programs, run_id, entries, notes)))
    shown = [0, *_entries_of(entries, steps)]
    lines = []
    for disclosed in disclose(entries, *dict.fromkeys(shown)):
        entry = disclosed.entry
        own = _own_step(entry) in steps
        lines.append(
            ShownLine(
                digest=entry.digest,
                facts=msgspec.Raw(entry.facts),
                proof=[node.hex() for node in disclosed.proof],
                seq=entry.seq,
                size=disclosed.size,
                payload=msgspec.UNSET if entry.payload is None or not own else msgspec.Raw(entry.payload),
                salt=entry.salt.hex() if own and entry.payload is not None else "",
            )
        )
    contents = Contents(kind=container.DISCLOSURE, run=run_id, shown=lines, receipt=canonical.encode(made))
    if key is not None:
        heads = [(run_id, entries[-1].digest)]
        held = container.contents_digest(contents)
        contents.signature = SignatureLine(
            sign(statement(made, heads, DISCLOSURE_TYPE, contents=held), key), key.public.text
        )
    return Exported(container.write(contents), [run_id], len(lines), None if key is None else key.name)


def without_values(receipt: dict[str, Any]) -> dict[str, Any]:
    """A receipt to go with chosen steps: without the hashes over all outputs. They are not salted, so whoever guesses
    what a step that is not shown came to could find the guess confirmed in them."""
    hashes = {name: value for name, value in receipt["hashes"].items() if name not in _OVER_VALUES}
    return {**receipt, "hashes": hashes}


def program_of(entries: Sequence[Entry]) -> str:
    """Hash of the program that a run is pinned to.

    Raises:
        VerificationError: JOURNAL_MALFORMED when its first entry does not say so.
    """
    start = open_events(entries[0])[0] if entries else None
    if type(start) is not ev.RunStarted:
        raise VerificationError(
            "JOURNAL_MALFORMED", "entry 0: the run does not begin with its start", facts={"seq": 0}
        )
    return start.program


def compile_stored(stored: bytes) -> CompiledProgram:
    """The compiled form of a program as stores and bundles hold it.

    Raises:
        RuntimeFault: PROGRAM_CHANGED when the bytes are no program that this version compiles to itself.
    """
    from nano_vm.errors import NanoVMError

    program_hash = canonical.digest(stored)
    try:
        program = Program.from_dict(canonical.decode(stored)["program"])
        if program.hash == program_hash:
            return compile_program(program)
    except (NanoVMError, KeyError, TypeError, RecursionError):
        pass
    raise RuntimeFault(
        "PROGRAM_CHANGED",
        f"what is kept as {program_hash} is no program of this hash",
        facts={"program": program_hash},
    )


def told_of_children(
    entries: Sequence[Entry],
) -> Iterator[tuple[Entry, ev.ChildStarted | ev.ChildFinished, str]]:
    """Each start and each end of a child run that a journal tells of, with the id of the child."""
    started: dict[tuple[str, int, Any], str] = {}
    for entry in entries:
        if b'"Child' not in entry.facts:  # most entries speak of no child, and need not be read
            continue
        for event in open_events(entry):
            if type(event) is ev.ChildStarted:
                started[event.step, event.occurrence, event.item] = event.child
                yield entry, event, event.child
            elif type(event) is ev.ChildFinished:
                yield entry, event, started.get((event.step, event.occurrence, event.item), "")


def children_of(told: Iterable[tuple[Entry, ev.ChildStarted | ev.ChildFinished, str]]) -> dict[str, str]:
    """The child runs that a journal names (`told_of_children`), in order: run id -> hash of the program they were
    started with. Those are left out of which it says itself that they never began."""
    found: dict[str, str] = {}
    for _, event, child in told:
        if isinstance(event, ev.ChildStarted):
            found[child] = event.program
        elif not event.head:
            found.pop(child, None)
    return found


def policies_of(journals: Iterable[tuple[str, Sequence[Entry]]]) -> list[str]:
    """Hashes of the policies that the runs are pinned to, or that decided anything in them; sorted."""
    found: set[str] = set()
    for _, entries in journals:
        for entry in entries:
            if b'"policy":' in entry.facts or b'"current":' in entry.facts:
                for event in open_events(entry):
                    named = (getattr(event, "policy", None), getattr(event, "current", None))
                    found.update(name for name in named if type(name) is str)
    return sorted(found)


def tenant_of(run_id: str) -> str:
    """The tenant that a run belongs to: its id says so."""
    tenant, separator, _ = run_id.partition(TENANT_SEPARATOR)
    return tenant if separator else DEFAULT_TENANT


def _journals(store: JournalStore, run_id: str) -> Iterator[tuple[str, list[Entry]]]:
    """The run, then its child runs, each before its own children."""
    todo = [run_id]
    seen: set[str] = set()
    while todo:
        run = todo.pop()
        if run in seen:
            continue
        seen.add(run)
        if len(seen) > RUNS_MAX:
            raise RuntimeFault(
                "EXPORT_LIMIT", f"the run has more than {RUNS_MAX} child runs", help="export its children"
            )
        try:
            entries = _portable(store.read(run))
        except NotFoundError:
            if run == run_id:
                raise
            continue  # named by an intent, and never begun
        if not entries:
            if run == run_id:
                raise VerificationError("CHAIN_BROKEN", "the journal is empty", facts={"seq": 0})
            continue
        yield run, entries
        todo += reversed(children_of(told_of_children(entries)))


def _trace(
    programs: dict[str, bytes], run_id: str, entries: Sequence[Entry], notes: Notes | None = None
) -> Trace:
    return Trace(compile_stored(programs[program_of(entries)]), run_id, lambda: entries, notes=notes)


def _portable(entries: list[Entry]) -> list[Entry]:
    """Entries as a bundle holds them: a ciphertext is written in base64, as the JSON text that a line may hold; one
    that nobody will ever open again is left out."""
    dead = erased_keys(entries)
    for place, entry in enumerate(entries):
        if entry.payload is None or entry.salt:
            continue
        key = read_facts(entry).key
        if key is not None:
            text = None if key in dead else canonical.encode(base64.b64encode(entry.payload).decode())
            entries[place] = msgspec.structs.replace(entry, payload=text)
    return entries


def _notes(programs: dict[str, bytes], run_id: str, entries: Sequence[Entry], opened: Opened | None) -> Notes:
    """What a journal with sealed values needs to be folded without them; nothing for one without."""
    if opened is None or not any(entry.payload is not None and not entry.salt for entry in entries):
        return {}
    return record(compile_stored(programs[program_of(entries)]), run_id, opened(run_id))


def _log_lines(
    store: JournalStore, journals: Sequence[tuple[str, list[Entry]]], key: SigningKey, origin: str | None
) -> list[LogLine]:
    """One line per run: its last leaf, as far as the journal that was read goes, for the run may still go on."""
    log = Log(store)
    checkpoint = log.checkpoint(None if origin is None else check_origin(origin))
    note = sign_checkpoint(checkpoint, key)
    lines = []
    for run, entries in journals:
        index = log.last_of(run, len(entries))
        proof = [node.hex() for node in log.inclusion(index, checkpoint.size)]
        lines.append(LogLine(note, index, log.leaves[index].to_dict(), proof))
    return lines


def _own_step(entry: Entry) -> str | None:
    """The step whose result an entry records."""
    step = getattr(open_events(entry)[0], "step", None)
    return step if type(step) is str else None


def _entries_of(entries: Sequence[Entry], steps: Sequence[str]) -> list[int]:
    """Numbers of the entries that speak of the steps.

    Raises:
        NotFoundError: UNKNOWN_STEP.
    """
    wanted = set(steps)
    met: set[str] = set()
    found = []
    for entry in entries:
        named: set[str] = set()
        for event in open_events(entry):
            step = getattr(event, "step", None)
            named.update([step] if type(step) is str else ())
            named.update(verdict[0] for verdict in getattr(event, "verdicts", None) or ())
        if named & wanted:
            met |= named & wanted
            found.append(entry.seq)
    for step in steps:
        if step not in met:
            raise NotFoundError(
                "UNKNOWN_STEP", f"the run did not come to a step `{step}`", facts={"step": step}
            )
    return found
