"""A construct dropped silently changes what a guard means: each is parsed exactly or refused by name."""

import pytest

from nano_vm.errors import CODES, Fault
from nano_vm.expr.errors import ExprError
from nano_vm.expr.limits import DEPTH_MAX, SOURCE_CHARS_MAX
from nano_vm.expr.nodes import from_ast, null_tests, ref_uses, refs, to_ast, to_source
from nano_vm.expr.parser import parse

X = ["ref", "x", []]


@pytest.mark.parametrize(
    ("source", "ast"),
    [
        ("$x == 'yes'", ["==", X, ["lit", "yes"]]),
        ('$x == "yes"', ["==", X, ["lit", "yes"]]),
        ("'yes' in '$x'", ["in", ["lit", "yes"], ["text", X]]),
        ("'${x}s' != 'a$$'", ["!=", ["text", X, "s"], ["lit", "a$"]]),
        ("'cost: $5'=='$'", ["==", ["lit", "cost: $5"], ["lit", "$"]]),
        ("$x", X),
        ("not not $x", ["not", ["not", X]]),
        ("$x or $x and not $x == 1", ["or", X, ["and", X, ["not", ["==", X, ["lit", 1]]]]]),
        ("($x or $x) and $x", ["and", ["or", X, X], X]),
        ("$x and $x and $x", ["and", X, X, X]),
        ("($x and $x) and $x", ["and", ["and", X, X], X]),
        ("$x not in [1, 'a', null, [true]]", None),
        ("[] == $x", ["==", ["list"], X]),
        ("$x contains -5", ["contains", X, ["lit", -5]]),
        ("$x is null", ["is null", X]),
        ("($x) is not None", ["is not null", X]),
        ("$x.a.0 <= 1.50", ["<=", ["ref", "x", ["a", "0"]], ["lit", 1.5]]),
        ("${x.a-b} >= -0.0", [">=", ["ref", "x", ["a-b"]], ["lit", 0]]),
        ("$x<1e3", ["<", X, ["lit", 1000]]),
        ("$x>1e21", [">", X, ["lit", 1e21]]),
        ("$x == True", ["==", X, ["lit", True]]),
        ("$x == False", ["==", X, ["lit", False]]),
        ("($x == 1) == true", ["==", ["==", X, ["lit", 1]], ["lit", True]]),
        (r"$x == '\\ \" \' \n \t \u00e9 \ud83d\ude00'", ["==", X, ["lit", "\\ \" ' \n \t é 😀"]]),
        ("$x ==\n\t'a\nb'", ["==", X, ["lit", "a\nb"]]),
        ("$x == '5' and'a' == $x", ["and", ["==", X, ["lit", "5"]], ["==", ["lit", "a"], X]]),
        ("$x<-5", ["<", X, ["lit", -5]]),
        ("$x == 9007199254740991", ["==", X, ["lit", 9007199254740991]]),
    ],
)
def test_an_expression_has_its_ast(source, ast):
    node = parse(source)
    if ast is not None:
        assert to_ast(node) == ast
    assert to_ast(parse(to_source(node))) == to_ast(node)
    assert to_ast(from_ast(to_ast(node))) == to_ast(node)


