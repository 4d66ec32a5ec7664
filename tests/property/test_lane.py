"""The lane writes the journal that the general driver writes, byte for byte, and leaves the same state behind."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm import PENDING, ExecutionVM, MemoryStore, ProgramError, SqliteStore, ToolContext, ToolError, tool
from nano_vm.kernel.state import snapshot

EFFECTS = ("pure", "idempotent", "keyed", "irreversible")
NOW_MS = 1_700_000_000_000


class StillClock:
    """Time stands still, but for timers, which ring at once, and for a millisecond with every call of a tool, where
    that is what it is to be."""

    def __init__(self, ticks: bool = False) -> None:
        self.at_ms = NOW_MS
        self.ticks = ticks

    def now_ms(self) -> int:
        return self.at_ms + self.ticks * len(CALLS)

    async def sleep_until(self, at_ms: int) -> None:
        self.at_ms = max(self.at_ms, at_ms)


class CountedEntropy:
    """The n-th draw is n."""

    def __init__(self) -> None:
        self._next = count()

    def salt(self) -> bytes:
        return next(self._next).to_bytes(16, "big")

    def draw(self) -> int:
        return 500_000


CALLS: list[str] = []  # the tools that have been called, in this order


def _tools() -> list[Callable[..., Any]]:
    """A tool for every effect and every way of answering."""
    tools: list[Callable[..., Any]] = []

    def declare(name: str, effect: str, function: Callable[..., Any], **more: Any) -> None:
        @functools.wraps(function)
        async def later(*args: Any, **named: Any) -> Any:
            CALLS.append(name)
            return await function(*args, **named)

        @functools.wraps(function)
        def at_once(*args: Any, **named: Any) -> Any:
            CALLS.append(name)
            return function(*args, **named)

        counted = later if inspect.iscoroutinefunction(function) else at_once
        tools.append(tool(name=name, effect=effect, **more)(counted))

    for effect in EFFECTS:

        async def add(x: Any) -> Any:
            return x + 1 if type(x) is int else x

        async def box(x: Any) -> Any:
            return {"b": [x, (1, 2.0)], "a": "é\u2028"}

        async def later(x: int = 0) -> Any:
            await asyncio.sleep(0)
            return x

        async def fail(x: Any) -> Any:
            raise ToolError("no", retryable=x == 1, code="NO")

        async def strange(x: Any) -> Any:
            return {1, 2}

        async def pend(x: Any) -> Any:
            return PENDING

        async def named(x: Any) -> Any:
            return "PENDING"

        def plain(x: int) -> int:
            return x * 2

        async def spoil(x: Any) -> Any:
            if type(x) is dict:
                x["b"].clear()
            return None

        def quick(x: Any) -> Any:
            return [x]

        async def place(x: Any, ctx: ToolContext) -> Any:
            if type(x) is dict:
                x["b"].clear()
            place = [ctx.trace_id, ctx.step, ctx.occurrence, ctx.item, ctx.attempt, ctx.deadline_ms]
            return [*place, ctx.idempotency_key[:4], ctx.principal, ctx.cancelled]

        def put(x: int, ctx: ToolContext) -> Any:
            return [ctx.idempotency_key, ctx.step]

        for function in (add, box, later, fail, strange, pend, named, plain, spoil, place, put):
            declare(f"{function.__name__}_{effect}", effect, function)
        declare(f"quick_{effect}", effect, quick, blocking=False)

        async def guarded(x: Any) -> Any:
            return x

        declare(f"guarded_{effect}", effect, guarded, protected=["x"])
    return tools


TOOLS = _tools()
COMMON = ("add", "box", "later", "spoil", "plain", "place", "put")
RARE = ("fail", "strange", "pend", "named")
BUDGETS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"max_tokens": 1_000},
    {"max_cost_usd": 1, "max_tokens": 9},
    {"max_duration_seconds": 0.002},
    {"max_stalled_steps": 2},
)
TESTS = ("$x >= 0", "$x < 3", "{} == 1", "{} != null", "{}.b == 1")


@st.composite
def programs(draw: st.DrawFn, labelled: bool = False, models: bool = False) -> dict[str, Any]:
    """Programs that are valid by construction: a chain of tools and conditions - and models - whose other branches lead
    back, on, or to another end."""
    size = draw(st.integers(1, 7))
    steps: list[dict[str, Any]] = []
    values = ["$x"]  # what a step may refer to
    for number in range(size):
        step: dict[str, Any] = {"id": f"s{number}"}
        if number and draw(st.integers(0, 3)) == 0:
            test = draw(st.sampled_from(TESTS))
            other = draw(st.sampled_from(["alt", f"s{draw(st.integers(0, size - 1))}"]))
            step |= {"type": "condition", "condition": test.format(draw(st.sampled_from(values)))}
            step |= {"then": f"s{number + 1}" if number + 1 < size else "end"}
            if other != step["then"] and other != step["id"]:
                step["otherwise"] = other
        elif models and draw(st.booleans()):
            step |= _model_step(draw, values, labelled)
            values.append(f"$s{number}.output")
        elif draw(st.integers(0, 3)) == 0:
            step |= _group_step(draw, values, f"s{number}", labelled)
            values.append(f"$s{number}.output")
            if step["type"] == "parallel":
                values += [f"${lane['id']}.output" for lane in step["parallel_steps"]]
        else:
            step |= _tool_step(draw, values, labelled)
            values.append(f"$s{number}.output")
        steps.append(step)
    steps.append(
        {"id": "end", "type": "tool", "tool": "add_keyed", "args": {"x": values[-1]}, "is_terminal": True}
    )
    steps[-1] |= draw(st.sampled_from([{}, {"outcome": 'don’t "pay"'}, {"tool": "box_pure"}]))
    if any("alt" in (step.get("otherwise"), step.get("on_failure")) for step in steps):
        steps.append({"id": "alt", "type": "tool", "tool": "add_irreversible", "args": {"x": "$x"}})
        steps[-1] |= {"is_terminal": True, "final_status": "FAILED", "outcome": "refused"}
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    if labelled:
        x: dict[str, Any] = schema["properties"]["x"]  # type: ignore[index]
        x |= draw(st.sampled_from([{}, {"label": "trusted"}, {"label": "untrusted"}, {"private": True}]))
    budgets = draw(st.sampled_from(BUDGETS))
    return {"name": "p", "inputs": schema, "max_steps": draw(st.integers(1, 30)), **budgets, "steps": steps}


def _tool_step(draw: st.DrawFn, values: list[str], labelled: bool) -> dict[str, Any]:
    name = draw(st.sampled_from(COMMON * 5 + RARE + ("guarded",) * 10 * labelled))
    if labelled and name == "put":
        name = "plain"  # keys of what is private are the store's own
    value = draw(st.sampled_from(values))
    argument = draw(st.sampled_from([value, value, 1, f"text {value}", {"deep": value}, [value, 1.5], None]))
    step = {"type": "tool", "tool": f"{name}_{draw(st.sampled_from(EFFECTS))}", "args": {"x": argument}}
    if name in ("plain", "later", "put"):
        step["args"] = {"x": "$x"}
    if draw(st.integers(0, 3)) == 0:
        step["output_key"] = f"v{len(values)}"
    step |= draw(st.sampled_from([{}, {}, {}, {"on_error": "skip"}, {"on_error": "retry", "max_retries": 2}]))
    if step.get("on_error") != "skip" and draw(st.integers(0, 3)) == 0:
        step["on_failure"] = "alt"
    if not step["tool"].endswith("pure") and draw(st.integers(0, 7)) == 0:
        step["compensate"] = {"tool": "add_keyed", "args": {"x": "$x"}}
    if labelled and draw(st.integers(0, 14)) == 0:
        step["private"] = True
    if draw(st.integers(0, 9)) == 0:
        step["idempotency_key"] = "key-$x"
    return step


def _model_step(draw: st.DrawFn, values: list[str], labelled: bool) -> dict[str, Any]:
    step: dict[str, Any] = {"type": "llm", "prompt": f"Is it so? {draw(st.sampled_from(values))}"}
    step |= draw(st.sampled_from([{}, {}, {"allowed_outputs": ["yes", "no"]}, {"system": "$x"}]))
    step |= draw(st.sampled_from([{}, {}, {"params": {"max_tokens": 20}}, {"model": "mock"}]))
    step |= draw(st.sampled_from([{}, {}, {"on_error": "skip"}, {"on_error": "retry", "max_retries": 2}]))
    if draw(st.integers(0, 3)) == 0:
        step["output_key"] = f"v{len(values)}"
    if labelled and draw(st.integers(0, 14)) == 0:
        step["private"] = True
    return step


def _group_step(draw: st.DrawFn, values: list[str], name: str, labelled: bool) -> dict[str, Any]:
    step: dict[str, Any] = {}
    if draw(st.integers(0, 2)):
        lanes = range(draw(st.integers(1, 4)))
        step |= {"type": "parallel"}
        step["parallel_steps"] = [
            {"id": f"{name}{number}", **_sub_step(draw, values, labelled)} for number in lanes
        ]
        if (
            draw(st.integers(0, 2)) == 0
        ):  # of calls without effects the state does not say that they have begun
            kind = draw(st.sampled_from(["later", "later", "fail", "add"]))
            for lane in step["parallel_steps"]:
                lane |= {"tool": f"{kind}_pure", "args": {"x": "$x"}}
                lane.pop("compensate", None)
    else:
        inner = {"id": f"{name}i", **_sub_step(draw, [*values, "$item", "$item"], labelled)}
        inner.pop("output_key", None)
        over = draw(st.sampled_from([[], [1], [1, "two", 3], [0, [1], {"b": 2}, 3]]))
        step |= {"type": "map", "over": over, "step": inner}
    step |= draw(st.sampled_from([{}, {}, {}, {"max_concurrency": 2}, {"timeout_seconds": 60}]))
    step |= draw(st.sampled_from([{}, {}, {"on_error": "skip"}, {"on_error": "retry", "max_retries": 2}]))
    if step.get("on_error") != "skip" and draw(st.integers(0, 3)) == 0:
        step["on_failure"] = "alt"
    return step


def _sub_step(draw: st.DrawFn, values: list[str], labelled: bool) -> dict[str, Any]:
    step = _tool_step(draw, values, labelled)
    step.pop("on_failure", None)
    if step["tool"].startswith(("plain", "put")):  # which of several threads is done first is chance
        step["tool"] = step["tool"].replace("plain", "quick").replace("put", "quick")
    return step


ALL_NAMED = {"policy": "p", "tools": ["*"]}
POLICIES = [
    ALL_NAMED,
    {
        "policy": "p",
        "tools": ["add_*", "tick"],
        "rules": [{"id": "r", "tools": ["box*", "l*"], "when": "$run.id == 'run'"}],
    },
    {
        "policy": "p",
        "default": "allow",
        "rules": [{"id": "no", "tools": ["spoil*", "fail_pure"], "decision": "deny"}],
    },
    {"policy": "p", "tools": ["add*"], "rules": [{"id": "r", "tools": ["*"], "requires": ["add_pure"]}]},
    {"policy": "p", "rules": [{"id": "r", "tools": ["*"], "when": "$args.x is not null"}]},
    {
        "policy": "p",
        "rules": [
            {
                "id": "r",
                "tools": ["*"],
                "when": "$run.program == 'p'",
                "limits": [{"max_calls": 3, "per": ["run"]}],
            }
        ],
    },
    {
        "policy": "p",
        "rules": [
            {
                "id": "r",
                "tools": ["*"],
                "limits": [
                    {"max_calls": 6, "per": ["run"]},
                    {"max_sum": 5, "of": "$args.x", "per": ["run"]},
                ],
            }
        ],
    },
    {
        "policy": "p",
        "rules": [
            {
                "id": "r",
                "tools": ["*"],
                "limits": [{"max_calls": 4, "per": ["run"]}, {"max_calls": 5, "per": ["day"]}],
            }
        ],
    },
    {
        "policy": "p",
        "rules": [
            {"id": "few", "tools": ["add*", "box*"], "limits": [{"max_calls": 2, "per": ["run"]}]},
            {"id": "more", "tools": ["add_pure"], "limits": [{"max_calls": 2, "per": ["run", "minute"]}]},
            {"id": "rest", "tools": ["l*", "s*", "p*", "q*"], "limits": [{"max_calls": 3, "per": ["day"]}]},
        ],
    },
]


async def _play(
    store: Any,
    program: dict[str, Any],
    x: int,
    lane: bool,
    policy: Any = None,
    named: bool = True,
    proves: bool = True,
    ticks: bool = False,
) -> tuple[list[Any], Any, bytes, Any]:
    numbers = count(1)

    async def tick() -> int:
        return next(numbers)

    vm = ExecutionVM(
        tools=[*TOOLS, tick], store=store, clock=StillClock(ticks), entropy=CountedEntropy(), policy=policy
    )
    vm.lane = lane
    vm.proves = proves
    CALLS.clear()
    async with vm:
        trace = await vm.run(program, context={"x": x}, trace_id="run" if named else None)
        run_id = trace.trace_id
        vm.verify(run_id)
        state = trace._state
        record = store.record(run_id)
        record.owner, record.fence = None, 1  # who had it, and whether the store ever saw that
        return store.read(run_id), record, snapshot(state), trace.final_output, list(CALLS)


def _shown(entries: list[Any]) -> list[tuple[bytes, bytes | None]]:
    """The entries in a form whose differences can be read: without the chain's digests."""
    return [(re.sub(rb'"(commitment|prev)":"[^"]*"', b"", entry.facts), entry.payload) for entry in entries]


