"""Sagas: what succeeded is undone in reverse order when the run ends other than SUCCESS."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import Compensate, Reconcile, StartTimer
from nano_vm.kernel.state import RunStatus, restore, snapshot
from nano_vm.kernel.transition import waiting
from unit.kernel.kernel_driving import Drive, tool


def undoable(step_id: str, **fields: Any) -> dict[str, Any]:
    args = {"id": f"${step_id}.output.id"}
    return tool(step_id, compensate={"tool": f"undo_{step_id}", "args": args}, **fields)


SAGA = {"steps": [undoable("flight"), undoable("hotel"), tool("pay")]}


def failed() -> Drive:
    run = Drive(SAGA).start().do("flight", {"id": 1}).do("hotel", {"id": 2}).break_("pay")
    return run


def compensating() -> Drive:
    run = failed()
    return run.must(ev.CompensationStarted(**run.undo_place(), effect="keyed"))


def test_finished_steps_are_undone_in_reverse_order() -> None:
    run = failed()
    [command] = run.commands()
    assert type(command) is Compensate
    assert (command.step_id, command.tool, command.args) == ("hotel", "undo_hotel", {"id": 2})
    assert command.id == "Compensate:hotel#1@1"
    assert run.status is RunStatus.RUNNING
    run.undo()
    [command] = run.commands()
    assert (command.step_id, command.args) == ("flight", {"id": 1})  # type: ignore[union-attr]
    run.finish()
    assert run.status is RunStatus.FAILED
    assert run.state.incomplete == []


def test_a_run_that_succeeds_undoes_nothing() -> None:
    run = Drive(SAGA).start().do("flight", {"id": 1}).do("hotel", {"id": 2}).do("pay")
    assert run.todo() == ["Finish:"]
    assert run.offer(ev.CompensationStarted(**run.undo_place())) == "OUT_OF_ORDER"
    assert run.finish().status is RunStatus.SUCCESS
    assert len(run.state.undo) == 2  # a caller of this run may still have to


def test_nothing_is_undone_while_the_run_is_going_or_an_effect_is_open() -> None:
    run = Drive(SAGA).start().do("flight", {"id": 1}).begin("hotel")
    assert run.offer(ev.CompensationStarted(**run.undo_place())) == "OUT_OF_ORDER"
    run.lose("hotel").cancel()
    assert run.offer(ev.CompensationStarted(**run.undo_place())) == "OUT_OF_ORDER"
    assert run.todo() == ["Reconcile:hotel"]
    run.resolve("hotel", "succeeded", payload={"id": 2})
    assert run.todo() == ["Compensate:hotel"]


def test_what_succeeded_while_the_run_was_ending_is_undone_as_well() -> None:
    run = Drive(SAGA).start().do("flight", {"id": 1}).begin("hotel").cancel().succeed("hotel", {"id": 9})
    [command] = run.commands()
    assert command.args == {"id": 9}  # type: ignore[union-attr]


def test_a_run_is_not_finished_before_its_compensations() -> None:
    run = failed()
    assert run.offer(ev.RunFinished(at_ms=run.now, status="FAILED")) == "OUT_OF_ORDER"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"step": "flight"}, "OUT_OF_ORDER"),
        ({"step": "pay"}, "OUT_OF_ORDER"),
        ({"occurrence": 2}, "OUT_OF_ORDER"),
        ({"item": 0}, "OUT_OF_ORDER"),
        ({"attempt": 2}, "STALE_ATTEMPT"),
        ({"payload": {"id": 3}}, "MISMATCH"),
    ],
)
def test_only_the_compensation_that_is_due_may_start(change: dict[str, Any], code: str) -> None:
    run = failed()
    assert run.offer(ev.CompensationStarted(**{**run.undo_place(), **change})) == code
    run.must(ev.CompensationStarted(**run.undo_place(), payload={"id": 2}))
    assert run.commands() == []
    assert run.offer(ev.CompensationStarted(**run.undo_place())) == "OUT_OF_ORDER"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"step": "flight"}, "OUT_OF_ORDER"),
        ({"occurrence": 2}, "OUT_OF_ORDER"),
        ({"item": 1}, "OUT_OF_ORDER"),
        ({"attempt": 2}, "STALE_ATTEMPT"),
    ],
)
def test_an_outcome_is_for_the_compensation_in_progress(change: dict[str, Any], code: str) -> None:
    run = compensating()
    place = {**run.undo_place(), **change}
    for event in (
        ev.CompensationSucceeded(**place),
        ev.CompensationFailed(**place, draw=0, error="E", retryable=True),
        ev.OutcomeUnknown(**place, compensation=True, effect="keyed", reason="CRASH"),
        ev.OutcomeResolved(**place, compensation=True, by="operator", resolution="repeat"),
    ):
        assert run.offer(event) == code
    # A timer is looked for under the step's own name, and nothing of that name backs off.
    assert run.offer(ev.TimerFired(**place)) == code


def test_a_settled_compensation_refuses_its_duplicates() -> None:
    run = compensating()
    place = run.undo_place()
    run.must(ev.CompensationSucceeded(**place))
    assert run.offer(ev.CompensationSucceeded(**place)) == "OUT_OF_ORDER"
    run.must(ev.CompensationStarted(**run.undo_place()))
    assert run.offer(ev.CompensationSucceeded(**place)) == "OUT_OF_ORDER"
    assert run.offer(ev.CompensationStarted(**place)) == "OUT_OF_ORDER"


def test_the_same_step_done_twice_is_undone_twice_each_for_itself() -> None:
    steps = [
        undoable("a"),
        {"id": "c", "type": "condition", "condition": "$a.output.id < 2", "then": "a", "otherwise": "b"},
        tool("b"),
    ]
    run = Drive({"max_steps": 9, "steps": steps}).start().do("a", {"id": 1}).do("a", {"id": 2}).break_("b")
    assert run.command("a").args == {"id": 2}  # type: ignore[union-attr]
    run.must(ev.CompensationStarted(**run.undo_place()))
    first = run.undo_place()
    run.must(ev.CompensationSucceeded(**first)).must(ev.CompensationStarted(**run.undo_place()))
    assert run.offer(ev.CompensationSucceeded(**first)) == "OUT_OF_ORDER"
    run.must(ev.CompensationSucceeded(**run.undo_place()))
    assert run.finish().status is RunStatus.FAILED


def fail_compensation(run: Drive, retryable: bool = True) -> Drive:
    event = ev.CompensationFailed(**run.undo_place(), draw=0, error="E", retryable=retryable)
    return run.must(event)


def test_a_failed_compensation_is_retried_and_then_named() -> None:
    run = compensating()
    delays = []
    for _ in range(2):
        fail_compensation(run)
        [timer] = run.commands()
        assert type(timer) is StartTimer
        assert timer.step_id == "hotel"
        delays.append(timer.due_ms - run.now)
        early = ev.TimerFired(**run.undo_place(at_ms=timer.due_ms - 1))
        assert run.offer(early) == "OUT_OF_ORDER"
        run.state = restore(snapshot(run.state))
        run.now = timer.due_ms
        run.must(ev.TimerFired(**run.undo_place()))
        [command] = run.commands()
        assert type(command) is Compensate
        assert command.attempt == len(delays) + 1
        run.must(ev.CompensationStarted(**run.undo_place()))
    assert delays == [1_000, 2_000]
    fail_compensation(run)
    assert run.state.incomplete == ["hotel"]
    assert run.todo() == ["Compensate:flight"]
    run.undo()
    wrong = ev.RunFinished(at_ms=run.now, status="FAILED")
    assert run.offer(wrong) == "MISMATCH"
    run.finish()
    assert run.state.incomplete == ["hotel"]


def test_a_failure_that_is_not_retryable_is_named_at_once() -> None:
    run = fail_compensation(compensating(), retryable=False)
    assert run.state.incomplete == ["hotel"]


def lose(run: Drive) -> Drive:
    place = run.undo_place()
    return run.must(ev.OutcomeUnknown(**place, compensation=True, effect="keyed", reason="CRASH"))


def resolve(run: Drive, resolution: str, by: str = "operator") -> Drive:
    place = run.undo_place()
    return run.must(ev.OutcomeResolved(**place, compensation=True, by=by, resolution=resolution))


def test_an_unknown_compensation_is_waited_for_and_named() -> None:
    run = lose(compensating())
    assert run.status is RunStatus.SUSPENDED
    assert run.waits() == [("outcome", "hotel")]
    [command] = run.commands()
    assert type(command) is Reconcile
    assert (command.tool, command.args, command.compensation) == ("undo_hotel", {"id": 2}, True)
    assert command.id == "UndoReconcile:hotel#1@1"
    assert run.offer(
        ev.OutcomeUnknown(**run.undo_place(), compensation=True, effect="k", reason="CRASH")
    ) == ("OUT_OF_ORDER")
    resolve(run, "succeeded")
    assert run.todo() == ["Compensate:flight"]


def test_an_unknown_compensation_may_turn_out_to_have_ended() -> None:
    run = lose(compensating())
    run.must(ev.CompensationSucceeded(**run.undo_place()))
    assert run.todo() == ["Compensate:flight"]
    run = fail_compensation(lose(compensating()))
    assert run.todo() == ["StartTimer:hotel"]


def test_repeating_a_compensation_is_bounded_unless_somebody_vouches_for_it() -> None:
    run = resolve(lose(compensating()), "repeat")
    [command] = run.commands()
    assert type(command) is Compensate
    assert command.attempt == 2
    for _ in range(2):
        run.must(ev.CompensationStarted(**run.undo_place()))
        resolve(lose(run), "repeat", by="contract")
        run.now += 10_000
        run.must(ev.TimerFired(**run.undo_place()))
    run.must(ev.CompensationStarted(**run.undo_place()))
    resolve(lose(run), "repeat", by="contract")
    assert run.state.incomplete == ["hotel"]


def test_a_compensation_known_not_to_have_happened_is_tried_again() -> None:
    run = resolve(lose(compensating()), "failed")
    assert run.todo() == ["StartTimer:hotel"]


def test_the_lanes_of_a_map_are_undone_with_their_own_values() -> None:
    lane = tool("one", compensate={"tool": "undo", "args": {"i": "$item", "n": "$index"}})
    step = {"id": "m", "type": "map", "over": "$items", "step": lane}
    run = Drive({"steps": [step, tool("b")]}, items=["a", "b"]).start()
    run.do("one", "A", 0).do("one", "B", 1).break_("b")
    [command] = run.commands()
    assert type(command) is Compensate
    assert (command.args, command.item) == ({"i": "b", "n": 1}, 1)
    run.must(ev.CompensationStarted(**run.undo_place()))
    lose(run)
    assert [wait.item for wait in waiting(run.program, run.state)] == [1]
    # Resolutions and timers answer a command; they may leave the item out.
    place = {**run.undo_place(), "item": UNSET}
    run.must(ev.OutcomeResolved(**place, compensation=True, by="contract", resolution="repeat"))
    run.now += 10_000
    run.must(ev.TimerFired(**{**run.undo_place(), "item": UNSET}))
    run.must(ev.CompensationStarted(**run.undo_place()))
    assert run.offer(ev.CompensationSucceeded(**{**run.undo_place(), "item": UNSET})) == "OUT_OF_ORDER"
    run.must(ev.CompensationSucceeded(**run.undo_place()))
    [command] = run.commands()
    assert command.args == {"i": "a", "n": 0}  # type: ignore[union-attr]
    assert run.finish().status is RunStatus.FAILED


def test_a_compensation_sees_the_key_of_its_own_step() -> None:
    steps = [
        {"id": "c", "type": "condition", "condition": "$n == 1", "then": "a", "otherwise": "b"},
        tool(
            "a", output_key="booking", compensate={"tool": "undo", "args": {"v": "$booking"}}, next_step="z"
        ),
        tool("b", output_key="booking", next_step="z"),
        tool("z"),
    ]
    run = Drive({"steps": steps}, n=1).start().do("a", 5).break_("z")
    [command] = run.commands()
    assert command.args == {"v": 5}  # type: ignore[union-attr]


def test_a_step_that_can_no_longer_be_undone_does_not_pass_for_done() -> None:
    run = Drive(SAGA).start().do("flight", {"no_id": 1})
    assert run.settled == [("flight", "FAILED", None)]
    run.finish()
    assert run.status is RunStatus.FAILED
    assert run.state.error is not None
    assert run.state.error["type"] == "UNRESOLVED_REFERENCE"
    assert run.state.incomplete == ["flight"]


def test_a_handled_failure_to_undo_is_no_part_of_a_success() -> None:
    steps = [undoable("a", on_failure="b"), tool("z", is_terminal=True), tool("b")]
    run = Drive({"steps": steps}).start().do("a", {}).do("b").finish()
    assert run.status is RunStatus.SUCCESS
    skipping = Drive({"steps": [undoable("a", on_error="skip")]}).start().do("a", {}).finish()
    assert skipping.status is RunStatus.SUCCESS


def test_a_skipped_step_has_nothing_to_undo() -> None:
    run = Drive({"steps": [undoable("a", on_error="skip"), tool("b")]}).start().break_("a").break_("b")
    assert run.todo() == ["Finish:"]
