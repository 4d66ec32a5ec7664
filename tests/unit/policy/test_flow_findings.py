"""What is found before a program runs: flows to where they must not go, and ways that miss a guard."""

from __future__ import annotations

from typing import Any

import pytest

from nano_vm import Program, ProgramValidator
from nano_vm.expr.guards import pinned, proven_true
from nano_vm.expr.parser import parse
from nano_vm.policy import load_policy
from nano_vm.policy.check import check
from nano_vm.program.closed import is_closed
from nano_vm.program.document import from_data, from_yaml
from nano_vm.program.tool_schema import ToolSchema

TOOLS = {
    schema.name: schema
    for schema in (
        ToolSchema(name="pay", protected=("amount",), may_suspend=False),
        ToolSchema(name="look", output_label="trusted"),
        ToolSchema(name="echo", may_suspend=False),
        ToolSchema(name="slow"),
        ToolSchema(name="verify", may_suspend=False),
        ToolSchema(name="token", output_label="secret", may_suspend=False),
    )
}
GOVERNANCE = {"TAINTED_PARAMETER", "UNPROVED_FLOW", "SECRET_IN_PROMPT", "GUARD_MISSED", "DENIED_TOOL"}


def tool(step_id: str, name: str = "echo", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "tool", "tool": name, **fields}


def pay(amount: Any, step_id: str = "p", **fields: Any) -> dict[str, Any]:
    return tool(step_id, "pay", args={"amount": amount}, **fields)


def guard(
    condition: str, step_id: str = "g", then: str = "continue", otherwise: str = "stop"
) -> dict[str, Any]:
    return {"id": step_id, "type": "condition", "condition": condition, "then": then, "otherwise": otherwise}


STOP = tool("stop", "look", is_terminal=True, outcome="stopped")
DONE = tool("done", "look", is_terminal=True, outcome="done")


def codes(*steps: dict[str, Any], programs: Any = None, **fields: Any) -> list[tuple[str, str]]:
    """(code, step) of what is found about governance; nothing else may be wrong."""
    report = check(from_data({"steps": list(steps), "max_steps": 99, **fields}), TOOLS, programs)
    assert [finding for finding in report.errors if finding.code not in GOVERNANCE] == []
    return [(f.code, f.place.step or "") for f in report.diagnostics if f.code in GOVERNANCE]


TAINTED = [("TAINTED_PARAMETER", "p")]
ASK = {"id": "ask", "type": "llm", "prompt": "hi"}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (True, False),
        (False, True),
        ({}, False),
        ({"type": "string"}, False),
        ({"type": "string", "maxLength": 3}, False),
        ({"type": "string", "enum": ["a"]}, True),
        ({"const": {"x": "y"}}, True),
        ({"type": ["boolean", "null"]}, True),
        ({"type": ["boolean", "string"]}, False),
        ({"type": "integer", "minimum": 1}, False),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 5}, True),
        ({"type": "number", "minimum": "1", "maximum": 5}, False),
        ({"type": "array", "items": {"enum": [1]}}, False),
        ({"type": "array", "items": {"enum": [1]}, "maxItems": 4}, True),
        ({"type": "array", "maxItems": 4}, False),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": False, "maxItems": 4}, False),
        ({"type": "object", "properties": {"a": {"enum": [1]}}}, False),
        ({"type": "object", "properties": {"a": {"enum": [1]}}, "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        ({"type": "object", "patternProperties": {".": {"enum": [1]}}, "additionalProperties": False}, False),
        ({"anyOf": [{"const": 1}, {"type": "boolean"}]}, True),
        ({"oneOf": [{"const": 1}, {"type": "string"}]}, False),
        ({"allOf": [{"type": "string"}, {"enum": ["a"]}]}, True),
        ({"not": {"type": "string"}}, False),
        ({"$ref": "#/$defs/k", "$defs": {"k": {"enum": ["a"]}}}, True),
        ({"$ref": "#/$defs/k", "$defs": {"k": {"$ref": "#/$defs/k"}}}, False),
        ({"$ref": "https://example.org/s"}, False),
    ],
)
def test_a_schema_is_closed_when_it_leaves_nobody_elses_words_room(schema: Any, closed: bool) -> None:
    assert is_closed(schema) is closed