REFUSED = [
    # calls
    ("$x.lower() == 'a'", "EXPR_CALL", 2, 6),
    ("'A'.lower() == 'a'", "EXPR_CALL", 3, 6),
    ("($x).strip() == 'a'", "EXPR_CALL", 4, 6),
    ("[1].count(1) == 1", "EXPR_CALL", 3, 6),
    ("len($x) > 1", "EXPR_CALL", 0, 3),
    ("$x (1)", "EXPR_CALL", 3, 1),
    ("any($x)", "EXPR_CALL", 0, 3),
    # arithmetic
    *[
        (f"$x {op} 1 == 2", "EXPR_ARITHMETIC", 3, len(op))
        for op in ("+", "-", "*", "/", "%", "**", "//", "&", "|")
    ],
    *[(f"$x {op} 1 == 2", "EXPR_ARITHMETIC", 3, len(op)) for op in ("^", "<<", ">>", "++", "--")],
    ("$x -1", "EXPR_ARITHMETIC", 3, 1),
    ("$x.a-b == 1", "EXPR_ARITHMETIC", 4, 1),
    ("$x == -$x", "EXPR_ARITHMETIC", 6, 1),
    ("~$x == 1", "EXPR_ARITHMETIC", 0, 1),
    ("$x mod 2 == 0", "EXPR_ARITHMETIC", 3, 3),
    # indexing
    ("$x[0] == 1", "EXPR_INDEX", 2, 1),
    ("$x['a'] == 1", "EXPR_INDEX", 2, 1),
    ("$x[1:2] == 1", "EXPR_INDEX", 2, 1),
    ("'abc'[0] == 'a'", "EXPR_INDEX", 5, 1),
    # functions, assignments, string prefixes
    ("lambda a: a", "EXPR_LAMBDA", 0, 6),
    ("$x => 1", "EXPR_LAMBDA", 3, 2),
    ("$x -> 1", "EXPR_LAMBDA", 3, 2),
    ("function () {}", "EXPR_LAMBDA", 0, 8),
    ("$x = 1", "EXPR_ASSIGNMENT", 3, 1),
    ("x = 1", "EXPR_ASSIGNMENT", 0, 1),
    ("$x := 1", "EXPR_ASSIGNMENT", 3, 2),
    ("$x += 1", "EXPR_ASSIGNMENT", 3, 2),
    ("let y = 1", "EXPR_ASSIGNMENT", 0, 3),
    ("f'{x}' == 'a'", "EXPR_FSTRING", 0, 1),
    ("$x == rb'a'", "EXPR_FSTRING", 6, 2),
    ("$x == `a`", "EXPR_FSTRING", 6, 1),
    # other languages' operators
    *[
        (f"$x {op} 1", "EXPR_SYNTAX", 3, len(op))
        for op in ("===", "!==", "&&", "||", "<>", "=<", "<=>", "=~", "!~")
    ],
    *[(f"$x {op} 1", "EXPR_SYNTAX", 3, len(op)) for op in ("??", "?.", "≤", "≥", "≠", "?", ":", ";", "!")],
    ("!$x", "EXPR_SYNTAX", 0, 1),
    ("$x, 1", "EXPR_SYNTAX", 2, 1),
    ("{{ x }} == 1", "EXPR_SYNTAX", 0, 2),
    ("{% if x %}", "EXPR_SYNTAX", 0, 2),
    ("$x == {'a': 1}", "EXPR_SYNTAX", 6, 1),
    ("$x # note", "EXPR_SYNTAX", 3, 1),
    ("@x == 1", "EXPR_SYNTAX", 0, 1),
    ("$x == \\\n1", "EXPR_SYNTAX", 6, 1),
    ("if $x", "EXPR_SYNTAX", 0, 2),
    ("[y for y in $x]", "EXPR_WORD", 1, 1),
    ("$x == 1 if $x", "EXPR_WORD", 8, 2),
    ("$x\u00a0== 1", "EXPR_SYNTAX", 2, 1),
    ("$x == 1 \u200b", "EXPR_SYNTAX", 8, 1),
    ("$x == “a”", "EXPR_STRING", 6, 1),
    # words
    ("$x == yes", "EXPR_WORD", 6, 3),
    ("x == 'yes'", "EXPR_WORD", 0, 1),
    ("x.y == 1", "EXPR_WORD", 0, 1),
    ("$x equals 1", "EXPR_WORD", 3, 6),
    ("$x AND $x", "EXPR_WORD", 3, 3),
    ("$x IN [1]", "EXPR_WORD", 3, 2),
    ("NOT $x", "EXPR_WORD", 0, 3),
    ("$x == TRUE", "EXPR_WORD", 6, 4),
    ("$x == undefined", "EXPR_WORD", 6, 9),
    ("$x matches 'a.*'", "EXPR_WORD", 3, 7),
    ("$x == straße", "EXPR_WORD", 6, 6),
    ("$x is NULL", "EXPR_SYNTAX", 3, 2),
    ("$x is true", "EXPR_SYNTAX", 3, 2),
    ("$x not contains 1", "EXPR_SYNTAX", 3, 3),
    # grammar
    ("1 < $x < 3", "EXPR_CHAIN", 7, 1),
    ("$x == 1 == true", "EXPR_CHAIN", 8, 2),
    ("$x in [1] in [2]", "EXPR_CHAIN", 10, 2),
    ("$x == 1 is null", "EXPR_CHAIN", 8, 2),
    ("$x is null == true", "EXPR_CHAIN", 11, 2),
    ("'a' is null", "EXPR_SYNTAX", 0, 3),
    ("$x == not $x", "EXPR_SYNTAX", 6, 3),
    ("", "EXPR_SYNTAX", 0, 0),
    ("  \n", "EXPR_SYNTAX", 3, 0),
    ("$x ==", "EXPR_SYNTAX", 5, 0),
    ("$x and", "EXPR_SYNTAX", 6, 0),
    ("and $x", "EXPR_SYNTAX", 0, 3),
    ("== 1", "EXPR_SYNTAX", 0, 2),
    ("$x $x", "EXPR_SYNTAX", 3, 2),
    ("$x 'a'", "EXPR_SYNTAX", 3, 3),
    ("$x == '''a'''", "EXPR_SYNTAX", 8, 3),
    ("()", "EXPR_SYNTAX", 0, 1),
    ("($x", "EXPR_SYNTAX", 0, 1),
    ("$x)", "EXPR_SYNTAX", 2, 1),
    ("[1, 2", "EXPR_SYNTAX", 0, 1),
    ("$x in [1,]", "EXPR_SYNTAX", 9, 1),
    ("$x in [1 2]", "EXPR_SYNTAX", 9, 1),
    ("$x in (1, 2)", "EXPR_SYNTAX", 8, 1),
    ("[$x == 1]", "EXPR_SYNTAX", 4, 2),
    ("$x. == 1", "EXPR_SYNTAX", 2, 1),
    ("$x .y == 1", "EXPR_SYNTAX", 3, 1),
    # references, strings, numbers
    ("$5 == 1", "EXPR_REFERENCE", 0, 1),
    ("$x == $", "EXPR_REFERENCE", 6, 1),
    ("$$x == 1", "EXPR_REFERENCE", 0, 2),
    ("${x == 1", "EXPR_REFERENCE", 0, 4),
    ("'a ${' == 1", "EXPR_REFERENCE", 3, 3),
    ("$x == 'a", "EXPR_STRING", 6, 1),
    ("$x == 'a\\'", "EXPR_STRING", 6, 1),
    (r"$x == 'a\q'", "EXPR_STRING", 8, 2),
    (r"$x == '\$x'", "EXPR_STRING", 7, 2),
    (r"$x == '\u12'", "EXPR_STRING", 7, 2),
    (r"$x == '\ud83d'", "EXPR_STRING", 7, 6),
    (r"$x == '\ud83d\u0041'", "EXPR_STRING", 7, None),
    (r"$x == '\ude00\ud83d'", "EXPR_STRING", 7, 6),
    ("$x == '\ud800'", "EXPR_STRING", 7, 1),
    *[
        (f"$x == {n}", "EXPR_NUMBER", 6, len(n))
        for n in ("01", "1_000", ".5", "-.5", "1.", "0x1f", "1e", "5px")
    ],
    *[
        (f"$x == {n}", "EXPR_NUMBER", 6, len(n))
        for n in ("9007199254740992", "1e999", "NaN", "Infinity", "1.2.3")
    ],
]


