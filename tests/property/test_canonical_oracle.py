"""The independent implementation `rfc8785` is the oracle: both paths must give its bytes."""

import math
import struct

import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nano_vm.canonical import INT_MAX, decode, decode_canonical, encode, is_canonical, is_simple, normalize
from nano_vm.errors import InputError

# Astral characters beside U+E000-U+FFFF are where code point order and UTF-16 order part.
TRICKY = st.sampled_from(
    ["\ue000", "\uffff", "\ud7ff", "\U00010000", "\U0010ffff", "a", "", "\x00", "\x7f", "é"]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.lists(TRICKY, max_size=4).map(
    "".join
)
BITS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
FLOATS = (
    st.floats(allow_nan=False, allow_infinity=False)
    | BITS.filter(math.isfinite)
    | st.builds(lambda m, e: float(f"{m}e{e}"), st.integers(-(10**17), 10**17), st.integers(-40, 40))
)
SCALARS = st.none() | st.booleans() | st.integers(-INT_MAX, INT_MAX) | FLOATS | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5) | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=200)
@example({"\ue000": 1, "\U00010000": 2})
@example({"a": {"\uffff": 0.001, "\U0010ffff": 999999999999999.9}})
def test_bytes_equal_those_of_the_oracle(value):
    assert encode(value) == rfc8785.dumps(value)


@given(FLOATS)
@settings(max_examples=200)
@example(1e-3)
@example(math.nextafter(1e-3, 1))
@example(math.nextafter(1e15, 0))
@example(999999999999999.9)
@example(9007199254740994.0)
@example(1e21)
@example(math.nextafter(1e21, 0))
@example(math.nextafter(1e-6, 0))
def test_every_float_is_written_as_ecmascript_does(number):
    assert encode(number) == rfc8785.dumps(number)
    assert encode({"n": [number]}) == rfc8785.dumps({"n": [number]})


@given(VALUES)
@settings(max_examples=200)
def test_what_was_encoded_is_read_back_and_encodes_to_the_same_bytes(value):
    data = encode(value)
    assert encode(decode(data)) == data
    assert is_canonical(data)
    assert repr(decode_canonical(data)) == repr(decode(data))


@given(
    VALUES,
    st.sampled_from([b" %b", b"[%b]", b'{"a":%b,"a":%b}', b'{"b":%b,"a":%b}', b"%b0", b"%be1", b"%b.5"]),
)
@settings(max_examples=300)
def test_what_is_decoded_as_canonical_is(value, form):
    data = encode(value)
    data = form.replace(b"%b", data)
    try:
        found = decode_canonical(data)
    except InputError:
        assert not is_canonical(data)
        assert not is_simple(data)
    else:
        assert is_canonical(data)
        assert repr(found) == repr(decode(data))


@given(VALUES)
@settings(max_examples=200)
def test_normalize_agrees_with_encode_then_decode(value):
    normal, data = normalize(value)
    assert data == encode(value)
    back = decode(data)
    assert normal == back
    assert repr(normal) == repr(back)  # types too: 1 and 1.0 are equal


@given(st.integers(0, 128), SCALARS, st.booleans())
@settings(max_examples=100)
def test_nesting_up_to_the_limit_is_encoded(depth, leaf, objects):
    value = leaf
    for _ in range(depth):
        value = {"k": value} if objects else [value]
    assert encode(value) == rfc8785.dumps(value)


@given(st.binary(max_size=40))
@settings(max_examples=200)
def test_arbitrary_bytes_are_a_value_or_a_documented_error(data):
    code = None
    try:
        decode(data)
    except InputError as error:
        code = error.code
    assert code in {None, "VALUE_SYNTAX", "VALUE_NUMBER", "VALUE_TOO_DEEP"}
