"""Attempts (P4): what settles one, what repeats it, and what its unknown outcome means."""

from __future__ import annotations

from typing import Any

import pytest

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallModel, CallTool, Reconcile, StartTimer
from nano_vm.kernel.state import Phase, RunStatus
from unit.kernel.kernel_driving import Drive, tool

RETRY = {"steps": [tool("a", on_error="retry", max_retries=3, retry={"jitter": False}), tool("b")]}
PLAIN = {"steps": [tool("a"), tool("b")]}
ASK = {"id": "ask", "type": "llm", "prompt": "Yes or no?", "allowed_outputs": ["yes", "no"]}


def step_events(place: dict[str, Any]) -> list[ev.Event]:
    return [
        ev.StepStarted(**place),
        ev.StepSucceeded(**place),
        ev.StepFailed(**place, draw=0, error="E", retryable=True),
        ev.StepPending(**place),
        ev.OutcomeUnknown(**place, effect="keyed", reason="CRASH"),
        ev.OutcomeResolved(**place, by="operator", resolution="failed"),
        ev.TimerFired(**place),
    ]


def test_a_settled_attempt_refuses_everything_that_comes_after_it() -> None:
    run = Drive(PLAIN).start()
    place = run.place("a")
    run.do("a", 1)
    assert [run.offer(event) for event in step_events(place)] == ["DUPLICATE"] * 7


def test_an_attempt_that_has_not_come_yet_is_out_of_order() -> None:
    run = Drive(PLAIN).start()
    assert [run.offer(event) for event in step_events(run.place("b"))] == ["OUT_OF_ORDER"] * 7
    late = run.place("a", occurrence=0)
    assert run.offer(ev.StepStarted(**late)) == "STALE_ATTEMPT"
    run.do("a")
    assert run.offer(ev.StepStarted(**run.place("a", occurrence=0))) == "OUT_OF_ORDER"


def test_an_unknown_step_and_a_negative_item_are_named() -> None:
    run = Drive(PLAIN).start()
    assert run.offer(ev.StepStarted(**run.place("nope"))) == "UNKNOWN_STEP"
    assert run.offer(ev.StepStarted(**{**run.place("a"), "item": -1})) == "MALFORMED"
    assert run.offer(ev.StepStarted(**{**run.place("a"), "item": 0})) == "OUT_OF_ORDER"


def test_no_outcome_without_an_intent_and_no_intent_twice() -> None:
    run = Drive(PLAIN).start()
    assert [run.offer(event) for event in step_events(run.place("a"))[1:]] == ["OUT_OF_ORDER"] * 6
    run.begin("a")
    assert run.offer(ev.StepStarted(**run.place("a"))) == "OUT_OF_ORDER"
    assert run.offer(ev.TimerFired(**run.place("a"))) == "OUT_OF_ORDER"


def test_another_attempt_or_occurrence_is_stale() -> None:
    run = Drive(RETRY).start().break_("a").ring("a")
    assert run.command("a").attempt == 2
    for stale in ({"attempt": 1}, {"attempt": 3}, {"occurrence": 2}):
        assert run.offer(ev.StepStarted(**run.place("a", **stale))) == "STALE_ATTEMPT"


def test_an_intent_must_be_for_the_request_that_the_program_renders() -> None:
    run = Drive({"steps": [tool("a", args={"n": "$n"})]}, n=5).start()
    assert run.offer(ev.StepStarted(**run.place("a", payload={"n": 6}))) == "MISMATCH"
    run.begin("a", payload={"n": 5})


def test_a_tool_without_effects_needs_no_intent() -> None:
    run = Drive(PLAIN).start()
    run.succeed("a", 7, pure=True)
    assert run.state.last_output == 7
    run.begin("b")
    assert run.offer(ev.StepSucceeded(**run.place("b", pure=True))) == "OUT_OF_ORDER"
    asked = Drive({"steps": [ASK]}).start()
    assert asked.offer(ev.StepSucceeded(**asked.place("ask", payload="yes", pure=True))) == "OUT_OF_ORDER"


