"""Erasure (P7): the keys of a data subject, or of a secret, are destroyed, and every concerned run is told.

The order is what makes it survive a crash at any point:

1. the erasure is written to the list beside the keys, unless a legal hold is there: from here on none is taken, and the
   erasure is completed, whatever happens. Runs of the subject that have not ended are cancelled, while their values can
   still be read: what must be undone is;
2. the list says that it has begun - from here on nothing opens with the keys, and nothing begins under them; runs that
   came meanwhile are cancelled;
3. what each journal needs to be folded without the values is noted (`nano_vm.journal.notes`);
4. an `Erased` entry is appended to each concerned run;
5. the keys are destroyed, and the notes kept with the list, for runs that could not be told and for back-ups;
6. runs that others would not let go of are told, and the erasure is done.

A run whose first private value is being written meanwhile is seen by nobody else: whoever drives it looks at the list
before that is written and after, notes for itself what nobody else can note any more, and ends the run.

Whoever erases the same again, recovers, or opens a restored back-up goes on where it stopped. Who merely recovers and
has not got the tools that undo what must be undone leaves that to others, for as long as `UNDO_WAIT_MS`: the keys stay
so long, and open nothing. Whoever says that it is to be done now, or comes later, goes on without: erasing matters more
than undoing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import (
    ConflictError,
    InputError,
    NanoVMError,
    RejectedError,
    RuntimeFault,
    StoreError,
    VerificationError,
)
from nano_vm.journal.entry import Chain, Entry, open_events
from nano_vm.journal.notes import record as take_notes
from nano_vm.journal.port import DEFAULT_TENANT, RunRecord
from nano_vm.kernel import events as ev
from nano_vm.kernel.limits import TEXT_CHARS_MAX
from nano_vm.kernel.state import RunStatus
from nano_vm.runtime.control import ERASURE, cancel, hand_in, until_settled
from nano_vm.runtime.erasure_scan import look_through
from nano_vm.runtime.journaled import JournaledRun, RunLeft
from nano_vm.runtime.needs import require_undo
from nano_vm.runtime.ports import ErasableKeys
from nano_vm.runtime.rights import ERASE, check_right
from nano_vm.runtime.sealing import STOPPING, keys_live, open_entries

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run
    from nano_vm.runtime.engine import Engine

_UNSET = ev.UNSET
ANNOUNCED, BEGUN, DESTROYED, DONE = "stopping", "begun", "destroyed", "done"
REFERENCE = "vault://secret/"
UNDO_WAIT_MS = 60 * 60 * 1000  # how long after its beginning an erasure waits for tools that undo
STOP_WAIT_MS = 5 * 60 * 1000  # after this, whoever stops the runs of an announced erasure is taken to be gone
SOON_S = 1.0  # how long those who look for runs to drive wait for an erasure that may wait for one itself


async def erase(
    engine: Engine,
    *,
    subject: Any = None,
    secret: str | None = None,
    run: str | None = None,
    reason: str,
    by: str | Mapping[str, Any] | None,
    tenant: str | None = None,
) -> dict[str, Any]:
    """See `Engine.erase`."""
    from nano_vm.runtime.rights import principal_of

    check_right(engine.access, by, ERASE)
    keys = erasable(engine)
    if sum(target is not None for target in (subject, secret, run)) != 1:
        raise InputError(
            "USAGE", "an erasure is of one thing: a subject, a secret, or a run without a subject"
        )
    if type(reason) is not str or not 0 < len(reason) <= TEXT_CHARS_MAX:
        raise InputError("USAGE", f"an erasure has a reason of 1 to {TEXT_CHARS_MAX} characters")
    if run is not None:
        record = engine.find(run, by, ERASE, tenant)
        whose, subject = record.tenant, ("run", record.run_id)
    else:
        whose = engine.whose(by, tenant) or DEFAULT_TENANT
    who = principal_of(by, whose)
    if who is None:
        raise InputError("PRINCIPAL", "an erasure is somebody's", help="by={'id': 'ana'}, or --principal ana")
    secret = secret.removeprefix(REFERENCE) if secret is not None else None
    # From here on it is decided: a legal hold that comes later is refused, and nothing was cancelled for one before.
    erasure = keys.announce_erasure(
        subject=subject, secret=secret, tenant=whose, reason=reason, by=who, at_ms=engine.clock.now_ms()
    )
    try:
        if secret is None and erasure.stage == ANNOUNCED:
            await _stop_runs(engine, erasure.keys, who)
        engine.erasing += 1
        try:
            erasure, _ = await complete(engine, erasure)
        finally:
            engine.erasing -= 1
    except BaseException:
        engine.erasures_replayed = False  # it goes on
        raise
    return _receipt(erasure)


async def tell_if_erased(engine: Engine, run: Run) -> None:
    """Tell a run that was erased while it was driven here, when nobody could. What is not done is done by whoever
    recovers."""
    with contextlib.suppress(NanoVMError):
        if keys_live(run):
            return
        engine.erasures_replayed = False
        if not engine.erasing:
            await catch_up(engine)


def stop_if_erased(engine: Engine, run: Run) -> None:
    """Cancel a run whose journal has just begun to name its key, and did not yet when the erasure of its subject looked
    for runs to stop. Where the key is there, whoever looks from now on finds the run."""
    if keys_live(run):
        if run.unsealed:
            run.named, run.unsealed = True, []
        return
    note_if_erased(engine, run, [])
    if not run.facts.ending.has_come:
        with contextlib.suppress(RunLeft):
            hand_in(engine, run, "cancel", {"reason": ERASURE, "principal": None})


def note_if_erased(engine: Engine, run: JournaledRun, batch: Sequence[Entry]) -> None:
    """Note of a run that nobody could find by its key what its journal with the batch needs to be folded without the
    values: whoever destroys the key has not seen it."""
    keys: Any = engine.keys
    if not keys.is_erased(run.key_id) or not hasattr(keys, "note_erasure"):
        return
    run_id = run.record.run_id
    unsealed = {entry.seq: entry for entry in run.unsealed}
    entries = [*(engine.store.read(run_id) if run.created else ()), *batch]
    if len(entries) < run.chain.length:
        return  # some are being written: then it is asked again
    one = next(erasure for erasure in keys.all_erasures() if run.key_id in erasure.keys)
    with contextlib.suppress(VerificationError):
        notes = take_notes(run.program, run_id, [unsealed.get(entry.seq, entry) for entry in entries])
        keys.note_erasure(one, {run_id: notes})


async def catch_up(engine: Engine) -> None:
    """`replay` where it may have something to do: once for each engine, and again as long as an erasure is left, here
    or by others. Raises InputError TOOLS_MISSING when one is left for want of tools."""
    keys: Any = engine.keys
    if keys is None or not hasattr(keys, "announce_erasure"):
        return
    if engine.erasures_replayed and (engine.erasing or not _has_begun(engine, keys)):
        return
    engine.erasures_replayed = True  # whoever comes meanwhile need not; `replay` says when something is left
    try:
        await replay(engine, leaves=True)
    except BaseException:
        engine.erasures_replayed = False
        raise


def _has_begun(engine: Engine, keys: ErasableKeys) -> bool:
    """Whether some erasure has got no further than to begin: others may want for what is here, or be gone."""
    now = engine.clock.now_ms()
    return any(
        one.stage == BEGUN or (one.stage == ANNOUNCED and abs(now - one.at_ms) > STOP_WAIT_MS)
        for one in _erasures(engine, keys.all_erasures())
    )


def _erasures(engine: Engine, listed: Sequence[Any]) -> list[Any]:
    """Those that the engine can complete: of others than its own tenant it finds no run to stop, to note or to tell."""
    return [one for one in listed if engine.tenant in (None, one.tenant)]


async def catch_up_soon(engine: Engine) -> bool:
    """`catch_up`, of which nobody waits for more than a second at a time. False while it goes on."""
    loop = asyncio.get_running_loop()
    task = engine.completing
    if task is None or task.get_loop() is not loop:
        task = engine.completing = loop.create_task(catch_up(engine))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # if nobody asks again
    await asyncio.wait((task,), timeout=SOON_S)
    if not task.done():
        return False
    engine.completing = None
    if not task.cancelled():
        task.result()
    return True


async def complete(engine: Engine, erasure: Any, leaves: bool = False) -> tuple[Any, bool]:
    """Bring an erasure to its end from wherever it is. Returns it as it is then, and whether every run has been told:
    one that somebody drives is told when it is let go.

    Args:
        leaves: runs whose steps cannot be undone here are left to others, and the keys with them, while there is time.

    Raises:
        InputError: TOOLS_MISSING for the first of these; the others have been stopped.
    """
    engine.erasing += 1
    try:
        erasure, is_told = await _complete(engine, erasure, leaves)
    finally:
        engine.erasing -= 1
    if not is_told:
        engine.erasures_replayed = False
    return erasure, is_told


async def _complete(engine: Engine, erasure: Any, leaves: bool) -> tuple[Any, bool]:
    keys = erasable(engine)
    erasure = keys.begin_announced(erasure)
    told: set[str] = set(erasure.runs)
    if erasure.stage == BEGUN and erasure.kind != "secret":
        # Somebody may drive runs that had their key, and were not there yet when the others were stopped. Nobody gets
        # it any more - but whoever stops them, who has to read them for that.
        is_early = abs(engine.clock.now_ms() - erasure.at_ms) < UNDO_WAIT_MS  # by whatever clock it began
        token = STOPPING.set(True)
        try:
            await _stop_runs(engine, erasure.keys, erasure.by or None, leaves and is_early)
        finally:
            STOPPING.reset(token)
        erasure = _as_of_now(keys, erasure)  # somebody else may have been quicker
    if erasure.stage == BEGUN:
        recall: dict[str, Any] = {}
        for record in _concerned(engine, erasure):
            recall[record.run_id] = _notes(engine, keys, record)
            if await _tell(engine, erasure, record, recall[record.run_id]):
                told.add(record.run_id)
        erasure = keys.destroy_keys(erasure, sorted(told), recall)
    owned = False
    for record in _concerned(engine, erasure):
        recall = _as_of_now(keys, erasure).recall.get(record.run_id, {})
        if await _tell(engine, erasure, record, recall):
            told.add(record.run_id)
        else:
            owned = True  # another process has it, and cannot read it either: told when it lets go
    if not owned and (erasure.stage != DONE or told != set(erasure.runs)):
        erasure = keys.end_erasure(erasure, sorted(told))
    return erasure, not owned


async def replay(engine: Engine, leaves: bool = False) -> list[dict[str, Any]]:
    """Make the store and the keys agree about what is erased, whichever of them came back from a back-up, and complete
    what a crash has cut. Returns the receipts of all erasures
    (of a tenant's store, of that tenant's).

    Entries that were looked at before are not looked at again, unless the store is another one than then. With `leaves`
    an erasure that `complete` leaves keeps it from no other."""
    keys = erasable(engine)
    left: list[InputError] = []
    try:
        seen = look_through(engine.store, keys)
    except StoreError as error:
        if error.code != "STORE_DAMAGED":
            raise
        return await _replay_around(engine, keys, leaves)
    _adopt(engine, keys, seen.told)
    done = {(run_id, event.erasure) for run_id, event in seen.told}
    receipts, is_all_told, is_at_work = [], True, False
    listed = keys.all_erasures()
    settled = {erasure.id for erasure in listed[: seen.settled]}
    for erasure in _erasures(engine, listed):
        names = erasure.keys if erasure.kind != "secret" else [erasure.target]
        runs = {run_id for name in names for run_id in seen.naming.get(name, ())}
        is_new = erasure.id not in settled  # the store may be older than it is, and the mark older still
        if is_new or erasure.stage != DONE or any((run_id, erasure.id) not in done for run_id in runs):
            erasure, is_told = await _complete_or_leave(engine, erasure, leaves, left)
            is_all_told, is_at_work = is_all_told and is_told, True
        receipts.append(_receipt(erasure))
    if is_all_told:  # else these entries have to be looked at again: they name the runs
        # What runs have been told just now stands behind the mark, where a back-up does not have it.
        has_grown = is_at_work and look_through(engine.store, keys).mark != seen.mark
        seen.keep(seen.settled if has_grown else len(listed))
    if left:
        raise left[0]
    return receipts


async def _complete_or_leave(
    engine: Engine, erasure: Any, leaves: bool, left: list[InputError]
) -> tuple[Any, bool]:
    try:
        return await complete(engine, erasure, leaves)
    except InputError as error:
        if error.code != "TOOLS_MISSING":
            raise
        left.append(error)
        return erasure, False


async def _replay_around(engine: Engine, keys: ErasableKeys, leaves: bool) -> list[dict[str, Any]]:
    """`replay` where entries cannot be read one after the other: the journals that nothing is wrong with are heeded."""
    told = []
    for run_id in engine.store.holding(b'"type":"Erased"'):
        for entry in engine.store.read(run_id):
            if b'"type":"Erased"' in entry.facts:
                told += [(run_id, event) for event in open_events(entry) if type(event) is ev.Erased]
    _adopt(engine, keys, told)
    left: list[InputError] = []
    receipts = [
        _receipt((await _complete_or_leave(engine, erasure, leaves, left))[0])
        for erasure in _erasures(engine, keys.all_erasures())
    ]
    if left:
        raise left[0]
    return receipts


def _adopt(engine: Engine, keys: ErasableKeys, told: Iterable[tuple[str, ev.Erased]]) -> None:
    """Have the list name the erasures that journals tell of, each with all runs that do."""
    by_erasure: dict[str, dict[str, ev.Erased]] = {}
    for run_id, event in told:
        by_erasure.setdefault(event.erasure, {})[run_id] = event
    for erasure_id, events in by_erasure.items():
        run_id, event = next(iter(events.items()))
        recall = {run: each.recall for run, each in events.items() if each.recall is not _UNSET}
        keys.adopt_erasure(
            id=erasure_id,
            tenant=engine.store.record(run_id).tenant,
            target="" if event.target is _UNSET else event.target,
            keys=event.keys,
            at_ms=event.at_ms,
            by={} if event.principal is _UNSET else event.principal,
            reason=event.reason,
            runs=sorted(events),
            recall=recall,
        )


def erasable(engine: Engine) -> ErasableKeys:
    """The engine's keys, if they can be destroyed.

    Raises:
        RuntimeFault: NO_KEYS.
    """
    keys: Any = engine.keys
    if keys is None or not hasattr(keys, "announce_erasure"):
        raise RuntimeFault(
            "NO_KEYS",
            "there is no vault whose keys could be destroyed",
            help="ExecutionVM(vault=Vault.beside(…)); on the command line name the store, and its key with --key-file",
        )
    found: ErasableKeys = keys
    return found


# --- runs -----------------------------------------------------------------------------------------------------


def _concerned(engine: Engine, erasure: Any) -> list[RunRecord]:
    """The runs whose journals name what is erased."""
    if erasure.kind == "secret":
        fragments = [canonical.encode(erasure.target)]
    else:
        fragments = [b'"key":"' + key.encode() + b'"' for key in erasure.keys]
    found: dict[str, RunRecord] = {}
    for fragment in fragments:
        for run_id in engine.store.holding(fragment):
            record = engine.store.record(run_id)
            if record.tenant == erasure.tenant:
                found[run_id] = record
    return list(found.values())


async def _stop_runs(
    engine: Engine, keys: Sequence[str], who: dict[str, Any] | None, leaves: bool = False
) -> None:
    """Cancel what has not ended, from the top, and what comes meanwhile. A run that waits for an unknown outcome goes
    on waiting, without the values. One that somebody drives is undone by them, with what they have; of the others those
    that cannot be undone here are left where `leaves` says so.

    Raises:
        InputError: TOOLS_MISSING when some were left, and all others are stopped.
    """
    require = require_undo if leaves else None
    left: NanoVMError | None = None
    tried: set[str] = set()
    while roots := [run_id for run_id in _at_work(engine, keys) if run_id not in tried]:
        tried.update(roots)
        for run_id in roots:
            try:
                try:
                    await cancel(engine, run_id, ERASURE, who, require)
                except RejectedError:
                    await until_settled(engine, run_id, require)  # it is ending already
            except NanoVMError as error:
                if leaves and error.code == "TOOLS_MISSING":
                    left = left or error
                elif error.code not in ("ERASED", "NO_KEYS"):
                    raise
    if left is not None:
        raise left


def _at_work(engine: Engine, keys: Sequence[str]) -> list[str]:
    """The runs that have not ended and name one of the keys, each by the topmost run that called it."""
    # Of a run that is driven here nothing may be in the store yet.
    found = [live.record for live in list(engine.live.values()) if live.key_id in keys]
    found = [record for record in found if engine.live_here(record.run_id) is not None]
    for key in keys:
        held = engine.store.holding(b'"key":"' + key.encode() + b'"')
        found += [engine.store.record(run_id) for run_id in held]
    roots: dict[str, None] = {}
    for record in found:
        while record.parent is not None:
            record = engine.store.record(record.parent)
        if record.status in (RunStatus.RUNNING, RunStatus.SUSPENDED):
            roots[record.run_id] = None
    return list(roots)


def _as_of_now(keys: ErasableKeys, erasure: Any) -> Any:
    return next((one for one in keys.all_erasures() if one.id == erasure.id), erasure)


def _notes(engine: Engine, keys: ErasableKeys, record: RunRecord) -> dict[str, Any]:
    entries = open_entries(keys, record.run_id, engine.store.read(record.run_id), erasing=True)
    try:
        return take_notes(engine.load_program(record.program_hash), record.run_id, entries)
    except NanoVMError:
        return {}  # a damaged journal is erased all the same


async def _tell(engine: Engine, erasure: Any, record: RunRecord, recall: dict[str, Any]) -> bool:
    """Append the entry that tells of the erasure, once. False when somebody else owns the run."""
    run_id = record.run_id
    if any(erasure.id.encode() in entry.facts for entry in engine.store.read(run_id)):
        return True
    event = ev.Erased(
        at_ms=erasure.at_ms,
        erasure=erasure.id,
        keys=list(erasure.keys),
        principal=erasure.by or _UNSET,
        reason=erasure.reason,
        recall=recall or _UNSET,
        target=erasure.target if erasure.kind == "secret" else _UNSET,
    )

    def build(length: int, head: str) -> list[Entry]:
        return [Chain(run_id, length, head).seal(event, b"", None)]

    live = engine.live_here(run_id)
    if live is not None:
        return False
    try:
        durable = engine.store.annex(run_id, build)
        if durable is not None:
            await durable
    except ConflictError as error:
        if error.code != "LEASE_LOST":
            raise
        fence = engine.store.claim(run_id, engine.clock.now_ms())
        if fence is None:
            return False
        engine.store.release(run_id, fence)
        durable = engine.store.annex(run_id, build)
        if durable is not None:
            await durable
    return True


def _receipt(erasure: Any) -> dict[str, Any]:
    """Who, when, why, which keys, which runs; the same erasure gives the same, byte for byte. No value, no name."""
    body = {
        "type": "nano-vm erasure receipt 1",
        "erasure": erasure.id,
        "tenant": erasure.tenant,
        "kind": erasure.kind,
        "target": erasure.target,
        "at_ms": erasure.at_ms,
        "by": erasure.by,
        "reason": erasure.reason,
        "keys": sorted(erasure.keys),
        "runs": sorted(erasure.runs),
        "stage": erasure.stage,
    }
    return {**body, "digest": canonical.digest_value(body)}
