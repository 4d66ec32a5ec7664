"""What the PostgreSQL store says, refuses and survives beyond the conformance suite."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from nano_vm import ExecutionVM, Program, ToolContext, tool
from nano_vm.errors import NanoVMError
from nano_vm.journal.port import Mail
from nano_vm.stores.postgres import PostgresStore
from nano_vm.stores.postgres.connection import Address
from nano_vm.stores.postgres.errors import translate
from nano_vm.stores.postgres.locks import MARK, ON_ITS_WAY, class_of
from nano_vm.stores.postgres.migrations import GUARDED, VERSION
from nano_vm.testing.store_conformance import NOW, Draft, refusal, settle
from postgres_server import fresh_url


@pytest.fixture
def url() -> str:
    return fresh_url()


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    with PostgresStore(url) as opened:
        yield opened


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's session."""
    with psycopg.connect(url, autocommit=True) as con:
        yield con


def written(store: PostgresStore, run_id: str = "r1", entries: int = 3) -> Draft:
    draft = Draft(run_id, store.owner)
    store.create(draft.record, draft.entries(entries))
    return draft


# --- opening ------------------------------------------------------------------------------------------------


def test_there_has_to_be_a_database_unless_one_is_made(url: str) -> None:
    with refusal("STORE_NOT_FOUND"):
        PostgresStore(url, create=False)
    PostgresStore(url).close()
    PostgresStore(url, create=False).close()


def test_a_session_without_guards_is_refused(url: str) -> None:
    PostgresStore(url).close()
    with refusal("STORE_UNGUARDED"):
        PostgresStore(f"{url}%20-csession_replication_role%3Dreplica")
    PostgresStore(f"{url}%20-csession_replication_role%3Dlocal").close()


