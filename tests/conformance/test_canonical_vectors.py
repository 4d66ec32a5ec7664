"""Runs `spec/vectors/canonical.json`: what any implementation in any language must agree on."""

import json
import struct
from pathlib import Path

import pytest

from nano_vm.canonical import decode, encode, is_canonical, normalize
from nano_vm.errors import InputError

VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/canonical.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda vector: vector["utf8"][:30])
def test_a_value_has_its_bytes(vector):
    data = encode(vector["value"])
    assert (data.decode(), data.hex()) == (vector["utf8"], vector["hex"])
    assert encode(decode(data)) == data
    assert normalize(vector["value"])[1] == data
    assert is_canonical(data)


@pytest.mark.parametrize("vector", VECTORS["texts"], ids=lambda vector: vector["json"])
def test_the_value_of_a_text_has_its_bytes(vector):
    assert encode(json.loads(vector["json"])).decode() == vector["utf8"]


@pytest.mark.parametrize("vector", VECTORS["numbers"], ids=lambda vector: vector["ieee754"])
def test_a_double_has_its_bytes(vector):
    (number,) = struct.unpack(">d", bytes.fromhex(vector["ieee754"]))
    assert encode(number).decode() == vector["utf8"]
    assert encode([number]).decode() == f"[{vector['utf8']}]"


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["json"][:30])
def test_a_value_without_canonical_bytes_is_refused(vector):
    with pytest.raises(InputError) as caught:
        encode(json.loads(vector["json"]))
    assert (caught.value.code, caught.value.place.path) == (vector["code"], vector["path"])


@pytest.mark.parametrize("vector", VECTORS["unreadable"], ids=lambda vector: vector["hex"][:30])
def test_bytes_that_are_no_json_are_refused(vector):
    with pytest.raises(InputError) as caught:
        decode(bytes.fromhex(vector["hex"]))
    assert caught.value.code == vector["code"]


@pytest.mark.parametrize("vector", VECTORS["not_canonical"], ids=lambda vector: vector["json"])
def test_json_that_is_not_canonical_is_recognised(vector):
    assert not is_canonical(vector["json"].encode())