@pytest.mark.parametrize(
    ("source", "when_true", "when_false"),
    [
        ("$x == 'a'", ["x"], []),
        ("'a' == $x", ["x"], []),
        ("$x != 'a'", [], ["x"]),
        ("not ($x == 'a')", [], ["x"]),
        ("$x in ['a', 'b']", ["x"], []),
        ("$x not in ['a', 'b']", [], ["x"]),
        ("$x in $y", [], []),
        ("$x in 'abc'", [], []),
        ("$x == $y", [], []),
        ("$x contains 'a'", [], []),
        ("'yes' in '$x'", [], []),
        ("$x >= 1", [], []),
        ("$x >= 1 and $x <= 5", ["x"], []),
        ("1 <= $x and 5 >= $x", ["x"], []),
        ("$x < 1 or $x > 5", [], ["x"]),
        ("$x >= 'a' and $x <= 'b'", [], []),
        ("$x >= 1 and $y <= 5", [], []),
        ("$x == 'a' or $x == 'b'", ["x"], []),
        ("$x == 'a' or $y == 'b'", [], []),
        ("$x == 'a' and $y == 'b'", ["x", "y"], []),
        ("$x == 'a' or ($x >= 1 and $x <= 2)", ["x"], []),
        ("$x is not null", [], []),
        ("$x == null", ["x"], []),
    ],
)
def test_a_verdict_pins_down_what_it_leaves_no_choice_of(
    source: str, when_true: list[str], when_false: list[str]
) -> None:
    node = parse(source)
    assert sorted(name for name, _ in pinned(node, True)) == when_true
    assert sorted(name for name, _ in pinned(node, False)) == when_false


def test_what_is_certainly_true() -> None:
    assert proven_true(parse("$w.approved == true and $x == 1"), True) == {("w", ("approved",))}
    assert proven_true(parse("$w.approved == true or $x == 1"), True) == set()
    assert proven_true(parse("not ($w.approved != true)"), True) == {("w", ("approved",))}
    assert proven_true(parse("$w.approved != true"), False) == {("w", ("approved",))}
    assert proven_true(parse("$w.approved != false"), True) == set()


def test_a_flow_is_told_station_by_station_with_its_lines() -> None:
    text = """\
inputs:
  type: object
  properties:
    message: {type: string}
steps:
  - {id: classify, type: llm, prompt: "how much? $message"}
  - {id: pay, type: tool, tool: pay, args: {amount: $classify.output}}
"""
    report = ProgramValidator(from_yaml(text, "refund.yaml"), tools=TOOLS).validate()
    (finding,) = report.errors
    assert (finding.code, finding.place.line, finding.place.column) == ("TAINTED_PARAMETER", 7, 53)
    flow = (
        "input `message` (line 4) -> `prompt` of `classify` (line 6) -> `$classify.output` (line 6)"
        " -> `args.amount` of `pay` (line 7)"
    )
    assert flow in finding.message


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([pay(3)], []),
        ([pay("$x")], TAINTED),
        ([ASK, pay("$ask.output")], TAINTED),
        ([{**ASK, "allowed_outputs": ["a", "b"]}, pay("$ask.output")], []),
        ([{**ASK, "allowed_outputs": ["a", "b"], "on_error": "skip"}, pay("$ask.output")], TAINTED),
        ([{**ASK, "output_schema": {"type": "boolean"}}, pay("$ask.output")], []),
        ([{**ASK, "output_schema": {"type": "object"}}, pay("$ask.output")], TAINTED),
        ([tool("e", args={"x": "$x"}), pay("$e.output")], TAINTED),
        ([tool("e", args={"x": 1}), pay("$e.output")], []),
        ([tool("e", "look", args={"x": "$x"}), pay("$e.output")], []),
        ([tool("e", "slow", args={"x": 1}), pay("$e.output")], [("UNPROVED_FLOW", "p")]),
        ([{"id": "w", "type": "wait", "event": "go"}, pay("$w.output")], TAINTED),
        ([{"id": "w", "type": "wait", "event": "go", "label": "trusted"}, pay("$w.output")], []),
        ([guard("$x in ['a', 'b']"), pay("$x"), DONE, STOP], []),
        ([guard("$x in ['a', 'b']", then="stop", otherwise="continue"), pay("$x"), DONE, STOP], TAINTED),
        ([guard("$x.n >= 1 and $x.n <= 9"), pay("$x.n"), DONE, STOP], []),
        ([guard("$x.n >= 1 and $x.n <= 9"), pay("$x"), DONE, STOP], TAINTED),
        ([guard("$x.n >= 1 and $x.n <= 9"), pay("$x.m"), DONE, STOP], TAINTED),
        (
            [guard("$x == 'a'", then="t", otherwise="j"), tool("t", next_step="j"), tool("j"), pay("$x")],
            TAINTED,
        ),
        ([{"id": "q", "type": "parallel", "parallel_steps": [pay("$x")]}], TAINTED),
        ([{"id": "q", "type": "map", "over": ["$x"], "step": pay("$item")}], TAINTED),
        ([{"id": "q", "type": "map", "over": [1, 2], "step": pay("$item")}], []),
        ([tool("p", compensate={"tool": "pay", "args": {"amount": "$x"}})], TAINTED),
        ([tool("p", "look", compensate={"tool": "pay", "args": {"amount": "$p.output"}})], []),
        ([{"id": "p", "type": "agent", "prompt": "hi", "tools": ["pay"]}], TAINTED),
        ([tool("f", on_failure="p", is_terminal=True), pay("$f.error.message")], TAINTED),
        (
            [tool("t", "token"), {"id": "p", "type": "llm", "prompt": "$t.output"}],
            [("SECRET_IN_PROMPT", "p")],
        ),
        ([{"id": "p", "type": "agent", "prompt": "hi", "tools": ["token"]}], [("SECRET_IN_PROMPT", "p")]),
    ],
)
def test_what_may_flow_where(steps: list[dict[str, Any]], found: list[tuple[str, str]]) -> None:
    assert codes(*steps, inputs={"type": "object", "properties": {"x": {}}}) == found


