"""Calls: child runs, their waits, cancellation, budgets and compensations - all through the parent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from runtime_stage import Counter, Opener, kinds, play, program, refused, sound, tool_step, wait_step

from nano_vm import ExecutionVM, MockLLMAdapter, NotFoundError, RunStatus
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle
from nano_vm.journal.port import LEASE_MS, RunQuery
from nano_vm.stores.memory import MemoryStore
from nano_vm.testing.clock import VirtualClock


def call(step_id: str = "call", child: str = "child", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "call", "program": child, "inputs": fields.pop("inputs", {}), **fields}


def with_child(vm: ExecutionVM, *steps: dict[str, Any], **fields: Any) -> ExecutionVM:
    vm.save_program(program(*steps, name=fields.pop("name", "child"), **fields))
    return vm


def children(vm: ExecutionVM, run_id: str) -> list[str]:
    return [record.run_id for record in vm.store.records(RunQuery(parent=run_id))]


def test_a_child_is_a_run_of_its_own_linked_by_hash(opener: Opener) -> None:
    vm = with_child(opener(tools={"act": lambda n: n + 1}), tool_step("x", args={"n": "$n"}))
    trace = play(
        vm.run(program(call(inputs={"n": "$m"}, output_key="r"), tool_step("z", args={"n": "$r"})), {"m": 1})
    )
    assert trace.final_output == 3
    (child,) = children(vm, trace.trace_id)
    finished = next(event for event in trace.events if event.type == "ChildFinished")
    assert finished.head == vm.trace(child).head
    assert [record.run_id for record in vm.runs()] == [trace.trace_id]
    sound(vm, trace)
    sound(vm, vm.trace(child))


def test_a_missing_program_or_one_that_calls_itself_never_starts(opener: Opener) -> None:
    vm = opener(tools={})

    async def main() -> None:
        with refused("PROGRAM_NOT_FOUND"):
            await vm.run(program(call(child="nowhere")))
        vm.save_program(program(call(child="b"), name="a"))
        vm.save_program(program(call(child="a"), name="b"))
        with refused("CALL_RECURSION"):
            await vm.run(program(call(child="a"), name="top"))
        assert vm.runs() == []

    play(main())


def test_a_child_keeps_its_program_when_the_name_moves_on(opener: Opener) -> None:
    vm = with_child(opener(tools={"act": lambda n: n}), wait_step("w"), tool_step("x", args={"n": "old"}))

    async def main() -> None:
        trace = await vm.run(program(call(), wait_step("v", "more"), call("again")))
        with_child(vm, tool_step("x", args={"n": "new"}))
        trace = await vm.resume(trace.trace_id, 1)
        assert trace.step("call").output == "old"
        await vm.resume(trace.trace_id, 2, name="more")
        trace = await vm.resume(trace.trace_id, 3)
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "old")

    play(main())


@pytest.mark.parametrize("fresh", [False, True])
def test_a_childs_waits_go_through_its_parents(opener: Opener, fresh: bool) -> None:
    tools = {"act": lambda n: n}
    vm = with_child(
        opener(tools=tools), wait_step("w", accept="$event.n > 1"), tool_step("x", args={"n": "$w.output.n"})
    )
    with_child(vm, call(), name="middle")

    async def main() -> None:
        trace = await vm.run(program(call(child="middle")))
        assert trace.status is RunStatus.SUSPENDED
        assert trace.waiting[0].kind == "child"
        machine = opener(tools=tools) if fresh else vm
        (middle,) = children(vm, trace.trace_id)
        (inner,) = children(vm, middle)
        with refused("CHILD_RUN"):
            await machine.resume(inner, {"n": 5})
        with refused("NOT_ACCEPTED"):
            await machine.resume(trace.trace_id, {"n": 1})
        assert vm.trace(inner).events[-1].type == "EventRefused"
        trace = await machine.resume(trace.trace_id, {"n": 5}, event_id="e")
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, 5)
        for run_id in (trace.trace_id, middle, inner):
            sound(machine, machine.trace(run_id))

    play(main())


def test_events_reach_children_beside_each_other(opener: Opener) -> None:
    vm = with_child(opener(tools={}), wait_step("w", "one"), name="first")
    with_child(vm, wait_step("w", "two"), name="second")
    group = {"id": "g", "type": "parallel", "parallel_steps": [call("a", "first"), call("b", "second")]}

    async def main() -> None:
        trace = await vm.run(program(group))
        traces = await asyncio.gather(
            vm.resume(trace.trace_id, 1, name="one"), vm.resume(trace.trace_id, 2, name="two")
        )
        assert traces[0].trace_id == traces[1].trace_id
        trace = vm.trace(trace.trace_id)
        assert trace.final_output == {"a": 1, "b": 2}
        sound(vm, trace)

    play(main())


def test_an_event_reaches_a_child_that_is_at_work(opener: Opener) -> None:
    gate = asyncio.Event()

    async def act() -> str:
        await gate.wait()
        return "slow"

    group = {"id": "g", "type": "parallel", "parallel_steps": [wait_step("w"), tool_step("x")]}
    vm = with_child(opener(tools={"act": act}), group)

    async def main() -> None:
        running = asyncio.ensure_future(vm.run(program(call()), trace_id="r"))
        while len(vm.live) < 2 or not vm.live["r/call.1.1"].tasks:
            await asyncio.sleep(0)
        resumed = asyncio.ensure_future(vm.resume("r", "now"))
        while not any(event.type == "EventReceived" for event in vm.trace("r/call.1.1").events):
            await asyncio.sleep(0)
        gate.set()
        assert (await resumed).final_output == (await running).final_output == {"w": "now", "x": "slow"}

    play(main())


def test_a_timer_inside_a_child_wakes_the_parent(opener: Opener, clock: VirtualClock) -> None:
    vm = with_child(
        opener(tools={"act": lambda: "late"}), {"id": "w", "type": "wait", "seconds": 60}, tool_step("x")
    )
    with_child(vm, call(), name="middle")

    async def main() -> None:
        trace = await vm.run(program(call(child="middle")))
        assert trace.status is RunStatus.SUSPENDED
        assert await vm.recover() == []
        clock.advance(60_000)
        (trace,) = await vm.recover()
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "late")
        sound(vm, trace)

    play(main())


def test_a_timer_inside_a_child_fires_while_the_parent_is_busy(opener: Opener, clock: VirtualClock) -> None:
    order: list[str] = []
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        order.append("slow")
        return "slow"

    async def late() -> str:
        order.append("late")
        gate.set()
        return "late"

    vm = with_child(
        opener(tools={"slow": slow, "late": late}),
        {"id": "w", "type": "wait", "seconds": 60},
        tool_step("x", "late"),
    )
    group = {"id": "g", "type": "parallel", "parallel_steps": [call("c"), tool_step("s", "slow")]}
    trace = play(vm.run(program(group)))
    assert trace.final_output == {"c": "late", "s": "slow"}
    assert order == ["late", "slow"]
    sound(vm, trace)


@pytest.mark.parametrize("where", ["waiting", "working"])
def test_cancelling_the_parent_cancels_the_child(opener: Opener, where: str) -> None:
    count = Counter()
    gate = asyncio.Event()

    async def act() -> str:
        count("started")
        await gate.wait()
        return "done"

    async def undo() -> None:
        count("undone")

    steps = [tool_step("x", compensate={"tool": "undo", "args": {}}), tool_step("y", "undo")]
    if where == "waiting":
        gate.set()
        steps.insert(1, wait_step("w"))
    vm = with_child(opener(tools={"act": act, "undo": undo}), *steps)

    async def main() -> None:
        running = asyncio.ensure_future(vm.run(program(call()), trace_id="r"))
        if where == "waiting":
            await running
        while not count.effects:
            await asyncio.sleep(0)
        cancelled = asyncio.ensure_future(vm.cancel("r", "enough"))
        await asyncio.sleep(0)
        gate.set()
        trace = await cancelled
        assert trace.status is RunStatus.CANCELLED
        assert count.effects == ["started", "undone"]
        assert (await running).status is RunStatus.CANCELLED or where == "waiting"
        (child,) = children(vm, "r")
        assert vm.trace(child).status is RunStatus.CANCELLED
        sound(vm, trace)
        sound(vm, vm.trace(child))

    play(main())


def test_a_child_that_takes_too_long_is_cancelled(opener: Opener, clock: VirtualClock) -> None:
    vm = with_child(opener(tools={"act": lambda: 1}), wait_step("w"))
    step = call(timeout_seconds=60, on_timeout="fallback", fallback="none")

    async def main() -> None:
        trace = await vm.run(program(step))
        assert trace.status is RunStatus.SUSPENDED
        clock.advance(60_000)
        (trace,) = await vm.recover()
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "none")
        (child,) = children(vm, trace.trace_id)
        assert vm.trace(child).status is RunStatus.CANCELLED
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("again", ["after a pause", "in a loop"])
def test_time_that_is_up_just_as_the_child_has_failed_stops_no_other_one(
    opener: Opener, clock: VirtualClock, again: str
) -> None:
    count = Counter()

    async def act() -> str:
        count("act")
        if count.count("act") == 1:
            raise ValueError
        return "second"

    vm = with_child(opener(tools=[act]), tool_step("x"))
    run_child = vm.run_child

    async def just_in_time(parent: Any, command: Any) -> Any:
        outcome = await run_child(parent, command)
        if command.child.endswith("call.1.1"):
            clock.advance(60_000)
        return outcome

    vm.run_child = just_in_time  # type: ignore[method-assign]
    step = call(timeout_seconds=60, is_terminal=True)
    others = []
    if again == "in a loop":
        step["on_failure"] = "once_more"
        others.append({"id": "once_more", "type": "condition", "condition": "true", "then": "call"})
    else:
        step["on_error"] = "retry"

    async def main() -> None:
        trace = await vm.run(program(step, *others, max_steps=9), trace_id="r")
        while trace.status is RunStatus.SUSPENDED:
            clock.advance(2_000)
            (trace,) = await vm.recover()
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "second")
        second = "r/call.1.2" if again == "after a pause" else "r/call.2.1"
        assert sorted(children(vm, "r")) == ["r/call.1.1", second]
        sound(vm, trace)

    play(main())


def test_a_run_may_end_while_a_child_that_took_too_long_cannot(opener: Opener, clock: VirtualClock) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def fail() -> None:
            await gate.wait()
            raise ValueError

        async def lose() -> None:
            raise ConnectionError

        vm = with_child(opener(tools=[fail, lose]), tool_step("x", "lose"), name="lost")
        with_child(vm, tool_step("x", "fail"), name="failing")
        steps = [call("a", "failing", depends_on=[]), call("b", "lost", timeout_seconds=60, depends_on=[])]
        running = asyncio.create_task(vm.run(program(*steps), trace_id="r"))
        await _until(lambda: vm.trace("r/b.1.1").status is RunStatus.SUSPENDED)
        clock.advance(60_000)
        await _until(lambda: "RunCancelled" in kinds(vm.trace("r/b.1.1")))
        gate.set()
        trace = await running
        assert (trace.status, [wait.kind for wait in trace.waiting]) == (RunStatus.SUSPENDED, ["child"])
        trace = await vm.resolve("r", "b/x", "failed")
        assert (trace.status, trace.error["step"]) == (RunStatus.FAILED, "a")
        assert vm.trace("r/b.1.1").status is RunStatus.CANCELLED
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("cancelled", [True, False])
def test_who_has_lost_a_run_begins_none_of_its_children(
    opener: Opener, clock: VirtualClock, cancelled: bool
) -> None:
    count = Counter()

    async def act() -> None:
        count("act")

    async def main() -> None:
        slow, other = opener(tools=[act]), opener(tools=[act])
        with_child(slow, tool_step("x"), wait_step("w"))
        govern, claims = slow.govern, []

        async def too_slow(run: Any, pinned: Any) -> None:
            await govern(run, pinned)
            clock.advance(LEASE_MS)
            if cancelled:
                assert (await other.cancel("r")).status is RunStatus.CANCELLED
            else:
                claims.append(other.store.claim("r", clock.now_ms()))

        slow.govern = too_slow  # type: ignore[method-assign]
        with refused("LEASE_LOST"):
            await slow.run(program(call()), trace_id="r")
        assert count.effects == []
        if not cancelled:
            other.store.release("r", claims[0])
            (trace,) = await other.recover()
            assert (trace.status, count.effects) == (RunStatus.SUSPENDED, ["act"])
        expected = RunStatus.CANCELLED if cancelled else RunStatus.SUSPENDED
        assert other.trace("r/call.1.1").status is expected
        for run_id in ("r", "r/call.1.1"):
            sound(other, other.trace(run_id))
        verify_bundle(export(other.store, "r").data)

    play(main())


def test_a_child_that_cannot_end_in_time_is_told_so_once(opener: Opener, clock: VirtualClock) -> None:
    async def lose() -> None:
        raise ConnectionError

    async def main() -> None:
        vm = with_child(opener(tools=[lose]), tool_step("x", "lose"))
        await vm.run(program(call(timeout_seconds=60, on_timeout="fallback", fallback="late")), trace_id="r")
        clock.advance(60_000)
        assert [trace.trace_id for trace in await vm.recover()] == ["r"]
        clock.advance(60_000)
        assert await vm.recover() == []  # nobody looks after it before somebody says what became of the call
        sound(vm, vm.trace("r"))
        other = opener(tools=[lose])
        trace = await other.resolve("r", "call/x", "succeeded", 1)
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "late")
        assert other.trace("r/call.1.1").status is RunStatus.CANCELLED
        sound(other, trace)

    play(main())


async def _until(holds: Callable[[], Any]) -> None:
    while True:
        with contextlib.suppress(NotFoundError):
            if holds():
                return
        await asyncio.sleep(0)


def test_a_childs_failure_is_the_calls_failure_and_may_be_retried(opener: Opener) -> None:
    count = Counter()

    def act() -> str:
        count("act")
        if count.count("act") < 3:
            raise ValueError
        return "third"

    vm = with_child(opener(tools={"act": act}), tool_step("x"))
    trace = play(vm.run(program(call(on_error="retry"))))
    assert trace.final_output == "third"
    assert len(children(vm, trace.trace_id)) == 3
    sound(vm, trace)
    count.effects[:] = ["act"] * -5
    vm = with_child(opener(tools={"act": lambda: 1 / 0}), tool_step("x"))
    trace = play(vm.run(program(call())))
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "CHILD_FAILED")


def test_inputs_a_child_does_not_take_fail_the_call(opener: Opener) -> None:
    vm = with_child(opener(tools={"act": lambda n: n}), tool_step("x", args={"n": "$n"}))
    trace = play(vm.run(program(call(inputs={}))))
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "CHILD_FAILED")
    sound(vm, trace)


def test_a_child_draws_on_what_its_parent_has_left(opener: Opener) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 30}
    vm = with_child(
        opener(tools={}, llm=MockLLMAdapter("x", usage=usage)),
        {"id": "p", "type": "llm", "prompt": "hi", "params": {"max_tokens": 40}},
        {"id": "q", "type": "llm", "prompt": "hi", "params": {"max_tokens": 40}},
    )
    trace = play(vm.run(program(call(), max_tokens=90)))
    (child,) = children(vm, trace.trace_id)
    assert vm.trace(child).status is RunStatus.BUDGET_EXCEEDED
    assert trace.total_tokens() == 60
    sound(vm, trace)


def test_what_a_finished_child_did_is_undone_through_its_call(opener: Opener) -> None:
    count = Counter()
    vm = opener(tools={"act": lambda n: n, "undo": lambda n: count(n), "bad": lambda: 1 / 0})
    with_child(vm, tool_step("x", args={"n": 1}, compensate={"tool": "undo", "args": {"n": "x"}}))
    outer = tool_step("a", args={"n": 1}, compensate={"tool": "undo", "args": {"n": "a"}})
    trace = play(vm.run(program(outer, call(), tool_step("z", "bad"))))
    assert trace.status is RunStatus.FAILED
    assert count.effects == ["x", "a"]
    assert trace.rollbacks == 2
    sound(vm, trace)


def test_a_child_is_taken_up_where_it_was_after_a_crash(opener: Opener) -> None:
    count = Counter()
    tools: dict[str, Any] = {}

    async def act(n: int) -> int:
        count(n)
        if n == 2 and count.count(2) == 1:
            raise KeyboardInterrupt
        return n

    tools["act"] = act
    steps = [tool_step("x", args={"n": 1}), tool_step("y", args={"n": 2}), tool_step("z", args={"n": 3})]

    async def main() -> None:
        vm = with_child(opener(tools=tools), *steps)
        with pytest.raises(KeyboardInterrupt):
            await vm.run(program(call()), trace_id="r")
        machine = opener(tools=tools)
        (trace,) = await machine.recover()
        assert trace.status is RunStatus.SUSPENDED
        assert trace.waiting[0].waits[0]["kind"] == "outcome"
        trace = await machine.resolve("r", "y", "repeat")
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, 3)
        assert count.effects == [1, 2, 2, 3]
        sound(machine, trace)

    play(main())


def test_a_run_that_somebody_put_in_the_place_of_a_child_is_not_taken_for_it() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        vm = ExecutionVM(tools=[], store=store)
        child = {"name": "c", "steps": [{"id": "w", "type": "wait", "event": "go"}]}
        parent = {"name": "p", "steps": [{"id": "k", "type": "call", "program": "c"}]}
        vm.save_program(child)
        genuine = await vm.run(parent, trace_id="genuine")
        waiting = store.records(RunQuery(parent="genuine"))[0]
        forged = msgspec.structs.replace(waiting, run_id="victim/k.1.1", parent=None, owner=None)
        durable = store.create(forged, [])
        if durable is not None:
            await durable
        trace = await vm.run(parent, trace_id="victim")
        assert (genuine.status, trace.status) == ("SUSPENDED", "FAILED")

    asyncio.run(scenario())


CALLERS: dict[str, list[dict[str, Any]]] = {
    "one": [call()],
    "one in one": [call(child="middle")],
    "beside another": [{"id": "g", "type": "parallel", "parallel_steps": [call("a"), call("b")]}],
    "a list": [{"id": "m", "type": "map", "over": [1, 2], "step": call("a")}],
}


@pytest.mark.parametrize("caller", CALLERS)
def test_cancelled_at_any_turn_of_the_loop_a_run_ends_with_its_children(opener: Opener, caller: str) -> None:
    """Also when a child is just about to wait, and hears of it only when it is taken up again."""

    async def act() -> int:
        await asyncio.sleep(0)
        return 1

    async def main(turns: int) -> bool:
        vm = opener(tools=[act])
        with_child(vm, tool_step("x"), wait_step("w"), tool_step("y"))
        with_child(vm, call(), name="middle")
        name = f"{caller} {turns}"
        driving = asyncio.create_task(vm.run(program(*CALLERS[caller]), trace_id=name))
        while vm.live_here(name) is None:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        suspended = driving.done()
        assert (await vm.cancel(name)).status is RunStatus.CANCELLED
        await driving
        for run_id in [name, *children(vm, name)]:
            assert vm.trace(run_id).status is RunStatus.CANCELLED
            vm.verify(run_id)
        return suspended

    turns = 0
    while not play(main(turns)):
        turns += 1
    assert turns > 1


def journals(vm: ExecutionVM, run_id: str) -> dict[str, str]:
    """Where the journals of a run, and of all below it, stand."""
    found = {run_id: vm.trace(run_id).head}
    for child in children(vm, run_id):
        found |= journals(vm, child)
    return found


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("named", ["c/w", "c[1]/w", "m/c/w", "w", None])
@pytest.mark.parametrize("then", ["waits on", "has ended"])
def test_the_same_event_again_to_a_called_program_is_answered_alike(
    opener: Opener, named: str | None, fresh: bool, then: str
) -> None:
    """Without an id its content is what it is known by, wherever it has gone; another is refused, and kept."""
    rest = [wait_step("x", "more")] if then == "waits on" else []
    vm = with_child(opener(tools={}), wait_step("w"), *rest, name="called")
    flow = program(call("c", "called"))
    if named == "c[1]/w":
        step = call("c", "called")
        flow = program({"id": "each", "type": "map", "over": [1, 2], "step": step})
    if named == "m/c/w":
        with_child(vm, call("c", "called"), name="middle")
        flow = program(call("m", "middle"))
    if then == "has ended" and named == "c[1]/w":
        flow["steps"][0]["over"] = [1]
        named = "c[0]/w"

    async def main() -> None:
        run_id = (await vm.run(flow)).trace_id
        first = await vm.resume(run_id, {"n": 1}, step=named, name="go")
        stands = journals(vm, run_id)
        machine = opener(tools={}) if fresh else vm
        again = await machine.resume(run_id, {"n": 1}, step=named, name="go")
        assert (again.status, journals(vm, run_id)) == (first.status, stands)
        with refused("NOT_WAITING" if then == "waits on" else "TERMINAL"):
            await machine.resume(run_id, {"n": 2}, step=named, name="go")
        assert {key for key, head in journals(vm, run_id).items() if stands[key] != head} == {run_id}
        for each in stands:
            sound(vm, vm.trace(each))

    play(main())


def test_a_way_to_no_step_is_said_to_be_none(opener: Opener) -> None:
    vm = with_child(opener(tools={}), wait_step("w"), name="called")

    async def main() -> None:
        run_id = (await vm.run(program(call("c", "called"), wait_step("v")))).trace_id
        await vm.resume(run_id, 1, step="c/w")
        for way in ("c/nowhere", "v/w", "d/w", "c/w/w", "c/", "/w", "c//w", "nowhere"):
            with refused("UNKNOWN_STEP"):
                await vm.resume(run_id, 1, step=way)

    play(main())


def test_the_same_event_to_a_program_that_is_called_anew_is_the_answer_to_its_new_wait(
    opener: Opener,
) -> None:
    vm = with_child(opener(tools={}), wait_step("w"), name="called")

    async def main() -> None:
        run_id = (await vm.run(program(call("c", "called"), call("d", "called"), wait_step("v")))).trace_id
        await vm.resume(run_id, {"n": 1}, step="c/w")
        with refused("NOT_WAITING"):
            await vm.resume(run_id, {"n": 2}, step="c/w")
        trace = await vm.resume(run_id, {"n": 1}, step="w")
        assert trace.waiting[0].step == "v"

    play(main())


def test_a_repeated_event_is_not_said_to_be_ambiguous(opener: Opener) -> None:
    """Its id is enough, whatever has come to wait since."""
    vm = with_child(opener(tools={}), wait_step("w"), name="called")
    group = {"id": "g", "type": "parallel", "parallel_steps": [call("c", "called"), call("d", "called")]}

    async def main() -> None:
        run_id = (await vm.run(program(wait_step("first"), group))).trace_id
        trace = await vm.resume(run_id, 1, event_id="e1")
        stands = journals(vm, run_id)
        again = await vm.resume(run_id, 1, event_id="e1")
        assert (again.status, journals(vm, run_id)) == (trace.status, stands)
        with refused("EVENT_CONFLICT"):
            await vm.resume(run_id, 2, event_id="e1")
        with refused("AMBIGUOUS"):
            await vm.resume(run_id, 1)

    play(main())


@pytest.mark.parametrize("many", [2, 5])
@pytest.mark.parametrize("deep", [False, True])
def test_all_that_comes_at_once_reaches_a_called_program(opener: Opener, many: int, deep: bool) -> None:
    """Also what comes while the program is being taken up for the first of them."""
    names = [f"w{number}" for number in range(many)]
    group = {"id": "g", "type": "parallel", "parallel_steps": [wait_step(name, name) for name in names]}
    vm = with_child(opener(tools={}), group, name="called")
    flow = program(call("c", "called"), wait_step("v"))
    if deep:
        with_child(vm, call("c", "called"), name="middle")
        flow = program(call("m", "middle"), wait_step("v"))

    async def main() -> None:
        run_id = (await vm.run(flow)).trace_id
        way = "m/c/" if deep else "c/"
        await asyncio.gather(*(vm.resume(run_id, name, step=f"{way}{name}") for name in names))
        trace = vm.trace(run_id)
        assert [wait.step for wait in trace.waiting] == ["v"]
        assert trace.steps[0].output == {name: name for name in names}
        for each in journals(vm, run_id):
            sound(vm, vm.trace(each))
            assert "EventRefused" not in kinds(vm.trace(each))

    play(main())
