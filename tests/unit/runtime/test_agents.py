"""The agent step: the model proposes, the runtime disposes. The models here are obedient and hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from nano_vm import (
    PENDING,
    Completion,
    MockLLMAdapter,
    RunStatus,
    ToolCall,
    ToolContext,
    ToolError,
    Usage,
    Vault,
    tool,
)
from nano_vm.kernel.limits import AGENT_CALLS_MAX
from nano_vm.runtime.agent import ARGUMENTS_CHARS_MAX
from unit.runtime.runtime_stage import Counter, Opener, kinds, play, program, refused, sound, tool_step


def agent(*tools: str, **fields: Any) -> dict[str, Any]:
    return {"id": "m", "type": "agent", "prompt": "Do: $q", "tools": list(tools or ("find",)), **fields}


def propose(*calls: tuple[str, Any] | ToolCall, text: str = "", usage: Usage | None = None) -> Completion:
    made = tuple(
        call
        if isinstance(call, ToolCall)
        else ToolCall(f"c{number}", call[0], call[1] if isinstance(call[1], str) else json.dumps(call[1]))
        for number, call in enumerate(calls)
    )
    return Completion(text=text, tool_calls=made, usage=usage or Usage())


class Hands:
    """Tools that count what they did."""

    def __init__(self) -> None:
        self.done = Counter()
        self.keys: list[str] = []

        @tool(effect="pure")
        def find(q: str) -> list[str]:
            """Find orders
            by text.

            More about it."""
            self.done(f"find {q}")
            return [q]

        @tool
        async def pay(amount: int, ctx: ToolContext) -> str:
            self.done(f"pay {amount}")
            self.keys.append(ctx.idempotency_key)
            return f"paid {amount}"

        @tool
        async def lose(n: int) -> str:
            self.done(f"lose {n}")
            raise ConnectionError("gone")

        @tool
        async def later(n: int) -> Any:
            self.done(f"later {n}")
            return PENDING

        @tool
        async def fail(n: int) -> Any:
            raise ToolError("the password is hunter2", code="NO_STOCK")

        self.tools = [find, pay, lose, later, fail]


def results(model: MockLLMAdapter, call: int = -1) -> list[str]:
    """What the model was told of its calls, up to one of its turns."""
    return [message["content"] for message in model.calls[call] if message["role"] == "tool"]


def run(opener: Opener, step: dict[str, Any], *answers: Any, **fields: Any) -> tuple[Any, Any, Hands, Any]:
    hands, model = Hands(), MockLLMAdapter(list(answers))
    vm = opener(llm=model, tools=hands.tools)
    trace = play(vm.run(program(step, **fields), {"q": "it"}))
    sound(vm, trace)
    return vm, trace, hands, model


def test_a_conversation_of_two_turns(opener: Opener) -> None:
    first = propose(("find", {"q": "a"}), ("pay", {"amount": 5}), text="let me see")
    _vm, trace, hands, model = run(opener, agent("find", "pay"), first, "all paid")
    assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "all paid")
    assert hands.done.effects == ["find a", "pay 5"]
    assert results(model) == ['["a"]', "paid 5"]
    assert [(step.id, step.item) for step in trace.steps] == [("m.find", 0), ("m.pay", 1), ("m", None)]
    step = trace.step("m")
    assert (step.turns, step.attempts) == (2, 2)
    assert [(p["action"], p["turn"], p["tool"], p["verdict"]) for p in step.proposals] == [
        (0, 1, "find", "accepted"),
        (1, 1, "pay", "accepted"),
    ]
    # P3: the effect's intent is in the journal before it, and a tool without effects has none.
    assert kinds(trace) == [
        "RunStarted", "StepStarted", "ModelTurned", "ActionProposed", "StepSucceeded", "ActionProposed",
        "StepStarted", "StepSucceeded", "StepStarted", "StepSucceeded", "RunFinished",
    ]  # fmt: skip


def test_the_model_is_offered_its_tools_and_no_others(opener: Opener) -> None:
    _vm, _trace, _hands, model = run(opener, agent("find"), "nothing to do")
    [offered] = model.params[0]["tools"]
    assert offered["type"] == "function"
    assert offered["function"]["name"] == "find"
    assert offered["function"]["description"] == "Find orders by text."
    assert offered["function"]["parameters"]["required"] == ["q"]
    assert model.calls[0] == [{"role": "user", "content": "Do: it"}]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (("pay", {"amount": 1_000_000}), "UNLISTED_TOOL"),
        (("drop_database", {}), "UNLISTED_TOOL"),
        (("__import__", {}), "UNLISTED_TOOL"),
        (("", {}), "UNLISTED_TOOL"),
        (("x" * 100_000, {}), "UNLISTED_TOOL"),
        (("lone \ud800", {}), "UNLISTED_TOOL"),
        (("find", {}), "BAD_ARGUMENT"),
        (("find", {"q": 7}), "BAD_ARGUMENT"),
        (("find", {"q": "a", "as_admin": True}), "BAD_ARGUMENT"),
        (("find", "not json"), "BAD_ARGUMENT"),
        (("find", ""), "BAD_ARGUMENT"),
        (("find", '["a"]'), "BAD_ARGUMENT"),
        (("find", '{"q": "a"'), "BAD_ARGUMENT"),
        (("find", '{"q": NaN}'), "BAD_ARGUMENT"),
        (("find", '{"q": "a", "q": "b"}'), "BAD_ARGUMENT"),
        (("find", '{"q": 123456789012345678901234567890}'), "BAD_ARGUMENT"),
        (("find", "[" * 50_000), "BAD_ARGUMENT"),
        (("find", '{"q": "' + "x" * ARGUMENTS_CHARS_MAX + '"}'), "BAD_ARGUMENT"),
        (("find", '{"q": "\\ud800"}'), "BAD_ARGUMENT"),
    ],
)
def test_what_cannot_be_admitted_is_rejected_and_the_model_is_told(
    opener: Opener, call: tuple[str, Any], reason: str
) -> None:
    _vm, trace, hands, model = run(opener, agent("find"), propose(call), "sorry")
    assert trace.final_output == "sorry"
    assert hands.done.effects == []
    [proposal] = trace.step("m").proposals
    assert (proposal["verdict"], proposal["reason"]) == ("rejected", reason)
    assert json.loads(results(model)[0])["error"] == reason
    # What a model wrote is payload, never a fact.
    [judged] = [event for event in trace.events if event.type == "ActionProposed"]
    assert judged.tool in (UNSET, "find")


def test_five_thousand_calls_at_once_are_none(opener: Opener) -> None:
    many = propose(*[("pay", {"amount": number}) for number in range(5_000)])
    _vm, trace, hands, model = run(opener, agent("pay"), many, "sorry")
    assert hands.done.effects == []
    assert trace.final_output == "sorry"
    [turned] = [event for event in trace.events if event.type == "ModelTurned"]
    assert (turned.proposals, turned.dropped) == (0, 5_000)
    assert str(AGENT_CALLS_MAX) in model.calls[-1][-1]["content"]
    assert sum(len(entry.payload or b"") for entry in trace.entries) < 10_000


def test_as_many_as_are_allowed_are_made(opener: Opener) -> None:
    many = propose(*[("pay", {"amount": number}) for number in range(AGENT_CALLS_MAX)])
    _vm, _trace, hands, _model = run(opener, agent("pay"), many, "done")
    assert hands.done.effects == [f"pay {number}" for number in range(AGENT_CALLS_MAX)]
    assert len(set(hands.keys)) == AGENT_CALLS_MAX


def test_a_model_that_never_ends_is_ended(opener: Opener) -> None:
    _vm, trace, hands, model = run(opener, agent("pay", max_turns=3), propose(("pay", {"amount": 1})))
    assert trace.status is RunStatus.BUDGET_EXCEEDED
    assert trace.error["message"] == "max_turns"
    assert model.call_count == 3
    assert hands.done.count("pay 1") == 2  # the third could not have been used
    assert trace.step("m").proposals[-1]["reason"] == "MAX_TURNS"


def test_without_a_word_there_are_ten_turns(opener: Opener) -> None:
    _vm, trace, _hands, model = run(opener, agent("find"), propose(("find", {"q": "x"})))
    assert (trace.status, model.call_count) == (RunStatus.BUDGET_EXCEEDED, 10)


def test_two_calls_of_one_id_are_one_call(opener: Opener) -> None:
    twice = propose(ToolCall("c", "pay", '{"amount":1}'), ToolCall("c", "pay", '{"amount":1}'))
    _vm, trace, hands, model = run(opener, agent("pay"), twice, twice, "done")
    assert hands.done.effects == ["pay 1", "pay 1"]  # once in each answer
    assert [p["reason"] for p in trace.step("m").proposals] == [None, "DUPLICATE_CALL"] * 2
    said = [message["tool_calls"] for message in model.calls[-1] if message.get("tool_calls")]
    for calls in said:
        assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("id", ["", "x" * 65, "é", "a\nb", "\ud800"])
def test_ids_that_nobody_could_repeat_are_replaced(opener: Opener, id: str) -> None:
    _vm, _trace, hands, model = run(
        opener, agent("pay"), propose(ToolCall(id, "pay", '{"amount":1}')), "done"
    )
    assert hands.done.effects == ["pay 1"]
    [call] = model.calls[-1][1]["tool_calls"]
    assert model.calls[-1][2]["tool_call_id"] == call["id"] == "call_1_0"


def test_what_a_model_writes_is_never_a_template(opener: Opener) -> None:
    text = "$secret ${secret} $m.output $q {{secret}}"
    found = propose(("find", {"q": text}), text=text)
    step = agent("find")
    hands, model = Hands(), MockLLMAdapter([found, text])
    vm = opener(llm=model, tools=hands.tools)
    after = tool_step("again", "find", args={"q": "$m.output"})
    trace = play(vm.run(program(step, after), {"q": "$secret"}))
    assert model.calls[0][0]["content"] == "Do: $secret"
    assert hands.done.effects == [f"find {text}"] * 2
    assert trace.final_output == [text]


def test_a_tool_that_fails_says_its_code_to_the_model_and_its_words_to_the_author(opener: Opener) -> None:
    _vm, trace, _hands, model = run(opener, agent("fail"), propose(("fail", {"n": 1})), "gave up")
    assert results(model) == ['{"error":"NO_STOCK"}']
    assert trace.step("m.fail").failures[0]["message"] == "the password is hunter2"
    assert "hunter2" not in json.dumps(model.calls)


def test_the_final_answer_passes_the_gates(opener: Opener) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    gate: dict[str, Any] = {"output_schema": schema, "on_error": "retry", "retry": {"initial": 0.001}}
    answers = (propose(("find", {"q": "x"})), "not json", '{"ok": 1}', '{"ok": true}')
    _vm, trace, hands, model = run(opener, agent("find", **gate), *answers)
    assert trace.final_output == {"ok": True}
    assert hands.done.effects == ["find x"]
    assert trace.step("m").turns == 4
    assert "not accepted" in model.calls[-1][-1]["content"]
    _vm, trace, hands, model = run(opener, agent("find", allowed_outputs=["yes", "no"]), "maybe")
    assert trace.error["type"] == "GATE"


def test_a_token_budget_is_held_between_turns(opener: Opener) -> None:
    spent = Usage(prompt_tokens=60, completion_tokens=60, cost_usd=0.01)
    _vm, trace, hands, model = run(
        opener, agent("pay", params={"max_tokens": 10}), propose(("pay", {"amount": 1}), usage=spent),
        max_tokens=150,
    )  # fmt: skip
    assert trace.status is RunStatus.BUDGET_EXCEEDED
    assert trace.total_tokens() == 120
    assert trace.step("m").cost_usd == 0.01
    assert model.call_count == 1
    assert hands.done.effects == ["pay 1"]


def test_steps_are_held_between_actions(opener: Opener) -> None:
    calls = propose(*[("pay", {"amount": number}) for number in range(9)])
    _vm, trace, hands, _model = run(opener, agent("pay"), calls, max_steps=4)
    assert trace.status is RunStatus.BUDGET_EXCEEDED
    assert hands.done.effects == ["pay 0", "pay 1", "pay 2"]


def test_an_unknown_outcome_waits_for_somebody_and_the_conversation_goes_on(opener: Opener) -> None:
    _vm, trace, hands, model = run(opener, agent("lose"), propose(("lose", {"n": 1})), "done")
    assert trace.status is RunStatus.SUSPENDED
    [wait] = trace.waiting
    assert (wait.kind, wait.step, wait.item) == ("outcome", "m.lose", 0)
    other = opener(llm=model, tools=hands.tools)
    trace = play(other.resolve(trace.trace_id, "m.lose", "succeeded", "it arrived", item=0))
    assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "done")
    assert results(model) == ["it arrived"]
    assert hands.done.effects == ["lose 1"]


def test_an_action_that_is_pending_takes_its_answer_from_outside(opener: Opener) -> None:
    _vm, trace, hands, model = run(opener, agent("later"), propose(("later", {"n": 1})), "done")
    assert [(wait.kind, wait.step) for wait in trace.waiting] == [("tool", "m.later")]
    other = opener(llm=model, tools=hands.tools)
    trace = play(other.resume(trace.trace_id, {"answer": 42}, step="m.later"))
    assert results(model) == ['{"answer":42}']
    assert (trace.final_output, hands.done.effects) == ("done", ["later 1"])


def test_an_adapter_that_takes_no_tools_is_refused(opener: Opener) -> None:
    class Bare:
        async def complete(self, messages: list[dict[str, Any]]) -> str:
            return "I cannot call anything"

    vm = opener(llm=Bare(), tools=Hands().tools)
    trace = play(vm.run(program(agent("find")), {"q": 1}))
    assert trace.error["type"] == "NO_TOOLS"


def test_agents_run_beside_other_lanes(opener: Opener) -> None:
    lanes = [agent("find", "pay"), tool_step("y", "pay", args={"amount": 9})]
    group = {"id": "g", "type": "parallel", "parallel_steps": lanes}
    _vm, trace, _hands, _model = run(opener, group, propose(("find", {"q": "a"})), "said")
    assert trace.final_output == {"m": "said", "y": "paid 9"}


def test_a_tool_that_is_gone_is_rejected_and_not_offered(opener: Opener) -> None:
    hands, model = (
        Hands(),
        MockLLMAdapter([propose(("later", {"n": 1})), propose(("pay", {"amount": 1})), "done"]),
    )
    vm = opener(llm=model, tools=hands.tools)
    trace = play(vm.run(program(agent("later", "pay")), {"q": "it"}))
    other = opener(llm=model, tools=hands.tools[:1] + hands.tools[3:])  # without `pay`
    trace = play(other.resume(trace.trace_id, 1, step="m.later"))
    assert trace.step("m").proposals[-1]["reason"] == "UNKNOWN_TOOL"
    assert [offered["function"]["name"] for offered in model.params[-1]["tools"]] == ["later"]
    assert hands.done.effects == ["later 1"]


def test_a_cancelled_run_ends_in_the_middle_of_a_conversation(opener: Opener) -> None:
    vm, trace, _hands, model = run(opener, agent("later"), propose(("later", {"n": 1})), "done")
    trace = play(vm.cancel(trace.trace_id, "enough"))
    assert trace.status is RunStatus.CANCELLED
    assert trace.step("m.later").status.value == "UNKNOWN"
    assert model.call_count == 1
    with refused("TERMINAL"):
        play(vm.resume(trace.trace_id, 1, step="m.later"))


def test_a_fork_before_the_agent_asks_it_anew(opener: Opener) -> None:
    vm, trace, hands, model = run(opener, agent("pay"), propose(("pay", {"amount": 1})), "done")
    model.reset()
    forked = play(vm.fork(trace.trace_id, "m", {"q": "that"}))
    assert forked.final_output == "done"
    assert model.calls[0][0]["content"] == "Do: that"
    assert hands.done.count("pay 1") == 2
    assert len(set(hands.keys)) == 2  # another run, another action


def test_the_same_conversation_has_the_same_trace_hash(opener: Opener) -> None:
    answers = (propose(("find", {"q": "a"})), "done")
    _, one, _, _ = run(opener, agent("find"), *answers)
    _, other, _, _ = run(opener, agent("find"), *answers)
    assert one.trace_hash == other.trace_hash
    _, different, _, _ = run(opener, agent("find"), propose(("find", {"q": "b"})), "done")
    assert different.trace_hash != one.trace_hash
    assert different.outcome_hash == one.outcome_hash


def test_no_model_reaches_a_protected_parameter(opener: Opener) -> None:
    done = Counter()

    @tool(protected=("iban",))
    async def transfer(iban: str) -> str:
        done(iban)
        return "sent"

    model = MockLLMAdapter([propose(("transfer", {"iban": "DE00"})), "done"])
    vm = opener(llm=model, tools=[transfer])
    with refused("TAINTED_PARAMETER"):
        play(vm.run(program(agent("transfer")), {"q": "it"}))
    vm.proves = False
    trace = play(vm.run(program(agent("transfer")), {"q": "it"}))
    sound(vm, trace)
    assert done.effects == []
    assert trace.step("m").proposals[0]["reason"] == "TAINTED_PARAMETER"
    assert results(model) == ['{"error":"TAINTED_PARAMETER"}']  # which parameter, it is not told


def test_no_model_is_told_what_a_secret_tool_returned(opener: Opener) -> None:
    @tool(effect="pure", output_label="secret")
    def key(n: int) -> str:
        return "hunter2"

    model = MockLLMAdapter([propose(("key", {"n": 1})), "done"])
    vm = opener(llm=model, tools=[key])
    vm.keys = Vault.in_memory()
    with refused("SECRET_IN_PROMPT"):
        play(vm.run(program(agent("key")), {"q": "it"}))
    vm.proves = False
    trace = play(vm.run(program(agent("key")), {"q": "it"}))
    assert trace.error["type"] == "SECRET_IN_PROMPT"
    assert "hunter2" not in json.dumps(model.calls)


def test_labels_of_a_conversation_fold_alike(opener: Opener) -> None:
    inputs = {
        "type": "object",
        "properties": {"q": {"type": "string", "label": "trusted"}},
        "required": ["q"],
    }
    calls = propose(("find", {"q": "a"}), ("nope", {}))
    _vm, trace, _hands, _model = run(opener, agent("find"), calls, "done", inputs=inputs)
    found = {
        event.type: event.label for event in trace.events if event.type not in ("RunStarted", "RunFinished")
    }
    assert found == {"StepStarted": 1, "ModelTurned": 1, "ActionProposed": 1, "StepSucceeded": 1}
    first = next(event for event in trace.events if event.type == "StepStarted")
    assert first.label is UNSET  # before the model has said anything, all of it is the author's


def test_what_the_policy_denies_never_starts_and_the_model_is_told_no_more_than_that(opener: Opener) -> None:
    hands = Hands()
    model = MockLLMAdapter([propose(("pay", {"amount": 1}), ("find", {"q": "x"})), "done"])
    policy = {"policy": "p", "tools": ["find"], "models": ["*"]}
    vm = opener(llm=model, tools=hands.tools, policy=policy)
    with refused("DENIED_TOOL"):
        play(vm.run(program(agent("find", "pay")), {"q": "it"}))
    vm.proves = False  # as for a run that began before there was such a policy
    trace = play(vm.run(program(agent("find", "pay")), {"q": "it"}))
    sound(vm, trace)
    assert trace.final_output == "done"
    assert hands.done.effects == ["find x"]
    assert results(model) == ['{"error":"CapabilityDeniedError"}', '["x"]']
    assert "PolicyDecided" in kinds(trace)
    assert [(p["verdict"], p["reason"]) for p in trace.step("m").proposals] == [
        ("rejected", "CapabilityDeniedError"),
        ("accepted", None),
    ]
    assert [step.id for step in trace.steps] == [
        "m.find",
        "m",
    ]  # what was rejected is no action, and no failed one
    (denied,) = [e for e in trace.events if e.type == "ActionProposed" and e.verdict == "rejected"]
    assert denied.decided == {"policy": vm.policy.hash, "reason": "DEFAULT", "rule": "default"}


def test_a_proposal_is_held_against_conditions_limits_and_what_must_precede(opener: Opener) -> None:
    hands = Hands()
    turns = [propose(("pay", {"amount": amount})) for amount in (3, 900, 4, 5)]
    model = MockLLMAdapter([turns[0], propose(("find", {"q": "x"})), *turns, "done"])
    policy = {
        "policy": "p",
        "tools": ["find"],
        "models": ["*"],
        "rules": [
            {"id": "much", "tools": ["pay"], "when": "$args.amount > 100", "decision": "deny"},
            {
                "id": "few",
                "tools": ["pay"],
                "requires": ["find"],
                "limits": [{"max_calls": 2, "per": ["run"]}],
            },
        ],
    }
    vm = opener(llm=model, tools=hands.tools, policy=policy)
    trace = play(vm.run(program(agent("find", "pay")), {"q": "it"}))
    sound(vm, trace)
    assert trace.final_output == "done"
    assert hands.done.effects == ["pay 3", "find x", "pay 3", "pay 4"][1:]
    decided = [e.decided or None for e in trace.events if e.type == "ActionProposed"]
    assert [said and (said["rule"], said["reason"], said.get("detail")) for said in decided] == [
        ("few", "REQUIRES", "tool:find"),
        None,
        None,
        ("much", "RULE", None),
        None,
        ("few", "LIMIT", "calls per run"),
    ]
    assert results(model)[-1] == '{"error":"CapabilityDeniedError"}'


def test_a_policy_that_comes_into_force_in_the_middle_of_a_conversation_rejects(opener: Opener) -> None:
    hands = Hands()
    model = MockLLMAdapter([propose(("find", {"q": "x"}), ("pay", {"amount": 1})), "done"])
    vm = opener(llm=model, tools=hands.tools, policy={"policy": "p", "default": "allow"})

    @tool
    def find(q: str) -> str:
        vm.set_policy({"policy": "q", "tools": ["find"], "models": ["*"]})
        return q

    vm.register_tool("find", find)
    trace = play(vm.run(program(agent("find", "pay")), {"q": "it"}))
    sound(vm, trace)
    assert (trace.final_output, hands.done.effects) == ("done", [])
    (denied,) = [e for e in trace.events if e.type == "ActionProposed" and e.verdict == "rejected"]
    assert denied.decided["current"] == vm.policy.hash


def test_a_person_may_vouch_for_what_a_model_proposes(opener: Opener) -> None:
    """A protected parameter takes a model's word where somebody approves exactly this action, and not otherwise."""
    done = Counter()
    ana, eve = {"id": "ana", "roles": []}, {"id": "eve", "roles": ["boss"]}

    @tool(protected=["amount"])
    async def pay(amount: int) -> str:
        done(f"pay {amount}")
        return "paid"

    policy = {
        "policy": "p",
        "models": ["*"],
        "rules": [{"id": "ask", "tools": ["pay"], "approval": {"roles": ["boss"]}}],
    }

    async def main() -> None:
        model = MockLLMAdapter([propose(("pay", {"amount": 7}), ("pay", {"amount": 8})), "done"])
        vm = opener(llm=model, tools={"pay": pay}, policy=policy)
        trace = await vm.run(program(agent("pay")), {"q": "it"}, principal=ana)
        assert (trace.status, done.effects) == (RunStatus.SUSPENDED, [])
        (found,) = vm.approvals()
        assert found.shown["args"] == {"amount": 7}
        trace = await vm.approve(trace.trace_id, principal=eve)
        trace = await vm.approve(trace.trace_id, False, principal=eve)
        assert (trace.final_output, done.effects) == ("done", ["pay 7"])
        assert results(model) == ["paid", '{"error":"APPROVAL_DENIED"}']
        sound(vm, trace)

    play(main())
