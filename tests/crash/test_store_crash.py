"""kill -9 at any moment: what was acknowledged is there, whole, in order, and the store goes on.

A failure prints the seed; `SEED` is the line that reruns it.
"""

import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import nano_vm
from nano_vm import canonical
from nano_vm.journal.entry import GENESIS
from nano_vm.journal.port import RunQuery
from nano_vm.journal.reading import verify_entry
from nano_vm.testing.store_conformance import NOW
from store_places import KINDS, fresh_place, let_pass, open_store, rows

SEED = int(os.environ.get("NANO_VM_SEED", "20261121"))
ROUNDS = int(os.environ.get("NANO_VM_CRASH_ROUNDS", "8"))
ROUNDS_OF = {"sqlite": ROUNDS, "postgres": (ROUNDS + 1) // 2}
WRITER = Path(__file__).with_name("store_writer.py")
MODULES = (Path(nano_vm.__file__).parents[1], WRITER.parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, MODULES))}


def start(place: str, durability: str, number: int) -> "subprocess.Popen[str]":
    writer = subprocess.Popen(
        [sys.executable, str(WRITER), place, durability, str(number)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "start\n"
    return writer


def kill(writer: "subprocess.Popen[str]", after: int) -> dict[str, int]:
    """Kill the writer once it has acknowledged `after` appends; the longest acknowledged length of each
    run."""
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(after)]
    writer.kill()
    lines += writer.stdout.readlines()
    writer.wait()
    writer.stdout.close()
    acknowledged: dict[str, int] = {}
    for line in lines:
        if line.endswith("\n"):  # the last may be cut off
            run_id, length = line.split()
            acknowledged[run_id] = max(int(length), acknowledged.get(run_id, 0))
    return acknowledged


def check(place: str, acknowledged: dict[str, int], hint: str) -> None:
    with open_store(place) as store:
        let_pass(place)
        assert store.integrity() == [], hint
        journals = {
            record.run_id: store.read(record.run_id) for record in store.records(RunQuery(limit=10_000))
        }
        for run_id, length in acknowledged.items():
            assert len(journals.get(run_id, ())) >= length, f"{hint}: {run_id} lost what was acknowledged"
        batches = defaultdict(list)
        for run_id, entries in journals.items():
            prev, at = GENESIS, 0
            for entry in entries:
                verify_entry(entry, run_id, prev)
                prev = entry.digest
            while at < len(entries):
                assert entries[at].payload is not None
                body = canonical.decode(entries[at].payload or b"")
                assert body["first"] == at, hint
                assert at + body["of"] <= len(entries), f"{hint}: {run_id} holds a part of a batch"
                batches[run_id].append(at)
                at += body["of"]
        taken = set(store.claimable(NOW, limit=10_000))
        assert taken == set(journals), f"{hint}: runs of a dead owner cannot be taken up"
    expected = [(run, at) for run in sorted(batches) if run.startswith("ledger") for at in batches[run][1:]]
    assert rows(place, "ledger", "run, first") == expected, (
        f"{hint}: a tool's writes and the journal disagree"
    )


@pytest.mark.parametrize("durability", ["full", "normal"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_acknowledged_append_survives_a_kill(tmp_path: Path, kind: str, durability: str) -> None:
    place = fresh_place(kind, tmp_path)
    draw = random.Random(f"{SEED} {durability}")
    acknowledged: dict[str, int] = {}
    for number in range(ROUNDS_OF[kind]):
        after = draw.choice((0, 1, 3, draw.randint(5, 60), draw.randint(60, 200)))
        writer = start(place, durability, number)
        for run_id, length in kill(writer, after).items():
            acknowledged[run_id] = max(length, acknowledged.get(run_id, 0))
        check(
            place, acknowledged, f"NANO_VM_SEED={SEED}, {kind}, {durability}, round {number}, {after} appends"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_while_the_database_is_made_leaves_one_that_can_be_opened(tmp_path: Path, kind: str) -> None:
    draw = random.Random(SEED)
    for number in range(ROUNDS_OF[kind]):
        directory = tmp_path / str(number)
        directory.mkdir()
        place = fresh_place(kind, directory)
        writer = start(place, "full", number)
        for _ in range(draw.randrange(60_000)):
            pass
        check(place, kill(writer, 0), f"NANO_VM_SEED={SEED}, {kind}, round {number}")
