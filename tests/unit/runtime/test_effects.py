"""Effect classes: what may be done when nobody knows whether a call happened (SPEC §7)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from runtime_stage import Counter, Opener, kinds, play, program, refused, sound, tool_step

from nano_vm import ExecutionVM, Reconciled, RunStatus, ToolContext, ToolError, tool

RISKY = ("keyed", "reconcilable", "irreversible")


class Crash(KeyboardInterrupt):
    """The process dies: nothing after this is journaled."""


async def crash(vm: ExecutionVM, flow: dict[str, Any], **options: Any) -> None:
    """Run until a tool raises `Crash`."""
    with pytest.raises(Crash):
        await vm.run(flow, trace_id="r", **options)


def dying(effect: str, count: Counter, when: str, reconcile: Any = None) -> Any:
    """A tool that takes the process with it the first time it is called."""

    @tool(effect=effect, reconcile=reconcile)
    async def act(ctx: ToolContext) -> str:
        first = not count.count("called")
        count("called")
        count(("key", ctx.idempotency_key))
        if first and when == "before":
            raise Crash
        count("effect")
        if first:
            raise Crash
        return "done"

    return act


def test_pure_tools_have_no_intent_and_run_again(opener: Opener) -> None:
    count = Counter()
    flow = program(tool_step("a"))

    async def main() -> None:
        await crash(opener(tools={"act": dying("pure", count, "before")}), flow)
        vm = opener(tools={"act": dying("pure", count, "before")})
        traces = await vm.recover()
        # The run's creation rides with its first commit, so a run of pure steps may not have been stored at all -
        # it was given an id, so it was.
        assert [trace.status for trace in traces] == [RunStatus.SUCCESS]
        assert "StepStarted" not in kinds(traces[0])
        sound(vm, traces[0])

    play(main())


@pytest.mark.parametrize("effect", ["idempotent", "keyed"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_may_be_repeated_is_repeated_under_the_same_key(opener: Opener, effect: str, when: str) -> None:
    count = Counter()
    flow = program(tool_step("a"))

    async def main() -> None:
        await crash(opener(tools={"act": dying(effect, count, when)}), flow)
        vm = opener(tools={"act": dying(effect, count, when)})
        (trace,) = await vm.recover()
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "done")
        assert len({item for item in count.effects if item[0] == "key"}) == 1
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_irreversible_is_never_repeated_blindly(opener: Opener, when: str) -> None:
    count = Counter()
    flow = program(tool_step("a"), tool_step("b", "end"))
    tools = {"act": dying("irreversible", count, when), "end": lambda: "end"}

    async def main() -> None:
        await crash(opener(tools=tools), flow)
        vm = opener(tools=tools)
        (trace,) = await vm.recover()
        assert trace.status is RunStatus.SUSPENDED
        (wait,) = trace.waiting
        assert (wait.kind, wait.step, wait.reason) == ("outcome", "a", "CRASH")
        assert count.count("called") == 1
        assert await vm.recover() == []
        sound(vm, trace)
        if when == "after":
            trace = await vm.resolve(
                "r", "a", "succeeded", {"ok": 1}, principal={"id": "ana", "roles": ["operator"]}
            )
            assert trace.step("a").output == {"ok": 1}
            assert count.count("called") == 1
        else:
            trace = await vm.resolve("r", "a", "repeat")
            assert count.count("effect") == 1
        assert trace.status is RunStatus.SUCCESS
        sound(vm, trace)
        with refused("NOT_WAITING"):
            await vm.resolve("r", "a", "repeat")

    play(main())


def test_resolved_as_failed_is_a_failure(opener: Opener) -> None:
    count = Counter()
    flow = program(tool_step("a", on_failure="b"), tool_step("b", "end"))
    tools = {"act": dying("irreversible", count, "before"), "end": lambda: "handled"}

    async def main() -> None:
        await crash(opener(tools=tools), flow)
        vm = opener(tools=tools)
        await vm.recover()
        trace = await vm.resolve("r", "a", "failed", "the bank says no")
        assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "handled")
        sound(vm, trace)
        with refused("RESOLUTION"):
            await vm.resolve("r", "a", "maybe")

    play(main())


@pytest.mark.parametrize(
    ("found", "status", "calls"),
    [
        (Reconciled.succeeded("found"), RunStatus.SUCCESS, 1),
        (Reconciled.not_executed(), RunStatus.SUCCESS, 2),
        (Reconciled.failed("declined"), RunStatus.FAILED, 1),
        (Reconciled.unknown(), RunStatus.SUSPENDED, 1),
        ("nonsense", RunStatus.SUSPENDED, 1),
        (ValueError("cannot ask"), RunStatus.SUSPENDED, 1),
    ],
)
def test_a_reconciliation_finds_out(opener: Opener, found: Any, status: RunStatus, calls: int) -> None:
    count = Counter()
    keys: list[str] = []

    def reconcile(ctx: ToolContext) -> Any:
        keys.append(ctx.idempotency_key)
        if isinstance(found, Exception):
            raise found
        return found

    flow = program(tool_step("a"))
    tools = {"act": dying("reconcilable", count, "before", reconcile)}

    async def main() -> None:
        await crash(opener(tools=tools), flow)
        vm = opener(tools=tools)
        (trace,) = await vm.recover()
        assert trace.status is status
        assert count.count("called") == calls
        assert count.effects[1] == ("key", keys[0])
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("resolution", ["succeeded", "failed", "repeat"])
@pytest.mark.parametrize("turns", [0, 3, 6, 9])
def test_an_operator_may_be_quicker_than_a_reconciliation(
    opener: Opener, resolution: str, turns: int
) -> None:
    """What it finds out is about a call that the run has left behind by then, or is about to make again."""
    asked, gate, count = asyncio.Event(), asyncio.Event(), Counter()

    async def reconcile(ctx: ToolContext) -> Any:
        asked.set()
        await gate.wait()
        return Reconciled.succeeded("late")

    @tool(effect="reconcilable", reconcile=reconcile)
    async def act() -> str:
        count("called")
        if count.count("called") == 1:
            raise ConnectionError
        return "again"

    async def main() -> None:
        vm = opener(tools=[act])
        group = {"id": "g", "type": "parallel", "parallel_steps": [tool_step("a")]}
        flow = program({**group, "on_error": "retry", "max_retries": 2})
        driving = asyncio.create_task(vm.run(flow, trace_id="r"))
        await asked.wait()
        resolving = asyncio.create_task(vm.resolve("r", "a", resolution, "by hand"))
        for _ in range(turns):
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(resolving, return_exceptions=True)  # the other one may be quicker
        trace = await driving
        assert trace.status is RunStatus.SUCCESS
        assert trace.final_output in ({"a": "by hand"}, {"a": "again"}, {"a": "late"})
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(), "CONNECTION"),
        (TimeoutError(), "CONNECTION"),
        (OSError(5, "io"), "CONNECTION"),
        (ToolError("?", unknown=True, code="GATEWAY"), "GATEWAY"),
        (asyncio.CancelledError(), "CANCELLED"),
    ],
)
def test_lost_contact_is_an_unknown_outcome(opener: Opener, error: BaseException, reason: str) -> None:
    count = Counter()

    async def act() -> None:
        count("act")
        raise error

    async def caused() -> None:
        count("act")
        raise ValueError("wrapped") from error

    vm = opener(tools={"act": act, "caused": caused})

    async def main() -> None:
        for name in ["act"] if isinstance(error, ToolError | asyncio.CancelledError) else ["act", "caused"]:
            trace = await vm.run(program(tool_step("a", name, on_error="retry"), name=name))
            assert trace.status is RunStatus.SUSPENDED
            assert (trace.waiting[0].reason, count.count("act")) == (reason, 1)
            sound(vm, trace)
            count.effects.clear()

    play(main())


def test_a_tool_that_knows_better_says_so(opener: Opener) -> None:
    def act() -> None:
        try:
            raise ConnectionResetError
        except OSError as error:
            raise ToolError("nothing was sent", code="NOT_SENT") from error

    trace = play(opener(tools={"act": act}).run(program(tool_step("a"))))
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "NOT_SENT")


@pytest.mark.parametrize("effect", RISKY)
def test_a_time_out_after_dispatch_is_unknown(opener: Opener, effect: str) -> None:
    calls: list[str] = []

    @tool(
        effect=effect, reconcile=(lambda: Reconciled.succeeded("late")) if effect == "reconcilable" else None
    )
    async def act(ctx: ToolContext) -> str:
        calls.append(ctx.idempotency_key)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "second"

    vm = opener(tools={"act": act})
    trace = play(vm.run(program(tool_step("a", timeout_seconds=0.02))))
    assert "OutcomeUnknown" in kinds(trace)
    if effect == "irreversible":
        assert trace.status is RunStatus.SUSPENDED
        assert (trace.waiting[0].reason, len(calls)) == ("TIMEOUT", 1)
    else:
        assert trace.final_output == {"keyed": "second", "reconcilable": "late"}[effect]
        assert len(set(calls)) == 1
    sound(vm, trace)


def test_repeating_under_contract_is_bounded(opener: Opener) -> None:
    count = Counter()

    @tool(effect="keyed")
    def act() -> None:
        count("act")
        raise ConnectionResetError

    vm = opener(tools={"act": act})
    trace = play(vm.run(program(tool_step("a"))))
    assert trace.status is RunStatus.SUSPENDED
    assert count.count("act") < 10
    sound(vm, trace)


def test_a_contract_that_changed_while_the_outcome_was_unknown_is_not_trusted(opener: Opener) -> None:
    count = Counter()
    flow = program(tool_step("a"))

    async def main() -> None:
        await crash(opener(tools={"act": dying("irreversible", count, "after")}), flow)
        vm = opener(tools={"act": dying("idempotent", count, "after")})
        (trace,) = await vm.recover()
        assert trace.status is RunStatus.SUSPENDED
        assert count.count("called") == 1

    play(main())


# --- keys ---------------------------------------------------------------------------------------------------


def keyed(keys: list[str], failures: int = 0) -> Any:
    @tool(effect="keyed")
    def act(ctx: ToolContext, n: int = 0) -> int:
        keys.append(ctx.idempotency_key)
        if len(keys) <= failures:
            raise ValueError
        return n

    return act


def test_attempts_share_a_key_and_different_actions_never_do(opener: Opener) -> None:
    keys: list[str] = []
    vm = opener(tools={"act": keyed(keys, failures=2)})
    steps = [
        tool_step("a", args={"n": 1}, on_error="retry"),
        tool_step("b", args={"n": 1}),
        tool_step("c", args={"n": 2}),
    ]
    play(vm.run(program(*steps)))
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 3
    again = list(keys)
    keys.clear()
    play(vm.run(program(*steps)))
    assert not set(keys) & set(again)


def test_an_authors_key_is_the_same_across_runs_and_bound_to_its_arguments(opener: Opener) -> None:
    keys: list[str] = []
    step = tool_step("a", args={"n": "$n"}, idempotency_key="order-$id")

    async def main() -> None:
        first, second = opener(tools={"act": keyed(keys)}), opener(tools={"act": keyed(keys)})
        await first.run(program(step, name="p"), {"n": 1, "id": 7})
        await second.run(program(step, name="q"), {"n": 1, "id": 7})
        assert keys[0] == keys[1]
        trace = await second.run(program(step, name="q"), {"n": 2, "id": 7})
        assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "ACTION_CONFLICT")
        assert len(keys) == 2
        await second.run(program(step, name="q"), {"n": 2, "id": 8})
        await second.run(program(step, name="q"), {"n": 1, "id": 7}, tenant="other")
        assert len(set(keys)) == 3
        sound(second, trace)

    play(main())


# --- transactions -------------------------------------------------------------------------------------------


def ledger(count: Counter, when: str = "") -> Any:
    @tool(effect="transactional")
    async def act(ctx: ToolContext, amount: int) -> int:
        con = ctx.transaction.connection
        con.execute("CREATE TABLE IF NOT EXISTS ledger (amount INTEGER)")
        con.execute("INSERT INTO ledger VALUES (?)", (amount,))
        count("act")
        if when == "crash" and count.count("act") == 1:
            raise Crash
        if when == "fail":
            raise ValueError
        if when == "lost":
            raise ConnectionResetError
        if when == "junk":
            return object()  # type: ignore[return-value]
        return amount

    return act


async def rows(vm: ExecutionVM) -> list[int]:
    async with vm.store.transaction() as transaction:
        con = transaction.connection
        con.execute("CREATE TABLE IF NOT EXISTS ledger (amount INTEGER)")
        return [row[0] for row in con.execute("SELECT amount FROM ledger")]


@pytest.mark.parametrize("when", ["fail", "lost", "junk"])
def test_a_failed_transaction_leaves_nothing(opener: Opener, when: str) -> None:
    vm = opener(tools={"act": ledger(Counter(), when)})

    async def main() -> None:
        trace = await vm.run(program(tool_step("a", args={"amount": 5})))
        assert trace.status is RunStatus.FAILED
        assert await rows(vm) == []
        sound(vm, trace)

    play(main())


def test_a_transaction_and_its_outcome_commit_together(opener: Opener) -> None:
    count = Counter()
    tools = {"act": ledger(count, "crash")}
    flow = program(tool_step("a", args={"amount": 5}), tool_step("b", args={"amount": 6}))

    async def main() -> None:
        await crash(opener(tools=tools), flow)
        vm = opener(tools=tools)
        (trace,) = await vm.recover()
        assert trace.status is RunStatus.SUCCESS
        assert await rows(vm) == [5, 6]
        sound(vm, trace)

    play(main())


def test_transactions_of_many_runs_and_siblings_do_not_stall_each_other(opener: Opener) -> None:
    count = Counter()

    @tool(effect="keyed")
    async def pay(amount: int) -> int:
        await asyncio.sleep(0)
        return amount

    vm = opener(tools={"act": ledger(count), "pay": pay})
    lanes = [tool_step(f"t{n}", args={"amount": n}) for n in range(3)]
    lanes += [tool_step(f"k{n}", "pay", args={"amount": n}, idempotency_key=f"$run.id-{n}") for n in range(3)]
    flow = program(
        {"id": "g", "type": "parallel", "parallel_steps": lanes}, tool_step("end", args={"amount": 9})
    )

    async def main() -> None:
        traces = await asyncio.gather(*(vm.run(flow) for _ in range(8)))
        assert [trace.status for trace in traces] == [RunStatus.SUCCESS] * 8
        assert sorted(await rows(vm)) == sorted([0, 1, 2, 9] * 8)
        for trace in traces:
            sound(vm, trace)

    play(main())


def test_a_pure_tool_under_a_key_that_was_used_for_other_arguments_fails_like_any_other(
    opener: Opener,
) -> None:
    @tool(effect="pure")
    def act(n: int) -> int:
        return n

    flow = program(
        tool_step("a", args={"n": 1}, idempotency_key="k"), tool_step("b", args={"n": 2}, idempotency_key="k")
    )

    async def main() -> None:
        vm = opener(tools={"act": act})
        trace = await vm.run(flow)
        assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "ACTION_CONFLICT")
        sound(vm, trace)

    play(main())


def test_what_is_said_of_one_unknown_outcome_is_not_taken_for_another(opener: Opener) -> None:
    """Of several steps or elements that it could be about, none is settled by it."""

    @tool(effect="irreversible", blocking=False)
    def pay(x: int) -> None:
        raise ToolError("no answer", unknown=True)

    each = {"id": "e", "type": "map", "over": "$n", "step": tool_step("a", "pay", args={"x": "$item"})}
    call = {"id": "c", "type": "call", "program": "each", "inputs": {"n": "$item"}}

    async def main() -> None:
        vm = opener(tools=[pay])
        vm.save_program(program(each, name="each"))
        await vm.run(program(each), {"n": [1, 2]}, trace_id="r")
        await vm.run(program({"id": "m", "type": "map", "over": [[1, 2], [3]], "step": call}), trace_id="s")
        for run_id, step, item in (
            ("r", "a", None),
            ("s", "c/a", None),
            ("s", "c/a", 0),
            ("s", "c[0]/a", None),
        ):
            with refused("AMBIGUOUS"):
                await vm.resolve(run_id, step, "succeeded", 0, item=item)
        await vm.resolve("r", "a", "succeeded", 20, item=1)
        trace = await vm.resolve("r", "a", "succeeded", 10)
        assert trace.final_output == [10, 20]
        await vm.resolve("s", "c[0]/a", "succeeded", 20, item=1)
        await vm.resolve("s", "c[1]/a", "succeeded", 30)
        trace = await vm.resolve("s", "c/a", "succeeded", 10)
        assert trace.final_output == [[10, 20], [30]]
        sound(vm, trace)

    play(main())


@pytest.mark.parametrize("code", ["", "a name of its own", "E" * 5_000, None, 5])
@pytest.mark.parametrize("unknown", [False, True])
def test_a_run_verifies_whatever_its_tools_call_their_errors(code: Any, unknown: bool) -> None:
    @tool(effect="irreversible")
    def act() -> str:
        raise ToolError("no", code=code, unknown=unknown)

    async def main() -> None:
        vm = ExecutionVM(tools=[act])
        steps = [{"id": "act", "type": "tool", "tool": "act"}]
        trace = await vm.run({"name": "odd", "steps": steps}, trace_id="r")
        assert trace.status == ("SUSPENDED" if unknown else "FAILED")
        vm.verify("r")

    asyncio.run(main())
