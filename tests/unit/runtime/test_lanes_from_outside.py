"""What runs once per element can be meant, answered and undone one by one."""

from __future__ import annotations

from typing import Any

import pytest
from runtime_stage import Opener, play, program, refused, sound, tool_step, wait_step

from nano_vm import PENDING, RunStatus

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