@pytest.mark.parametrize(("source", "code", "offset", "length"), REFUSED)
def test_what_is_not_in_the_language_is_refused_by_name(source, code, offset, length):
    with pytest.raises(ExprError) as caught:
        parse(source)
    error = caught.value
    assert (error.code, error.offset) == (code, offset)
    if length is not None:
        assert error.length == length
    assert CODES[error.code].fault is Fault.AUTHOR
    assert error.exit_code == 3


@pytest.mark.parametrize(
    "source", [case[0] for case in REFUSED if case[1] not in ("EXPR_STRING", "EXPR_SYNTAX")]
)
def test_every_named_refusal_says_what_to_write_instead(source):
    with pytest.raises(ExprError) as caught:
        parse(source)
    assert caught.value.help


def test_the_source_is_bounded():
    parse("$x == '" + "a" * (SOURCE_CHARS_MAX - 8) + "'")
    with pytest.raises(ExprError) as caught:
        parse("$x == '" + "a" * (SOURCE_CHARS_MAX - 7) + "'")
    assert (caught.value.code, caught.value.offset) == ("EXPR_TOO_LONG", SOURCE_CHARS_MAX)


@pytest.mark.parametrize("opening", ["(", "[", "not ", "([", "not("])
def test_the_depth_is_bounded(opening):
    with pytest.raises(ExprError) as caught:
        parse(opening * 500 + "$x")
    assert caught.value.code == "EXPR_TOO_DEEP"


