"""The part of a store that is the same in every SQL database: everything but how entries are appended.

A store of a kind says how its queries run (`Reader`), how a transaction is written (`_write`), and what it means to
take a run from its owner (`_settled`). The SQL is here and in `rows`, `reader`, `policies` and `pauses`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from nano_vm import canonical
from nano_vm.errors import InputError, NotFoundError, StoreError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import DEFAULT_TENANT, LEASE_MS, Mail, Pause, RunQuery, RunRecord
from nano_vm.stores import pauses, policies, rules
from nano_vm.stores.owners import OwnerLock
from nano_vm.stores.reader import Reader
from nano_vm.stores.rows import Connection, change_owner, find_mail, run_number

T = TypeVar("T")

forks = 0  # how often this process is a fork: cheaper to look at than the process id


def _forked() -> None:
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class SqlStore:
    """Records, programs, ownership, limits and mail of a `JournalStore`, in a SQL database."""

    def __init__(self, lock: OwnerLock, reader: Reader) -> None:
        self._lock = lock
        self._reader = reader
        self._forks = forks
        self._closed = False
        # The runs that engines of this process drive now; each has a mark of its own.
        self.driven: set[int] = set()

    # --- what a kind of database says in its own way --------------------------------------------------------
    def _write(self, work: Callable[[Connection], T], *alone: str, synced: bool = True) -> T:
        """Run `work` in a transaction, after what has been gathered before. No two transactions with a name in common
        in `alone` overlap. Not `synced`, the commit outlives the process, but a machine that loses its power may forget
        it. Raises: what `work` raises (nothing is written then), and StoreError."""
        raise NotImplementedError

    def _settled(self, con: Connection, run_id: str, wanted: Callable[[RunRecord], bool]) -> RunRecord | None:
        """The record of a run whose owner can write no more before this transaction ends; None when it is not
        `wanted`. Raises NotFoundError RUN_NOT_FOUND."""
        raise NotImplementedError

    def _disowned(self, run_id: str) -> None:
        """The run has another owner once this transaction is committed."""
        raise NotImplementedError

    def _lasting(self, key: tuple[str, ...], read: Callable[[], T]) -> T:
        """`read()` of what hardly ever changes and every new engine asks for; a kind of database that can tell whether
        anybody has written since need not read it again."""
        return read()

    def _forget_lasting(self) -> None:
        """Something of that has been written here."""

    # --------------------------------------------------------------------------------------------------------
    @property
    def owner(self) -> str:
        return self._lock.name

    @property
    def shared(self) -> bool:
        return True

    @property
    def _is_fork(self) -> bool:
        return self._forks != forks

    def _check_open(self) -> None:
        if self._closed:
            raise rules.closed()
        if self._forks != forks:
            # A connection does not cross a fork: the two processes would corrupt what they do together.
            raise rules.closed("the store was opened before a fork")

    # --- journal ------------------------------------------------------------------------------------------
    def read(
        self, run_id: str, start: int = 0, limit: int | None = None, tenant: str | None = None
    ) -> list[Entry]:
        self._check_open()
        return self._reader.read(run_id, start, limit, tenant)

    def tail(
        self, cursor: int, limit: int = 1_000, tenant: str | None = None
    ) -> tuple[int, list[tuple[str, Entry]]]:
        self._check_open()
        return self._reader.tail(cursor, limit, tenant)

    def holding(self, fragment: bytes) -> list[str]:
        self._check_open()
        return self._reader.holding(fragment)

    # --- records ------------------------------------------------------------------------------------------
    def record(self, run_id: str, tenant: str | None = None) -> RunRecord:
        self._check_open()
        return self._reader.record(run_id, tenant)

    def records(self, query: RunQuery) -> list[RunRecord]:
        self._check_open()
        return self._reader.records(query)

    def find_key(self, tenant: str, program_name: str, key: str) -> RunRecord | None:
        self._check_open()
        return self._reader.find_key(tenant, program_name, key)

    # --- programs -----------------------------------------------------------------------------------------
    def put_program(
        self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int, tenant: str = DEFAULT_TENANT
    ) -> None:
        """As the port says. Raises InputError USAGE when the hash is not that of the bytes."""
        self._check_open()
        if self.program_named(name, tenant) != program_hash:
            self._put_program(program_hash, name, canonical_bytes, now_ms, tenant)

    def keep_program(self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int) -> None:
        """Keep a program as `put_program` does, but leave what the name means as it is."""
        self._check_open()
        try:
            self._reader.program(program_hash)
        except NotFoundError:
            self._put_program(program_hash, name, canonical_bytes, now_ms, None)

    def _put_program(
        self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int, tenant: str | None
    ) -> None:
        if canonical.digest(canonical_bytes) != program_hash:
            raise InputError(
                "USAGE", f"`{program_hash}` is not the hash of the program", facts={"name": name}
            )
        seal = rules.seal_program(program_hash, name, now_ms)

        def work(con: Connection) -> None:
            if con.execute("SELECT 1 FROM nvm_programs WHERE hash = ?1", (program_hash,)).fetchone() is None:
                con.execute(
                    "INSERT INTO nvm_programs (hash, name, stored_at_ms, body, seal) VALUES (?1,?2,?3,?4,?5)",
                    (program_hash, name, now_ms, canonical_bytes, seal),
                )
            if tenant == DEFAULT_TENANT:
                con.execute(
                    "INSERT INTO nvm_names VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET hash = ?2",
                    (name, program_hash),
                )
            elif tenant is not None:
                con.execute(
                    """INSERT INTO nvm_tenant_names VALUES (?1, ?2, ?3)
                        ON CONFLICT (tenant, name) DO UPDATE SET hash = ?3""",
                    (tenant, name, program_hash),
                )

        self._write(work, f"program {program_hash}", f"name {tenant} {name}")
        self._forget_lasting()

    def program(self, program_hash: str) -> bytes:
        self._check_open()
        return self._lasting(("program", program_hash), lambda: self._reader.program(program_hash))

    def program_named(self, name: str, tenant: str = DEFAULT_TENANT) -> str | None:
        self._check_open()
        return self._lasting(("name", tenant, name), lambda: self._reader.program_named(name, tenant))

    def programs(self, tenant: str | None = None) -> list[tuple[str, str, int]]:
        self._check_open()
        return self._reader.programs(tenant)

    # --- ownership ----------------------------------------------------------------------------------------
    def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
        self._check_open()
        self._lock.hold()

        def work(con: Connection) -> int | None:
            record = self._settled(con, run_id, lambda record: self._is_free(record, now_ms))
            if record is None:
                return None
            fence = record.fence + 1
            change_owner(con, record, self._lock.name, fence, now_ms + LEASE_MS)
            self._disowned(run_id)
            return fence

        return self._write(work, synced=False)

    def _is_free(self, record: RunRecord, now_ms: int) -> bool:
        owner = record.owner
        return owner is None or now_ms >= record.lease_until_ms or self._lock.is_dead(owner)

    def release(self, run_id: str, fence: int) -> None:
        def is_ours(record: RunRecord) -> bool:
            return (record.owner, record.fence) == (self._lock.name, fence)

        def work(con: Connection) -> None:
            try:
                record = self._settled(con, run_id, is_ours)
            except NotFoundError:
                return
            if record is not None:
                change_owner(con, record, None, fence, 0)
                self._disowned(run_id)

        self._write(work)

    def claimable(self, now_ms: int, limit: int = 100, tenant: str | None = None) -> list[str]:
        self._check_open()
        dead: dict[str, bool] = {}
        found: list[str] = []
        for run_id, owner, lease_until_ms in self._reader.takeable(now_ms, tenant):
            if len(found) >= limit:
                break
            if owner is not None and now_ms < lease_until_ms:
                if owner not in dead:
                    dead[owner] = self._lock.is_dead(owner)
                if not dead[owner]:
                    continue
            found.append(run_id)
        return found

    # --- actions ------------------------------------------------------------------------------------------
    def bind_action(self, key: str, digest: str, run_id: str) -> None:
        def work(con: Connection) -> tuple[str, str]:
            sql = "SELECT digest, run_id, seal FROM nvm_actions WHERE key = ?1"
            held = con.execute(sql, (key,)).fetchone()
            if held is None:
                seal = rules.seal_action(key, digest, run_id)
                con.execute("INSERT INTO nvm_actions VALUES (?1,?2,?3,?4)", (key, digest, run_id, seal))
                return digest, run_id
            bound, holder, seal = held
            if rules.seal_action(key, bound, holder) != seal:
                raise rules.damaged("what an action's key is bound to was changed", key=key)
            return bound, holder

        bound, holder = self._write(work, f"action {key}")
        if bound != digest:
            raise rules.action_conflict(holder)

    # --- policies -----------------------------------------------------------------------------------------
    def put_policy(self, policy_hash: str, body: bytes, now_ms: int) -> None:
        rules.check_policy(policy_hash, body)
        self._write(lambda con: policies.put_policy(con, policy_hash, body, now_ms), f"policy {policy_hash}")

    def policy(self, policy_hash: str) -> bytes:
        self._check_open()
        return self._reader.query(lambda con: policies.find_policy(con, policy_hash))

    def mark_pause(self, pause: Pause) -> None:
        self._write(lambda con: pauses.mark(con, pause), "pauses")
        self._forget_lasting()

    def pauses(self, tenant: str | None = None) -> list[Pause]:
        self._check_open()
        key = ("pauses",) if tenant is None else ("pauses", tenant)
        return list(self._lasting(key, lambda: self._reader.query(lambda con: pauses.find(con, tenant))))

    def counted(self, keys: Sequence[str], action: str) -> list[int]:
        self._check_open()
        return self._reader.query(lambda con: policies.counted(con, keys, action))

    def count(self, action: str, wanted: Sequence[tuple[str, int, int]], now_ms: int) -> list[int] | None:
        return self._write(
            lambda con: policies.count(con, action, wanted, now_ms), *(f"count {key}" for key, _, _ in wanted)
        )

    # --- mail ---------------------------------------------------------------------------------------------
    def post(self, run_id: str, mail: Mail) -> None:
        def work(con: Connection) -> None:
            no = run_number(con, run_id)
            held = find_mail(con, run_id, no, mail.mail_id)
            if held is not None:
                rules.same_mail(run_id, held, mail)
                return
            count = con.execute("SELECT count(*) FROM nvm_mail WHERE run = ?1 AND answer IS NULL", (no,))
            rules.check_mailbox(run_id, count.fetchone()[0])
            con.execute(
                """INSERT INTO nvm_mail (run, mail_id, kind, body, posted_at_ms, answer, seal)
                    VALUES (?1,?2,?3,?4,?5,?6,?7)""",
                (
                    no,
                    mail.mail_id,
                    mail.kind,
                    mail.body,
                    mail.posted_at_ms,
                    mail.answer,
                    rules.seal_mail(run_id, mail),
                ),
            )

        self._write(work, f"mail {run_id}")

    def mail(self, run_id: str) -> list[Mail]:
        self._check_open()
        return self._reader.mail(run_id)

    def answer(self, run_id: str, mail_id: str, answer: bytes) -> None:
        """The first answer stands. Raises NotFoundError RUN_NOT_FOUND or MAIL_NOT_FOUND."""

        def work(con: Connection) -> None:
            no = run_number(con, run_id)
            held = find_mail(con, run_id, no, mail_id)
            if held is None:
                raise rules.mail_not_found(run_id, mail_id)
            if held.answer is not None:
                return
            done = Mail(
                mail_id=mail_id,
                kind=held.kind,
                body=held.body,
                posted_at_ms=held.posted_at_ms,
                answer=answer,
            )
            con.execute(
                "UPDATE nvm_mail SET answer = ?1, seal = ?2 WHERE run = ?3 AND mail_id = ?4",
                (answer, rules.seal_mail(run_id, done), no, mail_id),
            )

        self._write(work, f"mail {run_id}")

    def answered(self, run_id: str, mail_id: str) -> bytes | None:
        self._check_open()
        return self._reader.answered(run_id, mail_id)

    # --- inside -------------------------------------------------------------------------------------------
    def _owners_in_use(self) -> set[str]:
        try:
            return self._reader.owners_in_use()
        except StoreError:
            return {self._lock.name}  # cannot tell: keep the file, it only says that we are gone

    def _sweep(self) -> None:
        if self._lock.directory.is_dir():
            self._lock.sweep(self._owners_in_use())
