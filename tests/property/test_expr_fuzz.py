"""Whatever text or JSON arrives, the outcome is a tree or a documented error inside the source."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nano_vm.errors import CODES
from nano_vm.expr.errors import ExprError
from nano_vm.expr.limits import SOURCE_CHARS_MAX
from nano_vm.expr.nodes import from_ast, to_ast, to_source
from nano_vm.expr.parser import parse
from nano_vm.expr.reference import scan_text

PIECES = [
    *(
        "$x",
        "${a.b-c}",
        "$a.0",
        "'yes'",
        '"$x $$"',
        "5",
        "-1",
        "0.5",
        "1e3",
        "true",
        "null",
        "None",
        "yes",
        "lambda",
    ),
    *(
        "and",
        "or",
        "not",
        "in",
        "not in",
        "contains",
        "is null",
        "is not null",
        "==",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        ",",
        "=",
        "&&",
        "||",
        "!",
        "%",
        "+",
        "-",
        "*",
        "/",
        ".",
        ".lower()",
        "f'",
        "`",
        "{{",
        "}}",
    ),
    *(
        "\\",
        "'",
        '"',
        "${",
        "$",
        "$5",
        "#",
        ";",
        "?",
        ":",
        "\u00a0",
        "“",
        "é",
        "\U0001f600",
        "\ud800",
        "\x00",
        "\n",
    ),
]
SOURCES = (
    st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)
    | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
    | st.text(max_size=30)
)
VALID = "$a.b == 'yes' and not ($n >= -1.5 or 'x' in '${t.u}s') or $z is not null"
MUTATIONS = st.lists(
    st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 3), st.sampled_from(PIECES)),
    min_size=1,
    max_size=4,
)


def attempt(function, argument):
    """Returns the result and the error, one of them `None`; any other exception fails the test."""
    try:
        return function(argument), None
    except ExprError as error:
        return None, error


def parsed(source):
    """Parses, and checks what every outcome must be."""
    node, error = attempt(parse, source)
    if error is not None:
        assert error.code in CODES
        assert error.code.startswith("EXPR_")
        assert 0 <= error.offset <= error.offset + error.length <= len(source)
        return
    printed = to_source(node)
    if len(printed) <= SOURCE_CHARS_MAX:  # the printer writes `${a}` where the author wrote `$a`
        assert to_ast(parse(printed)) == to_ast(node)
    assert to_ast(from_ast(to_ast(node))) == to_ast(node)


@given(SOURCES)
@settings(max_examples=200)
@example("$x == '\\ud83d")
@example("$x == '\\ud83d\\u")
@example("-")
@example("-.")
@example("1e+")
@example("\ud800")
@example("²")
@example("$x == ٣")
@example("(" * 4096)
@example("[" * 4097)
@example("not " * 1000)
@example("'" + "$a" * 2000 + "'")
def test_any_text_is_an_expression_or_a_documented_error(source):
    parsed(source)


@given(MUTATIONS)
@settings(max_examples=200)
def test_a_mutated_expression_is_an_expression_or_a_documented_error(mutations):
    source = VALID
    for place, removed, inserted in mutations:
        source = source[:place] + inserted + source[place + removed :]
    parsed(source)


@given(SOURCES)
@settings(max_examples=200)
def test_any_template_is_split_or_refused_and_loses_no_character(text):
    parts, error = attempt(scan_text, text)
    if error is not None:
        assert error.code == "EXPR_REFERENCE"
        assert 0 <= error.offset < error.offset + error.length <= len(text)
        return
    for part in parts:
        if not isinstance(part, str):
            assert text[part.offset] == "$"
            assert part.name in text[part.offset : part.offset + part.length]
    literals = sum(len(part) for part in parts if isinstance(part, str))
    references = sum(part.length for part in parts if not isinstance(part, str))
    assert literals + references <= len(text) <= 2 * literals + references


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["lit", "ref", "text", "list", "==", "in", "and", "not", "is null", "x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=200)
def test_any_json_is_an_ast_or_a_documented_error(ast):
    node, error = attempt(from_ast, ast)
    if error is not None:
        assert error.code in {"EXPR_AST", "EXPR_TOO_DEEP", "EXPR_TOO_LONG"}
        return
    assert to_ast(from_ast(to_ast(node))) == to_ast(node)
