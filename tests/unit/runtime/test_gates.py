"""Gates take time in proportion to what a model has written, and tell it no more than it can use."""

from __future__ import annotations

import json

import pytest

from nano_vm import canonical
from nano_vm.program.compiled import ModelAction
from nano_vm.program.schema_faults import faults
from nano_vm.program.template import constant
from nano_vm.runtime.gates import TEXT_BYTES_MAX, pass_gate, unfenced
from nano_vm.tools.registry import argument_checker

LIST = {"type": "array", "items": {"type": "string"}}
ASKED = ModelAction(prompt=constant(""), output_schema=LIST)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("```json\n{}\n```", "{}"),
        (" \n```\n{}\n \n``` \n", "{}"),
        ("```json \n\n[1,\n2]\n  ```", "[1,\n2]"),
        ("```json\n```x```\n```", "```x```"),
    ],
)
def test_a_fence_around_the_answer_is_taken_off(text: str, inside: str) -> None:
    assert unfenced(text).strip() == inside


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "```{}```",
        "```json\n{}```",
        "```js on\n{}\n```",
        "x```\n{}\n```",
        "```\n{}\n```x",
        "```",
        "``````",
    ],
)
def test_what_is_no_fence_is_left_as_it_is(text: str) -> None:
    assert unfenced(text) == text


@pytest.mark.parametrize("text", ["```" + "\n" * (TEXT_BYTES_MAX - 4) + "x", "```\n" + " \n" * 500_000 + "x"])
def test_a_fence_that_never_ends_is_looked_through_once(text: str) -> None:
    assert pass_gate(ASKED, text).problem


def test_of_a_large_value_one_fault_is_told() -> None:
    schema = canonical.encode(LIST)
    assert len(faults(schema, [1] * 100)) == 100
    assert len(faults(schema, [1] * 100_000)) == 1
    assert faults(schema, ["x"] * 100_000) == []
    assert len(pass_gate(ASKED, json.dumps([1] * 300_000)).problem or "") < 100
    check = argument_checker({"type": "object", "properties": {"list": LIST}})
    assert check is not None
    assert len(check({"list": [1] * 100_000})) == 1
