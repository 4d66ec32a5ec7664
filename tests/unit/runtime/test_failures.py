"""Failing: retries, back-off, on_failure, time-outs, and everything that tools can do wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import pytest
from runtime_stage import Counter, Opener, kinds, play, program, sound, tool_step

from nano_vm import RunStatus, ToolContext, ToolError, tool
from nano_vm.testing.clock import VirtualClock


def failing(times: int, error: Exception | None = None) -> Any:
    count = Counter()

    def act() -> str:
        count("act")
        if count.count("act") <= times:
            raise error or ValueError("not yet")
        return "done"

    act.count = count  # type: ignore[attr-defined]
    return act


def test_max_retries_counts_attempts(opener: Opener) -> None:
    act = failing(99)
    vm = opener(tools={"act": act})
    trace = play(vm.run(program(tool_step("a", on_error="retry", max_retries=4))))
    assert (trace.status, trace.error["type"], trace.error["attempts"]) == (RunStatus.FAILED, "ValueError", 4)
    assert act.count.count("act") == 4
    assert trace.step("a").attempts == 4
    sound(vm, trace)


def test_back_off_doubles_up_to_its_cap_and_is_journaled(opener: Opener, clock: VirtualClock) -> None:
    vm = opener(tools={"act": failing(5)})
    retry = {"initial": 1, "factor": 2, "cap": 5, "jitter": False}
    begin = clock.now_ms()
    trace = play(vm.run(program(tool_step("a", on_error="retry", max_retries=9, retry=retry))))
    assert trace.final_output == "done"
    fired = [event.at_ms - begin for event in trace.events if event.type == "TimerFired"]
    assert fired == [1_000, 3_000, 7_000, 12_000, 17_000]
    sound(vm, trace)


def test_jitter_draws_each_delay_from_its_upper_half(opener: Opener, clock: VirtualClock) -> None:
    vm = opener(tools={"act": failing(1)})
    begin = clock.now_ms()
    play(vm.run(program(tool_step("a", on_error="retry"))))
    assert 500 <= clock.now_ms() - begin <= 1_000


def test_a_restart_continues_the_back_off(opener: Opener, clock: VirtualClock) -> None:
    act = failing(1)
    retry = {"initial": 100, "cap": 100, "jitter": False}
    flow = program(tool_step("a", on_error="retry", retry=retry))
    quiet = VirtualClock(clock.now_ms(), auto=False)
    first = opener(tools={"act": act}, clock=quiet)

    async def main() -> None:
        running = asyncio.ensure_future(first.run(flow, trace_id="r"))
        while not quiet.slept:
            await asyncio.sleep(0)
        quiet.advance(60_000)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        begin = quiet.now_ms()
        second = opener(tools={"act": act}, clock=VirtualClock(begin))
        (trace,) = await second.recover()
        assert trace.status is RunStatus.SUCCESS
        assert trace.events[-1].at_ms - begin == 40_000
        sound(second, trace)

    play(main())


def test_not_retryable_means_once(opener: Opener) -> None:
    act = failing(9, ToolError("no", retryable=False, code="CARD_DECLINED"))
    trace = play(opener(tools={"act": act}).run(program(tool_step("a", on_error="retry"))))
    assert (trace.error["type"], act.count.count("act")) == ("CARD_DECLINED", 1)


def test_skip_binds_null_and_goes_on(opener: Opener) -> None:
    steps = [
        tool_step("a", "bad", on_error="skip", output_key="x"),
        {"id": "c", "type": "condition", "condition": "$x is null", "then": "b", "otherwise": "never"},
        tool_step("b", is_terminal=True),
        tool_step("never", "bad", is_terminal=True),
    ]
    vm = opener(tools={"bad": failing(9), "act": lambda: "went on"})
    trace = play(vm.run(program(*steps)))
    assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, "went on")
    assert trace.step("a").status.value == "SKIPPED"


def test_on_failure_is_a_governed_event_that_can_be_read(opener: Opener) -> None:
    steps = [
        tool_step("a", "bad", on_failure="tell"),
        tool_step("never", "bad", is_terminal=True),
        tool_step(
            "tell",
            "echo",
            args={"value": "$a.error.type: $a.error.message ($a.error.attempts)"},
            is_terminal=True,
        ),
    ]
    vm = opener(tools={"bad": failing(9), "echo": lambda value: value})
    trace = play(vm.run(program(*steps)))
    assert trace.final_output == "ValueError: not yet (1)"
    sound(vm, trace)


class Odd(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even this")


ODD = [
    Odd("base"),
    SystemExit(3),
    StopIteration("stop"),
    StopAsyncIteration(),
    Unprintable(),
    ValueError("lone \ud800 surrogate"),
    ToolError("x", code="\ud800"),
    ToolError("x", code=7),  # type: ignore[arg-type]
    ExceptionGroup("many", [ValueError("one"), OSError("two")]),
    asyncio.CancelledError(),
    RecursionError(),
    MemoryError(),
]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["async", "thread", "beside"])
def test_whatever_a_tool_raises_is_a_failure_of_its_step(opener: Opener, error: Any, kind: str) -> None:
    @tool(effect="idempotent")
    def blocking() -> None:
        raise error

    @tool(effect="idempotent")
    async def act() -> None:
        raise error

    vm = opener(tools={"act": blocking if kind == "thread" else act, "ok": lambda: 1})
    step = tool_step("a", on_failure="after")
    if kind == "beside":
        step = {
            "id": "g",
            "type": "parallel",
            "parallel_steps": [tool_step("a"), tool_step("b", "ok")],
            "on_failure": "after",
        }
    trace = play(vm.run(program(step, tool_step("after", "ok"))))
    assert trace.status is RunStatus.SUCCESS
    assert trace.step("a").status.value == "FAILED"
    sound(vm, trace)


def test_an_interrupt_stops_the_process_and_leaves_the_run_to_recover(opener: Opener) -> None:
    async def act() -> None:
        raise KeyboardInterrupt

    vm = opener(tools={"act": act})
    with pytest.raises(KeyboardInterrupt):
        play(vm.run(program(tool_step("a")), trace_id="r"))
    assert vm.store.record("r").owner is None
    (trace,) = play(opener(tools={"act": act}).recover())
    assert trace.status is RunStatus.SUSPENDED
    assert (trace.waiting[0].kind, trace.waiting[0].step, trace.waiting[0].reason) == (
        "outcome",
        "a",
        "CRASH",
    )
    sound(vm, trace)


@dataclasses.dataclass
class Point:
    x: int
    tags: list[str]


class Dumps:
    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"mode": mode}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Point(1, ["a"]), {"x": 1, "tags": ["a"]}),
        ([Point(1, [])], [{"x": 1, "tags": []}]),
        (Dumps(), {"mode": "json"}),
        ((1, 2), [1, 2]),
        (None, None),
        ("", ""),
        (1.5, 1.5),
    ],
)
def test_what_a_tool_returns_becomes_data(opener: Opener, value: Any, kept: Any) -> None:
    vm = opener(tools={})
    vm.tools.add(lambda: value, "act")
    assert play(vm.run(program(tool_step("a")))).final_output == kept


class Explodes:
    def model_dump(self, mode: str) -> Any:
        raise OSError("connection reset")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (object(), "VALUE_NOT_JSON"),
        ({1, 2}, "VALUE_NOT_JSON"),
        (b"bytes", "VALUE_NOT_JSON"),
        ({1: 2}, "VALUE_NOT_JSON"),
        (float("nan"), "VALUE_NUMBER"),
        (2**60, "VALUE_NUMBER"),
        ("\ud800", "VALUE_STRING"),
        ("x" * (9 * 1024 * 1024), "VALUE_TOO_LARGE"),
        (Explodes(), "VALUE_NOT_JSON"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_effect_whose_result_cannot_be_kept_is_not_done_again(
    opener: Opener, value: Any, code: str
) -> None:
    count = Counter()

    def act() -> Any:
        count("act")
        return value

    vm = opener(tools={"act": act})
    trace = play(vm.run(program(tool_step("a", on_error="retry"))))
    assert (trace.status, trace.error["type"], count.count("act")) == (RunStatus.FAILED, code, 1)
    sound(vm, trace)


def test_recorded_data_shares_nothing_with_tools(opener: Opener) -> None:
    kept: list[Any] = []

    def act(box: dict[str, Any]) -> dict[str, Any]:
        for old in kept:
            old["list"].append("tampered")
        box["list"].append("mine")
        kept.append(box)
        return box

    steps = [
        tool_step("a", args={"box": "$box"}, output_key="first"),
        tool_step("b", args={"box": "$first"}),
        tool_step("c", args={"box": "$box"}),
    ]
    vm = opener(tools={"act": act})
    context = {"box": {"list": []}}
    trace = play(vm.run(program(*steps), context))
    assert [trace.step(name).output["list"] for name in "abc"] == [["mine"], ["mine", "mine"], ["mine"]]
    assert context == {"box": {"list": []}}
    trace.step("a").output["list"].append("by the reader")
    assert vm.trace(trace.trace_id).step("a").output["list"] == ["mine"]
    sound(vm, trace)


def test_huge_outputs_are_kept(opener: Opener) -> None:
    vm = opener(tools={"act": lambda: "x" * 3_000_000})
    trace = play(vm.run(program(tool_step("a"))))
    assert len(trace.final_output) == 3_000_000
    sound(vm, trace)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_time_out_of_a_harmless_tool_is_a_failure_that_may_be_retried(
    opener: Opener, blocking: bool
) -> None:
    count = Counter()
    never = threading.Event()

    @tool(effect="idempotent")
    def slow() -> None:
        count("act")
        never.wait()

    @tool(effect="idempotent")
    async def act() -> None:
        count("act")
        await asyncio.Event().wait()

    vm = opener(tools={"act": slow if blocking else act})
    step = tool_step("a", timeout_seconds=0.01, on_error="retry", max_retries=2)
    trace = play(vm.run(program(step)))
    assert (trace.status, trace.error["type"], count.count("act")) == (RunStatus.FAILED, "TIMEOUT", 2)
    sound(vm, trace)
    never.set()


def test_a_fallback_is_marked_in_the_trace(opener: Opener) -> None:
    @tool(effect="pure")
    async def act() -> None:
        await asyncio.Event().wait()

    vm = opener(tools={"act": act})
    step = tool_step("a", timeout_seconds=0.01, on_timeout="fallback", fallback={"n": 1})
    trace = play(vm.run(program(step)))
    assert (trace.status, trace.final_output) == (RunStatus.SUCCESS, {"n": 1})
    assert trace.step("a").substituted
    sound(vm, trace)


def test_a_hung_blocking_tool_does_not_stall_other_runs(opener: Opener) -> None:
    never = threading.Event()
    vm = opener(tools={"hang": lambda: never.wait(), "act": lambda: 1})

    async def main() -> None:
        hung = asyncio.ensure_future(vm.run(program(tool_step("a", "hang"), name="h")))
        traces = await asyncio.gather(*(vm.run(program(tool_step("a"))) for _ in range(20)))
        assert all(trace.status is RunStatus.SUCCESS for trace in traces)
        assert not hung.done()
        never.set()
        await hung

    play(main())


def test_a_heartbeat_renews_the_time_out_and_says_when_the_run_ends(opener: Opener) -> None:
    started = asyncio.Event()
    told: list[str] = []

    @tool(effect="idempotent")
    async def act(ctx: ToolContext) -> None:
        started.set()
        try:
            while True:
                await asyncio.sleep(0)
                ctx.heartbeat()
        except ToolError as error:
            told.append(error.code)
            raise

    vm = opener(tools={"act": act})

    async def main() -> None:
        running = asyncio.ensure_future(vm.run(program(tool_step("a")), trace_id="r"))
        await started.wait()
        trace = await vm.cancel("r")
        assert trace.status is RunStatus.CANCELLED
        assert (await running).status is RunStatus.CANCELLED
        assert told == ["CANCELLED"]
        sound(vm, trace)

    play(main())


def test_bad_arguments_at_run_time_never_reach_the_tool(opener: Opener) -> None:
    count = Counter()

    def act(n: int) -> None:
        count("act")

    vm = opener(tools={"act": act})
    trace = play(vm.run(program(tool_step("a", args={"n": "$n"}, on_error="retry")), {"n": "text"}))
    assert (trace.error["type"], count.effects) == ("BAD_ARGUMENT", [])
    assert "StepStarted" not in kinds(trace)


def test_a_reference_into_nothing_is_an_error_not_an_empty_string(opener: Opener) -> None:
    vm = opener(tools={"act": lambda x: x})
    trace = play(vm.run(program(tool_step("a", args={"x": "$box.missing"})), {"box": {"there": 1}}))
    assert (trace.status, trace.error["type"]) == (RunStatus.FAILED, "UNRESOLVED_REFERENCE")
    sound(vm, trace)
