"""Compiled conditions against the reference evaluator, and both against an independent CEL implementation."""

import json
from itertools import pairwise

import cel
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nano_vm.expr.checker import check
from nano_vm.expr.errors import ExprError
from nano_vm.expr.evaluator import bindings_lookup, compile_condition, evaluate
from nano_vm.expr.nodes import (
    COMPARISONS,
    And,
    Compare,
    IsNull,
    ListOf,
    Lit,
    Not,
    Or,
    Text,
    from_ast,
    refs,
    to_ast,
    to_source,
)
from nano_vm.expr.parser import parse
from nano_vm.expr.reference import UNSET, Ref
from nano_vm.expr.types import Type, kind_of

NAMES = ["a", "b", "c", "d"]
PATHS = [(), ("k",), ("k", "0"), ("0",), ("k-k",), ("missing",)]

# Few distinct scalars, so that comparisons of equals, of near misses and of other types all happen often.
SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 0.5, 1e21, "", "a", "b", "ab", "1", "true", "é", "$a", "\U0001f600"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["k", "k-k", "0"]), inner, max_size=2)
    ),
    max_leaves=5,
)
BINDINGS = st.fixed_dictionaries({name: VALUES | st.just(UNSET) for name in NAMES})
REFS = st.builds(Ref, st.sampled_from(NAMES), st.sampled_from([(), (), (), *PATHS]))
TEXTS = st.lists(
    st.sampled_from(["a", " $5 ", "'\"\\\n", "\U0001f600\u0007"]) | REFS, min_size=1, max_size=4
).filter(
    lambda parts: (
        any(isinstance(part, Ref) for part in parts)
        and not any(isinstance(x, str) and isinstance(y, str) for x, y in pairwise(parts))
    )
)
OPERANDS = st.recursive(
    st.builds(Lit, SCALARS) | REFS | st.builds(Text, TEXTS.map(tuple)),
    lambda inner: st.builds(ListOf, st.lists(inner, max_size=3).map(tuple)),
    max_leaves=4,
)
COMPARES = st.builds(Compare, st.sampled_from(COMPARISONS), OPERANDS, OPERANDS)
LEAVES = COMPARES | COMPARES | st.builds(IsNull, REFS, st.booleans()) | REFS | st.builds(Lit, SCALARS)


def _grow(inner):
    several = st.lists(inner, min_size=2, max_size=4).map(tuple)
    return (
        st.builds(Not, inner)
        | st.builds(And, several)
        | st.builds(Or, several)
        | st.builds(Compare, st.sampled_from(["==", "!=", "in"]), inner, inner)
    )


NODES = st.recursive(LEAVES, _grow, max_leaves=6)


def outcome(attempt):
    try:
        return attempt()
    except ExprError as error:
        return error.code, error.facts


def resolve(ref):
    return NAMES.index(ref.name), ref.path


@given(NODES, BINDINGS)
@settings(max_examples=200)
def test_the_compiled_form_does_what_the_reference_evaluator_does(node, bindings):
    compiled = outcome(lambda: compile_condition(node, resolve)([bindings[name] for name in NAMES]))
    reference = outcome(lambda: evaluate(node, bindings_lookup(bindings)))
    assert compiled == reference
    assert type(compiled) is type(reference)
    if not isinstance(reference, bool):
        assert reference[0] in {"TYPE_MISMATCH", "UNASSIGNED_REFERENCE", "UNRESOLVED_REFERENCE"}


@given(NODES)
@settings(max_examples=200)
def test_source_and_ast_are_two_forms_of_one_thing(node):
    ast = to_ast(node)
    source = to_source(node)
    assume(len(source) <= 4096)
    assert to_ast(parse(source)) == ast
    assert to_ast(from_ast(json.loads(json.dumps(ast)))) == ast
    assert [ref[:2] for ref in refs(parse(source))] == [ref[:2] for ref in refs(node)]
    for ref in refs(parse(source)):
        written = source[ref.offset : ref.offset + ref.length]
        assert written in (str(ref), "${" + str(ref).removeprefix("$").strip("{}") + "}")


def types_of(bindings):
    """Types as narrow as can be; of what is inside a value they say nothing."""

    def type_of(ref):
        value = UNSET if ref.path else bindings[ref.name]
        if value is UNSET or value is None:
            return None
        scalar = isinstance(value, bool | int | float | str)
        return Type(kind_of(value), (value,) if scalar else None)

    return type_of