def test_nothing_dispatched_may_fail_or_be_pending_without_an_intent() -> None:
    run = Drive(PLAIN).start()
    run.fail("a", "UNKNOWN_TOOL", pure=True, retryable=False).finish()
    assert run.status is RunStatus.FAILED
    waits = Drive(PLAIN).start()
    waits.must(ev.StepPending(**waits.place("a", pure=True)))
    assert waits.waits() == [("tool", "a")]
    waits = Drive(PLAIN).start().begin("a")
    assert waits.offer(ev.StepPending(**waits.place("a", pure=True))) == "OUT_OF_ORDER"
    assert waits.offer(ev.StepFailed(**waits.place("a", pure=True), draw=0, error="E", retryable=True)) == (
        "OUT_OF_ORDER"
    )


def test_a_retry_backs_off_exponentially_and_at_most_to_its_cap() -> None:
    retry = {"initial": 1, "factor": 3, "cap": 10, "jitter": False}
    run = Drive({"steps": [tool("a", on_error="retry", max_retries=6, retry=retry)]}).start()
    delays = []
    for _ in range(5):
        run.break_("a")
        [timer] = run.commands()
        assert type(timer) is StartTimer
        delays.append(timer.due_ms - run.now)
        run.ring("a")
    assert delays == [1_000, 3_000, 9_000, 10_000, 10_000]
    run.break_("a").finish()
    assert run.status is RunStatus.FAILED
    assert run.state.error == {"type": "Boom", "message": "boom", "attempts": 6, "step": "a"}


@pytest.mark.parametrize(("draw", "delay"), [(0, 500), (500_000, 750), (999_999, 999)])
def test_jitter_comes_from_the_draw_of_the_event(draw: int, delay: int) -> None:
    run = Drive({"steps": [tool("a", on_error="retry")]}).start().break_("a", draw=draw)
    [timer] = run.commands()
    assert type(timer) is StartTimer
    assert timer.due_ms - run.now == delay
    for bad in (-1, 1_000_000):
        other = Drive(PLAIN).start().begin("a")
        event = ev.StepFailed(**other.place("a"), draw=bad, error="E", retryable=True)
        assert other.offer(event) == "MALFORMED"


def test_a_huge_factor_is_capped_instead_of_overflowing() -> None:
    retry = {"initial": 1, "factor": 1000, "cap": 5, "jitter": False}
    run = Drive({"steps": [tool("a", on_error="retry", max_retries=9, retry=retry)]}).start()
    for _ in range(4):
        run.break_("a").ring("a")
    run.break_("a")
    assert run.state.active[0].due_ms - run.now == 5_000


def test_a_timer_that_is_not_due_changes_nothing() -> None:
    run = Drive(RETRY).start().break_("a")
    assert run.offer(ev.TimerFired(**run.place("a", at_ms=run.now + 999))) == "OUT_OF_ORDER"
    run.ring("a")
    assert run.offer(ev.TimerFired(**run.place("a"))) == "OUT_OF_ORDER"


def test_a_failure_that_is_not_retryable_is_not_retried() -> None:
    assert Drive(RETRY).start().break_("a", retryable=False).finish().status is RunStatus.FAILED


# --- model answers ------------------------------------------------------------------------------------------


def test_a_models_answer_passes_the_gate_or_is_refused() -> None:
    run = Drive({"steps": [ASK]}).start().begin("ask")
    assert run.offer(ev.StepSucceeded(**run.place("ask", payload="maybe"))) == "GATE"
    assert run.offer(ev.StepSucceeded(**run.place("ask", payload=["yes"]))) == "GATE"
    assert run.offer(ev.StepSucceeded(**run.place("ask", payload="maybe", substituted=True))) == "GATE"
    run.succeed("ask", "yes").finish()
    assert run.status is RunStatus.SUCCESS


def test_a_resolution_passes_the_same_gate() -> None:
    run = Drive({"steps": [ASK]}).start().begin("ask").lose("ask", effect="model")
    assert run.offer(run.resolution("ask", "succeeded", payload="maybe")) == "GATE"
    run.resolve("ask", "succeeded", payload="no")
    assert run.state.last_output == "no"


