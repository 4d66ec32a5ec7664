"""Agents in the kernel: what a model proposes is judged, what is accepted runs as a lane, and the turns end."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallModel, CallTool, JudgeAction
from nano_vm.kernel.limits import AGENT_CALLS_MAX, AGENT_RESULT_CHARS_MAX, AGENT_TALK_CHARS_MAX
from nano_vm.kernel.normalize import normalize_event
from nano_vm.kernel.state import Rejection, RunStatus, restore, snapshot
from unit.kernel.kernel_driving import Drive, tool


def agent(**fields: Any) -> dict[str, Any]:
    return {
        "id": "m",
        "type": "agent",
        "prompt": "go",
        "tools": ["find", "pay.now"],
        "max_turns": 3,
        **fields,
    }


def call(name: str = "find", arguments: Any = None, id: str = "c", **facts: Any) -> dict[str, Any]:
    return {"id": id, "name": name, "arguments": {} if arguments is None else arguments, **facts}


class Talk(Drive):
    """A run whose first step is an agent called `m`."""

    def turned(self, *calls: dict[str, Any], text: str = "", **facts: Any) -> ev.ModelTurned:
        payload = {"text": text, "calls": list(calls)}
        return ev.ModelTurned(**{**self.place("m"), "payload": payload, "proposals": len(calls), **facts})

    def answers(self, *calls: dict[str, Any], text: str = "", **facts: Any) -> Talk:
        """The model is asked, and proposes."""
        self.begin("m")
        self.must(self.turned(*calls, text=text, **facts))
        return self

    def judged(self, action: int, name: Any = "find", reason: Any = UNSET, **facts: Any) -> ev.ActionProposed:
        verdict = "accepted" if reason is UNSET else "rejected"
        facts = {"action": action, "tool": name, "reason": reason, "verdict": verdict, **facts}
        return ev.ActionProposed(**self.place("m", **facts))

    def accept(self, action: int, name: str = "find") -> Talk:
        self.must(self.judged(action, name))
        return self

    def reject(self, action: int, reason: str, name: Any = UNSET, message: str = "no") -> Talk:
        self.must(self.judged(action, name, reason, payload={"message": message}))
        return self

    @property
    def messages(self) -> list[dict[str, Any]]:
        activity = self.activity("m")
        assert activity is not None
        found: list[dict[str, Any]] = activity.request["messages"]
        return found


def talk(**fields: Any) -> Talk:
    run = Talk({"steps": [agent(**fields), tool("after")]})
    run.start()
    return run


def test_the_model_is_asked_with_the_tools_it_may_propose() -> None:
    run = talk(system="be brief", params={"max_tokens": 9})
    command = run.command("m")
    assert type(command) is CallModel
    assert command.tools == ("find", "pay.now")
    assert command.tokens_max == 9
    assert [message["role"] for message in command.request["messages"]] == ["system", "user"]


def test_an_agent_that_answers_at_once_is_done() -> None:
    run = talk()
    run.do("m", "the answer")
    assert run.todo() == ["CallTool:after"]
    assert run.settled == [("m", "SUCCESS", "the answer")]


def test_proposals_are_judged_and_run_one_after_the_other_in_their_order() -> None:
    run = talk().answers(call(arguments={"q": 1}), call("pay_now", {"n": 2}, "d"))
    first = run.command("m")
    assert type(first) is JudgeAction
    assert (first.action, first.tool, first.args, first.fault) == (0, "find", {"q": 1}, "")
    assert run.offer(ev.StepStarted(**run.place("m"))) == "OUT_OF_ORDER"
    assert run.offer(run.judged(1, "pay.now")) == "OUT_OF_ORDER"
    run.accept(0)
    assert run.todo() == ["CallTool:m.find.0"]
    command = run.command("m.find", 0)
    assert type(command) is CallTool
    assert (command.tool, command.args) == ("find", {"q": 1})
    run.do("m.find", ["x"], 0)
    assert run.todo() == ["JudgeAction:m"]
    assert run.offer(run.judged(0)) == "DUPLICATE"
    run.accept(1, "pay.now").do("m.pay.now", "paid", 1)
    assert run.todo() == ["CallModel:m"]
    assert run.messages[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"q":1}'}},
                {"id": "d", "type": "function", "function": {"name": "pay_now", "arguments": '{"n":2}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": '["x"]'},
        {"role": "tool", "tool_call_id": "d", "content": "paid"},
    ]
    run.do("m", "done").do("after").finish()
    assert run.status is RunStatus.SUCCESS


@pytest.mark.parametrize(
    ("proposed", "name", "fault"),
    [
        (call("drop_database"), UNSET, "UNLISTED_TOOL"),
        (call("pay.now"), UNSET, "UNLISTED_TOOL"),  # not the name it was offered under
        (call("$find"), UNSET, "UNLISTED_TOOL"),
        (call("find", "not an object"), "find", "BAD_ARGUMENT"),
        (call("find", fault="DUPLICATE_CALL"), "find", "DUPLICATE_CALL"),
    ],
)
def test_what_may_not_be_called_cannot_be_accepted(proposed: dict[str, Any], name: Any, fault: str) -> None:
    run = talk().answers(proposed)
    command = run.command("m")
    assert type(command) is JudgeAction
    assert (command.tool, command.fault) == (None if name is UNSET else name, fault)
    assert run.offer(run.judged(0, name)) == "GATE"
    assert run.offer(run.judged(0, "pay.now" if name != "pay.now" else "find")) == "MISMATCH"
    assert run.offer(run.judged(0, name, "POLICY")) == "MISMATCH"
    assert run.offer(run.judged(0, name, "")) == "MALFORMED"
    run.reject(0, fault, name)
    assert run.todo() == ["CallModel:m"]
    assert run.messages[-1]["content"] == f'{{"error":"{fault}","message":"no"}}'


def test_a_proposal_that_the_runtime_rejects_never_becomes_an_action() -> None:
    run = talk().answers(call())
    assert run.offer(run.judged(0, "find", "POLICY", verdict="accepted")) == "MALFORMED"
    assert run.offer(run.judged(0, "find", UNSET, verdict="maybe")) == "MALFORMED"
    run.reject(0, "POLICY", "find", "")
    assert run.messages[-1]["content"] == '{"error":"POLICY"}'
    assert run.offer(ev.StepStarted(**run.place("m.find", 0))) == "DUPLICATE"


def test_a_failed_action_does_not_fail_the_agent_and_says_no_more_than_its_type() -> None:
    run = talk().answers(call()).accept(0)
    run.break_("m.find", "Boom", 0)
    assert run.todo() == ["CallModel:m"]
    assert run.messages[-1]["content"] == '{"error":"Boom"}'
    assert run.settled == [("m.find", "FAILED", None)]


def test_actions_are_counted_on_from_turn_to_turn() -> None:
    run = talk().answers(call()).accept(0)
    run.do("m.find", 1, 0)
    run.answers(call()).accept(1)
    assert run.offer(ev.StepStarted(**run.place("m.find", 0))) == "DUPLICATE"
    assert run.offer(ev.StepStarted(**run.place("m.find", 7))) == "OUT_OF_ORDER"
    run.do("m.find", 2, 1)
    activity = run.activity("m")
    assert activity is not None
    assert (activity.turns, activity.attempt) == (2, 3)


def test_in_the_last_turn_nothing_is_begun_and_then_the_budget_is_exceeded() -> None:
    run = talk(max_turns=1).answers(call())
    command = run.command("m")
    assert type(command) is JudgeAction
    assert command.fault == "MAX_TURNS"
    assert run.offer(run.judged(0)) == "GATE"
    run.reject(0, "MAX_TURNS", "find").finish()
    assert run.status is RunStatus.BUDGET_EXCEEDED
    assert run.state.error == {"type": "BUDGET_EXCEEDED", "message": "max_turns", "attempts": 1, "step": "m"}


def test_an_author_may_handle_that_the_turns_are_over() -> None:
    run = Talk(
        {"steps": [agent(max_turns=1, on_failure="mend"), tool("end", is_terminal=True), tool("mend")]}
    )
    run.start()
    run.answers(call()).reject(0, "MAX_TURNS", "find")
    assert run.todo() == ["CallTool:mend"]
    run = talk(max_turns=1, on_error="skip").answers(call()).reject(0, "MAX_TURNS", "find")
    assert run.todo() == ["CallTool:after"]


def test_an_answer_that_does_not_pass_its_gate_is_a_turn() -> None:
    told = [{"role": "assistant", "content": "maybe"}, {"role": "user", "content": "yes or no"}]
    run = talk(allowed_outputs=["yes", "no"], on_error="retry", max_retries=9, max_turns=2)
    assert run.begin("m").offer(ev.StepSucceeded(**run.place("m", payload="maybe"))) == "GATE"
    facts = {"draw": 0, "error": "GATE", "retryable": True}
    assert run.offer(ev.StepFailed(**run.place("m", **facts), payload={"feedback": ["x"]})) == "MALFORMED"
    run.fail("m", "GATE", payload={"feedback": told}).ring("m")
    assert run.messages[1:] == told
    run.break_("m", "GATE", payload={"feedback": told})
    assert run.state.ending == "BUDGET_EXCEEDED"


def test_a_model_that_cannot_be_reached_is_asked_again_without_a_turn() -> None:
    run = talk(on_error="retry", max_retries=2, max_turns=1, retry={"jitter": False})
    run.break_("m", "MODEL_HTTP").ring("m").do("m", "answer")
    assert run.settled == [("m", "SUCCESS", "answer")]
    run = talk(on_error="retry", max_retries=2, retry={"jitter": False})
    run.answers(call()).accept(0).do("m.find", 1, 0)
    run.break_("m", "MODEL_HTTP").ring("m").break_("m", "MODEL_HTTP")
    assert run.state.ending == "FAILED"  # attempts are counted for each turn


def test_too_many_calls_at_once_are_refused_as_a_whole() -> None:
    run = talk()
    run.begin("m")
    many = [call(id=f"c{number}") for number in range(AGENT_CALLS_MAX + 1)]
    assert run.offer(run.turned(*many)) == "OVERSIZED"
    told = [{"role": "user", "content": "at most 32"}]
    run.must(run.turned(payload={"text": "", "calls": [], "feedback": told}, dropped=5_000))
    assert run.todo() == ["CallModel:m"]
    assert run.messages[-1] == told[0]


@pytest.mark.parametrize(
    "payload",
    [
        UNSET,
        None,
        {},
        {"text": "", "calls": []},
        {"text": 1, "calls": [call()]},
        {"text": "", "calls": [call()] * 2},
        {"text": "", "calls": ["x"]},
        {"text": "", "calls": [{"id": "c", "name": "find"}]},
        {"text": "", "calls": [call(arguments=[1])]},
        {"text": "", "calls": [call(fault=1)]},
        {"text": "", "calls": [call(more=1)]},
        {"text": "", "calls": [call()], "feedback": [{"role": "user", "content": "x"}]},
        {"text": "", "calls": [call()], "feedback": "x"},
    ],
)
def test_an_answer_that_is_none_is_refused(payload: Any) -> None:
    run = talk()
    run.begin("m")
    assert run.offer(run.turned(payload=payload, proposals=1)) == "MALFORMED"


def test_long_results_are_cut_and_long_conversations_end() -> None:
    run = talk(max_turns=1_000).answers(call()).accept(0)
    run.do("m.find", "x" * (AGENT_RESULT_CHARS_MAX + 1), 0)
    assert run.messages[-1]["content"].startswith("x" * AGENT_RESULT_CHARS_MAX + "\n(cut")
    number = 1
    while run.activity("m") is not None:
        run.answers(call()).accept(number).do("m.find", "x" * AGENT_RESULT_CHARS_MAX, number)
        number += 1
    assert run.state.error is not None
    assert run.state.error["type"] == "CONVERSATION_TOO_LARGE"
    assert number <= AGENT_TALK_CHARS_MAX // AGENT_RESULT_CHARS_MAX + 1


def test_model_calls_and_actions_are_steps_of_the_budget() -> None:
    run = Talk({"max_steps": 3, "steps": [agent()]})
    run.start()
    run.answers(call()).accept(0).do("m.find", 1, 0)  # 1 the agent, 2 the action, 3 the second turn
    assert run.state.steps == 3
    run.answers(call())
    run.must(run.judged(1))
    assert run.state.ending == "BUDGET_EXCEEDED"
    assert run.settled[-1] == ("m", "FAILED", None)


def test_tokens_are_spent_by_every_turn() -> None:
    run = Talk({"max_tokens": 10, "steps": [agent()]})
    run.start()
    run.answers(call(), tokens_in=6, tokens_out=5, cost_nanousd=7)
    assert (run.state.tokens, run.state.cost_nanousd) == (11, 7)
    run.must(run.judged(0))
    assert run.state.ending == "BUDGET_EXCEEDED"


def test_an_action_waits_for_its_answer_from_outside() -> None:
    run = talk().answers(call()).accept(0)
    run.pending("m.find", 0)
    assert run.status is RunStatus.SUSPENDED
    assert run.waits() == [("tool", "m.find")]
    assert run.event("e1", {"ok": 1}, step="m.find", item=0) is None
    assert run.messages[-1]["content"] == '{"ok":1}'


@pytest.mark.parametrize("resolution", ["succeeded", "failed", "repeat"])
def test_the_unknown_outcome_of_an_action_is_settled_before_the_model_goes_on(resolution: str) -> None:
    run = talk().answers(call()).accept(0)
    run.begin("m.find", 0).lose("m.find", 0, effect="irreversible")
    assert run.status is RunStatus.SUSPENDED
    assert run.waits() == [("outcome", "m.find")]
    assert run.todo() == ["Reconcile:m.find.0"]
    run.resolve("m.find", resolution, 0, payload=5 if resolution == "succeeded" else UNSET)
    if resolution == "repeat":
        assert run.command("m.find", 0).attempt == 2
        run.do("m.find", 5, 0)
    content = {"failed": '{"error":"RESOLVED_FAILED"}'}.get(resolution, "5")
    assert run.messages[-1]["content"] == content


def test_a_model_call_that_was_lost_is_repeated_and_takes_no_turn() -> None:
    run = talk().begin("m").lose("m", effect="model")
    run.resolve("m", "repeat", by="contract").do("m", "x")
    assert run.settled == [("m", "SUCCESS", "x")]
    run = talk()
    run.begin("m").lose("m", effect="model")
    run.must(run.turned(call()))  # the late answer
    assert run.todo() == ["JudgeAction:m"]


def test_a_cancelled_run_waits_for_the_action_under_way_and_begins_no_other() -> None:
    run = talk().answers(call(), call(id="d")).accept(0)
    run.begin("m.find", 0).cancel()
    assert run.todo() == []
    run.succeed("m.find", 1, 0)
    assert run.settled == [("m.find", "SUCCESS", 1), ("m", "FAILED", None)]
    run.finish()
    assert run.status is RunStatus.CANCELLED


def test_an_answer_that_comes_while_the_run_ends_leads_nowhere() -> None:
    run = talk()
    run.begin("m").cancel()
    run.must(run.turned(call(), tokens_out=3))
    assert run.state.tokens == 3
    run.finish()
    assert run.settled == [("m", "FAILED", None)]


def parallel(**fields: Any) -> Talk:
    group = {"id": "g", "type": "parallel", "parallel_steps": [agent(), tool("y")], **fields}
    run = Talk({"steps": [group, tool("after")]})
    run.start()
    return run


def test_an_agent_may_be_a_lane() -> None:
    run = parallel().answers(call()).accept(0)
    run.do("m.find", 1, 0).do("y", 2).do("m", "said")
    assert run.settled[-1] == ("g", "SUCCESS", {"m": "said", "y": 2})


def test_a_group_that_times_out_waits_for_the_action_and_then_the_agent_has_timed_out() -> None:
    run = parallel(timeout_seconds=5).answers(call(), call(id="d")).accept(0)
    run.begin("m.find", 0).do("y", 2).ring("g")
    run.succeed("m.find", 1, 0)
    assert run.settled == [
        ("y", "SUCCESS", 2),
        ("m.find", "SUCCESS", 1),
        ("m", "FAILED", None),
        ("g", "FAILED", None),
    ]


@pytest.mark.parametrize("phase", ["ready", "judging", "waiting", "asking"])
def test_a_group_that_times_out_gives_up_what_is_not_under_way(phase: str) -> None:
    run = parallel(timeout_seconds=5).do("y", 2)
    assert isinstance(run, Talk)
    if phase == "judging":
        run.answers(call())
    elif phase == "waiting":
        run.answers(call()).accept(0).pending("m.find", 0)
    elif phase == "asking":
        run.begin("m")
    run.ring("g")
    if phase == "asking":
        run.must(run.turned(call()))
    assert run.settled[-1] == ("g", "FAILED", None)
    assert run.state.error is not None
    assert run.state.error["type"] == "TIMEOUT"


def test_an_agent_of_a_retried_group_begins_a_new_conversation_and_never_an_old_attempt() -> None:
    run = parallel(on_error="retry", max_retries=2, retry={"jitter": False}).do("y", 2)
    assert isinstance(run, Talk)
    run.answers(call()).accept(0).do("m.find", 1, 0)
    run.break_("m", "MODEL_REFUSED", retryable=True).ring("g")
    assert len(run.messages) == 1
    activity = run.activity("m")
    assert activity is not None
    assert activity.attempt == 3
    run.answers(call())
    assert run.offer(run.judged(0)) == "DUPLICATE"
    run.accept(1)
    assert run.todo() == ["CallTool:m.find.1"]


def test_a_loop_counts_actions_anew_in_every_occurrence() -> None:
    again = {
        "id": "q",
        "type": "condition",
        "condition": "$m.output == 'more'",
        "then": "m",
        "otherwise": "z",
    }
    run = Talk({"max_steps": 50, "steps": [agent(), again, tool("z")]})
    run.start()
    run.answers(call()).accept(0).do("m.find", 1, 0).do("m", "more")
    run.answers(call()).accept(0).do("m.find", 1, 0, occurrence=2).do("m", "done", occurrence=2)
    assert run.todo() == ["CallTool:z"]


def test_the_state_in_the_middle_of_a_conversation_survives_a_snapshot() -> None:
    run = talk().answers(call(), call("pay_now", {"n": 1}, "d")).accept(0)
    run.begin("m.find", 0)
    run.state = restore(snapshot(run.state))
    run.succeed("m.find", 1, 0).accept(1, "pay.now").do("m.pay.now", 2, 1).do("m", "x")
    assert run.todo() == ["CallTool:after"]


def test_raw_events_of_agents_are_held_against_their_bounds() -> None:
    place = {"at_ms": 1, "step": "m", "occurrence": 1, "attempt": 1}
    good = normalize_event("ActionProposed", {**place, "action": 0, "verdict": "accepted", "tool": "find"})
    assert type(good) is ev.ActionProposed
    for wrong in ({"verdict": "perhaps"}, {"action": -1}, {"tool": ""}, {"reason": 5}):
        raw = {**place, "action": 0, "verdict": "rejected", **wrong}
        assert type(normalize_event("ActionProposed", raw)) is Rejection
    assert type(normalize_event("ModelTurned", {**place, "proposals": -1})) is Rejection
