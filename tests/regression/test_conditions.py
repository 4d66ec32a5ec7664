"""Conditions as they were misread before."""

from __future__ import annotations

import pytest
from regression_stage import DONE, Tools, ask, decide, findings, program, run, tool_step

from nano_vm import ExecutionVM, MockLLMAdapter


def holds(condition: str, **context: object) -> bool:
    data = program(decide("which", condition, "yes", "no"), tool_step("yes", **DONE), tool_step("no", **DONE))
    return bool(run(ExecutionVM(tools=Tools("yes", "no")), data, dict(context)).final_output == "yes")


def test_parentheses_are_obeyed() -> None:
    assert not holds("$a == 1 and ($b == 2 or $c == 3)", a=0, b=2, c=3)
    assert holds("$a == 1 and ($b == 2 or $c == 3)", a=1, b=0, c=3)


@pytest.mark.parametrize(
    "condition", ["!$a", "$a % 2 == 0", "'YES'.lower() == $a", "$a == 'yes'.lower()", "$a;"]
)
def test_what_the_language_does_not_have_is_refused_and_never_dropped(condition: str) -> None:
    data = program(decide("which", condition, "yes", "no"), tool_step("yes", **DONE), tool_step("no", **DONE))
    assert any(code.startswith("EXPR_") for code in findings(data))


@pytest.mark.parametrize(
    ("answer", "paid"), [("yes", True), ("no", False), ("YES, refund", False), ("oh yes", True)]
)
def test_the_refund_is_paid_when_the_model_says_yes(answer: str, paid: bool) -> None:
    data = program(
        ask(output_key="decision"),
        decide("c", "'yes' in '$decision'", "refund", "reject"),
        tool_step("refund", **DONE),
        tool_step("reject", **DONE),
    )
    tools = Tools("refund", "reject")
    run(ExecutionVM(llm=MockLLMAdapter(answer), tools=tools), data)
    assert tools.calls == (["refund"] if paid else ["reject"])


def test_contains_looks_for_the_right_side_in_the_left() -> None:
    assert holds("$text contains 'b'", text="abc")
    assert not holds("$text contains 'abcd'", text="abc")
    assert holds("$list contains 2", list=[1, 2])


def test_a_callers_input_cannot_take_the_place_of_a_tools_result() -> None:
    data = program(
        tool_step("check", output_key="kyc"),
        decide("c", "$kyc == 'PASS'", "approve", "reject"),
        tool_step("approve", **DONE),
        tool_step("reject", **DONE),
    )
    tools = Tools("approve", "reject", check="FAIL")
    run(ExecutionVM(tools=tools), data, {"kyc": "PASS", "check": "PASS"})
    assert tools.calls == ["check", "reject"]
    assert "NAME_COLLISION" in findings({**data, "inputs": {"type": "object", "properties": {"kyc": {}}}})
