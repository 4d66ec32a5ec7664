"""Runs `spec/vectors/expr.json`: what any implementation of the condition language must agree on."""

import json
from pathlib import Path

import pytest

from nano_vm.expr.errors import ExprError
from nano_vm.expr.evaluator import bindings_lookup, compile_condition, evaluate
from nano_vm.expr.nodes import from_ast, to_ast
from nano_vm.expr.parser import parse
from nano_vm.expr.reference import UNSET, scan_text

VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/expr.json").read_text("utf-8"))


def cases(section):
    key = {"templates": "text", "templates_refused": "text", "asts_refused": "ast"}.get(section, "source")
    return pytest.mark.parametrize("vector", VECTORS[section], ids=lambda vector: ascii(vector[key])[:40])


def part(value):
    if isinstance(value, str):
        return value
    return {"name": value.name, "path": list(value.path), "offset": value.offset, "length": value.length}


@cases("templates")
def test_a_template_has_its_parts(vector):
    assert [part(value) for value in scan_text(vector["text"])] == vector["parts"]


@cases("templates_refused")
def test_a_malformed_template_is_refused(vector):
    with pytest.raises(ExprError) as caught:
        scan_text(vector["text"])
    assert (caught.value.code, caught.value.offset) == (vector["code"], vector["offset"])


@cases("parsed")
def test_a_source_has_its_ast(vector):
    assert to_ast(parse(vector["source"])) == vector["ast"]
    assert to_ast(from_ast(vector["ast"])) == vector["ast"]


@cases("refused")
def test_a_source_that_is_no_expression_is_refused(vector):
    with pytest.raises(ExprError) as caught:
        parse(vector["source"])
    assert (caught.value.code, caught.value.offset) == (vector["code"], vector["offset"])
    assert caught.value.length == vector.get("length", caught.value.length)


@cases("asts_refused")
def test_json_that_is_no_ast_is_refused(vector):
    with pytest.raises(ExprError) as caught:
        from_ast(vector["ast"])
    assert caught.value.code == vector["code"]


def both_evaluators(vector):
    node, bindings = parse(vector["source"]), vector["bindings"]
    names: list[str] = []

    def resolve(ref):
        if ref.name not in names:
            names.append(ref.name)
        return names.index(ref.name), ref.path

    condition = compile_condition(node, resolve)
    slots = [bindings.get(name, UNSET) for name in names]
    return [lambda: condition(slots), lambda: evaluate(node, bindings_lookup(bindings))]


@cases("evaluated")
def test_a_condition_has_its_result(vector):
    for run in both_evaluators(vector):
        assert run() is vector["result"]


@cases("evaluation_errors")
def test_a_condition_without_a_result_is_an_error(vector):
    for run in both_evaluators(vector):
        with pytest.raises(ExprError) as caught:
            run()
        assert (caught.value.code, caught.value.offset, caught.value.length) == (
            vector["code"],
            vector["offset"],
            vector["length"],
        )
