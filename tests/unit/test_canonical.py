"""What would break evidence: bytes another reader writes differently, a value that changes on the way."""

import enum
import json

import pytest

from nano_vm import canonical
from nano_vm.canonical import (
    DEPTH_MAX,
    INT_MAX,
    decode,
    decode_canonical,
    digest,
    digest_value,
    encode,
    is_canonical,
    is_simple,
    normalize,
)
from nano_vm.errors import InputError


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Mixed(str, enum.Enum):  # noqa: UP042 - the older spelling is what is being tested
    A = "a"


class Bare(enum.Enum):
    X = "x"


class Odd(str, enum.Enum):  # noqa: UP042
    A = "a", {}

    def __new__(cls, text, value):
        member = str.__new__(cls, text)
        member._value_ = value
        return member


class Text(str):
    __slots__ = ()


def nested(depth, leaf=None):
    value = leaf
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, b"null"),
        (True, b"true"),
        (0, b"0"),
        (INT_MAX, b"9007199254740991"),
        (-INT_MAX, b"-9007199254740991"),
        (-0.0, b"0"),
        (1.0, b"1"),
        (0.1, b"0.1"),
        (1e20, b"100000000000000000000"),
        (1e21, b"1e+21"),
        (1e-6, b"0.000001"),
        (1e-7, b"1e-7"),
        (123456.789e20, b"1.23456789e+25"),
        (5e-324, b"5e-324"),
        (float(2**53), b"9007199254740992"),
        ('é\u2028\x7f\x1f"\\/', '"é\u2028\x7f\\u001f\\"\\\\/"'.encode()),
        ((1, [2, ()]), b"[1,[2,[]]]"),
        ({"b": 1, "a": {"": 0}}, b'{"a":{"":0},"b":1}'),
        ({"\U0001f600": 1, "\ue000": 2}, '{"\U0001f600":1,"\ue000":2}'.encode()),
        (Colour.RED, b'"red"'),
        ([Level.LOW, Mixed.A], b'[1,"a"]'),
        ({Colour.RED: 1}, b'{"red":1}'),
    ],
)
def test_values_have_the_bytes_of_rfc_8785(value, expected):
    assert encode(value) == expected
    assert normalize(value) == (decode(expected), expected)


