"""Runs spec/vectors/compile.json: canonical bytes, hash, compiled form, and findings by code and place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nano_vm.canonical import digest, normalize
from nano_vm.compiler import check, compile_program, dump
from nano_vm.program import Program
from nano_vm.program.document import from_data

VECTORS = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "compile.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["sound"], ids=lambda vector: vector["name"])
def test_a_sound_program_has_these_bytes_and_this_compiled_form(vector):
    program = Program.from_dict(vector["program"])
    assert program.canonical.decode() == vector["canonical"]
    assert program.hash == digest(vector["canonical"].encode()) == vector["compiled"]["hash"]
    assert normalize(dump(compile_program(program), program))[0] == normalize(vector["compiled"])[0]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_a_refused_program_has_these_findings(vector):
    report = check(from_data(vector["program"]))
    assert not report.ok
    assert [[f.code, f.severity, f.place.path] for f in report.diagnostics] == vector["findings"]
