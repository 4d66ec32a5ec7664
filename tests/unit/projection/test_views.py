"""Views are allow-lists: what nobody named reaches nobody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano_vm import ExecutionVM, InputError, tool
from nano_vm.projection.views import for_model, for_operator, for_reader, for_receipt, for_tool

NAMES = st.text(max_size=12)
VALUES = st.recursive(st.none() | st.integers(-9, 9) | st.text(max_size=6), lambda v: st.lists(v, max_size=2))


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
def test_whatever_else_a_request_holds_stays_behind(request_extra: dict, message_extra: dict) -> None:
    message = {"role": "user", "content": "hello"}
    dirty = {
        **request_extra,
        "messages": [{**message_extra, **message}],
        "params": {"temperature": 0},
        "model": "m",
    }
    for name in ("tool_calls", "tool_call_id"):
        dirty["messages"][0].pop(name, None)
    assert for_model(dirty) == ([message], {"temperature": 0, "model": "m"})


def test_a_view_shares_nothing_with_what_is_recorded() -> None:
    request = {"messages": [{"role": "user", "content": "x"}], "params": {"stop": ["a"]}}
    messages, params = for_model(request)
    messages[0]["content"] = "changed"
    params["stop"].append("b")
    assert request == {"messages": [{"role": "user", "content": "x"}], "params": {"stop": ["a"]}}
    args = {"a": {"b": [1]}}
    for_tool(args, {"type": "object"})["a"]["b"].append(2)
    assert args == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": [{"role": "user", "content": "see vault://secret/x"}]},
        {"messages": [{"role": "user", "content": "x"}], "params": {"user": "vault://secret/x"}},
        {"messages": [{"role": "user", "content": "x"}], "model": "vault://secret/x"},
    ],
)
def test_no_reference_reaches_a_model(request_: dict) -> None:
    with pytest.raises(InputError) as refused:
        for_model(request_)
    assert refused.value.code == "SECRET_IN_PROMPT"


def test_a_tool_that_takes_no_more_is_given_no_more() -> None:
    parameters = {"properties": {"a": {}}, "additionalProperties": False}
    assert for_tool({"a": 1, "b": 2}, parameters) == {"a": 1}
    assert for_tool({"a": 1, "b": 2}, {"properties": {"a": {}}}) == {"a": 1, "b": 2}


def test_receipts_and_operators_see_no_value() -> None:
    @tool
    def act(name: str) -> dict:
        if name == "fail":
            raise ValueError("the-message")
        return {"said": "the-output"}

    steps = [
        {"id": "a", "type": "tool", "tool": "act", "args": {"name": "the-input"}},
        {"id": "b", "type": "tool", "tool": "act", "args": {"name": "fail"}},
    ]
    vm = ExecutionVM(tools=[act])
    trace = vm.run_sync({"name": "p", "steps": steps, "outputs": {"o": "$a.output"}})
    from msgspec.structs import asdict

    receipt = for_receipt({**trace.to_dict(), "unheard": "of"})
    operator = for_operator({**asdict(vm.store.record(trace.trace_id)), "unheard": "of"})
    for view in (receipt, operator):
        text = repr(view)
        for word in ("the-input", "the-output", "the-message", "unheard"):
            assert word not in text
    assert receipt["error"] == {"type": "ValueError", "step": "b"}
    assert [step["error"] for step in receipt["steps"]] == [None, "ValueError"]
    assert receipt["trace_hash"] == trace.trace_hash
    shown = for_reader({**trace.to_dict(), "unheard": "of"})
    assert "unheard" not in shown
    assert shown["outputs"] == {"o": {"said": "the-output"}}
