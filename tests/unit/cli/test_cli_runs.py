"""Running, resuming and looking at runs through the real command line, on real files."""

from __future__ import annotations

import io
import json
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from unit.cli.conftest import RUN, Cli, effects, start


def past(runs: list[dict[str, Any]]) -> None:
    """Wait until the timers of these runs are due."""
    due = max(run["wake_at_ms"] for run in runs)
    assert due
    while time.time() * 1_000 <= due:
        time.sleep(0.01)


BOOK = """
def _book(what: str) -> None:
    with open("effects.txt", "a") as file:
        file.write(what + chr(10))

"""
APPROVE = ("--approve", "--principal", "ana", "--role", "boss", "--tools", "tools.py", "--model", "mock:yes")


def test_a_run_suspends_and_names_the_command_that_continues_it(cli: Cli, place: Path) -> None:
    done = cli(*RUN, "--json")
    assert done.code == 6
    trace = done.json
    assert trace["status"] == "SUSPENDED"
    assert trace["exit_code"] == 6
    (way,) = trace["continue"]
    assert way["wait"]["kind"] == "approval"
    words = shlex.split(way["command"].replace("--principal YOU", "--principal ana"))
    again = cli(*words[words.index("resume") :], "--json")
    assert again.code == 0
    assert again.json["status"] == "SUCCESS"
    assert again.json["outcome"] == "sealed"
    assert again.json["outputs"] == {"text": "hello ana"}
    assert effects(place) == ["ana"]


def test_a_governed_failure_exits_with_1(cli: Cli) -> None:
    done = cli(*RUN, "--model", "mock:no", "--json")
    assert (done.code, done.json["status"], done.json["outcome"]) == (1, "FAILED", "unkind")


def test_the_same_idempotency_key_starts_one_run(cli: Cli, place: Path) -> None:
    first = cli(*RUN, "--idempotency-key", "k", "--json")
    second = cli(*RUN, "--idempotency-key", "k", "--json")
    assert first.json["trace_id"] == second.json["trace_id"]
    assert effects(place) == ["ana"]
    other = cli(*RUN[:-1], "name=eve", "--idempotency-key", "k", "--json")
    assert (other.code, other.json["error"]["code"]) == (2, "KEY_CONFLICT")


def test_inputs_come_from_a_file_and_from_the_command_line(cli: Cli, place: Path) -> None:
    (place / "inputs.yaml").write_text("name: from file\ntimes: 3\n")
    arguments = ("run", "greeting.yaml", "--tools", "tools.py", "--model", "mock:no", "--json")
    done = cli(*arguments, "--input-file", "inputs.yaml")
    assert done.json["steps"][0]["output"] == "hello from file"
    done = cli(*arguments, "--input-file", "inputs.yaml", "--input", "name=ana")
    assert done.json["steps"][0]["output"] == "hello ana"
    done = cli(*arguments, "--input", "name=17")
    assert (done.code, done.json["error"]["code"]) == (2, "INPUT_INVALID")
    done = cli(*arguments, "--input", 'name="17"')
    assert done.json["steps"][0]["output"] == "hello 17"


