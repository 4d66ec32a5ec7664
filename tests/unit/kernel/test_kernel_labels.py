"""Labels: every value a run makes has the bits of what it was made of, and every payload says so (spec/labels.md)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.events import UNSET as ABSENT
from nano_vm.kernel.state import restore, snapshot
from nano_vm.program.labels import PRIVATE, SECRET, UNTRUSTED
from unit.kernel.kernel_driving import Drive, tool

INPUTS = {
    "type": "object",
    "properties": {
        "user": {},
        "limit": {"type": "integer", "label": "trusted"},
        "name": {"type": "string", "private": True},
        "key": {"type": "string", "label": "secret"},
    },
}
GIVEN: dict[str, Any] = {"user": "u", "limit": 3, "name": "Ada", "key": "k"}


def drive(*steps: dict[str, Any], **fields: Any) -> Drive:
    return Drive({"inputs": INPUTS, "steps": list(steps), **fields}, **GIVEN).start()


def label(run: Drive, name: str) -> int:
    assert run.state.labels is not None
    return run.state.labels[run.program.slots.index(name)]


def test_inputs_are_untrusted_unless_they_say_otherwise() -> None:
    run = drive(tool("a"))
    assert [label(run, name) for name in ("user", "limit", "name", "key")] == [
        UNTRUSTED,
        0,
        UNTRUSTED | PRIVATE,
        UNTRUSTED | SECRET,
    ]
    assert run.state.label == UNTRUSTED | SECRET | PRIVATE  # of the payload of RunStarted


def test_a_run_without_labels_tracks_none_unless_its_start_says_so() -> None:
    plain = {"steps": [tool("a", args={"x": "$x"})]}
    run = Drive(plain, x=1).start().do("a", 2)
    assert run.state.labels is None
    assert run.state.label == 0
    run = Drive(plain, x=1).start(features=["labels"])
    assert run.state.label == UNTRUSTED
    run.do("a", 2)
    assert label(run, "a.output") == UNTRUSTED
    assert Drive(plain, x=1).offer(ev.RunStarted(at_ms=1, program="x", features=["other"])) == "MISMATCH"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, 0),
        ({"a": "$limit"}, 0),
        ({"a": "$limit", "b": "no. $user"}, UNTRUSTED),
        ({"a": [{"b": "$name"}]}, UNTRUSTED | PRIVATE),
        ({"a": "$key", "b": "$limit"}, UNTRUSTED | SECRET),
    ],
)
@pytest.mark.parametrize("declared", [UNSET, "trusted", "untrusted", "secret"])
def test_a_tools_output_is_what_its_arguments_are_unless_the_tool_declares_it(
    args: dict[str, Any], expected: int, declared: Any
) -> None:
    run = drive(tool("a", args=args))
    run.begin("a")
    assert run.state.label == expected
    run.succeed("a", 1, declared=declared)
    wanted = {
        UNSET: expected,
        "trusted": expected & PRIVATE,
        "untrusted": expected & PRIVATE | UNTRUSTED,
        "secret": expected | SECRET,
    }[declared]
    assert run.state.label == label(run, "a.output") == run.state.last_label == wanted


def test_a_models_text_is_untrusted_and_as_private_as_its_prompt() -> None:
    ask = {"id": "a", "type": "llm", "prompt": "about $name", "system": "$limit"}
    assert label(drive(ask).do("a", "text"), "a.output") == UNTRUSTED | PRIVATE
    ask = {"id": "a", "type": "llm", "prompt": "about $limit"}
    assert label(drive(ask).do("a", "text"), "a.output") == UNTRUSTED


def test_what_a_private_step_yields_is_private_in_every_way_it_can_come() -> None:
    quiet = tool("a", private=True, on_error="retry", on_failure="b", timeout_seconds=9)
    after = tool("b", args={"e": "$a.error"})
    run = drive(quiet, {**after, "args": {}})
    assert label(run.do("a", 1), "a.output") == PRIVATE
    run = drive(quiet, {**after, "args": {}}).begin("a").lose("a")
    assert run.state.label == UNTRUSTED | PRIVATE
    run.resolve("a", "succeeded", payload=3)
    assert run.state.label == label(run, "a.output") == PRIVATE
    run = drive(quiet, {**after, "args": {}}).pending("a")
    assert run.event("e1", 5) is None
    assert run.state.label == UNTRUSTED | PRIVATE


def test_the_error_of_a_step_is_as_private_as_what_it_was_given() -> None:
    bad = tool("a", args={"n": "$name"}, on_failure="b")
    run = drive(bad, tool("end", is_terminal=True), tool("b", args={"m": "$a.error.message"}))
    run.begin("a").fail("a", retryable=False)
    assert run.state.label == label(run, "a.error") == UNTRUSTED | PRIVATE
    run.begin("b")
    assert run.state.label == UNTRUSTED | PRIVATE


def test_a_fallback_stays_untrusted_and_a_skipped_step_yields_nothing() -> None:
    slow = {"id": "a", "type": "llm", "prompt": "$name", "timeout_seconds": 1, "on_timeout": "fallback"}
    run = drive({**slow, "fallback": "x"}, tool("b")).begin("a").succeed("a", "x", substituted=True)
    assert label(run, "a.output") == UNTRUSTED
    run = drive(tool("a", args={"n": "$name"}, on_error="skip"), tool("b")).break_("a", retryable=False)
    assert label(run, "a.output") == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, UNTRUSTED),
        ({"label": "trusted"}, 0),
        ({"label": "secret"}, UNTRUSTED | SECRET),
        ({"private": True}, UNTRUSTED | PRIVATE),
        ({"private": True, "label": "trusted"}, PRIVATE),
    ],
)
def test_an_event_counts_as_its_wait_says_even_when_it_comes_early(
    fields: dict[str, Any], expected: int
) -> None:
    wait = {"id": "w", "type": "wait", "event": "paid", **fields}
    run = drive(wait)
    assert run.event("e1", 5, name="paid") is None
    assert run.state.label == label(run, "w.output") == expected
    run = drive(tool("a"), wait)
    assert run.event("e1", 5, name="paid") is None
    assert run.state.label == expected | UNTRUSTED  # kept: nobody knows yet who takes it
    assert label(run.do("a"), "w.output") == expected


def test_a_wait_for_a_time_yields_nothing_that_anybody_made() -> None:
    run = drive({"id": "w", "type": "wait", "seconds": 1}, tool("a")).ring("w")
    assert label(run, "w.output") == 0


def test_a_group_has_what_its_lanes_have_and_lanes_what_their_group_is() -> None:
    lanes = [tool("l1", args={"n": "$limit"}), tool("l2", args={"n": "$name"})]
    run = drive({"id": "p", "type": "parallel", "parallel_steps": lanes}).do("l1").do("l2")
    assert [label(run, name) for name in ("l1.output", "l2.output", "p.output")] == [
        0,
        UNTRUSTED | PRIVATE,
        UNTRUSTED | PRIVATE,
    ]
    run = drive({"id": "p", "type": "parallel", "private": True, "parallel_steps": lanes[:1]}).do("l1")
    assert label(run, "l1.output") == label(run, "p.output") == PRIVATE


def test_the_elements_of_a_list_are_what_the_list_is() -> None:
    each = {"id": "m", "type": "map", "over": "$user", "step": tool("l", args={"x": "$item", "i": "$index"})}
    run = Drive({"inputs": INPUTS, "steps": [each]}, **{**GIVEN, "user": [1, 2]}).start()
    assert run.begin("l", 0).state.label == UNTRUSTED
    run.succeed("l", 1, 0, declared="trusted").do("l", 1, 1, declared="trusted")
    assert label(run, "m.output") == 0
    assert label(run, "item") == 0


def test_a_child_gets_the_labels_of_its_inputs_and_gives_back_those_of_its_output() -> None:
    call = {"id": "c", "type": "call", "program": "p2", "inputs": {"a": "$limit", "b": ["$name"]}}
    run = drive(call, tool("z", args={"r": "$c.output"}))
    activity = run.activity("c")
    assert activity is not None
    assert activity.labels == {"b": UNTRUSTED | PRIVATE}
    child = ev.ChildStarted(**run.place("c"), child="r/c.1.1", program="p2")
    assert run.must(child).state.label == UNTRUSTED | PRIVATE
    run.child_end("c", payload={"output": 1, "compensations": []}, output_label=SECRET, undo_label=PRIVATE)
    assert label(run, "c.output") == SECRET
    run = drive(call).must(child).child_end("c", payload={"output": 1, "compensations": []})
    assert run.state.label == UNTRUSTED | PRIVATE  # a child that says nothing vouches for nothing


def test_what_a_parent_hands_over_keeps_its_label_and_what_a_program_says_of_privacy_holds() -> None:
    steps = {"inputs": INPUTS, "steps": [tool("a")]}
    run = Drive(steps, **GIVEN).start(features=["labels"], labels={"limit": UNTRUSTED})
    found = [label(run, name) for name in ("user", "limit", "name", "key")]
    assert found == [0, UNTRUSTED, PRIVATE, SECRET]


def test_a_compensation_has_the_labels_of_its_arguments() -> None:
    book = tool("a", private=True, compensate={"tool": "undo", "args": {"id": "$a.output", "n": "$limit"}})
    run = drive(book, tool("b")).do("a", 7).break_("b", retryable=False)
    assert run.state.undo[0].labels == {"id": PRIVATE}
    place = {"at_ms": run.now, "step": "a", "occurrence": 1, "attempt": 1}
    run.must(ev.CompensationStarted(**place))
    assert run.state.label == PRIVATE
    run.must(ev.CompensationFailed(**place, draw=0, error="E", retryable=True, payload={"message": "m"}))
    assert run.state.label == UNTRUSTED | PRIVATE


def test_in_a_loop_a_name_has_the_label_of_its_latest_value() -> None:
    again = {"id": "again", "type": "condition", "condition": "$a.output == 1", "then": "a", "otherwise": "z"}
    run = drive(tool("a", args={"n": "$user"}), again, tool("z"), max_steps=20)
    assert label(run.do("a", 1, declared="trusted"), "a.output") == 0
    assert label(run.do("a", 2), "a.output") == UNTRUSTED


def test_labels_are_part_of_the_state_that_is_carried() -> None:
    run = drive(tool("a", args={"n": "$name"}), tool("b", args={"x": "$a.output"}))
    run.do("a", 1)
    carried = restore(snapshot(run.state))
    assert carried.labels == run.state.labels
    assert snapshot(carried) == snapshot(run.state)


def test_a_refused_event_leaves_no_label_behind() -> None:
    run = drive(tool("a", args={"n": "$name"}))
    refused = ev.EventRefused(at_ms=1_000, code="NOT_WAITING", event_id="e", payload=1)
    run.must(refused)
    assert run.state.label == UNTRUSTED | PRIVATE
    assert refused.label is ABSENT  # the driver writes it, not the kernel


def test_what_a_guard_pinned_down_is_carried_and_forgotten_when_its_name_is_bound_anew() -> None:
    again = {"id": "z", "type": "condition", "condition": "$b.output == 1", "then": "a", "otherwise": "end"}
    run = drive(
        tool("a", args={"n": "$user"}),
        {
            "id": "g",
            "type": "condition",
            "condition": "$a.output.k in [1, 2]",
            "then": "b",
            "otherwise": "end",
        },
        tool("b", args={"n": "$a.output.k", "m": "$a.output"}),
        again,
        tool("end"),
        max_steps=30,
    )
    run.do("a", {"k": 1, "x": "words"})
    run.state = restore(snapshot(run.state))
    activity = run.activity("b")
    assert activity is not None
    assert activity.labels == {"m": UNTRUSTED}
    assert run.state.pins != {}
    run.do("b", 1)
    run.begin("a").succeed("a", {"k": 7})
    assert run.program.slots.index("a.output") not in run.state.pins
    assert label(run, "a.output") == UNTRUSTED
