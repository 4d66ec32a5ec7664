"""kill -9 at every boundary and at random moments, then recovery in a fresh process (P3, P4, P10)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import crash_programs
import psycopg
import pytest

from nano_vm import ExecutionVM, SqliteStore
from postgres_server import fresh_url
from store_places import KINDS, open_store, rows

SOURCE = Path(crash_programs.__file__).resolve()
ROOT = SOURCE.parents[2]
MODULES = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))


def address(place: Path) -> list[str]:
    """The address of the database, where it is not a file in the directory."""
    return (place / "address").read_text().split() if (place / "address").exists() else []


def in_postgres(place: Path) -> Path:
    """Have the runs in a PostgreSQL database. Effects are counted in it by many at once: their table is there."""
    url = fresh_url()
    (place / "address").write_text(url)
    with psycopg.connect(url) as con:
        con.execute("CREATE TABLE effects (run text, step text)")
    return place


def launch(
    mode: str, place: Path, name: str, runs: int = 1, crash_at: int = 0, durability: str = "normal"
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "CRASH_AT": str(crash_at), "PYTHONPATH": MODULES}
    argv = [sys.executable, str(SOURCE), mode, str(place), name, str(runs), durability, *address(place)]
    return subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> int:
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode


def effects(place: Path) -> Counter[tuple[str, str]]:
    """How often each effect happened, by (run, name)."""
    found: Counter[tuple[str, str]] = Counter()
    if (place / "effects").exists():
        for line in (place / "effects").read_text().splitlines():
            run, name, _ = json.loads(line)
            found[run, name] += 1
    for key in (place / "keys").iterdir():
        run, name, _ = json.loads(key.read_text())
        found[run, name] += 1
    found.update(rows(database(place), "effects", "run, step"))
    return found


def database(place: Path) -> str:
    return "".join(address(place)) or str(place / "runs.db")


def check(place: Path, name: str, unknown_allowed: bool) -> Counter[str]:
    """What the contract says of a database after recovery. Returns the statuses."""
    done = effects(place)
    assert all(count == 1 for count in done.values()), done
    store = open_store(database(place))
    vm = ExecutionVM(tools=crash_programs.TOOLS, store=store)
    statuses: Counter[str] = Counter()
    for record in vm.runs(limit=10_000):
        trace = vm.trace(record.run_id)
        vm.verify(record.run_id)
        statuses[record.status] += 1
        assert record.status != "RUNNING", (record.run_id, [e.type for e in trace.events])
        if record.status == "SUSPENDED":
            assert unknown_allowed, [e.type for e in trace.events]
            assert [wait.kind for wait in trace.waiting] == ["outcome"]
        for step in trace.steps:
            if step.status.value == "SUCCESS" and step.id in "ABCKRTZ":
                assert done[record.run_id, step.id] == 1
        succeeded = Counter(
            (event.step, event.occurrence, event.item)
            for event in trace.events
            if event.type in ("StepSucceeded", "CompensationSucceeded")
        )
        assert all(count <= 1 + (name == "saga") for count in succeeded.values())
    store.close()
    return statuses


def make(place: Path, kind: str) -> Path:
    place.mkdir()
    return in_postgres(place) if kind == "postgres" else place


def boundaries_of(place: Path, name: str, kind: str = "sqlite") -> int:
    make(place, kind)
    assert finish(launch("run", place, name)) == 0
    assert all(count == 1 for count in effects(place).values())
    return int((place / "boundaries").read_text())


@pytest.mark.parametrize(
    "name",
    ["irreversible", "keyed", "reconcilable", "transactional", "mixed", "saga", "parent", "retry"],
)
def test_killed_at_every_boundary_nothing_happens_twice(tmp_path: Path, name: str) -> None:
    total = boundaries_of(tmp_path / "whole", name)
    assert total >= 8
    rng = random.Random(name)
    sample = sorted(rng.sample(range(1, total + 1), 2))  # each of them: in the campaign below
    kill_at(tmp_path, name, sample)


@pytest.mark.parametrize(
    ("name", "kills"), [("irreversible", 2), ("transactional", 4), ("mixed", 2), ("saga", 2)]
)
def test_killed_at_every_boundary_over_postgresql(tmp_path: Path, name: str, kills: int) -> None:
    total = boundaries_of(tmp_path / "whole", name, "postgres")
    assert total >= 8
    sample = sorted(random.Random(f"{name} postgres").sample(range(1, total + 1), kills))
    kill_at(tmp_path, name, sample, kind="postgres")


@pytest.mark.campaign
@pytest.mark.parametrize("durability", ["full", "normal"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "irreversible",
        "blocking",
        "keyed",
        "reconcilable",
        "transactional",
        "mixed",
        "saga",
        "parent",
        "retry",
        "agent",
    ],
)
def test_every_single_boundary(tmp_path: Path, name: str, kind: str, durability: str) -> None:
    total = boundaries_of(tmp_path / "whole", name, kind)
    kill_at(tmp_path, name, list(range(1, total + 1)), durability, kind)


@pytest.mark.parametrize("share", [5, pytest.param(1_000, marks=pytest.mark.campaign)])
def test_an_agent_killed_in_the_middle_repeats_no_answer_and_no_action(tmp_path: Path, share: int) -> None:
    total = boundaries_of(tmp_path / "whole", "agent")
    assert answers(tmp_path / "whole") == Counter({"0": 1, "1": 1, "2": 1})
    rng = random.Random(share)
    # From the third boundary on there is a run to be recovered.
    places = sorted(rng.sample(range(3, total + 1), min(share, total - 2)))
    kill_at(tmp_path, "agent", places)
    for at in places:
        place = tmp_path / f"at{at}"
        # An answer that was in flight is asked for once more; one that is in the journal never is.
        asked = answers(place)
        assert sum(asked.values()) <= 4
        store = SqliteStore(place / "runs.db")
        vm = ExecutionVM(tools=crash_programs.TOOLS, store=store)
        trace = vm.trace("r0")
        assert trace.status.value == "SUCCESS"
        step = trace.step("ask")
        assert step is not None
        assert step.turns == 3
        lost = sum(event.type == "OutcomeUnknown" and event.effect == "model" for event in trace.events)
        assert sum(asked.values()) <= 3 + lost
        assert [proposal["reason"] for proposal in step.proposals] == [
            None, None, "UNLISTED_TOOL", "BAD_ARGUMENT", None, None,
        ]  # fmt: skip
        told = json.loads(step.output)
        assert [told[0], told[1], *told[4:]] == ["P", "R", "T", "K"]
        store.close()


def answers(place: Path) -> Counter[str]:
    """How often each answer of the model was asked for."""
    asked = place / "asked"
    return Counter(asked.read_text().split() if asked.exists() else ())


def kill_at(
    tmp_path: Path, name: str, places: list[int], durability: str = "normal", kind: str = "sqlite"
) -> None:
    expected = expectation(name)
    for at in places:
        place = make(tmp_path / f"at{at}", kind)
        assert finish(launch("run", place, name, crash_at=at, durability=durability)) == -signal.SIGKILL
        assert finish(launch("recover", place, name, durability=durability)) == 0
        statuses = check(place, name, unknown_allowed=name in ("irreversible", "blocking", "retry"))
        if statuses["SUCCESS"] or statuses["FAILED"]:
            done = {effect for run, effect in effects(place)}
            assert done == expected, (at, done)


def expectation(name: str) -> set[str]:
    """The effects of a run that went through."""
    return {
        "mixed": {"K", "T", "R", "M0", "M1", "M2", "Z"},
        "saga": {"A", "B", "undo-A", "undo-B"},
        "parent": {"A", "X", "Y", "W", "Z"},
        "retry": {"A"},
        "agent": {"R", "T", "K", "Z"},
    }.get(name, {"A", "B", "C"})


def test_dying_again_while_recovering_changes_nothing(tmp_path: Path) -> None:
    for name in ("mixed", "saga", "parent"):
        place = tmp_path / name
        place.mkdir()
        at = 6
        assert finish(launch("run", place, name, crash_at=at)) == -signal.SIGKILL
        for again in (3, 5, 2):
            finish(launch("recover", place, name, crash_at=again))
        assert finish(launch("recover", place, name)) == 0
        check(place, name, unknown_allowed=False)


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_recovering_at_once_do_nothing_twice(tmp_path: Path, kind: str) -> None:
    place = make(tmp_path / "runs", kind)
    assert finish(launch("run", place, "mixed", runs=12, crash_at=90)) == -signal.SIGKILL
    workers = [launch("recover", place, "mixed") for _ in range(2)]
    for worker in workers:
        assert finish(worker) == 0
    assert finish(launch("recover", place, "mixed")) == 0
    statuses = check(place, "mixed", unknown_allowed=False)
    assert set(statuses) == {"SUCCESS"}


def campaign(tmp_path: Path, name: str, kills: int, seed: int, kind: str = "sqlite") -> None:
    """Kill a busy process at random moments, again and again, over one database."""
    rng = random.Random(seed)
    for number in range(kills):
        place = make(tmp_path / f"{name}{number}", kind)
        process = launch("run", place, name, runs=10)
        while not (place / "ready").exists():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.06)
        process.kill()
        finish(process)
        worker = launch("recover", place, name)
        time.sleep(rng.random() * 0.3)
        worker.kill()
        finish(worker)
        assert finish(launch("recover", place, name)) == 0, f"seed {seed} kill {number}"
        check(place, name, unknown_allowed=name in ("irreversible", "blocking", "retry"))


@pytest.mark.parametrize(("name", "seed"), [("mixed", 1), ("irreversible", 2), ("saga", 3), ("parent", 4)])
def test_killed_at_random_moments(tmp_path: Path, name: str, seed: int) -> None:
    campaign(tmp_path, name, kills=1, seed=seed)


def test_killed_at_random_moments_over_postgresql(tmp_path: Path) -> None:
    campaign(tmp_path, "mixed", kills=1, seed=5, kind="postgres")


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(set(crash_programs.PROGRAMS) - {"child"}))
def test_killed_at_random_moments_hundreds_of_times(tmp_path: Path, name: str, kind: str) -> None:
    campaign(tmp_path, name, kills=25, seed=1_000, kind=kind)