def test_inputs_come_from_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (
        "run",
        "greeting.yaml",
        "--tools",
        "tools.py",
        "--model",
        "mock:no",
        "--json",
        "--input-file",
        "-",
    )
    for text, code in ((b"name: from a pipe", ""), (b"", "INPUT_FILE"), (b"[1]", "INPUT_FILE")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        done = cli(*arguments)
        if code:
            assert (done.code, done.json["error"]["code"]) == (2, code)
            assert "steps" not in done.json["error"]["help"]  # it is no program that is missing
        else:
            assert done.json["steps"][0]["output"] == "hello from a pipe"


def test_streaming_gives_every_journaled_event_and_then_the_result(cli: Cli) -> None:
    done = cli(*RUN, "--json", "--stream", "--trace-id", "r1")
    assert done.code == 6
    *events, last = done.lines
    assert last["result"]["trace_id"] == "r1"
    journal = cli("trace", "r1", "--events", "--json").json["entries"]
    recorded = [event["type"] for entry in journal for event in entry["events"]]
    assert [event["type"] for event in events] == recorded[-len(events) :]
    assert [event["type"] for event in events][-1] == "StepSucceeded"


def test_waiting_drives_a_timer_to_its_end(cli: Cli, place: Path) -> None:
    (place / "timer.yaml").write_text("name: t\nsteps:\n  - {id: pause, type: wait, seconds: 0.5}\n")
    done = cli("run", "timer.yaml", "--json")
    assert (done.code, done.json["continue"][0]["wait"]["kind"]) == (6, "timer")
    done = cli("run", "timer.yaml", "--json", "--wait")
    assert (done.code, done.json["status"]) == (0, "SUCCESS")


def test_a_called_program_is_stored_first(cli: Cli, place: Path) -> None:
    (place / "child.yaml").write_text(
        "name: child\ninputs: {type: object, properties: {n: {type: string}}, required: [n]}\n"
        "steps:\n  - {id: greet, type: tool, tool: greet, args: {name: $n}}\n"
    )
    (place / "parent.yaml").write_text(
        "name: parent\nsteps:\n  - {id: ask, type: call, program: child, inputs: {n: kim}}\n"
    )
    alone = cli("run", "parent.yaml", "--tools", "tools.py", "--json")
    assert (alone.code, alone.json["error"]["code"]) == (3, "UNKNOWN_PROGRAM")
    done = cli("run", "parent.yaml", "--program", "child.yaml", "--tools", "tools.py", "--json")
    assert (done.code, done.json["status"], effects(place)) == (0, "SUCCESS", ["kim"])
    children = cli("trace", done.json["trace_id"], "--json").json["children"]
    assert [cli("trace", child, "--json").json["parent"] for child in children] == [done.json["trace_id"]]
    assert children[0] in cli("trace", done.json["trace_id"]).out


def test_a_program_from_standard_input(process: Cli) -> None:
    program = b'{"name": "p", "steps": [{"id": "a", "type": "tool", "tool": "greet", "args": {"name": "x"}}]}'
    done = process("run", "-", "--tools", "tools.py", "--json", stdin=program)
    assert (done.code, done.json["final_output"]) == (0, "hello x")


def test_what_tools_print_does_not_spoil_the_json(cli: Cli, place: Path) -> None:
    (place / "loud.py").write_text(
        "print('loading')\n\n\ndef greet(name: str) -> str:\n    print('working')\n    return name\n"
    )
    done = cli(
        "run", "greeting.yaml", "--tools", "loud.py", "--model", "mock:no", "--input", "name=x", "--json"
    )
    assert done.json["outcome"] == "unkind"
    assert "loading" in done.err
    assert "working" in done.err


def test_public_functions_are_tools_when_none_is_marked(cli: Cli, place: Path) -> None:
    (place / "plain.py").write_text(
        "from os.path import join\n\ndef greet(name: str) -> str:\n    return name\n\n"
        "def _hidden(name: str) -> str:\n    return name\n"
    )
    from nano_vm.cli.toolfiles import load_tools

    assert list(load_tools(["plain.py"])) == ["greet"]
    assert list(load_tools(["tools.py"])) == ["greet"]
    assert list(load_tools(["plain"])) == ["greet"]


# --- acting on runs -------------------------------------------------------------------------------------------


def test_an_approval_needs_the_role_and_a_refusal_changes_nothing(cli: Cli, waiting: str) -> None:
    drive = ("--tools", "tools.py", "--model", "mock:yes", "--json")
    done = cli("resume", waiting, "--approve", "--principal", "eve", "--role", "clerk", *drive)
    assert (done.code, done.json["error"]["code"]) == (4, "NOT_APPROVER")
    assert cli("trace", waiting, "--json").json["status"] == "SUSPENDED"
    assert cli("verify", waiting, "--json").code == 0


def test_the_same_approval_again_is_answered_alike_and_another_is_refused(cli: Cli, waiting: str) -> None:
    first = cli("resume", waiting, *APPROVE, "--event-id", "e1", "--json")
    again = cli("resume", waiting, *APPROVE, "--event-id", "e1", "--json")
    assert (first.code, again.code) == (0, 0)
    assert first.json["trace_hash"] == again.json["trace_hash"]
    other = cli("resume", waiting, *("--deny", *APPROVE[1:]), "--event-id", "e2", "--json")
    assert (other.code, other.json["error"]["code"]) == (1, "TERMINAL")


def test_of_two_processes_that_resume_at_once_exactly_one_wins(place: Path, waiting: str) -> None:
    words = ("resume", waiting, *APPROVE[1:], "--json")
    children = [
        start(place, *words, *kind) for kind in (("--approve",), ("--deny",), ("--approve",), ("--deny",))
    ]
    outs = [child.communicate(timeout=120)[0] for child in children]
    answers = [json.loads(out) for out in outs]
    ended = {answer["trace_hash"] for answer in answers if "status" in answer}
    assert len(ended) == 1
    refused = [answer["error"]["code"] for answer in answers if "status" not in answer]
    assert len(refused) == 2
    assert set(refused) <= {"TERMINAL", "NOT_WAITING", "EVENT_CONFLICT"}
    assert effects(place).count("ana") == 1


def test_recover_names_a_changed_journal_and_goes_on_with_the_others(cli: Cli, place: Path) -> None:
    (place / "timer.yaml").write_text(
        "name: t\ninputs: {type: object, properties: {word: {type: string}}, required: [word]}\n"
        "steps:\n  - {id: pause, type: wait, seconds: 1}\n"
    )
    for word in ("untouched", "tampered"):
        assert cli("run", "timer.yaml", "--input", f"word={word}", "--trace-id", word).code == 6
    path = place / "nano-vm.db"
    data = path.read_bytes()
    assert data.count(b'{"word":"tampered"}') == 1
    path.write_bytes(data.replace(b'{"word":"tampered"}', b'{"word":"TAMPERED"}'))
    past(cli("runs", "--json").json["runs"])
    done = cli("recover", "--json")
    assert done.code == 5
    assert [entry["trace_id"] for entry in done.json["recovered"]] == ["untouched"]
    assert [entry["error"]["code"] for entry in done.json["left"]] == ["COMMITMENT_MISMATCH"]


def test_resuming_without_the_tools_is_refused_and_leaves_the_run_untouched(cli: Cli, waiting: str) -> None:
    before = cli("trace", waiting, "--json").json
    done = cli("resume", waiting, "--approve", "--principal", "a", "--role", "boss", "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "TOOLS_MISSING")
    assert done.json["error"]["facts"]["tools"] == ["greet"]
    done = cli(
        *(
            "resume",
            waiting,
            "--approve",
            "--principal",
            "a",
            "--role",
            "boss",
            "--tools",
            "tools.py",
            "--json",
        )
    )
    assert (done.code, done.json["error"]["code"]) == (2, "MODEL_MISSING")
    after = cli("trace", waiting, "--json").json
    assert (before["head"], before["entries"]) == (after["head"], after["entries"])


def test_cancelling_ends_a_run_once(cli: Cli, waiting: str) -> None:
    done = cli("cancel", waiting, "--reason", "enough", "--json")
    assert (done.code, done.json["status"]) == (0, "CANCELLED")
    again = cli("cancel", waiting, "--json")
    assert (again.code, again.json["error"]["code"]) == (1, "TERMINAL")


UNSURE = """
from nano_vm import ToolError

def charge(amount: int) -> str:
    raise ToolError("the line went dead", unknown=True)
"""


def unsure(place: Path, cli: Cli) -> str:
    (place / "unsure.py").write_text(UNSURE)
    (place / "charge.yaml").write_text(
        "name: c\nsteps:\n  - {id: charge, type: tool, tool: charge, args: {amount: 5}}\n"
    )
    done = cli("run", "charge.yaml", "--tools", "unsure.py", "--json")
    assert done.code == 6
    assert done.json["continue"][0]["wait"]["kind"] == "outcome"
    trace_id: str = done.json["trace_id"]
    return trace_id


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (("--succeeded", '{"receipt": 1}'), 0, "SUCCESS"),
        (("--failed", "no such payment"), 1, "FAILED"),
        (("--repeat",), 6, "SUSPENDED"),
    ],
)
def test_an_unknown_outcome_waits_until_somebody_resolves_it(
    cli: Cli, place: Path, words: tuple[str, ...], code: int, status: str
) -> None:
    run_id = unsure(place, cli)
    done = cli("resolve", run_id, "charge", *words, "--tools", "unsure.py", "--json")
    assert (done.code, done.json["status"]) == (code, status)
    assert cli("verify", run_id).code == 0


