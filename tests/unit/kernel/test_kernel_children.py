"""Calls: a child run's waits, budgets, time-out and compensations are its parent's."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import AwaitEvent, StartChild, StartTimer, StopChild
from nano_vm.kernel.limits import CALL_DEPTH_MAX
from nano_vm.kernel.state import RunStatus
from unit.kernel.kernel_driving import Drive, tool

CALL = {"id": "pay", "type": "call", "program": "payment", "inputs": {"n": "$n"}}
PLAIN = {"steps": [CALL, tool("b", args={"v": "$pay.output"})]}
HASH = "sha256:" + "a" * 64
UNDO = {"step": "charge", "occurrence": 1, "item": -1, "tool": "refund", "args": {"id": 7}}


def test_a_call_starts_its_pinned_child_with_what_is_left() -> None:
    run = Drive(
        {**PLAIN, "max_steps": 10, "max_tokens": 100, "max_cost_usd": 1, "max_duration_seconds": 9}, n=3
    )
    run.start(programs={"payment": HASH}, depth=2)
    command = run.command("pay")
    assert type(command) is StartChild
    assert command.child == "r/pay.1.1"
    assert (command.program, command.inputs, command.depth) == (HASH, {"n": 3}, 3)
    assert command.budgets == {"steps": 9, "tokens": 100, "cost_nanousd": 10**9, "duration_ms": 9_000}


def test_only_the_child_that_was_commanded_may_start() -> None:
    run = Drive(PLAIN, n=3).start(programs={"payment": HASH})
    place = run.place("pay")
    assert run.offer(ev.StepStarted(**place)) == "OUT_OF_ORDER"
    assert run.offer(ev.ChildStarted(**place, child="other", program=HASH)) == "MISMATCH"
    assert run.offer(ev.ChildStarted(**place, child="r/pay.1.1", program="payment")) == "MISMATCH"
    event = ev.ChildStarted(**place, child="r/pay.1.1", program=HASH, payload={"n": 4})
    assert run.offer(event) == "MISMATCH"
    event.payload = {"n": 3}
    run.must(event)
    assert run.offer(event) == "OUT_OF_ORDER"
    assert run.commands() == []
    assert run.status is RunStatus.RUNNING
    run.child_end("pay", payload={"output": 5, "compensations": []})
    assert run.command("b").args == {"v": 5}  # type: ignore[union-attr]
    assert run.offer(event) == "DUPLICATE"


def test_events_about_children_are_for_calls_only() -> None:
    run = Drive({"steps": [tool("a")]}).start()
    place = run.place("a")
    assert run.offer(ev.ChildStarted(**place, child="r/a.1.1", program="x")) == "OUT_OF_ORDER"
    run.begin("a")
    assert run.offer(ev.ChildSuspended(**place, waits=[])) == "OUT_OF_ORDER"
    assert run.offer(ev.ChildResumed(**place)) == "OUT_OF_ORDER"
    assert run.offer(ev.ChildFinished(**place, head="h", status="SUCCESS", steps=1)) == "OUT_OF_ORDER"


def test_a_child_that_has_not_started_cannot_go_on_or_end() -> None:
    run = Drive(PLAIN, n=3).start()
    place = run.place("pay")
    assert run.offer(ev.ChildSuspended(**place, waits=[])) == "OUT_OF_ORDER"
    assert run.offer(ev.ChildResumed(**place)) == "OUT_OF_ORDER"
    run.call("pay")
    assert run.offer(ev.ChildResumed(**place)) == "OUT_OF_ORDER"
    assert run.offer(ev.ChildResumed(**run.place("b"))) == "OUT_OF_ORDER"
    assert run.offer(ev.StepSucceeded(**place)) == "OUT_OF_ORDER"
    assert run.offer(ev.StepFailed(**place, draw=0, error="E", retryable=True)) == "OUT_OF_ORDER"
    assert run.offer(ev.OutcomeUnknown(**place, effect="keyed", reason="CRASH")) == "OUT_OF_ORDER"
    assert run.offer(ev.StepPending(**place)) == "OUT_OF_ORDER"


def test_a_waiting_child_suspends_its_parent_which_names_what_it_waits_for() -> None:
    run = Drive(PLAIN, n=3).start().call("pay")
    waits = [{"kind": "event", "step": "w", "event": "paid", "occurrence": 1, "attempt": 1}]
    assert run.offer(ev.ChildSuspended(**run.place("pay"), waits=[])) == "MALFORMED"
    run.must(ev.ChildSuspended(**run.place("pay"), waits=waits))
    assert run.waits() == [("child", "pay")]
    [command] = run.commands()
    assert type(command) is AwaitEvent
    assert command.kind == "child"
    assert run.offer(ev.ChildSuspended(**run.place("pay"), waits=waits)) == "DUPLICATE"
    other = [{**waits[0], "event": "other"}]
    run.must(ev.ChildSuspended(**run.place("pay"), waits=other))
    assert run.state.active[0].waits == other
    run.must(ev.ChildResumed(**run.place("pay")))
    assert run.status is RunStatus.RUNNING
    run.child_end("pay")
    assert run.todo() == ["CallTool:b"]


def test_a_child_draws_on_its_parents_budgets() -> None:
    run = Drive({**PLAIN, "max_steps": 5}, n=3).start().call("pay")
    run.child_end("pay", steps=4, tokens=7, cost_nanousd=9)
    assert (run.state.steps, run.state.tokens, run.state.cost_nanousd) == (5, 7, 9)
    assert run.finish().status is RunStatus.BUDGET_EXCEEDED


def test_a_child_that_does_not_succeed_fails_its_call_which_may_be_retried() -> None:
    run = Drive({"steps": [{**CALL, "on_error": "retry", "max_retries": 2}]}, n=3).start().call("pay")
    run.child_end("pay", "FAILED").ring("pay")
    assert run.command("pay").child == "r/pay.1.2"  # type: ignore[union-attr]
    run.call("pay").child_end("pay", "BUDGET_EXCEEDED").finish()
    assert run.state.error == {
        "type": "CHILD_FAILED",
        "message": "BUDGET_EXCEEDED",
        "attempts": 2,
        "step": "pay",
    }


def test_the_end_of_a_child_that_cannot_be_read_is_refused() -> None:
    run = Drive(PLAIN, n=3).start().call("pay")
    for facts in (
        {"status": "RUNNING"},
        {"status": "SUCCESS", "payload": {"compensations": [{}]}},
        {"status": "SUCCESS", "payload": {"compensations": 5}},
    ):
        event = ev.ChildFinished(**{**run.place("pay"), "head": "h", "steps": 1, **facts})
        assert run.offer(event) == "MALFORMED"


def test_inputs_that_are_no_object_fail_the_call() -> None:
    run = Drive(PLAIN, n=3)
    step = run.program.steps[0]
    action = step.action
    fields = {name: getattr(action, name) for name in action.__struct_fields__}
    inputs = type(action.inputs)(render=lambda slots: 5, constant=True)  # type: ignore[union-attr]
    step_fields = {name: getattr(step, name) for name in step.__struct_fields__}
    bad = type(step)(**{**step_fields, "action": type(action)(**{**fields, "inputs": inputs})})
    program = run.program
    program_fields = {name: getattr(program, name) for name in program.__struct_fields__}
    run.program = type(program)(**{**program_fields, "steps": (bad, *program.steps[1:])})
    run.start().finish()
    assert run.state.error is not None
    assert run.state.error["type"] == "BAD_CALL_INPUTS"


# --- stopping -----------------------------------------------------------------------------------------------


def test_a_run_that_ends_stops_its_child_and_waits_for_it() -> None:
    run = Drive(PLAIN, n=3).start().call("pay").cancel()
    [command] = run.commands()
    assert type(command) is StopChild
    assert command.child == "r/pay.1.1"
    assert run.status is RunStatus.RUNNING
    run.child_end("pay", "CANCELLED")
    assert run.settled == [("pay", "FAILED", None)]
    assert run.finish().status is RunStatus.CANCELLED


def test_a_child_that_waits_is_stopped_as_well_and_may_still_wait_for_an_outcome() -> None:
    run = Drive(PLAIN, n=3).start().call("pay")
    run.must(ev.ChildSuspended(**run.place("pay"), waits=[{"kind": "event"}])).cancel()
    assert run.status is RunStatus.RUNNING
    assert run.todo() == ["StopChild:pay"]
    run.must(ev.ChildSuspended(**run.place("pay"), waits=[{"kind": "outcome"}]))
    assert run.status is RunStatus.SUSPENDED
    assert run.waits() == [("child", "pay")]
    assert run.todo() == ["StopChild:pay"]
    run.child_end("pay", "CANCELLED")
    assert run.finish().status is RunStatus.CANCELLED


def test_a_child_that_takes_too_long_is_stopped_and_the_call_has_timed_out() -> None:
    run = Drive({"steps": [{**CALL, "timeout_seconds": 5}]}, n=3).start()
    assert run.todo() == ["StartChild:pay"]
    run.now += 100
    run.call("pay")
    [timer] = run.commands()
    assert type(timer) is StartTimer
    assert timer.due_ms == run.now + 5_000
    assert run.offer(ev.TimerFired(**run.place("pay"))) == "OUT_OF_ORDER"
    run.ring("pay")
    assert run.todo() == ["StopChild:pay"]
    assert run.timer("pay") == "OUT_OF_ORDER"
    run.child_end("pay", "CANCELLED").finish()
    assert run.state.error is not None
    assert run.state.error["type"] == "TIMEOUT"


def test_a_waiting_child_times_out_too() -> None:
    step = {**CALL, "timeout_seconds": 5, "on_timeout": "fallback", "fallback": "late"}
    run = Drive({"steps": [step]}, n=3).start().call("pay")
    run.must(ev.ChildSuspended(**run.place("pay"), waits=[{"kind": "event"}]))
    [command] = run.commands()
    assert type(command) is AwaitEvent
    assert command.due_ms == 6_000
    run.ring("pay")
    assert run.todo() == ["StopChild:pay"]
    run.child_end("pay", "CANCELLED").finish()
    assert run.state.last_output == "late"


def test_a_child_that_was_cancelled_after_its_time_has_timed_out_whoever_stopped_it() -> None:
    for late, error in ((5_000, "TIMEOUT"), (4_999, "CHILD_FAILED")):
        run = Drive({"steps": [{**CALL, "timeout_seconds": 5}]}, n=3).start().call("pay")
        run.now += late
        run.child_end("pay", "CANCELLED").finish()
        assert run.state.error is not None
        assert run.state.error["type"] == error


def test_a_child_that_succeeds_in_spite_of_being_stopped_has_succeeded() -> None:
    run = Drive({"steps": [{**CALL, "timeout_seconds": 5}]}, n=3).start().call("pay").ring("pay")
    run.child_end("pay", payload={"output": 1, "compensations": []})
    assert run.settled == [("pay", "SUCCESS", 1)]


def test_a_timed_out_group_stops_its_children() -> None:
    lanes = [{**CALL, "id": "one"}, {**CALL, "id": "two"}]
    group = {"id": "g", "type": "parallel", "parallel_steps": lanes, "timeout_seconds": 5}
    run = Drive({"steps": [group]}, n=3).start().call("one").call("two")
    run.must(ev.ChildSuspended(**run.place("two"), waits=[{"kind": "event"}])).ring("g")
    assert run.todo() == ["StopChild:one", "StopChild:two"]
    run.child_end("one", "CANCELLED").child_end("two", "CANCELLED").finish()
    assert run.state.error is not None
    assert run.state.error["type"] == "TIMEOUT"


# --- compensations through a call ---------------------------------------------------------------------------


def test_what_a_finished_child_did_is_undone_through_its_call() -> None:
    run = Drive(PLAIN, n=3).start().call("pay")
    run.child_end("pay", payload={"output": 1, "compensations": [UNDO, {**UNDO, "step": "ship"}]}).cancel()
    assert run.todo() == ["Compensate:pay/ship"]
    run.undo()
    assert run.todo() == ["Compensate:pay/charge"]
    assert run.finish().status is RunStatus.CANCELLED
    assert run.state.undo == []


def test_the_same_childs_compensations_have_names_of_their_own() -> None:
    again = {"id": "c", "type": "condition", "condition": "$pay.output == 1", "then": "pay", "otherwise": "b"}
    done: dict[str, Any] = {"output": 1, "compensations": [UNDO]}
    run = Drive({"max_steps": 99, "steps": [CALL, again, tool("b")]}, n=3).start()
    run.call("pay").child_end("pay", payload=done).call("pay").child_end("pay", payload=done).cancel()
    assert [undo.step for undo in run.state.undo] == ["pay/charge", "pay.2/charge"]
    lane = {**CALL, "id": "one", "inputs": {"n": "$item"}}
    mapped = Drive(
        {"steps": [{"id": "m", "type": "map", "over": "$n", "step": lane}, tool("b")]}, n=[1, 2]
    ).start()
    for item in (1, 0):
        mapped.call("one", item).child_end("one", item=item, payload=done)
    assert [undo.step for undo in mapped.state.undo] == ["one.1.1/charge", "one.1.0/charge"]
    mapped.cancel().finish()


def test_calls_nested_too_deeply_do_not_start() -> None:
    run = Drive(PLAIN, n=3)
    event = ev.RunStarted(at_ms=1, program=run.program.hash, depth=CALL_DEPTH_MAX + 1)
    assert run.offer(event) == "OVER_BUDGET"
    event.depth = CALL_DEPTH_MAX
    assert run.offer(event) is None
    assert event.payload is UNSET


def test_a_call_that_cannot_be_started_fails_without_an_intent() -> None:
    run = Drive(PLAIN, n=3).start()
    run.fail("pay", "PROGRAM_NOT_FOUND", pure=True, retryable=False)
    assert run.finish().status is RunStatus.FAILED


@pytest.mark.parametrize("status", ["FAILED", "STALLED", "CANCELLED"])
def test_a_failed_child_has_undone_its_own(status: str) -> None:
    run = Drive({"steps": [{**CALL, "on_failure": "b"}, tool("x", is_terminal=True), tool("b")]}, n=3).start()
    run.call("pay").child_end("pay", status, payload={"output": None, "compensations": [UNDO]})
    assert run.state.undo == []
    assert run.todo() == ["CallTool:b"]
