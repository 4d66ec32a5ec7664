"""Labels at run time: no protected parameter takes what nobody vouches for, whatever way it came."""

from __future__ import annotations

from typing import Any

import pytest
from runtime_stage import Counter, Opener, play, program, refused, sound, tool_step, wait_step

from nano_vm import ExecutionVM, MockLLMAdapter, RunStatus, ToolError, VerificationError, tool
from nano_vm.journal.entry import Chain, open_events
from nano_vm.journal.fold import fold
from nano_vm.kernel import events as ev
from nano_vm.program.labels import PRIVATE, UNTRUSTED
from nano_vm.runtime.tooling import PENDING

PAID = Counter()


@pytest.fixture(autouse=True)
def _forget() -> None:
    PAID.effects.clear()


@tool(effect="keyed", protected=["amount"])
def pay(amount: Any, note: str = "") -> str:
    PAID(amount)
    return "paid"


@tool(effect="pure", output_label="trusted")
def price(item: str) -> int:
    return len(item)


@tool(effect="pure")
def echo(x: Any) -> Any:
    return x


INPUTS = {
    "type": "object",
    "properties": {"message": {"type": "string"}, "limit": {"type": "integer", "label": "trusted"}},
}
GIVEN = {"message": "pay 900", "limit": 5}
TOOLS = {"pay": pay, "price": price, "echo": echo}


@pytest.fixture
def opener(opener: Opener) -> Opener:
    """Machines on which nothing is proved before it runs: what is shown here is what enforcement does alone."""

    def open_vm(**options: Any) -> ExecutionVM:
        vm = opener(**options)
        vm.proves = False
        return vm

    return open_vm


def outcome(vm: ExecutionVM, *steps: dict[str, Any], **fields: Any) -> Any:
    trace = play(vm.run(program(*steps, inputs=INPUTS, **fields), GIVEN))
    sound(vm, trace)
    return trace


def failed_with(trace: Any, code: str) -> None:
    assert trace.status is RunStatus.FAILED
    assert trace.error["type"] == code
    assert PAID.effects == []
    failure = next(event for event in trace.events if event.type == "StepFailed")
    assert (failure.error, failure.pure, failure.retryable) == (code, True, False)


@pytest.mark.parametrize(
    "amount", ["$message", "x$message", {"deep": ["$message"]}, "$said.output", "$e.output"]
)
def test_what_a_user_or_a_model_made_reaches_no_protected_parameter(opener: Opener, amount: Any) -> None:
    vm = opener(llm=MockLLMAdapter("900"), tools=TOOLS)
    steps = (
        {"id": "said", "type": "llm", "prompt": "how much?"},
        tool_step("e", "echo", args={"x": "$message"}),
        tool_step("p", "pay", args={"amount": amount}),
    )
    failed_with(outcome(vm, *steps), "TAINTED_PARAMETER")


@pytest.mark.parametrize("amount", [7, "$limit", "$w.output", "$price.output"])
def test_what_somebody_vouches_for_does(opener: Opener, amount: Any) -> None:
    vm = opener(tools=TOOLS)
    steps = (
        tool_step("price", "price", args={"item": "$message"}),
        tool_step("w", "echo", args={"x": 3}),
        tool_step("p", "pay", args={"amount": amount, "note": "$message"}),
    )
    trace = outcome(vm, *steps)
    assert trace.status is RunStatus.SUCCESS
    assert len(PAID.effects) == 1


def test_the_answer_to_a_pending_tool_is_somebody_elses_word(opener: Opener) -> None:
    vm = opener(tools={"pay": pay, "ask": lambda: PENDING})
    steps = (tool_step("a", "ask"), tool_step("p", "pay", args={"amount": "$a.output"}))

    async def main() -> Any:
        trace = await vm.run(program(*steps))
        return await vm.resume(trace.trace_id, 900)

    trace = play(main())
    failed_with(trace, "TAINTED_PARAMETER")
    sound(vm, trace)


def test_an_event_is_trusted_where_its_wait_says_so(opener: Opener) -> None:
    vm = opener(tools=TOOLS)

    async def main(**fields: Any) -> Any:
        trace = await vm.run(
            program(wait_step("w", **fields), tool_step("p", "pay", args={"amount": "$w.output"}))
        )
        return await vm.resume(trace.trace_id, 4)

    failed_with(play(main()), "TAINTED_PARAMETER")
    assert play(main(label="trusted")).status is RunStatus.SUCCESS


