"""`nano-vm policy`: findings for humans and machines, and why a call is decided as it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nano_vm.cli.approving import describe
from nano_vm.runtime.approvals import PendingApproval
from unit.cli.conftest import Cli

POLICY = """
policy: greetings
tools: [greet]
rules:
  - {id: few, tools: [refund], when: $args.amount <= 5}
  - {id: many, tools: [refund], when: $args.amount > 5, approval: {roles: [boss]}}
"""


@pytest.fixture
def policy(place: Path) -> str:
    (place / "policy.yaml").write_text(POLICY)
    return "policy.yaml"


def test_a_sound_policy_is_named_with_its_hash(cli: Cli, policy: str) -> None:
    done = cli("policy", "check", policy, "--json")
    assert done.code == 0
    assert done.json["policy"]["rules"] == 3
    assert done.json["policy"]["hash"] == cli("--json", "policy", "check", policy).json["policy"]["hash"]


def test_a_wrong_policy_is_shown_with_a_caret(cli: Cli, place: Path) -> None:
    (place / "wrong.yaml").write_text("policy: p\nrules:\n  - {id: a, tools: [x], whn: 1}\n")
    done = cli("policy", "check", "wrong.yaml")
    assert done.code == 3
    assert "UNKNOWN_FIELD" in done.out
    assert "wrong.yaml:3:25" in done.out
    found = cli("policy", "check", "wrong.yaml", "--format", "sarif")
    (result,) = found.json["runs"][0]["results"]
    assert result["ruleId"] == "UNKNOWN_FIELD"
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 3


def test_tools_are_held_against_their_file(cli: Cli, policy: str) -> None:
    done = cli("policy", "check", policy, "--tools", "tools.py", "--json")
    assert (done.code, [f["code"] for f in done.json["findings"]]) == (0, ["UNKNOWN_TOOL", "UNKNOWN_TOOL"])


@pytest.mark.parametrize(
    ("words", "code", "decision", "rule"),
    [
        (["greet"], 0, "allow", "tools"),
        (["refund", "--args", '{"amount": 5}'], 0, "allow", "few"),
        (["refund", "--args", '{"amount": 6}'], 6, "ask", "many"),
        (["refund"], 4, "deny", "few"),
        (["delete"], 4, "deny", "default"),
        (["--model", "gpt"], 4, "deny", "default"),
    ],
)
def test_a_decision_is_explained(
    cli: Cli, policy: str, words: list[str], code: int, decision: str, rule: str
) -> None:
    done = cli("policy", "explain", policy, *words, "--json")
    assert (done.code, done.json["decision"], done.json["rule"]) == (code, decision, rule)
    assert cli("policy", "explain", policy, *words).code == code


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "policy.yaml"],
        ["check", "policy.yaml", "greet"],
        ["explain", "policy.yaml", "x", "--args", "[]"],
    ],
)
def test_what_cannot_be_understood_is_a_usage_error(cli: Cli, policy: str, words: list[str]) -> None:
    assert cli("policy", *words).code == 2


def test_a_missing_file_is_said_to_be(cli: Cli, place: Path) -> None:
    done = cli("policy", "check", "nowhere.yaml", "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "POLICY_UNREADABLE")


def test_the_schema_of_policies_is_printed(cli: Cli, place: Path) -> None:
    assert json.loads(cli("schema", "policy").out)["title"] == "nano-vm policy"


# --- approvals of actions -----------------------------------------------------------------------------------

PAYING = """
name: paying
steps:
  - {id: pay, type: tool, tool: greet, args: {name: $name}}
"""
ASKING = """
policy: paying
rules:
  - {id: ask, tools: [greet], approval: {roles: [boss]}}
