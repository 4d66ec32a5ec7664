"""The steps that a schema takes for a value are counted where its references multiply, and bounded."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano_vm import ExecutionVM, InputError, MockLLMAdapter, ProgramError, tool
from nano_vm.compiler.json_schema import violations
from nano_vm.program.closed import is_closed
from nano_vm.program.schema_steps import STEPS_PER_VALUE, Steps


def doubling(levels: int, keyword: str = "allOf", leaf: Any = None) -> dict[str, Any]:
    """Each level leads to the next one twice."""
    twice = {f"s{n}": {keyword: [{"$ref": f"#/$defs/s{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**twice, f"s{levels}": leaf or {"type": "integer"}}, "$ref": "#/$defs/s0"}


TREE = {"type": "object", "properties": {"value": {}, "children": {"type": "array", "items": {"$ref": "#"}}}}
JSON_VALUE = {
    "$defs": {
        "any": {
            "anyOf": [
                {"type": ["string", "number", "boolean", "null"]},
                {"type": "array", "items": {"$ref": "#/$defs/any"}},
                {"type": "object", "additionalProperties": {"$ref": "#/$defs/any"}},
            ]
        }
    },
    "$ref": "#/$defs/any",
}
TWICE_EACH = {"properties": {"x": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"x": value}
    return value


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_references_that_double_are_refused_and_nothing_hangs(keyword: str) -> None:
    began = time.monotonic()
    steps = Steps(doubling(40, keyword))
    assert steps.counts
    assert steps.exceeds(5)
    assert violations(doubling(40, keyword), 5) == [("", violations(doubling(40), 5)[0][1])]
    assert time.monotonic() - began < 30


def test_what_is_given_to_a_run_is_refused_by_name() -> None:
    """It was held against the schema for hours."""
    bad = {"type": "object", "properties": {"a": {"$ref": "#/$defs/s0"}}, "$defs": doubling(40)["$defs"]}
    program = {"name": "p", "inputs": bad, "steps": [{"id": "s", "type": "llm", "prompt": "$a"}]}
    with pytest.raises(InputError) as caught:
        ExecutionVM(llm=MockLLMAdapter("x")).run_sync(program, {"a": 5})
    assert (caught.value.code, caught.value.facts["keyword"]) == ("INPUT_INVALID", "SCHEMA_STEPS_MAX")


def test_what_a_model_answers_misses_its_gate() -> None:
    program = {
        "name": "p",
        "steps": [{"id": "s", "type": "llm", "prompt": "?", "output_schema": doubling(40)}],
    }
    trace = ExecutionVM(llm=MockLLMAdapter("5")).run_sync(program)
    assert (trace.error or {})["type"] == "GATE"


def test_what_a_tool_is_given_is_refused() -> None:
    program = {"name": "p", "steps": [{"id": "s", "type": "tool", "tool": "t", "args": {"x": 5}}]}

    @tool(
        schema={"type": "object", "properties": {"x": {"$ref": "#/$defs/s0"}}, "$defs": doubling(40)["$defs"]}
    )
    def t(x: int) -> int:
        return x

    with pytest.raises(ProgramError) as caught:
        ExecutionVM(tools={"t": t}).run_sync(program)
    assert "SCHEMA_STEPS_MAX" in str(caught.value.diagnostics)


def test_a_default_that_nobody_can_check_is_a_finding() -> None:
    rule = {"$ref": "#/$defs/s0", "default": 5}
    inputs = {"type": "object", "properties": {"a": rule}, "$defs": doubling(40)["$defs"]}
    with pytest.raises(ProgramError) as caught:
        ExecutionVM().run_sync(
            {"name": "p", "inputs": inputs, "steps": [{"id": "s", "type": "llm", "prompt": "$a"}]}, {}
        )
    assert "SCHEMA_STEPS_MAX" in caught.value.message


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (
            TREE,
            {"value": 1, "children": [{"value": n, "children": [{"value": 2}] * 10} for n in range(1_000)]},
        ),
        (JSON_VALUE, [{"a": [1, "x", None, {"b": [n] * 3}]} for n in range(2_000)]),
        (TWICE_EACH, nested(10)),
        (doubling(10), 5),
        (doubling(14, "anyOf"), 5),  # so many ways are soon gone
    ],
)
def test_honest_schemas_that_refer_to_themselves_are_allowed(schema: Any, value: Any) -> None:
    assert not Steps(schema).exceeds(value)
    assert violations(schema, value) == []


def test_branches_that_come_round_are_bounded_by_the_depth_of_the_value() -> None:
    assert Steps(TWICE_EACH).counts
    assert not Steps(TWICE_EACH).exceeds(nested(12))
    assert Steps(TWICE_EACH).exceeds(nested(40))


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "string"},
        {"allOf": [{"type": "string"}] * 50},
        {"$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}}},
        {"properties": {"x": {"$ref": "#/nowhere/at/all"}, "y": {"$ref": 5}, "z": {"$ref": "other.json#/a"}}},
        {
            "prefixItems": [{"$ref": "#/prefixItems/1"}, {"type": "string"}],
            "anyOf": [{"$ref": "#/anyOf/9"}, True],
        },
        {"$ref": "#/enum/0/x", "enum": [5]},
    ],
)
def test_most_schemas_need_no_counting(schema: Any) -> None:
    steps = Steps(schema)
    assert not steps.counts
    assert not steps.exceeds({"x": 1})


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"$anchor": "top", "not": {"$ref": "#top"}},
        {"$dynamicAnchor": "top", "if": {"$dynamicRef": "#top"}},
        {"dependentSchemas": {"x": {"$ref": "#"}}},
        {"$defs": {"a/b~c %d": {"$ref": "#/$defs/a~1b~0c%20%25d"}}, "$ref": "#/$defs/a~1b~0c%20%25d"},
        {"$defs": {"a%zz": {"$ref": "#/$defs/a%zz"}}, "$ref": "#/$defs/a%zz"},
        {
            "$defs": {
                "in": {"$id": "urn:x", "$defs": {"y": {"$ref": "#"}}, "allOf": [{"$ref": "#/$defs/y"}]}
            },
            "$ref": "#/$defs/in",
        },
    ],
)
def test_a_schema_that_comes_round_for_the_same_value_never_ends_and_is_refused(schema: Any) -> None:
    assert Steps(schema).counts
    assert Steps(schema).exceeds({"x": 1})


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"patternProperties": {"^x": {"anyOf": [{"$ref": "#"}] * 2}}}, nested(30)),
        ({"additionalProperties": {"oneOf": [{"$ref": "#"}] * 2}, "properties": {"y": {}}}, nested(30)),
        (
            {"unevaluatedProperties": {"anyOf": [{"$ref": "#"}] * 2}, "propertyNames": {"$ref": "#"}},
            nested(30),
        ),
        ({"items": {"anyOf": [{"$ref": "#"}] * 2}}, json.loads("[" * 30 + "]" * 30)),
        ({"contains": {"allOf": [{"$ref": "#"}] * 2}}, json.loads("[" * 30 + "]" * 30)),
        ({"prefixItems": [{"allOf": [{"$ref": "#"}] * 2}], "items": {}}, json.loads("[" * 30 + "]" * 30)),
    ],
)
def test_parts_of_values_are_counted_whatever_leads_to_them(schema: Any, value: Any) -> None:
    assert Steps(schema).exceeds(value)
    assert not Steps(schema).exceeds({"y": 1})


_NAMES = st.sampled_from(["a", "b", "c"])
_SCHEMAS = st.recursive(
    st.sampled_from([{"type": "integer"}, {"$ref": "#"}, {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, True]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"allOf": parts}),
        st.dictionaries(_NAMES, inner, max_size=3).map(lambda parts: {"properties": parts}),
        inner.map(lambda part: {"items": part}),
    ),
    max_leaves=8,
)
_VALUES = st.recursive(
    st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=20,
)


@given(_SCHEMAS, _SCHEMAS, _SCHEMAS, _VALUES)
def test_whatever_is_not_refused_is_validated_in_time(top: Any, a: Any, b: Any, value: Any) -> None:
    schema = {**(top if isinstance(top, dict) else {}), "$defs": {"a": a, "b": b}}
    if not Steps(schema).exceeds(value):
        violations(schema, value)


def test_large_values_may_take_more_steps() -> None:
    value = [[1, 2]] * 100_000
    schema = {"items": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}}
    assert STEPS_PER_VALUE > 4
    assert not Steps(schema).exceeds(value)


def test_whether_a_schema_is_closed_is_found_out_in_time() -> None:
    """Ten references at a time, sixteen deep, are never looked at to the end: in doubt it is open."""
    wide = {f"s{n}": {"allOf": [{"$ref": f"#/$defs/s{n + 1}"}] * 10} for n in range(15)}
    assert not is_closed({"$defs": {**wide, "s15": {"type": "string"}}, "$ref": "#/$defs/s0"})
    assert is_closed(doubling(5, "anyOf", {"enum": ["a"]}))
