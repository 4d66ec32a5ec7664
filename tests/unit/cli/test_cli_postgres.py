"""The command line over a PostgreSQL database: as over a file, and the password in its address is shown nowhere."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import psycopg
import pytest

from nano_vm.stores.postgres import PostgresStore
from nano_vm.stores.postgres.connection import Address
from postgres_server import fresh_url
from unit.cli.conftest import RUN, Cli, Done, effects

PASSWORD = "hush-hush"


@pytest.fixture
def address() -> str:
    return fresh_url().replace("postgres:@", f"postgres:{PASSWORD}@")


def hushed(done: Done) -> Done:
    assert PASSWORD not in done.out + done.err
    return done


def test_a_run_goes_from_process_to_process(cli: Cli, process: Cli, place: Path, address: str) -> None:
    begun = hushed(process(*RUN, "--store", address, "--json"))
    assert begun.code == 6
    run_id = begun.json["trace_id"]
    (way,) = begun.json["continue"]
    words = shlex.split(way["command"].replace("--principal YOU", "--principal ana"))
    words[words.index("--store") + 1] = (
        address  # what is shown has no password, as pasted it takes that from elsewhere
    )
    ended = hushed(process(*words[words.index("resume") :], "--json"))
    assert (ended.code, ended.json["status"], ended.json["outcome"]) == (0, "SUCCESS", "sealed")
    assert effects(place) == ["ana"]
    store = ("--store", address)
    assert hushed(cli("runs", *store, "--json")).json["runs"][0]["trace_id"] == run_id
    for words in (
        ("trace", run_id),
        ("verify",),
        ("replay", run_id),
        ("doctor",),
        ("log", "show"),
        ("recover", "--tools", "tools.py", "--model", "mock:yes"),
        ("export", run_id, "-o", "bundle.json"),
        ("verify", "bundle.json"),
        ("fork", run_id, "kind", "--tools", "tools.py", "--model", "mock:yes"),
    ):
        done = hushed(cli(*words, *(() if words[-1] == "bundle.json" and words[0] == "verify" else store)))
        assert done.code in (0, 6), (words, done)


def test_files_that_belong_to_the_database_lie_in_the_working_directory(
    cli: Cli, place: Path, address: str
) -> None:
    assert hushed(cli("vault", "init", "--store", address)).code == 0
    assert hushed(cli(*RUN, "--cache", "--store", address)).code == 6
    assert not [path for path in place.iterdir() if ":" in path.name or "hush" in path.name]
    assert [path.name for path in place.iterdir() if path.name.startswith("postgres")]


def test_a_database_without_runs_is_not_taken_for_an_empty_one(cli: Cli, address: str) -> None:
    for words in (("runs",), ("verify",), ("doctor",), ("recover", "--tools", "tools.py")):
        done = hushed(cli(*words, "--store", address))
        assert done.code != 0
        assert "STORE_NOT_FOUND" in done.out + done.err


def test_a_server_that_is_not_there_is_named_without_secrets(cli: Cli) -> None:
    done = hushed(cli("runs", "--store", f"postgresql://ana:{PASSWORD}@127.0.0.1:1/runs", "--json"))
    error = json.loads(done.out or done.err)["error"]
    assert error["code"] == "STORE_IO"
    assert error["facts"]["path"] == "postgresql://ana@127.0.0.1:1/runs"
    assert hushed(cli("runs", "--store", f"postgresql://ana:{PASSWORD}@[", "--json")).code == 2


def test_the_gateway_takes_no_address(cli: Cli, place: Path, address: str) -> None:
    (place / "gateway.yaml").write_text("durability: normal\n")
    for words in (
        ("mcp", "serve", "--config", "gateway.yaml"),
        ("mcp", "pins", "--config", "gateway.yaml"),
        ("token", "create", "--principal", "ana"),
    ):
        done = hushed(cli(*words, "--store", address, "--json"))
        assert (done.code, json.loads(done.out or done.err)["error"]["code"]) == (2, "USAGE")
    assert not list(place.glob("postgres*"))


def test_stores_in_one_database_have_files_of_their_own(cli: Cli, place: Path) -> None:
    """A vault that two of them shared would lose a person of one who is erased from the other."""
    for name in ("eu", "us"):
        found = cli(
            "vault", "init", "--store", f"postgresql://ana@db/runs?options=-csearch_path%3D{name}", "--json"
        )
        assert found.code == 0
    assert cli("vault", "init", "--store", "postgresql://ana@db/runs", "--json").code == 0
    assert (
        cli("vault", "init", "--store", "postgresql://ana@db/runs?options=-csearch_path%3Dpublic").code == 2
    )
    files = {path.name for path in place.iterdir() if path.name.startswith("runs")}
    assert files == {f"{name}.{kind}" for name in ("runs", "runs.eu", "runs.us") for kind in ("key", "keys")}


def test_names_that_no_file_can_have_are_told_apart() -> None:
    names = {Address(f"postgresql://ana@db/{name}").database for name in ("a%2Fb", "a%20b", "a_b")}
    assert len(names) == 3
    assert all("/" not in name for name in names)


def test_a_vault_serves_one_database_of_its_name(cli: Cli, place: Path, address: str) -> None:
    assert cli("vault", "init", "--store", address).code == 0
    for store in (address, address):
        assert cli(*RUN, "--store", store).code == 6
    with psycopg.connect(address, autocommit=True) as con:  # another server, say, has one of the same name
        schema = con.execute("SELECT current_schema()::text").fetchone()
        assert schema is not None
        con.execute(f"DROP SCHEMA {schema[0]} CASCADE; CREATE SCHEMA {schema[0]}".encode())
    for store in ((address,), (address, "--tenant", "shop")):
        done = cli(*RUN, "--store", *store, "--json")
        assert (done.code, done.json["error"]["code"]) == (2, "VAULT_FOREIGN")


def test_the_commands_of_a_vault_look_whose_it_is_as_runs_do(
    cli: Cli, place: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret was kept, and a person held, in the vault of another database."""
    monkeypatch.setattr("sys.stdin", io.StringIO("4111"))
    assert cli("vault", "init", "--store", address).code == 0
    assert cli("vault", "put", "early", "--store", address).code == 0  # there are no tables yet, and no mark
    assert cli(*RUN, "--store", address).code == 6
    assert cli("vault", "list", "--store", address).code == 0
    with psycopg.connect(address, autocommit=True) as con:
        schema = con.execute("SELECT current_schema()::text").fetchone()
        assert schema is not None
        con.execute(f"DROP SCHEMA {schema[0]} CASCADE; CREATE SCHEMA {schema[0]}".encode())
    commands = (
        ("init",),
        ("put", "card"),
        ("list",),
        ("rotate", "early"),
        ("rotate", "--kek"),
        ("hold", "early", "--reason", "case 7"),
        ("release", "early"),
        ("erase", "early", "--reason", "asked", "--as", "ana"),
    )
    for words in commands[:-1]:  # nothing says whose it is
        done = cli("vault", *words, "--store", address, "--json")
        assert (done.code, done.json["error"]["code"]) == (2, "STORE_NOT_FOUND")
    PostgresStore(address).close()
    for words in commands:
        done = cli("vault", *words, "--store", address, "--json")
        assert (done.code, done.json["error"]["code"]) == (2, "VAULT_FOREIGN"), words


def test_doctor_tells_of_sessions_in_which_guards_are_off(cli: Cli, address: str) -> None:
    assert cli(*RUN, "--store", address).code == 6
    done = cli("doctor", "--store", f"{address}%20-csession_replication_role%3Dreplica", "--json")
    assert done.code == 1
    assert any("STORE_UNGUARDED" in finding["text"] for finding in done.json["findings"])
