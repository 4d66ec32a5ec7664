"""A guard that answers where it should refuse sends money the wrong way: values, refusals, places."""

import pytest

from nano_vm.expr.errors import ExprError
from nano_vm.expr.evaluator import bindings_lookup, compile_condition, evaluate
from nano_vm.expr.nodes import from_ast, to_ast
from nano_vm.expr.parser import parse
from nano_vm.expr.reference import UNSET

BINDINGS = {
    "yes": "yes",
    "five": 5,
    "half": 0.5,
    "on": True,
    "off": False,
    "none": None,
    "list": ["yes", 1, True, None, [1], {"k": 1.0}],
    "text": "say yes",
    "empty": "",
    "obj": {"a": {"b": [10, "x"]}, "k": "yes", "n": None, "ok": True, "num": 3},
    "one": 1,
    "unset": UNSET,
}
NAMES = list(BINDINGS)


def run(source):
    """Runs both evaluators, and the compiled form of the AST read back, and returns what they agree on."""
    node = parse(source)

    def resolve(ref):
        return NAMES.index(ref.name), ref.path

    outcomes = []
    for attempt in (
        lambda: compile_condition(node, resolve)(list(BINDINGS.values())),
        lambda: evaluate(node, bindings_lookup(BINDINGS)),
        lambda: compile_condition(from_ast(to_ast(node)), resolve)(list(BINDINGS.values())),
    ):
        try:
            outcomes.append(attempt())
        except ExprError as error:
            outcomes.append((error.code, error.offset, error.length, error.facts))
    first, second, third = outcomes
    assert first == second
    assert type(first) is type(second)
    if isinstance(first, bool):
        assert third is first
        return first
    assert third[0] == first[0]
    return first[:3]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # equality
        ("$yes == 'yes'", True),
        ("'yes' == $yes", True),
        ("$yes != 'yes'", False),
        ("$yes != 'no'", True),
        ("$obj.k == 'yes'", True),
        ("$obj.k != 'yes'", False),
        ("$obj.a.b.1 == 'x'", True),
        ("$five == 5.0", True),
        ("$five != 5", False),
        ("5 == $five", True),
        ("$half == 0.5", True),
        ("$on == true", True),
        ("$on != false", True),
        ("$none == null", True),
        ("$five == null", False),
        ("null != $five", True),
        ("$none == 'yes'", False),
        ("$none == 5", False),
        ("$none != 5", True),
        ("$list == ['yes', 1, true, null, [1.0], $obj]", False),
        ("[1, [2.0]] == [1.0, [2]]", True),
        ("[1] == [true]", False),
        ("[1] != ['1']", True),
        ("[1] == [1, 2]", False),
        ("$obj == $obj", True),
        ("$obj.a == $obj", False),
        # order
        ("$five < 6", True),
        ("$five <= 5", True),
        ("$five > 5", False),
        ("$five >= 5.0", True),
        ("6 > $five", True),
        ("5 < $five", False),
        ("5 <= $five", True),
        ("4 >= $five", False),
        ("$half < $five", True),
        ("'a' < 'b'", True),
        ("$yes > 'a'", True),
        ("$yes <= 'a'", False),
        ("$yes >= 'yes'", True),
        ("'B' < 'a'", True),
        ("'\\uffff' < '\\ud800\\udc00'", True),
        ("$five == $half", False),
        ("$five != $one", True),
        ("$five < $one", False),
        ("$five <= $half", False),
        ("$five > $half", True),
        ("$one >= $one", True),
        ("$yes < $text", False),
        # membership
        ("$yes in ['no', 'yes']", True),
        ("$yes not in ['no', 'yes']", False),
        ("$five in ['no', 5.0]", True),
        ("$five in ['no', '5']", False),
        ("$five not in ['no']", True),
        ("$on in [1]", False),
        ("1 in $list", True),
        ("true in $list", True),
        ("false in $list", False),
        ("null in $list", True),
        ("[1.0] in $list", True),
        ("$yes in []", False),
        ("$yes in [$yes]", True),
        ("$none in [null]", True),
        ("$none in ['a', 'b']", False),
        ("'yes' in $text", True),
        ("'no' in $text", False),
        ("'' in $empty", True),
        ("'no' not in $text", True),
        ("$text contains 'yes'", True),
        ("$list contains 'yes'", True),
        ("$list contains 'no'", False),
        ("['a'] contains $yes", False),
        # texts
        ("'yes' in '$text'", True),
        ("'$yes' == $yes", True),
        ("'$five' == '5'", True),
        ("'${five}0 $$' == '50 $'", True),
        ("'$on $none $half' == 'true null 0.5'", True),
        ("'$obj.a' == '{\"b\":[10,\"x\"]}'", True),
        # logic
        ("$on and not $off", True),
        ("$off or $on", True),
        ("$off or $off or $on", True),
        ("$on and $on and $off", False),
        ("$on and $on and $on and $on", True),
        ("$on and $on and $on and $off", False),
        ("$off or $off or $off", False),
        ("not ($on or $off)", False),
        ("$obj.ok", True),
        ("true", True),
        ("($five == 5) == $on", True),
        ("($five == 5) in [true]", True),
        # what is on the right is not looked at once the left decides
        ("$off and $five", False),
        ("$on or $five", True),
        ("$off and $unset == 1", False),
        ("$on or $obj.missing == 1", True),
        # null tests
        ("$unset is null", True),
        ("$unset is not null", False),
        ("$unset.a.b is null", True),
        ("$unset.a is not null", False),
        ("$none is null", True),
        ("$none is not null", False),
        ("$five is null", False),
        ("$five is not null", True),
        ("$obj.n is null", True),
        ("$obj.k is not null", True),
        ("$unset is null or $unset == 1", True),
        ("$unset is not null and $unset == 1", False),
    ],
)
def test_a_condition_has_its_value(source, expected):
    assert run(source) is expected