def test_resolving_what_is_not_unknown_is_refused(cli: Cli, waiting: str) -> None:
    done = cli(
        *("resolve", waiting, "greet", "--repeat", "--tools", "tools.py", "--model", "mock:yes", "--json")
    )
    assert (done.code, done.json["error"]["code"]) == (1, "NOT_WAITING")


def test_recover_fires_due_timers_and_leaves_runs_without_their_tools(cli: Cli, place: Path) -> None:
    (place / "timer.yaml").write_text(
        "name: t\nsteps:\n  - {id: pause, type: wait, seconds: 1}\n"
        "  - {id: greet, type: tool, tool: greet, args: {name: late}}\n"
    )
    run_id = cli("run", "timer.yaml", "--tools", "tools.py", "--json").json["trace_id"]
    past(cli("runs", "--json").json["runs"])
    left = cli("recover", "--json")
    assert left.code == 2
    assert [entry["error"]["code"] for entry in left.json["left"]] == ["TOOLS_MISSING"]
    assert cli("trace", run_id, "--json").json["status"] == "SUSPENDED"
    done = cli("recover", "--tools", "tools.py", "--json")
    assert done.code == 0
    assert [(entry["trace_id"], entry["status"]) for entry in done.json["recovered"]] == [(run_id, "SUCCESS")]
    assert cli("recover", "--json").json == {"recovered": [], "left": [], "exit_code": 0}


