"""Templates: types are kept, text is one pass, missing values are errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano_vm.expr.errors import ExprError
from nano_vm.expr.reference import UNSET
from nano_vm.program.template import compile_template

NAMES = {"x": 0, "y": 1, "unset": 2}


def render(template, *values):
    compiled = compile_template(template, lambda ref: (NAMES[ref.name], ref.path))
    return compiled.render([*values, *[UNSET] * (3 - len(values))])


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "s", [1], {"a": [None]}])
def test_a_template_that_is_one_reference_keeps_the_type(value):
    assert render("$x", value) == value
    assert type(render("$x", value)) is type(value)
    assert render({"a": "$x", "b": [1, "${x}"]}, value) == {"a": value, "b": [1, value]}


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("Dear $x.", ["Ann"], "Dear Ann."),
        ("${x}s", [5], "5s"),
        ("$x$y", [True, None], "truenull"),
        ("v: $x", [{"b": 1, "a": [1.0, "é"]}], 'v: {"a":[1,"é"],"b":1}'),
        ("$$x costs $5 $", [], "$x costs $5 $"),
        ("$x.a.0", [{"a": ["deep"]}], "deep"),
        ("<$x.a>", [{"a": "in"}], "<in>"),
        ({"$x": "$x"}, ["v"], {"$x": "v"}),
    ],
)
def test_text_and_data_are_rendered(template, values, expected):
    assert render(template, *values) == expected


@given(st.text(alphabet="$x{}.y ", max_size=12))
def test_a_substituted_value_is_never_scanned_again(value):
    assert render("<$x>", value, "SECRET") == f"<{value}>"
    assert render({"a": ["$x"], "b": "$x $x"}, value, "SECRET") == {"a": [value], "b": f"{value} {value}"}


@pytest.mark.parametrize(
    "template", ["$unset", "a $unset", {"a": "$unset"}, [{"a": ["$unset.b"]}], "$unset.b.c"]
)
def test_an_unassigned_value_is_an_error(template):
    with pytest.raises(ExprError) as caught:
        render(template)
    assert caught.value.code == "UNASSIGNED_REFERENCE"


@pytest.mark.parametrize(
    ("template", "value"), [("$x.a", {}), ("$x.a", "s"), ("$x.1", [0]), ("$x.a.b", {"a": 1})]
)
def test_a_path_that_leads_nowhere_is_an_error(template, value):
    with pytest.raises(ExprError) as caught:
        render(template, value)
    assert caught.value.code == "UNRESOLVED_REFERENCE"


def test_constants_and_references_are_known_beforehand():
    resolve = lambda ref: (NAMES[ref.name], ref.path)  # noqa: E731
    constant = compile_template({"a": [1, "$$5"]}, resolve)
    assert constant.constant
    assert constant.refs == ()
    moving = compile_template({"a": "$y.b", "c": ["t $x"]}, resolve)
    assert not moving.constant
    assert moving.refs == ((1, ("b",)), (0, ()))


def test_rendering_does_not_change_the_template():
    template = compile_template({"a": "$x", "b": {"c": "$x"}}, lambda ref: (0, ref.path))
    first = template.render([1])
    first["a"], first["b"]["c"] = "changed", "changed"
    assert template.render([2]) == {"a": 2, "b": {"c": 2}}
