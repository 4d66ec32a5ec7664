"""Whatever lies at the path, the store opens it, or says what is wrong and leaves it as it was."""

import gc
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import nano_vm
from nano_vm.errors import InputError, NanoVMError
from nano_vm.stores.migrations import VERSION
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import Draft

SOURCE = str(Path(nano_vm.__file__).parent.parent)


def code_of_opening(path: Path | str) -> str:
    refused = None
    try:
        SqliteStore(path, busy_timeout_ms=200).close()
    except NanoVMError as error:
        refused = error
    assert refused is None or refused.help
    return "opened" if refused is None else refused.code


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    with SqliteStore(path) as store:
        for number in range(20):
            draft = Draft(f"r{number}")
            store.create(draft.record, draft.entries(20))
    return path


def test_a_missing_file_and_an_empty_one_become_databases(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    for name in ("empty.db", "missing.db"):
        assert code_of_opening(tmp_path / name) == "opened"
        with SqliteStore(tmp_path / name) as store:
            assert store.integrity() == []


def test_the_file_says_whose_it_is_and_in_which_version(database: Path) -> None:
    con = sqlite3.connect(database)
    assert con.execute("PRAGMA application_id").fetchone()[0].to_bytes(4, "big") == b"nVM1"
    assert con.execute("PRAGMA user_version").fetchone() == (VERSION,)
    assert con.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    con.close()


@pytest.mark.parametrize("content", [b"hello\n" * 100, b"x", b"SQLite format 2\0" + b"\0" * 200])
def test_a_file_that_is_not_a_database_is_foreign_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    assert code_of_opening(path) == "STORE_FOREIGN"
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_somebody_elses_database_is_foreign_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    for setup in ("CREATE TABLE t (a)", "PRAGMA application_id=7", "PRAGMA user_version=3"):
        con = sqlite3.connect(path)
        con.execute(setup)
        con.commit()
        con.close()
        before = path.read_bytes()
        if before:
            assert code_of_opening(path) == "STORE_FOREIGN"
            assert path.read_bytes() == before


def test_a_newer_database_is_refused(database: Path) -> None:
    con = sqlite3.connect(database)
    con.execute(f"PRAGMA user_version={VERSION + 1}")
    con.close()
    with pytest.raises(NanoVMError) as caught:
        SqliteStore(database)
    assert caught.value.code == "STORE_NEWER"
    assert (caught.value.facts["version"], caught.value.facts["known"]) == (VERSION + 1, VERSION)


@pytest.mark.parametrize("keep", [10, 50, 99, 100, 4096, 8192, 20_000])
def test_a_truncated_database_is_damaged(database: Path, keep: int) -> None:
    os.truncate(database, keep)
    assert code_of_opening(database) == ("STORE_FOREIGN" if keep < 16 else "STORE_DAMAGED")


def test_a_database_that_lost_its_mark_is_damaged(database: Path) -> None:
    for offset in (0, 5, 68, 71):
        content = bytearray(database.read_bytes())
        content[offset] ^= 0x20
        broken = database.with_name(f"broken-{offset}.db")
        broken.write_bytes(content)
        assert code_of_opening(broken) == "STORE_DAMAGED"


def test_directories_and_names_that_are_none_are_refused(tmp_path: Path) -> None:
    assert code_of_opening(tmp_path) == "STORE_IO"
    assert code_of_opening(tmp_path / "no" / "such" / "journal.db") == "STORE_IO"
    assert code_of_opening(":memory:") == "USAGE"
    for path in (5, None, b"runs.db", "", "a\0b"):
        with pytest.raises(InputError) as wrong:
            SqliteStore(path)  # type: ignore[arg-type]
        assert wrong.value.code == "USAGE"
    for timeout in ("x", 1.5, -1, None):
        with pytest.raises(InputError) as wrong:
            SqliteStore(tmp_path / "runs.db", busy_timeout_ms=timeout)  # type: ignore[arg-type]
        assert wrong.value.code == "USAGE"
    assert not (tmp_path / "runs.db").exists()
    with pytest.raises(NanoVMError) as caught:
        SqliteStore(tmp_path / "x.db", durability="most")  # type: ignore[arg-type]
    assert caught.value.code == "USAGE"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_is_named_as_such(database: Path) -> None:
    database.chmod(0o400)
    database.parent.chmod(0o500)
    try:
        assert code_of_opening(database) == "STORE_READ_ONLY"
    finally:
        database.parent.chmod(0o700)


def mounted(options: list[str], place: Path) -> bool:
    tool = shutil.which("mount")
    done = tool and subprocess.run([tool, *options, str(place)], capture_output=True, check=False)
    return bool(done) and done.returncode == 0


def unmount(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True, capture_output=True)


def test_a_read_only_file_system_is_named_as_such(database: Path, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    if os.geteuid() != 0 or not mounted(["-t", "tmpfs", "none"], place):
        pytest.skip("cannot mount here")
    try:
        shutil.copy(database, place / "journal.db")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, capture_output=True)
        assert code_of_opening(place / "journal.db") == "STORE_READ_ONLY"
        assert code_of_opening(place / "new.db") == "STORE_READ_ONLY"
    finally:
        unmount(place)


def test_a_full_disk_fails_the_append_and_leaves_the_rest_intact(tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    if os.geteuid() != 0 or not mounted(["-t", "tmpfs", "-o", "size=1m", "none"], place):
        pytest.skip("cannot mount here")
    try:
        with SqliteStore(place / "journal.db") as store:
            draft = Draft("r1", store.owner)
            store.create(draft.record, draft.entries(1))
            durable = 1

            def fill() -> None:
                nonlocal durable
                while durable < 2_000:
                    store.append("r1", 1, draft.entries(2, b'"' + b"x" * 5_000 + b'"'))
                    durable += 2

            with pytest.raises(NanoVMError) as caught:
                fill()
            assert caught.value.code == "STORE_FULL"
            assert caught.value.retryable
            assert [entry.seq for entry in store.read("r1")] == list(range(durable))
        with SqliteStore(place / "journal.db") as store:
            assert len(store.read("r1")) == durable
            assert store.integrity() == []
    finally:
        unmount(place)


OPENER = """
import sys
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import Draft
print("ready", flush=True)
sys.stdin.readline()
with SqliteStore(sys.argv[1], "normal", busy_timeout_ms=60_000) as store:
    draft = Draft(sys.argv[2], store.owner)
    store.create(draft.record, draft.entries(1))
    for _ in range(5):
        store.append(sys.argv[2], 1, draft.entries(2))
"""


def test_many_processes_open_the_same_new_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(path), f"r{number}"],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    for opener in openers:
        opener.communicate()
        assert opener.returncode == 0
    with SqliteStore(path) as store:
        assert [len(store.read(f"r{number}")) for number in range(6)] == [11] * 6
        assert store.integrity() == []


def test_a_store_that_is_dropped_closes_its_connections(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "runs.db")
    writing = store._writer.con
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError):
        writing.execute("SELECT 1")
