"""The run itself: starting, adopting, forking, finishing; snapshots and commands."""

from __future__ import annotations

from typing import Any

import pytest

from nano_vm.errors import CODES, VerificationError
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool, StartTimer
from nano_vm.kernel.state import REJECTIONS, Phase, Rejection, RunStatus, Stage, State, restore, snapshot
from nano_vm.kernel.transition import apply, decide, waiting
from unit.kernel.kernel_driving import Drive, compiled, started, tool

PLAIN = {"steps": [tool("a"), tool("b")]}


# --- starting -----------------------------------------------------------------------------------------------


def test_a_run_is_pinned_to_its_program_and_its_features() -> None:
    run = Drive(PLAIN)
    assert run.commands() == []
    assert waiting(run.program, run.state) == []
    assert run.offer(started(run.program, program="sha256:other")) == "MISMATCH"
    assert run.offer(started(run.program, features=["unheard_of"])) == "MISMATCH"
    assert run.offer(started(run.program, payload=[1])) == "MALFORMED"
    assert run.offer(started(run.program, forked={"run": "x"})) == "MALFORMED"
    assert run.offer(started(run.program, forked={"seq": 0})) == "MALFORMED"
    assert run.offer(started(run.program, features=[])) is None
    assert run.offer(started(run.program)) == "OUT_OF_ORDER"


def test_inputs_defaults_and_the_runs_own_facts_are_values() -> None:
    inputs = {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "m": {"type": "integer", "default": 7},
            "o": {"type": "string"},
        },
        "required": ["n"],
    }
    args = {
        "n": "$n",
        "m": "$m",
        "o": "$o",
        "run": "$run.id",
        "who": "$principal.id",
        "at": "$run.started_at_ms",
    }
    run = Drive({"inputs": inputs, "steps": [tool("a", args=args)]}, n=1, ignored=2)
    run.start(principal={"id": "ann", "roles": [], "tenant": "t"})
    assert run.command("a").args == {  # type: ignore[union-attr]
        "n": 1,
        "m": 7,
        "o": None,
        "run": "r",
        "who": "ann",
        "at": 1_000,
    }


def test_an_event_that_is_none_is_refused() -> None:
    run = Drive(PLAIN).start()
    result = apply(run.program, run.state, object())  # type: ignore[arg-type]
    assert type(result) is Rejection
    assert result.code == "MALFORMED"


# --- the end ------------------------------------------------------------------------------------------------


def ended() -> Drive:
    return Drive(PLAIN).start().do("a").do("b").finish()


def test_a_terminal_status_is_absorbing() -> None:
    run = ended()
    place = {"at_ms": 5_000, "step": "a", "occurrence": 1, "attempt": 1}
    for event in (
        started(run.program),
        ev.StepStarted(**place),
        ev.StepSucceeded(**place),
        ev.TimerFired(**place),
        ev.EventReceived(at_ms=1, event_id="e", payload=1),
        ev.RunCancelled(at_ms=1),
        ev.RunFinished(at_ms=1, status="SUCCESS"),
        ev.CompensationStarted(**place),
        ev.ValuesChanged(at_ms=1, names=[]),
    ):
        assert run.offer(event) == "TERMINAL"
    assert run.commands() == []


def test_annex_entries_follow_a_terminal_status_and_change_nothing() -> None:
    run = ended()
    before = snapshot(run.state)
    run.must(ev.EventRefused(at_ms=9, code="TERMINAL", event_id="e"))
    run.must(ev.RunAdopted(at_ms=9, fence=2))
    run.state.seq -= 2
    assert snapshot(run.state) == before
    assert run.status is RunStatus.SUCCESS


def test_refusals_and_adoptions_change_nothing_in_a_run_that_goes_on() -> None:
    run = Drive(PLAIN).start()
    before = snapshot(run.state)
    run.must(ev.RunAdopted(at_ms=9, fence=2)).must(ev.EventRefused(at_ms=9, code="MALFORMED", event_id="e"))
    run.state.seq -= 2
    assert snapshot(run.state) == before


def test_a_run_ends_only_as_the_kernel_decided() -> None:
    run = Drive(PLAIN).start()
    assert run.offer(ev.RunFinished(at_ms=1, status="SUCCESS")) == "OUT_OF_ORDER"
    run.do("a").do("b")
    assert run.offer(ev.RunFinished(at_ms=1, status="FAILED")) == "MISMATCH"
    assert run.offer(ev.RunFinished(at_ms=1, status="SUCCESS", outcome="fine")) == "MISMATCH"
    assert run.offer(ev.RunFinished(at_ms=1, status="SUCCESS", incomplete=["a"])) == "MISMATCH"
    assert run.offer(ev.RunCancelled(at_ms=1)) == "OUT_OF_ORDER"
    assert run.state.stage is Stage.ENDING
    run.finish()


