"""Whatever is wrong with a command, a file or a database: a documented code, no traceback, stored data intact."""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nano_vm.cli.arguments import json_value, number, whole
from nano_vm.cli.main import COMMANDS, command_module, command_parser
from nano_vm.errors import CODES, InputError
from unit.cli.conftest import RUN, Cli, effects

DRIVE = ("--tools", "tools.py", "--model", "mock:yes")

USAGE = [
    ((), "USAGE"),
    (("rnu",), "USAGE"),
    (("--nonsense",), "USAGE"),
    (("run",), "USAGE"),
    (("run", "greeting.yaml", "--nonsense"), "USAGE"),
    (("run", "greeting.yaml", "--durability", "some"), "USAGE"),
    (("run", "greeting.yaml", *DRIVE, "--input", "name"), "USAGE"),
    (("run", "greeting.yaml", *DRIVE, "--input", "=1"), "USAGE"),
    (("run", "greeting.yaml", *DRIVE, "--input", "name=a", "--input", "name=b"), "USAGE"),
    (("run", "greeting.yaml", *DRIVE, "--input", "name=a", "--trace-id", ""), "USAGE"),
    (("run", "greeting.yaml", *DRIVE, "--input", "name=a", "--role", "boss"), "USAGE"),
    (("run", "greeting.yaml", *DRIVE, "--input", "name=a", "--principal", ""), "USAGE"),
    (("run", "greeting.yaml", *DRIVE), "INPUT_MISSING"),
    (("run", "greeting.yaml", *DRIVE, "--input", "name=a", "--input", "nmae=b"), "INPUT_UNKNOWN"),
    (("run", "greeting.yaml", *DRIVE, "--input", "name=a", "--input", "times=1.5"), "INPUT_INVALID"),
    (("run", "greeting.yaml", *DRIVE, "--input", "name=12345678901234567890"), "VALUE_NUMBER"),
    (("run", "greeting.yaml", *DRIVE, "--input-file", "no.yaml"), "INPUT_FILE"),
    (("run", "greeting.yaml", *DRIVE, "--input-file", "list.json"), "INPUT_FILE"),
    (("run", "greeting.yaml", *DRIVE, "--input-file", "cut.json"), "INPUT_FILE"),
    (("run", "greeting.yaml", "--model", "mock:yes", "--input", "name=a"), "INVALID_PROGRAM"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--input", "name=a"), "MODEL_MISSING"),
    (("run", "greeting.yaml", "--tools", "no.py", "--model", "mock:yes"), "TOOLS_UNREADABLE"),
    (("run", "greeting.yaml", "--tools", "no_such_module", "--model", "mock:yes"), "TOOLS_UNREADABLE"),
    (("run", "greeting.yaml", "--tools", "raises.py"), "TOOLS_FAILED"),
    (("run", "greeting.yaml", "--tools", "exits.py"), "TOOLS_FAILED"),
    (("run", "greeting.yaml", "--tools", "syntax.py"), "TOOLS_FAILED"),
    (("run", "greeting.yaml", "--tools", "empty.py"), "TOOLS_EMPTY"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--tools", "tools2.py"), "TOOLS_CONFLICT"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--model", "gpt"), "USAGE"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--model", "mock:@"), "USAGE"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--model", "http://"), "USAGE"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--model", "https://me:secret@host/v1"), "USAGE"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--model", "mock:@no.yaml"), "SCRIPT"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--model", "script:list.json"), "SCRIPT"),
    (("run", "greeting.yaml", "--tools", "tools.py", "--base-url", "http://x"), "USAGE"),
    (("run", "no.yaml", *DRIVE), "PROGRAM_UNREADABLE"),
    (("run", ".", *DRIVE), "PROGRAM_UNREADABLE"),
    (("run", "broken.yaml", *DRIVE), None),
    (("run", "greeting.yaml", *DRIVE, "--input", "name=a", "--program", "no.yaml"), "PROGRAM_UNREADABLE"),
    (("check", "no.yaml"), "PROGRAM_UNREADABLE"),
    (("check", "greeting.yaml", "--tools", "raises.py"), "TOOLS_FAILED"),
    (("resume", "ID"), "USAGE"),
    (("resume", "ID", "--event", "{"), "USAGE"),
    (("resume", "ID", "--event", '{"a": 1, "a": 2}'), "USAGE"),
    (("resume", "ID", "--event", "NaN"), "USAGE"),
    (("resume", "ID", "--event", "@no.json"), "USAGE"),
    (("resume", "ID", "--event", "1", "--approve"), "USAGE"),
    (("resume", "nobody", "--approve", *DRIVE), "RUN_NOT_FOUND"),
    (("resume", "ID", "--approve", *DRIVE), "NOT_APPROVER"),
    (("resume", "ID", "--event", '"yes"', "--principal", "a", "--role", "boss", *DRIVE), "NOT_APPROVAL"),
    (("resume", "ID", "--approve", "--step", "nowhere", *DRIVE), None),
    (("resume", "ID", "--approve", "--event-id", "x" * 10_000, *DRIVE), "EVENT_ID"),
    (("resolve", "ID", "greet"), "USAGE"),
    (("resolve", "ID", "greet", "--succeeded", "nope", *DRIVE), "USAGE"),
    (("trace", "nobody"), "RUN_NOT_FOUND"),
    (("trace", "\x1b[31m"), "RUN_NOT_FOUND"),
    (("replay", "nobody"), "RUN_NOT_FOUND"),
    (("verify", "nobody"), "RUN_NOT_FOUND"),
    (("verify", "--all", "ID"), "USAGE"),
    (("watch", "nobody"), "RUN_NOT_FOUND"),
    (("cancel", "nobody"), "RUN_NOT_FOUND"),
    (("diff", "ID", "nobody"), "RUN_NOT_FOUND"),
    (("fork", "nobody", "greet"), "RUN_NOT_FOUND"),
    (("fork", "ID", "judge", "--set", "nmae=1", *DRIVE), "UNKNOWN_VALUE"),
    (("fork", "ID", "judge"), "TOOLS_MISSING"),
    (("runs", "--limit", "0"), "USAGE"),
    (("runs", "--limit", "many"), "USAGE"),
    (("runs", "--status", "DONE"), "USAGE"),
    (("recover", "--interval", "-1"), "USAGE"),
    (("recover", "--interval", "nan"), "USAGE"),
    (("schema", "of_everything"), "USAGE"),
    (("completion", "tcsh"), "USAGE"),
    (("demo", "refund", "--keep", "."), "USAGE"),
]


