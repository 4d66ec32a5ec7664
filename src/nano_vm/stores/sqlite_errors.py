"""What a SQLite error means for the user, in our codes."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TypeAlias

from nano_vm.errors import NanoVMError, StoreError
from nano_vm.stores.rules import unpaired_surrogate

# By the beginning of the extended name; the first that matches decides.
_MEANINGS: tuple[tuple[str, str, str, str], ...] = (
    ("SQLITE_BUSY", "STORE_LOCKED", "is locked by another process", "try again, or end what holds it"),
    ("SQLITE_LOCKED", "STORE_LOCKED", "is locked by another connection", "try again"),
    ("SQLITE_FULL", "STORE_FULL", "cannot grow: the disk is full", "free some space and try again"),
    (
        "SQLITE_IOERR_SHMSIZE",
        "STORE_FULL",
        "cannot grow: the disk is full",
        "free some space and try again",
    ),
    ("SQLITE_READONLY", "STORE_READ_ONLY", "cannot be written", "make the file and its directory writable"),
    ("SQLITE_PERM", "STORE_READ_ONLY", "cannot be accessed", "check the permissions of the file"),
    ("SQLITE_CORRUPT", "STORE_DAMAGED", "is damaged", "restore it from a back-up"),
    # Our statements are fixed: one that makes no sense to the database has met a schema that was changed.
    ("SQLITE_ERROR", "STORE_DAMAGED", "has a schema that was changed", "restore it from a back-up"),
    ("SQLITE_NOTADB", "STORE_DAMAGED", "is damaged", "restore it from a back-up"),
    (
        "SQLITE_CANTOPEN",
        "STORE_IO",
        "cannot be opened",
        "check that the directory exists and can be written",
    ),
    ("SQLITE_TOOBIG", "STORE_IO", "cannot take a value of that size", "pass a reference to the data"),
)


# What the sqlite3 module raises; a damaged schema can make its own message undecodable, and text may be none of UTF-8.
Failure: TypeAlias = sqlite3.Error | UnicodeError
FAILURES = (sqlite3.Error, UnicodeError)


def translate(error: Failure, path: Path) -> NanoVMError:
    """Our error for one of the sqlite3 module; its name is kept in `facts["sqlite"]`."""
    if isinstance(error, UnicodeEncodeError):
        return unpaired_surrogate()
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    facts = {"path": str(path), "sqlite": name}
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return StoreError("STORE_CLOSED", "the store is closed", help="open a new store", facts=facts)
    for prefix, code, what, help in _MEANINGS:
        if name.startswith(prefix):
            return StoreError(code, f"the database `{path}` {what}", help=help, facts=facts)
    # Some damage shows as a schema or a value that SQL cannot make sense of.
    if isinstance(error, UnicodeError) or "malformed" in str(error) or "decode to UTF-8" in str(error):
        return StoreError(
            "STORE_DAMAGED",
            f"the database `{path}` is damaged",
            help="restore it from a back-up",
            facts=facts,
        )
    return StoreError(
        "STORE_IO",
        f"reading or writing the database `{path}` failed: {name}",
        help="check the disk, and `nano-vm doctor`",
        facts=facts,
    )
