"""The schema of the SQLite store, as numbered migrations.

Migration N takes a database of version N-1 (`PRAGMA user_version`) to version N. A published migration is
never edited: a change is a new one.
"""

from __future__ import annotations

from nano_vm.stores.migrations import (
    m0001_journal,
    m0002_actions,
    m0003_policies,
    m0004_tenants,
    m0005_listing,
    m0006_pauses,
    m0007_ends,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    m0001_journal.STATEMENTS,
    m0002_actions.STATEMENTS,
    m0003_policies.STATEMENTS,
    m0004_tenants.STATEMENTS,
    m0005_listing.STATEMENTS,
    m0006_pauses.STATEMENTS,
    m0007_ends.STATEMENTS,
)
VERSION = len(MIGRATIONS)
