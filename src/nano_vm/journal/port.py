"""The port that every store implements (SPEC §6). The conformance suite in `nano_vm.testing` is its other
half.

A store keeps five things: programs by hash, run records, journal entries, mail for runs that another process
owns, and blobs (its own business: payloads above `BLOB_BYTES_MIN` are stored once, by content). It never
interprets a journal; it makes it durable, in order, with one writer at a time.

Calls that write the journal return None when the entries are already durable, else an awaitable that
finishes when they are: a store may gather the appends of many runs into one commit. All times are epoch
milliseconds and come from the caller, so that a store has no clock of its own.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

import msgspec

from nano_vm.errors import InputError
from nano_vm.journal.entry import Entry

BLOB_BYTES_MIN = 64 * 1024
LEASE_MS = 30_000
MAIL_MAX = 256  # unanswered messages per run

DEFAULT_TENANT = "default"
TENANT_SEPARATOR = "::"  # between a tenant and the name of one of its runs
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

Durable: TypeAlias = Awaitable[None] | None


def check_tenant(tenant: object) -> None:
    """Raises InputError TENANT for what cannot be the name of a tenant."""
    if type(tenant) is not str or not _TENANT.fullmatch(tenant):
        raise InputError(
            "TENANT", "a tenant has 1 to 100 letters, digits, `_`, `.` or `-`", help="for example `acme`"
        )


def qualified(run_id: str, tenant: str) -> str:
    """A run's id as the store has it: names of tenants other than the default one begin with the tenant's, so that no
    tenant can take a name from another, or find out whether it is taken."""
    if tenant == DEFAULT_TENANT or run_id.startswith(tenant + TENANT_SEPARATOR):
        return run_id
    return f"{tenant}{TENANT_SEPARATOR}{run_id}"


class RunRecord(msgspec.Struct, kw_only=True, gc=False):
    """The row an operator sees. Everything but ownership is a projection of the journal, kept for listing.

    `waits` are the facts of what a SUSPENDED run waits for (see `Waiting.to_dict`); `wake_at_ms` is when its
    next timer is due, 0 without one. `length` and `head` describe the journal as of the last status change.
    """

    run_id: str
    tenant: str = "default"
    program_hash: str
    program_name: str
    key: str | None = None  # the caller's idempotency key; unique per tenant and program name
    inputs_digest: str = ""
    parent: str | None = None
    status: str = "RUNNING"
    outcome: str | None = None
    waits: list[dict[str, Any]] = []
    wake_at_ms: int = 0
    created_at_ms: int
    updated_at_ms: int
    length: int = 0
    head: str = ""
    owner: str | None = None  # who may append; None when nobody does
    fence: int = 0  # rises with every owner
    lease_until_ms: int = 0


class RunUpdate(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """What changes in a record together with an append. `release` gives the run up in the same commit."""

    status: str
    outcome: str | None = None
    waits: list[dict[str, Any]] = []
    wake_at_ms: int = 0
    updated_at_ms: int
    length: int
    head: str
    release: bool = False


class RunQuery(msgspec.Struct, kw_only=True, frozen=True):
    """Filters of `records`: newest first, `limit` rows, starting after `after` (a run id) when given."""

    tenant: str | None = None
    status: str | None = None
    program_name: str | None = None
    parent: str | None = None  # children of this run; "" for top-level runs only
    after: str | None = None
    limit: int = 100


class Mail(msgspec.Struct, kw_only=True, frozen=True):
    """A message for a run: `kind` is "event", "cancel" or "resolve"; `body` is canonical JSON.

    `mail_id` is chosen by the sender and unique per run: posting the same one again is a no-op when the body
    is equal and a ConflictError MAIL_CONFLICT when not. `answer` is set once the run has dealt with it.
    """

    mail_id: str
    kind: str
    body: bytes
    posted_at_ms: int
    answer: bytes | None = None


class Pause(msgspec.Struct, kw_only=True, frozen=True):
    """A word about a program, named by its name or hash: whether runs of it may begin, who said so, and why."""

    tenant: str
    program: str
    paused: bool
    reason: str = ""
    by: str = ""
    at_ms: int = 0


class Transaction(Protocol):
    """An open store transaction handed to a `transactional` tool."""

    @property
    def connection(self) -> Any:
        """The database connection (sqlite3.Connection for SQLite); only DML, no commit, no rollback."""

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> None:
        """Add entries to be committed together with what was written through `connection`."""


class JournalStore(Protocol):
    """Append-only journals with single ownership.

    Raises (all methods): StoreError - STORE_LOCKED, STORE_FULL, STORE_READ_ONLY, STORE_DAMAGED,
    STORE_CLOSED, STORE_IO.
    """

    @property
    def owner(self) -> str:
        """Identity of this store object as an owner of runs; other processes can tell whether it lives."""

    @property
    def shared(self) -> bool:
        """Whether other processes may have a hand in its runs: then nothing may keep leases from being renewed."""

    # --- journal ------------------------------------------------------------------------------------------
    def create(self, record: RunRecord, entries: Sequence[Entry]) -> Durable:
        """Add a run and its first entries in one commit. The record's owner, fence 1 and lease are set by
        the store when `record.owner` equals `self.owner`; a record without an owner is free to be claimed.

        Raises: ConflictError RUN_EXISTS (facts: run_id) when the run id or its idempotency key is taken.
        """

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> Durable:
        """Add entries at their `seq`. An entry equal to the stored one (same digest) is a no-op; another one
        at the same place, a gap, or a fence that is no longer current is a hard stop.

        Raises: ConflictError JOURNAL_CONFLICT or LEASE_LOST (facts: run_id, seq); NotFoundError
        RUN_NOT_FOUND.
        """

    def annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> Durable:
        """Append to a run that nobody owns, without claiming it: `build(length, head)` is called inside the
        write transaction with the journal's true end. For refusals recorded after a terminal status.

        Raises: ConflictError LEASE_LOST when somebody owns the run.
        """

    # Where a `tenant` is given, runs of others are as if they did not exist.

    def read(
        self, run_id: str, start: int = 0, limit: int | None = None, tenant: str | None = None
    ) -> list[Entry]:
        """Entries from `start` in order of `seq`, at most `limit`. An unknown run is NotFoundError
        RUN_NOT_FOUND."""

    def tail(
        self, cursor: int, limit: int = 1_000, tenant: str | None = None
    ) -> tuple[int, list[tuple[str, Entry]]]:
        """Entries of all runs in the order they were committed, after `cursor` (0: from the start): the new
        cursor and (run id, entry) pairs. For live views, and for the store's log (`journal.storelog`), which is a
        function of this order: it is the same whenever it is asked."""

    def holding(self, fragment: bytes) -> list[str]:
        """Ids of the runs that have an entry whose facts hold these bytes, in the order they were created. Reads the
        whole journal: for erasures, which are rare."""

    # --- records ------------------------------------------------------------------------------------------
    def record(self, run_id: str, tenant: str | None = None) -> RunRecord: ...

    def records(self, query: RunQuery) -> list[RunRecord]: ...

    def find_key(self, tenant: str, program_name: str, key: str) -> RunRecord | None: ...

    # --- programs -----------------------------------------------------------------------------------------
    def put_program(
        self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int, tenant: str = DEFAULT_TENANT
    ) -> None:
        """Keep a program; a no-op when it is there. To the tenant the name then means this program."""

    def program(self, program_hash: str) -> bytes:
        """Canonical bytes of a program. Raises NotFoundError PROGRAM_NOT_FOUND."""

    def program_named(self, name: str, tenant: str = DEFAULT_TENANT) -> str | None:
        """Hash of the program that the tenant last put under `name`."""

    def programs(self, tenant: str | None = None) -> list[tuple[str, str, int]]:
        """(name, hash, stored_at_ms) of every program, by name, newest last; of a tenant: of those that its
        names mean now."""

    # --- ownership ----------------------------------------------------------------------------------------
    def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
        """Become the owner: the new fence, or None while a live owner's lease runs. Succeeds at once when
        the owner is provably dead on this host.

        Args:
            known: the run's record as the caller has just read it. Where nobody owned the run then, a store may write
                the claim with what the run adds next. Whoever comes between, by way of another store, has the run, and
                that append raises LEASE_LOST, or JOURNAL_CONFLICT where the journal has grown (facts: unclaimed):
                nothing has been added, and nothing is owned.
        """

    def renew(self, run_ids: Sequence[str], now_ms: int) -> list[str]:
        """Extend leases; returns the run ids that are no longer ours."""

    def release(self, run_id: str, fence: int) -> None:
        """Give a run up without appending. A no-op when it is no longer ours."""

    def claimable(self, now_ms: int, limit: int = 100, tenant: str | None = None) -> list[str]:
        """Runs that somebody should take up: RUNNING without a live owner, or SUSPENDED with a due timer,
        unread mail or an owner that has died, top-level runs only, oldest first."""

    # --- actions ------------------------------------------------------------------------------------------
    def bind_action(self, key: str, digest: str, run_id: str) -> None:
        """Bind an action's key to what it is, durably and for ever; a no-op when it is bound to the same.

        Raises: ConflictError ACTION_CONFLICT (facts: run_id, the run that bound it) when it is bound to another
            digest.
        """

    # --- policies -----------------------------------------------------------------------------------------
    def put_policy(self, policy_hash: str, body: bytes, now_ms: int) -> None:
        """Keep the canonical bytes of a policy; a no-op when they are there. Raises InputError USAGE when the hash is
        not theirs."""

    def policy(self, policy_hash: str) -> bytes:
        """Canonical bytes of a policy. Raises NotFoundError POLICY_NOT_FOUND."""

    def counted(self, keys: Sequence[str], action: str) -> list[int]:
        """What all actions but this one have added to each key."""

    def count(self, action: str, wanted: Sequence[tuple[str, int, int]], now_ms: int) -> list[int] | None:
        """Add amounts to keys, durably and at once, unless one of them would exceed its maximum: then nothing is
        added, and None comes back. `wanted` holds (key, amount, maximum). The same action is counted once. Gives what
        all other actions had added to each key."""

    # --- pauses -------------------------------------------------------------------------------------------
    def mark_pause(self, pause: Pause) -> None:
        """Keep a word about a program, durably. The last one counts; none is forgotten."""

    def pauses(self, tenant: str | None = None) -> list[Pause]:
        """The programs that are paused, in the order in which they were."""

    # --- mail ---------------------------------------------------------------------------------------------
    def post(self, run_id: str, mail: Mail) -> None:
        """Leave a message, durably. Raises ConflictError MAIL_CONFLICT, InputError MAIL_FULL."""

    def mail(self, run_id: str) -> list[Mail]:
        """Unanswered messages, oldest first."""

    def answer(self, run_id: str, mail_id: str, answer: bytes) -> None: ...

    def answered(self, run_id: str, mail_id: str) -> bytes | None:
        """The answer, or None while there is none."""

    def changed(self) -> bool:
        """Whether another process may have written since the last call: cheap, for polling mail and
        leases."""

    # --- the rest -----------------------------------------------------------------------------------------
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A short transaction of its own; commits on exit, rolls back on an exception."""

    def integrity(self) -> list[str]:
        """What is wrong with the store's own structures (not with journals); empty when sound."""

    def close(self) -> None:
        """Flush, release ownership of nothing (runs stay claimable because the owner is gone), close
        files."""
