"""What a run's own limits have counted: a fold of the decisions in its journal.

A limit that counts per run counts for that run alone, and a run has one owner at a time, whose entries nobody else's
can take the place of. So what its tools have added so far is what its journal says, and nothing is kept beside that:
the decision that counts is durable before the call, or the call is not made. Limits that other runs count towards are
the store's, and so is what models take, which is corrected after the call.
"""

from __future__ import annotations

from nano_vm.kernel.events import UNSET, PolicyDecided


class Tally:
    """Amounts by the key that they count under (`nano_vm.policy.decide.Counter`), of tools and compensations.

    Attributes:
        totals: what all actions have added to each key.
    """

    __slots__ = ("_latest", "totals")

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        # By step, item and whether it undoes: the occurrence that was counted last, and what it has added. Whatever is
        # decided again is of that one: an occurrence ends before the next begins.
        self._latest: dict[tuple[str, int, bool], tuple[int, dict[str, int]]] = {}

    def so_far(self, key: str, step: str, occurrence: int, item: int = -1, undoes: bool = False) -> int:
        """What all actions but this one have added to a key."""
        total = self.totals.get(key, 0)
        if total:
            latest = self._latest.get((step, item, undoes))
            if latest is not None and latest[0] == occurrence:
                total -= latest[1].get(key, 0)
        return total

    def add(
        self, key: str, amount: int, step: str, occurrence: int, item: int = -1, undoes: bool = False
    ) -> None:
        """Count an action, once, however often it is decided."""
        latest = self._latest.get((step, item, undoes))
        if latest is None or latest[0] != occurrence:
            latest = self._latest[step, item, undoes] = occurrence, {}
        if key not in latest[1]:
            latest[1][key] = amount
            self.totals[key] = self.totals.get(key, 0) + amount

    def has(self, step: str, occurrence: int) -> bool:
        """Whether a step outside groups has been counted."""
        latest = self._latest.get((step, -1, False))
        return latest is not None and latest[0] == occurrence

    def remember(self, step: str, occurrence: int, added: dict[str, int]) -> None:
        """Note what an action has added that is in the totals already."""
        self._latest[step, -1, False] = occurrence, added

    def note(self, event: PolicyDecided) -> None:
        """Take note of a decision that has been journaled. Only what may go ahead counts."""
        if event.counts is UNSET or event.decision != "allow" or event.model is not UNSET:
            return
        item = -1 if event.item is UNSET else event.item
        undoes = event.compensation is True
        for key, _, amount in event.counts:
            self.add(key, amount, event.step, event.occurrence, item, undoes)