@settings(max_examples=200, deadline=None)
@given(programs(), st.integers(-1, 5), st.booleans())
def test_a_run_is_the_same_with_and_without_the_lane(program: dict[str, Any], x: int, named: bool) -> None:
    # Calls that are made together take no time: which of their results is noted first is chance.
    ticks = all(step["type"] in ("tool", "condition") for step in program["steps"])
    try:
        with_lane = asyncio.run(_play(MemoryStore(), program, x, True, None, named, ticks=ticks))
    except ProgramError:
        return
    without = asyncio.run(_play(MemoryStore(), program, x, False, None, named, ticks=ticks))
    assert _shown(with_lane[0]) == _shown(without[0])
    assert with_lane == without


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("millis", range(1, 9))
def test_time_runs_out_where_it_does_without_the_lane(millis: int, named: bool) -> None:
    steps: list[dict[str, Any]] = [
        {"id": f"s{number}", "type": "tool", "tool": f"add_{EFFECTS[number % 2]}", "args": {"x": "$x"}}
        for number in range(7)
    ]
    steps[2] = {"id": "s2", "type": "condition", "condition": "$x == 1", "then": "s3"}
    inputs = {"type": "object", "properties": {"x": {"type": "integer"}}}
    program = {"name": "p", "inputs": inputs, "max_duration_seconds": millis / 1_000, "steps": steps}
    with_lane, without = (
        asyncio.run(_play(MemoryStore(), program, 1, lane, None, named, ticks=True)) for lane in (True, False)
    )
    assert with_lane == without
    assert with_lane[1].status == ("BUDGET_EXCEEDED" if millis < 5 else "SUCCESS")
    assert len(with_lane[-1]) == min(millis + 1, 6)


