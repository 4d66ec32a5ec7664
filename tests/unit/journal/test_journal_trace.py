"""Traces: everything in them is a fold of the journal."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from nano_vm import canonical
from nano_vm.expr.reference import UNSET
from nano_vm.journal import merkle
from nano_vm.journal.disclosure import disclosure_root
from nano_vm.journal.fold import fold
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus, StepStatus
from nano_vm.program.compiled import FIRST_FREE_SLOT, Budgets, Edge, Kind, MapAction, ParallelAction, Retry
from unit.journal.journal_runs import (
    PENDING,
    UNKNOWN,
    Build,
    Driver,
    ToolBroke,
    chain,
    counter,
    loop_run,
    refund,
    refund_run,
    saga,
    saga_run,
    trace_of,
    wide,
    wide_run,
)


def brief(trace):
    return [(step.id, step.occurrence, step.item, step.status.value) for step in trace.steps]


# --- the run
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_state", [False, True])
def test_a_trace_tells_how_the_run_ended(with_state):
    run = refund_run()
    trace = trace_of(run, with_state)
    assert (trace.trace_id, trace.program_name, trace.program_hash) == ("run-1", "refund", run.program.hash)
    assert (trace.status, trace.outcome, trace.error, trace.waiting) == (
        RunStatus.SUCCESS,
        "refunded",
        None,
        [],
    )
    assert trace.final_output == {"paid": 99.5}
    assert trace.outputs == {"paid": 99.5, "class": "yes"}
    assert (trace.total_tokens(), trace.total_cost_usd()) == (10, 22e-9)
    assert trace.started_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert trace.started_at_ms == 1_700_000_000_000
    assert trace.finished_at_ms == run.now_ms
    assert trace.duration_ms == float(run.now_ms - 1_700_000_000_000)
    assert (trace.finished_at - trace.started_at).total_seconds() * 1_000 == trace.duration_ms
    assert trace.head == run.chain.head
    assert "SUCCESS" in repr(trace)


def test_what_the_state_answers_needs_no_journal():
    run = refund_run()

    def unread():
        raise AssertionError("the journal was read")

    trace = Trace(run.program, "run-1", unread, run.state)
    assert trace.status is RunStatus.SUCCESS
    assert trace.outputs == {"paid": 99.5, "class": "yes"}
    assert trace.outcome_hash == trace_of(run).outcome_hash
    assert (trace.total_tokens(), trace.final_output, trace.waiting) == (10, {"paid": 99.5}, [])
    assert trace.finished_at is not None


def test_the_journal_is_read_once():
    run = refund_run()
    reads = []

    def read():
        reads.append(1)
        return run.entries

    trace = Trace(run.program, "run-1", read)
    for _ in range(2):
        assert trace.steps
        assert trace.events
        assert trace.state_snapshots
        assert trace.head
        assert trace.trace_hash
    assert reads == [1]


def test_a_suspended_run_names_what_it_waits_for():
    run = Driver(wide(), tools={"count": lambda a: 5, "double": lambda a: 1}).start({"items": []}).go()
    trace = trace_of(run)
    assert (trace.status, trace.finished_at, trace.finished_at_ms) == (RunStatus.SUSPENDED, None, None)
    assert [(wait.kind, wait.step) for wait in trace.waiting] == [("event", "paid")]
    assert trace.step("paid").status is StepStatus.RUNNING
    assert trace.step("paid").finished_at_ms is None


def test_an_output_that_cannot_be_resolved_is_left_out():
    run = Driver(
        refund(),
        tools={"orders.get": lambda a: {"text": "x"}, "mail.send": lambda a: None},
        model=lambda m: "no",
    )
    run.start({"order": "o", "amount": 1}).go()
    trace = trace_of(run)
    assert (trace.outputs, trace.outcome) == ({"class": "no"}, "refused")
    assert Trace(chain(1), "r", list).outputs == {}


def test_a_run_without_entries_has_an_empty_trace():
    trace = Trace(refund(), "run-1", list)
    assert (trace.steps, trace.path, trace.events, trace.state_snapshots) == ([], [], [], [])
    assert (trace.head, trace.total_tokens(), trace.rollbacks) == ("sha256:" + "0" * 64, 0, 0)
    assert trace.trace_hash == "sha256:" + merkle.EMPTY_ROOT.hex()


def test_what_is_handed_out_cannot_change_the_run():
    run = refund_run()
    trace, again = trace_of(run, with_state=True), trace_of(run, with_state=True)
    trace.final_output["paid"] = 0
    trace.outputs["paid"] = 0
    trace.steps[0].output["text"] = "forged"
    trace.events[0].payload["amount"] = 0
    assert (trace.trace_hash, trace.outcome_hash) == (again.trace_hash, again.outcome_hash)
    assert again.final_output == {"paid": 99.5}
    assert again.state_snapshots == trace.state_snapshots


def test_a_trace_is_a_json_object():
    for make in (refund_run, wide_run, saga_run):
        trace = trace_of(make())
        plain = trace.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert plain["status"] == trace.status.value
        assert [step["id"] for step in plain["steps"]] == [step.id for step in trace.steps]
        assert plain["trace_hash"] == trace.trace_hash


def test_events_and_entries_are_the_journals():
    run = refund_run()
    trace = trace_of(run)
    assert list(trace.entries) == run.entries
    ridden = trace_of(refund_run(riders=True))
    assert [event.type for event in ridden.events] == [event.type for event in trace.events]
    assert len(ridden.entries) < len(trace.entries)
    assert [type(event) for event in trace.events][:2] == [ev.RunStarted, ev.StepStarted]
    assert trace.disclosure_root == disclosure_root(run.entries)


# --- its steps
# ------------------------------------------------------------------------------------------------


def test_steps_are_listed_with_what_they_yielded_and_cost():
    trace = trace_of(refund_run())
    assert brief(trace) == [
        ("lookup", 1, None, "SUCCESS"),
        ("classify", 1, None, "SUCCESS"),
        ("decide", 1, None, "SUCCESS"),
        ("pay", 1, None, "SUCCESS"),
    ]
    assert trace.path == ["lookup", "classify", "decide", "pay"]
    lookup, classify, decide, pay = trace.steps
    assert (lookup.type, lookup.step_id, lookup.output["text"]) == ("tool", "lookup", "order o-1")
    assert (decide.type, decide.verdict, decide.output) == ("condition", True, None)
    assert pay.output == {"paid": 99.5}
    assert (classify.type, classify.output, classify.model) == ("llm", "yes", "m-1")
    assert (classify.attempts, classify.retries) == (2, 1)
    assert [(f["attempt"], f["error"], f["message"]) for f in classify.failures] == [
        (1, "GATE", "not allowed")
    ]
    # Rejected attempts were paid for.
    assert (classify.tokens_in, classify.tokens_out, classify.tokens) == (6, 4, 10)
    assert (classify.cost_nanousd, classify.cost_usd) == (22, 22e-9)
    usage = classify.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.cost_usd) == (
        6,
        4,
        10,
        22e-9,
    )
    assert classify.duration_ms == classify.finished_at_ms - classify.started_at_ms > 0


@pytest.mark.parametrize("make", [refund_run, wide_run, saga_run])
def test_the_steps_together_spent_what_the_run_spent(make):
    trace = trace_of(make())
    assert sum(step.tokens for step in trace.steps) == trace.total_tokens()
    assert sum(step.cost_usd for step in trace.steps) == pytest.approx(trace.total_cost_usd())


def test_loops_maps_and_groups_have_every_occurrence():
    trace = trace_of(wide_run())
    assert brief(trace) == [
        *[(id, n, None, "SUCCESS") for n in (1, 2, 3) for id in ("tick", "again")],
        *[("one", 1, item, "SUCCESS") for item in (0, 1, 2)],
        ("each", 1, None, "SUCCESS"),
        ("left", 1, None, "SUCCESS"),
        ("right", 1, None, "SUCCESS"),
        ("both", 1, None, "SUCCESS"),
        ("paid", 1, None, "SUCCESS"),
        ("nap", 1, None, "SUCCESS"),
        ("ask", 1, None, "SUCCESS"),
    ]
    assert trace.step("tick").occurrence == 3
    assert trace.step("nothing") is None
    assert trace.step("each").output == [20, 40, 60]
    assert trace.step("both").output == {"left": 2, "right": 4}
    assert trace.step("right").attempts == 2
    assert trace.step("ask").output == {"approved": True, "by": "bob"}
    assert trace.step("nap").type == "wait"


def parallel(**fields):
    return (
        Build("p", events=())
        .step(
            "both", Kind.PARALLEL, lambda b: ParallelAction((b.index("left"), b.index("right")), 2), **fields
        )
        .tool("left", "left", {}, parent="both")
        .tool("right", "right", {}, parent="both")
        .done()
    )


def lane(run, step, value=None, error=None, attempt=1, start=True):
    where = {"at_ms": run.now_ms, "attempt": attempt, "occurrence": 1, "step": step}
    if start:
        assert run.send(ev.StepStarted(**where)) is None
    if error is not None:
        assert run.send(ev.StepFailed(draw=0, error=error, retryable=True, payload={}, **where)) is None
    elif value is not None:
        assert run.send(ev.StepSucceeded(payload=value, **where)) is None


def test_lanes_are_listed_as_declared_however_they_finished():
    forth, back = Driver(parallel()).start(), Driver(parallel()).start()
    for run, order in ((forth, ("left", "right")), (back, ("right", "left"))):
        for step in order:
            lane(run, step, step.upper())
        run.go()
    assert forth.chain.head != back.chain.head
    assert trace_of(forth).path == trace_of(back).path == ["left", "right", "both"]
    assert trace_of(forth).trace_hash == trace_of(back).trace_hash
    assert [i for i, _ in trace_of(back).state_snapshots] == [0, 1, 2]


def test_the_lanes_of_a_map_are_listed_by_item():
    program = (
        Build("m", ("items",))
        .step("each", Kind.MAP, lambda b: MapAction(b.template("$items"), b.index("one"), 100, 20))
        .tool("one", "one", {"value": "$item"}, parent="each")
        .done()
    )
    run = Driver(program).start({"items": list(range(12))})
    for item in (7, 3, 11, 0, 5, 1, 10, 2, 9, 4, 8, 6):
        where = {"at_ms": run.now_ms, "attempt": 1, "occurrence": 1, "step": "one", "item": item}
        assert run.send(ev.StepSucceeded(pure=True, payload=item, **where)) is None
    assert [step.item for step in trace_of(run.go()).steps] == [*range(12), None]


def test_a_failed_lane_hides_nothing_of_its_sibling():
    run = Driver(parallel()).start()
    lane(run, "left", error="Broken")
    lane(run, "right", "done")
    run.go()
    trace = trace_of(run)
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "SUBSTEP_FAILED")
    assert brief(trace) == [
        ("left", 1, None, "FAILED"),
        ("right", 1, None, "SUCCESS"),
        ("both", 1, None, "FAILED"),
    ]


def test_steps_in_progress_come_last_with_their_status():
    run = Driver(parallel()).start()
    assert brief(trace_of(run)) == [
        ("both", 1, None, "RUNNING"),
        ("left", 1, None, "PENDING"),
        ("right", 1, None, "PENDING"),
    ]
    lane(run, "left")
    assert trace_of(run).step("left").status is StepStatus.RUNNING
    where = {"at_ms": run.now_ms + 9, "attempt": 1, "occurrence": 1, "step": "left"}
    assert run.send(ev.OutcomeUnknown(effect="irreversible", reason="CRASH", **where)) is None
    assert trace_of(run).step("left").status is StepStatus.UNKNOWN
    lane(run, "right", "done")
    assert brief(trace_of(run))[0] == ("right", 1, None, "SUCCESS")
    assert trace_of(run).step("left").duration_ms == 9.0


def test_the_reservation_of_an_unknown_call_is_its_cost():
    program = Build("m").llm("ask", "hi").done()
    run = Driver(program).start()
    where = {"at_ms": run.now_ms, "attempt": 1, "occurrence": 1, "step": "ask"}
    assert run.send(ev.StepStarted(reserved_tokens=40, reserved_cost_nanousd=9, **where)) is None
    assert run.send(ev.OutcomeUnknown(effect="model", reason="CRASH", **where)) is None
    assert trace_of(run).total_tokens() == 0
    assert run.send(ev.OutcomeResolved(by="contract", resolution="repeat", **where)) is None
    trace = trace_of(run)
    assert (trace.total_tokens(), trace.steps[0].tokens, trace.steps[0].tokens_in) == (40, 40, 0)
    assert trace.steps[0].cost_nanousd == 9


def test_a_step_given_up_at_the_end_has_the_result_of_its_attempts():
    def broken(_args):
        raise ToolBroke("Flaky", "again")

    program = Build("g").tool("try", "try", {}, on_error="retry", retry=Retry(jitter=False)).done()
    run = Driver(program, tools={"try": broken}).start()
    while not any(activity.due_ms for activity in run.state.active.values()):
        run.go(1)
    assert run.send(ev.RunCancelled(at_ms=run.now_ms)) is None
    run.go()
    trace = trace_of(run)
    assert trace.status is RunStatus.CANCELLED
    (step,) = trace.steps
    assert (step.id, step.status, step.error) == (
        "try",
        StepStatus.FAILED,
        {"type": "Flaky", "message": "again", "attempts": 1},
    )


def test_a_pending_tool_given_up_is_neither_done_nor_failed():
    run = Driver(saga(), tools={"book": lambda a: PENDING}).start().go()
    assert run.send(ev.RunCancelled(at_ms=run.now_ms)) is None
    run.go()
    trace = trace_of(run)
    assert (trace.status, trace.incomplete_compensations) == (RunStatus.CANCELLED, ["book"])
    assert brief(trace) == [("book", 1, None, "UNKNOWN")]
    assert (trace.steps[0].output, trace.steps[0].error) == (None, None)
    assert json.loads(trace.leaves[0]) == {"occurrence": 1, "status": "UNKNOWN", "step": "book"}


def test_a_failure_keeps_type_message_and_attempts():
    trace = trace_of(saga_run())
    charge = trace.step("charge")
    assert (charge.status, charge.output) == (StepStatus.FAILED, None)
    assert charge.error == {"type": "CardDeclined", "message": "insufficient funds", "attempts": 1}
    assert charge.failures[0]["at_ms"] > charge.started_at_ms


def test_without_a_place_for_the_error_the_last_attempt_tells():
    def broken(_args):
        raise ToolBroke("Flaky", "no luck")

    program = (
        Build("f")
        .tool("try", "try", {}, on_failure="note", on_error="retry", retry=Retry(attempts_max=2))
        .tool("note", "note", {})
        .done()
    )
    trace = trace_of(Driver(program, tools={"try": broken, "note": lambda a: 1}).start().go())
    assert trace.step("try").error == {"type": "Flaky", "message": "no luck", "attempts": 2}
    ended = Build("f").tool("try", "try", {}).done()
    trace = trace_of(Driver(ended, tools={"try": broken}).start().go())
    assert trace.step("try").error == {"type": "Flaky", "message": "no luck", "attempts": 1}
    assert trace.error == {"type": "Flaky", "message": "no luck", "attempts": 1, "step": "try"}


def test_a_condition_that_cannot_be_decided_fails_with_its_code():
    program = Build("c", ("x",)).when("ask", "$x.part", bool, "end", "end").done()
    trace = trace_of(Driver(program).start({"x": 1}).go())
    (step,) = trace.steps
    assert (step.status, step.verdict, step.error["type"]) == (
        StepStatus.FAILED,
        None,
        "UNRESOLVED_REFERENCE",
    )
    assert json.loads(trace.leaves[0])["error"] == "UNRESOLVED_REFERENCE"


def test_steps_that_were_passed_over_are_listed_but_not_on_the_path():
    program = dag()
    trace = trace_of(Driver(program, tools={"yes": lambda a: "Y", "no": lambda a: "N"}).start().go())
    assert trace.status is RunStatus.SUCCESS
    assert sorted(brief(trace)) == [
        ("again", 1, None, "SKIPPED"),
        ("choose", 1, None, "SUCCESS"),
        ("no", 1, None, "SKIPPED"),
        ("yes", 1, None, "SUCCESS"),
    ]
    assert trace.path == ["choose", "yes"]
    leaves = {leaf["step"]: leaf for leaf in map(json.loads, trace.leaves)}
    assert leaves["no"] == {"occurrence": 1, "output": None, "status": "SKIPPED", "step": "no"}
    # A condition that was never asked has no verdict.
    assert leaves["again"] == {"occurrence": 1, "status": "SKIPPED", "step": "again"}


def dag():
    """A condition that chooses `yes`; behind `no` stands a condition that is passed over with it."""
    program = (
        Build("d")
        .when("choose", 1, bool, "yes", "no")
        .tool("yes", "yes", {})
        .tool("no", "no", {})
        .when("again", 1, bool, "end", "end")
        .done()
    )
    choose, yes, no, again = program.steps
    steps = (
        msgspec.structs.replace(choose, edges=(Edge(1, "then"), Edge(2, "otherwise"))),
        msgspec.structs.replace(yes, dependencies=1),
        msgspec.structs.replace(no, dependencies=1, edges=(Edge(3),)),
        msgspec.structs.replace(again, dependencies=1),
    )
    return msgspec.structs.replace(program, steps=steps, is_dag=True, roots=(0,))


def test_resolved_outcomes_are_attempts_like_others():
    program = Build("u").tool("pay", "pay", {}).done()
    run = Driver(program, tools={"pay": lambda a: UNKNOWN}).start().go()
    where = {"at_ms": run.now_ms, "attempt": 1, "occurrence": 1, "step": "pay"}
    resolved = ev.OutcomeResolved(
        by="operator", resolution="failed", payload={"message": "no trace"}, **where
    )
    assert run.send(resolved) is None
    run.go()
    step = trace_of(run).step("pay")
    assert step.error == {"type": "RESOLVED_FAILED", "message": "no trace", "attempts": 1}


def test_fallbacks_and_cached_answers_are_marked():
    program = Build("w").llm("ask", "hi", on_timeout="fallback", fallback="x").done()
    run = Driver(program).start()
    where = {"at_ms": run.now_ms, "attempt": 1, "occurrence": 1, "step": "ask"}
    assert run.send(ev.StepStarted(**where)) is None
    assert run.send(ev.StepSucceeded(payload="x", substituted=True, cached=True, **where)) is None
    step = trace_of(run).step("ask")
    assert (step.substituted, step.cached, step.output) == (True, True, "x")


def test_undone_steps_are_counted_and_incomplete_ones_named():
    trace = trace_of(saga_run())
    assert (trace.rollbacks, trace.incomplete_compensations) == (2, [])
    trace = trace_of(saga_run(undo_fails=True))
    assert (trace.rollbacks, trace.incomplete_compensations) == (1, ["hold"])


def test_a_compensation_resolved_by_hand_is_a_rollback():
    def charge(_args):
        raise ToolBroke("Declined", retryable=False)

    program = Build("s").tool("book", "book", {}, compensate=("undo", {})).tool("charge", "charge", {}).done()
    run = Driver(program, tools={"book": lambda a: 1, "charge": charge}).start()
    while run.state.stage != 2 or run.state.active:
        run.go(1)
    where = {"at_ms": run.now_ms, "attempt": 1, "occurrence": 1, "step": "book"}
    assert run.send(ev.CompensationStarted(payload={}, **where)) is None
    unknown = ev.OutcomeUnknown(compensation=True, effect="irreversible", reason="CRASH", **where)
    assert run.send(unknown) is None
    resolved = ev.OutcomeResolved(compensation=True, by="operator", resolution="succeeded", **where)
    # A compensation is no step: it is not listed while it is under way.
    assert [step.id for step in trace_of(run).steps] == ["book", "charge"]
    assert run.send(resolved) is None
    trace = trace_of(run.go())
    assert (trace.rollbacks, trace.step("book").status) == (1, StepStatus.SUCCESS)


# --- hashes
# ---------------------------------------------------------------------------------------------------


def test_leaves_say_what_the_text_says():
    leaves = [json.loads(leaf) for leaf in trace_of(refund_run()).leaves]
    assert leaves[1:] == [
        {"occurrence": 1, "output": "yes", "status": "SUCCESS", "step": "classify"},
        {"occurrence": 1, "status": "SUCCESS", "step": "decide", "verdict": True},
        {"occurrence": 1, "output": {"paid": 99.5}, "status": "SUCCESS", "step": "pay"},
    ]
    leaves = [json.loads(leaf) for leaf in trace_of(wide_run()).leaves]
    assert leaves[0:2] == [
        {"occurrence": 1, "output": 1, "status": "SUCCESS", "step": "tick"},
        {"occurrence": 2, "output": 2, "status": "SUCCESS", "step": "tick"},
    ]
    assert {"item": 2, "occurrence": 1, "output": 60, "status": "SUCCESS", "step": "one"} in leaves
    leaves = [json.loads(leaf) for leaf in trace_of(saga_run()).leaves]
    assert {"error": "CardDeclined", "occurrence": 1, "status": "FAILED", "step": "charge"} in leaves


def test_trace_hash_is_the_root_over_the_leaves_in_declared_order():
    trace = trace_of(wide_run())
    ids = [step.id for step in wide().steps]
    places = [
        (ids.index(leaf["step"]), leaf["occurrence"], leaf.get("item", -1))
        for leaf in map(json.loads, trace.leaves)
    ]
    assert places == sorted(places)
    assert trace.trace_hash == "sha256:" + merkle.root([merkle.leaf_hash(x) for x in trace.leaves]).hex()


def test_the_same_results_have_the_same_trace_hash_whatever_else_differs():
    one = trace_of(refund_run())
    for other in (
        refund_run(seed=2),
        refund_run(run_id="run-9"),
        refund_run(riders=True),
        refund_run(answers=("yes",)),
        refund_run(answers=(("yes", 900, 80, 7),)),
    ):
        trace = trace_of(other)
        assert trace.head != one.head
        assert (trace.trace_hash, trace.outcome_hash) == (one.trace_hash, one.outcome_hash)
    assert trace_of(refund_run(answers=("no",))).trace_hash != one.trace_hash


def test_a_lane_that_its_group_repeated_counts_once():
    program = parallel(on_error="retry", retry=Retry(jitter=False))
    run = Driver(program, tools={"left": lambda a: "L"}).start()
    lane(run, "right", "R")
    lane(run, "left", error="Flaky")
    assert run.state.active
    straight = Driver(program, tools={"left": lambda a: "L", "right": lambda a: "R"}).start().go()
    run.go()
    trace = trace_of(run)
    assert trace.status is RunStatus.SUCCESS
    assert brief(trace) == brief(trace_of(straight))
    assert trace.trace_hash == trace_of(straight).trace_hash
    assert len(trace.step("left").failures) == 1


def test_outcome_hash_covers_the_business_outcome_alone():
    a, b = trace_of(refund_run()), trace_of(refund_run(answers=("no",)))
    assert a.outcome_hash != b.outcome_hash
    expected = canonical.digest_value(
        {
            "outcome": "refunded",
            "outputs": {"paid": 99.5, "class": "yes"},
            "program": "refund",
            "status": "SUCCESS",
        }
    )
    assert a.outcome_hash == expected
    undeclared = trace_of(saga_run())
    expected = canonical.digest_value(
        {"outcome": None, "outputs": "CardDeclined", "program": "saga", "status": "FAILED"}
    )
    assert undeclared.outcome_hash == expected
    # Another way to the same end: the path does not count.
    assert trace_of(saga_run(undo_fails=True)).outcome_hash == undeclared.outcome_hash


@pytest.mark.parametrize("make", [refund_run, wide_run, saga_run])
def test_snapshots_are_digests_of_the_bound_values(make):
    run = make()
    trace = trace_of(run)
    expected = {}

    def record(entry, event, state):
        bound = {
            run.program.slots[slot]: value
            for slot, value in enumerate(state.slots)
            if slot >= FIRST_FREE_SLOT and value is not UNSET
        }
        for settled in state.settled:
            place = (run.program.steps[settled.step].id, settled.occurrence, settled.item)
            expected[place] = canonical.digest_value(bound)

    fold(run.program, run.state.run, run.entries, on_transition=record)
    found = {
        (step.id, step.occurrence, -1 if step.item is None else step.item): digest
        for step, (_, digest) in zip(trace.steps, trace.state_snapshots, strict=True)
    }
    assert found == expected
    assert [index for index, _ in trace.state_snapshots] == list(range(len(trace.steps)))


def test_snapshots_do_not_depend_on_the_run():
    a, b = trace_of(refund_run()), trace_of(refund_run(seed=2, run_id="run-9"))
    assert a.state_snapshots == b.state_snapshots


def test_long_runs_are_traced_in_time_linear_in_their_length():
    run = loop_run(2_000)
    trace = trace_of(run)
    assert len(trace.steps) == len(trace.state_snapshots) == 4_000
    long = Driver(chain(1_000), tools={"count": counter()}).start().go()
    assert trace_of(long).path == [f"s{n}" for n in range(1_000)]
    assert Budgets().steps_max == 10_000
