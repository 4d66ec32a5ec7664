"""Advisory locks: what has to wait for what, beside rows.

Their numbers are shared by everything in a database, so they are made of the store's own number and a name. A collision
costs time, nothing else.

`ON_ITS_WAY` marks transactions that may have taken numbers of nvm_segments and are not committed yet. Its second number
is the last one that was handed out before: all that such a transaction takes are larger. So whoever reads the marks
knows up to where every number is decided, and nobody waits for that.
"""

from __future__ import annotations

from hashlib import sha256

MIGRATION = "nano-vm migration"
ON_ITS_WAY = "on its way"

_RING = 1 << 31  # the second numbers are 31-bit; far more than are ever under way


def number_of(name: str, store: int = 0) -> int:
    """A 64-bit lock."""
    return int.from_bytes(sha256(f"{store} {name}".encode()).digest()[:8], "big", signed=True)


def class_of(name: str, store: int) -> int:
    """The first number of a lock of two 31-bit ones."""
    return int.from_bytes(sha256(f"{store} {name}".encode()).digest()[:4], "big") >> 1


MARK = f"""SELECT pg_advisory_xact_lock_shared(?1::int,
    ((SELECT last_value FROM nvm_segments_n) % {_RING})::int)"""

# The last number is read first: a transaction that has taken it, or a smaller one, has its mark by then, or is over.
LAST = "SELECT last_value FROM nvm_segments_n"
DECIDED = f"""SELECT ?2::bigint - coalesce(max((?2::bigint % {_RING} - objid::bigint + {_RING}) % {_RING}), 0)
    FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = ?1::bigint"""