@settings(max_examples=150, deadline=None)
@given(programs(), st.integers(-1, 5), st.sampled_from(POLICIES), st.booleans())
def test_a_governed_run_is_the_same_with_and_without_the_lane(
    program: dict[str, Any], x: int, policy: Any, named: bool
) -> None:
    try:
        with_lane = asyncio.run(_play(MemoryStore(), program, x, True, policy, named))
    except ProgramError:
        return
    without = asyncio.run(_play(MemoryStore(), program, x, False, policy, named))
    assert _shown(with_lane[0]) == _shown(without[0])
    assert with_lane == without


@settings(max_examples=200, deadline=None)
@given(
    programs(labelled=True),
    st.integers(-1, 5),
    st.sampled_from([None, ALL_NAMED]),
    st.booleans(),
    st.booleans(),
)
def test_a_run_that_tracks_labels_is_the_same_with_and_without_the_lane(
    program: dict[str, Any], x: int, policy: Any, named: bool, proves: bool
) -> None:
    try:
        with_lane = asyncio.run(_play(MemoryStore(), program, x, True, policy, named, proves))
    except ProgramError:
        return
    without = asyncio.run(_play(MemoryStore(), program, x, False, policy, named, proves))
    if "private" in str(program):  # keys and nonces are drawn from elsewhere
        assert with_lane[3] == without[3]
        return
    assert _shown(with_lane[0]) == _shown(without[0])
    assert with_lane == without


