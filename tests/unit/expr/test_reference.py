"""A reference that is misread would put the wrong value where the author did not write it."""

import copy
import pickle

import pytest

from nano_vm.expr.errors import ExprError
from nano_vm.expr.reference import UNSET, Ref, scan_text, walk


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("plain", ("plain",)),
        ("$key", (Ref("key", (), 0, 4),)),
        ("$key.field", (Ref("key", ("field",), 0, 10),)),
        ("$step.output.0", (Ref("step", ("output", "0"), 0, 14),)),
        ("a ${key.field}s", ("a ", Ref("key", ("field",), 2, 12), "s")),
        ("${key.a-b}", (Ref("key", ("a-b",), 0, 10),)),
        ("$key.a-b", (Ref("key", ("a",), 0, 6), "-b")),
        ("Pay $key.", ("Pay ", Ref("key", (), 4, 4), ".")),
        ("$key..x", (Ref("key", (), 0, 4), "..x")),
        ("$5 and $", ("$5 and $",)),
        ("$$key", ("$key",)),
        ("$$$key", ("$", Ref("key", (), 2, 4))),
        ("a$$b$$", ("a$b$",)),
        ("$a$b", (Ref("a", (), 0, 2), Ref("b", (), 2, 2))),
        ("é$a", ("é", Ref("a", (), 1, 2))),
        ("$é", ("$é",)),
        ("$$${a}", ("$", Ref("a", (), 2, 4))),
        ("$${a}", ("${a}",)),
    ],
)
def test_text_is_split_into_literals_and_references(text, parts):
    assert scan_text(text) == parts


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("${", 0),
        ("a ${}", 2),
        ("${a", 0),
        ("${a b}", 0),
        ("x${a.}", 1),
        ("${5}", 0),
        ("${a.b!}", 0),
        ("${a${b}}", 0),
    ],
)
def test_a_malformed_brace_is_an_error_with_its_offset(text, offset):
    with pytest.raises(ExprError) as caught:
        scan_text(text)
    assert (caught.value.code, caught.value.offset) == ("EXPR_REFERENCE", offset)
    assert 0 < caught.value.length <= len(text) - offset


VALUE = {"a": {"b": [10, {"c": None}]}, "0": "zero", "x-y": 1}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((), VALUE),
        (("a", "b", "0"), 10),
        (("a", "b", "1", "c"), None),
        (("0",), "zero"),
        (("x-y",), 1),
    ],
)
def test_a_path_leads_to_keys_and_indexes(path, expected):
    assert walk(VALUE, path) == expected


@pytest.mark.parametrize(
    ("path", "segment"),
    [
        (("missing",), 0),
        (("a", "b", "2"), 2),
        (("a", "b", "00"), 2),
        (("a", "b", "01"), 2),
        (("a", "b", "-1"), 2),
        (("a", "b", "c"), 2),
        (("a", "b", "9" * 5000), 2),
        (("a", "b", "0", "x"), 3),
        (("a", "b", "1", "c", "d"), 4),
        (("0", "0"), 1),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error_that_names_the_segment(path, segment):
    with pytest.raises(ExprError) as caught:
        walk(VALUE, path)
    assert caught.value.code == "UNRESOLVED_REFERENCE"
    assert caught.value.facts["segment"] == segment


def test_unset_stays_one_object_through_copies_and_pickles():
    assert copy.deepcopy([UNSET])[0] is UNSET
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert repr(UNSET) == "UNSET"


def test_an_error_keeps_its_place_through_pickling():
    with pytest.raises(ExprError) as caught:
        scan_text("abc ${")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.code, error.offset, error.length, error.help) == (
        caught.value.code,
        4,
        caught.value.length,
        caught.value.help,
    )