def test_a_session_that_is_made_anew_without_guards_is_refused(
    url: str, sql: psycopg.Connection[Any]
) -> None:
    user = sql.execute("SELECT quote_ident(current_user)").fetchone()
    assert user is not None
    with PostgresStore(url) as store:
        draft = written(store)
        sql.execute(f"ALTER ROLE {user[0]} SET session_replication_role = replica".encode())
        try:
            sql.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE application_name = 'nano-vm' AND pid <> pg_backend_pid()"""
            )
            with refusal("STORE_UNGUARDED"):
                store.record("r1")
            with refusal("STORE_UNGUARDED"):
                settle(store.append("r1", draft.record.fence, draft.entries(1)))
        finally:
            sql.execute(f"ALTER ROLE {user[0]} RESET session_replication_role".encode())


def test_many_that_open_an_empty_database_at_once_make_one_schema(url: str) -> None:
    opened: list[PostgresStore] = []
    failed: list[BaseException] = []

    def open_one() -> None:
        try:
            opened.append(PostgresStore(url))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len({each.owner for each in opened}) == 6
    for each in opened:
        each.close()


def test_a_newer_schema_is_refused_and_left_alone(url: str, sql: psycopg.Connection[Any]) -> None:
    PostgresStore(url).close()
    sql.execute("UPDATE nvm_meta SET value = %s WHERE name = 'version'", (VERSION + 1,))
    with refusal("STORE_NEWER", version=VERSION + 1, known=VERSION):
        PostgresStore(url)
    assert sql.execute("SELECT value FROM nvm_meta WHERE name = 'version'").fetchone() == (VERSION + 1,)


def test_a_schema_that_lost_a_table_is_damaged(url: str, sql: psycopg.Connection[Any]) -> None:
    PostgresStore(url).close()
    sql.execute("DROP TABLE nvm_segments CASCADE")
    with refusal("STORE_DAMAGED"):
        PostgresStore(url)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://ana:hush-hush@127.0.0.1:1/runs",
        "host=127.0.0.1 port=1 dbname=runs user=ana password=hush-hush",
    ],
)
def test_a_password_is_in_no_error(address: str) -> None:
    with pytest.raises(NanoVMError) as caught:
        PostgresStore(address, busy_timeout_ms=1)
    error = caught.value
    assert error.code == "STORE_IO"
    assert error.facts["path"] == "postgresql://ana@127.0.0.1:1/runs"
    assert (
        "hush"
        not in f"{error} {error.help} {error.facts} {Address(address).name} {Address(address).database}"
    )


@pytest.mark.parametrize(
    "address",
    [
        "postgresql:///runs",
        "postgresql://ana@[::1]:5433/runs?options=-csearch_path%3Druns_eu",
        "postgresql://an%40a@db/r%20uns?options=-csearch_path%3Da,b",
        "postgresql:///runs?port=5433&host=/var/run/pg",
        "postgresql:///runs?host=a,b&port=1,2&target_session_attrs=read-write",
        "postgresql:///?service=runs&sslmode=verify-full&sslrootcert=/etc/ca.pem",
    ],
)
@pytest.mark.parametrize("secret", ["", "password=hush-hush", "sslpassword=hush-hush"])
def test_what_is_shown_of_an_address_leads_to_the_same_tables(address: str, secret: str) -> None:
    with_secret = address + ("&" if "?" in address else "?") + secret if secret else address
    shown = Address(with_secret).name
    assert conninfo_to_dict(shown) == conninfo_to_dict(address)
    assert Address(shown).name == shown


@pytest.mark.parametrize(
    "options",
    ["-csearch_path=eu", "-c search_path=eu", "--search_path=eu", "-csearch_path=x -csearch_path=eu"],
)
def test_of_the_options_the_schema_is_shown(options: str) -> None:
    shown = Address(f"postgresql:///runs?options={quote(options + ' -capp.token=hush-hush')}").name
    assert conninfo_to_dict(shown) == {"dbname": "runs", "options": "-csearch_path=eu"}


def test_what_is_no_address_is_refused_without_repeating_it() -> None:
    with pytest.raises(NanoVMError) as caught:
        PostgresStore("postgresql://ana:hush-hush@[bad")
    assert caught.value.code == "USAGE"
    assert "hush" not in f"{caught.value} {caught.value.facts}"


def test_durability_is_full_or_normal(url: str) -> None:
    with refusal("USAGE"):
        PostgresStore(url, durability="some")  # type: ignore[arg-type]
    for durability, expected in (("full", "on"), ("normal", "off")):
        with PostgresStore(url, durability=durability) as store:  # type: ignore[arg-type]
            shown = store._writer.con.execute("SHOW synchronous_commit").fetchone()
            assert shown == (expected,)
            assert store.claim(_free_run(store, durability), NOW) == 1


def _free_run(store: PostgresStore, run_id: str) -> str:
    draft = Draft(run_id)
    store.create(draft.record, draft.entries(1))
    return run_id


# --- guards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE nvm_segments SET facts = facts",
        "DELETE FROM nvm_segments",
        "TRUNCATE nvm_segments",
        "UPDATE nvm_programs SET name = name",
        "DELETE FROM nvm_blobs",
        "DELETE FROM nvm_counts",
        "DELETE FROM nvm_actions",
        "UPDATE nvm_policies SET body = body",
        "DELETE FROM nvm_pauses",
        "DELETE FROM nvm_runs",
        "TRUNCATE nvm_runs CASCADE",
        "UPDATE nvm_runs SET run_id = 'other'",
        "UPDATE nvm_runs SET origin = origin",
        "INSERT INTO nvm_segments (run, seq, digests, facts) SELECT no, 4, '', '' FROM nvm_runs",  # a gap
        "INSERT INTO nvm_segments (run, seq, digests, facts) SELECT no, 2, '', '' FROM nvm_runs",  # an overlap
        "INSERT INTO nvm_segments (run, seq, digests, facts) VALUES (99, 0, '', '')",  # of no run
    ],
)
def test_the_database_itself_refuses(
    store: PostgresStore, sql: psycopg.Connection[Any], statement: str
) -> None:
    draft = written(store)
    with pytest.raises(psycopg.errors.RestrictViolation):
        sql.execute(statement)
    assert [entry.seq for entry in store.read("r1")] == [0, 1, 2]
    assert store.append("r1", 1, draft.entries(1)) is None
    assert store.integrity() == []


def test_every_guard_that_is_missing_or_off_is_named(
    store: PostgresStore, sql: psycopg.Connection[Any]
) -> None:
    assert store.integrity() == []
    for table, trigger in GUARDED[::2]:
        sql.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
    for table, trigger in GUARDED[1::2]:
        sql.execute(f"DROP TRIGGER {trigger} ON {table}")
    found = store.integrity()
    assert all(any(f"`{trigger}` of {table}" in line for line in found) for table, trigger in GUARDED)


def test_a_changed_byte_is_found(store: PostgresStore, sql: psycopg.Connection[Any]) -> None:
    written(store)
    sql.execute("ALTER TABLE nvm_segments DISABLE TRIGGER ALL")
    sql.execute("UPDATE nvm_runs SET outcome = 'won'")
    assert len([line for line in store.integrity() if line.startswith("records: ")]) == 1
    with refusal("STORE_DAMAGED", run_id="r1"):
        store.record("r1")


def test_a_database_that_lost_a_column_is_damaged_and_not_a_riddle(
    store: PostgresStore, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("ALTER TABLE nvm_runs DROP COLUMN waits")
    with refusal("STORE_DAMAGED", sqlstate="42703"):
        store.record("r1")
    with refusal("STORE_DAMAGED", sqlstate="42703"):
        written(store)


@pytest.mark.parametrize(("name", "code"), [("with\0nul", "USAGE"), ("with\ud800surrogate", "VALUE_STRING")])
def test_text_that_postgresql_cannot_keep_is_refused_and_disturbs_nobody(
    store: PostgresStore, name: str, code: str
) -> None:
    good, bad = Draft("good", store.owner), Draft("bad", store.owner, key=name)

    async def both() -> None:
        pending = [store.create(good.record, good.entries(1)), store.create(bad.record, bad.entries(1))]
        await settle(pending[0])
        with refusal(code):
            await settle(pending[1])

    asyncio.run(both())
    assert len(store.read("good")) == 1
    with refusal("RUN_NOT_FOUND"):
        store.record("bad")
    with refusal(code):
        store.find_key("default", "refund", name)


def test_what_cannot_be_read_does_not_hide_how_the_rest_is(
    store: PostgresStore, sql: psycopg.Connection[Any]
) -> None:
    written(store)
    sql.execute("DROP TABLE nvm_mail")
    sql.execute("ALTER TABLE nvm_segments DISABLE TRIGGER USER")
    sql.execute("UPDATE nvm_segments SET seq = seq + 1")
    found = store.integrity()
    assert {line.partition(":")[0] for line in found} == {"schema", "mail", "segments"}
    unreadable = [line for line in found if "cannot be read" in line]
    assert unreadable == [line for line in found if line.startswith("mail: ")]
    assert not any("\n" in line for line in found)


def test_operators_see_one_row_per_entry(store: PostgresStore, sql: psycopg.Connection[Any]) -> None:
    written(store)
    rows = sql.execute("SELECT run_id, seq, type FROM nvm_entries ORDER BY seq").fetchall()
    assert rows == [("r1", 0, "TimerFired"), ("r1", 1, "TimerFired"), ("r1", 2, "TimerFired")]


# --- the tail -----------------------------------------------------------------------------------------------


def test_the_tail_ends_before_what_is_still_on_its_way(store: PostgresStore, url: str) -> None:
    """Numbers are handed out before the commit: one that is committed later must not turn up behind a reader."""
    written(store, "r1", 1)
    slow = Draft("r2", store.owner)
    store.create(slow.record, [])
    with PostgresStore(url) as reader, psycopg.connect(url) as late:
        cursor, found = reader.tail(0)
        assert [run_id for run_id, _ in found] == ["r1"]
        number = class_of(ON_ITS_WAY, store._desk._store)
        late.execute(MARK.replace("?1", "%s").replace(" % ", " %% "), (number,))
        (entry,) = slow.entries(1)
        late.execute(
            """INSERT INTO nvm_segments (run, seq, digests, facts)
                SELECT no, 0, %s, %s FROM nvm_runs WHERE run_id = 'r2'""",
            (bytes.fromhex(entry.digest[7:]), entry.facts),
        )
        written(store, "r3", 1)
        assert reader.tail(cursor) == (cursor, [])
        late.commit()
        assert [run_id for run_id, _ in reader.tail(cursor)[1]] == ["r2", "r3"]
        late.execute(MARK.replace("?1", "%s").replace(" % ", " %% "), (number,))
        written(store, "r4", 1)
        late.rollback()
        assert [run_id for run_id, _ in reader.tail(cursor)[1]] == ["r2", "r3", "r4"]


# --- tools --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def lent(store: PostgresStore) -> Any:
    async with store.transaction() as transaction:
        yield transaction.connection


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        "  /* why */ -- not\n COMMIT",
        "END",
        "ROLLBACK",
        "ROLLBACK AND CHAIN",
        "BEGIN",
        "SET LOCAL nvm.lent = off",
        "DROP TABLE ledger",
        "ALTER TABLE nvm_segments DISABLE TRIGGER ALL",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DO $$ BEGIN COMMIT; END $$",
        "CALL p()",
        "",
        "-- nothing",
        "INSERT INTO ledger VALUES (7); COMMIT",
        "SELECT 1; INSERT INTO ledger VALUES (8)",
        "INSERT INTO nvm_actions VALUES ('k', 'd', 'r', '')",
        "UPDATE nvm_runs SET owner = NULL",
        "WITH gone AS (DELETE FROM nvm_mail RETURNING n) SELECT * FROM gone",
    ],
)
def test_a_tool_can_neither_end_its_transaction_nor_write_our_tables(
    store: PostgresStore, statement: str
) -> None:
    async def attempt() -> None:
        async with store.transaction() as transaction:
            transaction.connection.execute("CREATE TABLE ledger (amount bigint)")
        with contextlib.suppress(LookupError):
            async with lent(store) as con:
                con.execute("INSERT INTO ledger VALUES (1)")
                with pytest.raises(psycopg.Error):
                    con.execute(statement)
                raise LookupError
        async with lent(store) as con:
            assert con.execute("SELECT * FROM ledger").fetchall() == []

    asyncio.run(attempt())
    assert store.integrity() == []


def test_a_tool_may_try_what_can_fail_within_a_savepoint(store: PostgresStore) -> None:
    async def attempt() -> list[Any]:
        async with lent(store) as con:
            con.execute("CREATE TABLE ledger (amount bigint UNIQUE)")
            con.executemany("INSERT INTO ledger VALUES (%s)", [(1,), (2,)])
            con.execute("SAVEPOINT before")
            with pytest.raises(psycopg.errors.UniqueViolation):
                con.execute("INSERT INTO ledger VALUES (%s)", (1,))
            con.execute("ROLLBACK TO SAVEPOINT before")
            con.execute("INSERT INTO ledger VALUES (%s)", (3,))
        async with lent(store) as con:
            return [amount for (amount,) in con.execute("SELECT amount FROM ledger ORDER BY amount")]

    assert asyncio.run(attempt()) == [1, 2, 3]


def test_a_connection_is_the_tools_no_longer_than_its_transaction(store: PostgresStore) -> None:
    async def keep() -> Any:
        async with lent(store) as con:
            con.execute("CREATE TABLE ledger (amount bigint)")
            return con, con.cursor()

    con, cursor = asyncio.run(keep())
    for each in (con, cursor):
        with pytest.raises(psycopg.ProgrammingError):
            each.execute("INSERT INTO ledger VALUES (1)")


def test_a_tool_whose_session_is_lost_leaves_nothing(
    store: PostgresStore, sql: psycopg.Connection[Any]
) -> None:
    draft = written(store, entries=1)

    async def attempt() -> None:
        with refusal("STORE_IO"):
            async with store.transaction() as transaction:
                con = transaction.connection
                con.execute("CREATE TABLE ledger (amount bigint)")
                (process,) = con.execute("SELECT pg_backend_pid()").fetchone()
                sql.execute("SELECT pg_terminate_backend(%s, 5000)", (process,))
                transaction.append("r1", 1, draft.entries(1))
        async with lent(store) as con:  # another session takes its place
            assert con.execute("SELECT to_regclass('ledger')").fetchone() == (None,)

    asyncio.run(attempt())
    assert len(store.read("r1")) == 1


def test_appends_of_others_go_on_while_a_tool_has_its_transaction(store: PostgresStore) -> None:
    other = written(store, "other", 1)

    async def side_by_side() -> None:
        async with lent(store) as con:
            con.execute("CREATE TABLE ledger (amount bigint)")
            await settle(store.append("other", 1, other.entries(1)))
            assert len(store.read("other")) == 2

    asyncio.run(side_by_side())


def test_a_program_pays_once_in_the_database_that_keeps_its_journal(url: str) -> None:
    @tool(effect="transactional")
    def pay(amount: int, ctx: ToolContext) -> int:
        assert ctx.transaction is not None
        con = ctx.transaction.connection
        con.execute("INSERT INTO payments VALUES (%s)", (amount,))
        (total,) = con.execute("SELECT sum(amount)::bigint FROM payments").fetchone()
        return int(total)

    with psycopg.connect(url, autocommit=True) as con:
        con.execute("CREATE TABLE payments (amount bigint)")
    program = Program.from_dict(
        {
            "name": "pay",
            "steps": [
                {
                    "id": "pay",
                    "type": "tool",
                    "tool": "pay",
                    "args": {"amount": "$amount"},
                    "output_key": "total",
                }
            ],
        }
    )

    async def run() -> Any:
        vm = ExecutionVM(tools={"pay": pay}, store=PostgresStore(url))
        traces = await asyncio.gather(
            *(vm.run(program, context={"amount": amount}) for amount in range(1, 9))
        )
        for trace in traces:
            assert trace.status == "SUCCESS"
            vm.verify(trace.trace_id)
        await vm.close()
        return max(trace.final_output for trace in traces)

    assert asyncio.run(run()) == 36


# --- sessions that are lost ---------------------------------------------------------------------------------


def test_every_session_is_made_anew_when_it_was_lost(
    store: PostgresStore, sql: psycopg.Connection[Any]
) -> None:
    draft = written(store, entries=1)

    def lose_all() -> None:
        sql.execute(
            """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                WHERE application_name = 'nano-vm' AND pid <> pg_backend_pid()"""
        )

    lose_all()
    assert len(store.read("r1")) == 1
    lose_all()
    assert store.append("r1", 1, draft.entries(1)) is None
    lose_all()
    assert store.claim(_free_run(store, "r2"), NOW) == 1
    lose_all()
    store.release("r1", 1)
    assert store.changed() is False
    assert [len(store.read(run_id)) for run_id in ("r1", "r2")] == [2, 1]


def test_appends_wait_for_a_lock_no_longer_than_they_were_told(
    url: str, sql: psycopg.Connection[Any]
) -> None:
    with PostgresStore(url, busy_timeout_ms=50) as store:
        draft = written(store, entries=1)
        with sql.transaction():
            sql.execute("LOCK TABLE nvm_segments IN EXCLUSIVE MODE")
            late = draft.entries(1)
            for _ in range(5):
                with refusal("STORE_LOCKED"):
                    store.append("r1", 1, late)
        draft.chain = type(draft.chain)("r1", 1, store.read("r1")[0].digest)
        assert store.append("r1", 1, draft.entries(1)) is None


def test_a_child_process_leaves_the_sessions_of_its_parent_alone(store: PostgresStore) -> None:
    draft = written(store, entries=1)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            with refusal("STORE_CLOSED"):
                store.read("r1")
            with refusal("STORE_CLOSED"):
                store.append("r1", 1, draft.entries(1))
            store.close()
            gc.collect()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.append("r1", 1, draft.entries(1)) is None
    assert len(store.read("r1")) == 2


def test_a_store_that_nobody_closed_leaves_no_session_behind(url: str, sql: psycopg.Connection[Any]) -> None:
    def sessions() -> int:
        found = sql.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nano-vm'"
        ).fetchone()
        assert found is not None
        return int(found[0])

    before = sessions()
    store = PostgresStore(url)
    names = [con.raw.info.backend_pid for con in (store._reader._con, store._writer.con, store._desk.con)]
    written(store)
    assert sessions() >= before + 3
    del store
    gc.collect()
    for _ in range(10_000):
        if not sql.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", (names,)).fetchall():
            break
    else:
        pytest.fail("its sessions live on")


def test_stores_that_own_nothing_are_forgotten(url: str, sql: psycopg.Connection[Any]) -> None:
    with PostgresStore(url) as one:
        written(one)
        with PostgresStore(url) as idle:
            idle.post("r1", _letter())
        assert sql.execute("SELECT count(*) FROM nvm_writers").fetchone() == (2,)
        with PostgresStore(url):
            assert sql.execute("SELECT count(*) FROM nvm_writers").fetchone() == (
                2,
            )  # it may only have paused
        sql.execute("UPDATE nvm_writers SET seen = now() - interval '1 day'")
        with PostgresStore(url):
            left = {owner for (owner,) in sql.execute("SELECT owner FROM nvm_writers")}
            assert one.owner in left
            assert idle.owner not in left


def test_a_store_that_was_forgotten_while_it_lived_loses_nothing(
    url: str, sql: psycopg.Connection[Any]
) -> None:
    with PostgresStore(url) as one, PostgresStore(url) as two:
        draft = written(one)
        sql.execute("DELETE FROM nvm_writers")
        assert one.append("r1", 1, draft.entries(1)) is None
        sql.execute("DELETE FROM nvm_writers")
        assert two.claim("r1", NOW) is None
        assert two.claim("r1", NOW + 60_000) == 2
        with refusal("LEASE_LOST", run_id="r1"):
            one.append("r1", 1, draft.entries(1))


def _letter() -> Any:
    return Mail(mail_id="m", kind="event", body=b"1", posted_at_ms=NOW)


def test_to_ask_for_a_run_that_another_holds_writes_nothing(url: str, sql: psycopg.Connection[Any]) -> None:
    """Whoever waits for its result asks many times a second."""
    with PostgresStore(url) as holder, PostgresStore(url) as waiting:
        draft = written(holder)
        written(waiting, "other")
        own = "SELECT settled, commits FROM nvm_writers WHERE owner = %s"
        before = sql.execute(own, (waiting.owner,)).fetchone()
        assert [waiting.claim(draft.run_id, NOW) for _ in range(3)] == [None] * 3
        assert sql.execute(own, (waiting.owner,)).fetchone() == before
        holder.release(draft.run_id, 1)
        assert waiting.claim(draft.run_id, NOW) == 2


@pytest.mark.parametrize(
    "setting",
    [
        "standard_conforming_strings=off",
        "array_nulls=off",
        "bytea_output=escape",
        "client_encoding=LATIN1",
        "default_transaction_isolation=serializable",
        "synchronous_commit=off",
    ],
)
def test_what_a_role_or_a_database_has_set_changes_nothing_that_is_stored(url: str, setting: str) -> None:
    """What is set for them is what a session begins with, as is what the address asks for."""

    @tool
    def echo(value: str) -> dict[str, Any]:
        return {"value": value, "more": None}

    steps = [{"id": "echo", "type": "tool", "tool": "echo", "args": {"value": "$value"}}]
    program = Program.from_dict({"name": "echo", "steps": steps})
    said = "back\\slash 'quote' \"double\" NULL é \U0001f600"
    with PostgresStore(f"{url}{quote(f' -c{setting}')}") as store:
        vm = ExecutionVM(tools=[echo], store=store)
        trace = vm.run_sync(program, context={"value": said})
        again = ExecutionVM(tools=[echo], store=store)
        assert again.trace(trace.trace_id).final_output == {"value": said, "more": None}
        assert again.verify(trace.trace_id)
        assert store.integrity() == []


@pytest.mark.parametrize(
    ("state", "code"), [("57014", "STORE_LOCKED"), ("25P04", "STORE_LOCKED"), ("25006", "STORE_READ_ONLY")]
)
def test_what_took_too_long_or_is_not_allowed_is_named(state: str, code: str) -> None:
    found = translate(psycopg.errors.lookup(state)(), "postgresql://db")
    assert (found.code, found.facts["sqlstate"]) == (code, state)


def test_a_session_that_is_needed_later_waits_for_a_server_that_comes_back(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of tools, and the one for examinations: in the middle of a restart, say."""
    connect, refusals = psycopg.connect, [2, 2]

    def refused(*args: Any, **options: Any) -> Any:
        if refusals and refusals[-1]:
            refusals[-1] -= 1
            raise psycopg.OperationalError("connection refused")
        return connect(*args, **options)

    async def lent() -> None:
        async with store.transaction() as transaction:
            assert transaction.connection.execute("SELECT 1").fetchone() == (1,)

    monkeypatch.setattr(psycopg, "connect", refused)
    asyncio.run(lent())
    refusals.pop()
    assert store.integrity() == []
    assert refusals == [0]


def test_an_address_and_a_patience_that_are_none_are_refused() -> None:
    for url, timeout in ((5, 1), (None, 1), ("postgresql://nowhere/x", "1"), ("postgresql://nowhere/x", -1)):
        with pytest.raises(NanoVMError) as wrong:
            PostgresStore(url, busy_timeout_ms=timeout)  # type: ignore[arg-type]
        assert wrong.value.code == "USAGE"
