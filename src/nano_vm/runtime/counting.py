"""What limits have counted, and counting more: in the store, or by the journal alone.

Under a key that belongs to one run (`Counter.own`) tools count in the run's own tally, a fold of its journal: nobody
else counts there, and no entry of a run that has changed hands can be written by whoever had it before. Everything else
is the store's: checked and counted in one transaction, since other runs count there too, and models, whose worst case
is corrected after the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nano_vm.kernel.commands import CallModel, Compensate
from nano_vm.policy.decide import Counter
from nano_vm.policy.tally import Tally
from nano_vm.runtime.actions import place_of
from nano_vm.runtime.patience import patiently

if TYPE_CHECKING:
    from nano_vm.kernel.commands import CallTool, RequestApproval
    from nano_vm.runtime.driver import Run


def so_far(
    run: Run,
    tally: Tally,
    command: CallTool | CallModel | Compensate | RequestApproval,
    counters: Sequence[Counter],
) -> dict[str, int]:
    """What all other actions have added to each key."""
    amounts = {counter.key: counter.own for counter in counters}
    stored = run.engine.store.counted(list(amounts), place_of(run, command))
    counted = dict(zip(amounts, stored, strict=True))
    for key, own in amounts.items():
        if own:
            counted[key] += _tallied(tally, command, key)
    return counted


async def take(
    run: Run,
    tally: Tally,
    command: CallTool | CallModel | Compensate,
    counters: Sequence[Counter],
    at_ms: int,
) -> bool:
    """Count an action that `so_far` has just been asked of, and the policy allows; False, and nothing is counted, where
    others were quicker. What the tally counts is durable once the decision is: it has to be before the call."""
    owned = [] if type(command) is CallModel else [counter for counter in counters if counter.own]
    wanted = [
        (key, amount, maximum - (_tallied(tally, command, key) if own else 0))
        for key, amount, maximum, _, _, own in counters
        if not own or type(command) is CallModel
    ]
    if wanted:
        place, store = place_of(run, command), run.engine.store
        if await patiently(lambda: store.count(place, wanted, at_ms)) is None:
            return False
    undoes = type(command) is Compensate
    for counter in owned:
        tally.add(counter.key, counter.amount, command.step_id, command.occurrence, command.item, undoes)
    return True


def _tallied(tally: Tally, command: CallTool | CallModel | Compensate | RequestApproval, key: str) -> int:
    if type(command) is CallModel:
        return tally.totals.get(key, 0)
    undoes = type(command) is Compensate
    return tally.so_far(key, command.step_id, command.occurrence, command.item, undoes)
