"""Whatever is done to them, in whatever order: the memory store and each of the others give the same answers."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.port import LEASE_MS, JournalStore, Mail, RunQuery, RunRecord, RunUpdate
from nano_vm.kernel.events import TimerFired
from nano_vm.stores.memory import MemoryStore
from nano_vm.testing.store_conformance import NOW
from store_places import fresh_place, open_store

IDS = st.sampled_from(["r1", "r2", "r3", "r4"])
TIMES = st.sampled_from([NOW, NOW + 5, NOW + LEASE_MS - 1, NOW + LEASE_MS, NOW + 2 * LEASE_MS])
STATUSES = st.sampled_from(["RUNNING", "SUSPENDED", "SUCCESS"])
PAYLOADS = st.sampled_from([None, b"1", b'"' + b"x" * 70_000 + b'"'])


def sealed(run_id: str, count: int, payload: bytes | None) -> list[Entry]:
    chain = Chain(run_id)
    event = [TimerFired(at_ms=NOW, attempt=1, occurrence=n + 1, step="wait") for n in range(count)]
    return [chain.seal(one, b"s" * 16, payload) for one in event]


class StoresAgree(RuleBasedStateMachine):
    """Every rule is played on both stores; answers and refusals must be equal, owner names aside."""

    kind = "sqlite"
    mails = Bundle("mails")

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.place = fresh_place(self.kind, self.directory)
        self.stores: list[JournalStore] = [MemoryStore(), open_store(self.place, "normal")]

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.directory)

    def both(self, call: Any) -> Any:
        answers = []
        for store in self.stores:
            try:
                answer = call(store)
            except NanoVMError as error:
                answer = (error.code, error.facts)
            answers.append(self.plain(answer, store))
        assert answers[0] == answers[1]
        return answers[0]

    def plain(self, answer: Any, store: JournalStore) -> Any:
        if isinstance(answer, RunRecord):
            answer.owner = answer.owner and "owner"
            return answer
        return [self.plain(one, store) for one in answer] if isinstance(answer, list) else answer

    @rule(
        run=IDS,
        owned=st.booleans(),
        count=st.integers(0, 3),
        key=st.sampled_from([None, "k1", "k2"]),
        status=STATUSES,
        parent=st.sampled_from([None, "r1"]),
        payload=PAYLOADS,
    )
    def create(
        self,
        run: str,
        owned: bool,
        count: int,
        key: str | None,
        status: str,
        parent: str | None,
        payload: bytes | None,
    ) -> None:
        def call(store: JournalStore) -> Any:
            record = RunRecord(
                run_id=run,
                program_hash="h",
                program_name="p",
                key=key,
                status=status,
                parent=parent,
                created_at_ms=NOW,
                updated_at_ms=NOW,
                owner=store.owner if owned else None,
            )
            return store.create(record, sealed(run, count, payload))

        self.both(call)

    @rule(
        run=IDS,
        fence=st.integers(0, 3),
        start=st.integers(0, 6),
        count=st.integers(0, 4),
        payload=PAYLOADS,
        status=st.none() | STATUSES,
        release=st.booleans(),
        wake=st.sampled_from([0, NOW + 5]),
    )
    def append(
        self,
        run: str,
        fence: int,
        start: int,
        count: int,
        payload: bytes | None,
        status: str | None,
        release: bool,
        wake: int,
    ) -> None:
        entries = sealed(run, start + count, payload)[start:]
        update = None
        if status is not None:
            update = RunUpdate(
                status=status,
                updated_at_ms=NOW,
                length=start + count,
                head="h",
                release=release,
                wake_at_ms=wake,
                waits=[{"kind": "timer"}] if wake else [],
            )
        self.both(lambda store: store.append(run, fence, entries, update))

    @rule(run=IDS, fence=st.integers(1, 3), payload=PAYLOADS)
    def append_at_the_end(self, run: str, fence: int, payload: bytes | None) -> None:
        def call(store: JournalStore) -> Any:
            length = len(store.read(run))
            return store.append(run, fence, sealed(run, length + 2, payload)[length:])

        self.both(call)

    @rule(run=IDS)
    def annex(self, run: str) -> None:
        def build(length: int, head: str) -> list[Entry]:
            event = TimerFired(at_ms=NOW, attempt=1, occurrence=1, step="late")
            return [Chain(run, length, head).seal(event, b"", None)]

        self.both(lambda store: store.annex(run, build))

    @rule(run=IDS, now=TIMES)
    def claim(self, run: str, now: int) -> None:
        self.both(lambda store: store.claim(run, now))

    @rule(runs=st.lists(IDS, max_size=3, unique=True), now=TIMES)
    def renew(self, runs: list[str], now: int) -> None:
        self.both(lambda store: store.renew(runs, now))

    @rule(run=IDS, fence=st.integers(0, 3))
    def release(self, run: str, fence: int) -> None:
        self.both(lambda store: store.release(run, fence))

    @rule(now=TIMES, limit=st.sampled_from([1, 100]))
    def claimable(self, now: int, limit: int) -> None:
        self.both(lambda store: store.claimable(now, limit))

    @rule(target=mails, run=IDS, mail=st.sampled_from(["m1", "m2"]), body=st.sampled_from([b"1", b"2"]))
    def post(self, run: str, mail: str, body: bytes) -> tuple[str, str]:
        letter = Mail(mail_id=mail, kind="event", body=body, posted_at_ms=NOW)
        self.both(lambda store: store.post(run, letter))
        return run, mail

    @rule(mail=mails, body=st.sampled_from([b"a", b"b"]))
    def answer(self, mail: tuple[str, str], body: bytes) -> None:
        self.both(lambda store: store.answer(*mail, body))
        self.both(lambda store: store.answered(*mail))

    @rule(key=st.sampled_from(["a1", "a2"]), digest=st.sampled_from(["sha256:1", "sha256:2"]), run=IDS)
    def bind_action(self, key: str, digest: str, run: str) -> None:
        self.both(lambda store: store.bind_action(key, digest, run))

    @rule(name=st.sampled_from(["p", "q"]), body=st.sampled_from([b"{}", b"[]"]))
    def put_program(self, name: str, body: bytes) -> None:
        self.both(
            lambda store: store.put_program(
                canonical.digest(name.encode() + body), name, name.encode() + body, NOW
            )
        )
        self.both(lambda store: (store.programs(), store.program_named(name)))

    @rule(
        status=st.none() | STATUSES,
        parent=st.sampled_from([None, "", "r1"]),
        after=st.none() | IDS,
        limit=st.integers(0, 3),
    )
    def records(self, status: str | None, parent: str | None, after: str | None, limit: int) -> None:
        query = RunQuery(status=status, parent=parent, after=after, limit=limit)
        self.both(lambda store: store.records(query))

    @rule(key=st.sampled_from(["k1", "k2"]))
    def find_key(self, key: str) -> None:
        self.both(lambda store: store.find_key("default", "p", key))

    @rule()
    def reopen(self) -> None:
        # Only what is free may be compared afterwards: a new store object is a new owner.
        if any(record.owner for record in self.stores[1].records(RunQuery())):
            return
        self.stores[1].close()
        self.stores[1] = open_store(self.place, "full")

    @invariant()
    def same_contents(self) -> None:
        for run in ("r1", "r2", "r3", "r4"):
            self.both(lambda store, run=run: store.record(run))
            self.both(lambda store, run=run: store.read(run))
            self.both(lambda store, run=run: store.read(run, 1, 2))
            self.both(lambda store, run=run: store.mail(run))
        self.both(lambda store: store.tail(0)[1])
        self.both(lambda store: store.integrity())


StoresAgree.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestStoresAgree = StoresAgree.TestCase


class PostgresAgrees(StoresAgree):
    kind = "postgres"


PostgresAgrees.TestCase.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
TestPostgresAgrees = PostgresAgrees.TestCase
