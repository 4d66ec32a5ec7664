"""Waits: events, approvals, timers, the inbox, and the answers to tools that said PENDING."""

from __future__ import annotations

from typing import Any

import pytest

from nano_vm.errors import NanoVMError
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import AwaitEvent, StartTimer
from nano_vm.kernel.instants import instant, milliseconds
from nano_vm.kernel.limits import EVENTS_SEEN_MAX, INBOX_MAX
from nano_vm.kernel.state import RunStatus, restore, snapshot
from nano_vm.kernel.transition import all_waits
from unit.kernel.kernel_driving import Drive, tool

PAID = {"id": "paid", "type": "wait", "event": "payment", "accept": "$event.amount >= 10"}
APPROVE = {"id": "ok", "type": "wait", "approvers": ["boss", "deputy"]}
BOSS = {"id": "ann", "roles": ["boss"], "tenant": "default"}


def test_an_event_wait_suspends_and_names_what_it_waits_for() -> None:
    run = Drive({"steps": [{**PAID, "timeout_seconds": 60}, tool("b")]}).start()
    assert run.status is RunStatus.SUSPENDED
    [wait] = all_waits(run.program, run.state)
    assert wait.to_dict() == {
        "kind": "event",
        "step": "paid",
        "occurrence": 1,
        "attempt": 1,
        "event": "payment",
        "due_ms": 61_000,
    }
    [command] = run.commands()
    assert type(command) is AwaitEvent
    assert (command.kind, command.due_ms) == ("event", 61_000)


def test_the_events_data_is_the_output() -> None:
    run = Drive({"steps": [PAID, tool("b", args={"n": "$paid.output.amount"})]}).start()
    assert run.event("e1", {"amount": 12}, name="payment") is None
    assert run.command("b").args == {"n": 12}  # type: ignore[union-attr]


def test_an_event_that_the_wait_does_not_accept_is_refused() -> None:
    run = Drive({"steps": [PAID]}).start()
    assert run.event("e1", {"amount": 9}, name="payment") == "NOT_ACCEPTED"
    assert run.event("e2", {"other": 9}, name="payment") == "NOT_ACCEPTED"
    assert run.event("e3", "text", name="payment") == "NOT_ACCEPTED"
    assert run.event("e4", {"amount": 99}, name="refund") == "NOT_WAITING"
    assert run.event("e5", {"amount": 99}, step="nope") == "UNKNOWN_STEP"
    assert run.event("e1", {"amount": 10}, name="payment") is None


def test_the_same_event_again_is_a_duplicate_and_other_content_a_conflict() -> None:
    run = Drive({"steps": [PAID, tool("b")]}).start()
    assert run.event("e1", {"amount": 12}, name="payment") is None
    assert run.event("e1", {"amount": 12}, name="payment") == "DUPLICATE"
    assert run.event("e1", {"amount": 13}, name="payment") == "EVENT_CONFLICT"
    assert run.event("e1", {"amount": 12}, name="payment", item=0) == "EVENT_CONFLICT"
    run.do("b").finish()
    assert run.event("e1", {"amount": 12}, name="payment") == "DUPLICATE"
    assert run.event("e1", {"amount": 13}, name="payment") == "EVENT_CONFLICT"
    assert run.event("e2", {"amount": 12}, name="payment") == "TERMINAL"


def test_an_early_event_is_kept_when_the_program_declares_it() -> None:
    run = Drive({"steps": [tool("a"), PAID, tool("b")]}).start()
    assert run.event("e0", {"amount": 3}, name="payment") is None
    assert run.event("e1", {"amount": 12}, name="payment") is None
    assert run.event("e1", {"amount": 12}, name="payment") == "DUPLICATE"
    assert run.event("e2", 1, name="other") == "NOT_WAITING"
    assert run.event("e3", 1) == "NOT_WAITING"
    run.do("a")
    # The first one is not accepted and stays; the second is taken without a suspension.
    assert run.todo() == ["CallTool:b"]
    assert [letter["id"] for letter in run.state.inbox] == ["e0"]


def test_an_early_event_for_one_step_is_not_given_to_another() -> None:
    steps = [tool("a"), {**PAID, "id": "first"}, {**PAID, "id": "second"}]
    run = Drive({"steps": steps}).start()
    assert run.event("e1", {"amount": 12}, name="payment", step="second") is None
    run.do("a")
    assert run.waits() == [("event", "first")]
    assert run.event("e2", {"amount": 10}, step="first") is None
    assert run.todo() == ["Finish:"]


