"""The database itself refuses what would rewrite history, whoever asks."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from nano_vm import canonical
from nano_vm.journal.port import BLOB_BYTES_MIN, Mail
from nano_vm.stores.migrations import MIGRATIONS
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import NOW, Draft, refusal, settle


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    with SqliteStore(path) as store:
        for run_id in ("r1", "r2"):
            draft = Draft(run_id, tenant=run_id)
            large = b'"' + b"x" * BLOB_BYTES_MIN + b'"'
            store.create(draft.record, draft.entries(2) + draft.entries(1, large))
            store.post(run_id, Mail(mail_id="m", kind="event", body=b"{}", posted_at_ms=NOW))
        body = b'{"name":"p"}'
        store.bind_action("key", "sha256:1", "r1")
        store.put_program(canonical.digest(body), "p", body, NOW)
    return path


@pytest.fixture
def operator(database: Path) -> Iterator[sqlite3.Connection]:
    con = sqlite3.connect(database, isolation_level=None)
    yield con
    con.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE nvm_segments SET facts = x'7b7d'",
        "UPDATE nvm_segments SET payloads = NULL WHERE run = 1",
        "UPDATE OR IGNORE nvm_segments SET seq = 7",
        "DELETE FROM nvm_segments WHERE run = 2",
        "REPLACE INTO nvm_segments SELECT * FROM nvm_segments",
        "REPLACE INTO nvm_segments SELECT 1, 2, 3, digests, facts, payloads FROM nvm_segments WHERE n = 2",
        "INSERT INTO nvm_segments SELECT NULL, run, 7, digests, facts, NULL FROM nvm_segments WHERE n = 1",
        "INSERT INTO nvm_segments SELECT NULL, run, 2, digests, facts, NULL FROM nvm_segments WHERE n = 1",
        "INSERT INTO nvm_segments SELECT NULL, 9, 1, digests, facts, NULL FROM nvm_segments WHERE n = 1",
        "UPDATE nvm_programs SET body = x'00'",
        "DELETE FROM nvm_programs",
        "REPLACE INTO nvm_programs SELECT NULL, hash, name, 0, x'00', seal FROM nvm_programs",
        "UPDATE nvm_blobs SET body = x'00'",
        "DELETE FROM nvm_blobs",
        "REPLACE INTO nvm_blobs SELECT n, digest, x'00' FROM nvm_blobs",
        "UPDATE nvm_actions SET digest = 'sha256:2'",
        "DELETE FROM nvm_actions",
        "REPLACE INTO nvm_actions SELECT key, 'sha256:2', run_id, seal FROM nvm_actions",
        "DELETE FROM nvm_runs",
        "UPDATE nvm_runs SET run_id = 'other' WHERE no = 1",
        "UPDATE nvm_runs SET tenant = 'other'",
        "UPDATE nvm_runs SET key = 'other'",
    ],
)
def test_history_cannot_be_rewritten_by_sql(operator: sqlite3.Connection, statement: str) -> None:
    tables = ("nvm_segments", "nvm_programs", "nvm_blobs", "nvm_runs", "nvm_actions")
    before = [operator.execute(f"SELECT * FROM {table}").fetchall() for table in tables]
    with pytest.raises(sqlite3.IntegrityError):
        operator.execute(statement)
    assert [operator.execute(f"SELECT * FROM {table}").fetchall() for table in tables] == before


def test_a_database_of_version_6_is_guarded_alike(database: Path) -> None:
    index, guard = ("nvm_segments_at", "nvm_segments_consecutive")
    before = [
        statement
        for statement in MIGRATIONS[0]
        if statement.split()[:4] == ["CREATE", "UNIQUE", "INDEX", index] or statement.split()[2] == guard
    ]
    assert len(before) == 2
    con = sqlite3.connect(database, isolation_level=None)
    for statement in (f"DROP TRIGGER {guard}", f"DROP INDEX {index}", *before, "PRAGMA user_version=6"):
        con.execute(statement)
    SqliteStore(database).close()
    for statement in (
        "INSERT INTO nvm_segments SELECT NULL, run, 2, digests, facts, NULL FROM nvm_segments WHERE n = 1",
        "REPLACE INTO nvm_segments SELECT 1, 2, 3, digests, facts, payloads FROM nvm_segments WHERE n = 2",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            con.execute(statement)
    con.close()
    with SqliteStore(database) as store:
        assert store.integrity() == []
        assert [len(store.read(run_id)) for run_id in ("r1", "r2")] == [3, 3]


def test_a_row_that_was_numbered_by_hand_is_found(database: Path, operator: sqlite3.Connection) -> None:
    operator.execute(
        "INSERT INTO nvm_segments SELECT -1, run, 3, digests, facts, NULL FROM nvm_segments WHERE n = 1"
    )
    with SqliteStore(database) as store:
        assert "segments" in {problem.partition(":")[0] for problem in store.integrity()}


def test_operators_read_one_row_per_entry(operator: sqlite3.Connection) -> None:
    rows = operator.execute(
        "SELECT run_id, seq, type, facts FROM nvm_entries ORDER BY run_id, seq"
    ).fetchall()
    assert [row[:3] for row in rows] == [(run, seq, "TimerFired") for run in ("r1", "r2") for seq in range(3)]
    assert canonical.is_canonical(rows[0][3].encode())


def test_a_blob_is_stored_once_per_content(operator: sqlite3.Connection) -> None:
    assert operator.execute("SELECT count(*) FROM nvm_blobs").fetchone() == (1,)


@pytest.mark.parametrize(
    ("statement", "area"),
    [
        ("DROP TRIGGER nvm_segments_no_update", "schema"),
        ("UPDATE nvm_runs SET status = 'SUCCESS'", "records"),
        ("UPDATE nvm_runs SET head = 'sha256:0'", "records"),
        ("UPDATE nvm_runs SET fence = fence + 1", "records"),
        ("UPDATE nvm_runs SET owner = 'somebody'", "records"),
        ("UPDATE nvm_runs SET lease_until_ms = 5", "ownership"),
        ("UPDATE nvm_meta SET value = 77", "ownership"),
        ("DELETE FROM nvm_meta", "ownership"),
        ("UPDATE nvm_mail SET body = x'31'", "mail"),
        ("UPDATE nvm_mail SET answer = x'31'", "mail"),
        ("UPDATE nvm_mail SET run = 77 WHERE run = 1", "references"),
        ("UPDATE nvm_names SET name = 'q'", "programs"),
        ("UPDATE nvm_names SET hash = 'sha256:1'", "programs"),
    ],
)
def test_what_sql_can_change_is_found(
    database: Path, operator: sqlite3.Connection, statement: str, area: str
) -> None:
    operator.execute(statement)
    with SqliteStore(database) as store:
        assert {problem.partition(":")[0] for problem in store.integrity()} >= {area}


def test_rows_removed_past_the_guards_are_found(database: Path, operator: sqlite3.Connection) -> None:
    for table in ("nvm_blobs", "nvm_segments"):
        operator.execute(f"DROP TRIGGER {table}_no_delete")
    operator.execute("DELETE FROM nvm_blobs")
    with SqliteStore(database) as store:
        assert {"schema", "segments"} <= {problem.partition(":")[0] for problem in store.integrity()}
    operator.execute("DELETE FROM nvm_segments WHERE run = 1")
    operator.execute("DROP TRIGGER nvm_runs_no_delete")
    operator.execute("DELETE FROM nvm_runs WHERE no = 2")
    with SqliteStore(database) as store:
        assert "references" in {problem.partition(":")[0] for problem in store.integrity()}


def test_text_that_is_not_unicode_is_refused_and_disturbs_nobody(tmp_path: Path) -> None:
    lone = "with\ud800surrogate"
    with SqliteStore(tmp_path / "journal.db") as store:
        good, bad = Draft("good", store.owner), Draft("bad", store.owner, key=lone)

        async def both() -> None:
            pending = [store.create(good.record, good.entries(1)), store.create(bad.record, bad.entries(1))]
            await settle(pending[0])
            with refusal("VALUE_STRING"):
                await settle(pending[1])

        asyncio.run(both())
        assert len(store.read("good")) == 1
        for look in (lambda: store.record(lone), lambda: store.find_key("default", "refund", lone)):
            with refusal("VALUE_STRING"):
                look()
        with refusal("VALUE_STRING"):
            store.post("good", Mail(mail_id=lone, kind="event", body=b"{}", posted_at_ms=NOW))