def test_what_is_substituted_is_what_the_author_wrote() -> None:
    step = {**ASK, "timeout_seconds": 1, "on_timeout": "fallback", "fallback": "no"}
    run = Drive({"steps": [step]}).start().begin("ask")
    assert run.offer(ev.StepSucceeded(**run.place("ask", payload="yes", substituted=True))) == "GATE"
    run.succeed("ask", "no", substituted=True)
    [settled] = run.state.settled
    assert settled.substituted
    skip = Drive({"steps": [{**ASK, "on_error": "skip"}]}).start().begin("ask")
    skip.succeed("ask", "yes", substituted=True)
    pure = Drive(PLAIN).start().begin("a")
    assert pure.offer(ev.StepSucceeded(**pure.place("a", payload=None, substituted=True))) == "GATE"


def test_a_model_is_told_what_was_wrong_with_its_last_answer_only() -> None:
    run = Drive({"steps": [{**ASK, "on_error": "retry"}]}).start()
    first = run.command("ask")
    assert type(first) is CallModel
    assert first.request == {"messages": [{"role": "user", "content": "Yes or no?"}]}
    told = [{"role": "assistant", "content": "maybe"}, {"role": "user", "content": "yes or no, please"}]
    run.break_("ask", "GATE", payload={"message": "m", "feedback": told}).ring("ask")
    again = run.command("ask")
    assert type(again) is CallModel
    assert again.request["messages"] == [*first.request["messages"], *told]
    # A tool's failure tells nobody anything.
    plain = Drive(RETRY).start().break_("a", payload={"feedback": told}).ring("a")
    command = plain.command("a")
    assert type(command) is CallTool
    assert command.args == {}


def test_a_model_request_holds_everything_the_author_gave() -> None:
    step = {**ASK, "system": "Be $tone.", "model": "m1", "params": {"temperature": 0, "max_tokens": 9}}
    command = Drive({"steps": [step]}, tone="brief").start().command("ask")
    assert type(command) is CallModel
    assert command.request == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Yes or no?"}],
        "model": "m1",
        "params": {"temperature": 0, "max_tokens": 9},
    }
    assert command.tokens_max == 9


# --- reservations -------------------------------------------------------------------------------------------

BUDGETED = {"max_tokens": 100, "max_cost_usd": 0.000001, "steps": [{**ASK, "on_error": "retry"}, tool("b")]}


def test_a_reservation_must_fit_and_is_given_back() -> None:
    run = Drive(BUDGETED).start()
    assert run.offer(ev.StepStarted(**run.place("ask"), reserved_tokens=101)) == "OVER_BUDGET"
    assert run.offer(ev.StepStarted(**run.place("ask"), reserved_cost_nanousd=1_001)) == "OVER_BUDGET"
    run.begin("ask", reserved_tokens=100, reserved_cost_nanousd=1_000)
    assert (run.state.reserved_tokens, run.state.reserved_cost_nanousd) == (100, 1_000)
    run.fail("ask", tokens_in=10, tokens_out=2, cost_nanousd=5)
    assert (run.state.reserved_tokens, run.state.tokens, run.state.cost_nanousd) == (0, 12, 5)
    run.ring("ask")
    assert run.offer(ev.StepStarted(**run.place("ask"), reserved_tokens=89)) == "OVER_BUDGET"
    run.begin("ask", reserved_tokens=88)
    run.succeed("ask", "yes", tokens_in=1)
    assert (run.state.reserved_tokens, run.state.tokens) == (0, 13)


def test_an_unknown_bill_stays_reserved_and_is_settled_at_its_worst_when_nobody_knows() -> None:
    run = Drive(BUDGETED).start().begin("ask", reserved_tokens=50, reserved_cost_nanousd=7).lose("ask")
    assert (run.state.tokens, run.state.reserved_tokens) == (0, 50)
    run.resolve("ask", "repeat", by="contract")
    assert (run.state.tokens, run.state.cost_nanousd, run.state.reserved_tokens) == (50, 7, 0)


