"""What an error of PostgreSQL, or of the way to it, means for the user, in our codes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg

from nano_vm.errors import InputError, NanoVMError, StoreError
from nano_vm.stores.rules import unpaired_surrogate

# By the beginning of the SQLSTATE; the first that matches decides.
_MEANINGS: tuple[tuple[str, str, str, str], ...] = (
    ("55P03", "STORE_LOCKED", "is locked by another session", "try again, or end what holds it"),
    ("40", "STORE_LOCKED", "is busy with what others write", "try again"),
    ("57014", "STORE_LOCKED", "took longer than its statement time-out", "try again"),
    ("25P04", "STORE_LOCKED", "took longer than its transaction time-out", "try again"),
    ("53100", "STORE_FULL", "cannot grow: the disk is full", "free some space and try again"),
    ("53300", "STORE_IO", "takes no more connections", "raise max_connections, or close some"),
    ("25006", "STORE_READ_ONLY", "is read-only", "connect to the primary server"),
    ("42501", "STORE_READ_ONLY", "refuses this to the user", "grant the user the rights on its schema"),
    # Our statements are fixed: one that makes no sense to the database has met a schema that was changed.
    ("42", "STORE_DAMAGED", "has a schema that was changed", "restore it from a back-up"),
    ("23", "STORE_DAMAGED", "refused a row of ours", "see `nano-vm doctor`"),
    ("XX001", "STORE_DAMAGED", "is damaged", "restore it from a back-up"),
    ("XX002", "STORE_DAMAGED", "has a damaged index", "REINDEX it, or restore it from a back-up"),
    ("28", "STORE_IO", "refuses the user or the password", "check the address, PGUSER and PGPASSWORD"),
    ("3D", "STORE_IO", "does not exist", "make it with `createdb`"),
)


# What psycopg raises; text that cannot be encoded is not its own error.
FAILURES = (psycopg.Error, UnicodeEncodeError)


def translate(error: psycopg.Error | UnicodeEncodeError, place: str) -> NanoVMError:
    """Our error for one of psycopg; its SQLSTATE is kept in `facts["sqlstate"]`. `place` names the database, without
    secrets. The driver's own message is left out: it may quote values."""
    state = getattr(error, "sqlstate", None) or ""
    facts = {"path": place, "sqlstate": state or type(error).__name__}
    for prefix, code, what, help in _MEANINGS:
        if state.startswith(prefix):
            return StoreError(code, f"the database `{place}` {what}", help=help, facts=facts)
    if isinstance(error, UnicodeEncodeError):
        return unpaired_surrogate()
    if isinstance(error, psycopg.DataError):
        return InputError(
            "USAGE",
            "a name or a key holds a character that PostgreSQL cannot keep",
            help="leave out U+0000",
            facts=facts,
        )
    if isinstance(error, psycopg.OperationalError):
        return unreachable(place, facts["sqlstate"])
    return StoreError(
        "STORE_IO",
        f"reading or writing the database `{place}` failed",
        help="see `nano-vm doctor`",
        facts=facts,
    )


@contextlib.contextmanager
def translated(place: str) -> Iterator[None]:
    """The block raises our errors for those of psycopg."""
    try:
        yield
    except FAILURES as error:
        raise translate(error, place) from error


def unreachable(place: str, state: str) -> StoreError:
    """The driver does not say whether nobody answered, or somebody refused."""
    return StoreError(
        "STORE_IO",
        f"the database `{place}` cannot be connected to",
        help="check that the server runs, the address, and that it has this database, user and password",
        facts={"path": place, "sqlstate": state},
    )
