"""Where two traces part."""

from __future__ import annotations

import json

from nano_vm.journal.diff import diff
from unit.journal.journal_runs import Driver, loop, refund_run, saga_run, trace_of


def brief(found):
    return [(d.step, d.occurrence, d.fields) for d in found.differences]


def test_runs_with_the_same_results_do_not_part():
    found = diff(trace_of(refund_run()), trace_of(refund_run(seed=2, run_id="run-9", answers=("yes",))))
    assert (found.a, found.b) == ("run-1", "run-9")
    assert (found.parts_at, found.differences) == (None, ())
    assert found.same_program
    assert found.same_status
    assert found.same_trace_hash
    assert found.execution_equivalent


def test_traces_part_at_the_first_result_that_differs():
    found = diff(trace_of(refund_run()), trace_of(refund_run(answers=("no",))))
    assert (found.same_program, found.same_status) == (True, True)
    assert (found.same_trace_hash, found.execution_equivalent) == (False, False)
    assert brief(found) == [
        ("classify", 1, ("output",)),
        ("decide", 1, ("verdict",)),
        ("pay", 1, ("presence",)),
        ("refuse", 1, ("presence",)),
    ]
    assert found.parts_at is found.differences[0]
    assert (found.parts_at.a.output, found.parts_at.b.output) == ("yes", "no")
    assert (found.differences[2].b, found.differences[3].a) == (None, None)


def test_another_path_may_come_to_the_same():
    def run(values):
        given = iter(values)
        return Driver(loop(3), tools={"count": lambda a: next(given)}).start().go()

    found = diff(trace_of(run([1, 3])), trace_of(run([3])))
    assert (found.same_trace_hash, found.execution_equivalent) == (False, True)
    assert brief(found)[0] == ("tick", 1, ("output",))
    longer = diff(trace_of(run([1, 2, 3])), trace_of(run([1, 3])))
    assert brief(longer)[0] == ("tick", 2, ("output",))
    assert longer.parts_at is longer.differences[0]
    assert brief(longer)[-1] == ("again", 3, ("presence",))


def test_true_is_not_one():
    def run(value):
        return Driver(loop(0), tools={"count": lambda a: value}).start().go()

    found = diff(trace_of(run(True)), trace_of(run(1)))
    assert brief(found) == [("tick", 1, ("output",))]
    assert not found.execution_equivalent


def test_a_failure_differs_in_status_and_error():
    ok = trace_of(saga_run())
    steps = {step.id: step for step in ok.steps}
    assert steps["charge"].error["type"] == "CardDeclined"
    found = diff(trace_of(refund_run()), ok)
    assert (found.same_program, found.same_status) == (False, False)
    assert all(d.fields == ("presence",) for d in found.differences)
    assert found.parts_at.step == "lookup"


def test_a_diff_is_a_json_object():
    for found in (
        diff(trace_of(refund_run()), trace_of(refund_run(answers=("no",)))),
        diff(trace_of(refund_run()), trace_of(refund_run())),
    ):
        plain = found.to_dict()
        assert json.loads(json.dumps(plain)) == plain
        assert len(plain["differences"]) == len(found.differences)
