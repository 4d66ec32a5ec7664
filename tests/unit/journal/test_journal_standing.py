"""What the record says of a run."""

from __future__ import annotations

from nano_vm.journal.standing import standing
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus
from nano_vm.program.compiled import Kind, ParallelAction, WaitAction
from unit.journal.journal_runs import PENDING, UNKNOWN, Build, Driver, ToolBroke, refund_run, saga, wide


def test_an_ended_run_waits_for_nothing():
    run = refund_run()
    now = standing(run.program, run.state)
    assert (now.status, now.outcome, now.waits, now.wake_at_ms) == ("SUCCESS", "refunded", [], 0)


def test_a_wait_is_named_and_has_no_timer_of_its_own():
    run = Driver(wide(), tools={"count": lambda a: 5, "double": lambda a: 1}).start({"items": []}).go()
    now = standing(run.program, run.state)
    assert (now.status, now.outcome, now.wake_at_ms) == ("SUSPENDED", None, 0)
    assert [(wait["kind"], wait["step"], wait["event"]) for wait in now.waits] == [("event", "paid", "paid")]


def test_a_timer_says_when_to_wake():
    run = Driver(wide(), tools={"count": lambda a: 5, "double": lambda a: 1}).start({"items": []}).go()
    run.event("e", name="paid")
    now = standing(run.program, run.state)
    assert [(wait["kind"], wait["step"]) for wait in now.waits] == [("timer", "nap")]
    assert now.wake_at_ms == run.now_ms + 2_500


def test_a_back_off_is_the_timer_of_a_run_that_is_running():
    def broken(_args):
        raise ToolBroke("Flaky")

    run = Driver(wide(), tools={"count": lambda a: 5, "double": broken}).start({"items": []})
    while not any(activity.due_ms for activity in run.state.active.values()):
        run.go(1)
    now = standing(run.program, run.state)
    assert (run.state.status, now.status, now.waits) == (RunStatus.RUNNING, "RUNNING", [])
    assert now.wake_at_ms == min(a.due_ms for a in run.state.active.values() if a.due_ms)


def test_the_time_out_of_a_group_wakes_the_run():
    program = (
        Build("g", events=("one",))
        .step("all", Kind.PARALLEL, lambda b: ParallelAction((b.index("one"),), 1), timeout_ms=500)
        .step("one", Kind.WAIT, lambda b: WaitAction(event="one"), parent="all")
        .done()
    )
    run = Driver(program).start()
    now = standing(run.program, run.state)
    assert (now.status, [wait["step"] for wait in now.waits]) == ("SUSPENDED", ["one"])
    assert now.wake_at_ms == run.state.started_ms + 500


def test_the_timers_of_children_wake_the_parent():
    run = Driver(saga(), tools={"book": lambda a: {"id": 1}, "hold": lambda a: {"id": 2}}).start({})
    while "sub" not in [run.program.steps[a.step].id for a in run.state.active.values()]:
        run.go(1)
    where = {"at_ms": run.now_ms, "attempt": 1, "occurrence": 1, "step": "sub"}
    child = f"{run.state.run}/sub.1.1"
    assert run.send(ev.ChildStarted(child=child, program="child", **where)) is None
    inner = {"kind": "timer", "step": "x", "occurrence": 1, "attempt": 1, "due_ms": 77}
    waits = [
        {"kind": "timer", "step": "y", "occurrence": 1, "attempt": 1, "due_ms": 99},
        {"kind": "child", "step": "z", "occurrence": 1, "attempt": 1, "waits": [inner]},
    ]
    assert run.send(ev.ChildSuspended(waits=waits, **where)) is None
    now = standing(run.program, run.state)
    assert (now.status, now.wake_at_ms) == ("SUSPENDED", 77)
    assert [(wait["kind"], wait["waits"]) for wait in now.waits] == [("child", waits)]


def test_an_unknown_outcome_is_named():
    run = Driver(saga(), tools={"book": lambda a: UNKNOWN}).start({}).go()
    now = standing(run.program, run.state)
    assert [(wait["kind"], wait["step"], wait["reason"]) for wait in now.waits] == [
        ("outcome", "book", "CRASH")
    ]


def test_a_pending_tool_is_named():
    run = Driver(saga(), tools={"book": lambda a: PENDING}).start({}).go()
    assert [wait["kind"] for wait in standing(run.program, run.state).waits] == ["tool"]


def test_an_outcome_is_not_final_before_the_run_has_ended():
    program = (
        Build("o")
        .tool("book", "book", {}, compensate=("undo", {}))
        .tool("stop", "stop", {}, is_terminal=True, final_status="FAILED", outcome="refused")
        .done()
    )
    tools = {"book": lambda a: 1, "stop": lambda a: 2, "undo": lambda a: 3}
    run = Driver(program, tools=tools).start()
    while run.state.outcome is None:
        run.go(1)
    assert (run.state.status, standing(run.program, run.state).outcome) == (RunStatus.RUNNING, None)
    run.go()
    assert standing(run.program, run.state).outcome == "refused"
