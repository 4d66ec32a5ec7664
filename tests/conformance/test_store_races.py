"""Real processes compete for the same runs: one wins, and nobody who lost can write."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nano_vm
from nano_vm.journal.entry import GENESIS
from nano_vm.journal.port import LEASE_MS
from nano_vm.journal.reading import verify_entry
from nano_vm.testing.store_conformance import NOW, Draft
from store_places import KINDS, fresh_place, open_store

MODULES = (Path(nano_vm.__file__).parents[1], Path(__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, MODULES))}
PROCESSES, RUNS = 5, 12

CLAIM = """
import json, sys
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Chain
from nano_vm.testing.store_conformance import Draft
from store_places import open_store
place, now, count, shift = sys.argv[1], *map(int, sys.argv[2:])
store = open_store(place, "normal", busy_timeout_ms=60_000)
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


# Drives all runs at once, and takes each back as soon as it is lost, with a clock that is past every lease.
WRESTLE = """
import asyncio, json, sys
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Chain
from nano_vm.testing.store_conformance import Draft, settle
from store_places import open_store
place, name, runs, losses, enough = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
store = open_store(place, "normal", busy_timeout_ms=60_000)
written, refused, codes, alone = [], [], [], asyncio.Event()

async def wrestle(run_id):
    lost = 0
    while lost < losses and len(written) < enough and not alone.is_set():
        fence = store.claim(run_id, store.record(run_id).lease_until_ms)
        if fence is None:
            continue  # the other was faster
        entries = store.read(run_id)
        draft = Draft(run_id)
        draft.chain = Chain(run_id, len(entries), entries[-1].digest)
        while len(written) < enough and not alone.is_set():
            batch = draft.entries(1 + fence % 2, json.dumps([fence, name]).encode())
            try:
                await settle(store.append(run_id, fence, batch))
            except NanoVMError as error:
                codes.append(error.code)
                refused.extend(entry.digest for entry in batch)
                lost += 1
                break
            written.extend(entry.digest for entry in batch)

async def main():
    asyncio.get_running_loop().add_reader(sys.stdin, alone.set)  # the other has ended
    await asyncio.gather(*(wrestle(f"r{number}") for number in range(runs)))

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
print(json.dumps([written, refused, codes]), flush=True)
"""


class Racer:
    def __init__(self, script: str, *told: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, told)],
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
@pytest.mark.parametrize("kind", KINDS)
def test_of_many_processes_that_claim_a_run_exactly_one_wins(tmp_path: Path, kind: str, before: str) -> None:
    place = fresh_place(kind, tmp_path)
    with open_store(place) as store:
        for number in range(RUNS):
            draft = Draft(f"r{number}", store.owner if before == "dead" else None)
            store.create(draft.record, draft.entries(1))
    racers = [Racer(CLAIM, place, NOW, RUNS, shift) for shift in range(PROCESSES)]
    won = race(racers)
    winners = [run_id for wins in won for run_id in wins]
    assert sorted(winners) == sorted(f"r{number}" for number in range(RUNS))
    assert {fence for wins in won for fence in wins.values()} == {2 if before == "dead" else 1}

    # They are alive, so nobody can take a run from them - until their leases have run out.
    late = Racer(CLAIM, place, NOW, RUNS, 0)
    assert race([late]) == [{}]
    heir = Racer(CLAIM, place, NOW + LEASE_MS, RUNS, 0)
    assert len(race([heir])[0]) == RUNS
    assert [code for codes in race(racers) for code in codes] == ["LEASE_LOST"] * RUNS
    for racer in (*racers, late, heir):
        racer.end()
    with open_store(place) as store:
        assert store.integrity() == []
        for number in range(RUNS):
            prev = GENESIS
            for entry in store.read(f"r{number}"):
                verify_entry(entry, f"r{number}", prev)
                prev = entry.digest
            assert len(store.read(f"r{number}")) == 6  # made, 2 by the winner, 2 + 1 by the heir


@pytest.mark.parametrize(
    ("kind", "runs", "losses"),
    [("sqlite", 4, 2), ("postgres", 6, 3), pytest.param("postgres", 12, 12, marks=pytest.mark.campaign)],
)
def test_an_owner_that_was_superseded_writes_nothing_more(
    tmp_path: Path, kind: str, runs: int, losses: int
) -> None:
    place = fresh_place(kind, tmp_path)
    with open_store(place) as store:
        for number in range(runs):
            draft = Draft(f"r{number}")
            store.create(draft.record, draft.entries(1))
    # A database with one writer at a time may let one of them write for as long as it likes: that ends, too.
    wrestlers = [Racer(WRESTLE, place, name, runs, losses, 3_000) for name in ("one", "two")]
    for wrestler in wrestlers:
        wrestler.say()
    # Whoever has lost every run so often, or written enough, ends; nobody takes anything from the other any more.
    ended, _, _ = select.select([wrestler.process.stdout for wrestler in wrestlers], [], [])
    for wrestler in wrestlers:
        if wrestler.process.stdout not in ended:
            wrestler.say()
    results = [json.loads(wrestler.hear()) for wrestler in wrestlers]
    for wrestler in wrestlers:
        wrestler.end()
    assert {code for _, _, codes in results for code in codes} <= {"LEASE_LOST"}
    written, refused = ({digest for result in results for digest in result[part]} for part in (0, 1))
    stored = set()
    with open_store(place) as store:
        assert store.integrity() == []
        for number in range(runs):
            prev, last = GENESIS, [0, ""]
            for entry in store.read(f"r{number}"):
                verify_entry(entry, f"r{number}", prev)
                prev = entry.digest
                if entry.seq:
                    by = json.loads(entry.payload or b"")
                    assert by == last or by[0] > last[0], (number, entry.seq, last, by)
                    last = by
                    stored.add(entry.digest)
    assert stored == written
    assert not stored & refused
    assert refused or kind == "sqlite"