"""


@pytest.fixture
def paying(place: Path) -> list[str]:
    (place / "paying.yaml").write_text(PAYING)
    (place / "asking.yaml").write_text(ASKING)
    return [
        "run",
        "paying.yaml",
        "--tools",
        "tools.py",
        "--policy",
        "asking.yaml",
        "--input",
        "name=ann",
        "--as",
        "ana",
    ]


def test_what_waits_for_an_approval_is_listed_and_approved_as_it_was_seen(
    cli: Cli, place: Path, paying: list[str]
) -> None:
    run = cli(*paying, "--json")
    assert run.code == 6
    run_id = run.json["trace_id"]
    (found,) = cli("approvals", "--json").json["approvals"]
    assert (found["run_id"], found["tool"], found["shown"]["args"]) == (run_id, "greet", {"name": "ann"})
    assert found["action"] in cli("approvals", run_id).out
    eve = ["--as", "eve", "--role", "boss", "--tools", "tools.py"]
    for words, code in (
        (["--as", "ana", "--role", "boss", "--tools", "tools.py"], "SELF_APPROVAL"),
        (["--as", "eve", "--tools", "tools.py"], "NOT_APPROVER"),
        ([*eve, "--action", "sha256:" + "0" * 64], "APPROVAL_VOID"),
    ):
        refused = cli("resume", run_id, "--approve", *words, "--json")
        assert (refused.code, refused.json["error"]["code"]) == (4, code)
    assert not (place / "effects.txt").exists()
    done = cli("resume", run_id, "--approve", "--action", found["action"], "--comment", "ok", *eve)
    assert done.code == 0
    assert found["action"] in done.err  # what is approved is shown before it is
    assert (place / "effects.txt").read_text() == "ann\n"
    assert cli("verify", run_id).code == 0
    assert "nothing waits" in cli("approvals").out


def test_only_what_was_shown_is_approved(
    cli: Cli, process: Cli, place: Path, paying: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "paying.yaml").write_text(
        PAYING + "  - {id: more, type: tool, tool: greet, args: {name: bea}}\n"
    )
    run_id = cli(*paying, "--json").json["trace_id"]

    def described(found: PendingApproval) -> Iterator[str]:
        yield from describe(found)
        bob = ["--as", "bob", "--role", "boss", "--tools", "tools.py"]
        assert process("resume", run_id, "--approve", *bob).code == 6  # it asks for the next one now

    monkeypatch.setattr("nano_vm.cli.commands.resume.describe", described)
    eve = ["--as", "eve", "--role", "boss", "--tools", "tools.py", "--json"]
    refused = cli("resume", run_id, "--approve", *eve)
    assert (refused.code, refused.json["error"]["code"]) == (1, "NOT_WAITING")
    assert (place / "effects.txt").read_text() == "ann\n"


def test_what_comes_to_wait_after_nothing_was_shown_is_not_approved(
    cli: Cli, place: Path, paying: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = cli(*paying, "--json").json["trace_id"]
    monkeypatch.setattr("nano_vm.cli.commands.resume.meant_by", lambda *_: [])
    eve = ["--as", "eve", "--role", "boss", "--tools", "tools.py", "--json"]
    refused = cli("resume", run_id, "--approve", *eve)
    assert (refused.code, refused.json["error"]["code"]) == (4, "APPROVAL_VOID")
    assert not (place / "effects.txt").exists()


def test_the_command_that_is_listed_approves_once(cli: Cli, place: Path, paying: list[str]) -> None:
    (place / "paying.yaml").write_text(
        PAYING + "  - {id: more, type: tool, tool: greet, args: {name: $name}}\n"
    )
    run_id = cli(*paying, "--json").json["trace_id"]
    (line,) = (line for line in cli("approvals", run_id).out.splitlines() if line.startswith("  approve"))
    words = shlex.split(line.replace("YOU", "eve").replace("FILE", "tools.py"))
    words = [*words[words.index("resume") :], "--json"]
    assert (cli(*words).code, cli(*words).code) == (6, 6)
    (found,) = cli("approvals", "--json").json["approvals"]
    assert (found["step"], (place / "effects.txt").read_text()) == ("more", "ann\n")


def test_a_denied_action_ends_with_its_own_exit_code(cli: Cli, place: Path, paying: list[str]) -> None:
    run_id = cli(*paying, "--json").json["trace_id"]
    done = cli("resume", run_id, "--deny", "--as", "eve", "--role", "boss", "--tools", "tools.py", "--json")
    assert (done.code, done.json["error"]["type"]) == (4, "APPROVAL_DENIED")
    (place / "none.yaml").write_text("policy: none\nmodels: [default]\n")
    paying[5] = "none.yaml"
    done = cli(*paying, "--json")
    assert (done.code, done.json["error"]["code"]) == (3, "DENIED_TOOL")  # it does not even start
    (place / "none.yaml").write_text("policy: none\nrules: [{id: r, tools: ['*'], when: $args.amount < 0}]\n")
    done = cli(*paying, "--json")
    assert (done.code, done.json["error"]["type"]) == (4, "CapabilityDeniedError")


def test_a_wrong_policy_stops_a_run_before_anything_is_made(cli: Cli, place: Path, paying: list[str]) -> None:
    (place / "asking.yaml").write_text("policy: p\nrulez: []\n")
    done = cli(*paying)
    assert done.code == 3
    assert "did you mean `rules`?" in done.err
    assert not (place / "nano-vm.db").exists()


# --- roles and tenants --------------------------------------------------------------------------------------


def test_roles_of_the_house_bind_whoever_names_one(cli: Cli, place: Path, paying: list[str]) -> None:
    refused = cli(*paying, "--role", "viewer", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (4, "CAPABILITY_DENIED")
    assert not (place / "nano-vm.db").exists()
    run_id = cli(*paying, "--role", "operator", "--json").json["trace_id"]
    for words, code in (
        (["trace", run_id, "--principal", "vic", "--role", "viewer"], 0),
        (["verify", run_id, "--as", "vic", "--role", "viewer"], 4),
        (["verify", run_id, "--as", "aud", "--role", "auditor"], 0),
        (["cancel", run_id, "--as", "aud", "--role", "auditor", "--tools", "tools.py"], 4),
    ):
        assert cli(*words).code == code, words


def test_a_tenant_sees_its_own_runs_alone(cli: Cli, place: Path, paying: list[str]) -> None:
    run_id = cli(*paying, "--tenant", "acme", "--trace-id", "one", "--json").json["trace_id"]
    assert run_id == "acme::one"
    assert cli("trace", "one", "--tenant", "acme").code == 0
    assert [run["trace_id"] for run in cli("runs", "--tenant", "acme", "--json").json["runs"]] == [run_id]
    assert cli("runs", "--tenant", "bolt", "--json").json["runs"] == []
    for words in (
        ["trace", run_id],
        ["verify", run_id],
        ["cancel", run_id, "--tools", "tools.py"],
        ["approvals", run_id],
    ):
        refused = cli(*words, "--tenant", "bolt", "--json")
        assert (refused.code, refused.json["error"]["code"]) == (2, "RUN_NOT_FOUND"), words
    assert cli("runs", "--tenant", "no/name").code == 2


BY_PROGRAM = """
policy: by-program
rules:
  - {id: ours, tools: [refund], when: $run.program == 'refunds'}
"""


@pytest.mark.parametrize(
    ("words", "decision", "rule", "reason"),
    [
        (["--run", '{"program": "refunds"}'], "allow", "ours", "RULE"),
        (["--run", '{"program": "other"}'], "deny", "default", "DEFAULT"),
        ([], "deny", "ours", "CONDITION"),  # nobody has said which program it is
    ],
)
def test_what_depends_on_the_run_is_explained(
    cli: Cli, place: Path, words: list[str], decision: str, rule: str, reason: str
) -> None:
    (place / "policy.yaml").write_text(BY_PROGRAM)
    told = cli("policy", "explain", "policy.yaml", "refund", *words, "--json").json
    assert (told["decision"], told["rule"], told["reason"]) == (decision, rule, reason)


@pytest.mark.parametrize(
    "run", ["[]", '{"programm": "refunds"}', '{"program": 1}', '{"started_at_ms": true}']
)
def test_a_run_is_described_by_what_runs_have(cli: Cli, policy: str, run: str) -> None:
    assert cli("policy", "explain", policy, "greet", "--run", run).code == 2
