"""What people write in a condition that is not in the language, and what to write instead.

Tables only: the lexer and the parser look here whenever they refuse something, so that every refusal has a
name.
"""

from __future__ import annotations

import difflib
import re

from nano_vm.expr.errors import ExprError

_COMPUTE = "compute it in a tool step and refer to that step's output"
_PATTERN = f"patterns are not in the language: compare with `==`, `in` or `contains`, or {_COMPUTE}"
_ARITHMETIC = ("EXPR_ARITHMETIC", "is arithmetic", _COMPUTE)
_BITS = ("EXPR_ARITHMETIC", "is a bit operation", "write `and`, `or`, `not` for logic")
_ASSIGN = (
    "EXPR_ASSIGNMENT",
    "is an assignment",
    "write `==` to compare; give a step an `output_key` to bind a name",
)
_ARROW = ("EXPR_LAMBDA", "begins a function", "write `>=` to compare; functions are not in the language")
_TEMPLATE = ("EXPR_SYNTAX", "is another template language's", "write `$name` or `${name.field}`")
_REGEX = ("EXPR_SYNTAX", "matches a pattern", _PATTERN)
_OPTIONAL = ("EXPR_SYNTAX", "is not in the language", "test with `$x is not null and …`")

# Longest first: the lexer takes the first that matches. Value: code, what it is, what to write instead.
REFUSED_SYMBOLS: dict[str, tuple[str, str, str]] = {
    "===": ("EXPR_SYNTAX", "is not an operator", "write `==`: it is strict about types already"),
    "!==": ("EXPR_SYNTAX", "is not an operator", "write `!=`: it is strict about types already"),
    "<=>": ("EXPR_SYNTAX", "is not an operator", "write `<`, `==` or `>`"),
    "**=": _ASSIGN,
    "//=": _ASSIGN,
    "<<=": _ASSIGN,
    ">>=": _ASSIGN,
    "&&=": _ASSIGN,
    "||=": _ASSIGN,
    "??=": _ASSIGN,
    "=>": _ARROW,
    "->": _ARROW,
    "=~": _REGEX,
    "!~": _REGEX,
    "~=": _REGEX,
    "=<": ("EXPR_SYNTAX", "is not an operator", "write `<=`"),
    "<>": ("EXPR_SYNTAX", "is not an operator", "write `!=`"),
    "&&": ("EXPR_SYNTAX", "is not an operator", "write `and`"),
    "||": ("EXPR_SYNTAX", "is not an operator", "write `or`"),
    "??": _OPTIONAL,
    "?.": _OPTIONAL,
    "{{": _TEMPLATE,
    "{%": _TEMPLATE,
    "}}": _TEMPLATE,
    "%}": _TEMPLATE,
    ":=": _ASSIGN,
    "+=": _ASSIGN,
    "-=": _ASSIGN,
    "*=": _ASSIGN,
    "/=": _ASSIGN,
    "%=": _ASSIGN,
    "&=": _ASSIGN,
    "|=": _ASSIGN,
    "^=": _ASSIGN,
    "++": _ARITHMETIC,
    "--": _ARITHMETIC,
    "**": _ARITHMETIC,
    "//": (
        "EXPR_ARITHMETIC",
        "is arithmetic, or a comment",
        f"{_COMPUTE}; comments belong outside the expression",
    ),
    "<<": _BITS,
    ">>": _BITS,
    "=": _ASSIGN,
    "!": ("EXPR_SYNTAX", "is not an operator", "write `not`, or `!=` to compare"),
    "&": _BITS,
    "|": (
        "EXPR_ARITHMETIC",
        "is a bit operation or a filter",
        f"write `or` for logic; instead of a filter, {_COMPUTE}",
    ),
    "^": _BITS,
    "~": _BITS,
    "+": _ARITHMETIC,
    "-": _ARITHMETIC,
    "*": _ARITHMETIC,
    "/": _ARITHMETIC,
    "%": _ARITHMETIC,
    "?": (
        "EXPR_SYNTAX",
        "is not an operator",
        "a condition step has `then` and `otherwise` for the two outcomes",
    ),
    ":": ("EXPR_SYNTAX", "has no meaning here", "objects and slices are not in the language"),
    ";": ("EXPR_SYNTAX", "has no meaning here", "a condition is one expression: join with `and` / `or`"),
    "{": (
        "EXPR_SYNTAX",
        "begins an object",
        "only lists have literals; a reference is `$name` or `${name.field}`",
    ),
    "}": ("EXPR_SYNTAX", "closes nothing", "a reference is `${name.field}`, with the dollar first"),
    "#": ("EXPR_SYNTAX", "begins a comment", "comments belong outside the expression"),
    "@": ("EXPR_SYNTAX", "has no meaning here", "a reference is `$name`"),
    "\\": (
        "EXPR_SYNTAX",
        "has no meaning outside quotes",
        "an expression may continue on the next line as it is",
    ),
    ".": ("EXPR_SYNTAX", "follows nothing that has fields", "write `$name.field`, without spaces"),
    "`": ("EXPR_FSTRING", "is not a quote", "write 'text' or \"text\"; `$name` inside it is filled in"),
    "“": ("EXPR_STRING", "is a typographic quote", "write ' or \""),
    "”": ("EXPR_STRING", "is a typographic quote", "write ' or \""),
    "‘": ("EXPR_STRING", "is a typographic quote", "write ' or \""),
    "’": ("EXPR_STRING", "is a typographic quote", "write ' or \""),
    "≤": ("EXPR_SYNTAX", "is not an operator", "write `<=`"),
    "≥": ("EXPR_SYNTAX", "is not an operator", "write `>=`"),
    "≠": ("EXPR_SYNTAX", "is not an operator", "write `!=`"),
    "∈": ("EXPR_SYNTAX", "is not an operator", "write `in`"),
    "\u00a0": ("EXPR_SYNTAX", "is a no-break space", "write an ordinary space"),
}

