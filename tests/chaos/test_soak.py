"""`nano-vm chaos soak`: mixed load, random kills, a database that is consistent in the end - and a judge that looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from broken_engines import repeat_blindly

import postgres_server
from nano_vm.cli.main import main
from nano_vm.testing.chaos import soak as soaking
from nano_vm.testing.chaos.soak import Report, Sample, SoakOutside, judge, soak


def test_a_short_soak_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "soak", "--seconds", "4", "--durability", "normal", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["violations"] == []
    assert report["kills"] >= soaking.VICTIMS
    assert report["runs"] > 16
    assert sum(report["statuses"].values()) == report["runs"]
    assert set(report["statuses"]) <= {"SUCCESS", "FAILED", "BUDGET_EXCEEDED", "CANCELLED", "SUSPENDED"}
    assert report["flat"] is None  # too short to say
    assert report["samples"][0]["handles"] > 0


def test_a_short_soak_over_postgres(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chaos", "soak", "--seconds", "4", "--durability", "normal", "--json"]
    assert main([*words, "--store", postgres_server.server()]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["store"].startswith("postgresql://")
    assert report["violations"] == []
    assert report["kills"] >= soaking.VICTIMS
    assert report["runs"] > 8
    assert sum(report["statuses"].values()) == report["runs"]


def test_a_broken_engine_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repeat_blindly(tmp_path, monkeypatch)
    report = soak(3, directory=tmp_path)
    assert any(violation.startswith("P4: hanging `slow`") for violation in report.violations)


def samples(memory: list[int], handles: list[int]) -> list[Sample]:
    return [
        Sample(
            at_s=2.0 * n, memory_bytes=size, handles=open_, threads=5, runs=n, database_bytes=1, log_bytes=1
        )
        for n, (size, open_) in enumerate(zip(memory, handles, strict=True))
    ]


@pytest.mark.parametrize(
    ("memory", "handles", "flat"),
    [
        ([50 + min(n, 8) for n in range(40)], [12] * 40, True),  # it gets warm, and stays so
        ([50 + n for n in range(40)], [12] * 40, False),
        ([50] * 40, [12 + n // 4 for n in range(40)], False),
    ],
    ids=["warm", "memory", "handles"],
)
def test_what_keeps_growing_is_told(
    memory: list[int], handles: list[int], flat: bool, tmp_path: Path
) -> None:
    outside = SoakOutside(tmp_path)
    outside.database.open("normal").close()
    for sample in samples(memory, handles):
        outside.note("samples", soaking.msgspec.to_builtins(sample))
    report = Report(seconds=600.0)
    soaking._take_samples(outside, report)
    judge(outside, report)
    assert report.flat is flat
    assert bool(report.violations) is not flat
