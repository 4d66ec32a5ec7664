"""What runs once per element can be meant, answered and undone one by one."""

from __future__ import annotations

from typing import Any

import pytest
from runtime_stage import Opener, play, program, refused, sound, tool_step, wait_step

from nano_vm import PENDING, RunStatus
from nano_vm.runtime.ways import places

BOSS = {"id": "ana", "roles": ["boss"]}


def each(step: dict[str, Any], over: list[Any], **fields: Any) -> dict[str, Any]:
    return {"id": "m", "type": "map", "over": over, "step": step, **fields}


def test_answers_to_mapped_tools_go_to_the_element_they_are_meant_for(opener: Opener) -> None:
    vm = opener(tools={"act": lambda: PENDING})

    async def main() -> None:
        run_id = (await vm.run(program(each(tool_step("q"), [1, 2, 3])))).trace_id
        with refused("AMBIGUOUS"):
            await vm.resume(run_id, "whose", step="q")
        await vm.resume(run_id, "third", step="q", item=2)
        await vm.resume(run_id, "first", step="q", item=0)
        with refused("NOT_WAITING"):
            await vm.resume(run_id, "again", step="q", item=0)
        trace = await vm.resume(run_id, "second", step="q", item=1)
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, ["first", "second", "third"])
        sound(vm, trace)

    play(main())


def test_mapped_approvals_are_given_one_by_one_also_through_a_call(opener: Opener) -> None:
    vm = opener()
    vm.save_program(program(each({"id": "w", "type": "wait", "approvers": ["boss"]}, [1, 2]), name="child"))

    async def main() -> None:
        run_id = (await vm.run(program({"id": "c", "type": "call", "program": "child"}))).trace_id
        with refused("AMBIGUOUS"):
            await vm.resume(run_id, {"approved": True}, step="w", principal=BOSS)
        await vm.resume(run_id, {"approved": False}, step="w", item=1, principal=BOSS)
        trace = await vm.resume(run_id, {"approved": True}, step="w", item=0, principal=BOSS)
        assert [one["approved"] for one in trace.final_output] == [True, False]
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("item", [-1, True, "0"])
def test_an_item_is_a_place_in_a_list(opener: Opener, item: Any) -> None:
    vm = opener()
    trace = play(vm.run(program(each(wait_step("w"), [1]))))
    with refused("EVENT_ITEM"):
        play(vm.resume(trace.trace_id, 1, step="w", item=item))


def test_an_element_is_undone_with_what_it_yielded(opener: Opener) -> None:
    undone: list[str] = []
    tools = {"book": lambda x: f"ref-{x}", "act": lambda: 1 / 0}
    tools["cancel"] = lambda ref: undone.append(ref)
    booking = tool_step(
        "q", "book", args={"x": "$item"}, compensate={"tool": "cancel", "args": {"ref": "$q.output"}}
    )
    vm = opener(tools=tools)
    trace = play(vm.run(program(each(booking, ["a", "b"], max_concurrency=1), tool_step("z"))))
    assert (trace.status, undone) == (RunStatus.FAILED, ["ref-b", "ref-a"])
    sound(vm, trace)


def test_a_parent_is_told_why_its_child_failed(opener: Opener) -> None:
    def act() -> None:
        raise ValueError("no such card")

    vm = opener(tools={"act": act, "echo": lambda value: value})
    vm.save_program(program(tool_step("charge"), name="child"))
    steps = [
        {"id": "c", "type": "call", "program": "child", "on_failure": "tell", "is_terminal": True},
        tool_step("tell", "echo", args={"value": "$c.error.message"}),
    ]
    trace = play(vm.run(program(*steps)))
    assert trace.final_output == "FAILED ValueError at `charge`: no such card"
    sound(vm, trace)


def test_what_has_not_been_dispatched_has_no_attempts(opener: Opener) -> None:
    vm = opener(tools={"act": lambda: 1})

    async def main() -> None:
        run_id = (await vm.start(program(tool_step("a"), tool_step("b")))).trace_id
        assert vm.trace(run_id).path == []
        trace = await vm.step(run_id)
        assert trace.path == ["a"]
        assert (trace.step("b").status.value, trace.step("b").attempts) == ("PENDING", 0)

    play(main())