def test_labels_go_into_children_and_come_back(opener: Opener) -> None:
    vm = opener(tools=TOOLS)
    vm.save_program(
        program(
            tool_step("p", "pay", args={"amount": "$n"}),
            name="child",
            inputs={"type": "object", "properties": {"n": {"label": "trusted"}}},
        )
    )
    vm.save_program(program(tool_step("x", "echo", args={"x": "$n"}), name="plain"))
    call = {"id": "c", "type": "call", "program": "child"}
    trace = outcome(vm, {**call, "inputs": {"n": "$message"}})
    assert trace.status is RunStatus.FAILED
    assert PAID.effects == []
    assert "TAINTED_PARAMETER" in trace.error["message"]
    assert outcome(vm, {**call, "inputs": {"n": "$limit"}}).status is RunStatus.SUCCESS
    assert PAID.effects == [5]
    PAID.effects.clear()
    through = {"id": "t", "type": "call", "program": "plain"}
    after = tool_step("p", "pay", args={"amount": "$t.output"})
    failed_with(outcome(vm, {**through, "inputs": {"n": "$message"}}, after), "TAINTED_PARAMETER")
    assert outcome(vm, {**through, "inputs": {"n": "$limit"}}, after).status is RunStatus.SUCCESS


def test_a_compensation_is_examined_alike(opener: Opener) -> None:
    def boom() -> None:
        raise ToolError("no", retryable=False)

    vm = opener(tools={**TOOLS, "boom": boom})
    undo = {"tool": "pay", "args": {"amount": "$message"}}
    trace = outcome(vm, tool_step("a", "echo", args={"x": 1}, compensate=undo), tool_step("b", "boom"))
    assert trace.status is RunStatus.FAILED
    assert trace.incomplete_compensations == ["a"]
    assert PAID.effects == []
    undo = {"tool": "pay", "args": {"amount": "$limit"}}
    outcome(vm, tool_step("a", "echo", args={"x": 1}, compensate=undo), tool_step("b", "boom"))
    assert PAID.effects == [5]


def test_a_fork_vouches_for_nothing_that_it_changes(opener: Opener) -> None:
    vm = opener(tools=TOOLS)
    steps = (
        tool_step("price", "price", args={"item": "$message"}),
        tool_step("p", "pay", args={"amount": "$price.output"}),
    )

    async def main() -> Any:
        trace = await vm.run(program(*steps, inputs=INPUTS), GIVEN)
        assert trace.status is RunStatus.SUCCESS
        PAID.effects.clear()
        return await vm.fork(trace.trace_id, "p", {"price": 900})

    trace = play(main())
    failed_with(trace, "TAINTED_PARAMETER")
    sound(vm, trace)


def test_a_tool_that_is_protected_while_a_run_waits_takes_nothing_from_it(opener: Opener) -> None:
    vm = opener(tools={"pay": lambda amount: PAID(amount)})

    async def main() -> Any:
        trace = await vm.run(program(wait_step("w"), tool_step("p", "pay", args={"amount": 1})))
        vm.register_tool("pay", pay)
        return await vm.resume(trace.trace_id, 4)

    failed_with(play(main()), "TAINTED_PARAMETER")


def test_the_journal_says_what_is_untrusted_and_verification_holds_it_against_the_program(
    opener: Opener,
) -> None:
    vm = opener(tools=TOOLS)
    trace = outcome(
        vm, tool_step("e", "echo", args={"x": "$message"}), tool_step("p", "pay", args={"amount": 1})
    )
    start, *_ = trace.events
    assert start.features == ["labels"]
    labels = {
        event.type: event.label for event in trace.events if getattr(event, "label", ev.UNSET) is not ev.UNSET
    }
    assert labels["RunStarted"] == labels["StepSucceeded"] == UNTRUSTED
    compiled = vm.load_program(trace.program_hash)
    for wrong in (ev.UNSET, UNTRUSTED | PRIVATE):
        chain, forged = Chain(trace.trace_id), []
        for entry in trace.entries:
            event, *then = open_events(entry)
            if type(event) is ev.StepSucceeded and event.step == "e":
                event.label = wrong
            forged.append(chain.seal(event, entry.salt, entry.payload, then))
        with pytest.raises(VerificationError) as raised:
            fold(compiled, trace.trace_id, forged)
        assert raised.value.facts["code"] == "LABELS"


