"""Tools: what a function's signature says of it, and what cannot be a tool."""

from __future__ import annotations

import asyncio
import functools
from typing import Annotated, Any, Literal

import msgspec
import pytest

from nano_vm import NanoVMError, Reconciled, ToolContext, ToolSet, tool
from nano_vm.tools.registry import describe


def problems(function: Any, **args: Any) -> list[str]:
    checker = describe(function, "t").problems
    assert checker is not None
    return checker(args)


def test_type_hints_become_the_schema() -> None:
    def act(
        name: str,
        amount: float,
        tags: list[str],
        kind: Literal["a", "b"] = "a",
        ctx: ToolContext | None = None,
    ) -> dict[str, int]:
        return {}

    schema = describe(act).schema.parameters
    assert schema["properties"]["name"] == {"type": "string"}
    assert set(schema["required"]) == {"name", "amount", "tags"}
    assert not problems(act, name="x", amount=1, tags=["y"])
    assert problems(act, name="x", amount="1", tags=[])
    assert problems(act, name="x", amount=1)
    assert problems(act, name="x", amount=1, tags=[], kind="c")
    assert problems(act, name="x", amount=1, tags=[], other=1)
    assert problems(act, name="x", amount=True, tags=[])


def test_the_context_is_no_argument() -> None:
    def hinted(n: int, context: ToolContext) -> None: ...
    def named(n: int, ctx) -> None: ...  # type: ignore[no-untyped-def]

    assert describe(hinted).context_parameter == "context"
    assert describe(named).context_parameter == "ctx"
    assert list(describe(hinted).schema.parameters["properties"]) == ["n"]


def test_open_ended_and_untyped_functions_take_anything() -> None:
    assert not problems(lambda **anything: None, x=1, y="z")
    assert not problems(lambda x, y=2: None, x={"deep": [1]})


class Callable_:
    async def __call__(self, n: int) -> int:
        return n

    async def method(self, n: int) -> int:
        return n


def test_objects_methods_and_partials_are_tools() -> None:
    async def plain(n: int, m: int = 0) -> int:
        return n

    for function in (Callable_(), Callable_().method, functools.partial(plain, m=1), plain):
        spec = describe(function, "t")
        assert spec.is_async
        assert not problems(function, n=1)
        assert asyncio.run(spec.function(n=3)) == 3


@pytest.mark.parametrize("function", [lambda a, /: None, lambda *a: None], ids=["positional", "star"])
def test_parameters_that_cannot_be_named_are_refused(function: Any) -> None:
    with pytest.raises(NanoVMError) as raised:
        ToolSet({"t": function})
    assert raised.value.code == "TOOL_SIGNATURE"


@pytest.mark.parametrize(
    "options",
    [
        {"effect": "harmless"},
        {"effect": "reconcilable"},
        {"effect": "keyed", "reconcile": Reconciled.unknown},
    ],
)
def test_effect_classes_are_a_closed_set(options: dict[str, Any]) -> None:
    with pytest.raises(NanoVMError) as raised:
        tool(**options)(lambda: None)
    assert raised.value.code == "TOOL_EFFECT"


def test_undeclared_is_irreversible() -> None:
    assert describe(lambda: None, "t").effect == "irreversible"

    @tool
    def bare() -> None: ...

    assert describe(bare).effect == "irreversible"


def test_the_digest_follows_what_the_tool_is() -> None:
    @tool(version="1")
    def first(n: int) -> None: ...

    @tool(version="2")
    def second(n: int) -> None: ...

    digests = {describe(first, "t").digest, describe(second, "t").digest, describe(first, "u").digest}
    assert len(digests) == 3
    assert describe(first, "t").digest == describe(first, "t").digest


def test_bounds_in_annotations_are_part_of_the_schema() -> None:
    def pay(amount: Annotated[int, msgspec.Meta(gt=0, le=20)]) -> None:
        """Pay
        a little.

        Never much."""

    spec = describe(pay)
    assert spec.problems is not None
    assert spec.problems({"amount": 20}) == []
    assert spec.problems({"amount": 500})
    assert spec.schema.description == "Pay a little."
