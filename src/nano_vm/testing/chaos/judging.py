"""What is asked of every journal that processes leave behind which were killed at any moment."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import open_events
from nano_vm.journal.port import RunRecord
from nano_vm.kernel.events import StepSucceeded
from nano_vm.vm import ExecutionVM


class Tally(Protocol):
    """What the runs came to. `violations` are sentences."""

    runs: int
    events: int
    statuses: dict[str, int]
    violations: list[str]


def judge_journal(vm: ExecutionVM, record: RunRecord, tally: Tally) -> bool:
    """Whether there is more to be asked: the journal verifies (P6), and the run is nobody's child. Nothing in it may
    have finished twice (P4)."""
    run_id, status = record.run_id, record.status
    try:
        vm.verify(run_id)
    except NanoVMError as error:
        tally.violations.append(f"P6: {run_id} does not verify: {error.code}")
        return False
    finished: Counter[Any] = Counter()
    for entry in vm.store.read(run_id):
        for event in open_events(entry):
            tally.events += 1
            if type(event) is StepSucceeded:
                finished[event.step, event.occurrence, event.item] += 1
    tally.violations += [
        f"P4: {place[0]} of {run_id} finished twice" for place, n in finished.items() if n > 1
    ]
    if record.parent is not None:
        return False
    tally.runs += 1
    tally.statuses[status] = tally.statuses.get(status, 0) + 1
    return True
