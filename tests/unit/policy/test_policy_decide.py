"""Decisions: pure, deny wins, and what cannot be evaluated is denied."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm.errors import NanoVMError
from nano_vm.policy import Policy, Request, action_digest, counters, decide, decide_all, explain, load_policy
from nano_vm.policy.decide import allowing_rules, looked_at, request_slots, settled

ANA = {"id": "ana", "roles": ["clerk"], "tenant": "default"}


def policy(*rules: dict[str, Any], **fields: Any) -> Policy:
    return load_policy({"policy": "p", "rules": [{"tools": ["refund"], **rule} for rule in rules], **fields})


def request(args: dict[str, Any] | None = None, **fields: Any) -> Request:
    return Request(**{"name": "refund", "args": args or {}, "principal": ANA, "run": {"id": "r"}, **fields})


def said(given: Policy, asked: Request) -> tuple[str, str, str]:
    decision = decide(given, asked)
    return decision.decision, decision.rule, decision.reason


def test_what_no_rule_is_about_is_denied() -> None:
    given = policy({"id": "a"})
    assert said(given, request(name="other")) == ("deny", "default", "DEFAULT")
    assert said(given, request()) == ("allow", "a", "RULE")
    assert said(policy({"id": "a"}, default="allow"), request(name="other")) == (
        "allow",
        "default",
        "DEFAULT",
    )


def test_lists_of_tools_and_models_allow_as_they_are() -> None:
    given = policy(tools=["load_*"], models=["default", "gpt*"])
    assert said(given, request(name="load_order")) == ("allow", "tools", "RULE")
    assert said(given, request(name="unload_order")) == ("deny", "default", "DEFAULT")
    assert said(given, request(kind="model", name="gpt-9")) == ("allow", "models", "RULE")
    assert said(given, request(kind="model", name="load_order")) == ("deny", "default", "DEFAULT")


RULES: list[dict[str, Any]] = [
    {"id": "allowing", "when": "$args.amount >= 0"},
    {"id": "asking", "when": "$args.amount > 10", "approval": {"roles": ["boss"]}},
    {"id": "denying", "when": "$args.amount > 100", "decision": "deny"},
]


@pytest.mark.parametrize("order", list(itertools.permutations(RULES)))
def test_deny_wins_over_ask_and_ask_over_allow_whatever_the_order(order: tuple[dict[str, Any], ...]) -> None:
    given = policy(*order)
    assert [said(given, request({"amount": n}))[:2] for n in (5, 50, 500)] == [
        ("allow", "allowing"),
        ("ask", "asking"),
        ("deny", "denying"),
    ]


@pytest.mark.parametrize("args", [{}, {"amount": "5"}, {"amount": None}, {"amount": [5]}])
def test_a_condition_that_cannot_be_evaluated_denies(args: dict[str, Any]) -> None:
    assert said(policy({"id": "a"}, {"id": "b", "when": "$args.amount > 3"}), request(args))[::2] == (
        "deny",
        "CONDITION",
    )


def test_conditions_know_who_and_what_run() -> None:
    given = policy({"id": "a", "when": "'clerk' in $principal.roles and $run.id == 'r'"})
    assert said(given, request())[0] == "allow"
    assert said(given, request(principal={**ANA, "roles": []}))[0] == "deny"
    assert said(given, request(principal=None)) == ("deny", "a", "CONDITION")


def test_what_must_precede_is_asked_for() -> None:
    given = policy({"id": "a", "requires": ["kyc", "step:confirm"]})
    assert decide(given, request()).detail == "tool:kyc"
    assert said(given, request(done=frozenset({"tool:kyc"}))) == ("deny", "a", "REQUIRES")
    # A step called like the tool is not the tool.
    assert said(given, request(done=frozenset({"step:kyc", "step:confirm"})))[0] == "deny"
    assert said(given, request(done=frozenset({"tool:kyc", "step:confirm"})))[0] == "allow"
    assert [(r.kind, r.name, r.unconditional) for r in given.required_before("refund")] == [
        ("tool", "kyc", True),
        ("step", "confirm", True),
    ]


def test_limits_come_as_data_and_go_into_the_decision() -> None:
    given = policy(
        {
            "id": "a",
            "limits": [
                {"max_calls": 2, "per": ["principal", "day"]},
                {"max_sum": 100.5, "of": "$args.amount", "per": ["run"]},
            ],
        }
    )
    asked = request({"amount": 60.25}, at_ms=86_400_000 * 3 + 5)
    calls, spent = counters(given, asked)
    assert (calls.amount, calls.maximum, spent.amount, spent.maximum) == (1, 2, 60_250_000, 100_500_000)
    assert decide(given, asked).counters == (calls, spent)
    fields = {"args": {"amount": 60.25}, "at_ms": asked.at_ms}
    assert decide(given, request(counts={calls.key: 2}, **fields)).reason == "LIMIT"
    assert decide(given, request(counts={spent.key: 40_250_000}, **fields)).decision == "allow"
    assert decide(given, request(counts={spent.key: 40_250_001}, **fields)).reason == "LIMIT"


def test_what_is_counted_together_is_what_the_limit_says() -> None:
    given = policy({"id": "a", "limits": [{"max_calls": 2, "per": ["principal", "day"]}]})

    def key(**fields: Any) -> str:
        (counter,) = counters(given, request(**fields))
        return counter.key

    day = 86_400_000
    assert key(at_ms=0) == key(at_ms=day - 1, run={"id": "other"})
    assert key(at_ms=0) != key(at_ms=day)
    assert key(at_ms=0) != key(at_ms=0, principal={**ANA, "id": "bob"})
    assert key(at_ms=0) != key(at_ms=0, tenant="acme")
    newer = policy({"id": "a", "limits": [{"max_calls": 1, "per": ["principal", "day"]}]}, version="2")
    assert counters(newer, request(at_ms=0))[0].key == key(at_ms=0)


@pytest.mark.parametrize("amount", [-1, "7", None, True, 9_000_000_001])
def test_an_amount_that_cannot_be_added_up_is_denied(amount: Any) -> None:
    given = policy({"id": "a", "limits": [{"max_sum": 5, "of": "$args.amount", "per": ["run"]}]})
    assert said(given, request({"amount": amount})) == ("deny", "a", "CONDITION")


def test_a_limit_per_principal_denies_whom_nobody_knows() -> None:
    given = policy({"id": "a", "limits": [{"max_calls": 5, "per": ["principal"]}]})
    assert said(given, request(principal=None)) == ("deny", "a", "CONDITION")


def test_of_two_policies_both_must_allow() -> None:
    loose, tight = policy({"id": "a"}), policy({"id": "b", "when": "$args.amount < 10"})
    asking = policy({"id": "c", "approval": {"roles": ["boss"]}})
    low, high = request({"amount": 1}), request({"amount": 50})
    assert decide_all([loose, tight], low).decision == "allow"
    assert decide_all([loose, tight], high).decision == decide_all([tight, loose], high).decision == "deny"
    assert decide_all([loose, asking], low).rule == "c"
    assert decide_all([asking, tight], high).decision == "deny"


def test_explaining_says_how_every_rule_came_out() -> None:
    decision, verdicts = explain(policy(*RULES), request({"amount": 500}))
    assert decision == decide(policy(*RULES), request({"amount": 500}))
    assert [(v.rule, v.outcome) for v in verdicts] == [(r["id"], "applies") for r in RULES]


_rules = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "when": st.sampled_from(
                ["$args.a > 2", "$args.a <= 2", "$args.b == 'x'", "'clerk' in $principal.roles"]
            ),
            "decision": st.sampled_from(["allow", "deny"]),
            "tools": st.sampled_from([["refund"], ["ref*"], ["other"], ["*"]]),
        },
    ),
    max_size=5,
)


@settings(max_examples=120, deadline=None)
@given(
    _rules, st.fixed_dictionaries({}, optional={"a": st.integers(0, 4), "b": st.sampled_from(["x", "y", 3])})
)
def test_what_is_settled_before_the_call_is_what_the_call_would_be_told(
    rules: list[dict[str, Any]], args: Any
) -> None:
    try:
        given = policy(*({"id": f"r{n}", **rule} for n, rule in enumerate(rules)))
    except Exception:
        return  # contradictory
    fixed = settled(given, "tool", "refund")
    told = decide(given, request(args))
    assert told == explain(given, request(args))[0]
    if fixed is not None and fixed.decision == "allow":
        assert told == fixed
    elif fixed is not None:
        assert told.decision == "deny"


def test_an_action_is_what_is_done_by_which_definition_under_which_policy() -> None:
    base = ("refund", "sha256:1", {"amount": 1}, "sha256:2")
    digests = {
        action_digest(*base),
        action_digest("refunds", *base[1:]),
        action_digest("refund", "sha256:3", *base[2:]),
        action_digest("refund", "sha256:1", {"amount": 2}, "sha256:2"),
        action_digest("refund", "sha256:1", {"amount": 1}, "sha256:4"),
    }
    assert len(digests) == 5
    assert action_digest("refund", "sha256:1", {"b": 1, "a": 2}, "") == action_digest(
        "refund", "sha256:1", {"a": 2, "b": 1}, ""
    )


CONDITIONS = [
    "$args.n > 3",
    "$args.missing == 1",
    "$principal.id == 'ana'",
    "$run.id == 'r'",
    "$args.n != null",
    None,
]


@settings(max_examples=300, deadline=None)
@given(
    rules=st.lists(st.tuples(st.sampled_from(CONDITIONS), st.sampled_from(["allow", "deny"])), max_size=4),
    default=st.sampled_from(["allow", "deny"]),
    args=st.fixed_dictionaries({}, optional={"n": st.sampled_from([1, 5, None, "x"])}),
    principal=st.sampled_from([ANA, None]),
)
def test_the_rule_that_allows_is_the_one_that_decides(
    rules: list[tuple[str | None, str]], default: str, args: dict[str, Any], principal: Any
) -> None:
    rows = [
        {"id": f"r{n}", "decision": decision, **({} if when is None else {"when": when})}
        for n, (when, decision) in enumerate(rules)
    ]
    try:
        given_policy = policy(*rows, default=default)
    except NanoVMError:
        return  # contradictory: it is refused where it is loaded
    asked = request(args, principal=principal)
    about = looked_at(given_policy, "tool", "refund")
    assert about is not None
    decision = decide(given_policy, asked)
    found = allowing_rules(given_policy, about, request_slots(args, asked.run, principal))
    if decision.decision == "allow":
        assert found is not None
        assert (found[0].id if found else "default") == decision.rule
    else:
        assert found is None


@pytest.mark.parametrize(
    "demand",
    [
        {"approval": {"roles": ["boss"]}},
        {"requires": ["check"]},
    ],
)
def test_what_demands_more_than_arguments_is_not_decided_by_them(demand: dict[str, Any]) -> None:
    assert looked_at(policy({"id": "a", "when": "$args.n > 3", **demand}), "tool", "refund") is None
