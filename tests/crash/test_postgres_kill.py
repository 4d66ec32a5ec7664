"""The server dies, or its sessions do, while runs are driven: they end, or are recovered, and nothing happens twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import crash_programs
import psycopg
import pytest
from test_kill import check, database, effects, expectation, in_postgres

import postgres_server
from nano_vm import ExecutionVM, MockLLMAdapter
from nano_vm.stores.postgres import PostgresStore
from nano_vm.testing.store_conformance import refusal

RUNS = 4
PATIENCE_MS = 60_000  # a server that was killed is back in a moment, on a machine that has nothing else to do

SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'nano-vm'"


def end_the_sessions() -> None:
    """As an operator does, or a server that is told to restart."""
    postgres_server.operate(f"SELECT pg_terminate_backend(pid) FROM ({SESSIONS}) s")


def kill_a_session() -> None:
    """With SIGKILL: the server ends all the others too, and recovers."""
    for (pid,) in postgres_server.operate(f"{SESSIONS} ORDER BY query_start DESC LIMIT 1"):
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)


def kill_the_server() -> None:
    postgres_server.restart()


class Boundary:
    """Stands for the boundary of `crash_programs`: strikes at some, instead of dying at one."""

    def __init__(self, strike: Callable[[], None], at: set[int]) -> None:
        self.passed = self.strikes = 0
        self._strike = strike
        self._at = at

    def __call__(self, name: str) -> None:
        self.passed += 1
        if self.passed in self._at:
            self.strikes += 1
            self._strike()


def drive(url: str, name: str) -> list[object]:
    """Run a program several times at once; what each run came to."""
    store = crash_programs.WatchedPostgres(url, busy_timeout_ms=PATIENCE_MS)

    async def run() -> list[object]:
        vm = ExecutionVM(llm=MockLLMAdapter("yes"), tools=crash_programs.TOOLS, store=store)
        vm.save_program(crash_programs.PROGRAMS["child"])
        runs = (vm.run(crash_programs.PROGRAMS[name], trace_id=f"r{number}") for number in range(RUNS))
        return await asyncio.gather(*runs, return_exceptions=True)

    try:
        return asyncio.run(run())
    finally:
        store.close()


def recover(url: str) -> None:
    store = crash_programs.WatchedPostgres(url, busy_timeout_ms=PATIENCE_MS)
    vm = ExecutionVM(llm=MockLLMAdapter("yes"), tools=crash_programs.TOOLS, store=store)
    try:
        asyncio.run(crash_programs.recover(vm))
    finally:
        store.close()


def strike_while_driving(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    strike: Callable[[], None],
    strikes: int,
    seed: int,
) -> None:
    place.mkdir()
    (place / "keys").mkdir()
    url = database(in_postgres(place))
    monkeypatch.setattr(crash_programs, "PLACE", place)
    monkeypatch.setattr(crash_programs, "ADDRESS", url)
    at = set(random.Random(f"{name} {strike.__name__} {seed}").sample(range(1, 12 * RUNS), strikes))
    boundary = Boundary(strike, at)
    monkeypatch.setattr(crash_programs, "boundary", boundary)
    drive(url, name)
    assert boundary.strikes
    monkeypatch.setattr(crash_programs, "boundary", lambda name: None)
    recover(url)
    hint = f"{name}, seed {seed}, struck at {sorted(at)}"
    statuses = check(place, name, unknown_allowed=name == "irreversible")
    # A session that is lost under a tool is no failure of the tool's.
    assert set(statuses) <= {"SUCCESS", "SUSPENDED"}, f"{hint}: {statuses}"
    done = effects(place)
    if set(statuses) == {"SUCCESS"}:
        # A parent and its child have their effects between them, each of them once.
        assert sum(done.values()) == RUNS * len(expectation(name)), hint
        assert {effect for _, effect in done} == expectation(name), hint


STRIKES = pytest.mark.parametrize(
    ("strike", "strikes"), [(end_the_sessions, 12), (kill_a_session, 3), (kill_the_server, 2)]
)


@pytest.mark.parametrize("name", ["transactional", "mixed"])
@STRIKES
def test_a_server_that_is_struck_while_runs_are_driven_loses_nothing_and_doubles_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    strike: Callable[[], None],
    strikes: int,
) -> None:
    strike_while_driving(tmp_path / "runs", monkeypatch, name, strike, strikes, seed=1)


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["transactional", "mixed", "irreversible", "parent", "keyed"])
@STRIKES
def test_a_server_that_is_struck_again_and_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    strike: Callable[[], None],
    strikes: int,
) -> None:
    for seed in range(2, 10):
        with monkeypatch.context() as patch:
            strike_while_driving(tmp_path / str(seed), patch, name, strike, strikes, seed)


def test_a_session_that_is_lost_under_a_tool_is_no_failure_of_the_tool() -> None:
    async def book(store: PostgresStore) -> None:
        async with store.transaction() as transaction:
            try:
                transaction.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            except psycopg.Error as error:
                raise ValueError("cannot book") from error

    with PostgresStore(postgres_server.fresh_url()) as store:
        with refusal("STORE_IO"):
            asyncio.run(book(store))
        with pytest.raises(ValueError, match="too dear"):
            asyncio.run(decline(store))


async def decline(store: PostgresStore) -> None:
    async with store.transaction():
        raise ValueError("too dear")


def test_a_store_is_opened_while_the_server_restarts() -> None:
    """It failed at once, where every other call would have tried again."""
    url = postgres_server.fresh_url()
    PostgresStore(url, busy_timeout_ms=PATIENCE_MS).close()
    for _ in range(3):
        restarting = threading.Thread(target=kill_the_server)
        restarting.start()
        try:
            while restarting.is_alive():
                PostgresStore(url, busy_timeout_ms=PATIENCE_MS).close()
        finally:
            restarting.join()


def test_a_store_that_cannot_be_reached_is_said_to_be_so_when_patience_is_over() -> None:
    began = time.monotonic()
    with refusal("STORE_IO"):
        PostgresStore("postgresql://localhost:1/none", busy_timeout_ms=300)
    assert 0.1 < time.monotonic() - began < 30