def test_the_depth_counts_levels_of_the_tree():
    def nested(levels):
        source = "$x"
        for _ in range(levels - 1):
            source = f"not {source}"
        return source

    parse(nested(DEPTH_MAX))
    with pytest.raises(ExprError) as caught:
        parse(nested(DEPTH_MAX + 1))
    assert caught.value.code == "EXPR_TOO_DEEP"
    with pytest.raises(ExprError) as caught:
        parse("(" * 40 + "$x" + " and $x or $x)" * 40)
    assert caught.value.code == "EXPR_TOO_DEEP"


def test_what_is_not_text_is_refused():
    for source in (None, 5, ["=="], b"$x"):
        with pytest.raises(ExprError) as caught:
            parse(source)
        assert caught.value.code == "EXPR_SYNTAX"


def test_references_are_listed_in_source_order_with_their_null_tests():
    node = parse("$a is null or '$b ${c.d}' == $a and [$e, $f.0] contains 1 and $g is not null")
    assert [(ref.name, ref.path, test) for ref, test in ref_uses(node)] == [
        ("a", (), True),
        ("b", (), False),
        ("c", ("d",), False),
        ("a", (), False),
        ("e", (), False),
        ("f", ("0",), False),
        ("g", (), True),
    ]
    assert [ref.offset for ref in refs(node)] == [0, 15, 18, 29, 37, 41, 62]
    assert [ref.name for ref in null_tests(node)] == ["a", "g"]


@pytest.mark.parametrize(
    ("ast", "code"),
    [
        (None, "EXPR_AST"),
        ([], "EXPR_AST"),
        ("$x", "EXPR_AST"),
        ([["lit", 1]], "EXPR_AST"),
        (["lit"], "EXPR_AST"),
        (["lit", 1, 2], "EXPR_AST"),
        (["lit", [1]], "EXPR_AST"),
        (["lit", {"a": 1}], "EXPR_AST"),
        (["lit", 2**53], "EXPR_AST"),
        (["lit", float("nan")], "EXPR_AST"),
        (["lit", float("inf")], "EXPR_AST"),
        (["lit", "\ud800"], "EXPR_AST"),
        (["ref", "x"], "EXPR_AST"),
        (["ref", "x y", []], "EXPR_AST"),
        (["ref", "x\n", []], "EXPR_AST"),
        (["ref", "", []], "EXPR_AST"),
        (["ref", "x", ["a.b"]], "EXPR_AST"),
        (["ref", "x", [0]], "EXPR_AST"),
        (["ref", "x", [""]], "EXPR_AST"),
        (["ref", "x", "ab"], "EXPR_AST"),
        (["text"], "EXPR_AST"),
        (["text", "a"], "EXPR_AST"),
        (["text", "", X], "EXPR_AST"),
        (["text", "a", "b", X], "EXPR_AST"),
        (["text", X, ["lit", "a"]], "EXPR_AST"),
        (["text", X, []], "EXPR_AST"),
        (["text", ["ref"]], "EXPR_AST"),
        (["==", X], "EXPR_AST"),
        (["and", X], "EXPR_AST"),
        (["not"], "EXPR_AST"),
        (["is null", ["lit", 1]], "EXPR_AST"),
        (["call", "eval", X], "EXPR_AST"),
        (["__class__", X, X], "EXPR_AST"),
        (["lit", "a" * (SOURCE_CHARS_MAX + 1)], "EXPR_TOO_LONG"),
        (["list", *([["lit", 1]] * 5000)], "EXPR_TOO_LONG"),
        (["text", *([X] * 5000)], "EXPR_TOO_LONG"),
    ],
)
def test_a_hostile_ast_is_a_typed_error(ast, code):
    with pytest.raises(ExprError) as caught:
        from_ast(ast)
    assert caught.value.code == code


def test_an_ast_that_contains_itself_is_refused():
    ast = ["not"]
    ast.append(ast)
    with pytest.raises(ExprError) as caught:
        from_ast(ast)
    assert caught.value.code == "EXPR_TOO_DEEP"
