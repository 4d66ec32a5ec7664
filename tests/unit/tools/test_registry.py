"""Tools: what a function's signature says of it, and what cannot be a tool."""

from __future__ import annotations

import asyncio
import functools
from typing import Annotated, Any, Literal

import msgspec
import pytest

from nano_vm import (
    ExecutionVM,
    NanoVMError,
    ProgramError,
    ProgramValidator,
    Reconciled,
    ToolContext,
    ToolSet,
    tool,
)
from nano_vm.program import ToolSchema
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


class Place(msgspec.Struct):
    street: str


def test_an_empty_schema_leaves_the_type_hints_their_word() -> None:
    @tool(schema={})
    def deliver(to: Place) -> None: ...

    assert not problems(deliver, to={"street": "Elm"})
    assert problems(deliver, to={"street": 1})


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


PAYING = {"name": "p", "steps": [{"id": "pay", "type": "tool", "tool": "pay", "args": {"amount": "much"}}]}


@pytest.mark.parametrize("form", ["list", "iterator", "dict", "set", "schemas"])
def test_programs_are_checked_with_the_tools_as_the_machine_takes_them(form: str) -> None:
    def pay(amount: int) -> None: ...

    tools: Any = {
        "list": [pay],
        "iterator": iter([pay]),
        "dict": {"pay": pay},
        "set": ToolSet({"pay": pay}),
        "schemas": {"pay": describe(pay).schema},
    }[form]
    report = ProgramValidator(PAYING, tools=tools).validate()
    assert [finding.code for finding in report.errors] == ["BAD_ARGUMENT"]


def test_a_schema_and_a_function_may_stand_side_by_side() -> None:
    def pay(amount: int) -> None: ...

    tools: Any = {"other": ToolSchema(name="other"), "pay": pay}
    assert [finding.code for finding in ProgramValidator(PAYING, tools=tools).validate().errors] == [
        "BAD_ARGUMENT"
    ]
    del tools["pay"]
    assert [finding.code for finding in ProgramValidator(PAYING, tools=tools).validate().errors] == [
        "UNKNOWN_TOOL"
    ]
    assert [finding.code for finding in ProgramValidator(PAYING, tools=[]).validate().errors] == [
        "UNKNOWN_TOOL"
    ]
    assert ProgramValidator(PAYING).validate().ok


@pytest.mark.parametrize("tools", ["pay", 5, len, [None], ["pay"], {"pay": 1}, {"pay": {"type": "object"}}])
def test_what_is_no_tool_is_named_as_such(tools: Any) -> None:
    for make in (ProgramValidator, lambda _, tools: ExecutionVM(tools=tools)):
        with pytest.raises(ProgramError) as refused:
            make(PAYING, tools=tools)
        assert refused.value.code == "TOOL_SIGNATURE"
