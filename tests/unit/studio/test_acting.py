"""Acting in the studio: for those who may, on what was shown, and once."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

pytest.importorskip("streamlit", reason="the extra [studio] is not installed")

from nano_vm.studio import frame
from nano_vm.studio.library import Library
from nano_vm.studio.settings import ACT, APPROVE, READ, VERIFY, rights_of
from unit.studio.studio_stage import PRIVATE, SECRET, Page, Paid, Stage, done, use

DUE = Paid("A-1002", 240)


@pytest.mark.parametrize(
    ("principal", "rights"),
    [
        (None, {READ, VERIFY}),
        ({"id": "ana", "roles": []}, {READ, VERIFY}),
        ({"id": "ana", "roles": ["viewer"]}, {READ}),
        ({"id": "ana", "roles": ["auditor"]}, {READ, VERIFY}),
        ({"id": "ana", "roles": ["supervisor"]}, {READ, VERIFY, APPROVE}),
        ({"id": "ana", "roles": ["viewer", "supervisor"]}, {READ}),
        ({"id": "ana", "roles": ["approver"]}, {READ, APPROVE}),
    ],
)
def test_only_a_role_that_says_so_may_do_more_than_look(principal: Any, rights: set[str]) -> None:
    assert rights_of(principal) == rights


def test_an_operator_may_act() -> None:
    assert {ACT, APPROVE} <= rights_of({"id": "o", "roles": ["operator"]})


def test_whoever_may_only_look_is_offered_no_way_to_act(looked_at: Stage) -> None:
    for name, params in (("approvals", {}), ("run", {"id": "large"}), ("run", {"id": "waits"})):
        page = Page(name, **params)
        assert {"Approve", "Refuse", "Resume", "Cancel the run", "Fork"}.isdisjoint(page.labels)
    assert "nano-vm resume large" in Page("approvals").markup()


def test_an_approval_shows_the_action_and_executes_it_once(own: Stage) -> None:
    use(own.acting("approver", "supervisor"))
    page = Page("approvals")
    shown = page.markup()
    assert "send_refund" in shown
    assert "240" in shown
    assert "<dd>ana</dd>" in shown
    comment = next(each for each in page.test.text_input if each.label == "Comment")
    comment.set_value("seen and agreed")
    page.press("Approve")
    (job,) = done(own)
    assert (job.state, job.result) == ("done", "large")
    assert own.paid == [DUE]
    trace = frame.library().sight("large").trace
    assert trace.status.value == "SUCCESS"
    assert "Nothing waits" in page.run().markup()
    events = [event for event in trace.events if event.type == "EventReceived"]
    assert [(event.principal["id"], event.payload["comment"]) for event in events] == [
        ("maria", "seen and agreed")
    ]


def test_a_refusal_ends_it_without_the_effect(own: Stage) -> None:
    use(own.acting("approver", "supervisor"))
    Page("approvals").press("Refuse")
    (job,) = done(own)
    assert job.state == "done"
    assert own.paid == []
    assert frame.library().sight("large").trace.outcome == "not_paid"


def test_whoever_lacks_the_role_cannot_press_the_button(own: Stage) -> None:
    use(own.acting("operator"))
    page = Page("approvals")
    assert all(each.disabled for each in page.test.button if each.label in ("Approve", "Refuse"))
    assert "This takes somebody who is supervisor" in page.markup()


def test_nobody_approves_what_they_started_themselves(own: Stage) -> None:
    use(own.acting("approver", "supervisor", id="ana"))
    page = Page("approvals").press("Approve")
    (job,) = done(own)
    assert job.error is not None
    assert job.error.code == "SELF_APPROVAL"
    assert own.paid == []
    assert "SELF_APPROVAL" in page.run().markup()


def test_an_answer_covers_the_action_that_was_on_the_page_and_no_other(
    own: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(own.acting("approver", "supervisor"))
    (asked,) = frame.library().approvals()
    earlier = msgspec.structs.replace(asked, action="sha256:" + "0" * 64)
    monkeypatch.setattr(
        Library, "approvals", lambda self: [earlier]
    )  # the page was made before the run asked anew
    Page("approvals").press("Approve")
    (job,) = done(own)
    assert job.error is not None
    assert job.error.code == "APPROVAL_VOID"
    assert own.paid == []


def test_two_who_answer_the_same_are_heard_once(own: Stage) -> None:
    use(own.acting("approver", "supervisor"))
    one, other = Page("approvals"), Page("approvals")
    one.press("Approve")
    done(own)
    assert "Approve" not in other.run().labels
    assert own.paid == [DUE]


def test_a_run_is_resumed_with_the_event_that_was_typed(own: Stage) -> None:
    use(own.acting("operator"))
    page = Page("run", id="waits")
    next(each for each in page.test.text_area if each.label == "Event, as JSON").set_value("{broken")
    page.press("Resume")
    assert "not JSON" in page.test.error[0].value
    assert done(own) == []
    next(each for each in page.test.text_area if each.label == "Event, as JSON").set_value('{"amount": 7}')
    page.press("Resume")
    (job,) = done(own)
    assert job.state == "done"
    trace = frame.library().sight("waits").trace
    step = trace.step("paid")
    assert step is not None
    assert step.output == {"amount": 7}


THREE = {
    "name": "three",
    "steps": [
        {
            "id": "all",
            "type": "parallel",
            "parallel_steps": [{"id": name, "type": "wait", "event": name} for name in ("one", "two", "six")],
        }
    ],
}


def test_an_event_for_what_waits_no_longer_is_no_answer_to_something_else(own: Stage) -> None:
    """Somebody else has answered it since the page was made."""
    own.run(lambda vm: vm.run(THREE, trace_id="three"), policy=None)
    use(own.acting("operator"))
    page = Page("run", id="three")
    chosen = next(each for each in page.test.selectbox if each.label == "For")
    assert chosen.options == ["event at one", "event at two", "event at six"]
    chosen.set_value(1)
    next(each for each in page.test.text_area if each.label == "Event, as JSON").set_value('"for two"')
    own.run(lambda vm: vm.resume("three", "from elsewhere", name="two"), policy=None)
    page.press("Resume")
    done(own)
    waits = frame.library().sight("three").record.waits
    assert sorted(wait["step"] for wait in waits) == ["one", "six"]
    chosen = next(each for each in page.test.selectbox if each.label == "For")
    assert chosen.options == ["event at one", "event at six"]
    chosen.set_value(1)
    next(each for each in page.test.text_area if each.label == "Event, as JSON").set_value('"for six"')
    page.press("Resume")
    (job,) = done(own)
    assert (job.state, job.error) == ("done", None)
    assert [wait["step"] for wait in frame.library().sight("three").record.waits] == ["one"]


@pytest.mark.parametrize(
    "typed", ["{", "[" * 100_000, "NaN", "1e999", "9" * 5_000, '{"a": 1, "a": 2}', '"\\ud800"']
)
def test_what_is_no_json_is_said_to_be_none_and_changes_nothing(own: Stage, typed: str) -> None:
    use(own.acting("operator"))
    page = Page("run", id="waits")
    next(each for each in page.test.text_area if each.label == "Event, as JSON").set_value(typed)
    page.press("Resume")
    assert [job.state for job in done(own)] in ([], ["failed"])
    assert frame.library().sight("waits").is_live
    assert not any(job.unexpected for job in frame.settings().desk.jobs())  # type: ignore[union-attr]


def test_a_run_is_cancelled_only_by_whoever_is_sure(own: Stage) -> None:
    use(own.acting("operator"))
    page = Page("run", id="waits").press("Cancel the run")
    assert done(own) == []
    next(iter(page.test.checkbox)).check()
    page.press("Cancel the run")
    (job,) = done(own)
    assert job.state == "done"
    assert frame.library().sight("waits").trace.status.value == "CANCELLED"


def test_a_fork_is_a_new_run_that_repeats_nothing(own: Stage) -> None:
    use(own.acting("operator"))
    page = Page("run", id="waits")
    before = len(own.told)
    changes = next(each for each in page.test.text_area if each.label.startswith("Values to change"))
    changes.set_value('{"four": 40}')
    page.press("Fork")
    (job,) = done(own)
    assert job.state == "done"
    assert job.result not in (None, "waits")
    assert len(own.told) == before
    assert f"run:{job.result}" in page.run().markup()


def test_stopping_the_studio_lets_a_call_finish_and_leaves_the_rest_to_recovery(own: Stage) -> None:
    use(own.acting("operator"))
    (desk,) = own.desks
    own.policy = None
    own.gate.clear()
    own.entered.clear()
    Page("run", id="waits").press("Resume")
    assert own.entered.wait(30)
    stopping = threading.Thread(target=desk.close)
    stopping.start()
    own.gate.set()
    stopping.join(30)
    (job,) = desk.jobs()
    assert (job.error, job.unexpected) == (None, None)
    step = frame.library().sight("waits").trace.step("end")
    assert step is not None
    assert (step.status.value, step.output) == ("SUCCESS", 8)
    work(own)
    assert frame.library().sight("waits").trace.status.value == "SUCCESS"
    assert own.told == [{"n": 4}]  # nothing was done twice


def test_what_goes_wrong_is_shown_with_its_code(own: Stage) -> None:
    use(own.acting("operator"))
    page = Page("run", id="waits")
    step = next(each for each in page.test.selectbox if each.label.startswith("First step"))
    step.set_value("double")
    next(each for each in page.test.text_area if each.label.startswith("Values")).set_value('{"nothing": 1}')
    page.press("Fork")
    (job,) = done(own)
    assert job.error is not None
    assert job.error.code == "UNKNOWN_VALUE"
    assert "UNKNOWN_VALUE" in page.run().markup()


@pytest.fixture
def bare(own: Stage) -> Stage:
    """The studio has no tools: whoever approves need not have what pays."""
    own.has_tools = False
    use(own.acting("operator", "supervisor"))
    return own


def work(stage: Stage) -> None:
    """A worker looks once."""
    stage.run(lambda vm: vm.recover())


def test_an_answer_without_the_tools_is_left_for_a_worker_which_pays_once(bare: Stage) -> None:
    page = Page("approvals").press("Approve")
    (job,) = done(bare)
    assert (job.state, bare.paid) == ("left", [])
    assert "nano-vm worker" in page.run().markup()
    assert frame.library().sight("large").is_live
    work(bare)
    assert bare.paid == [DUE]
    trace = frame.library().sight("large").trace
    assert trace.outcome == "refunded"
    assert [event.principal["id"] for event in trace.events if event.type == "EventReceived"] == ["maria"]
    assert "by a worker" in page.run().markup()
    work(bare)
    assert bare.paid == [DUE]


def test_what_was_pressed_twice_is_done_once_and_nothing_has_failed(bare: Stage) -> None:
    Page("approvals").press("Approve")
    page = Page("approvals").press("Approve")
    assert [job.state for job in done(bare)] == ["left", "left"]
    work(bare)
    assert bare.paid == [DUE]
    markup = page.run().markup()
    assert markup.count("by a worker") == 2
    assert "DUPLICATE" not in markup


def test_what_a_worker_does_not_admit_is_said_on_the_page(bare: Stage) -> None:
    use(bare.acting("operator", "supervisor", id="ana"))  # who started it
    page = Page("approvals").press("Approve")
    done(bare)
    work(bare)
    assert bare.paid == []
    assert "SELF_APPROVAL" in page.run().markup()


def test_events_and_cancellations_are_left_too_and_forks_are_not(bare: Stage) -> None:
    page = Page("run", id="waits")
    next(each for each in page.test.text_area if each.label == "Event, as JSON").set_value('{"amount": 7}')
    page.press("Resume")
    Page("run", id="waits").press("Fork")
    events = {job.what: job for job in done(bare)}
    assert events["Resume"].state == "left"
    assert events["Fork"].error is not None
    assert events["Fork"].error.code == "TOOLS_MISSING"
    work(bare)
    step = frame.library().sight("waits").trace.step("paid")
    assert step is not None
    assert step.output == {"amount": 7}
    other = Page("run", id="large")
    next(iter(other.test.checkbox)).check()
    other.press("Cancel the run")
    done(bare)
    work(bare)
    assert frame.library().sight("large").trace.status.value == "CANCELLED"


def test_private_arguments_are_approved_by_nobody_who_has_not_seen_them_elsewhere(own: Stage) -> None:
    own.policy = {
        "policy": "private",
        "tools": ["double"],
        "models": ["default"],
        "rules": [{"id": "look", "tools": ["echo"], "approval": {"roles": ["supervisor"]}}],
    }
    own.run(lambda vm: vm.run(PRIVATE, context={"who": SECRET}, trace_id="asks", principal="ana"))
    use(own.acting("approver", "supervisor"))
    page = Page("run", id="asks")
    assert SECRET not in page.everything()
    assert "[PRIVATE]" in page.markup()
    (yes,) = [each for each in page.test.button if each.label == "Approve"]
    assert yes.disabled
    next(each for each in page.test.checkbox if "digest" in each.label).check()
    page.run().press("Approve")
    (job,) = done(own)
    assert (job.state, job.error) == ("done", None)
    assert frame.library().sight("asks").trace.status.value == "SUCCESS"


def test_arguments_that_are_cut_are_approved_by_nobody_who_has_not_seen_the_rest(own: Stage) -> None:
    own.policy = {
        "policy": "long",
        "tools": ["double"],
        "rules": [{"id": "look", "tools": ["echo"], "approval": {"roles": ["supervisor"]}}],
    }
    long = {
        "name": "long",
        "steps": [{"id": "e", "type": "tool", "tool": "echo", "args": {"x": "-" * 30_000}}],
    }
    own.run(lambda vm: vm.run(long, trace_id="asks", principal="ana"))
    use(own.acting("approver", "supervisor"))
    page = Page("run", id="asks")
    (yes,) = [each for each in page.test.button if each.label == "Approve"]
    assert yes.disabled
    next(each for each in page.test.checkbox if "digest" in each.label).check()
    page.run().press("Approve")
    (job,) = done(own)
    assert (job.state, job.error) == ("done", None)