def two_children(*steps: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    lanes = [{"id": name, "type": "call", "program": "child"} for name in ("a", "b")]
    return (
        program(*steps, name="child"),
        program({"id": "g", "type": "parallel", "parallel_steps": lanes}),
    )


def test_an_approval_is_never_taken_by_the_wrong_child(opener: Opener) -> None:
    child, flow = two_children({"id": "w", "type": "wait", "approvers": ["boss"]})
    vm = opener()
    vm.save_program(child)

    async def main() -> None:
        run_id = (await vm.run(flow)).trace_id
        with refused("AMBIGUOUS"):
            await vm.resume(run_id, {"approved": True}, principal=BOSS)
        with refused("AMBIGUOUS"):
            await vm.resume(run_id, {"approved": True}, step="w", principal=BOSS)
        await vm.resume(run_id, {"approved": False}, step="b/w", principal=BOSS)
        trace = await vm.resume(run_id, {"approved": True}, step="a/w", principal=BOSS)
        assert {name: one["approved"] for name, one in trace.final_output.items()} == {"a": True, "b": False}
        sound(vm, trace)

    play(main())


def test_an_event_that_one_child_took_does_not_reach_its_sibling(opener: Opener) -> None:
    child, flow = two_children(wait_step("w", "paid"))
    vm = opener()
    vm.save_program(child)

    async def main() -> None:
        run_id = (await vm.run(flow)).trace_id
        for _ in range(3):
            trace = await vm.resume(run_id, {"n": 1}, name="paid", event_id="e1")
            assert trace.status is RunStatus.SUSPENDED
        with refused("EVENT_CONFLICT"):
            await vm.resume(run_id, {"n": 2}, name="paid", event_id="e1")
        trace = await vm.resume(run_id, {"n": 2}, name="paid", event_id="e2")
        assert trace.final_output == {"a": {"n": 1}, "b": {"n": 2}}
        again = await vm.resume(run_id, {"n": 1}, name="paid", event_id="e1")
        assert again.status is RunStatus.SUCCESS
        sound(vm, trace)

    play(main())


def test_what_became_of_a_childs_call_is_said_of_the_child_that_is_meant(opener: Opener) -> None:
    def act() -> None:
        raise ConnectionError

    child, flow = two_children(tool_step("charge"))
    vm = opener(tools={"act": act})
    vm.save_program(child)

    async def main() -> None:
        run_id = (await vm.run(flow)).trace_id
        with refused("AMBIGUOUS"):
            await vm.resolve(run_id, "charge", "succeeded", 1)
        await vm.resolve(run_id, "b/charge", "succeeded", 2)
        trace = await vm.resolve(run_id, "a/charge", "succeeded", 1)
        assert trace.final_output == {"a": 1, "b": 2}
        sound(vm, trace)

    play(main())


def called_for_each(*steps: dict[str, Any], inner: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A program with a map of steps, and one that calls it for each of two elements."""
    (step,) = steps
    child = program(each(step, inner), name="child")
    flow = program(each({"id": "c", "type": "call", "program": "child"}, ["a", "b"]), name="flow")
    return child, flow


PLACES = [("c[0]/q", 0), ("c[0]/q", 1), ("c[1]/q", 0), ("c[1]/q", 1)]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", ["event", "tool", "approval", "outcome"])
def test_an_element_of_a_map_that_an_element_calls_can_be_meant(
    opener: Opener, kind: str, backwards: bool
) -> None:
    def act() -> str:
        if kind == "outcome":
            raise ConnectionError
        return PENDING

    waits = {"event": wait_step("q"), "approval": {"id": "q", "type": "wait", "approvers": ["boss"]}}
    child, flow = called_for_each(waits.get(kind, tool_step("q")), inner=[1, 2])
    vm = opener(tools={"act": act})
    vm.save_program(child)

    async def main() -> None:
        trace = await vm.run(flow)
        waiting = [wait.to_dict() for wait in trace.waiting]
        found = [(place.way, place.wait["item"]) for place in places(trace.trace_id, waiting)]
        assert found == PLACES
        said = {place: f"{place[0]}, {place[1]}" for place in PLACES}
        for step, item in reversed(PLACES) if backwards else PLACES:
            if kind == "outcome":
                trace = await vm.resolve(trace.trace_id, step, "succeeded", said[step, item], item=item)
            elif kind == "approval":
                asked = [one for one in vm.approvals() if (one.step, one.item) == (step, item)]
                assert len(asked) == 1
                comment = said[step, item]
                trace = await vm.approve(
                    trace.trace_id, step=step, item=item, comment=comment, principal=BOSS
                )
            else:
                trace = await vm.resume(trace.trace_id, said[step, item], step=step, item=item)
        if kind == "approval":
            yielded = [[one["comment"] for one in lane] for lane in trace.final_output]
        else:
            yielded = trace.final_output
        assert yielded == [[said[PLACES[0]], said[PLACES[1]]], [said[PLACES[2]], said[PLACES[3]]]]
        sound(vm, trace)

    play(main())


def test_a_way_that_leads_nowhere_reaches_nobody(opener: Opener) -> None:
    child, flow = called_for_each(wait_step("q"), inner=[1])
    vm = opener()
    vm.save_program(child)

    async def main() -> None:
        trace = await vm.run(flow)
        for way in ("c[7]/q", "c[0][0]/q", "c[x]/q", "c[00]/q", "d[0]/q", "c[0]/z"):
            with refused("UNKNOWN_STEP"):
                await vm.resume(trace.trace_id, 1, step=way, item=0)

    play(main())


def test_bound_approvals_are_given_to_the_element_that_calls_for_them(opener: Opener) -> None:
    """Of the very same action, too: each element asks for its own."""
    paid: list[int] = []
    ask = {"id": "ok", "type": "wait", "approvers": ["boss"], "approves": "pay"}
    child = program(ask, tool_step("pay", args={"amount": 7}), name="child")
    flow = program(each({"id": "c", "type": "call", "program": "child"}, ["a", "b"]), name="flow")
    vm = opener(tools={"act": lambda amount: paid.append(amount)})
    vm.save_program(child)

    async def main() -> None:
        run_id = (await vm.run(flow)).trace_id
        first, second = vm.approvals()
        assert [(one.step, one.item) for one in (first, second)] == [("c[0]/ok", None), ("c[1]/ok", None)]
        for one in (second, first):
            trace = await vm.approve(run_id, step=one.step, item=one.item, action=one.action, principal=BOSS)
        assert (trace.status, paid) == (RunStatus.SUCCESS, [7, 7])
        sound(vm, trace)

    play(main())


def test_who_may_only_approve_may_answer_in_an_element_that_calls(opener: Opener) -> None:
    child, flow = called_for_each({"id": "q", "type": "wait", "approvers": ["boss"]}, inner=[1, 2])
    vm = opener(access="required")
    vm.save_program(child)
    approver = {"id": "eve", "roles": ["approver", "boss"]}

    async def main() -> None:
        trace = await vm.run(flow, principal={"id": "op", "roles": ["operator"]})
        for step, item in PLACES:
            trace = await vm.resume(
                trace.trace_id, {"approved": True}, step=step, item=item, principal=approver
            )
        assert trace.status is RunStatus.SUCCESS

    play(main())
