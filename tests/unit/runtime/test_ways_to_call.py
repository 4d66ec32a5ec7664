"""Every way in which a function can take its one argument is called the right way, alone and in a group."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from nano_vm import ExecutionVM, RunStatus, tool
from unit.runtime.runtime_stage import play, program, refused, tool_step


async def ordinary(x: int) -> int:
    return x + 1


async def by_name_only(*, x: int) -> int:
    return x + 1


async def with_another(y: int = 5, x: int = 0) -> int:
    return x + 1 + (y - 5)


async def first_of_two(x: int, y: int = 5) -> int:
    return x + 1 + (y - 5)


@functools.wraps(ordinary)
async def wrapped_by_name(**named: Any) -> int:
    return await ordinary(**named)


@functools.wraps(ordinary)
async def wrapped(*args: Any, **named: Any) -> int:
    return await ordinary(*args, **named)


@functools.wraps(ordinary)
async def wrapped_under_another_name(other: int = -1, **named: Any) -> int:
    return await ordinary(**named) if other == -1 else -1


class Service:
    @tool(name="act", effect="idempotent")
    async def method(self, x: int) -> int:
        return x + 1

    @tool(name="act", effect="idempotent")
    async def method_by_name(self, *, x: int) -> int:
        return x + 1

    @classmethod
    @tool(name="act", effect="idempotent")
    async def of_class(cls, x: int) -> int:
        return x + 1

    @staticmethod
    async def static(x: int) -> int:
        return x + 1


WAYS: dict[str, Callable[..., Any]] = {
    "ordinary": ordinary,
    "by_name_only": by_name_only,
    "with_another": with_another,
    "first_of_two": first_of_two,
    "wrapped_by_name": wrapped_by_name,
    "wrapped": wrapped,
    "wrapped_under_another_name": wrapped_under_another_name,
    "method": Service().method,
    "method_by_name": Service().method_by_name,
    "of_class": Service.of_class,
    "static": Service.static,
}


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in a group"])
@pytest.mark.parametrize("way", WAYS)
def test_the_one_argument_reaches_the_function(way: str, together: bool) -> None:
    steps = [tool_step(name, args={"x": "$x"}) for name in ("a", "b")]
    flow = program({"id": "g", "type": "parallel", "parallel_steps": steps}) if together else program(*steps)

    async def main() -> None:
        function = WAYS[way]
        if not inspect.ismethod(function):  # those are marked in their class
            tool(name="act", effect="idempotent")(function)
        async with ExecutionVM(tools=[function]) as vm:
            trace = await vm.run(flow, {"x": 41})
            assert (trace.status, trace.error) == (RunStatus.SUCCESS, None)
            assert trace.final_output == ({"a": 42, "b": 42} if together else 42)

    play(main())


@pytest.mark.parametrize("taken", [Service().method, len], ids=["bound", "built in"])
def test_what_takes_no_mark_is_told_with_the_remedy(taken: Callable[..., Any]) -> None:
    with refused("TOOL_SIGNATURE"):
        tool(effect="pure")(taken)