def test_what_a_guard_let_through_counts_until_its_name_is_bound_anew() -> None:
    inputs = {"type": "object", "properties": {"x": {}}}
    again = guard("$b.output == 1", "again", "a", "p")
    steps = [
        tool("a", args={"x": "$x"}),
        guard("$a.output == 'a'"),
        tool("b", "look"),
        again,
        pay("$a.output"),
    ]
    assert codes(*steps, DONE, STOP, inputs=inputs) == []
    # Where the guard can be gone around once its name is bound anew, it says nothing.
    steps.insert(1, guard("$b.output is null", "first", "g", "p"))
    assert codes(*steps, DONE, STOP, inputs=inputs) == TAINTED


def test_in_a_dag_a_guard_holds_for_what_waits_for_nothing_else() -> None:
    inputs = {"type": "object", "properties": {"x": {}}}
    steps = [
        {"id": "g", "type": "condition", "condition": "$x == 'a'", "then": "p", "depends_on": []},
        tool("o", depends_on=[]),
        pay("$x", depends_on=[]),
    ]
    assert codes(*steps, inputs=inputs) == []
    steps[2]["depends_on"] = ["o"]  # it runs for that alone, too
    assert codes(*steps, inputs=inputs) == TAINTED


def test_values_are_followed_into_called_programs_and_back() -> None:
    inputs = {"type": "object", "properties": {"n": {"label": "trusted"}}}
    child = Program.from_dict({"name": "child", "inputs": inputs, "steps": [pay("$n", "inner")]})
    call = {"id": "c", "type": "call", "program": "child", "inputs": {"n": "$x"}}
    outer = {"type": "object", "properties": {"x": {}, "y": {"label": "trusted"}}}
    known = {"child": child, child.hash: child}
    assert codes(call, inputs=outer, programs=known) == [("TAINTED_PARAMETER", "c")]
    assert codes({**call, "inputs": {"n": "$y"}}, inputs=outer, programs=known) == []
    assert codes(call, inputs=outer) == [("UNPROVED_FLOW", "c")]
    plain = Program.from_dict({"name": "child", "inputs": inputs, "steps": [tool("e", args={"x": "$n"})]})
    steps = [call, pay("$c.output")]
    assert codes(*steps, inputs=outer, programs={"child": plain}) == TAINTED
    assert codes({**call, "inputs": {"n": "$y"}}, steps[1], inputs=outer, programs={"child": plain}) == []


# --- guards that a policy requires --------------------------------------------------------------------------

POLICY = load_policy(
    {
        "policy": "p",
        "rules": [
            {"id": "rest", "tools": ["look", "verify", "echo", "slow"], "decision": "allow"},
            {"id": "paying", "tools": ["pay"], "decision": "allow", "requires": ["verify"]},
        ],
    }
)


def missed(policy: Any, *steps: dict[str, Any], **fields: Any) -> list[tuple[str, str]]:
    report = check(from_data({"steps": list(steps), "max_steps": 99, **fields}), TOOLS, None, policy)
    assert [finding for finding in report.errors if finding.code not in GOVERNANCE] == []
    return [(f.code, f.message.rsplit(": ", 1)[1]) for f in report.diagnostics if f.code == "GUARD_MISSED"]


