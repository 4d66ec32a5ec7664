"""A run that somebody is about to go on with, before anything says so in the database."""

from __future__ import annotations

from typing import NamedTuple

from nano_vm.journal.port import RunRecord
from nano_vm.stores.rows import TAKE_FREE, Connection, ownership


class Claim(NamedTuple):
    """The ownership of a run that nobody owned when its `record` was read. It is written with what the run adds next,
    in the same commit; until then the database can still give the run to somebody else."""

    record: RunRecord
    fence: int
    until_ms: int  # when the lease ends

    def take(self, con: Connection, owner: str, until_ms: int | None = None) -> bool:
        """Write it, in an open transaction. False, and nothing is written, when somebody has had the run since."""
        until_ms = self.until_ms if until_ms is None else until_ms
        changed: int = con.execute(TAKE_FREE, ownership(self.record, owner, self.fence, until_ms)).rowcount
        return changed > 0