def test_the_inbox_is_bounded() -> None:
    run = Drive({"steps": [tool("a"), PAID]}).start()
    for number in range(INBOX_MAX):
        assert run.event(f"e{number}", {"amount": 1}, name="payment") is None
    assert run.event("more", {"amount": 1}, name="payment") == "INBOX_FULL"


def test_event_ids_are_remembered_to_a_bound_oldest_first_also_after_a_restore() -> None:
    run = Drive({"steps": [tool("a"), PAID]}).start()
    run.state.seen = {f"x{number}": "sha256:0" for number in range(EVENTS_SEEN_MAX)}
    run.state = restore(snapshot(run.state))
    assert run.event("new", {"amount": 1}, name="payment") is None
    assert len(run.state.seen) == EVENTS_SEEN_MAX
    assert "x0" not in run.state.seen
    assert next(iter(run.state.seen)) == "x1"


def test_a_run_that_is_ending_takes_no_events() -> None:
    run = Drive({"steps": [tool("a"), PAID]}).start().begin("a").cancel()
    assert run.event("e", {"amount": 50}, name="payment") == "NOT_WAITING"


def test_before_the_run_has_started_nothing_is_admissible() -> None:
    run = Drive({"steps": [tool("a")]})
    assert run.event("e", 1) == "OUT_OF_ORDER"
    assert run.offer(ev.RunAdopted(at_ms=1, fence=1)) == "OUT_OF_ORDER"
    assert run.offer(ev.EventRefused(at_ms=1, code="TERMINAL", event_id="e")) == "OUT_OF_ORDER"
    assert run.offer(ev.StepStarted(at_ms=1, attempt=1, occurrence=1, step="a")) == "OUT_OF_ORDER"


# --- approvals ----------------------------------------------------------------------------------------------


def test_an_approval_needs_a_role_and_records_who() -> None:
    run = Drive({"steps": [APPROVE, tool("b", args={"v": "$ok.output"})]}).start()
    [wait] = all_waits(run.program, run.state)
    assert (wait.kind, wait.event, wait.approvers) == ("approval", "ok", ("boss", "deputy"))
    clerk = {"id": "bob", "roles": ["clerk"], "tenant": "default"}
    for principal in (clerk, {"id": "x"}, {"id": "x", "roles": "boss"}):
        assert run.event("e1", {"approved": True}, step="ok", principal=principal) == "NOT_APPROVER"
    assert run.event("e1", {"approved": True}, step="ok") == "NOT_APPROVER"
    for data in (True, {}, {"approved": "yes"}):
        assert run.event("e1", data, step="ok", principal=BOSS) == "NOT_APPROVAL"
    assert run.event("e1", {"approved": False}, step="ok", principal=BOSS) is None
    assert run.command("b").args == {"v": {"approved": False, "by": "ann"}}  # type: ignore[union-attr]


def test_nobody_can_claim_to_be_somebody_else_in_an_approval() -> None:
    run = Drive({"steps": [APPROVE]}).start()
    assert run.event("e1", {"approved": True, "by": "the king"}, principal=BOSS) is None
    assert run.state.last_output == {"approved": True, "by": "ann"}


# --- whom an event is for -----------------------------------------------------------------------------------


def two(*lanes: dict[str, Any]) -> dict[str, Any]:
    return {"steps": [{"id": "both", "type": "parallel", "parallel_steps": list(lanes)}]}


def test_an_event_goes_to_the_wait_that_accepts_it() -> None:
    small = {"id": "small", "type": "wait", "event": "payment", "accept": "$event.amount < 10"}
    run = Drive(two(small, PAID)).start()
    assert run.event("e1", {"amount": 50}, name="payment") is None
    assert run.settled == [("paid", "SUCCESS", {"amount": 50})]
    assert run.event("e2", {"amount": 50}, name="payment") == "NOT_ACCEPTED"


def test_one_event_wakes_the_wait_that_began_first() -> None:
    first = {"id": "first", "type": "wait", "event": "go"}
    second = {"id": "second", "type": "wait", "event": "go"}
    run = Drive(two(first, second)).start()
    run.state = restore(snapshot(run.state))
    assert run.event("e1", 1, name="go") is None
    assert run.event("e2", 2, name="go") is None
    assert [step for step, _, _ in run.settled][:2] == ["first", "second"]


