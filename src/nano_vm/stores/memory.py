"""The in-memory store: journals of this process, for tests and pure computation."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.journal.entry import GENESIS, Entry, SealedEntries, first_seq
from nano_vm.journal.port import (
    DEFAULT_TENANT,
    LEASE_MS,
    Mail,
    Pause,
    RunQuery,
    RunRecord,
    RunUpdate,
    Transaction,
)
from nano_vm.stores import rules
from nano_vm.stores.memory_tool import ToolDatabase

__all__ = ["MemoryJournalStore", "MemoryStore"]

_NOBODY = None  # a fence that no caller holds


class _Run(msgspec.Struct, eq=False, gc=False):
    """A journal and its record. Most are written once and never looked at: so what holds them is made when it is
    needed, and the garbage collector, which would look at every one of them again and again, knows of none."""

    no: int
    record: RunRecord
    open_fence: int | None  # the fence that may append
    mail: dict[str, Mail]
    lock: threading.RLock
    length: int = 0
    _entries: list[Entry] | None = None
    _compact: SealedEntries | list[SealedEntries] | None = None  # after these; until somebody reads

    @property
    def entries(self) -> list[Entry]:
        held = self._entries
        if held is None or self._compact is not None:
            with self.lock:
                held = self._entries
                if held is None:
                    held = self._entries = []
                compact, self._compact = self._compact, None
                if isinstance(compact, SealedEntries):
                    held += compact
                elif compact is not None:
                    for each in compact:
                        held += each
        return held

    def extend(self, entries: Sequence[Entry]) -> None:
        """To be called with the lock held."""
        if type(entries) is SealedEntries:
            compact = self._compact
            if compact is None:
                self._compact = entries
            elif isinstance(compact, list):
                compact.append(entries)
            else:
                self._compact = [compact, entries]
        else:
            held = self.entries
            held += entries
        self.length += len(entries)

    def digests(self, start: int, stop: int) -> list[str]:
        return [entry.digest for entry in self.entries[start:stop]]

    def apply(self, update: RunUpdate) -> None:
        record = self.record
        record.status = update.status
        record.outcome = update.outcome
        if update.waits or record.waits:
            record.waits = list(update.waits)
        record.wake_at_ms = update.wake_at_ms
        record.updated_at_ms = update.updated_at_ms
        record.length = update.length
        record.head = update.head
        if update.release:
            self.disown()

    def disown(self) -> None:
        self.record.owner = None
        self.record.lease_until_ms = 0
        self.open_fence = _NOBODY

    def copy_of_record(self) -> RunRecord:
        return msgspec.structs.replace(self.record, waits=list(self.record.waits))


class MemoryJournalStore:
    """A `JournalStore` in memory: every call is finished when it returns.

    It is its only owner. One event loop and any number of threads may use it.
    """

    compact = True  # takes `SealedEntries` as they are
    volatile = (
        True  # nothing here outlives the process, so nothing is gained by appending before every effect
    )

    def __init__(self) -> None:
        self._owner = "memory-" + secrets.token_hex(6)
        self._runs: dict[str, _Run] = {}
        self._keys: dict[tuple[str, str, str], str] = {}
        self._order: list[
            _Run | int
        ] = []  # of commits: the run and the number of its new entries, alternating
        self._programs: dict[str, tuple[str, int, bytes]] = {}
        self._names: dict[tuple[str, str], str] = {}  # by tenant and name
        self._actions: dict[str, tuple[str, str]] = {}
        self._policies: dict[str, bytes] = {}
        self._pauses: dict[tuple[str, str], Pause] = {}
        self._counts: dict[str, dict[str, int]] = {}  # key -> action -> amount
        self._totals: dict[str, int] = {}  # of the amounts under a key
        self._lock = threading.RLock()
        self._expected: dict[str, tuple[int, Callable[[], None]]] = {}
        self._tools = ToolDatabase()
        self._closed = False

    def __enter__(self) -> MemoryJournalStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def shared(self) -> bool:
        return False

    # --- journal ------------------------------------------------------------------------------------------
    def expect(self, run_id: str, appear: Callable[[], None]) -> None:
        """A run is under way in this thread that has not been created yet. Before anybody in this thread is told
        anything, `appear` is called, which is to create it."""
        self._expected[run_id] = threading.get_ident(), appear

    def expect_no_more(self, run_id: str) -> None:
        self._expected.pop(run_id, None)

    def await_expected(self) -> None:
        """Have all runs appear that are expected in this thread."""
        here = threading.get_ident()
        for run_id, (thread, appear) in list(self._expected.items()):
            if thread == here:
                del self._expected[run_id]
                appear()

    def create(self, record: RunRecord, entries: Sequence[Entry]) -> None:
        if self._closed:
            raise rules.closed()
        run_id = record.run_id
        owned = record.owner is not None
        if owned and record.owner != self._owner:
            rules.check_owner(record, self._owner)
        if type(entries) is not SealedEntries or entries.seq:
            rules.check_start(run_id, entries)
        held: RunRecord = record.__copy__()  # type: ignore[attr-defined] # what is stored is nobody else's
        held.waits = list(record.waits)
        held.fence, held.lease_until_ms = (1, record.created_at_ms + LEASE_MS) if owned else (0, 0)
        with self._lock:
            if run_id in self._runs:
                raise rules.run_exists(run_id, run_id)
            if record.key is not None:
                key = (record.tenant, record.program_name, record.key)
                if key in self._keys:
                    raise rules.run_exists(run_id, self._keys[key])
                self._keys[key] = run_id
            fence = held.fence if owned else _NOBODY
            run = self._runs[run_id] = _Run(len(self._runs), held, fence, {}, self._lock)
            run.extend(entries)
            self._order += (run, len(entries))

    def append(
        self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None = None
    ) -> None:
        with self._lock:
            run = self._runs.get(run_id)
            # Nearly always sealed entries that follow: they are consecutive when their ends are.
            count = len(entries)
            if (
                run is not None
                and run.open_fence == fence
                and count
                and first_seq(entries) == run.length
                and (type(entries) is SealedEntries or entries[-1].seq + 1 - count == run.length)
            ):
                run.extend(entries)
                order = self._order
                if order[-2] is run:  # runs that go on alone do not make the list grow
                    order[-1] += count  # type: ignore[operator]
                else:
                    order += (run, count)
            else:
                run = self._owned(run_id, fence, entries)
                self._extend(run, rules.admit(run_id, run.length, entries, run.digests))
            if update is not None:
                run.apply(update)

    def annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> None:
        with self._lock:
            run = self._run(run_id)
            if run.record.owner is not None:
                raise rules.lease_lost(run_id)
            length = run.length
            entries = build(length, run.entries[-1].digest if length else GENESIS)
            if rules.admit(run_id, length, entries, run.digests) is not entries:
                raise rules.journal_conflict(run_id, entries[0].seq, "an annex begins at the end")
            self._extend(run, entries)

    def read(
        self, run_id: str, start: int = 0, limit: int | None = None, tenant: str | None = None
    ) -> list[Entry]:
        entries = self._run(run_id, tenant).entries
        start = max(start, 0)
        return entries[start:] if limit is None else entries[start : start + max(limit, 0)]

    def tail(
        self, cursor: int, limit: int = 1_000, tenant: str | None = None
    ) -> tuple[int, list[tuple[str, Entry]]]:
        self._check_open()
        found: list[tuple[str, Entry]] = []
        ends: dict[int, int] = {}
        position, passed = 0, cursor
        with self._lock:
            for at in range(0, len(self._order), 2):
                run, count = self._order[at], self._order[at + 1]
                assert isinstance(run, _Run)
                assert isinstance(count, int)
                first = ends.get(run.no, 0)
                ends[run.no] = first + count
                if position + count > cursor:
                    skip = max(cursor - position, 0)
                    passed = position + count
                    if tenant in (None, run.record.tenant):
                        new = run.entries[first + skip : first + count][: limit - len(found)]
                        found += [(run.record.run_id, entry) for entry in new]
                        passed = position + skip + len(new)
                position += count
                if len(found) >= limit:
                    break
        return passed, found

    def holding(self, fragment: bytes) -> list[str]:
        self._check_open()
        with self._lock:
            return [
                run_id
                for run_id, run in self._runs.items()
                if any(fragment in entry.facts for entry in run.entries)
            ]

    # --- records ------------------------------------------------------------------------------------------
    def record(self, run_id: str, tenant: str | None = None) -> RunRecord:
        return self._run(run_id, tenant).copy_of_record()

    def records(self, query: RunQuery) -> list[RunRecord]:
        self._check_open()
        end = None if query.after is None else self._run(query.after).no
        found: list[RunRecord] = []
        for run in reversed(list(self._runs.values())[:end]):
            record = run.record
            if len(found) >= query.limit:
                break
            if (
                query.tenant in (None, record.tenant)
                and query.status in (None, record.status)
                and query.program_name in (None, record.program_name)
                and (query.parent is None or query.parent == (record.parent or ""))
            ):
                found.append(run.copy_of_record())
        return found

    def find_key(self, tenant: str, program_name: str, key: str) -> RunRecord | None:
        self._check_open()
        run_id = self._keys.get((tenant, program_name, key))
        return None if run_id is None else self.record(run_id)

    # --- programs -----------------------------------------------------------------------------------------
    def put_program(
        self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int, tenant: str = DEFAULT_TENANT
    ) -> None:
        """As the port says. Raises InputError USAGE when the hash is not that of the bytes."""
        self._check_open()
        if self._names.get((tenant, name)) == program_hash:
            return
        if canonical.digest(canonical_bytes) != program_hash:
            raise InputError(
                "USAGE", f"`{program_hash}` is not the hash of the program", facts={"name": name}
            )
        with self._lock:
            self._programs.setdefault(program_hash, (name, now_ms, canonical_bytes))
            self._names[tenant, name] = program_hash

    def program(self, program_hash: str) -> bytes:
        self._check_open()
        held = self._programs.get(program_hash)
        if held is None:
            raise rules.program_not_found(program_hash)
        return held[2]

    def program_named(self, name: str, tenant: str = DEFAULT_TENANT) -> str | None:
        self._check_open()
        return self._names.get((tenant, name))

    def programs(self, tenant: str | None = None) -> list[tuple[str, str, int]]:
        self._check_open()
        if tenant is not None:
            return [
                (name, program, self._programs[program][1])
                for (whose, name), program in sorted(self._names.items())
                if whose == tenant
            ]
        rows = [(name, program, stored_at) for program, (name, stored_at, _) in self._programs.items()]
        return sorted(rows, key=lambda row: row[0])  # stable: what was stored later stays later

    # --- ownership ----------------------------------------------------------------------------------------
    def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
        with self._lock:
            run = self._run(run_id)
            record = run.record
            if record.owner is not None and now_ms < record.lease_until_ms:
                return None
            record.owner = self._owner
            record.fence += 1
            record.lease_until_ms = now_ms + LEASE_MS
            run.open_fence = record.fence
            return record.fence

    def renew(self, run_ids: Sequence[str], now_ms: int) -> list[str]:
        self._check_open()
        lost: list[str] = []
        with self._lock:
            for run_id in run_ids:
                run = self._runs.get(run_id)
                if run is None or run.record.owner is None:
                    lost.append(run_id)
                else:
                    run.record.lease_until_ms = max(run.record.lease_until_ms, now_ms + LEASE_MS)
        return lost

    def release(self, run_id: str, fence: int) -> None:
        self._check_open()
        with self._lock:
            run = self._runs.get(run_id)
            if run is not None and run.open_fence == fence:
                run.disown()

    def claimable(self, now_ms: int, limit: int = 100, tenant: str | None = None) -> list[str]:
        self._check_open()
        found: list[str] = []
        for run in list(self._runs.values()):
            record = run.record
            if len(found) >= limit:
                break
            if tenant not in (None, record.tenant):
                continue
            if record.parent is not None or (record.owner is not None and now_ms < record.lease_until_ms):
                continue
            if record.status == "RUNNING" or (
                record.status == "SUSPENDED"
                and (
                    record.owner is not None
                    or 0 < record.wake_at_ms <= now_ms
                    or any(m.answer is None for m in run.mail.values())
                )
            ):
                found.append(record.run_id)
        return found

    # --- actions ------------------------------------------------------------------------------------------
    def bind_action(self, key: str, digest: str, run_id: str) -> None:
        self._check_open()
        bound, holder = self._actions.setdefault(key, (digest, run_id))
        if bound != digest:
            raise rules.action_conflict(holder)

    # --- policies -----------------------------------------------------------------------------------------
    def put_policy(self, policy_hash: str, body: bytes, now_ms: int) -> None:
        self._check_open()
        rules.check_policy(policy_hash, body)
        self._policies.setdefault(policy_hash, body)

    def policy(self, policy_hash: str) -> bytes:
        self._check_open()
        body = self._policies.get(policy_hash)
        if body is None:
            raise rules.policy_not_found(policy_hash)
        return body

    def mark_pause(self, pause: Pause) -> None:
        self._check_open()
        self._pauses.pop((pause.tenant, pause.program), None)
        self._pauses[pause.tenant, pause.program] = pause

    def pauses(self, tenant: str | None = None) -> list[Pause]:
        self._check_open()
        return [one for one in self._pauses.values() if one.paused and tenant in (None, one.tenant)]

    def counted(self, keys: Sequence[str], action: str) -> list[int]:
        self._check_not_closed()  # what is counted says nothing about runs
        with self._lock:
            totals, counts = self._totals, self._counts
            return [totals[key] - counts[key].get(action, 0) if key in totals else 0 for key in keys]

    def count(self, action: str, wanted: Sequence[tuple[str, int, int]], now_ms: int) -> list[int] | None:
        self._check_not_closed()
        so_far: list[int] = []
        with self._lock:
            totals = self._totals
            for key, amount, maximum in wanted:
                held = self._counts.get(key)
                found = 0 if held is None else totals[key] - held.get(action, 0)
                if found + amount > maximum:
                    return None
                so_far.append(found)
            for key, amount, _ in wanted:
                held = self._counts.get(key)
                if held is None:
                    held = self._counts[key] = {}
                if action not in held:
                    held[action] = amount
                    totals[key] = totals.get(key, 0) + amount
        return so_far

    # --- mail ---------------------------------------------------------------------------------------------
    def post(self, run_id: str, mail: Mail) -> None:
        with self._lock:
            run = self._run(run_id)
            held = run.mail.get(mail.mail_id)
            if held is not None:
                rules.same_mail(run_id, held, mail)
                return
            rules.check_mailbox(run_id, sum(m.answer is None for m in run.mail.values()))
            run.mail[mail.mail_id] = mail

    def mail(self, run_id: str) -> list[Mail]:
        with self._lock:
            return [mail for mail in self._run(run_id).mail.values() if mail.answer is None]

    def answer(self, run_id: str, mail_id: str, answer: bytes) -> None:
        """The first answer stands. Raises NotFoundError RUN_NOT_FOUND or MAIL_NOT_FOUND."""
        with self._lock:
            run = self._run(run_id)
            held = run.mail.get(mail_id)
            if held is None:
                raise rules.mail_not_found(run_id, mail_id)
            if held.answer is None:
                run.mail[mail_id] = msgspec.structs.replace(held, answer=answer)

    def answered(self, run_id: str, mail_id: str) -> bytes | None:
        mail = self._run(run_id).mail.get(mail_id)
        return None if mail is None else mail.answer

    def changed(self) -> bool:
        self._check_open()
        return False

    # --- the rest -----------------------------------------------------------------------------------------
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction on a SQLite database in memory that lives as long as the store. Its connection allows
        what that of the SQLite store allows, so a tool can be tested without a file."""
        self._check_open()
        return self._tools.transaction(self)

    def integrity(self) -> list[str]:
        self._check_open()
        return []

    def close(self) -> None:
        """Forget everything. A second call is a no-op."""
        self._closed = True
        self._runs, self._keys, self._order, self._programs, self._names = {}, {}, [], {}, {}
        self._tools.close()

    # --- inside -------------------------------------------------------------------------------------------
    def _check_not_closed(self) -> None:
        if self._closed:
            raise rules.closed()

    def _check_open(self) -> None:
        """What every call does first that tells anything."""
        self._check_not_closed()
        if self._expected:
            self.await_expected()

    def _run(self, run_id: str, tenant: str | None = None) -> _Run:
        run = self._runs.get(run_id)
        if run is None and self._expected:
            self.await_expected()
            run = self._runs.get(run_id)
        if run is None or (tenant is not None and run.record.tenant != tenant):
            self._check_open()
            raise rules.run_not_found(run_id)
        return run

    def _owned(self, run_id: str, fence: int, entries: Sequence[Entry]) -> _Run:
        run = self._run(run_id)
        if run.open_fence != fence or fence < 1:
            raise rules.lease_lost(run_id, entries[0].seq if entries else None)
        return run

    def _extend(self, run: _Run, entries: Sequence[Entry]) -> None:
        if entries:
            run.extend(entries)
            self._order += (run, len(entries))


MemoryStore = MemoryJournalStore
