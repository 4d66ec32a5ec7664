"""Data that was dropped, mistaken or changed behind its owner's back."""

from __future__ import annotations

from typing import Any

from regression_stage import Tools, ask, findings, program, refused, run, tool_step

from nano_vm import Completion, ExecutionVM, MockLLMAdapter, RunStatus


def test_unknown_fields_are_refused() -> None:
    assert findings(program(tool_step("a"), max_step=3)) == {"UNKNOWN_FIELD"}
    assert findings(program(tool_step("a", on_eror="skip"))) == {"UNKNOWN_FIELD"}


def test_ids_are_unique() -> None:
    assert "DUPLICATE_ID" in findings(program(tool_step("a"), tool_step("a", "b")))
    inside = {"id": "g", "type": "parallel", "parallel_steps": [tool_step("a")]}
    assert "DUPLICATE_ID" in findings(program(tool_step("a"), inside))


def test_a_reference_to_nothing_is_never_passed_on_as_text() -> None:
    tools = {"echo": lambda value: value}
    data = program(tool_step("a", "echo", args={"value": "pay $nobody"}))
    refused("INPUT_MISSING", ExecutionVM(tools=tools).run(data))
    data = program(tool_step("a", "echo", args={"value": "pay $order.payee"}))
    trace = run(ExecutionVM(tools=tools), data, {"order": {}})
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "UNRESOLVED_REFERENCE")


def test_arguments_are_rendered_at_any_depth() -> None:
    args = {"value": {"to": ["$who", {"note": "for $who"}], "n": "$n"}}
    data = program(tool_step("a", "echo", args=args))
    trace = run(ExecutionVM(tools={"echo": lambda value: value}), data, {"who": "ana", "n": 5})
    assert trace.final_output == {"to": ["ana", {"note": "for ana"}], "n": 5}


def test_a_later_tool_cannot_rewrite_what_was_recorded() -> None:
    held: list[dict[str, Any]] = []

    def make() -> dict[str, Any]:
        held.append({"amount": 5})
        return held[0]

    def change(order: dict[str, Any]) -> None:
        order["amount"] = 500
        held[0]["amount"] = 500

    data = program(
        tool_step("make", output_key="order"),
        tool_step("change", args={"order": "$order"}),
        tool_step("show", args={"order": "$order"}),
    )
    trace = run(ExecutionVM(tools={"make": make, "change": change, "show": lambda order: order}), data)
    assert trace.step("make").output == trace.final_output == {"amount": 5}


def test_tools_without_arguments_work() -> None:
    assert run(ExecutionVM(tools=Tools("now")), program(tool_step("now"))).final_output == "now"


def test_adapters_may_take_only_messages() -> None:
    class Plain:
        async def complete(self, messages: list[dict[str, Any]]) -> str:
            return messages[-1]["content"].upper()

    class Rich:
        async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
            return Completion(text=str(params["temperature"]))

    step = ask(params={"temperature": 0})
    assert run(ExecutionVM(llm=Plain()), program({**step, "prompt": "abc"})).final_output == "ABC"  # type: ignore[arg-type]
    assert run(ExecutionVM(llm=Rich()), program(step)).final_output == "0"


def test_the_mock_model_takes_a_text_a_list_and_a_table() -> None:
    two = program(ask("a"), ask("b", prompt="where is it"))
    for response, answers in (
        ("yes", ["yes", "yes"]),
        (["1", "2"], ["1", "2"]),
        ({"where": "here", "__default__": "ok"}, ["ok", "here"]),
    ):
        trace = run(ExecutionVM(llm=MockLLMAdapter(response)), two)
        assert [step.output for step in trace.steps] == answers
