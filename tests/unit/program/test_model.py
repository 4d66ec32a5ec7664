"""Programs: identity, immutability, and the same meaning from every kind of source."""

from __future__ import annotations

import json
import pickle

import pytest

from nano_vm.canonical import digest
from nano_vm.errors import ProgramError
from nano_vm.program import Program

DATA = {
    "name": "p",
    "steps": [
        {"id": "a", "type": "tool", "tool": "t", "args": {"n": 1.0}},
        {"id": "c", "type": "condition", "condition": "$a.output  ==  1", "then": "continue"},
        {
            "id": "w",
            "type": "parallel",
            "parallel_steps": [{"id": "e", "type": "wait", "event": "x", "accept": "$event.a"}],
        },
    ],
}
YAML = """
# a comment
name: p
steps:
  - id: a
    type: tool
    tool: t
    args: {n: 1}
  - {id: c, type: condition, condition: "$a.output  ==  1", then: continue}
  - id: w
    type: parallel
    parallel_steps: [{id: e, type: wait, event: x, accept: $event.a}]
"""


def test_dict_yaml_and_json_of_one_program_have_one_hash(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(YAML)
    jfile = tmp_path / "p.json"
    jfile.write_text("\ufeff" + json.dumps(DATA))
    programs = [
        Program.from_dict(DATA),
        Program.from_yaml(YAML),
        Program.from_json(json.dumps(DATA)),
        Program.from_file(file),
        Program.from_file(str(jfile)),
    ]
    assert len({program.hash for program in programs}) == 1
    assert len({program.canonical for program in programs}) == 1


def test_the_hash_covers_author_fields_and_expression_trees():
    program = Program.from_dict(DATA)
    body = json.loads(program.canonical)
    assert body["program"] == {**DATA, "version": "1.0"}
    assert body["ast"] == {
        "c": {"condition": ["==", ["ref", "a", ["output"]], ["lit", 1]]},
        "e": {"accept": ["ref", "event", ["a"]]},
    }
    assert program.hash == digest(program.canonical)


def test_any_change_changes_the_hash():
    other = json.loads(json.dumps(DATA))
    other["steps"][0]["args"]["n"] = 2
    assert Program.from_dict(other).hash != Program.from_dict(DATA).hash


def test_a_program_shares_nothing_with_its_source_and_cannot_be_changed():
    data = json.loads(json.dumps(DATA))
    program = Program.from_dict(data)
    before = program.hash
    data["steps"][0]["tool"] = "other"
    program.to_dict()["steps"].clear()
    assert Program.from_dict(program.to_dict()).hash == before
    with pytest.raises(AttributeError):
        program.name = "x"  # type: ignore[misc]


def test_name_and_version_have_defaults():
    program = Program.from_dict({"steps": DATA["steps"]})
    assert (program.name, program.version) == ("unnamed", "1.0")


def test_a_program_survives_pickling():
    program = Program.from_dict(DATA)
    assert pickle.loads(pickle.dumps(program)) == program


def test_all_structural_findings_come_in_one_error_that_survives_pickling():
    with pytest.raises(ProgramError) as caught:
        Program.from_dict({"nam": "x", "steps": [{"id": "9", "type": "tool"}]})
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.code == "INVALID_PROGRAM"
    assert error.exit_code == 3
    assert [finding.code for finding in error.diagnostics] == [
        "UNKNOWN_FIELD",
        "MISSING_FIELD",
        "BAD_IDENTIFIER",
    ]
    assert error.diagnostics[0].place.path == "/nam"


def test_a_single_finding_gives_its_own_code():
    with pytest.raises(ProgramError) as caught:
        Program.from_dict({})
    assert caught.value.code == "MISSING_FIELD"
    assert caught.value.help


@pytest.mark.parametrize("name", ["absent.yaml", "", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path):
    path = str(tmp_path / name) if name != "a\0b" else name
    with pytest.raises(ProgramError) as caught:
        Program.from_file(path)
    assert caught.value.code == "PROGRAM_UNREADABLE"
    assert caught.value.place.file == path
    assert caught.value.exit_code == 2


def test_the_place_in_a_dict_is_a_json_pointer():
    with pytest.raises(ProgramError) as caught:
        Program.from_dict({"steps": [{"id": "a", "type": "tool", "tool": "t", "args": {"x/y": {1, 2}}}]})
    assert caught.value.code == "DOCUMENT_VALUE"
    assert caught.value.diagnostics[0].place.path == "/steps/0/args/x~1y"
