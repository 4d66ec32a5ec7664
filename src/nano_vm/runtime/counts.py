"""What limits have counted is held against what the journals say was allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nano_vm.errors import VerificationError

if TYPE_CHECKING:
    from nano_vm.journal.port import JournalStore

LOOKS_MAX = 1_000  # at a key that others keep counting under


def _counted_by(store: JournalStore, key: str, place: str) -> int | None:
    """What one action has added to a key. Others may be counting meanwhile: it is looked at until nobody is; None when
    that does not come."""
    (others,) = store.counted([key], place)
    for _ in range(LOOKS_MAX):
        (everything,), (again,) = store.counted([key], ""), store.counted([key], place)
        if again == others:
            return everything - others
        others = again
    return None


def verify_counts(store: JournalStore, counted: Sequence[tuple[int, str, str, int]]) -> None:
    """What limits have counted for allowed actions - entry, identity of the action, key, amount - is still there.

    Raises:
        VerificationError: COUNT_MISSING: somebody took back what was counted, so that limits let more through.
    """
    for seq, place, key, amount in counted:
        if _counted_by(store, key, place) not in (amount, None):
            raise VerificationError(
                "COUNT_MISSING",
                f"entry {seq}: what the limit counted is not in the store any more, or another amount",
                help="somebody has written to `nvm_counts`; the journals say what was allowed",
                facts={"seq": seq, "key": key},
            )