LOOP: dict[str, Any] = {
    "name": "loop",
    "inputs": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    "max_steps": 700,
    "steps": [
        {"id": "one", "type": "tool", "tool": "add_pure", "args": {"x": "$x"}},
        {"id": "two", "type": "tool", "tool": "tick", "output_key": "n"},
        {"id": "three", "type": "tool", "tool": "box_keyed", "args": {"x": "$n"}},
        {"id": "more", "type": "condition", "condition": "$n < 150", "then": "two", "otherwise": "last"},
        {"id": "last", "type": "tool", "tool": "later_idempotent", "args": {"x": "$n"}, "is_terminal": True},
    ],
}


LOOP_LIMITS: list[dict[str, Any]] = [
    {"id": "r", "tools": ["*"], "limits": [{"max_calls": 400, "per": ["run"]}]},
    {
        "id": "sum",
        "tools": ["box*"],
        "limits": [
            {"max_sum": 20_000, "of": "$args.x", "per": ["run"]},
            {"max_calls": 200, "per": ["minute"]},
        ],
    },
]


@pytest.mark.parametrize("program", [LOOP, {**LOOP, "max_steps": 100}], ids=["ends", "budget"])
@pytest.mark.parametrize("durable", [False, True], ids=["memory", "sqlite"])
@pytest.mark.parametrize(
    "policy",
    [None, ALL_NAMED, {"policy": "p", "rules": LOOP_LIMITS[:1]}, {"policy": "p", "rules": LOOP_LIMITS}],
    ids=["free", "governed", "limited", "limited together"],
)
def test_a_long_loop_is_the_same_with_and_without_the_lane(
    program: dict[str, Any], durable: bool, policy: Any, tmp_path: Any
) -> None:
    found = []
    for lane in (True, False):
        store = SqliteStore(str(tmp_path / f"{lane}.db")) if durable else MemoryStore()
        found.append(asyncio.run(_play(store, program, 0, lane, policy)))
    assert found[0] == found[1]
    assert found[0][1].status == ("SUCCESS" if program is LOOP else "BUDGET_EXCEEDED")