WHOLE = st.builds(Ref, st.sampled_from(NAMES), st.just(()))
FLAT = st.builds(Lit, SCALARS) | WHOLE | st.builds(Text, st.tuples(st.sampled_from(["a", " $5 "]), WHOLE))
COMPARABLE = FLAT | st.builds(ListOf, st.lists(FLAT, max_size=3).map(tuple))


@given(st.builds(Compare, st.sampled_from(COMPARISONS), COMPARABLE, COMPARABLE), BINDINGS)
@settings(max_examples=200)
def test_what_the_checker_calls_impossible_never_happens(node, bindings):
    """No finding may contradict the run."""
    result = outcome(lambda: evaluate(node, bindings_lookup(bindings)))
    codes = {found.code for found in check(node, types_of(bindings)) if found.severity == "error"}
    if "IMPOSSIBLE_COMPARISON" in codes and isinstance(result, bool):
        assert result is (node.op in ("!=", "not in"))
    if "TYPE_MISMATCH" in codes:
        assert not isinstance(result, bool)


@given(NODES, BINDINGS)
@settings(max_examples=50)
def test_the_checker_has_documented_findings_about_any_condition(node, bindings):
    codes = {found.code for found in check(node, types_of(bindings))}
    assert codes <= {"TYPE_MISMATCH", "IMPOSSIBLE_COMPARISON", "CONSTANT_CONDITION"}


# --- CEL ----------------------------------------------------------------------------------------------------

CEL_VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -1, 2, 0.5, 1.5, "", "a", "b", "ab", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["k", "m"]), inner, max_size=2)
    ),
    max_leaves=4,
)
CEL_BINDINGS = st.fixed_dictionaries(dict.fromkeys(NAMES, CEL_VALUES))
CEL_OPERANDS = st.builds(
    Lit, st.sampled_from([None, True, False, 0, 1, -1, 2, 0.5, "", "a", "ab", "é"])
) | st.builds(Ref, st.sampled_from(NAMES), st.just(()))
CEL_LISTS = st.builds(ListOf, st.lists(CEL_OPERANDS, max_size=3).map(tuple))
CEL_LEAVES = (
    st.builds(Compare, st.sampled_from(COMPARISONS), CEL_OPERANDS | CEL_LISTS, CEL_OPERANDS | CEL_LISTS)
    | st.builds(IsNull, st.builds(Ref, st.sampled_from(NAMES), st.just(())), st.booleans())
    | CEL_OPERANDS
)
CEL_NODES = st.recursive(CEL_LEAVES, _grow, max_leaves=5)


def to_cel(node, bindings):
    """Translates to CEL, where `in` is not for strings: the type of the container must be known."""
    match node:
        case Lit(value=value):
            return json.dumps(value, ensure_ascii=False)
        case Ref(name=name):
            return name
        case ListOf(items=items):
            return "[" + ", ".join(to_cel(item, bindings) for item in items) + "]"
        case IsNull(ref=ref, negated=negated):
            return f"({ref.name} {'!=' if negated else '=='} null)"
        case Not(operand=operand):
            return f"!({to_cel(operand, bindings)})"
        case And(operands=operands):
            return "(" + " && ".join(to_cel(operand, bindings) for operand in operands) + ")"
        case Or(operands=operands):
            return "(" + " || ".join(to_cel(operand, bindings) for operand in operands) + ")"
        case Compare(op="in" | "not in" | "contains" as op, left=left, right=right):
            container, item = (left, right) if op == "contains" else (right, left)
            sign = "!" if op == "not in" else ""
            if isinstance(_known(container, bindings), str):
                return f"{sign}({to_cel(container, bindings)}.contains({to_cel(item, bindings)}))"
            return f"{sign}({to_cel(item, bindings)} in {to_cel(container, bindings)})"
        case Compare(op=op, left=left, right=right):
            return f"({to_cel(left, bindings)} {op} {to_cel(right, bindings)})"


def _known(node, bindings):
    return bindings[node.name] if isinstance(node, Ref) else node.value if isinstance(node, Lit) else None


@given(CEL_NODES, CEL_BINDINGS)
@settings(max_examples=200)
def test_wherever_we_give_a_value_cel_gives_the_same(node, bindings):
    result = outcome(lambda: evaluate(node, bindings_lookup(bindings)))
    assume(isinstance(result, bool))
    assert cel.evaluate(to_cel(node, bindings), bindings) is result