def test_a_run_that_has_begun_nothing_is_cancelled_at_once() -> None:
    run = Drive(PLAIN).start().cancel()
    assert run.todo() == ["Finish:"]
    assert run.finish().status is RunStatus.CANCELLED
    assert run.state.error == {"type": "CANCELLED", "message": "", "attempts": 0}


def test_time_never_runs_backwards() -> None:
    run = Drive(PLAIN).start()
    run.begin("a", at_ms=9_000).succeed("a", at_ms=10)
    assert run.state.now_ms == 9_000


# --- forks --------------------------------------------------------------------------------------------------

ARGS = {
    "steps": [tool("a", args={"n": "$n", "run": "$run.id"}), tool("b", args={"v": "$a.output", "n": "$n"})]
}


def fork(program: dict[str, Any], seq: int, **inputs: Any) -> Drive:
    return Drive(program, **inputs).start(forked={"run": "other", "seq": seq, "head": "h"})


def test_a_fork_takes_the_prefix_as_it_was_and_then_its_own_values() -> None:
    run = fork(ARGS, 3, n=1)
    run.begin("a", payload={"n": 1, "run": "other"})
    assert run.state.active[0].request == {"n": 1, "run": "other"}
    run.succeed("a", 5)
    run.must(ev.ValuesChanged(at_ms=99_000, names=["a.output", "n"], payload={"a.output": 6, "n": 2}))
    assert run.command("b").args == {"v": 6, "n": 2}  # type: ignore[union-attr]
    assert run.command("b").occurrence == 1
    assert run.state.suspended_ms == 98_000
    assert run.offer(ev.StepStarted(**run.place("b", payload={"v": 5, "n": 1}))) == "MISMATCH"
    assert run.offer(ev.ValuesChanged(at_ms=99_000, names=[], payload={})) == "OUT_OF_ORDER"


def test_values_change_nowhere_but_in_the_prefix_of_a_fork_and_at_its_end() -> None:
    changed = ev.ValuesChanged(at_ms=1, names=["n"], payload={"n": 2})
    assert Drive(ARGS, n=1).start().offer(changed) == "OUT_OF_ORDER"
    assert fork(ARGS, 1, n=1).begin("a", payload={"n": 1, "run": "r"}).offer(changed) == "OUT_OF_ORDER"
    run = fork(ARGS, 2, n=1)
    run.begin("a", payload={"n": 1, "run": "other"})
    assert run.offer(ev.ValuesChanged(at_ms=1, names=["n", "x"], payload={"n": 2})) == "MALFORMED"
    assert run.offer(ev.ValuesChanged(at_ms=1, names=["zz"], payload={"zz": 2})) == "MALFORMED"
    assert run.offer(ev.ValuesChanged(at_ms=1, names=["run"], payload={"run": {}})) == "MALFORMED"
    assert run.offer(ev.ValuesChanged(at_ms=1, names=["n"], payload=[])) == "MALFORMED"
    run.must(changed)


def test_changing_nothing_changes_nothing() -> None:
    run = fork(ARGS, 1, n=1)
    before = run.commands()
    run.must(ev.ValuesChanged(at_ms=1, names=[]))
    assert run.commands() == before


def test_a_step_that_was_tried_before_the_fork_keeps_its_attempts() -> None:
    run = fork({"steps": [tool("a", args={"n": "$n"}, on_error="retry")]}, 4, n=1)
    run.break_("a").ring("a").must(ev.ValuesChanged(at_ms=1, names=["n"], payload={"n": 2}))
    command = run.command("a")
    assert type(command) is CallTool
    assert (command.attempt, command.args) == (2, {"n": 2})


def test_a_change_that_cannot_be_rendered_fails_the_step() -> None:
    run = fork({"steps": [tool("x"), tool("a", args={"n": "$x.output.deep"})]}, 3).do("x", {"deep": 1})
    run.must(ev.ValuesChanged(at_ms=1, names=["x.output"], payload={"x.output": {}})).finish()
    assert run.status is RunStatus.FAILED


