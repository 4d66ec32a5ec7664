"""Migration 3: the policies that runs are pinned to, and what their limits have counted (SPEC §9)."""

from __future__ import annotations

STATEMENTS = (
    """CREATE TABLE nvm_policies (
        n INTEGER PRIMARY KEY,
        hash TEXT NOT NULL UNIQUE,
        stored_at_ms INTEGER NOT NULL,
        body BLOB NOT NULL
    )""",
    # One row per counted action: an action that is dispatched again after a crash is not counted again.
    """CREATE TABLE nvm_counts (
        key TEXT NOT NULL,
        action TEXT NOT NULL,
        amount INTEGER NOT NULL,
        counted_at_ms INTEGER NOT NULL,
        PRIMARY KEY (key, action)
    ) WITHOUT ROWID""",
    *(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in ("nvm_policies", "nvm_counts")
        for verb in ("UPDATE", "DELETE")
    ),
    """CREATE TRIGGER nvm_policies_once BEFORE INSERT ON nvm_policies
        WHEN EXISTS (SELECT 1 FROM nvm_policies WHERE hash = NEW.hash OR n = NEW.n)
        BEGIN SELECT RAISE(ABORT, 'nvm_policies is append-only'); END""",
    """CREATE TRIGGER nvm_counts_once BEFORE INSERT ON nvm_counts
        WHEN EXISTS (SELECT 1 FROM nvm_counts WHERE key = NEW.key AND action = NEW.action)
        BEGIN SELECT RAISE(ABORT, 'nvm_counts is append-only'); END""",
)
