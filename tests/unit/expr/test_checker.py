"""Findings before a run: what can never be true is an error, what is unknown is passed over in silence."""

import pytest

from nano_vm.expr.checker import check, field_type, type_from_schema
from nano_vm.expr.parser import parse
from nano_vm.expr.types import ANY, NULL, Type

TYPES = {
    "decision": Type("string", ("yes", "no")),
    "maybe": Type("string", ("yes", "no"), nullable=True),
    "level": Type("number", (1, 2, 3)),
    "flag": Type("boolean"),
    "sure": Type("boolean", (True,)),
    "amount": Type("number"),
    "name": Type("string"),
    "opt": Type("string", nullable=True),
    "tags": Type("array", item=Type("string", ("a", "b"))),
    "list": Type("array"),
    "order": Type("object"),
    "nothing": NULL,
    "any": ANY,
}


def findings(source):
    return [
        (finding.code, finding.severity, finding.offset, finding.length)
        for finding in check(parse(source), lambda ref: TYPES.get(ref.name))
    ]


@pytest.mark.parametrize(
    "source",
    [
        "$decision == 'yes'",
        "$decision != 'no'",
        "'yes' in '$decision'",
        "'es' in $decision",
        "$decision in ['yes']",
        "$maybe is null or $maybe == 'yes'",
        "$maybe == null",
        "$decision == $name",
        "$level > 1 and $level <= 2",
        "$level == 2",
        "$flag and not $flag",
        "$amount > 10.5",
        "$name < 'm'",
        "$opt < 'm'",
        "$opt == 'm'",
        "$tags contains 'a'",
        "'b' in $tags",
        "5 in $list",
        "$any == 5 and $any == 'a' and $any",
        "$any in $any",
        "$unknown.field > 1",
        "$order == $order",
        "$nothing == 'a'",
        "$nothing in ['a']",
        "$name in [$name, 'a']",
        "$amount in [$level, $amount]",
        "$opt in [$maybe]",
        "$name contains 'x'",
        "$flag == ($amount > 1)",
        "$order is not null",
    ],
)
def test_a_sound_condition_has_no_findings(source):
    assert findings(source) == []


@pytest.mark.parametrize(
    ("source", "code", "severity", "offset", "length"),
    [
        ("$amount == '5'", "TYPE_MISMATCH", "error", 0, 14),
        ("$flag != 'true'", "TYPE_MISMATCH", "error", 0, 15),
        ("$decision == true", "TYPE_MISMATCH", "error", 0, 17),
        ("'$amount' == 5", "TYPE_MISMATCH", "error", 0, 14),
        ("$opt == 5", "TYPE_MISMATCH", "error", 0, 9),
        ("$name > 5", "TYPE_MISMATCH", "error", 0, 9),
        ("$flag > false", "TYPE_MISMATCH", "error", 0, 13),
        ("$list < $list", "TYPE_MISMATCH", "error", 0, 13),
        ("$any < true", "TYPE_MISMATCH", "error", 0, 11),
        ("$amount < null", "TYPE_MISMATCH", "error", 0, 14),
        ("'a' in $order", "TYPE_MISMATCH", "error", 0, 13),
        ("$amount contains 1", "TYPE_MISMATCH", "error", 0, 18),
        ("5 in $name", "TYPE_MISMATCH", "error", 0, 10),
        ("$amount", "TYPE_MISMATCH", "error", 0, 7),
        ("not $name", "TYPE_MISMATCH", "error", 4, 5),
        ("$flag and $decision", "TYPE_MISMATCH", "error", 10, 9),
        ("$flag or '$flag'", "TYPE_MISMATCH", "error", 9, 7),
        ("[$flag]", "TYPE_MISMATCH", "error", 0, 7),
        ("'yes'", "TYPE_MISMATCH", "error", 0, 5),
        ("$decision == 'maybe'", "IMPOSSIBLE_COMPARISON", "error", 0, 20),
        ("'Yes' == $decision", "IMPOSSIBLE_COMPARISON", "error", 0, 18),
        ("$decision != 'maybe'", "IMPOSSIBLE_COMPARISON", "error", 0, 20),
        ("$maybe == 'perhaps'", "IMPOSSIBLE_COMPARISON", "error", 0, 19),
        ("'maybe' in '$decision'", "IMPOSSIBLE_COMPARISON", "error", 0, 22),
        ("$decision contains 'x'", "IMPOSSIBLE_COMPARISON", "error", 0, 22),
        ("$decision in ['a', 'b']", "IMPOSSIBLE_COMPARISON", "error", 0, 23),
        ("$decision not in ['a']", "IMPOSSIBLE_COMPARISON", "error", 0, 22),
        ("$decision in [1, true]", "IMPOSSIBLE_COMPARISON", "error", 0, 22),
        ("$name in [1, 2]", "IMPOSSIBLE_COMPARISON", "error", 0, 15),
        ("$decision in []", "IMPOSSIBLE_COMPARISON", "error", 0, 15),
        ("$decision in ['yes', 'maybe']", "IMPOSSIBLE_COMPARISON", "warning", 21, 7),
        ("$level > 5", "IMPOSSIBLE_COMPARISON", "error", 0, 10),
        ("$level == 1.5", "IMPOSSIBLE_COMPARISON", "error", 0, 13),
        ("'c' in $tags", "IMPOSSIBLE_COMPARISON", "error", 0, 12),
        ("$tags contains 1", "IMPOSSIBLE_COMPARISON", "error", 0, 16),
        ("$sure == false", "IMPOSSIBLE_COMPARISON", "error", 0, 14),
        ("$sure == true", "CONSTANT_CONDITION", "warning", 0, 13),
        ("$level >= 1", "CONSTANT_CONDITION", "warning", 0, 11),
        ("true", "CONSTANT_CONDITION", "warning", 0, 4),
        ("$flag and true", "CONSTANT_CONDITION", "warning", 10, 4),
        ("1 == 1 and 'a' in 'abc'", "CONSTANT_CONDITION", "warning", 0, 23),
        ("$flag or not (1 > 2)", "CONSTANT_CONDITION", "warning", 9, 11),
    ],
)
def test_a_condition_that_cannot_mean_what_it_says_is_found(source, code, severity, offset, length):
    assert findings(source) == [(code, severity, offset, length)]