OTHER_DIGITS = "\u0661\u0662"  # Arabic-Indic 12, which Python takes for a number
NO_WHOLE = (OTHER_DIGITS, "1_0", " 1", "+1", "1.0", "1e1", "", "-", "\uff11", "9" * 5_000)
NO_NUMBER = (OTHER_DIGITS, "1_0.5", " 1", "1e", "nan", "inf", "-Infinity", "1e999", "", ".", "9" * 5_000)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_takes_a_number_takes_plain_digits_alone(command: str) -> None:
    parser = command_parser(command, command_module(command))
    options = [action for action in parser._actions if action.type is not None]
    for option in options:
        assert option.type in (whole, number), option.option_strings
        for text in NO_WHOLE if option.type is whole else NO_NUMBER:
            with pytest.raises(argparse.ArgumentTypeError):
                option.type(text)
        assert option.type("12") == 12
        assert option.type("-3") == -3
    assert number("0.5") == number(".5") == number("5e-1")


@pytest.mark.parametrize("words", [("studio", "--port"), ("chaos", "--seed"), ("runs", "--limit")])
def test_digits_of_another_script_are_no_number(cli: Cli, waiting: str, words: tuple[str, ...]) -> None:
    done = cli(*words, OTHER_DIGITS, "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "USAGE")


@pytest.mark.parametrize("where", [OTHER_DIGITS, f"127.0.0.1:{OTHER_DIGITS}", "1_0", "9" * 5_000, "65536"])
def test_a_port_of_metrics_is_written_in_plain_digits(cli: Cli, waiting: str, where: str) -> None:
    done = cli("recover", "--loop", "--metrics", where, *DRIVE, "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "USAGE")


@pytest.fixture
def bad_files(place: Path) -> Path:
    (place / "list.json").write_text("[1, 2]")
    (place / "cut.json").write_text('{"name": ')
    (place / "broken.yaml").write_text("name: x\nsteps:\n  - {id: a, type: tol}\n  - {id: a, type: tool}\n")
    (place / "raises.py").write_text("1 / 0\n")
    (place / "exits.py").write_text("raise SystemExit(3)\n")
    (place / "syntax.py").write_text("def f(:\n")
    (place / "empty.py").write_text("import os\nx = 1\n")
    shutil.copy(place / "tools.py", place / "tools2.py")
    return place


@pytest.mark.parametrize(("words", "code"), USAGE, ids=lambda value: str(value)[:60])
def test_a_bad_command_names_its_code_and_leaves_everything_as_it_was(
    cli: Cli, bad_files: Path, waiting: str, words: tuple[str, ...], code: str | None
) -> None:
    before = cli("trace", waiting, "--json").json
    done = cli(*(waiting if word == "ID" else word for word in words), "--json")
    error = done.json["error"]
    if code is not None:
        assert error["code"] == code
    assert done.code == done.json["exit_code"] == CODES[error["code"]].exit_code
    assert done.code not in (0, 6, 70)
    assert "secret" not in done.out + done.err
    assert "\x1b" not in done.out + done.err
    after = cli("trace", waiting, "--json").json
    assert (before["status"], before["path"]) == (after["status"], after["path"])
    assert cli("verify").code == 0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def newer(path: Path) -> None:
    with sqlite3.connect(path) as con:
        con.execute("PRAGMA user_version=9999")
    con.close()


def foreign(path: Path) -> None:
    path.unlink()
    con = sqlite3.connect(path)
    con.execute("CREATE TABLE mine (x)")
    con.close()


def text(path: Path) -> None:
    path.write_text(
        "hello, this is not a database at all, but a letter of more than a hundred characters to you\n" * 9
    )


def zeros(path: Path) -> None:
    path.write_bytes(bytes(8192))


@pytest.mark.parametrize(
    ("damage", "codes"),
    [
        (truncate, {"STORE_DAMAGED"}),
        (newer, {"STORE_NEWER"}),
        (foreign, {"STORE_FOREIGN"}),
        (text, {"STORE_FOREIGN"}),
        (zeros, {"STORE_FOREIGN", "STORE_DAMAGED"}),
    ],
)
def test_a_bad_database_is_refused_by_every_command_and_not_touched(
    cli: Cli, place: Path, waiting: str, damage: Callable[[Path], None], codes: set[str]
) -> None:
    path = place / "nano-vm.db"
    damage(path)
    before = path.read_bytes()
    for words in (
        RUN,
        ("runs",),
        ("trace", waiting),
        ("verify",),
        ("resume", waiting, "--approve", *DRIVE),
        ("recover", *DRIVE),
        ("watch", "--once"),
        ("replay", waiting),
    ):
        done = cli(*words, "--json")
        assert done.json["error"]["code"] in codes, words
        assert done.code == CODES[done.json["error"]["code"]].exit_code
    doctor = cli("doctor", "--json")
    assert doctor.code == 1
    assert any(finding["level"] == "problem" for finding in doctor.json["findings"])
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["runs", "verify", "recover", "trace x", "resume x --approve", "watch"])
def test_looking_into_a_database_that_does_not_exist_makes_none(cli: Cli, place: Path, command: str) -> None:
    done = cli(*command.split(), "--json", "--store", "none.db")
    assert (done.code, done.json["error"]["code"]) == (2, "STORE_NOT_FOUND")
    assert not (place / "none.db").exists()
    assert cli("doctor", "--json", "--store", "none.db").code == 0
    assert not (place / "none.db").exists()


@pytest.mark.parametrize("path", ["nowhere/a.db", "."])
def test_a_database_in_an_impossible_place_is_refused(cli: Cli, path: str) -> None:
    done = cli(*RUN, "--json", "--store", path)
    assert done.json["error"]["code"] == "STORE_IO"
    assert done.code == 1


def test_every_finding_of_a_program_has_place_and_remedy(cli: Cli, bad_files: Path) -> None:
    done = cli("check", "broken.yaml", "--json")
    assert done.code == 3
    (file,) = done.json["files"]
    assert file["ok"] is False
    codes = {finding["code"] for finding in file["findings"]}
    assert "DUPLICATE_ID" in codes
    for finding in file["findings"]:
        assert finding["line"] >= 1
        assert finding["column"] >= 1
    run = cli("run", "broken.yaml", "--json")
    assert run.code == 3
    assert {finding["code"] for finding in run.json["error"]["facts"]["findings"]} == codes


def test_a_changed_byte_fails_verification_and_names_the_entry(cli: Cli, place: Path, waiting: str) -> None:
    path = place / "nano-vm.db"
    data = path.read_bytes()
    at = data.index(b'"hello ana"')
    path.write_bytes(data[: at + 1] + b"j" + data[at + 2 :])
    done = cli("verify", "--json")
    assert done.code == 5
    assert done.json["runs"][0]["error"]["code"] == "COMMITMENT_MISMATCH"
    assert type(done.json["runs"][0]["error"]["facts"]["seq"]) is int
    assert cli("verify").code == 5
    assert cli("replay", waiting, "--json").code == 5
    assert (
        cli("resume", waiting, "--approve", "--principal", "a", "--role", "boss", *DRIVE, "--json").code == 5
    )


def test_a_defect_is_reported_as_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from nano_vm.cli.commands import schema

    def broken(*_: object) -> int:
        raise ZeroDivisionError("private words")

    monkeypatch.setattr(schema, "execute", broken)
    done = cli("schema", "--json")
    assert (done.code, done.json["error"]["code"]) == (70, "INTERNAL")
    assert "private words" not in done.out + done.err


def test_streaming_without_json_is_refused(cli: Cli) -> None:
    assert cli("run", "greeting.yaml", *DRIVE, "--input", "name=a", "--stream").code == 2


def test_debug_adds_the_traceback(process: Cli, place: Path) -> None:
    from unit.cli.conftest import start

    child = start(place, "trace", "x", "--store", "none.db", "--debug")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 2
    assert b"Traceback" in err


def test_a_program_that_reads_ahead_is_refused_by_run_as_by_check(cli: Cli, place: Path) -> None:
    step = "{id: %s, type: tool, tool: greet, args: {name: %s}}"
    (place / "ahead.yaml").write_text(f"steps:\n  - {step % ('a', '$b.output')}\n  - {step % ('b', 'x')}\n")
    for argv in (("check", "ahead.yaml"), ("run", "ahead.yaml", "--tools", "tools.py")):
        done = cli(*argv)
        assert (done.code, "UNASSIGNED_REFERENCE" in done.err + done.out) == (3, True)


def test_an_emptied_database_is_not_called_verified(cli: Cli, place: Path) -> None:
    (place / "nano-vm.db").write_bytes(b"")
    for command in ("verify", "runs", "recover"):
        done = cli(command)
        assert (done.code, "STORE_NOT_FOUND" in done.err) == (2, True)


def test_a_name_that_is_too_long_for_a_file_is_a_usage_error(cli: Cli) -> None:
    for command in (("runs",), (*RUN,)):
        done = cli(*command, "--store", "a" * 5_000)
        assert (done.code, done.err.split()[0]) == (2, "USAGE")


@pytest.mark.parametrize(
    "command",
    [
        ("--store", "a" * 5_000, "doctor"),
        ("--store", "a" * 5_000, "vault", "list"),
        ("--store", "a" * 5_000, "vault", "init"),
        ("--key-file", "a" * 5_000, "vault", "list"),
        ("--key-file", "a" * 5_000, "runs"),
        ("--key-file", ".", "vault", "list"),
        (*RUN, "--model", "pool:" + "a" * 5_000),
        *(
            (*words, "\udcff")
            for words in (("trace",), ("receipt",), ("cancel",), ("log", "prove"), ("diff", "r1"))
        ),
        *((*words, "\udcff") for words in (("runs", "--program"), ("token", "revoke"), ("runs", "--tenant"))),
    ],
    ids=lambda command: " ".join(command)[-20:].encode("ascii", "backslashreplace").decode(),
)
def test_names_that_nothing_can_have_are_no_defects(
    cli: Cli, place: Path, waiting: str, command: tuple[str, ...]
) -> None:
    assert cli(*command).code in (1, 2)


def test_a_program_that_calls_itself_is_found_without_its_store(cli: Cli, place: Path) -> None:
    (place / "self.yaml").write_text("name: p\nsteps: [{id: a, type: call, program: p}]\n")
    done = cli("check", "self.yaml")
    assert (done.code, "CALL_RECURSION" in done.err + done.out) == (3, True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("words", [("runs",), ("runs", "--json"), ("trace", "none", "--json"), ("schema",)])
@pytest.mark.parametrize("stream", [">/dev/full", ">&-", "<&- >&- 2>&-"])
def test_an_output_that_takes_nothing_is_no_defect(
    place: Path, waiting: str, words: tuple[str, ...], stream: str
) -> None:
    command = [sys.executable, "-m", "nano_vm.cli", *words]
    before = (place / "nano-vm.db").read_bytes()
    done = subprocess.run(
        ["sh", "-c", f'"$@" {stream}', "sh", *command],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    assert "INTERNAL" not in done.stderr
    assert (place / "nano-vm.db").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize(
    "words",
    [
        ("runs",),
        ("verify",),
        (*RUN, "--cache"),
        ("recover", "--tools", "tools.py"),
        ("log", "show"),
        ("vault", "init"),
        ("vault", "list"),
        ("token", "list"),
        ("mcp", "pins"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
@pytest.mark.parametrize(("kind", "code"), [("pipe", "STORE_FOREIGN"), ("directory", "STORE_IO")])
def test_what_cannot_be_a_database_is_refused_and_nothing_is_made_beside_it(
    process: Cli, place: Path, words: tuple[str, ...], kind: str, code: str
) -> None:
    """In a process of its own: whoever opened a pipe would wait for ever."""
    (place / "odd").mkdir()
    path = place / "odd" / "store"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    done = process(*words, "--store", str(path), "--json")
    assert done.json["error"]["code"] == code
    assert os.listdir(place / "odd") == ["store"]
    assert not effects(place)


def test_doctor_says_what_cannot_be_a_database(process: Cli, place: Path) -> None:
    path = place / "store"
    os.mkfifo(path)
    done = process("doctor", "--store", str(path), "--json")
    assert done.code == 1
    assert "STORE_FOREIGN" in done.out


@pytest.mark.parametrize(
    "words",
    [("trace", "ID", "--html", "out"), ("eventlog", "--all", "--format", "jsonl", "-o", "out")],
    ids=["html", "log"],
)
def test_what_is_written_takes_the_place_of_the_old_in_one_piece(
    cli: Cli, place: Path, waiting: str, words: tuple[str, ...]
) -> None:
    """Whoever has the old file open, or a name for it, keeps it whole."""
    (place / "out").write_bytes(b"before")
    os.link(place / "out", place / "kept")
    assert cli(*(waiting if word == "ID" else word for word in words)).code == 0
    assert (place / "out").read_bytes() != b"before"
    assert (place / "kept").read_bytes() == b"before"


@pytest.mark.parametrize("text", ["1e400", '{"amount": -1e400}', "NaN", "[Infinity]"])
def test_a_number_that_json_has_not_is_none_on_the_command_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        json_value(text, "--args")
    assert caught.value.code == "USAGE"