REFUSED_SYMBOL = re.compile("|".join(map(re.escape, REFUSED_SYMBOLS))).match

_CALLS = {
    "lower upper casefold strip trim lstrip rstrip title capitalize tolowercase touppercase swapcase": (
        "put `normalize: casefold` on the llm step; `allowed_outputs` strips its answer already"
    ),
    "startswith endswith match matches search fullmatch find index test re like regex": _PATTERN,
    "contains includes has_item": "write `$x contains 'y'` or `'y' in $x`",
    "get getattr getitem": "write `$x.field`; a missing field is an error, never a silent default",
    "exists defined isnull is_null isnone isdefined has notnull": "write `$x is null` or `$x is not null`",
    "int float str string number bool boolean parseint parsefloat tonumber tostring json loads": (
        "values keep their types: compare with a literal of that type, or give the step an `output_schema`"
    ),
    "any all": "write the comparisons out, joined with `or` / `and`",
    "not_": "write `not`",
}
_CALL_HELP = {name: text for names, text in _CALLS.items() for name in names.split()}

# Words that stand where an operator is expected.
_OPERATOR_WORDS = {
    "equals eq equal": "write `==`",
    "ne neq": "write `!=`",
    "lt": "write `<`",
    "le lte": "write `<=`",
    "gt": "write `>`",
    "ge gte": "write `>=`",
    "has includes include contain": "write `contains`",
    "within": "write `in`",
    "between": "write `$x >= 1 and $x <= 9`",
    "xor": "write `!=` between two conditions in parentheses",
    "like matches match startswith endswith regex": _PATTERN,
    "mod div plus minus times": _COMPUTE,
    "if unless then else when case": "a condition step has `then` and `otherwise` for the two outcomes",
    "for as": "loops are not in the language: use a `map` step",
}
_OPERATOR_HELP = {name: text for names, text in _OPERATOR_WORDS.items() for name in names.split()}

