"""A store as one tenant sees it: runs of others do not exist.

The filter is part of the queries of the store below (`tenant = ?`), not of what is done with their answers: what
another tenant has cannot be listed, read, claimed, resumed, verified, or collided with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from nano_vm.errors import CapabilityDeniedError, NotFoundError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import (
    DEFAULT_TENANT,
    Durable,
    JournalStore,
    Mail,
    Pause,
    RunQuery,
    RunRecord,
    RunUpdate,
    Transaction,
    check_tenant,
    qualified,
)

_KNOWN_MAX = 100_000
# What stores have beside the port, and the engine asks for.
_BESIDE_THE_PORT = frozenset(
    {
        "alone",
        "await_expected",
        "compact",
        "driven",
        "expect",
        "expect_no_more",
        "identity",
        "path",
        "volatile",
    }
)


class TenantStore:
    """A `JournalStore` that holds the runs of one tenant.

    Args:
        store: the store that holds everybody's.
        closes: whether closing this one closes it.
        tenant: 1 to 100 letters, digits, `_`, `.` and `-`.

    Raises:
        InputError: TENANT.
    """

    def __init__(self, store: JournalStore, tenant: str, *, closes: bool = False) -> None:
        check_tenant(tenant)
        self.closes = closes
        self.store = store
        self.tenant = tenant
        self._known: set[str] = set()  # a run's tenant never changes

    def __getattr__(self, name: str) -> Any:
        if name in _BESIDE_THE_PORT:
            return getattr(self.store, name)
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "alone":
            self.store.alone = value  # type: ignore[attr-defined]
        else:
            object.__setattr__(self, name, value)

    def _own(self, run_id: str) -> str:
        """The run's full id. Raises NotFoundError RUN_NOT_FOUND for the runs of others, as for those that do not
        exist."""
        run_id = qualified(run_id, self.tenant)
        if run_id not in self._known:
            self.store.record(run_id, self.tenant)
            if len(self._known) < _KNOWN_MAX:
                self._known.add(run_id)
        return run_id

    @property
    def owner(self) -> str:
        return self.store.owner

    @property
    def shared(self) -> bool:
        return self.store.shared

    # --- journal ----------------------------------------------------------------------------------------------
    def create(self, record: RunRecord, entries: Sequence[Entry]) -> Durable:
        if record.tenant != self.tenant:
            raise CapabilityDeniedError("CAPABILITY_DENIED", f"this store is that of tenant `{self.tenant}`")
        return self.store.create(record, entries)

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> Durable:
        # Only the owner has the fence, and it became so by way of `create` or `claim`.
        return self.store.append(run_id, fence, entries, update)

    def annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> Durable:
        return self.store.annex(self._own(run_id), build)

    def read(
        self, run_id: str, start: int = 0, limit: int | None = None, tenant: str | None = None
    ) -> list[Entry]:
        return self.store.read(qualified(run_id, self.tenant), start, limit, self.tenant)

    def tail(
        self, cursor: int, limit: int = 1_000, tenant: str | None = None
    ) -> tuple[int, list[tuple[str, Entry]]]:
        return self.store.tail(cursor, limit, self.tenant)

    # --- records ----------------------------------------------------------------------------------------------
    def holding(self, fragment: bytes) -> list[str]:
        found = []
        for run_id in self.store.holding(fragment):
            try:
                found.append(self._own(run_id))
            except NotFoundError:
                continue  # somebody else's
        return found

    def record(self, run_id: str, tenant: str | None = None) -> RunRecord:
        return self.store.record(qualified(run_id, self.tenant), self.tenant)

    def records(self, query: RunQuery) -> list[RunRecord]:
        after = None if query.after is None else self._own(query.after)
        parent = qualified(query.parent, self.tenant) if query.parent else query.parent
        return self.store.records(
            msgspec.structs.replace(query, tenant=self.tenant, after=after, parent=parent)
        )

    def find_key(self, tenant: str, program_name: str, key: str) -> RunRecord | None:
        return self.store.find_key(self.tenant, program_name, key)

    # --- programs ---------------------------------------------------------------------------------------------
    def put_program(
        self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int, tenant: str = DEFAULT_TENANT
    ) -> None:
        self.store.put_program(program_hash, name, canonical_bytes, now_ms, self.tenant)

    def program(self, program_hash: str) -> bytes:
        return self.store.program(program_hash)

    def program_named(self, name: str, tenant: str = DEFAULT_TENANT) -> str | None:
        return self.store.program_named(name, self.tenant)

    def programs(self, tenant: str | None = None) -> list[tuple[str, str, int]]:
        return self.store.programs(self.tenant)

    # --- ownership --------------------------------------------------------------------------------------------
    def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
        return self.store.claim(self._own(run_id), now_ms, known)

    def renew(self, run_ids: Sequence[str], now_ms: int) -> list[str]:
        return self.store.renew(run_ids, now_ms)

    def release(self, run_id: str, fence: int) -> None:
        self.store.release(run_id, fence)

    def claimable(self, now_ms: int, limit: int = 100, tenant: str | None = None) -> list[str]:
        return self.store.claimable(now_ms, limit, self.tenant)

    # --- actions and policies ---------------------------------------------------------------------------------
    def bind_action(self, key: str, digest: str, run_id: str) -> None:
        self.store.bind_action(key, digest, run_id)  # the key is made of the tenant, among others

    def put_policy(self, policy_hash: str, body: bytes, now_ms: int) -> None:
        self.store.put_policy(policy_hash, body, now_ms)

    def policy(self, policy_hash: str) -> bytes:
        return self.store.policy(policy_hash)

    def mark_pause(self, pause: Pause) -> None:
        self.store.mark_pause(msgspec.structs.replace(pause, tenant=self.tenant))

    def pauses(self, tenant: str | None = None) -> list[Pause]:
        return self.store.pauses(self.tenant)

    def counted(self, keys: Sequence[str], action: str) -> list[int]:
        return self.store.counted(keys, action)

    def count(self, action: str, wanted: Sequence[tuple[str, int, int]], now_ms: int) -> list[int] | None:
        return self.store.count(action, wanted, now_ms)

    # --- mail -------------------------------------------------------------------------------------------------
    def post(self, run_id: str, mail: Mail) -> None:
        self.store.post(self._own(run_id), mail)

    def mail(self, run_id: str) -> list[Mail]:
        return self.store.mail(self._own(run_id))

    def answer(self, run_id: str, mail_id: str, answer: bytes) -> None:
        self.store.answer(self._own(run_id), mail_id, answer)

    def answered(self, run_id: str, mail_id: str) -> bytes | None:
        return self.store.answered(self._own(run_id), mail_id)

    def changed(self) -> bool:
        return self.store.changed()

    # --- the rest ---------------------------------------------------------------------------------------------
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return self.store.transaction()

    def integrity(self) -> list[str]:
        return self.store.integrity()

    def close(self) -> None:
        if self.closes:
            self.store.close()
