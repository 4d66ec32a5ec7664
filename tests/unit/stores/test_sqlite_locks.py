"""Whoever holds the database, nobody freezes, nothing is written by halves, and everybody is told."""

import asyncio
import contextlib
import contextvars
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import nano_vm
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import Mail
from nano_vm.stores import rules
from nano_vm.stores.memory import MemoryStore
from nano_vm.stores.rows import change_owner, find_record
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import NOW, Draft, refusal, settle

SOURCE = str(Path(nano_vm.__file__).parent.parent)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the database as another process would."""
    con = sqlite3.connect(path, isolation_level=None)
    con.execute("BEGIN IMMEDIATE")
    yield con
    if con.in_transaction:
        con.execute("ROLLBACK")
    con.close()


def test_the_event_loop_goes_on_while_appends_wait_for_another_process(database: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        drafts = [Draft(f"r{number}", store.owner) for number in range(5)]
        for draft in drafts:
            await settle(store.create(draft.record, draft.entries(1)))
        with write_lock(database) as other:
            waiting = [asyncio.ensure_future(store.append(d.run_id, 1, d.entries(1))) for d in drafts[:3]]
            for _ in range(20):
                await asyncio.sleep(0)
            late = [asyncio.ensure_future(store.append(d.run_id, 1, d.entries(1))) for d in drafts[3:]]
            for _ in range(20):
                await asyncio.sleep(0)
            assert not any(future.done() for future in waiting + late)
            assert len(store.read("r0")) == 1
            other.execute("COMMIT")
        await asyncio.gather(*waiting, *late)
        assert [len(store.read(draft.run_id)) for draft in drafts] == [2] * 5

    with SqliteStore(database, busy_timeout_ms=60_000) as store:
        asyncio.run(scenario(store))


def test_a_lock_that_stays_fails_every_append_of_the_group_and_later_ones_succeed(database: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        drafts = [Draft(f"r{number}", store.owner) for number in range(3)]
        for draft in drafts:
            await settle(store.create(draft.record, draft.entries(1)))
        again = [draft.entries(1) for draft in drafts]
        with write_lock(database):
            appends = [store.append(d.run_id, 1, e) for d, e in zip(drafts, again, strict=True)]
            outcomes = await asyncio.gather(*(_wait(a) for a in appends), return_exceptions=True)
            assert [getattr(error, "code", None) for error in outcomes] == ["STORE_LOCKED"] * 3
            for call in (
                lambda: store.claim("r0", NOW),
                lambda: store.post("r0", Mail(mail_id="m", kind="event", body=b"", posted_at_ms=NOW)),
            ):
                with refusal("STORE_LOCKED"):
                    call()
            with refusal("STORE_LOCKED"):
                async with store.transaction():
                    pass
        for draft, entries in zip(drafts, again, strict=True):
            await settle(store.append(draft.run_id, 1, entries))
        assert [len(store.read(draft.run_id)) for draft in drafts] == [2] * 3

    with SqliteStore(database, busy_timeout_ms=30) as store:
        asyncio.run(scenario(store))


async def _wait(durable: object) -> None:
    await durable  # type: ignore[misc]


def test_writing_inside_a_tools_transaction_is_refused_at_once_not_after_a_deadlock(database: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        async with store.transaction() as transaction:
            for call in (
                lambda: store.claim("r1", NOW),
                lambda: store.renew(["r1"], NOW),
                lambda: store.append("r1", 1, []),
            ):
                with refusal("STORE_LOCKED"):
                    call()
            await asyncio.gather(asyncio.create_task(_inside(store)))
            transaction.append("r1", 1, draft.entries(1))
        assert store.renew(["r1"], NOW) == []
        assert len(store.read("r1")) == 2

    async def _inside(store: SqliteStore) -> None:
        with refusal("STORE_LOCKED"):  # a task started by the tool is the tool
            await settle(store.append("r1", 1, []))

    with SqliteStore(database) as store:
        asyncio.run(scenario(store))


def test_another_thread_waits_for_a_tools_transaction(database: Path) -> None:
    letter = Mail(mail_id="m", kind="event", body=b"", posted_at_ms=NOW)

    async def scenario(store: SqliteStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        async with store.transaction() as transaction:
            posting = asyncio.get_running_loop().run_in_executor(None, store.post, "r1", letter)
            for _ in range(20):
                await asyncio.sleep(0)
            assert store.mail("r1") == []
            transaction.append("r1", 1, draft.entries(1))
        await posting
        assert store.mail("r1") == [letter]

    with SqliteStore(database, busy_timeout_ms=60_000) as store:
        asyncio.run(scenario(store))


def test_a_cancelled_wait_for_a_transaction_leaves_no_lock_behind(database: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        draft = Draft("r1", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))

        async def tool() -> None:
            async with store.transaction():
                pass

        for ticks in range(6):
            task = asyncio.create_task(tool())
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        with write_lock(database) as other:
            task = asyncio.create_task(tool())
            for _ in range(10):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            other.execute("COMMIT")
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        await tool()
        await settle(store.append("r1", 1, draft.entries(1)))

    with SqliteStore(database, busy_timeout_ms=60_000) as store:
        asyncio.run(scenario(store))


def test_event_loops_in_several_threads_share_a_store(database: Path) -> None:
    async def drive(store: SqliteStore, name: str) -> None:
        drafts = [Draft(f"{name}-{number}", store.owner) for number in range(4)]

        async def one(draft: Draft) -> None:
            await settle(store.create(draft.record, draft.entries(1)))
            for _ in range(10):
                await settle(store.append(draft.run_id, 1, draft.entries(2)))
                store.read(draft.run_id)

        await asyncio.gather(*(one(draft) for draft in drafts))

    with SqliteStore(database, "normal", busy_timeout_ms=60_000) as store:
        threads = [threading.Thread(target=lambda n=n: asyncio.run(drive(store, f"t{n}"))) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(store.read(f"t{n}-{m}")) for n in range(4) for m in range(4)] == [21] * 16
        assert store.integrity() == []


def test_a_group_with_works_of_two_event_loops_tells_each_in_its_own(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second loop takes the place of the first while works of that one are still being gathered."""
    with SqliteStore(database) as store:
        ours, theirs = Draft("ours", store.owner), Draft("theirs", store.owner)
        for draft in (ours, theirs):
            store.create(draft.record, draft.entries(1))
        may_submit, submitted, committed = threading.Event(), threading.Event(), threading.Event()
        told_in: list[int] = []

        async def append_theirs() -> None:
            await settle(store.append("theirs", 1, theirs.entries(1)))
            told_in.append(threading.get_ident())

        async def hold_up() -> (
            None
        ):  # the loop, before it comes to the flush that `append_theirs` has scheduled
            submitted.set()
            committed.wait()

        async def elsewhere() -> None:
            may_submit.wait()
            await asyncio.gather(append_theirs(), hold_up())

        other = threading.Thread(target=lambda: asyncio.run(elsewhere()), daemon=True)
        drain = store._group.drain

        def overtaken() -> None:
            drain()
            if not submitted.is_set() and threading.current_thread() is not other:
                may_submit.set()
                submitted.wait()

        async def here() -> None:
            await settle(store.append("ours", 1, ours.entries(1)))
            committed.set()

        monkeypatch.setattr(store._group, "drain", overtaken)
        other.start()
        asyncio.run(here())
        other.join(60)
        assert told_in == [other.ident]
        assert [len(store.read(run_id)) for run_id in ("ours", "theirs")] == [2, 2]