# Words that stand where an operand is expected: code, help.
_OPERAND_WORDS = {
    "lambda def function func fn": ("EXPR_LAMBDA", "functions are not in the language: " + _COMPUTE),
    "let var const set": ("EXPR_ASSIGNMENT", "give a step an `output_key` to bind a name"),
    "nan inf infinity": ("EXPR_NUMBER", "numbers are finite: test for null instead"),
    "undefined nil nothing none": ("EXPR_WORD", "write `null`"),
    "if unless then else when case switch": (
        "EXPR_SYNTAX",
        "a condition step has `then` and `otherwise` for the two outcomes",
    ),
    "for while": ("EXPR_SYNTAX", "loops are not in the language: use a `map` step"),
    "import from return yield await async del class new typeof exec eval": (
        "EXPR_SYNTAX",
        "statements are not in the language: " + _COMPUTE,
    ),
}
_OPERAND_HELP = {name: pair for names, pair in _OPERAND_WORDS.items() for name in names.split()}

KEYWORDS = ("and", "or", "not", "in", "contains", "is", "true", "false", "null", "True", "False", "None")


def refused_call(name: str, offset: int, length: int) -> ExprError:
    """The refusal of a call of `name`; an empty name is a call of whatever stands before the parenthesis."""
    help = _CALL_HELP.get(name.lower(), f"calls are not in the language: {_COMPUTE}")
    what = f"`{_short(name)}(…)` is a call" if name else "this is a call"
    return ExprError("EXPR_CALL", what, offset=offset, length=length, help=help)


def refused_operator_word(word: str, offset: int) -> ExprError:
    """The refusal of a word that stands where an operator is expected."""
    lowered = word.lower()
    if word in ("mod", "div", "plus", "minus", "times"):
        return ExprError(
            "EXPR_ARITHMETIC", f"`{word}` is arithmetic", offset=offset, length=len(word), help=_COMPUTE
        )
    if lowered in KEYWORDS and lowered != word and lowered not in ("true", "false", "null"):
        help = f"write `{lowered}`: words are in lower case"
    else:
        help = _OPERATOR_HELP.get(lowered) or _suggestion(
            lowered, ("and", "or", "not in", "contains", "is null")
        )
    return ExprError(
        "EXPR_WORD", f"`{_short(word)}` is not an operator", offset=offset, length=len(word), help=help
    )


def refused_operand_word(word: str, offset: int, following: str) -> ExprError:
    """The refusal of a bare word that stands where a value is expected; `following` is the text after it."""
    length = len(word)
    lowered = word.lower()
    after = following.lstrip()
    if following[:1] in ("'", '"'):
        return ExprError(
            "EXPR_FSTRING",
            f"`{_short(word)}` before a quote is a string prefix",
            offset=offset,
            length=length,
            help="write 'text' or \"text\" without a prefix; `$name` inside it is filled in",
        )
    if lowered in _OPERAND_HELP and word != "None":
        code, help = _OPERAND_HELP[lowered]
        return ExprError(code, f"`{word}` is not in the language", offset=offset, length=length, help=help)
    if after.startswith("("):
        return refused_call(word, offset, length)
    if after.startswith("=") and not after.startswith("=="):
        return ExprError(
            "EXPR_ASSIGNMENT",
            f"`{_short(word)} =` is an assignment",
            offset=offset,
            length=length,
            help=_ASSIGN[2],
        )
    if lowered in KEYWORDS and lowered != word:
        help = f"write `{lowered}`: words are in lower case"
    elif word in KEYWORDS:
        return ExprError(
            "EXPR_SYNTAX",
            f"`{word}` stands where a value is expected",
            offset=offset,
            length=length,
            help="write a value on both sides of an operator; `not` applies to a comparison in parentheses",
        )
    elif following[:1] in (".", "["):
        help = f"a reference begins with a dollar: write `${_short(word)}`"
    else:
        help = f"write '{_short(word)}' for text, `${_short(word)}` for a reference"
    return ExprError("EXPR_WORD", f"`{_short(word)}` is not quoted", offset=offset, length=length, help=help)


def refused_symbol(symbol: str, offset: int) -> ExprError:
    code, what, help = REFUSED_SYMBOLS[symbol]
    return ExprError(code, f"`{symbol}` {what}", offset=offset, length=len(symbol), help=help)


def _suggestion(word: str, candidates: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word[:40], candidates, n=1)
    return (
        f"did you mean `{close[0]}`?"
        if close
        else "the operators are == != < <= > >= in contains and or not is"
    )


def _short(word: str) -> str:
    return word if len(word) <= 40 else word[:40] + "…"
