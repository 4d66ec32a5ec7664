"""Migration 1: the tables of the journal store. `docs/guides/stores.md` explains them to operators.

Every name begins with `nvm_`, because a transactional tool keeps its own tables in the same file.
"""

from __future__ import annotations

TABLES = (
    "CREATE TABLE nvm_meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO nvm_meta VALUES ('ownership', 0)",
    """CREATE TABLE nvm_programs (
        n INTEGER PRIMARY KEY,
        hash TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        stored_at_ms INTEGER NOT NULL,
        body BLOB NOT NULL,
        seal BLOB NOT NULL
    )""",
    # What a name means now: the program that was last put under it.
    """CREATE TABLE nvm_names (
        name TEXT PRIMARY KEY,
        hash TEXT NOT NULL REFERENCES nvm_programs (hash)
    ) WITHOUT ROWID""",
    """CREATE TABLE nvm_runs (
        no INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL UNIQUE,
        tenant TEXT NOT NULL,
        program_hash TEXT NOT NULL,
        program_name TEXT NOT NULL,
        key TEXT,
        inputs_digest TEXT NOT NULL,
        parent TEXT,
        status TEXT NOT NULL,
        outcome TEXT,
        waits TEXT NOT NULL,
        wake_at_ms INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL,
        length INTEGER NOT NULL,
        head TEXT NOT NULL,
        owner TEXT,
        fence INTEGER NOT NULL,
        lease_until_ms INTEGER NOT NULL,
        origin BLOB NOT NULL,
        seal BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX nvm_runs_key ON nvm_runs (tenant, program_name, key) WHERE key IS NOT NULL",
    "CREATE INDEX nvm_runs_status ON nvm_runs (status)",
    "CREATE INDEX nvm_runs_timer ON nvm_runs (wake_at_ms) WHERE status = 'SUSPENDED' AND wake_at_ms > 0",
    "CREATE INDEX nvm_runs_parent ON nvm_runs (parent) WHERE parent IS NOT NULL",
    # `run` is nvm_runs.no: with the 32-character ids in the index, throughput halves once 10,000 runs are
    # stored.
    """CREATE TABLE nvm_segments (
        n INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES nvm_runs (no),
        seq INTEGER NOT NULL,
        digests BLOB NOT NULL,
        facts BLOB NOT NULL,
        payloads BLOB
    )""",
    "CREATE UNIQUE INDEX nvm_segments_at ON nvm_segments (run, seq)",
    """CREATE TABLE nvm_blobs (
        n INTEGER PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        body BLOB NOT NULL
    )""",
    """CREATE TABLE nvm_mail (
        n INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES nvm_runs (no),
        mail_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        body BLOB NOT NULL,
        posted_at_ms INTEGER NOT NULL,
        answer BLOB,
        seal BLOB NOT NULL,
        UNIQUE (run, mail_id)
    )""",
    "CREATE INDEX nvm_mail_open ON nvm_mail (run) WHERE answer IS NULL",
    # For operators: one row per entry. Programs read nvm_segments.
    """CREATE VIEW nvm_entries AS
        SELECT r.run_id, s.seq + f.key AS seq, json_extract(f.value, '$.type') AS type, f.value AS facts
        FROM nvm_segments s JOIN nvm_runs r ON r.no = s.run,
            json_each('[' || replace(CAST(s.facts AS TEXT), char(10), ',') || ']') f""",
)

# Append-only means that the database itself refuses, whoever asks.
GUARDS = (
    *(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in ("nvm_segments", "nvm_programs", "nvm_blobs")
        for verb in ("UPDATE", "DELETE")
    ),
    "CREATE TRIGGER nvm_runs_no_delete BEFORE DELETE ON nvm_runs "
    "BEGIN SELECT RAISE(ABORT, 'runs are never deleted'); END",
    """CREATE TRIGGER nvm_runs_origin BEFORE UPDATE OF
        no, run_id, tenant, program_hash, program_name, key, inputs_digest, parent, created_at_ms, origin
        ON nvm_runs
        BEGIN SELECT RAISE(ABORT, 'the origin of a run never changes'); END""",
    # Neither a gap nor an overlap can be written: a segment begins where the one before it ends. The second
    # condition stops REPLACE, which would remove the row of the same `n` without asking the triggers above.
    """CREATE TRIGGER nvm_segments_consecutive BEFORE INSERT ON nvm_segments
        WHEN NEW.seq IS NOT coalesce(
            (SELECT seq + length(digests) / 32 FROM nvm_segments
                WHERE run = NEW.run ORDER BY seq DESC LIMIT 1), 0)
            OR EXISTS (SELECT 1 FROM nvm_segments WHERE n = NEW.n)
        BEGIN SELECT RAISE(ABORT, 'a segment begins where the one before it ends'); END""",
    """CREATE TRIGGER nvm_programs_once BEFORE INSERT ON nvm_programs
        WHEN EXISTS (SELECT 1 FROM nvm_programs WHERE hash = NEW.hash OR n = NEW.n)
        BEGIN SELECT RAISE(ABORT, 'nvm_programs is append-only'); END""",
    """CREATE TRIGGER nvm_blobs_once BEFORE INSERT ON nvm_blobs
        WHEN EXISTS (SELECT 1 FROM nvm_blobs WHERE digest = NEW.digest OR n = NEW.n)
        BEGIN SELECT RAISE(ABORT, 'nvm_blobs is append-only'); END""",
    """CREATE TRIGGER nvm_runs_once BEFORE INSERT ON nvm_runs
        WHEN EXISTS (SELECT 1 FROM nvm_runs WHERE run_id = NEW.run_id OR no = NEW.no)
        BEGIN SELECT RAISE(ABORT, 'nvm_runs: the run exists'); END""",
    # Writers keep what they own in memory and look again only when this number has changed.
    """CREATE TRIGGER nvm_runs_ownership AFTER UPDATE OF fence ON nvm_runs WHEN NEW.fence IS NOT OLD.fence
        BEGIN UPDATE nvm_meta SET value = value + 1 WHERE name = 'ownership'; END""",
)

STATEMENTS = TABLES + GUARDS