def test_an_event_that_names_nothing_is_refused_when_several_steps_wait() -> None:
    run = Drive(two(PAID, APPROVE)).start()
    assert run.event("e1", {"amount": 50}) == "AMBIGUOUS"
    assert run.event("e1", {"amount": 50}, step="paid") is None
    assert run.event("e2", {"approved": True}, principal=BOSS) is None


@pytest.mark.parametrize("lane", [{**APPROVE, "id": "one"}, tool("one")])
def test_an_answer_that_could_be_for_several_lanes_is_for_none(lane: dict[str, Any]) -> None:
    run = Drive({"steps": [{"id": "m", "type": "map", "over": "$items", "step": lane}]}, items=[1, 2]).start()
    if lane["type"] == "tool":
        run.pending("one", 0).pending("one", 1)
    answer = {"approved": True}
    assert run.event("e1", answer, step="one", principal=BOSS) == "AMBIGUOUS"
    assert run.event("e1", answer, step="one", item=1, principal=BOSS) is None
    assert run.event("e2", answer, step="one", item=1, principal=BOSS) == "NOT_WAITING"
    assert run.event("e3", answer, step="one", principal=BOSS) is None
    assert run.status is RunStatus.RUNNING


def test_a_wait_in_a_map_sees_its_own_item() -> None:
    lane = {"id": "one", "type": "wait", "event": "paid", "accept": "$event.id == $item"}
    step = {"id": "m", "type": "map", "over": "$items", "step": lane}
    run = Drive({"steps": [step]}, items=["a", "b"]).start()
    assert run.event("e1", {"id": "b"}, name="paid") is None
    [settled] = run.state.settled
    assert settled.item == 1
    assert run.event("e2", {"id": "b"}, name="paid") == "NOT_ACCEPTED"


def test_a_wait_in_a_map_finds_its_event_in_the_inbox() -> None:
    lane = {"id": "one", "type": "wait", "event": "paid", "accept": "$event.id == $item"}
    step = {"id": "m", "type": "map", "over": "$items", "step": lane, "max_concurrency": 1}
    run = Drive({"steps": [tool("a"), step]}, items=["a", "b"]).start()
    assert run.event("e1", {"id": "b"}, name="paid") is None
    assert run.event("e2", {"id": "a"}, name="paid", item=0) is None
    run.do("a").finish()
    assert run.state.last_output == [{"id": "a"}, {"id": "b"}]


# --- PENDING ------------------------------------------------------------------------------------------------


def test_a_pending_tool_suspends_and_the_event_is_its_output() -> None:
    run = Drive({"steps": [tool("a"), tool("b", args={"v": "$a.output"})]}).start().pending("a")
    assert run.waits() == [("tool", "a")]
    assert run.offer(ev.StepSucceeded(**run.place("a"))) == "OUT_OF_ORDER"
    assert run.event("e1", {"n": 1}, name="a") == "NOT_WAITING"
    assert run.event("e1", {"n": 1}) is None
    assert run.command("b").args == {"v": {"n": 1}}  # type: ignore[union-attr]


def test_only_tools_can_be_pending() -> None:
    run = Drive({"steps": [{"id": "ask", "type": "llm", "prompt": "?"}]}).start().begin("ask")
    assert run.offer(ev.StepPending(**run.place("ask"))) == "OUT_OF_ORDER"


def test_a_run_that_ends_names_a_pending_tool_that_had_something_to_undo() -> None:
    step = tool("charge", compensate={"tool": "refund", "args": {}})
    run = Drive({"steps": [step]}).start().pending("charge").cancel()
    assert run.settled == [("charge", "UNKNOWN", None)]
    run.finish()
    assert run.state.incomplete == ["charge"]
    assert run.event("e1", {"n": 1}) == "TERMINAL"


# --- timers -------------------------------------------------------------------------------------------------


def test_a_timer_wait_rings_when_it_is_due() -> None:
    run = Drive({"steps": [{"id": "w", "type": "wait", "seconds": "$s"}, tool("b")]}, s=1.5).start()
    [command] = run.commands()
    assert type(command) is StartTimer
    assert command.due_ms == 2_500
    assert command.id == "StartTimer:w#1@1!2500"
    assert run.waits() == [("timer", "w")]
    assert run.event("e", 1) == "NOT_WAITING"
    assert run.offer(ev.TimerFired(**run.place("w", at_ms=2_499))) == "OUT_OF_ORDER"
    run.ring("w")
    assert run.todo() == ["CallTool:b"]
    assert run.state.suspended_ms == 1_500


