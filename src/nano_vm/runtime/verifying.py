"""Checking a stored run against its journal, while others may be at work on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nano_vm.journal.entry import Entry
from nano_vm.journal.port import RunRecord
from nano_vm.journal.replay import Verified, verify_run
from nano_vm.policy.recheck import Recheck
from nano_vm.runtime.counts import verify_counts

if TYPE_CHECKING:
    from nano_vm.runtime.looking import Looking

_LOOKS_MAX = 100  # a record changes when its run is suspended, goes on or ends, not with every entry


def _at_one_moment(engine: Looking, record: RunRecord) -> tuple[RunRecord, list[Entry]]:
    """The run's record and its journal, neither newer than the other, whoever drives the run in the meantime."""
    for _ in range(_LOOKS_MAX):
        entries = engine.read(record.run_id)
        before, record = record, engine.store.record(record.run_id)
        if (record.length, record.status) == (before.length, before.status):
            break
    return record, entries


def verify(engine: Looking, record: RunRecord) -> Verified:
    """`Engine.verify` of a run that was found."""
    program = engine.load_program(record.program_hash)
    record, entries = _at_one_moment(engine, record)
    closed = any(not entry.salt and b'"commitment"' in entry.facts for entry in entries)
    recheck = Recheck(program, engine.load_policy, record.tenant, closed)
    verified = verify_run(program, record, entries, watchers=(recheck,))
    if recheck.decisions or recheck.unchecked:
        rest = f", {recheck.unchecked} about what is erased or closed" if recheck.unchecked else ""
        verified.steps.append(("decisions", f"{recheck.decisions} made again{rest}"))
    if recheck.counted:
        verify_counts(engine.store, recheck.counted)
        verified.steps.append(("limits", f"{len(recheck.counted)} amounts still counted"))
    if recheck.tallied:
        verified.steps.append(("own limits", f"{recheck.tallied} amounts counted as the journal says"))
    return verified