def test_a_way_that_misses_the_guard_is_told_step_by_step() -> None:
    verify = tool("v", "verify", next_step="p")
    inputs = {"type": "object", "properties": {"x": {}}}
    steps = [guard("$x == 'vip'", then="t", otherwise="v"), tool("t", next_step="p"), verify, pay(1), DONE]
    assert missed(POLICY, *steps, inputs=inputs) == [("GUARD_MISSED", "g -> t -> p -> `pay`")]
    assert missed(POLICY, steps[2], pay(1)) == []
    assert missed(POLICY, pay(1, "p0"), steps[2], pay(1)) == [("GUARD_MISSED", "p0 -> `pay`")]


@pytest.mark.parametrize(
    ("first", "met"),
    [
        (tool("v", "verify"), True),
        (tool("v", "verify", on_error="skip"), False),
        (tool("v", "verify", on_failure="p"), False),
        ({"id": "q", "type": "parallel", "parallel_steps": [tool("v", "verify"), tool("w")]}, True),
        ({"id": "q", "type": "parallel", "parallel_steps": [tool("v", "verify", on_error="skip")]}, False),
        ({"id": "q", "type": "map", "over": [], "step": tool("v", "verify")}, False),
        ({"id": "q", "type": "agent", "prompt": "x", "tools": ["verify"]}, False),
    ],
)
def test_only_what_has_really_succeeded_counts(first: dict[str, Any], met: bool) -> None:
    assert (missed(POLICY, first, pay(1)) == []) is met
    if "on_failure" in first:
        return
    lanes = {"id": "l", "type": "parallel", "parallel_steps": [pay(1), tool("v2", "verify")]}
    assert (missed(POLICY, first, {**lanes, "parallel_steps": [pay(1)]}) == []) is met
    assert missed(POLICY, lanes) != []


def test_an_approval_counts_where_it_shows_that_it_was_given() -> None:
    policy = load_policy(
        {
            "policy": "p",
            "default": "allow",
            "rules": [{"id": "r", "tools": ["pay"], "decision": "allow", "requires": ["step:boss"]}],
        }
    )
    wait = {"id": "boss", "type": "wait", "approvers": ["boss"]}
    assert missed(policy, wait, pay(1)) != []
    assert missed(policy, {**wait, "accept": "$event.approved == true"}, pay(1)) == []
    asked = guard("$boss.output.approved == true")
    assert missed(policy, wait, asked, pay(1), DONE, STOP) == []
    turned = guard("$boss.output.approved == true", then="stop", otherwise="continue")
    assert missed(policy, wait, turned, pay(1), DONE, STOP) != []


def test_guards_in_a_dag() -> None:
    verify, other = tool("v", "verify", depends_on=[]), tool("o", depends_on=[])
    assert missed(POLICY, verify, other, pay(1, depends_on=["v", "o"])) == []
    assert missed(POLICY, verify, other, pay(1, depends_on=["o"])) != []
    inputs = {"type": "object", "properties": {"x": {}}}
    choice = {**guard("$x == 'a'", then="v", otherwise="o"), "depends_on": []}
    assert missed(POLICY, choice, verify, other, pay(1, depends_on=["v", "o"]), inputs=inputs) != []


def test_a_call_that_the_policy_never_allows_is_found() -> None:
    report = check(from_data({"steps": [tool("t", "token"), tool("e")]}), TOOLS, None, POLICY)
    assert [(finding.code, finding.place.step) for finding in report.errors] == [("DENIED_TOOL", "t")]
    assert ProgramValidator({"steps": [tool("e")]}, tools=TOOLS, policy=POLICY).validate().ok


@pytest.mark.parametrize(
    ("when", "private", "severity"),
    [(None, True, "error"), ("$args.amount > 5", True, "warning"), (None, False, None)],
)
def test_a_private_value_that_a_limit_would_add_up_is_found(
    when: str | None, private: bool, severity: str | None
) -> None:
    rule = {"id": "sum", "tools": ["pay"], "limits": [{"max_sum": 9, "of": "$args.amount", "per": ["day"]}]}
    policy = load_policy(
        {"policy": "p", "default": "allow", "rules": [rule | ({"when": when} if when else {})]}
    )
    amount = {"type": "integer", "label": "trusted", **({"private": True} if private else {})}
    data = {
        "steps": [tool("t", args={"x": "$n"}), pay("$t.output"), DONE],
        "inputs": {"type": "object", "properties": {"n": amount, "who": {"private": True}}},
    }
    found = [f for f in check(from_data(data), TOOLS, None, policy).diagnostics if f.code == "PRIVATE_AMOUNT"]
    assert [(f.severity, f.place.step, f.place.path) for f in found] == (
        [] if severity is None else [(severity, "p", "/steps/1/args/amount")]
    )
    if found:
        assert "input `n` -> `args.x` of `t` -> `$t.output` -> `args.amount` of `p`" in found[0].message