def test_a_full_database_fails_the_whole_group_and_writes_nothing_of_it(database: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        drafts = [Draft(f"r{number}", store.owner) for number in range(4)]
        for draft in drafts:
            await settle(store.create(draft.record, draft.entries(1)))
        con = store._writer.con
        pages = con.execute("PRAGMA page_count").fetchone()[0]
        con.execute(f"PRAGMA max_page_count={pages}")
        large = [draft.entries(1, b'"' + b"x" * 30_000 + b'"') for draft in drafts]
        appends = [
            store.append(d.run_id, 1, e, d.update("SUCCESS")) for d, e in zip(drafts, large, strict=True)
        ]
        outcomes = await asyncio.gather(*(_wait(a) for a in appends), return_exceptions=True)
        assert [getattr(error, "code", None) for error in outcomes] == ["STORE_FULL"] * 4
        assert all(isinstance(error, NanoVMError) and error.retryable for error in outcomes)
        assert [len(store.read(draft.run_id)) for draft in drafts] == [1] * 4
        assert {store.record(draft.run_id).status for draft in drafts} == {"RUNNING"}
        con.execute("PRAGMA max_page_count=1000000")
        for draft, entries in zip(drafts, large, strict=True):
            await settle(store.append(draft.run_id, 1, entries))
        assert store.integrity() == []

    with SqliteStore(database) as store:
        asyncio.run(scenario(store))


FORK = """
import os, sys
from nano_vm.errors import NanoVMError
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import Draft, NOW
store = SqliteStore(sys.argv[1])
draft = Draft("r1", store.owner)
store.create(draft.record, draft.entries(1))
pid = os.fork()
if pid == 0:
    codes = []
    append = lambda: store.append("r1", 1, draft.entries(1))
    for call in (lambda: store.read("r1"), append, store.transaction):
        try:
            call()
        except NanoVMError as error:
            codes.append(error.code)
    store.close()
    os._exit(codes != ["STORE_CLOSED"] * 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
store.append("r1", 1, draft.entries(1))
assert len(store.read("r1")) == 2
# A child that outlives its parent must not keep the parent's runs alive: it stays until its input ends.
sys.stdout.flush()
if os.fork() == 0:
    print("child", flush=True)
    sys.stdin.readline()
    os._exit(0)
os._exit(0)
"""


def test_a_forked_child_has_no_store_and_keeps_no_run(database: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FORK, str(database)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    assert parent.stdout.readline() == "child\n"
    assert parent.wait() == 0
    with SqliteStore(database) as store:
        assert store.claimable(NOW) == ["r1"]
        assert store.claim("r1", NOW) == 2
    parent.stdin.close()
    parent.stdout.close()


def test_files_of_dead_owners_are_removed_once_nothing_needs_them(database: Path) -> None:
    owners = database.with_name("journal.db-owners")
    with SqliteStore(database) as store:
        assert not owners.exists()  # a store that owns nothing leaves no trace
        draft = Draft("r1", store.owner)
        store.create(draft.record, draft.entries(1))
        assert os.listdir(owners) == [store.owner]
    first = os.listdir(owners)
    assert len(first) == 1  # the proof that r1 may be taken over
    with SqliteStore(database) as store:
        assert os.listdir(owners) == first
        assert store.claim("r1", NOW) == 2
        store.append("r1", 2, draft.entries(1), draft.update("SUCCESS", release=True))
    with SqliteStore(database):
        pass
    assert not owners.exists() or os.listdir(owners) == []


def test_an_owner_of_another_machine_is_believed_until_its_lease_ends(database: Path) -> None:
    with SqliteStore(database) as store:
        draft = Draft("r1", store.owner)
        store.create(draft.record, draft.entries(1))
    con = sqlite3.connect(database)
    record = find_record(con, "r1")
    change_owner(con, record, "00000000-11111111-7-abcdefabcdef", record.fence, record.lease_until_ms)
    con.commit()
    con.close()
    with SqliteStore(database) as store:
        assert store.claim("r1", NOW) is None
        assert store.claim("r1", store.record("r1").lease_until_ms) == 2


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_store_closed_during_a_transaction_rolls_it_back(database: Path, kind: str) -> None:
    async def scenario() -> None:
        store = MemoryStore() if kind == "memory" else SqliteStore(database)
        draft, other = Draft("r1", store.owner), Draft("r2", store.owner)
        await settle(store.create(draft.record, draft.entries(1)))
        await settle(store.create(other.record, other.entries(1)))

        async def append_other() -> None:
            await start.wait()
            await settle(store.append("r2", 1, other.entries(1)))

        start = asyncio.Event()
        waiting = asyncio.create_task(append_other())  # before the transaction: not a part of the tool
        with refusal("STORE_CLOSED"):
            async with store.transaction() as transaction:
                transaction.append("r1", 1, draft.entries(1))
                start.set()
                for _ in range(3):
                    await asyncio.sleep(0)
                store.close()
        outcome = await asyncio.gather(waiting, return_exceptions=True)
        assert kind == "memory" or getattr(outcome[0], "code", None) == "STORE_CLOSED"

    asyncio.run(scenario())
    if kind == "sqlite":
        with SqliteStore(database) as store:
            assert len(store.read("r1")) == 1


def test_what_gathers_during_a_transaction_is_not_called_durable_when_another_call_is_refused(
    database: Path,
) -> None:
    """A refused `claim` used to tell the waiting appends that they were committed."""

    async def scenario() -> None:
        store = SqliteStore(database)
        draft, other = Draft("r1", store.owner), Draft("r2")
        await settle(store.create(draft.record, draft.entries(1)))
        await settle(store.create(other.record, other.entries(1)))
        loop, entries = asyncio.get_running_loop(), draft.entries(1)
        async with store.transaction():
            # Tasks of their own: neither comes from the tool that the transaction belongs to.
            waiting = loop.create_task(append(store, entries), context=contextvars.Context())
            await asyncio.sleep(0)
            with refusal("STORE_LOCKED"):
                await loop.create_task(claim(store), context=contextvars.Context())
            for _ in range(3):
                await asyncio.sleep(0)
            assert not waiting.done()
        await waiting
        assert [entry.seq for entry in store.read("r1")] == [0, 1]
        store.close()

    async def append(store: SqliteStore, entries: list[Entry]) -> None:
        await settle(store.append("r1", 1, entries))

    async def claim(store: SqliteStore) -> None:
        store.claim("r2", NOW)

    asyncio.run(scenario())


def test_a_call_does_not_wait_for_a_group_that_waits_for_a_tool_which_only_that_thread_can_end(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group waits in its thread; the call looks, sees no tool, and a tool's transaction opens in that very moment."""

    async def scenario(store: SqliteStore) -> None:
        first, second = Draft("r1", store.owner), Draft("r2")
        for draft in (first, second):
            await settle(store.create(draft.record, draft.entries(1)))
        writer = store._writer
        real = (writer.try_commit, writer.wait_for_tool, writer.wait_until_tool_ends)

        def held_by_another_process(*args: object) -> bool:
            monkeypatch.setattr(writer, "try_commit", real[0])
            return False

        def then_a_tool_opens() -> None:
            real[1]()
            monkeypatch.setattr(writer, "wait_for_tool", real[1])
            writer.tool_open, writer.tool_thread = True, threading.get_ident()
            writer.lock.notify_all()

        def comes_after_the_tool() -> bool:
            writer.lock.wait_for(lambda: writer.tool_open)
            return real[2]()

        monkeypatch.setattr(writer, "try_commit", held_by_another_process)
        monkeypatch.setattr(writer, "wait_for_tool", then_a_tool_opens)
        monkeypatch.setattr(writer, "wait_until_tool_ends", comes_after_the_tool)
        appending = asyncio.ensure_future(settle(store.append("r1", 1, first.entries(1))))
        while not store.at_work:
            await asyncio.sleep(0)
        with refusal("STORE_LOCKED"):
            store.claim("r2", NOW)
        with writer.lock:  # the tool ends
            writer.tool_open = False
            writer.lock.notify_all()
        await appending
        assert [entry.seq for entry in store.read("r1")] == [0, 1]
        assert store.claim("r2", NOW) == 1

    with SqliteStore(database) as store:
        asyncio.run(scenario(store))


def test_an_append_behind_a_journal_that_is_shorter_than_believed_is_refused() -> None:
    draft = Draft("r1")
    entries = draft.entries(2)
    with refusal("JOURNAL_CONFLICT", run_id="r1", seq=1):
        rules.admit("r1", 2, entries[1:], lambda start, stop: [])
