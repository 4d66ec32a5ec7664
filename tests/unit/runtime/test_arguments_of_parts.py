"""What the parts around an engine are made from is looked at when they are made, as its own arguments are."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nano_vm import (
    CassettePlayer,
    CassetteRecorder,
    ExecutionVM,
    MockLLMAdapter,
    ModelCache,
    ModelStore,
    NanoVMError,
    OpenAICompatibleAdapter,
    Planner,
    Program,
    Provider,
    ProviderPool,
    ToolSet,
    TraceAnalyzer,
    Vault,
    diff,
    learn_archetypes,
    learn_baseline,
    replan_on_interrupt,
    tool,
)

MODEL = MockLLMAdapter("x")
URL = "http://127.0.0.1:9/v1"


class Odd:
    """Cannot be printed either."""

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


ODD: list[Any] = [
    None,
    5,
    1.5,
    True,
    b"x",
    Odd(),
    [],
    ["a"],
    {},
    {1: 2},
    "",
    "a\0b",
    "\ud800",
    {"a": Odd()},
    (1, 2),
    int,
]

PARTS: dict[str, Callable[[Any, Path], object]] = {
    "tool name": lambda odd, _: tool(name=odd)(lambda: 1),
    "tool effect": lambda odd, _: tool(effect=odd)(lambda: 1),
    "tool schema": lambda odd, _: ToolSet({"f": tool(schema=odd)(lambda **_: 1)}),
    "tool output": lambda odd, _: ToolSet({"f": tool(output_schema=odd)(lambda: 1)}),
    "tool reconcile": lambda odd, _: tool(effect="reconcilable", reconcile=odd)(lambda: 1),
    "tool blocking": lambda odd, _: tool(blocking=odd)(lambda: 1),
    "tool suspends": lambda odd, _: tool(may_suspend=odd)(lambda: 1),
    "tool version": lambda odd, _: tool(version=odd)(lambda: 1),
    "tool protected": lambda odd, _: ToolSet({"f": tool(protected=odd)(lambda: 1)}),
    "tool label": lambda odd, _: tool(output_label=odd)(lambda: 1),
    "tool secrets": lambda odd, _: ToolSet({"f": tool(secrets=odd)(lambda: 1)}),
    "tools": lambda odd, _: ToolSet(odd),
    "tool's function": lambda odd, _: ToolSet().add(odd),
    "name of a function": lambda odd, _: ToolSet().add(lambda: 1, odd),
    "program dict": lambda odd, _: Program.from_dict(odd),
    "program yaml": lambda odd, _: Program.from_yaml(odd),
    "program json": lambda odd, _: Program.from_json(odd),
    "program file": lambda odd, _: Program.from_file(odd),
    "mock": lambda odd, _: MockLLMAdapter(odd),
    "mock usage": lambda odd, _: MockLLMAdapter("x", usage=odd),
    "vault": lambda odd, _: Vault.beside(odd),
    "vault tools": lambda odd, _: Vault.in_memory().put("a", "secret", tools=odd),
    "model store": lambda odd, place: ModelStore(odd if odd != "" else place),
    "tape": lambda odd, _: CassettePlayer(odd),
    "recorder": lambda odd, place: CassetteRecorder(odd, place / "tape"),
    "recorder's tape": lambda odd, _: CassetteRecorder(MODEL, odd),
    "cache": lambda odd, place: ModelCache(odd, ModelStore(place / "models")),
    "cache's answers": lambda odd, _: ModelCache(MODEL, odd),
    "provider": lambda odd, _: Provider("a", odd),
    "provider's model": lambda odd, _: Provider("a", MODEL, model=odd),
    "provider's models": lambda odd, _: Provider("a", MODEL, models=odd),
    "pool": lambda odd, _: ProviderPool(odd),
    "pool's breaker": lambda odd, _: ProviderPool([Provider("a", MODEL)], breaker=odd),
    "pool's memory": lambda odd, _: ProviderPool([Provider("a", MODEL)], memory=odd),
    "endpoint": lambda odd, _: OpenAICompatibleAdapter(odd),
    "endpoint's model": lambda odd, _: OpenAICompatibleAdapter(URL, model=odd),
    "endpoint's key": lambda odd, _: OpenAICompatibleAdapter(URL, api_key=odd),
    "endpoint's time-out": lambda odd, _: OpenAICompatibleAdapter(URL, timeout_seconds=odd),
    "endpoint's prices": lambda odd, _: OpenAICompatibleAdapter(URL, prices=odd),
    "endpoint's headers": lambda odd, _: OpenAICompatibleAdapter(URL, headers=odd),
    "planner": lambda odd, _: Planner(odd),
    "planner's tools": lambda odd, _: Planner(MODEL, odd),
    "planner's steps": lambda odd, _: Planner(MODEL, step_types=odd),
    "planner's inputs": lambda odd, _: Planner(MODEL).generate_sync("x", inputs=odd),
    "an input of a planner": lambda odd, _: Planner(MODEL).generate_sync("x", inputs={"a": odd}),
    "planner's engine": lambda odd, _: Planner(MODEL).generate_sync("x", vm=odd),
    "replanned in": lambda odd, _: asyncio.run(replan_on_interrupt(odd, Planner(MODEL), "r", "x")),
    "replanned by": lambda odd, _: asyncio.run(replan_on_interrupt(ExecutionVM(), odd, "r", "x")),
    "analyzer": lambda odd, _: TraceAnalyzer(odd),
    "diff": lambda odd, _: diff(odd, odd),
    "baseline": lambda odd, _: learn_baseline(odd),
    "archetypes": lambda odd, _: learn_archetypes(odd),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_made_or_says_what_is_wrong(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANO_VM_VAULT_KEY", "ab" * 32)
    codes = set()
    for odd in ODD:
        try:
            PARTS[part](odd, tmp_path)
        except NanoVMError as error:
            codes.add(error.code)
    assert codes
    assert "INTERNAL" not in codes


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: tool(schema={"type": "strng"})(lambda **_: 1), "BAD_SCHEMA"),
        (lambda: tool(output_schema={"type": "strng"})(lambda: 1), "BAD_SCHEMA"),
        (lambda: tool(schema={"properties": 5})(lambda **_: 1), "BAD_SCHEMA"),
    ],
)
def test_a_schema_of_a_tool_that_is_none_is_found_when_it_is_registered(
    make: Callable[[], Any], code: str
) -> None:
    with pytest.raises(NanoVMError) as caught:
        ToolSet({"f": make()})
    assert (caught.value.code, bool(caught.value.help)) == (code, True)


def test_two_functions_of_one_name_are_not_told_apart_by_their_order() -> None:
    def first() -> Callable[[], int]:
        def pay() -> int:
            return 1

        return pay

    one, other = first(), first()
    for given in ([one, other], [lambda: 1, lambda: 2], [functools.partial(one), functools.partial(other)]):
        with pytest.raises(NanoVMError) as caught:
            ExecutionVM(tools=given)
        assert (caught.value.code, bool(caught.value.help)) == ("TOOLS_CONFLICT", True)
    assert list(ToolSet([one, one])) == ["pay"]


def test_what_has_no_signature_is_no_tool() -> None:
    with pytest.raises(NanoVMError) as caught:
        ExecutionVM(tools={"d": dict})
    assert caught.value.code == "TOOL_SIGNATURE"


def test_a_secret_for_one_tool_is_not_for_the_letters_of_its_name() -> None:
    with pytest.raises(NanoVMError) as caught:
        Vault.in_memory().put("token", "tok_live_4242", tools="charge")
    assert caught.value.code == "USAGE"


def test_the_name_of_a_file_in_the_place_of_its_text_leads_to_from_file() -> None:
    reading: list[Callable[[Any], Program]] = [Program.from_yaml, Program.from_dict]
    for read in reading:
        with pytest.raises(NanoVMError) as caught:
            read("refund.yaml")
        assert caught.value.code == "NOT_A_PROGRAM"
        assert "from_file" in (caught.value.help or "")
