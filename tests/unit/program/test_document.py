"""Documents: YAML 1.2 scalars, exact places, bounded reading."""

from __future__ import annotations

import pytest

from nano_vm.program import document
from nano_vm.program.document import from_data, from_json, from_yaml


def codes(loaded):
    return [finding.code for finding in loaded.findings]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("12", 12), ("-7", -7), ("+3", 3), ("1.5", 1.5), ("2.0", 2), ("1e3", 1000), (".5", 0.5),
        ("0o17", "0o17"), ("017", "017"), ("0x1F", "0x1F"), ("1_000", "1_000"), ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"), ("2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"),
        ("'5'", "5"), ('"true"', "true"), ("1.2.3", "1.2.3"), ("=", "="), ("$x", "$x"), ("-", [None]),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_look_like(text, value):
    loaded = from_yaml(f"a: {text}\n" if text != "-" else "a:\n  -\n")
    assert codes(loaded) == []
    assert loaded.data == {"a": value}
    assert type(loaded.data["a"]) is type(value)


CASES = {
    "plain": ("a: one $x two\n", "one $x two"),
    "single quotes": ("a: 'it''s $x'\n", "it's $x"),
    "double quotes": ('a: "t\\tab \\u00e9 $x"\n', "t\tab é $x"),
    "literal block": ("a: |\n  one\n\n    two $x\n", "one\n\n  two $x\n"),
    "folded block": ("a: >-\n  one\n  two\n  $x\n", "one two $x"),
    "folded plain": ("a: one\n   two\n   $x\n", "one two $x"),
    "folded quotes": ('a: "one\n   two \\\n   $x"\n', "one two $x"),
    "wide characters": ("a: '😀 é $x'\n", "😀 é $x"),
    "windows lines": ("b: 1\r\na: |\r\n  one\r\n  $x\r\n", "one\n$x\n"),
    "flow": ("{b: 1, a: 'x $x'}", "x $x"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_offset_in_a_string_leads_to_its_place_in_the_file(name):
    text, value = CASES[name]
    loaded = from_yaml(text)
    assert loaded.data["a"] == value
    place, length = loaded.place("/a", offset=value.index("$x"), length=2)
    lines = text.replace("\r\n", "\n").split("\n")
    assert lines[place.line - 1][place.column - 1 :].startswith("$x")
    assert length == 2


def test_an_offset_in_a_json_string_leads_to_its_place_in_the_file():
    text = '{"b": [1, {"a": "\\u0041 \\ud83d\\ude00 \\n \\"q\\" $x"}]}'
    loaded = from_json(text)
    value = loaded.data["b"][1]["a"]
    place, _ = loaded.place("/b/1/a", offset=value.index("$x"), length=2)
    assert text[place.column - 1 :].startswith("$x")


def test_keys_and_values_have_places():
    loaded = from_yaml("steps:\n  - id: a\n    args: {x/y: 5}\n")
    assert loaded.place("/steps/0/args/x~1y")[0][1:3] == (3, 17)
    assert loaded.place("/steps/0/args/x~1y", key=True)[0][1:3] == (3, 12)
    assert loaded.place("/steps/0/nothing")[0][1:3] == (2, 5)


def test_aliases_are_values_and_share_nothing():
    loaded = from_yaml("a: &x {b: [1]}\nc: *x\n")
    assert loaded.data == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert loaded.data["a"]["b"] is not loaded.data["c"]["b"]


def test_aliases_that_multiply_are_refused():
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    assert codes(from_yaml(f"a0: &a0 [x]\n{levels}\n")) == ["DOCUMENT_ALIAS"]


@pytest.mark.parametrize("load", [from_yaml, from_json])
def test_deep_nesting_is_refused(load):
    assert codes(load("[" * 500 + "]" * 500)) == ["DOCUMENT_TOO_DEEP"]
    # libyaml and our own parser give up on far deeper ones, each in its own words
    assert codes(load("[" * 100_000))[0] in ("DOCUMENT_TOO_DEEP", "DOCUMENT_SYNTAX")


def test_deep_and_cyclic_data_is_refused():
    deep = current = []
    for _ in range(100_000):
        current.append([])
        current = current[0]
    assert codes(from_data(deep)) == ["DOCUMENT_TOO_DEEP"]
    cyclic = {}
    cyclic["a"] = [cyclic]
    assert codes(from_data(cyclic)) == ["DOCUMENT_ALIAS"]


def test_large_documents_are_refused(monkeypatch):
    monkeypatch.setattr(document, "BYTES_MAX", 10)
    assert codes(from_yaml(b"name: much too long")) == ["DOCUMENT_TOO_LARGE"]
    assert codes(from_json("[1, 2, 3, 4, 5, 6]")) == ["DOCUMENT_TOO_LARGE"]


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b"name: \xff", 1, 7),
        (b"a: 1\nb: \xe9t\xe9", 2, 4),
        ("a: 1".encode("utf-16"), 1, 1),
        (b"a: x\x07", 1, 5),
    ],
)
def test_text_that_is_not_utf8_is_refused_at_its_place(data, line, column):
    (finding,) = from_yaml(data).findings
    assert finding.code == "DOCUMENT_ENCODING"
    assert (finding.place.line, finding.place.column) == (line, column)


def test_a_byte_order_mark_does_not_move_columns():
    loaded = from_yaml(b"\xef\xbb\xbfa: 1\na: 2")
    assert loaded.data == {"a": 1}
    assert loaded.findings[0].place[1:3] == (2, 1)


def test_integers_beyond_what_json_holds_are_refused():
    assert codes(from_yaml("a: 9007199254740993")) == ["DOCUMENT_NUMBER"]
    assert codes(from_json("[9007199254740993, 1e999]")) == ["DOCUMENT_NUMBER"] * 2
    assert codes(from_data([2**53, float("nan")])) == ["DOCUMENT_NUMBER"] * 2


def test_the_pure_python_composer_reads_the_same(monkeypatch):
    from nano_vm.program import yaml_text

    texts = [text for text, _ in CASES.values()] + [
        "a: &x [1, 'b']\nc: *x\n",
        "a: !!str 5",
        "a: 1\n---\nb: 2",
    ]
    fast = [(from_yaml(text).data, codes(from_yaml(text))) for text in texts]
    monkeypatch.setattr(yaml_text, "_C_PARSER", None)
    assert [(from_yaml(text).data, codes(from_yaml(text))) for text in texts] == fast


@pytest.mark.parametrize("text", ["- " * 100_000, "? " * 100_000, "{a: " * 100_000, "a:\n" + "".join(
    " " * n + "a:\n" for n in range(1, 400))])  # fmt: skip
def test_no_way_of_nesting_reaches_the_stack(text):
    assert codes(from_yaml(text))[0] in ("DOCUMENT_TOO_DEEP", "DOCUMENT_SYNTAX")
    from_yaml(text).place("/a/a/a")