def test_a_run_in_which_nothing_is_protected_tracks_nothing(opener: Opener) -> None:
    vm = opener(tools=TOOLS)
    trace = play(vm.run(program(tool_step("e", "echo", args={"x": "$m"})), {"m": 1}))
    assert trace.events[0].features is ev.UNSET
    assert all(getattr(event, "label", ev.UNSET) is ev.UNSET for event in trace.events)


@pytest.mark.parametrize(
    "one",
    [
        {"steps": [tool_step("e", "echo", args={"x": 1}, private=True)]},
        {
            "steps": [tool_step("e", "echo", args={"x": "$n"})],
            "inputs": {"type": "object", "properties": {"n": {"private": True}}},
        },
        {
            "steps": [tool_step("e", "echo", args={"x": "$n"})],
            "inputs": {"type": "object", "properties": {"n": {"label": "secret"}}},
        },
        {"steps": [{"id": "c", "type": "call", "program": "quiet"}]},
        {"steps": [tool_step("t", "token")]},
    ],
)
def test_without_keys_nothing_private_or_secret_is_stored(opener: Opener, one: dict[str, Any]) -> None:
    vm = opener(tools={**TOOLS, "token": tool(output_label="secret")(lambda: "s")})
    vm.make_keys = None  # a store in memory would get keys that are gone with it
    vm.save_program(program(tool_step("q", "echo", args={"x": 1}, private=True), name="quiet"))
    with refused("NO_KEYS"):
        play(vm.run({"name": "p", **one}, {"n": 1} if "inputs" in one else {}))
    assert vm.runs() == []


@pytest.mark.parametrize("fields", [{"output_label": "public"}, {"protected": ["amuont"]}])
def test_a_tool_with_labels_that_mean_nothing_is_refused(fields: dict[str, Any]) -> None:
    with refused("TOOL_LABEL"):
        marked = tool(**fields)(lambda amount: amount)
        ExecutionVM(tools={"pay": marked})


@pytest.mark.parametrize("amount", ["$message", "$said.output", "$c.output", 3])
def test_what_can_be_shown_beforehand_is_refused_beforehand(opener: Opener, amount: Any) -> None:
    vm = opener(llm=MockLLMAdapter("900"), tools=TOOLS)
    vm.proves = True
    vm.save_program(program({"id": "x", "type": "llm", "prompt": "hi"}, name="asks"))
    steps = (
        {"id": "said", "type": "llm", "prompt": "how much?"},
        {"id": "c", "type": "call", "program": "asks"},
        tool_step("p", "pay", args={"amount": amount}),
    )
    if amount == 3:
        assert outcome(vm, *steps).status is RunStatus.SUCCESS
        return
    with refused("TAINTED_PARAMETER"):
        play(vm.run(program(*steps, inputs=INPUTS), GIVEN))
    assert vm.runs() == []


def test_a_guard_lets_a_value_through_on_the_branch_where_it_holds_until_it_is_bound_anew(
    opener: Opener,
) -> None:
    vm = opener(tools=TOOLS)
    guard = {"id": "g", "type": "condition", "condition": "$e.output >= 1 and $e.output <= 500"}
    steps = (
        tool_step("e", "echo", args={"x": "$n"}),
        {**guard, "then": "p", "otherwise": "no"},
        tool_step("p", "pay", args={"amount": "$e.output"}, is_terminal=True, outcome="paid"),
        tool_step("no", "pay", args={"amount": "$e.output"}, outcome="refused", is_terminal=True),
    )
    inputs = {"type": "object", "properties": {"n": {"type": "integer"}}}
    trace = play(vm.run(program(*steps, inputs=inputs), {"n": 7}))
    assert (trace.outcome, PAID.effects) == ("paid", [7])
    sound(vm, trace)
    PAID.effects.clear()
    failed_with(play(vm.run(program(*steps, inputs=inputs), {"n": 501})), "TAINTED_PARAMETER")
    again = (
        tool_step("e", "echo", args={"x": "$n"}),
        {"id": "first", "type": "condition", "condition": "$b.output is null", "then": "g", "otherwise": "p"},
        {**guard, "condition": "$e.output in [7]", "then": "b", "otherwise": "end"},
        tool_step("b", "echo", args={"x": 1}, next_step="e"),
        tool_step("p", "pay", args={"amount": "$e.output"}, is_terminal=True),
        tool_step("end", "echo", args={"x": 1}, outcome="no", is_terminal=True),
    )
    failed_with(play(vm.run(program(*again, inputs=inputs, max_steps=50), {"n": 7})), "TAINTED_PARAMETER")