def test_a_late_answer_brings_its_true_bill() -> None:
    run = Drive(BUDGETED).start().begin("ask", reserved_tokens=50).lose("ask")
    run.succeed("ask", "yes", tokens_in=20, tokens_out=1)
    assert (run.state.tokens, run.state.reserved_tokens) == (21, 0)


def test_the_driver_may_say_that_the_next_call_does_not_fit() -> None:
    run = Drive(BUDGETED).start()

    def exhausted(**facts: Any) -> ev.Event:
        known = {"at_ms": 1_000, "budget": "tokens", "left": 100, "needed": 101, "step": "ask"}
        return ev.BudgetExhausted(**{**known, **facts})

    assert run.offer(exhausted(step="nope")) == "UNKNOWN_STEP"
    assert run.offer(exhausted(step="b")) == "OUT_OF_ORDER"
    assert run.offer(exhausted(needed=100)) == "MISMATCH"
    run.must(exhausted())
    assert run.offer(exhausted()) == "OUT_OF_ORDER"
    assert run.finish().status is RunStatus.BUDGET_EXCEEDED


# --- unknown outcomes ---------------------------------------------------------------------------------------


def test_an_unknown_outcome_suspends_the_run_and_is_named() -> None:
    run = (
        Drive({"steps": [tool("a", args={"n": 1}, idempotency_key="k$n")]}, n=4)
        .start()
        .begin("a", effect="keyed")
    )
    run.lose("a", reason="TIMEOUT", effect="keyed")
    assert run.status is RunStatus.SUSPENDED
    assert run.waits() == [("outcome", "a")]
    [command] = run.commands()
    assert type(command) is Reconcile
    assert (command.tool, command.args, command.effect, command.reason) == ("a", {"n": 1}, "keyed", "TIMEOUT")
    assert command.business_key == "k4"
    assert command.id == "Reconcile:a#1@1"


def test_a_late_answer_settles_an_unknown_outcome() -> None:
    for settle in ("succeed", "fail", "pending"):
        run = Drive(PLAIN).start().begin("a").lose("a")
        if settle == "succeed":
            run.succeed("a", 1)
            assert run.todo() == ["CallTool:b"]
        elif settle == "fail":
            run.fail("a").finish()
            assert run.status is RunStatus.FAILED
        else:
            run.must(ev.StepPending(**run.place("a")))
            assert run.waits() == [("tool", "a")]


def test_resolutions_settle_fail_or_repeat() -> None:
    run = Drive(PLAIN).start().begin("a").lose("a").resolve("a", "succeeded", payload=5)
    assert run.state.last_output == 5
    run = (
        Drive(PLAIN)
        .start()
        .begin("a")
        .lose("a")
        .resolve("a", "failed", payload={"message": "no"}, error="Gone")
    )
    run.finish()
    assert run.state.error == {"type": "Gone", "message": "no", "attempts": 1, "step": "a"}
    run = Drive(RETRY).start().begin("a").lose("a").resolve("a", "failed", draw=1)
    assert run.state.active[0].phase is Phase.BACKOFF
    run = Drive(PLAIN).start().begin("a").lose("a").resolve("a", "repeat")
    assert run.command("a").attempt == 2
    assert run.state.steps == 2


@pytest.mark.parametrize("facts", [{"resolution": "maybe"}, {"draw": 1_000_000}, {"draw": -1}])
def test_a_resolution_that_is_none_changes_nothing(facts: dict[str, Any]) -> None:
    run = Drive(PLAIN).start().begin("a").lose("a")
    run.now += 5
    event = ev.OutcomeResolved(**{**run.place("a"), "by": "operator", "resolution": "failed", **facts})
    assert run.offer(event) == "MALFORMED"


def test_resolving_what_is_known_is_out_of_order() -> None:
    run = Drive(PLAIN).start().begin("a")
    assert run.offer(run.resolution("a", "repeat")) == "OUT_OF_ORDER"