def test_a_worker_takes_up_due_runs_and_ends_gracefully_on_sigterm(cli: Cli, place: Path) -> None:
    (place / "timer.yaml").write_text(
        "name: t\nsteps:\n  - {id: pause, type: wait, seconds: 1}\n"
        "  - {id: greet, type: tool, tool: greet, args: {name: late}}\n"
    )
    run_id = cli("run", "timer.yaml", "--tools", "tools.py", "--json").json["trace_id"]
    worker = start(place, "worker", "--interval", "0.05", "--tools", "tools.py", "--json")
    assert worker.stdout is not None
    line = json.loads(worker.stdout.readline())
    assert (line["trace_id"], line["status"]) == (run_id, "SUCCESS")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0
    worker.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_gracefully_and_another_process_finishes_it(
    cli: Cli, place: Path, number: signal.Signals, code: int
) -> None:
    (place / "slow.py").write_text(
        BOOK + "import time\nfrom pathlib import Path\n\n"
        "def wait() -> str:\n    Path('begun').touch()\n"
        "    while not Path('go').exists():\n        time.sleep(0.01)\n"
        "    _book('waited')\n    return 'done'\n\n"
        "def after() -> str:\n    _book('after')\n    return 'x'\n"
    )
    (place / "slow.yaml").write_text(
        "name: s\nsteps:\n  - {id: wait, type: tool, tool: wait}\n  - {id: after, type: tool, tool: after}\n"
    )
    child = start(place, "run", "slow.yaml", "--tools", "slow.py", "--trace-id", "r", "--json")
    while not (place / "begun").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    assert child.stderr is not None
    assert any(
        b"stopping" in line for line in child.stderr
    )  # the tool goes on when the signal has been taken
    (place / "go").touch()
    out, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert b"Traceback" not in err
    assert json.loads(out)["trace_id"] == "r"
    assert effects(place) == ["waited"]
    assert cli("trace", "r", "--json").json["status"] == "RUNNING"
    done = cli("recover", "--tools", "slow.py", "--json")
    assert [entry["status"] for entry in done.json["recovered"]] == ["SUCCESS"]
    assert effects(place) == ["waited", "after"]


