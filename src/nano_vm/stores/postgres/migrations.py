"""The schema of the PostgreSQL store, as numbered migrations. `docs/guides/stores.md` explains the tables to operators.

Migration N takes a database of version N-1 (`version` in nvm_meta) to version N. A published migration is never
edited: a change is a new one.

Every name begins with `nvm_`, because a transactional tool keeps its own tables in the same database. Text is compared
byte by byte (`COLLATE "C"`), as in every other store.
"""

from __future__ import annotations

_APPEND_ONLY = (
    "nvm_programs",
    "nvm_segments",
    "nvm_blobs",
    "nvm_actions",
    "nvm_policies",
    "nvm_counts",
    "nvm_pauses",
)
_TABLES = (*_APPEND_ONLY, "nvm_meta", "nvm_names", "nvm_tenant_names", "nvm_runs", "nvm_mail", "nvm_writers")

_M0001_JOURNAL: tuple[str, ...] = (
    "CREATE TABLE nvm_meta (name text PRIMARY KEY, value bigint NOT NULL)",
    """CREATE TABLE nvm_programs (
        n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        hash text COLLATE "C" NOT NULL UNIQUE,
        name text COLLATE "C" NOT NULL,
        stored_at_ms bigint NOT NULL,
        body bytea NOT NULL,
        seal bytea NOT NULL
    )""",
    # What a name means now: the program that was last put under it.
    """CREATE TABLE nvm_names (
        name text COLLATE "C" PRIMARY KEY,
        hash text COLLATE "C" NOT NULL REFERENCES nvm_programs (hash)
    )""",
    """CREATE TABLE nvm_tenant_names (
        tenant text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        hash text COLLATE "C" NOT NULL REFERENCES nvm_programs (hash),
        PRIMARY KEY (tenant, name)
    )""",
    # Room in every page for new versions of its rows: a run's record changes a few times.
    """CREATE TABLE nvm_runs (
        no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        run_id text COLLATE "C" NOT NULL UNIQUE,
        tenant text COLLATE "C" NOT NULL,
        program_hash text COLLATE "C" NOT NULL,
        program_name text COLLATE "C" NOT NULL,
        key text COLLATE "C",
        inputs_digest text COLLATE "C" NOT NULL,
        parent text COLLATE "C",
        status text COLLATE "C" NOT NULL,
        outcome text COLLATE "C",
        waits text NOT NULL,
        wake_at_ms bigint NOT NULL,
        created_at_ms bigint NOT NULL,
        updated_at_ms bigint NOT NULL,
        length bigint NOT NULL,
        head text COLLATE "C" NOT NULL,
        owner text COLLATE "C",
        fence bigint NOT NULL,
        lease_until_ms bigint NOT NULL,
        origin bytea NOT NULL,
        seal bytea NOT NULL
    ) WITH (fillfactor = 70)""",
    "CREATE UNIQUE INDEX nvm_runs_key ON nvm_runs (tenant, program_name, key) WHERE key IS NOT NULL",
    "CREATE INDEX nvm_runs_running ON nvm_runs (no) WHERE status = 'RUNNING'",
    "CREATE INDEX nvm_runs_held ON nvm_runs (owner) WHERE status = 'SUSPENDED' AND owner IS NOT NULL",
    "CREATE INDEX nvm_runs_timer ON nvm_runs (wake_at_ms) WHERE status = 'SUSPENDED' AND wake_at_ms > 0",
    "CREATE INDEX nvm_runs_parent ON nvm_runs (parent, no) WHERE parent IS NOT NULL",
    "CREATE INDEX nvm_runs_tenant ON nvm_runs (tenant, no)",
    "CREATE INDEX nvm_runs_program ON nvm_runs (program_name, no)",
    "CREATE INDEX nvm_runs_status ON nvm_runs (status, no)",
    # `run` is nvm_runs.no. It is no foreign key: checking one locks the run's row in every append, which writes it. The
    # trigger below looks instead.
    "CREATE SEQUENCE nvm_segments_n",
    "SELECT nextval('nvm_segments_n')",  # from here on its last value is one that was handed out
    """CREATE TABLE nvm_segments (
        n bigint PRIMARY KEY DEFAULT nextval('nvm_segments_n'),
        run bigint NOT NULL,
        seq bigint NOT NULL,
        digests bytea NOT NULL,
        facts bytea NOT NULL,
        payloads bytea
    )""",
    "ALTER SEQUENCE nvm_segments_n OWNED BY nvm_segments.n",
    "CREATE UNIQUE INDEX nvm_segments_at ON nvm_segments (run, seq)",
    """CREATE TABLE nvm_blobs (
        n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        digest bytea NOT NULL UNIQUE,
        body bytea NOT NULL
    )""",
    """CREATE TABLE nvm_mail (
        n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        run bigint NOT NULL REFERENCES nvm_runs (no),
        mail_id text COLLATE "C" NOT NULL,
        kind text COLLATE "C" NOT NULL,
        body bytea NOT NULL,
        posted_at_ms bigint NOT NULL,
        answer bytea,
        seal bytea NOT NULL,
        UNIQUE (run, mail_id)
    )""",
    "CREATE INDEX nvm_mail_open ON nvm_mail (run, n) WHERE answer IS NULL",
    """CREATE TABLE nvm_actions (
        key text COLLATE "C" PRIMARY KEY,
        digest text COLLATE "C" NOT NULL,
        run_id text COLLATE "C" NOT NULL,
        seal bytea NOT NULL
    )""",
    """CREATE TABLE nvm_policies (
        n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        hash text COLLATE "C" NOT NULL UNIQUE,
        stored_at_ms bigint NOT NULL,
        body bytea NOT NULL
    )""",
    # One row per counted action: an action that is dispatched again after a crash is not counted again.
    """CREATE TABLE nvm_counts (
        key text COLLATE "C" NOT NULL,
        action text COLLATE "C" NOT NULL,
        amount bigint NOT NULL,
        counted_at_ms bigint NOT NULL,
        PRIMARY KEY (key, action)
    )""",
    # The last row about a program says how it stands, the others how that came to be.
    """CREATE TABLE nvm_pauses (
        n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text COLLATE "C" NOT NULL,
        program text COLLATE "C" NOT NULL,
        paused bigint NOT NULL,
        reason text NOT NULL,
        by_whom text NOT NULL,
        at_ms bigint NOT NULL
    )""",
    # One row per open store. Its owner locks it in every commit, and whoever takes a run from that owner does: so
    # nobody loses a run in the middle of a commit, and no row of another table is locked for that. `commits` tells
    # others that something was written; another `epoch` than before tells the owner that something was taken.
    # `appended`, `settled` and `lent` number its last transactions, so that it can ask whether they were committed.
    "CREATE SEQUENCE nvm_epochs",
    """CREATE TABLE nvm_writers (
        owner text COLLATE "C" PRIMARY KEY,
        commits bigint NOT NULL DEFAULT 0,
        epoch bigint NOT NULL DEFAULT nextval('nvm_epochs'),
        appended bigint NOT NULL DEFAULT 0,
        settled bigint NOT NULL DEFAULT 0,
        lent bigint NOT NULL DEFAULT 0,
        seen timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 10)""",
    # For operators: one row per entry. Programs read nvm_segments.
    r"""CREATE VIEW nvm_entries AS
        SELECT r.run_id, s.seq + f.place - 1 AS seq, f.facts::json ->> 'type' AS type, f.facts
        FROM nvm_segments s JOIN nvm_runs r ON r.no = s.run,
            unnest(string_to_array(convert_from(s.facts, 'UTF8'), E'\n')) WITH ORDINALITY AS f(facts, place)""",
    # --- guards: append-only means that the database itself refuses, whoever asks -----------------------------------
    """CREATE FUNCTION nvm_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% of % is refused: it is append-only', TG_OP, TG_TABLE_NAME USING ERRCODE = '23001';
        END $$""",
    *(
        f"""CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION nvm_refuse()"""
        for table in _APPEND_ONLY
    ),
    """CREATE TRIGGER nvm_runs_kept BEFORE DELETE OR TRUNCATE ON nvm_runs
        FOR EACH STATEMENT EXECUTE FUNCTION nvm_refuse()""",
    """CREATE TRIGGER nvm_runs_origin BEFORE UPDATE OF
        no, run_id, tenant, program_hash, program_name, key, inputs_digest, parent, created_at_ms, origin
        ON nvm_runs FOR EACH STATEMENT EXECUTE FUNCTION nvm_refuse()""",
    # Neither a gap nor an overlap can be written, nor an entry of no run: a segment begins where the one before ends.
    """CREATE FUNCTION nvm_consecutive() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM added a WHERE a.seq <> coalesce(
                (SELECT s.seq + length(s.digests) / 32 FROM nvm_segments s
                    WHERE s.run = a.run AND s.seq < a.seq ORDER BY s.seq DESC LIMIT 1), 0)
                OR a.seq = 0 AND NOT EXISTS (SELECT FROM nvm_runs r WHERE r.no = a.run))
            THEN
                RAISE EXCEPTION 'a segment begins where the one before it ends' USING ERRCODE = '23001';
            END IF;
            RETURN NULL;
        END $$""",
    """CREATE TRIGGER nvm_segments_consecutive AFTER INSERT ON nvm_segments
        REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION nvm_consecutive()""",
    # A tool that was lent a transaction writes its own tables.
    """CREATE FUNCTION nvm_not_lent() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF current_setting('nvm.lent', true) = 'on' THEN
                RAISE EXCEPTION 'a tool cannot write %', TG_TABLE_NAME USING ERRCODE = '42501';
            END IF;
            RETURN NULL;
        END $$""",
    *(
        f"""CREATE TRIGGER {table}_not_lent BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION nvm_not_lent()"""
        for table in _TABLES
    ),
)

GUARDED = (
    *((table, f"{table}_append_only") for table in _APPEND_ONLY),
    *((table, f"{table}_not_lent") for table in _TABLES),
    ("nvm_runs", "nvm_runs_kept"),
    ("nvm_runs", "nvm_runs_origin"),
    ("nvm_segments", "nvm_segments_consecutive"),
)
"""(table, trigger) of every guard."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (_M0001_JOURNAL,)
VERSION = len(MIGRATIONS)