@pytest.mark.parametrize(
    ("value", "code", "path"),
    [
        (INT_MAX + 1, "VALUE_NUMBER", ""),
        ({"a": [0, -(2**53)]}, "VALUE_NUMBER", "/a/1"),
        ({"a": float("nan")}, "VALUE_NUMBER", "/a"),
        ([float("inf")], "VALUE_NUMBER", "/0"),
        ([float("-inf")], "VALUE_NUMBER", "/0"),
        ("\ud800", "VALUE_STRING", ""),
        ({"a/b": {"~": ["x", "\udc00"]}}, "VALUE_STRING", "/a~1b/~0/1"),
        ({"\ud800": 1}, "VALUE_STRING", ""),
        ({1: 2}, "VALUE_NOT_JSON", ""),
        ({"a": {Level.LOW: 2}}, "VALUE_NOT_JSON", "/a"),
        ({Text("a"): 1}, "VALUE_NOT_JSON", ""),
        (b"bytes", "VALUE_NOT_JSON", ""),
        ([{1, 2}], "VALUE_NOT_JSON", "/0"),
        ({"x": object()}, "VALUE_NOT_JSON", "/x"),
        ([Text("a")], "VALUE_NOT_JSON", "/0"),
        ([Bare.X], "VALUE_NOT_JSON", "/0"),
        ([Odd.A], "VALUE_NOT_JSON", "/0"),
        (1j, "VALUE_NOT_JSON", ""),
        (nested(DEPTH_MAX + 1), "VALUE_TOO_DEEP", "/0/0/0/0/0/0/0/0"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(value, code, path):
    for function in (encode, normalize, digest_value):
        with pytest.raises(InputError) as caught:
            function(value)
        assert caught.value.code == code
        assert caught.value.place.path == path


def test_a_value_nested_to_the_limit_survives_the_round_trip():
    value = nested(DEPTH_MAX, 1.5)
    assert decode(encode(value)) == value
    assert encode(nested(DEPTH_MAX, 1.0)) == encode(nested(DEPTH_MAX, 1))


def test_a_value_that_contains_itself_is_refused():
    value = {"a": []}
    value["a"].append(value)
    with pytest.raises(InputError) as caught:
        encode(value)
    assert caught.value.code == "VALUE_TOO_DEEP"


def test_the_error_for_a_key_with_a_surrogate_can_be_printed():
    with pytest.raises(InputError) as caught:
        encode({"\ud800": float("nan")})
    str(caught.value).encode()


def test_normalize_shares_nothing_mutable_with_its_argument():
    inner = {"n": [1]}
    value, data = normalize({"inner": inner})
    inner["n"].append(2)
    assert value == {"inner": {"n": [1]}}
    assert encode(value) == data


def test_normalize_gives_the_types_that_recovery_would_read():
    value, _ = normalize({"one": 1.0, "half": 0.5, "pair": (1, 2), "huge": 1e17, "red": Colour.RED})
    assert [type(value[key]) for key in ("one", "half", "pair", "huge", "red")] == [
        int,
        float,
        list,
        float,
        str,
    ]


@pytest.mark.parametrize("number", [2.0**53, -(2.0**53), 1e16, 123456789012345680000.0, 1e20, -1e20])
def test_large_floats_written_as_digits_are_read_back_as_floats(number):
    for value in (number, [number], {"a": {"b": [number, 1]}}):
        back = decode(encode(value))
        assert back == value
        assert encode(back) == encode(value)
    assert type(decode(encode(number))) is float


def test_sixteen_digits_inside_a_string_stay_a_string():
    assert decode(b'"4111111111111111"') == "4111111111111111"
    assert decode(b'{"card":"4111111111111111","n":9007199254740991}') == {
        "card": "4111111111111111",
        "n": INT_MAX,
    }


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "VALUE_SYNTAX"),
        (b"{", "VALUE_SYNTAX"),
        (b"01", "VALUE_SYNTAX"),
        (b"NaN", "VALUE_SYNTAX"),
        (b"[1,]", "VALUE_SYNTAX"),
        (b"1 2", "VALUE_SYNTAX"),
        (b"'a'", "VALUE_SYNTAX"),
        (b'"\xff"', "VALUE_SYNTAX"),
        (b'"\xed\xa0\x80"', "VALUE_SYNTAX"),
        (b'"\\ud800"', "VALUE_SYNTAX"),
        (b"1e999", "VALUE_NUMBER"),
        (b"1" * 400, "VALUE_NUMBER"),
        (b"9" * 309, "VALUE_NUMBER"),
        (b"[" + b"9" * 309 + b"]", "VALUE_NUMBER"),
        (b"[" * 100_000 + b"]" * 100_000, "VALUE_TOO_DEEP"),
    ],
)
def test_bytes_that_are_not_json_are_refused(data, code):
    with pytest.raises(InputError) as caught:
        decode(data)
    assert caught.value.code == code
    assert not is_canonical(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}',
        b" 1",
        b"1.0",
        b"9007199254740993",
        b'{"a":1,"a":2}',
        b'"\\u0041"',
        b"1e30",
        b"[1e22]",
    ],
)
def test_json_that_is_not_canonical_is_recognised(data):
    assert not is_canonical(data)
    assert not is_simple(data)
    with pytest.raises(InputError):
        decode_canonical(data)
    assert is_canonical(encode(decode(data)))


def test_digests_name_their_algorithm():
    assert digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_value({"b": 1.0, "a": 2}) == digest(b'{"a":2,"b":1}')


def test_a_value_beyond_its_limit_is_refused_with_both_sizes():
    assert canonical.check_size(b"12", 2, "the payload") == b"12"
    with pytest.raises(InputError) as caught:
        canonical.check_size(b"123", 2, "the payload")
    assert (caught.value.code, caught.value.facts) == ("VALUE_TOO_LARGE", {"size": 3, "limit": 2})


def test_encoding_does_not_change_its_argument():
    value = {"b": (1.0, Colour.RED), "a": [1e30]}
    encode(value)
    normalize(value)
    assert value == {"b": (1.0, Colour.RED), "a": [1e30]}
    assert type(value["b"]) is tuple
    assert json.loads(encode(value)) == {"a": [1e30], "b": [1, "red"]}
