"""`nano-vm bench`: every scenario checks its invariant - and notices an engine that breaks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

import postgres_server
from nano_vm.cli.main import main
from nano_vm.errors import VerificationError
from nano_vm.evidence import envelope
from nano_vm.journal import replay
from nano_vm.journal.trace import Trace
from nano_vm.kernel import transition
from nano_vm.runtime import calls, intents
from nano_vm.runtime.engine import Engine
from nano_vm.runtime.tooling import EFFECTS
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.bench import records
from nano_vm.testing.bench.plot import short, svg
from nano_vm.testing.bench.setting import Figures, Options, Setting, percentiles
from nano_vm.testing.bench.suite import SCENARIOS, carry_out, run_bench
from nano_vm.testing.databases import Schemas

Patch = pytest.MonkeyPatch
QUICK = Options(durability="normal", quick=True)


def test_there_are_the_ten_scenarios() -> None:
    assert list(SCENARIOS) == [
        "refund_pipeline",
        "double_execution_guard",
        "budget",
        "parallel",
        "store_round_trip",
        "envelopes",
        "crash_consistency",
        "replay",
        "adversarial_retries",
        "long_horizon",
    ]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_invariant_holds_and_was_looked_at(name: str, tmp_path: Path) -> None:
    figures = carry_out(name, tmp_path, QUICK)
    assert figures.violations == []
    assert figures.holds
    assert figures.checks >= 10
    assert min(figures.runs, figures.steps, figures.throughput, figures.cpu_us_per_step) > 0
    assert figures.latency_ms["p50"] <= figures.latency_ms["p95"] <= figures.latency_ms["p99"]
    assert figures.peak_memory_bytes > 2**20
    assert figures.stored_bytes_per_step > 0


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "crash_consistency"])
def test_the_same_holds_in_memory(name: str, tmp_path: Path) -> None:
    figures = carry_out(name, tmp_path, Options(store="memory", quick=True))
    assert figures.violations == []
    assert figures.stored_bytes_per_step > 0
    assert not (tmp_path / "runs.db").exists()


@pytest.mark.parametrize("name", ["refund_pipeline", "crash_consistency", "store_round_trip"])
def test_the_same_holds_over_postgres(name: str) -> None:
    before = postgres_server.operate("SELECT count(*) FROM pg_namespace")
    options = Options(store="postgresql", durability="normal", quick=True)
    (figures,) = run_bench([name], options, grounds=Schemas(postgres_server.server(), "bench"))
    assert figures.violations == []
    assert (figures.store, figures.durability) == ("postgresql", "normal")
    assert figures.holds
    assert figures.stored_bytes_per_step > 0
    assert postgres_server.operate("SELECT count(*) FROM pg_namespace") == before


# --- engines that break what is checked -------------------------------------------------------------------------------


def tools_are_called_twice(patch: Patch, place: Path) -> None:
    invoke = calls.Calls._invoke

    async def twice(self: Any, *args: Any, **options: Any) -> Any:
        await invoke(self, *args, **options)
        return await invoke(self, *args, **options)

    async def skip(run: Any) -> None:
        return None

    patch.setattr("nano_vm.runtime.driver.drive_lane", skip)
    patch.setattr(calls.Calls, "_invoke", twice)


def keys_are_ignored(patch: Patch, place: Path) -> None:
    run = Engine.run

    async def forgetful(self: Any, program: Any, context: Any = None, **options: Any) -> Any:
        return await run(self, program, context, **{**options, "idempotency_key": None})

    patch.setattr(Engine, "run", forgetful)


def budgets_are_generous(patch: Patch, place: Path) -> None:
    from nano_vm.kernel import ending

    admits = ending.admits_step
    for module in ("flow", "transition", "groups"):
        patch.setattr(
            f"nano_vm.kernel.{module}.admits_step",
            lambda program, state: state.steps < state.steps_max + 2 or admits(program, state),
        )


def trace_hashes_tell_runs_apart(patch: Patch, place: Path) -> None:
    patch.setattr(Trace, "trace_hash", property(lambda self: self.head))


def the_last_entry_is_not_read(patch: Patch, place: Path) -> None:
    read = SqliteStore.read

    def short_sighted(self: Any, run_id: str, start: int = 0, limit: Any = None, tenant: Any = None) -> Any:
        return read(self, run_id, start, limit, tenant)[:-1]

    patch.setattr(SqliteStore, "read", short_sighted)


def envelopes_show_values(patch: Patch, place: Path) -> None:
    enclose = envelope._Gathered._envelope

    def talkative(self: Any, entry: Any, event: Any, result: Any, digest: str) -> dict[str, Any]:
        return {**enclose(self, entry, event, result, digest), "value": result.output}

    patch.setattr(envelope._Gathered, "_envelope", talkative)


def unknown_outcomes_are_repeated(patch: Patch, place: Path) -> None:
    patch.setattr(intents, "REPEATABLE", frozenset(EFFECTS))
    patch.setattr(transition, "_ONCE", frozenset())
    broken = place / "broken"  # the same in every process that is started
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "from nano_vm.kernel import transition\n"
        "from nano_vm.runtime import intents\n"
        "from nano_vm.runtime.tooling import EFFECTS\n"
        "intents.REPEATABLE = frozenset(EFFECTS)\n"
        "transition._ONCE = frozenset()\n"
    )
    patch.syspath_prepend(str(broken))


def changes_are_not_found(patch: Patch, place: Path) -> None:
    verify = replay.verify_run

    def lenient(*args: Any, **options: Any) -> Any:
        try:
            return verify(*args, **options)
        except VerificationError:
            return None

    patch.setattr(records, "verify_run", lenient)


@pytest.mark.parametrize(
    ("name", "mutant", "promise"),
    [
        ("refund_pipeline", tools_are_called_twice, "P4"),
        ("double_execution_guard", keys_are_ignored, "P4"),
        ("budget", budgets_are_generous, "P10"),
        ("parallel", trace_hashes_tell_runs_apart, "P5"),
        ("store_round_trip", the_last_entry_is_not_read, "P12"),
        ("envelopes", envelopes_show_values, "P8"),
        ("crash_consistency", unknown_outcomes_are_repeated, "P4"),
        ("replay", changes_are_not_found, "P6"),
        ("adversarial_retries", unknown_outcomes_are_repeated, "P4"),
        ("long_horizon", tools_are_called_twice, "P4"),
    ],
)
def test_a_broken_engine_is_noticed(
    name: str, mutant: Callable[[Patch, Path], None], promise: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    mutant(monkeypatch, tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    figures = carry_out(name, place, QUICK)
    assert not figures.holds
    assert promise in {violation.partition(":")[0] for violation in figures.violations}


def test_a_scenario_that_checks_nothing_does_not_hold() -> None:
    assert not Figures(name="idle").holds


# --- figures ----------------------------------------------------------------------------------------------------------


def test_percentiles_are_the_nearest_rank() -> None:
    assert percentiles(n / 1_000 for n in range(100, 0, -1)) == {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([0.002]) == {"p50": 2, "p95": 2, "p99": 2, "max": 2}
    assert percentiles([]) == {}


def test_an_error_of_the_work_is_raised_and_what_was_done_is_timed(tmp_path: Path) -> None:
    setting = Setting("one", tmp_path, QUICK)

    async def good() -> int:
        return 1

    async def bad() -> int:
        raise KeyError("no")

    with pytest.raises(KeyError):
        asyncio.run(setting.timed([good, bad, good]))
    assert asyncio.run(setting.timed([good, good], width=2)) == [1, 1]
    assert setting.finish().throughput > 0


def test_the_picture_is_one_file_that_marks_what_was_broken() -> None:
    good = Figures(name="good", checks=1, throughput=12.0, latency_ms={"p50": 1.0, "p99": 20.0})
    bad = Figures(name="bad<", checks=1, violated=1)
    picture = svg([good, bad], 'a "title" & more')
    root = ElementTree.fromstring(picture)
    assert root.attrib["aria-label"] == 'a "title" & more'
    texts = {
        element.text: element.attrib.get("class") for element in root.iter() if element.tag.endswith("text")
    }
    assert texts["✗ bad<"] == "bad"
    assert texts["✓ good"] is None
    assert "1.00 – 20.0" in texts
    assert "href" not in picture


def test_figures_are_shown_with_three_digits() -> None:
    assert [short(n) for n in (0.0123, 1, 12.34, 123.4, 999.9, 1_234, 99_990, 2_500_000)] == [
        "0.01",
        "1.00",
        "12.3",
        "123",
        "1.00k",
        "1.23k",
        "100k",
        "2.50M",
    ]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_measures_each_scenario_in_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "bench.svg"
    told = [
        "bench",
        "--quick",
        "--only",
        "budget,replay",
        "--store",
        "memory",
        "--plot",
        str(picture),
        "--json",
    ]
    assert main(told) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["store"], one["holds"]) for one in found["scenarios"]] == [
        ("budget", "memory", True),
        ("replay", "memory", True),
    ]
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_a_broken_invariant_is_an_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Patch
) -> None:
    unknown_outcomes_are_repeated(monkeypatch, tmp_path)
    assert (
        main(["bench", "--quick", "--only", "adversarial_retries", "--durability", "normal", "--json"]) == 1
    )
    (row,) = json.loads(capsys.readouterr().out)["scenarios"]
    assert row["violated"] > 0
    assert row["violations"][0].startswith("P4: ")


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--only", "refunds"],
        ["bench", "--store", "postgres"],
        ["--store", "x.db", "bench"],
        ["bench", "--quick", "--only", "budget", "--store", "memory", "--plot", "/nowhere/at/all.svg"],
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2


def test_a_process_that_dies_is_a_failure(monkeypatch: Patch) -> None:
    monkeypatch.setattr("nano_vm.testing.bench.suite.sys.executable", "/bin/false")
    (figures,) = run_bench(["budget"], QUICK)
    assert not figures.holds
    assert msgspec.to_builtins(figures)["violations"][0].startswith("P11: ")