@pytest.mark.parametrize(
    ("source", "code", "offset", "length"),
    [
        ("$yes == 5", "TYPE_MISMATCH", 0, 9),
        ("5 == $yes", "TYPE_MISMATCH", 0, 9),
        ("$five == 'yes'", "TYPE_MISMATCH", 0, 14),
        ("$five != '5'", "TYPE_MISMATCH", 0, 12),
        ("$on == 1", "TYPE_MISMATCH", 0, 8),
        ("$one == true", "TYPE_MISMATCH", 0, 12),
        ("$on == 'true'", "TYPE_MISMATCH", 0, 13),
        ("$list == 'yes'", "TYPE_MISMATCH", 0, 14),
        ("$list == $obj", "TYPE_MISMATCH", 0, 13),
        ("$obj.k == 1", "TYPE_MISMATCH", 0, 11),
        ("$on < 1", "TYPE_MISMATCH", 0, 7),
        ("$on < $off", "TYPE_MISMATCH", 0, 10),
        ("$none < 1", "TYPE_MISMATCH", 0, 9),
        ("$five < '6'", "TYPE_MISMATCH", 0, 11),
        ("'6' > $five", "TYPE_MISMATCH", 0, 11),
        ("6 > $yes", "TYPE_MISMATCH", 0, 8),
        ("$list < $list", "TYPE_MISMATCH", 0, 13),
        ("5 in '5'", "TYPE_MISMATCH", 0, 8),
        ("null in $text", "TYPE_MISMATCH", 0, 13),
        ("'a' in $obj", "TYPE_MISMATCH", 0, 11),
        ("'a' in $none", "TYPE_MISMATCH", 0, 12),
        ("'a' not in $five", "TYPE_MISMATCH", 0, 16),
        ("$obj contains 'a'", "TYPE_MISMATCH", 0, 17),
        ("$text contains 5", "TYPE_MISMATCH", 0, 16),
        ("$five", "TYPE_MISMATCH", 0, 5),
        ("'yes'", "TYPE_MISMATCH", 0, 5),
        ("null", "TYPE_MISMATCH", 0, 4),
        ("[true]", "TYPE_MISMATCH", 0, 6),
        ("'$on'", "TYPE_MISMATCH", 0, 5),
        ("not $none", "TYPE_MISMATCH", 4, 5),
        ("$on and $five", "TYPE_MISMATCH", 8, 5),
        ("$on and $on and $on and $five", "TYPE_MISMATCH", 24, 5),
        ("$off or $none", "TYPE_MISMATCH", 8, 5),
        ("$one and $on", "TYPE_MISMATCH", 0, 4),
        ("$unset == 1", "UNASSIGNED_REFERENCE", 0, 6),
        ("1 == $unset", "UNASSIGNED_REFERENCE", 5, 6),
        ("$unset == 'a'", "UNASSIGNED_REFERENCE", 0, 6),
        ("$unset == null", "UNASSIGNED_REFERENCE", 0, 6),
        ("$unset.a != 'a'", "UNASSIGNED_REFERENCE", 0, 8),
        ("$unset.a.b > 1", "UNASSIGNED_REFERENCE", 0, 10),
        ("$unset in ['a']", "UNASSIGNED_REFERENCE", 0, 6),
        ("'a ${unset}' == 'a'", "UNASSIGNED_REFERENCE", 3, 8),
        ("not $unset", "UNASSIGNED_REFERENCE", 4, 6),
        ("$five in [$unset]", "UNASSIGNED_REFERENCE", 10, 6),
        ("$obj.missing == 1", "UNRESOLVED_REFERENCE", 0, 12),
        ("$obj.missing is null", "UNRESOLVED_REFERENCE", 0, 12),
        ("$obj.a.missing is not null", "UNRESOLVED_REFERENCE", 0, 14),
        ("$obj.n.x == 1", "UNRESOLVED_REFERENCE", 0, 8),
        ("$obj.a.b.2 == 1", "UNRESOLVED_REFERENCE", 0, 10),
        ("$yes.length > 1", "UNRESOLVED_REFERENCE", 0, 11),
        ("$list.01 == 1", "UNRESOLVED_REFERENCE", 0, 8),
        ("$five == 5 and '$obj.x' == 'a'", "UNRESOLVED_REFERENCE", 16, 6),
    ],
)
def test_a_condition_that_has_no_value_is_an_error_with_its_place(source, code, offset, length):
    assert run(source) == (code, offset, length)


