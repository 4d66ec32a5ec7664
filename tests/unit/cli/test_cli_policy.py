"""`nano-vm policy`: findings for humans and machines, and why a call is decided as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
