"""Opening a database file: whose it is, in what state, and bringing its schema up to date."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from pathlib import Path

from nano_vm.errors import InputError, NanoVMError, StoreError
from nano_vm.stores.migrations import MIGRATIONS, VERSION
from nano_vm.stores.sqlite_errors import FAILURES, Failure, translate

APPLICATION_ID = 0x6E564D31  # "nVM1": what `file` and we see in the header of our databases
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_RETRY_PAUSE_S = 0.002

# The log is copied into the file every so many pages, SQLite's own default. Once it has wrapped it is overwritten in
# place, and syncing that is cheaper than syncing a file that grows; a busy page is still copied once for many commits.
_CHECKPOINT_PAGES = 1_000
_CACHE_KIB = 16_384


def connect(
    path: Path, *, synchronous: str, busy_timeout_ms: int, factory: type[sqlite3.Connection] | None = None
) -> sqlite3.Connection:
    """A connection with our settings."""
    con = sqlite3.connect(
        path,
        isolation_level=None,  # transactions are ours alone
        check_same_thread=False,  # every connection has its own lock
        cached_statements=256,
        factory=factory or sqlite3.Connection,
    )
    try:
        for pragma in (
            f"busy_timeout={busy_timeout_ms}",
            f"synchronous={synchronous}",
            # macOS: fsync alone does not reach the disk.
            f"fullfsync={'ON' if synchronous == 'FULL' else 'OFF'}",
            f"checkpoint_fullfsync={'ON' if synchronous == 'FULL' else 'OFF'}",
            "secure_delete=ON",
            "cell_size_check=ON",
            "trusted_schema=OFF",
            "recursive_triggers=ON",
            f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
            f"cache_size=-{_CACHE_KIB}",
        ):
            con.execute("PRAGMA " + pragma)
    except BaseException:
        con.close()
        raise
    return con


def open_database(path: Path, *, busy_timeout_ms: int) -> sqlite3.Connection:
    """A first connection to our database in its present version; a missing or empty file becomes one.

    Many processes may do this at the same time: the schema appears in one exclusive transaction.

    Raises:
        InputError: USAGE for a name that SQLite does not take as a file.
        StoreError: STORE_FOREIGN, STORE_NEWER, STORE_DAMAGED, STORE_READ_ONLY, STORE_LOCKED, STORE_FULL,
            STORE_IO.
    """
    is_new = _look_at_file(path)
    deadline = time.monotonic() + busy_timeout_ms / 1000
    con: sqlite3.Connection | None = None
    try:
        con = connect(path, synchronous="FULL", busy_timeout_ms=busy_timeout_ms)
        version = _check_identity(con, path)
        _use_wal(con, path, deadline)
        if version < VERSION:
            _migrate(con, path)
            if is_new:
                sync_directory(path.parent)
        _check_size(con, path)
        return con
    except BaseException as error:
        if con is not None:
            con.close()
        if isinstance(error, FAILURES):
            raise _explain(error, path) from error
        raise


def expected_schema() -> dict[str, str]:
    """The SQL of each of our tables, indexes, views and triggers, as SQLite keeps it."""
    con = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statements in MIGRATIONS:
            for statement in statements:
                con.execute(statement)
        return schema_of(con)
    finally:
        con.close()


def schema_of(con: sqlite3.Connection) -> dict[str, str]:
    rows = con.execute(
        "SELECT name, sql FROM sqlite_master WHERE substr(name, 1, 4) = 'nvm_' AND sql IS NOT NULL"
    )
    return dict(rows.fetchall())


def refuse_no_file(path: Path) -> None:
    """Refuse what cannot be a database, before anything is made beside it or waited for: a directory, a pipe, a device.
    What is not there, or cannot be looked for, is somebody else's business.

    Raises:
        StoreError: STORE_IO for a directory, STORE_FOREIGN.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISDIR(mode):
        raise _refused("STORE_IO", path, "is a directory", "name a file in it")
    if not stat.S_ISREG(mode):
        raise _refused("STORE_FOREIGN", path, "is no regular file", "name another; this one is unchanged")