def test_a_timer_that_was_running_keeps_its_start() -> None:
    run = fork({"steps": [{"id": "w", "type": "wait", "seconds": "$s"}]}, 1, s=10)
    run.must(ev.ValuesChanged(at_ms=5_000, names=["s"], payload={"s": 20}))
    [timer] = run.commands()
    assert type(timer) is StartTimer
    assert timer.due_ms == 21_000


MAP = {"steps": [{"id": "m", "type": "map", "over": "$items", "step": tool("one", args={"v": "$item"})}]}


def test_a_map_that_has_not_begun_is_reached_again() -> None:
    run = fork(MAP, 1, items=[1, 2])
    run.must(ev.ValuesChanged(at_ms=1, names=["items"], payload={"items": [7, 8, 9]}))
    assert [command.args for command in run.commands()] == [{"v": 7}, {"v": 8}, {"v": 9}]  # type: ignore[union-attr]
    assert run.state.steps == 4
    assert [command.occurrence for command in run.commands()] == [1, 1, 1]


def test_a_map_that_has_begun_keeps_its_items() -> None:
    run = fork(MAP, 2, items=[1, 2]).begin("one", 0, payload={"v": 1})
    run.must(ev.ValuesChanged(at_ms=1, names=["items"], payload={"items": [7, 8, 9]}))
    assert run.todo() == ["CallTool:one.1"]
    done = fork(MAP, 3, items=[1, 2]).do("one", 1, 0)
    done.must(ev.ValuesChanged(at_ms=1, names=["items"], payload={"items": [7]}))
    assert done.todo() == ["CallTool:one.1"]


def test_a_child_of_the_prefix_ran_under_the_other_runs_name() -> None:
    run = fork({"steps": [{"id": "c", "type": "call", "program": "q", "inputs": {}}, tool("b")]}, 3)
    run.must(ev.ChildStarted(**run.place("c"), child="other/c.1.1", program="q", payload={"any": 1}))
    run.child_end("c").must(ev.ValuesChanged(at_ms=1, names=[]))
    assert run.todo() == ["CallTool:b"]


# --- snapshots ----------------------------------------------------------------------------------------------


def test_a_snapshot_is_independent_and_restores_to_the_same_bytes() -> None:
    run = Drive(PLAIN).start()
    assert restore(snapshot(State(run="r"))) == State(run="r")
    held = snapshot(run.state)
    again = restore(held)
    assert snapshot(again) == held
    run.do("a", {"x": [1]})
    assert snapshot(again) == held


def test_a_restored_run_goes_on_in_the_same_order() -> None:
    lanes = [tool(name) for name in ("b", "a", "j", "c")]
    group = {"id": "g", "type": "parallel", "parallel_steps": [*lanes, *(tool(f"t{i}") for i in range(12))]}
    run = Drive({"steps": [group]}).start()
    run.begin("b").lose("b").begin("t9").lose("t9").begin("a").lose("a")
    commands = [command.id for command in run.commands()]
    other = restore(snapshot(run.state))
    assert [command.id for command in decide(run.program, other)] == commands
    assert list(other.active) == list(run.state.active)
    assert all(activity.phase is Phase(activity.phase) for activity in other.active.values())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"slots":{},"slot_count":0}',
        b'{"slots":{"9":1},"slot_count":1}',
        b'{"slots":5,"slot_count":1}',
        b'{"slots":{"x":1},"slot_count":1}',
        b'{"slots":{},"slot_count":"1"}',
    ],
)
def test_a_snapshot_that_is_none_is_an_error_with_a_code(data: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        restore(data)
    assert caught.value.code == "STATE_MALFORMED"


def test_every_rejection_has_a_registered_code() -> None:
    assert REJECTIONS.keys() <= CODES.keys()


def test_command_ids_name_lanes_and_attempts() -> None:
    run = Drive(MAP, items=[1, 2]).start()
    assert [command.id for command in run.commands()] == ["CallTool:one#1.0@1", "CallTool:one#1.1@1"]


def test_a_program_without_an_error_compiles_once() -> None:
    assert compiled(PLAIN) is compiled(PLAIN)


def test_a_step_whose_output_nobody_can_name_needs_no_slot() -> None:
    program = compiled(PLAIN)
    fields = {name: getattr(program, name) for name in program.__struct_fields__}
    first = program.steps[0]
    nameless = {**{name: getattr(first, name) for name in first.__struct_fields__}, "output_slot": -2}
    run = Drive(type(program)(**{**fields, "steps": (type(first)(**nameless), program.steps[1])})).start()
    assert run.do("a", 7).state.last_output == 7
    assert 7 not in run.state.slots
