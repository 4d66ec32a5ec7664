"""Archetypes: runs are held against those of their own kind."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from nano_vm import ExecutionVM, SqliteStore, tool
from nano_vm.cli.main import main
from nano_vm.observe.archetypes import (
    ArchetypeMonitor,
    Archetypes,
    _chi_square_tail,
    learn_archetypes,
    skeleton,
)
from nano_vm.observe.baseline import learn
from nano_vm.observe.drift import DriftMonitor, Health
from nano_vm.observe.trajectory import Move, Trajectory
from unit.runtime.runtime_stage import refused

CARDS, INVOICES = ("look", "charge", "receipt"), ("look", "invoice", "charge", "book", "close")


def run(number: int, path: list[str], status: str = "SUCCESS") -> Trajectory:
    moves = tuple(Move(activity=name) for name in path)
    return Trajectory(id=str(number), source="made", program="p", name="pay", moves=moves, status=status)


def work(count: int, seed: int, invoice_retries: float = 0.0) -> list[Trajectory]:
    """Two kinds of work that share a step: charging a card is often tried again, charging for an invoice is not."""
    chance = Random(seed)
    runs = []
    for number in range(count):
        kind, retries = (INVOICES, invoice_retries) if chance.random() < 0.3 else (CARDS, 0.4)
        path = []
        for name in kind:
            path.append(name)
            while name == "charge" and chance.random() < retries:
                path.append(name)
        runs.append(run(number, path))
    return runs


def test_families_are_the_kinds_of_work() -> None:
    found = learn_archetypes(work(300, 1))
    assert [family.name for family in found.families] == [
        "look > charge > receipt",
        "look > invoice > charge > book > close",
    ]
    assert sum(family.baseline.runs for family in found.families) == found.runs == 300
    assert abs(sum(family.share for family in found.families) - 1) < 1e-9


def test_one_kind_of_work_is_one_family() -> None:
    runs = [one for one in work(400, 2) if one.path[1] == "charge"]
    assert len(learn_archetypes(runs).families) == 1


def test_repetitions_do_not_change_the_family() -> None:
    found = learn_archetypes(work(300, 1))
    for times in (1, 2, 50):
        path = ["look", "invoice", *["charge"] * times, "book", "close"]
        assert found.of(run(0, path)) == 1
    assert skeleton(run(0, ["a", "b", "a", "a", "b", "c"])) == ("a", "b", "c", "(end)")
    assert skeleton(run(0, ["a"], "FAILED")) == ("a", "(FAILED)")


def test_a_run_that_nobody_has_heard_of_belongs_somewhere() -> None:
    found = learn_archetypes(work(300, 1))
    assert found.of(run(0, ["never", "seen"])) in range(2)
    assert found.of(run(0, [])) in range(2)


def test_the_same_runs_give_the_same_families() -> None:
    runs = work(300, 3)
    assert learn_archetypes(runs).to_bytes() == learn_archetypes(runs).to_bytes()
    assert Archetypes.from_bytes(learn_archetypes(runs).to_bytes()) == learn_archetypes(runs)


def test_what_is_usual_in_one_family_is_noticed_in_another() -> None:
    """Retries of `charge` are common among cards: only the baseline of the invoices knows that they are none there."""
    healthy, drifted = work(600, 4), work(300, 5, invoice_retries=0.4)
    whole = DriftMonitor(learn(healthy))
    told = []
    kinds = ArchetypeMonitor(learn_archetypes(healthy), on_change=lambda report: told.append(report.health))
    for one in drifted:
        whole.observe(one)
        kinds.observe(one)
    assert whole.health is Health.STABLE
    assert kinds.health is not Health.STABLE
    assert told[-1] is kinds.health
    report = kinds.report()
    assert report.worst.name == "look > invoice > charge > book > close"
    assert report.families[0].report.health is Health.STABLE
    first = report.worst.report.evidence[0]
    assert (first["from"], first["to"]) == ("charge", "charge")
    assert report.runs == 300


def test_healthy_runs_raise_no_alarm() -> None:
    alarms = 0
    for seed in range(6):
        monitor = ArchetypeMonitor(learn_archetypes(work(300, seed)))
        alarms += any(monitor.observe(one) is not Health.STABLE for one in work(600, 100 + seed))
    assert alarms <= 1


def test_another_mix_of_work_is_told_and_is_no_illness() -> None:
    healthy = work(400, 1)
    same, other = ArchetypeMonitor(learn_archetypes(healthy)), ArchetypeMonitor(learn_archetypes(healthy))
    assert same.report().mix == 1.0
    for one in work(300, 7):
        same.observe(one)
    for one in (one for one in work(1_000, 8) if one.path[1] == "charge" or int(one.id) % 3 == 0):
        other.observe(one)
    assert same.report().mix > 0.01
    assert other.report().mix < 0.001
    assert other.health is Health.STABLE


@pytest.mark.parametrize(
    ("value", "freedom", "tail"),
    [(3.841, 1, 0.05), (5.991, 2, 0.05), (7.815, 3, 0.05), (18.475, 7, 0.01), (0.0, 4, 1.0), (0.0, 3, 1.0)],
)
def test_the_tail_of_chi_square_is_that_of_the_tables(value: float, freedom: int, tail: float) -> None:
    assert _chi_square_tail(value, freedom) == pytest.approx(tail, rel=1e-3)


def test_every_family_is_large_enough_to_be_calibrated() -> None:
    rare = [run(n, ["look", "complain"]) for n in range(19)]
    found = learn_archetypes([*work(300, 1), *rare])
    assert all(family.baseline.runs >= 20 for family in found.families)
    assert sum(family.baseline.runs for family in found.families) == 319


def test_what_cannot_be_learned_is_said() -> None:
    with refused("SMALL_BASELINE"):
        learn_archetypes(work(19, 1))
    for most in (0, 9):
        with refused("USAGE"):
            learn_archetypes(work(30, 1), most=most)
    assert len(learn_archetypes(work(300, 1), most=1).families) == 1


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"archetypes": 9}', b'{"archetypes": 1, "families": []}', b"\xff"]
)
def test_a_file_that_holds_no_archetypes_is_refused(data: bytes) -> None:
    with refused("BAD_BASELINE"):
        Archetypes.from_bytes(data)


def test_the_command_line_knows_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @tool(effect="pure")
    def act(n: int) -> int:
        return n

    def step(name: str, **more: object) -> dict[str, object]:
        return {"id": name, "type": "tool", "tool": "act", "args": {"n": "$n"}, **more}

    large = {"type": "condition", "condition": "$n >= 30"}
    steps = [
        {"id": "large", **large, "then": "invoice", "otherwise": "charge"},
        step("invoice", next_step="charge"),
        step("charge"),
        {"id": "written", **large, "then": "book", "otherwise": "receipt"},
        step("receipt", is_terminal=True),
        step("book", is_terminal=True),
    ]
    store = str(tmp_path / "runs.db")
    vm = ExecutionVM(tools=[act], store=SqliteStore(store, durability="normal"))
    for n in range(120):
        vm.run_sync({"name": "p", "steps": steps}, {"n": (n * 7) % 60}, trace_id=f"r{n}")
    vm.store.close()
    card, invoice = "large > charge > written > receipt", "large > invoice > charge > written > book"
    kept = str(tmp_path / "p.archetypes")
    words = ["drift", "p", "--store", store, "--archetypes", "--json"]
    assert main([*words, "--save", kept]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["health"] == "STABLE"
    assert {family["name"] for family in said["families"]} == {card, invoice}
    assert sum(family["report"]["runs"] for family in said["families"]) == 60
    assert main([*words, "--baseline", kept, "--check"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 120
    assert main(["drift", "p", "--store", store, "--baseline", kept, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "BAD_BASELINE"
    assert main(["drift", "p", "--store", store, "--archetypes", "2"]) == 0
    assert invoice in capsys.readouterr().out
    assert main(["drift", "p", "--store", store, "--archetypes", "99", "--json"]) == 2
    capsys.readouterr()