def test_a_wait_until_a_time_that_has_passed_rings_at_once() -> None:
    run = Drive({"steps": [{"id": "w", "type": "wait", "until": "1970-01-01T00:00:00Z"}]}).start()
    [command] = run.commands()
    assert type(command) is StartTimer
    assert command.due_ms == 1_000
    early = Drive({"steps": [{"id": "w", "type": "wait", "until": "$u"}]}, u=0).start(at_ms=0)
    early.now = 0
    early.ring("w").finish()
    assert early.status is RunStatus.SUCCESS


def test_an_event_wait_times_out_with_failure_or_fallback() -> None:
    fails = Drive({"steps": [{**PAID, "timeout_seconds": 5}]}).start().ring("paid").finish()
    assert fails.state.error is not None
    assert fails.state.error["type"] == "TIMEOUT"
    step = {**PAID, "timeout_seconds": 5, "on_timeout": "fallback", "fallback": {"amount": 0}}
    run = Drive({"steps": [step]}).start().ring("paid").finish()
    assert run.status is RunStatus.SUCCESS
    assert run.state.last_output == {"amount": 0}


def test_a_wait_without_a_time_has_no_timer() -> None:
    run = Drive({"steps": [PAID]}).start()
    assert run.timer("paid") == "OUT_OF_ORDER"


@pytest.mark.parametrize("seconds", ["soon", True, -1, 1e12, None])
def test_a_delay_that_is_none_fails_the_step(seconds: object) -> None:
    run = Drive({"steps": [{"id": "w", "type": "wait", "seconds": "$s"}]}, s=seconds).start().finish()
    assert run.state.error is not None
    assert run.state.error["type"] == "BAD_DELAY"


@pytest.mark.parametrize(
    ("text", "milliseconds_since_1970"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59Z", 0),
        ("2026-01-31T12:00:00.123456789+02:00", 1_769_853_600_123),
        ("2024-02-29t23:59:59.5z", 1_709_251_199_500),
        ("2000-03-01 00:00:00-00:30", 951_870_600_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799_000),
        (12, 12_000),
        (0.0015, 2),
    ],
)
def test_an_instant_is_read_the_same_everywhere(text: object, milliseconds_since_1970: int) -> None:
    assert instant(text) == milliseconds_since_1970


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-02-29T12:00:00Z",
        "1900-02-29T12:00:00Z",
        "2026-13-01T12:00:00Z",
        "2026-00-01T12:00:00Z",
        "2026-01-00T12:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T12:60:00Z",
        "2026-06-30T23:59:60Z",
        "2026-01-01T12:00:00+24:00",
        "2026-01-01T12:00:00+01:60",
        "20260101T120000Z",
        "２０２６-01-01T12:00:00Z",
        "now",
        -1,
        1e12,
        True,
        None,
    ],
)
def test_what_is_no_instant_is_refused(text: object) -> None:
    with pytest.raises(NanoVMError) as caught:
        instant(text)
    assert caught.value.code == "BAD_INSTANT"


def test_a_span_is_rounded_to_milliseconds() -> None:
    assert [milliseconds(span) for span in (0, 0.0004, 0.0005, 0.0015, 2)] == [0, 0, 0, 2, 2_000]


def test_what_does_not_wait_for_events_is_no_candidate() -> None:
    run = Drive(two(tool("x"), PAID, {**PAID, "id": "again"})).start().begin("x").lose("x")
    assert run.event("e0", {"amount": 1}, name="payment") == "NOT_ACCEPTED"
    assert run.event("e1", {"amount": 50}, name="payment") is None
    assert run.settled == [("paid", "SUCCESS", {"amount": 50})]


def test_a_lane_that_waits_is_named_with_its_item_and_an_unknown_outcome_with_its_reason() -> None:
    step = {"id": "m", "type": "map", "over": "$items", "step": tool("one")}
    run = Drive({"steps": [step]}, items=[1]).start().begin("one", 0).lose("one", 0, reason="TIMEOUT")
    assert [wait.to_dict() for wait in all_waits(run.program, run.state)] == [
        {"kind": "outcome", "step": "one", "occurrence": 1, "attempt": 1, "item": 0, "reason": "TIMEOUT"}
    ]
    run = Drive({"steps": [{"id": "c", "type": "call", "program": "q", "inputs": {}}]}).start().call("c")
    run.must(ev.ChildSuspended(**run.place("c"), waits=[{"kind": "event"}]))
    [wait] = all_waits(run.program, run.state)
    assert wait.to_dict()["waits"] == [{"kind": "event"}]
