"""Migration 6: programs that no new runs may be started of (SPEC §12)."""

from __future__ import annotations

STATEMENTS = (
    # Append-only: the last row about a program says how it stands, the others how that came to be.
    """CREATE TABLE nvm_pauses (
        n INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        program TEXT NOT NULL,
        paused INTEGER NOT NULL,
        reason TEXT NOT NULL,
        by_whom TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    )""",
    *(
        f"CREATE TRIGGER nvm_pauses_no_{verb.lower()} BEFORE {verb} ON nvm_pauses "
        "BEGIN SELECT RAISE(ABORT, 'nvm_pauses is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    """CREATE TRIGGER nvm_pauses_once BEFORE INSERT ON nvm_pauses
        WHEN EXISTS (SELECT 1 FROM nvm_pauses WHERE n = NEW.n)
        BEGIN SELECT RAISE(ABORT, 'nvm_pauses is append-only'); END""",
)
