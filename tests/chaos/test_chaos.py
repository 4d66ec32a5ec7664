"""`nano-vm chaos`: real processes, real kills, effects counted outside - and a judge that notices a broken engine."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from broken_engines import repeat_blindly

import postgres_server
from nano_vm import Program
from nano_vm.cli.main import main
from nano_vm.errors import StoreError
from nano_vm.stores.postgres import PostgresStore
from nano_vm.testing.chaos.campaign import SCENARIOS, Figures, run_campaign, run_round
from nano_vm.testing.chaos.outside import failure
from nano_vm.testing.databases import PostgresSchema, Schemas
from nano_vm.vm import ExecutionVM

PASSWORD = "hush-hush"
SHORT = ("duplicate_execution", "mid_step_crash", "suspend_resume_races", "model_noise")


def named(name: str):
    return next(one for one in SCENARIOS if one.name == name)


def test_there_are_the_thirteen_scenarios() -> None:
    assert len({one.name for one in SCENARIOS}) == 13


@pytest.mark.parametrize("name", SHORT)
def test_no_promise_is_broken(name: str, tmp_path: Path) -> None:
    figures = Figures(name=name)
    run_round(named(name), tmp_path, 1, figures)
    assert figures.violations == []
    assert figures.runs == named(name).runs
    assert figures.events > figures.runs
    assert figures.effects > 0


@pytest.mark.campaign
@pytest.mark.parametrize("name", [one.name for one in SCENARIOS])
def test_no_promise_is_broken_in_many_rounds(name: str) -> None:
    (figures,) = run_campaign([name], seed=7, events=20_000, seconds=300)
    assert figures.violations == []
    assert figures.events > 0


def test_a_broken_engine_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of the scenario runs an engine that repeats unknown outcomes blindly."""
    repeat_blindly(tmp_path, monkeypatch)
    figures = Figures(name="timeout_drift")
    run_round(named("timeout_drift"), tmp_path / "place", 1, figures)
    assert any(violation.startswith("P4: hanging `slow`") for violation in figures.violations)


def test_what_a_process_failed_with_is_named() -> None:
    said = b"Traceback (most recent call last):\n  File ...\nnano_vm.errors.StoreError: STORE_IO gone\n  help: look\n"
    assert failure(said) == "a process failed: nano_vm.errors.StoreError: STORE_IO gone"
    assert failure(b"") == "a process failed: "


def test_the_command_tells_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "budget_storm", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["scenarios"]
    assert row["statuses"] == {"BUDGET_EXCEEDED": 40}
    assert row["violations"] == []


def test_simulations_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "simulate", "--seeds", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["broken"] == []
    assert told["transitions"] > 0


def test_an_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "mid_step_crahs"]) == 2


# --- over PostgreSQL --------------------------------------------------------------------------------------------------


def schemas() -> set[str]:
    return {name for (name,) in postgres_server.operate("SELECT nspname::text FROM pg_namespace")}


@pytest.mark.parametrize("name", ["mid_step_crash", "suspend_resume_races"])
def test_no_promise_is_broken_over_postgres(name: str, tmp_path: Path) -> None:
    before = schemas()
    figures = Figures(name=name)
    run_round(named(name), tmp_path, 1, figures, grounds=Schemas(postgres_server.server(), "chaos"))
    assert figures.violations == []
    assert figures.runs == named(name).runs
    assert figures.events > figures.runs
    assert figures.effects > 0
    assert figures.kills == named(name).kills
    assert not (tmp_path / "runs.db").exists()
    assert schemas() == before


@pytest.mark.campaign
@pytest.mark.parametrize("name", [one.name for one in SCENARIOS])
def test_no_promise_is_broken_in_many_rounds_over_postgres(name: str) -> None:
    grounds = Schemas(postgres_server.server(), "chaos")
    (figures,) = run_campaign([name], seed=7, events=5_000, seconds=300, grounds=grounds)
    assert figures.violations == []
    assert figures.events > 0


def test_a_broken_engine_is_noticed_over_postgres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repeat_blindly(tmp_path, monkeypatch)
    figures = Figures(name="timeout_drift")
    grounds = Schemas(postgres_server.server(), "chaos")
    run_round(named("timeout_drift"), tmp_path / "place", 1, figures, grounds=grounds)
    assert any(violation.startswith("P4: hanging `slow`") for violation in figures.violations)


def test_runs_that_were_there_before_are_left_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    address = postgres_server.fresh_url()
    program = Program.from_dict({"name": "kept", "steps": [{"id": "w", "type": "wait", "event": "go"}]})
    with PostgresStore(address) as store:
        kept = ExecutionVM(store=store).run_sync(program, trace_id="kept")
        before, head, fence = schemas(), store.record("kept").head, store.record("kept").fence
        shown = address.replace("postgres:@", f"postgres:{PASSWORD}@")
        assert main(["chaos", "budget_storm", "--store", shown, "--json"]) == 0
        out, err = capsys.readouterr()
        assert PASSWORD not in out + err
        told = json.loads(out)
        assert told["store"] == store.path
        assert told["scenarios"][0]["statuses"] == {"BUDGET_EXCEEDED": 40}
        assert (store.record("kept").head, store.record("kept").fence) == (head, fence)
        assert [record.run_id for record in ExecutionVM(store=store).runs()] == [kept.trace_id]
    assert schemas() == before


def test_who_may_make_no_schema_is_told_so(tmp_path: Path) -> None:
    ((user,),) = postgres_server.operate("SELECT 'chaos_' || md5(random()::text)")
    with psycopg.connect(postgres_server.server(), autocommit=True) as con:
        con.execute(f"CREATE ROLE {user} LOGIN".encode())
    address = postgres_server.server().replace("//postgres:@", f"//{user}:@")
    with pytest.raises(StoreError) as told:
        run_round(named("budget_storm"), tmp_path, 1, Figures(name="x"), grounds=Schemas(address, "chaos"))
    assert told.value.code == "STORE_READ_ONLY"
    assert told.value.facts["sqlstate"] == "42501"


def test_a_schema_goes_whatever_happened_in_it(tmp_path: Path) -> None:
    before = schemas()
    grounds = Schemas(postgres_server.server(), "chaos")

    def interrupted() -> None:
        with grounds.fresh(tmp_path, ("CREATE TABLE booked (run TEXT)",)) as made:
            made.open("normal").close()
            assert made.rows("booked", "run") == []
            assert made.rows("nothing", "run") == []
            assert made.stored_bytes() > 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert schemas() == before


def test_a_server_that_has_gone_is_named() -> None:
    gone = PostgresSchema("postgresql://127.0.0.1:1/nobody")
    for ask in (gone.stored_bytes, lambda: gone.rows("booked", "run")):
        with pytest.raises(StoreError) as told:
            ask()
        assert told.value.code == "STORE_IO"


def test_simulations_over_postgres_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = schemas()
    words = ["chaos", "simulate", "--seeds", "2", "--store", postgres_server.server(), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["broken"], told["store"].partition("://")[0]) == ([], "postgresql")
    assert schemas() == before


@pytest.mark.parametrize("words", [("chaos", "budget_storm"), ("chaos", "soak"), ("bench", "--quick")])
def test_a_database_file_is_not_what_is_broken(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for store in (str(tmp_path / "mine.db"), "postgresql://ana@[", ""):
        assert main([*words, "--store", store, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "USAGE"
    assert list(tmp_path.iterdir()) == []


def test_the_variable_of_other_commands_names_nothing_to_break(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANO_VM_STORE", "postgresql://127.0.0.1:1/nobody")
    assert main(["chaos", "budget_storm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == "sqlite"