def test_all_findings_come_at_once_in_source_order():
    assert [
        found[:3] for found in findings("$decision == 'maybe' and $amount or $name < 1 and (1 == 1)")
    ] == [
        ("IMPOSSIBLE_COMPARISON", "error", 0),
        ("TYPE_MISMATCH", "error", 25),
        ("TYPE_MISMATCH", "error", 36),
        ("CONSTANT_CONDITION", "warning", 51),
    ]


def test_a_constant_of_wrong_types_is_a_type_error():
    assert [found[0] for found in findings("1 == '1'")] == ["TYPE_MISMATCH"]


def test_nested_lists_are_checked_once():
    source = "$flag"
    for _ in range(20):
        source = f"$any in [({source})]"
    assert findings(source) == []


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, Type("string")),
        ({"type": "integer"}, Type("number")),
        ({"type": ["string", "null"]}, Type("string", nullable=True)),
        ({"type": ["null", "null"]}, NULL),
        ({"type": ["string", "number"]}, ANY),
        ({"type": ["integer", "number"]}, Type("number")),
        ({"enum": ["a", "b"]}, Type("string", ("a", "b"))),
        ({"enum": ["a", None]}, Type("string", ("a",), nullable=True)),
        ({"enum": ["a", 1]}, ANY),
        ({"type": "string", "enum": ["a", 1]}, Type("string", ("a",))),
        ({"enum": [{"a": 1}]}, ANY),
        ({"const": 5}, Type("number", (5,))),
        ({"const": None}, NULL),
        ({"enum": list(range(1000))}, Type("number")),
        ({"type": "array", "items": {"type": "string"}}, Type("array", item=Type("string"))),
        ({"type": "array", "prefixItems": [{}], "items": {"type": "string"}}, Type("array")),
        ({"type": "object"}, Type("object")),
        (
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False},
            Type("object", fields={"a": Type("boolean")}, closed=True),
        ),
        ({"type": "string", "anyOf": [{}]}, ANY),
        ({"$ref": "#/x", "type": "string"}, ANY),
        ({}, ANY),
        (True, ANY),
        (None, ANY),
        ({"type": 5}, ANY),
        ({"type": "strnig"}, ANY),
        ({"type": [["string"]]}, ANY),
        ({"type": "object", "properties": 5}, Type("object")),
    ],
)
def test_a_schema_becomes_a_type_or_any(schema, expected):
    assert type_from_schema(schema) == expected


def test_a_schema_that_contains_itself_ends():
    schema = {"type": "object"}
    schema["properties"] = {"a": schema}
    assert type_from_schema(schema).kind == "object"


def test_a_path_is_followed_through_types():
    order = type_from_schema(
        {
            "type": "object",
            "properties": {
                "lines": {"type": "array", "items": {"type": "number"}},
                "open": {"type": "object"},
            },
            "additionalProperties": False,
        }
    )
    assert field_type(order, ()) is order
    assert field_type(order, ("lines", "0")) == Type("number")
    assert field_type(order, ("open", "x", "y")) == ANY
    assert field_type(ANY, ("x",)) == ANY
    for path in (("missing",), ("lines", "x"), ("lines", "00"), ("lines", "0", "x")):
        assert field_type(order, path) is None


def test_a_near_miss_is_suggested():
    (finding,) = check(parse("$decision == 'Yes'"), lambda ref: TYPES[ref.name])
    assert "'yes'" in finding.help