def test_repetition_under_contract_slows_down_except_after_a_crash() -> None:
    run = Drive(PLAIN).start().begin("a").lose("a", reason="TIMEOUT").resolve("a", "repeat", by="contract")
    assert run.todo() == ["CallTool:a"]
    run.begin("a").lose("a", reason="TIMEOUT").resolve("a", "repeat", by="contract")
    assert run.todo() == ["StartTimer:a"]
    run.ring("a").begin("a").lose("a", reason="CRASH").resolve("a", "repeat", by="contract")
    assert run.command("a").attempt == 4
    assert run.todo() == ["CallTool:a"]
    run.begin("a").lose("a", reason="TIMEOUT").resolve("a", "repeat", by="operator")
    assert run.todo() == ["CallTool:a"]


def test_repeating_counts_against_the_budget() -> None:
    run = (
        Drive({"max_steps": 1, "steps": [tool("a")]})
        .start()
        .begin("a")
        .lose("a")
        .resolve("a", "repeat")
        .finish()
    )
    assert run.status is RunStatus.BUDGET_EXCEEDED
    assert run.settled == [("a", "UNKNOWN", None)]


def test_a_run_waits_with_its_end_until_an_unknown_outcome_is_settled() -> None:
    run = Drive(PLAIN).start().begin("a").lose("a").cancel()
    assert run.status is RunStatus.SUSPENDED
    assert run.waits() == [("outcome", "a")]
    finished = ev.RunFinished(at_ms=run.now, status="CANCELLED")
    assert run.offer(finished) == "OUT_OF_ORDER"
    run.resolve("a", "repeat", by="contract")
    assert run.settled == [("a", "UNKNOWN", None)]
    assert run.finish().status is RunStatus.CANCELLED


def test_a_run_that_ends_waits_for_what_is_under_way() -> None:
    for end in ("succeed", "fail", "pending"):
        run = Drive(PLAIN).start().begin("a").cancel()
        assert run.status is RunStatus.RUNNING
        assert run.commands() == []
        if end == "succeed":
            run.succeed("a", 1)
        elif end == "fail":
            run.fail("a")
        else:
            run.must(ev.StepPending(**run.place("a")))
        status = {"succeed": "SUCCESS", "fail": "FAILED", "pending": "UNKNOWN"}[end]
        assert [each[1] for each in run.settled] == [status]
        assert run.finish().status is RunStatus.CANCELLED
        assert run.state.last_output is None


def test_what_had_failed_before_the_end_is_put_down_as_failed() -> None:
    run = Drive(RETRY).start().break_("a", "Early").cancel()
    [settled] = run.state.settled
    assert (settled.status.value, settled.error) == ("FAILED", "Early")
    run = Drive(RETRY).start().begin("a").lose("a").resolve("a", "repeat").cancel()
    assert [each.status.value for each in run.state.settled] == ["UNKNOWN"]
    run = Drive(RETRY).start().cancel()
    assert run.state.settled == []


def test_a_call_that_is_no_effect_has_no_unknown_outcome() -> None:
    run = Drive({"steps": [{"id": "w", "type": "wait", "event": "e"}]}).start()
    assert run.offer(ev.OutcomeUnknown(**run.place("w"), effect="keyed", reason="CRASH")) == "OUT_OF_ORDER"
    assert run.offer(ev.StepStarted(**run.place("w"))) == "OUT_OF_ORDER"
    assert run.offer(ev.StepSucceeded(**run.place("w"))) == "OUT_OF_ORDER"


@pytest.mark.parametrize("key", ["", None, [1], True])
def test_an_idempotency_key_that_is_none_fails_the_step(key: object) -> None:
    run = Drive({"steps": [tool("a", idempotency_key="$k")]}, k=key).start().finish()
    assert run.state.error is not None
    assert run.state.error["type"] == "BAD_IDEMPOTENCY_KEY"


def test_a_command_carries_the_authors_key_and_timeout() -> None:
    step = tool("a", idempotency_key="$k", timeout_seconds=2)
    command = Drive({"steps": [step]}, k=17).start().command("a")
    assert type(command) is CallTool
    assert (command.business_key, command.timeout_ms, command.id) == (17, 2_000, "CallTool:a#1@1")
    assert command.item == -1
