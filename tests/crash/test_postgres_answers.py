"""The way to the server breaks at every message of a call: what was asked for happens once, and the caller hears of it.

A message is lost, or its answer is. The server may know nothing of that, so that the broken session goes on, or waits
with all its locks: what the store does next neither waits for it nor is overtaken by it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from nano_vm.journal.entry import GENESIS, Chain, Entry
from nano_vm.journal.port import LEASE_MS, Mail, Pause
from nano_vm.journal.reading import verify_entry
from nano_vm.kernel.events import TimerFired
from nano_vm.stores.postgres import PostgresStore
from nano_vm.testing.store_conformance import NOW, Draft, settle
from postgres_proxy import BREAKS, Break, Proxy
from postgres_server import fresh_url
from store_places import rows

MESSAGES_MAX = 60  # of one call; far more than any sends


class Line:
    """A store behind a relay, and one that sees the truth."""

    def __init__(self) -> None:
        self.url = fresh_url()
        self.proxy = Proxy(self.url)
        self.store = PostgresStore(self.proxy.url)
        self.witness = PostgresStore(self.url)
        self.at: tuple[int, Break] = (0, "unsent")
        self.broke = False

    def close(self) -> None:
        self.store.close()
        self.witness.close()
        self.proxy.close()

    @contextmanager
    def breaking(self) -> Iterator[None]:
        self.proxy.arm(*self.at)
        try:
            yield
        finally:
            self.broke = self.proxy.disarm()

    async def owned(self, run_id: str, key: str | None = None) -> Draft:
        """A run whose end the writer knows."""
        draft = Draft(run_id, self.store.owner, key=key)
        await settle(self.store.create(draft.record, draft.entries(1)))
        await settle(self.store.append(run_id, 1, draft.entries(1)))
        return draft

    def holds(self, run_id: str, wanted: list[Entry]) -> None:
        """The journal is sound and ends with what was wanted, once."""
        entries, prev = self.witness.read(run_id), GENESIS
        for entry in entries:
            verify_entry(entry, run_id, prev)
            prev = entry.digest
        assert [entry.digest for entry in entries[wanted[0].seq :]] == [entry.digest for entry in wanted]


async def create(line: Line, name: str) -> None:
    draft = Draft(name, line.store.owner, key=name)
    wanted = draft.entries(2)
    with line.breaking():
        await settle(line.store.create(draft.record, wanted))
    line.holds(name, wanted)
    assert line.witness.record(name).owner == line.store.owner
    await settle(line.store.append(name, 1, draft.entries(1)))


async def create_and_be_done(line: Line, name: str) -> None:
    """Nothing tells afterwards that it was ours: it is free, and somebody may have it by now."""
    draft = Draft(name, None, status="SUCCESS")
    wanted = draft.entries(2)
    with line.breaking():
        await settle(line.store.create(draft.record, wanted))
    line.holds(name, wanted)


async def append_to_several_runs(line: Line, name: str) -> None:
    """In one commit, one of them for the last time: it is given up with it."""
    drafts = [await line.owned(f"{name}-{number}") for number in range(4)]
    wanted = {draft.run_id: draft.entries(2) for draft in drafts}
    last = drafts[-1]
    with line.breaking():
        asked = [
            line.store.append(
                run_id, 1, entries, last.update("SUCCESS", release=True) if run_id == last.run_id else None
            )
            for run_id, entries in wanted.items()
        ]
        await asyncio.gather(*(settle(one) for one in asked))
    for draft in drafts:
        line.holds(draft.run_id, wanted[draft.run_id])
    record = line.witness.record(last.run_id)
    assert (record.status, record.owner) == ("SUCCESS", None)
    for draft in drafts[:-1]:
        await settle(line.store.append(draft.run_id, 1, draft.entries(1)))


async def append_and_give_up(line: Line, name: str) -> None:
    draft = await line.owned(name)
    wanted = draft.entries(1)
    with line.breaking():
        await settle(line.store.append(name, 1, wanted, draft.update("SUSPENDED", release=True)))
    line.holds(name, wanted)
    assert line.witness.record(name).owner is None


async def append_beside_a_refusal(line: Line, name: str) -> None:
    draft, other = await line.owned(name), await line.owned(f"{name}-lost")
    wanted = draft.entries(1)
    with line.breaking():
        asked = [
            line.store.append(name, 1, wanted, draft.update("SUCCESS", release=True)),
            line.store.append(other.run_id, 9, other.entries(1)),
        ]
        answers = await asyncio.gather(*(settle(one) for one in asked), return_exceptions=True)
    assert [getattr(answer, "code", None) for answer in answers] == [None, "LEASE_LOST"]
    line.holds(name, wanted)
    assert len(line.witness.read(other.run_id)) == 2


async def annex(line: Line, name: str) -> None:
    draft = Draft(name, None, status="SUCCESS")
    await settle(line.store.create(draft.record, draft.entries(2)))

    def late(length: int, head: str) -> list[Entry]:
        event = TimerFired(at_ms=NOW, attempt=1, occurrence=length, step="late")
        return [Chain(name, length, head).seal(event, b"", None)]

    with line.breaking():
        await settle(line.store.annex(name, late))
    assert len(line.witness.read(name)) == 3


async def tool(line: Line, name: str) -> None:
    draft = await line.owned(name)
    wanted = draft.entries(2)
    async with line.store.transaction() as transaction:
        transaction.connection.execute("CREATE TABLE IF NOT EXISTS ledger (run TEXT)")
    answer: BaseException | None = None
    with line.breaking():
        try:
            async with line.store.transaction() as transaction:
                transaction.connection.execute("INSERT INTO ledger VALUES (%s)", (name,))
                transaction.append(name, 1, wanted)
        except Exception as error:
            answer = error
    done = (name,) in rows(line.url, "ledger", "run")
    # A tool is not called again by the store. So it may fail, and then nothing has happened, or will.
    assert done == (answer is None), answer
    if not done:
        assert len(line.witness.read(name)) == 2
        await settle(line.store.append(name, 1, wanted))
    line.holds(name, wanted)


async def tool_that_journals_nothing(line: Line, name: str) -> None:
    answer: BaseException | None = None
    async with line.store.transaction() as transaction:
        transaction.connection.execute("CREATE TABLE IF NOT EXISTS ledger (run TEXT)")
    with line.breaking():
        try:
            async with line.store.transaction() as transaction:
                transaction.connection.execute("INSERT INTO ledger VALUES (%s)", (name,))
        except Exception as error:
            answer = error
    assert ((name,) in rows(line.url, "ledger", "run")) == (answer is None), answer


async def claim(line: Line, name: str) -> None:
    draft = Draft(name, line.witness.owner)
    await settle(line.witness.create(draft.record, draft.entries(1)))
    with line.breaking():
        assert line.store.claim(name, NOW + LEASE_MS) == 2
    await settle(line.store.append(name, 2, draft.entries(1)))
    assert line.witness.record(name).fence == 2


async def release(line: Line, name: str) -> None:
    await line.owned(name)
    with line.breaking():
        line.store.release(name, 1)
    assert line.witness.claim(name, NOW) == 2


async def pause(line: Line, name: str) -> None:
    with line.breaking():
        line.store.mark_pause(Pause(tenant="default", program=name, paused=True))
    assert len([one for one in rows(line.url, "nvm_pauses", "program") if one == (name,)]) == 1


async def post(line: Line, name: str) -> None:
    await line.owned(name)
    letter = Mail(mail_id="m", kind="event", body=b"1", posted_at_ms=NOW)
    with line.breaking():
        line.store.post(name, letter)
    assert line.witness.mail(name) == [letter]


async def read(line: Line, name: str) -> None:
    draft = await line.owned(name)
    with line.breaking():
        assert len(line.store.read(name)) == draft.chain.length
        assert line.store.tail(0)[1][-1][0] == name


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize(
    "call",
    [
        create,
        create_and_be_done,
        append_to_several_runs,
        append_and_give_up,
        append_beside_a_refusal,
        annex,
        tool,
        tool_that_journals_nothing,
        claim,
        release,
        pause,
        post,
        read,
    ],
)
def test_a_line_that_breaks_at_any_message_loses_nothing_and_doubles_nothing(
    call: Callable[[Line, str], Awaitable[None]], how: Break, caplog: pytest.LogCaptureFixture
) -> None:
    line = Line()
    try:
        for message in range(MESSAGES_MAX):
            line.at = (message, how)
            asyncio.run(call(line, f"r{message}"))
            if not line.broke:
                break
        assert 1 <= message < MESSAGES_MAX
        assert line.witness.integrity() == []
        assert caplog.record_tuples == []  # the caller hears of it, and nobody else has to
    finally:
        line.close()