def test_a_second_interrupt_ends_a_hanging_tool_at_once_and_its_outcome_is_unknown(
    cli: Cli, place: Path
) -> None:
    (place / "hang.py").write_text(
        "import time\nfrom pathlib import Path\n\n"
        "def hang() -> None:\n    Path('begun').touch()\n    time.sleep(600)\n"
    )
    (place / "hang.yaml").write_text("name: h\nsteps:\n  - {id: hang, type: tool, tool: hang}\n")
    child = start(place, "run", "hang.yaml", "--tools", "hang.py", "--trace-id", "r")
    while not (place / "begun").exists():
        assert child.poll() is None
        time.sleep(0.01)
    assert child.stderr is not None
    child.send_signal(signal.SIGINT)
    while b"stopping" not in child.stderr.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert b"Traceback" not in err
    done = cli("recover", "--tools", "hang.py", "--json")
    assert [entry["continue"][0]["wait"]["kind"] for entry in done.json["recovered"]] == ["outcome"]


def test_a_killed_run_is_found_by_the_doctor_and_recovered_without_repeating(cli: Cli, place: Path) -> None:
    (place / "slow.py").write_text(
        BOOK + "import time\nfrom pathlib import Path\nfrom nano_vm import tool\n\n"
        "@tool(effect='keyed')\ndef wait() -> str:\n    Path('begun').touch()\n"
        "    while not Path('go').exists():\n        time.sleep(0.01)\n    return 'done'\n\n"
        "@tool(effect='irreversible')\ndef first() -> str:\n    _book('first')\n"
    )
    (place / "slow.yaml").write_text(
        "name: s\nsteps:\n  - {id: first, type: tool, tool: first}\n  - {id: wait, type: tool, tool: wait}\n"
    )
    child = start(place, "run", "slow.yaml", "--tools", "slow.py", "--trace-id", "r")
    while not (place / "begun").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.communicate()
    sick = cli("doctor", "--json")
    assert sick.code == 1
    assert [finding["what"] for finding in sick.json["findings"] if finding["level"] == "problem"] == ["run"]
    (place / "go").touch()
    done = cli("recover", "--tools", "slow.py", "--json")
    assert [entry["status"] for entry in done.json["recovered"]] == ["SUCCESS"]
    assert effects(place) == ["first"]
    assert cli("doctor").code == 0
    assert cli("verify").code == 0


# --- looking --------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_filters(cli: Cli, waiting: str) -> None:
    ended = cli(*RUN, "--model", "mock:no", "--json").json["trace_id"]
    rows = cli("runs", "--json").json["runs"]
    assert [row["trace_id"] for row in rows] == [ended, waiting]
    rows = cli("runs", "--json", "--status", "SUSPENDED").json["runs"]
    assert [row["trace_id"] for row in rows] == [waiting]
    assert cli("runs", "--json", "--program", "other").json["runs"] == []
    assert len(cli("runs", "--json", "--limit", "1").json["runs"]) == 1


def test_a_trace_shows_steps_waits_and_the_journal(cli: Cli, waiting: str) -> None:
    trace = cli("trace", waiting, "--json").json
    assert [step["id"] for step in trace["steps"]] == ["greet", "judge", "kind", "seal"]
    assert trace["continue"][0]["wait"]["step"] == "seal"
    human = cli("trace", waiting)
    assert human.code == 0
    assert waiting in human.out
    entries = cli("trace", waiting, "--events", "--json").json["entries"]
    assert [entry["seq"] for entry in entries] == list(range(len(entries)))
    assert entries[0]["events"][0]["type"] == "RunStarted"
    assert entries[0]["events"][0]["payload"] == {"name": "ana"}
    assert cli("trace", waiting, "--events").code == 0