def _look_at_file(path: Path) -> bool:
    """Refuse what is plainly not ours before SQLite touches it; tells whether the file has still to be
    made."""
    if path.name in ("", ":memory:") or "\0" in str(path):
        raise InputError("USAGE", f"`{path}` is not the name of a file", help="use MemoryStore() instead")
    refuse_no_file(path)
    if not path.parent.is_dir():
        raise _refused("STORE_IO", path, "is in a directory that does not exist", "make the directory first")
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return True
    except OSError as error:
        code = "STORE_READ_ONLY" if isinstance(error, PermissionError) else "STORE_IO"
        raise _refused(
            code, path, f"cannot be read: {error.strerror}", "check the permissions of the file"
        ) from error
    if not head:
        return True
    if not head.startswith(_MAGIC):
        ours = head[68:72] == APPLICATION_ID.to_bytes(4, "big")
        raise _damaged(path) if ours else _foreign(path)
    if len(head) < _HEADER_BYTES:
        raise _damaged(path)
    return False


def _check_identity(con: sqlite3.Connection, path: Path) -> int:
    """The version of the schema, 0 for an empty database."""
    con.execute("BEGIN")
    try:
        application = con.execute("PRAGMA application_id").fetchone()[0]
        version: int = con.execute("PRAGMA user_version").fetchone()[0]
        names = {row[0] for row in con.execute("SELECT name FROM sqlite_master")}
    finally:
        con.execute("ROLLBACK")
    ours = "nvm_segments" in names
    if application != APPLICATION_ID:
        if not names and application == 0 and version == 0:
            return 0
        raise _damaged(path) if ours else _foreign(path)
    if version > VERSION:
        raise StoreError(
            "STORE_NEWER",
            f"the database `{path}` has schema version {version}, this nano-vm knows {VERSION}",
            help="update nano-vm",
            facts={"path": str(path), "version": version, "known": VERSION},
        )
    if not ours or version < 1:
        raise _damaged(path)
    return version


def _use_wal(con: sqlite3.Connection, path: Path, deadline: float) -> None:
    # SQLite does not wait here when two connections change the mode at once: it fails, so that they cannot
    # deadlock.
    while True:
        try:
            mode = con.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_PAUSE_S)
    if mode != "wal":
        raise _refused(
            "STORE_IO",
            path,
            "is on a file system without shared memory, which the write-ahead log needs",
            "keep it on a local disk",
        )


def _migrate(con: sqlite3.Connection, path: Path) -> None:
    con.execute("BEGIN EXCLUSIVE")
    try:
        version: int = con.execute("PRAGMA user_version").fetchone()[0]  # somebody may have been faster
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                con.execute(statement)
        if version < VERSION:
            con.execute(f"PRAGMA application_id={APPLICATION_ID}")
            con.execute(f"PRAGMA user_version={VERSION}")
        con.execute("COMMIT")
    except BaseException as error:
        if con.in_transaction:
            con.execute("ROLLBACK")
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
            raise _damaged(path) from error  # it is not of the version that its header names
        raise


def _check_size(con: sqlite3.Connection, path: Path) -> None:
    """A file that is shorter than its header says, with nothing left in the log, has lost its end."""
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size:
        return
    size = path.stat().st_size
    pages = con.execute("PRAGMA page_count").fetchone()[0]
    if size < pages * con.execute("PRAGMA page_size").fetchone()[0]:
        raise _damaged(path)


def is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _explain(error: Failure, path: Path) -> NanoVMError:
    name = getattr(error, "sqlite_errorname", "")
    writable = os.access(path if path.exists() else path.parent, os.W_OK) and os.access(path.parent, os.W_OK)
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR")) and not writable:
        return _refused(
            "STORE_READ_ONLY", path, "cannot be written", "make the file and its directory writable"
        )
    if name == "SQLITE_NOTADB":
        return _damaged(path)
    return translate(error, path)


def sync_directory(directory: Path) -> None:
    """The name of a new file must survive a power loss as well as its contents."""
    if os.name != "posix":
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refused(code: str, path: Path, what: str, help: str) -> StoreError:
    return StoreError(code, f"the database `{path}` {what}", help=help, facts={"path": str(path)})


def _foreign(path: Path) -> StoreError:
    return _refused(
        "STORE_FOREIGN", path, "was not made by nano-vm", "name another file; this one is unchanged"
    )


def _damaged(path: Path) -> StoreError:
    return _refused("STORE_DAMAGED", path, "is damaged", "restore it from a back-up")
