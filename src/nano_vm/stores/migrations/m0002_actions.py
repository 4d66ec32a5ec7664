"""Migration 2: what the authors' idempotency keys were used for (SPEC §7)."""

from __future__ import annotations

STATEMENTS = (
    """CREATE TABLE nvm_actions (
        key TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        run_id TEXT NOT NULL,
        seal BLOB NOT NULL
    ) WITHOUT ROWID""",
    "CREATE TRIGGER nvm_actions_no_update BEFORE UPDATE ON nvm_actions "
    "BEGIN SELECT RAISE(ABORT, 'nvm_actions is append-only'); END",
    "CREATE TRIGGER nvm_actions_no_delete BEFORE DELETE ON nvm_actions "
    "BEGIN SELECT RAISE(ABORT, 'nvm_actions is append-only'); END",
    """CREATE TRIGGER nvm_actions_once BEFORE INSERT ON nvm_actions
        WHEN EXISTS (SELECT 1 FROM nvm_actions WHERE key = NEW.key)
        BEGIN SELECT RAISE(ABORT, 'nvm_actions is append-only'); END""",
)
