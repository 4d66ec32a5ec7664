"""A back-up is the database of one moment, and becomes the database again."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import Draft, refusal, settle


def test_a_backup_holds_what_was_durable_and_can_be_restored(tmp_path: Path) -> None:
    path, copy = tmp_path / "journal.db", tmp_path / "backup.db"
    with SqliteStore(path) as store:
        draft = Draft("r1", store.owner)
        entries = draft.entries(4)
        store.create(draft.record, entries[:2])
        store.backup(copy)
        store.append("r1", 1, entries[2:])
        assert len(store.read("r1")) == 4
    with SqliteStore(copy) as store:
        assert store.read("r1") == entries[:2]
        assert store.integrity() == []
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copy(copy, path)
    with SqliteStore(path) as store:
        assert store.read("r1") == entries[:2]
        assert store.claimable(0) == ["r1"]


def test_a_backup_replaces_nothing_and_leaves_no_pieces(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "journal.db") as store:
        store.backup(tmp_path / "backup.db")
        with refusal("STORE_IO"):
            store.backup(tmp_path / "backup.db")
        with refusal("STORE_IO"):
            store.backup(tmp_path / "no such" / "backup.db")
        left = {file.name for file in tmp_path.iterdir()}
    assert left == {"journal.db", "journal.db-wal", "journal.db-shm", "backup.db"}


def test_writers_go_on_during_a_backup(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))

        async def write() -> None:
            for _ in range(30):
                await settle(store.append("r1", 1, draft.entries(2)))

        loop = asyncio.get_running_loop()
        backups = [
            loop.run_in_executor(None, store.backup, tmp_path / f"backup-{number}.db") for number in range(3)
        ]
        await asyncio.gather(write(), *backups)

    with SqliteStore(tmp_path / "journal.db", busy_timeout_ms=60_000) as store:
        asyncio.run(scenario(store))
        whole = store.read("r1")
    for number in range(3):
        with SqliteStore(tmp_path / f"backup-{number}.db") as copy:
            assert copy.integrity() == []
            found = copy.read("r1")
            assert found == whole[: len(found)]
            assert len(found) % 2 == 1  # appends of two, whole


def test_a_backup_is_told_to_be_there_when_its_name_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was synced and its directory was not: a power loss could take the name."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    synced: list[bool] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(place)):
            synced.append((place / "backup.db").exists())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with SqliteStore(tmp_path / "journal.db") as store:
        store.backup(place / "backup.db")
    assert synced[-1:] == [True]