def test_verify_numbers_its_steps_and_replay_agrees(cli: Cli, waiting: str) -> None:
    done = cli("verify", "--json")
    assert done.code == 0
    assert done.json["ok"] is True
    assert next(step["check"] for step in done.json["runs"][0]["steps"]) == "chain"
    human = cli("verify", "--all")
    assert human.out.splitlines()[0].split()[0] == "1."
    assert cli("replay", waiting, "--json").json["replayed"] is True


def test_forks_and_diffs(cli: Cli, waiting: str) -> None:
    done = cli("fork", waiting, "judge", "--tools", "tools.py", "--model", "mock:no", "--json")
    assert (done.code, done.json["status"]) == (1, "FAILED")
    fork = done.json["trace_id"]
    found = cli("diff", waiting, fork, "--json").json
    assert found["same_program"] is True
    assert found["execution_equivalent"] is False
    assert found["parts_at"]["step"] == "judge"
    assert cli("diff", waiting, waiting, "--json").json["differences"] == []
    assert cli("diff", waiting, fork).code == 0
    unknown = cli("fork", waiting, "nowhere", "--tools", "tools.py", "--model", "mock:no", "--json")
    assert unknown.json["error"]["code"] == "UNKNOWN_STEP"
    assert unknown.code in (1, 2)


def test_watching_one_run_ends_with_it(cli: Cli, waiting: str) -> None:
    assert cli("watch", "--once", "--json").json["runs"][0]["trace_id"] == waiting
    assert cli("watch", waiting, "--once").code == 0
    cli("resume", waiting, *APPROVE)
    done = cli("watch", waiting, "--json")
    *events, last = done.lines
    assert events[-1]["type"] == "RunFinished"
    assert last["result"]["status"] == "SUCCESS"
    assert cli("watch", waiting).code == 0


def test_watching_follows_a_run_that_another_process_drives(cli: Cli, place: Path, waiting: str) -> None:
    watcher = start(place, "watch", waiting, "--json")
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.readline())["type"] == "RunStarted"
    cli("resume", waiting, *APPROVE)
    out, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    assert json.loads(out.splitlines()[-1])["result"]["status"] == "SUCCESS"


def test_the_store_may_be_named_before_or_after_the_command_or_in_the_environment(
    cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("--store", "a.db", *RUN)
    cli(*RUN, "--store", "b.db")
    monkeypatch.setenv("NANO_VM_STORE", "c.db")
    cli(*RUN, "--durability", "normal")
    assert sorted(path.name for path in place.glob("?.db")) == ["a.db", "b.db", "c.db"]
    assert len(cli("--store=a.db", "runs", "--json").json["runs"]) == 1


def test_quiet_says_status_and_id(cli: Cli) -> None:
    done = cli(*RUN, "--quiet", "--trace-id", "r")
    assert (done.out, done.err) == ("SUSPENDED r\n", "")


def test_what_was_undone_is_seen_beside_the_error(cli: Cli, place: Path) -> None:
    (place / "saga.py").write_text(
        "from nano_vm import tool\n"
        "@tool(effect='idempotent')\n"
        "def book(what: str) -> str:\n"
        "    if what == 'car':\n"
        "        raise ValueError('none left')\n"
        "    return what\n"
        "@tool(effect='idempotent')\n"
        "def cancel(what: str) -> None: ...\n"
    )
    undo = "compensate: {tool: cancel, args: {what: hotel}}"
    (place / "saga.yaml").write_text(
        "name: saga\nsteps:\n"
        f"  - {{id: hotel, type: tool, tool: book, args: {{what: hotel}}, {undo}}}\n"
        "  - {id: car, type: tool, tool: book, args: {what: car}}\n"
    )
    done = cli("run", "saga.yaml", "--tools", "saga.py", "--trace-id", "s1")
    assert done.code == 1
    for shown in (done.out, cli("trace", "s1").out):
        assert [line.split() for line in shown.splitlines() if "undone " in line][-1] == [
            "undone",
            "1",
            "step",
        ]
