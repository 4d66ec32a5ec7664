"""Policies as documents: what is wrong with them is found at once, with a place and a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm import canonical
from nano_vm.errors import CODES, PolicyError
from nano_vm.policy import check_policy, load_policy, policy_schema, stored_policy
from nano_vm.program.document import from_data, from_yaml
from nano_vm.program.tool_schema import ToolSchema

REFUND = ToolSchema(
    name="refund",
    parameters={
        "type": "object",
        "properties": {"amount": {"type": "number"}, "order": {"type": "string"}},
        "required": ["amount"],
        "additionalProperties": False,
    },
    effect="irreversible",
)


def rule(**fields: Any) -> dict[str, Any]:
    return {"id": "one", "tools": ["refund"], **fields}


def codes(data: Any, tools: dict[str, ToolSchema] | None = None) -> list[tuple[str, str]]:
    return [(f.code, f.place.path) for f in check_policy(from_data(data), tools).diagnostics]


@pytest.mark.parametrize(
    ("data", "code", "path"),
    [
        ({}, "MISSING_FIELD", ""),
        ([], "WRONG_TYPE", ""),
        ({"policy": "p", "tool": ["x"]}, "UNKNOWN_FIELD", "/tool"),
        ({"policy": "p", "rules": [rule(wen="x")]}, "UNKNOWN_FIELD", "/rules/0/wen"),
        ({"policy": "p", "default": "maybe"}, "BAD_VALUE", "/default"),
        ({"policy": "p", "rules": [{"id": "x"}]}, "MISSING_FIELD", "/rules/0"),
        ({"policy": "p", "rules": [rule(), rule()]}, "DUPLICATE_RULE", "/rules/1/id"),
        ({"policy": "p", "rules": [rule(id="default")]}, "DUPLICATE_RULE", "/rules/0/id"),
        ({"policy": "p", "rules": [rule(when="$args.amount >")]}, "EXPR_SYNTAX", "/rules/0/when"),
        ({"policy": "p", "rules": [rule(when="$amount > 1")]}, "UNKNOWN_REFERENCE", "/rules/0/when"),
        ({"policy": "p", "rules": [rule(when="$run.nam == 'x'")]}, "UNKNOWN_REFERENCE", "/rules/0/when"),
        ({"policy": "p", "rules": [rule(when="$run.started_at_ms > 'x'")]}, "TYPE_MISMATCH", "/rules/0/when"),
        ({"policy": "p", "rules": [rule(decision="ask")]}, "MISSING_FIELD", "/rules/0"),
        (
            {"policy": "p", "rules": [rule(decision="deny", approval={"roles": ["a"]})]},
            "POLICY_CONTRADICTION",
            "/rules/0/approval",
        ),
        (
            {"policy": "p", "rules": [rule(decision="deny", requires=["x"])]},
            "POLICY_CONTRADICTION",
            "/rules/0/requires",
        ),
        ({"policy": "p", "rules": [rule(tools=["a*b"])]}, "BAD_VALUE", "/rules/0/tools/0"),
        ({"policy": "p", "rules": [rule(limits=[{"per": ["run"]}])]}, "FIELD_CONFLICT", "/rules/0/limits/0"),
        (
            {"policy": "p", "rules": [rule(limits=[{"max_cost_usd": 5, "per": ["run"]}])]},
            "FIELD_CONFLICT",
            "/rules/0/limits/0",
        ),
        (
            {
                "policy": "p",
                "rules": [
                    {
                        "id": "m",
                        "models": ["x"],
                        "limits": [{"max_tokens": 5, "max_calls": 1, "per": ["run"]}],
                    }
                ],
            },
            "FIELD_CONFLICT",
            "/rules/0/limits/0",
        ),
        (
            {"policy": "p", "rules": [rule(limits=[{"per": ["run"], "max_sum": 5, "of": "$run.id"}])]},
            "BAD_VALUE",
            "/rules/0/limits/0/of",
        ),
        (
            {"policy": "p", "rules": [rule(limits=[{"per": ["week"], "max_calls": 5}])]},
            "BAD_VALUE",
            "/rules/0/limits/0/per/0",
        ),
        (
            {"policy": "p", "rules": [rule(models=["m"], approval={"roles": ["a"]})]},
            "FIELD_CONFLICT",
            "/rules/0/models",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(data: Any, code: str, path: str) -> None:
    assert (code, path) in codes(data)
    with pytest.raises(PolicyError) as caught:
        load_policy(from_data(data))
    assert caught.value.code in (code, "INVALID_POLICY")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "rules",
    [
        [rule(when="$args.amount > 100 and $args.amount < 50")],
        [rule(when="$args.kind == 'a' and $args.kind == 'b'")],
        [rule(when="5 > $args.amount and $args.amount >= 5")],
        [rule(when="$args.amount == 7 and $args.amount < 7")],
        [rule(), {"id": "two", "tools": ["ref*"], "decision": "deny"}],
        [
            rule(when="$args.x == 1"),
            {"id": "two", "tools": ["refund"], "when": "$args.x == 1", "decision": "deny"},
        ],
        [rule(requires=["kyc"]), {"id": "two", "tools": ["kyc"], "decision": "deny"}],
    ],
)
def test_rules_that_contradict_each_other_are_refused(rules: list[dict[str, Any]]) -> None:
    assert [code for code, _ in codes({"policy": "p", "rules": rules})] == ["POLICY_CONTRADICTION"]


@pytest.mark.parametrize(
    "rules",
    [
        [rule(when="$args.amount >= 100 and $args.amount <= 100")],
        [rule(when="$args.amount > 100 or $args.amount < 50")],
        [rule(), {"id": "two", "tools": ["refund"], "when": "$args.amount > 9", "decision": "deny"}],
        [rule(when="$args.a == 1 and $args.b == 2")],
    ],
)
def test_rules_that_can_both_be_meant_are_not(rules: list[dict[str, Any]]) -> None:
    assert codes({"policy": "p", "rules": rules}) == []


def test_conditions_are_checked_against_the_tools() -> None:
    tools = {"refund": REFUND}
    assert codes({"policy": "p", "rules": [rule(when="$args.amout > 1")]}, tools) == [
        ("UNKNOWN_ARGUMENT", "/rules/0/when")
    ]
    assert codes({"policy": "p", "rules": [rule(when="$args.amount > 'x'")]}, tools) == [
        ("TYPE_MISMATCH", "/rules/0/when")
    ]
    assert codes({"policy": "p", "tools": ["refunds"]}, tools) == [("UNKNOWN_TOOL", "/tools/0")]


def test_a_finding_has_line_and_column() -> None:
    text = "policy: p\nrules:\n  - id: a\n    tools: [refund]\n    when: $args.amount > $limit\n"
    (finding,) = check_policy(from_yaml(text, "p.yaml")).diagnostics
    assert (finding.place.file, finding.place.line, finding.place.column) == ("p.yaml", 5, 26)
    assert finding.length == len("$limit")


def test_the_hash_is_that_of_what_is_said_and_not_of_how_it_is_written() -> None:
    one = load_policy(from_yaml("policy: p\ntools: [a, b]\n"))
    other = load_policy(from_yaml('{"tools": ["a", "b"],  "policy": "p"}'))
    third = load_policy(from_yaml("policy: p\ntools: [a]\n"))
    assert one.hash == other.hash == canonical.digest(one.canonical)
    assert one.hash != third.hash


def test_a_stored_policy_is_the_one_it_was() -> None:
    policy = load_policy(
        {"policy": "p", "rules": [rule(when="$args.amount > 3", limits=[{"max_calls": 2, "per": ["day"]}])]}
    )
    again = stored_policy(policy.canonical)
    assert (again.hash, again.canonical) == (policy.hash, policy.canonical)


def test_the_schema_in_the_specification_is_the_published_one() -> None:
    assert (
        json.loads((Path(__file__).parents[3] / "spec" / "policy.schema.json").read_text()) == policy_schema()
    )


def test_the_published_schema_accepts_what_is_accepted() -> None:
    validator = jsonschema_rs.validator_for(policy_schema())
    good = {
        "policy": "p",
        "tools": ["a"],
        "rules": [rule(approval={"roles": ["r"]}, limits=[{"max_calls": 1, "per": ["run"]}])],
    }
    assert validator.is_valid(good)
    assert codes(good) == []
    assert not validator.is_valid({"policy": "p", "rulez": []})


@pytest.mark.parametrize("path", ["nowhere.yaml", "."])
def test_a_file_that_cannot_be_read_is_said_to_be(path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert (caught.value.code, caught.value.exit_code) == ("POLICY_UNREADABLE", 2)


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(max_size=6)
    | st.sampled_from(["refund", "run", "deny"])
)
_keys = st.sampled_from(
    [
        "policy",
        "rules",
        "id",
        "tools",
        "when",
        "limits",
        "approval",
        "roles",
        "per",
        "max_calls",
        "of",
        "decision",
        "x",
    ]
)
_documents = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None)
@given(_documents)
def test_any_document_is_a_policy_or_has_documented_findings(data: Any) -> None:
    report = check_policy(from_yaml(json.dumps(data)))
    assert report.ok == (not report.errors)
    assert {finding.code for finding in report.diagnostics} <= set(CODES)