def test_a_type_error_names_types_and_never_values():
    node = parse("$secret == 5")
    with pytest.raises(ExprError) as caught:
        evaluate(node, bindings_lookup({"secret": "hunter2"}))
    assert caught.value.facts == {"op": "==", "left": "string", "right": "number"}
    assert "hunter2" not in str(caught.value)


def test_text_from_a_value_is_never_read_as_a_reference():
    node = parse("'$answer' == '$$five'")
    assert evaluate(node, bindings_lookup({"answer": "$five", "five": 5})) is True


def test_resolve_is_asked_once_for_each_reference_and_gives_the_remaining_path():
    asked = []

    def resolve(ref):
        asked.append((ref.name, ref.path))
        return 0, ref.path[1:]

    condition = compile_condition(parse("$step.output.k > 1"), resolve)
    assert condition([{"k": 2}]) is True
    assert condition([{"k": 1}]) is False
    assert set(asked) == {("step", ("output", "k"))}


def test_evaluation_leaves_its_operands_alone():
    slots = [["a"], {"k": ["a"]}]
    condition = compile_condition(
        parse("$a == $b.k and 'a' in $a and '$b' contains 'k'"), lambda ref: ("ab".index(ref.name), ref.path)
    )
    assert condition(slots) is True
    assert condition(slots) is True
    assert slots == [["a"], {"k": ["a"]}]
