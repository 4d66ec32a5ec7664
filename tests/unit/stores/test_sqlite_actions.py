"""What an author's idempotency key was used for cannot be changed unnoticed."""

import sqlite3
from pathlib import Path

import pytest

from nano_vm.errors import StoreError
from nano_vm.stores.sqlite import SqliteStore


@pytest.mark.parametrize("column", ["key", "digest", "run_id"])
def test_a_changed_action_is_found(tmp_path: Path, column: str) -> None:
    path = tmp_path / "journal.db"
    with SqliteStore(path) as store:
        store.bind_action("k1", "sha256:1", "r1")
        assert store.integrity() == []
    con = sqlite3.connect(path)
    con.execute("DROP TRIGGER nvm_actions_no_update")
    con.execute(f"UPDATE nvm_actions SET {column} = 'other'")
    con.commit()
    con.close()
    with SqliteStore(path) as store:
        assert "actions" in {problem.partition(":")[0] for problem in store.integrity()}
        if column != "key":
            with pytest.raises(StoreError) as caught:
                store.bind_action("k1", "sha256:1", "r1")
            assert caught.value.code == "STORE_DAMAGED"


def test_a_header_that_names_another_version_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    SqliteStore(path).close()
    con = sqlite3.connect(path)
    con.execute("PRAGMA user_version=1")
    con.close()
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        SqliteStore(path)
    assert caught.value.code == "STORE_DAMAGED"
    assert path.read_bytes() == before


def test_a_schema_without_one_of_our_columns_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    SqliteStore(path).close()
    con = sqlite3.connect(path)
    con.execute("ALTER TABLE nvm_names RENAME COLUMN hash TO hush")
    con.close()
    with SqliteStore(path) as store, pytest.raises(StoreError) as caught:
        store.program_named("p")
    assert caught.value.code == "STORE_DAMAGED"
