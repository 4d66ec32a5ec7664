"""Real processes compete for the same runs: one wins, and nobody who lost can write."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nano_vm
from nano_vm.journal.entry import GENESIS
from nano_vm.journal.port import LEASE_MS
from nano_vm.journal.reading import verify_entry
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import NOW, Draft

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(nano_vm.__file__).parent.parent)}
PROCESSES, RUNS = 5, 12

CLAIM = """
import json, sys
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Chain
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import Draft
path, now, count, shift = sys.argv[1], *map(int, sys.argv[2:])
store = SqliteStore(path, "normal", busy_timeout_ms=60_000)
print("ready", flush=True)
sys.stdin.readline()
won = {}
for number in range(count):
    run_id = f"r{(number + shift) % count}"
    fence = store.claim(run_id, now)
    if fence is not None:
        won[run_id] = fence
        draft = Draft(run_id)
        entries = store.read(run_id)
        draft.chain = Chain(run_id, len(entries), entries[-1].digest)
        store.append(run_id, fence, draft.entries(2))
print(json.dumps(won), flush=True)
sys.stdin.readline()
lost = []
for run_id, fence in won.items():
    entries = store.read(run_id)
    draft = Draft(run_id)
    draft.chain = Chain(run_id, len(entries), entries[-1].digest)
    try:
        store.append(run_id, fence, draft.entries(1))
    except NanoVMError as error:
        lost.append(error.code)
print(json.dumps(lost), flush=True)
sys.stdin.readline()
"""


class Racer:
    def __init__(self, path: Path, now: int, shift: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(path), str(now), str(RUNS), str(shift)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hear() == "ready\n"

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


def race(racers: list[Racer]) -> list[Any]:
    for racer in racers:
        racer.say()
    return [json.loads(racer.hear()) for racer in racers]


@pytest.mark.parametrize("before", ["free", "dead"])
def test_of_many_processes_that_claim_a_run_exactly_one_wins(tmp_path: Path, before: str) -> None:
    path = tmp_path / "journal.db"
    with SqliteStore(path) as store:
        for number in range(RUNS):
            draft = Draft(f"r{number}", store.owner if before == "dead" else None)
            store.create(draft.record, draft.entries(1))
    racers = [Racer(path, NOW, shift) for shift in range(PROCESSES)]
    won = race(racers)
    winners = [run_id for wins in won for run_id in wins]
    assert sorted(winners) == sorted(f"r{number}" for number in range(RUNS))
    assert {fence for wins in won for fence in wins.values()} == {2 if before == "dead" else 1}

    # They are alive, so nobody can take a run from them - until their leases have run out.
    late = Racer(path, NOW, 0)
    assert race([late]) == [{}]
    heir = Racer(path, NOW + LEASE_MS, 0)
    assert len(race([heir])[0]) == RUNS
    assert [code for codes in race(racers) for code in codes] == ["LEASE_LOST"] * RUNS
    for racer in (*racers, late, heir):
        racer.end()
    with SqliteStore(path) as store:
        assert store.integrity() == []
        for number in range(RUNS):
            prev = GENESIS
            for entry in store.read(f"r{number}"):
                verify_entry(entry, f"r{number}", prev)
                prev = entry.digest
            assert len(store.read(f"r{number}")) == 6  # made, 2 by the winner, 2 + 1 by the heir
