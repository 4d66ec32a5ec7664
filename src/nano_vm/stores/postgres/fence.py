"""A store's row in nvm_writers: what keeps it from writing to runs it has lost, and what it remembers a commit by.

Whoever writes locks the row of its store until the commit, and whoever takes a run from a store locks that store's row
first. So an append and the loss of its run never overlap, and another `epoch` in that row tells the owner that what it
keeps of its runs is not true any more.

A store numbers the transactions of each of its sessions, and writes the number with them. When the answer to a commit
never comes, the row says whether it was one. (The number of the server's own will not do: after a crash it may be given
to another transaction.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nano_vm.stores.rows import Connection

APPENDED: Final = "appended"  # the columns: by the session that appends, by the desk, by tools
SETTLED: Final = "settled"
LENT: Final = "lent"

GO_ON = f"""UPDATE nvm_writers SET commits = commits + 1, {APPENDED} = ?3, seen = now()
    WHERE owner = ?1 AND epoch = ?2"""
"""What `enter` does, for the session that appends, while the epoch is as it was; nothing when it is not."""

_ENTER = {
    column: f"""INSERT INTO nvm_writers (owner, commits, {column}) VALUES (?1, 1, ?2)
        ON CONFLICT (owner) DO UPDATE SET commits = nvm_writers.commits + 1, {column} = ?2, seen = now()
        RETURNING epoch"""
    for column in (APPENDED, SETTLED, LENT)
}
_BE_KNOWN = "INSERT INTO nvm_writers (owner) SELECT * FROM unnest(?1::text[]) ON CONFLICT DO NOTHING"
_HOLD = "SELECT FROM nvm_writers WHERE owner = ANY(?1::text[]) ORDER BY owner FOR UPDATE"
_TAKEN_FROM = "UPDATE nvm_writers SET epoch = nextval('nvm_epochs') WHERE owner = ?1"
# One that lives may own nothing for a moment, and ask for its last commit: its row is left for far longer than a lost
# connection is tried to be made again. One that another session holds is left for the next sweep.
_LONG_QUIET = "owner <> ALL(?1::text[]) AND seen < now() - interval '1 hour'"
_SWEEP = f"""DELETE FROM nvm_writers WHERE owner IN
    (SELECT owner FROM nvm_writers WHERE {_LONG_QUIET} FOR UPDATE SKIP LOCKED)"""
_TO_SWEEP = f"SELECT EXISTS (SELECT FROM nvm_writers WHERE {_LONG_QUIET})"


def enter(con: Connection, owner: str, column: str, number: int) -> Any:
    """Enter a transaction of the store into its row, and lock it until the commit. A cursor with the store's epoch."""
    return con.execute(_ENTER[column], (owner, number))


def landed(con: Connection, owner: str, column: str, number: int) -> bool:
    """Whether the last transaction of a session, which has ended, was committed."""
    row = con.execute(f"SELECT {column} FROM nvm_writers WHERE owner = ?1", (owner,)).fetchone()
    return row is not None and row[0] == number


def hold(con: Connection, owners: Sequence[str]) -> None:
    """Keep stores from writing until the end of this transaction."""
    con.execute(_BE_KNOWN, (owners,))
    con.execute(_HOLD, (owners,))


def taken_from(con: Connection, owner: str) -> None:
    con.execute(_TAKEN_FROM, (owner,))


def is_to_sweep(con: Connection, in_use: set[str]) -> bool:
    """Whether there are stores that own nothing, and have long written nothing."""
    found: bool = con.execute(_TO_SWEEP, (sorted(in_use),)).fetchone()[0]
    return found


def sweep(con: Connection, in_use: set[str]) -> None:
    """Forget them. One that lives is entered anew when it writes."""
    con.execute(_SWEEP, (sorted(in_use),))
