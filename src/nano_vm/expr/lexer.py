"""Turns the source of an expression into tokens, and refuses by name what is not in the language."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from nano_vm.canonical import INT_MAX
from nano_vm.expr.errors import ExprError
from nano_vm.expr.nodes import has_surrogate, plain_number
from nano_vm.expr.reference import Ref, ref_at
from nano_vm.expr.refusals import REFUSED_SYMBOL, refused_call, refused_operand_word, refused_symbol

__all__ = ["Lexer", "Token"]


class Token(NamedTuple):
    """`kind` is `ref`, `string`, `number`, `word`, `symbol` or `end`; `value` is a `Ref`, a tuple of strings
    and references, an `int` or `float`, or the text itself."""

    kind: str
    value: Any
    offset: int
    length: int


_SPACE = re.compile(r"[ \t\r\n]*").match
_SYMBOL = re.compile(r"(?:==(?!=)|!=(?!=)|<=(?![>])|>=|<(?![<>=])|>(?![>=])|[()\[\],])").match
_WORD = re.compile(r"[^\W\d]\w*").match
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?").match
_NUMBER_LIKE = re.compile(r"-?\.?[0-9](?:[\w.]|(?<=[eE])[+-])*").match
_METHOD = re.compile(r"\.[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*(\()?").match
_HYPHENATED = re.compile(r"-[A-Za-z0-9_]").match
# Everything up to the next character that means something inside quotes.
_PLAIN_CHARS = re.compile(r"[^\\$'\"]+").match
_UNICODE_ESCAPE = re.compile(r"u([0-9a-fA-F]{4})").match
_ESCAPES = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "t": "\t"}
_OPERAND_WORDS = frozenset({"true", "false", "null", "True", "False", "None"})


class Lexer:
    """Reads tokens from left to right; the position of the first error is the first in the source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.offset = 0
        # Whether the last token ended a value: decides if `-5` is a number or a subtraction.
        self.after_value = False
        self.after_ref = False

    def next(self) -> Token:
        """Returns the next token. Raises `ExprError` for anything that begins no token."""
        source = self.source
        space = _SPACE(source, self.offset)
        offset = space.end() if space else self.offset
        if offset >= len(source):
            self.offset = len(source)
            return Token("end", "", len(source), 0)
        token = self.read(source, offset)
        self.offset = offset + token.length
        self.after_ref = token.kind == "ref"
        self.after_value = (
            token.kind in ("ref", "string", "number")
            or token.value in (")", "]")
            or token.value in _OPERAND_WORDS
        )
        return token

    def read(self, source: str, offset: int) -> Token:
        first = source[offset]
        if first == "$":
            return self.reference(offset)
        if first in "'\"":
            return self.string(offset)
        second = source[offset + 1 : offset + 2]
        if "0" <= first <= "9" or (
            not self.after_value
            and (first in "-." and ("0" <= second <= "9" or (first == "-" and second == ".")))
        ):
            return self.number(offset)
        match = _SYMBOL(source, offset)
        if match is not None:
            return Token("symbol", match[0], offset, len(match[0]))
        match = _WORD(source, offset)
        if match is not None:
            word = match[0]
            if source[match.end() : match.end() + 1] in ("'", '"') and word not in _SPACELESS:
                raise refused_operand_word(word, offset, source[match.end() :])
            return Token("word", word, offset, len(word))
        raise self.refusal(offset)

    def refusal(self, offset: int) -> ExprError:
        source = self.source
        if source[offset] == "." and self.after_value:
            method = _METHOD(source, offset)
            if method is not None and method[2]:
                return refused_call(method[1], offset, method.end(1) - offset)
        if self.after_ref and offset == self.offset and _HYPHENATED(source, offset):
            return ExprError(
                "EXPR_ARITHMETIC",
                "`-` is arithmetic",
                offset=offset,
                length=1,
                help="a key with a hyphen goes into braces: `${name.a-b}`; to subtract, use a tool step",
            )
        refused = REFUSED_SYMBOL(source, offset)
        if refused is not None:
            return refused_symbol(refused[0], offset)
        code = f"U+{ord(source[offset]):04X}"
        return ExprError("EXPR_SYNTAX", f"the character {code} has no meaning here", offset=offset, length=1)

    def reference(self, offset: int) -> Token:
        found, end = ref_at(self.source, offset)
        if not isinstance(found, Ref):
            raise ExprError(
                "EXPR_REFERENCE",
                "a dollar is not followed by a name",
                offset=offset,
                length=end - offset,
                help="write `$name`; a literal dollar belongs inside quotes, an amount has no currency sign",
            )
        return Token("ref", found, offset, end - offset)

    def number(self, offset: int) -> Token:
        match = _NUMBER(self.source, offset)
        like = _NUMBER_LIKE(self.source, offset)
        end = like.end() if like else offset + 1
        if match is None or match.end() != end:
            raise ExprError(
                "EXPR_NUMBER",
                "a malformed number",
                offset=offset,
                length=end - offset,
                help="write digits as JSON does: 1000, -5, 0.5, 1e6",
            )
        value: int | float
        if match[1] is None and match[2] is None:
            value = int(match[0])
            in_range = -INT_MAX <= value <= INT_MAX
        else:
            value = float(match[0])
            in_range = abs(value) != float("inf")
        if not in_range:
            raise ExprError(
                "EXPR_NUMBER",
                "a number out of range (integers go to ±(2^53-1))",
                offset=offset,
                length=end - offset,
                help="compare as strings",
            )
        if isinstance(value, float):
            value = plain_number(value)
        return Token("number", value, offset, end - offset)

    def string(self, start: int) -> Token:
        """Reads a quoted string into its parts: decoded text and references."""
        source, quote = self.source, self.source[start]
        parts: list[str | Ref] = []
        literal: list[str] = []
        offset = start + 1
        while True:
            plain = _PLAIN_CHARS(source, offset)
            if plain is not None:
                literal.append(plain[0])
                offset = plain.end()
            if offset >= len(source):
                raise ExprError(
                    "EXPR_STRING",
                    "a string is not closed",
                    offset=start,
                    length=1,
                    help=f"end it with {quote}; inside quotes write \\{quote} for the quote itself",
                )
            char = source[offset]
            if char == quote:
                break
            if char == "\\":
                text, offset = self.escape(offset)
                literal.append(text)
            elif char == "$":
                found, offset = ref_at(source, offset)
                if isinstance(found, Ref):
                    if literal:
                        parts.append("".join(literal))
                        literal.clear()
                    parts.append(found)
                else:
                    literal.append(found)
            else:
                literal.append(char)
                offset += 1
        if literal:
            parts.append("".join(literal))
        return Token("string", tuple(parts), start, offset + 1 - start)

    def escape(self, offset: int) -> tuple[str, int]:
        """Reads the escape at `offset`; returns its text and the offset after it."""
        source = self.source
        simple = _ESCAPES.get(source[offset + 1 : offset + 2])
        if simple is not None:
            return simple, offset + 2
        match = _UNICODE_ESCAPE(source, offset + 1)
        if match is None:
            length = min(2, len(source) - offset)
            help = "the escapes are \\\\ \\\" \\' \\n \\t \\uXXXX; a literal dollar is `$$`"
            raise ExprError("EXPR_STRING", "an unknown escape", offset=offset, length=length, help=help)
        text, end = chr(int(match[1], 16)), match.end()
        if "\ud800" <= text <= "\udbff" and source[end : end + 1] == "\\":
            low = _UNICODE_ESCAPE(source, end + 1)
            if low is not None:
                pair = (text + chr(int(low[1], 16))).encode("utf-16-be", "surrogatepass")
                text, end = pair.decode("utf-16-be", "replace"), low.end()
                if len(text) == 1:
                    return text, end
                text = "\ud800"
        if has_surrogate(text):
            raise ExprError(
                "EXPR_STRING",
                "an unpaired surrogate",
                offset=offset,
                length=end - offset,
                help="write both halves of the pair, or the character itself",
            )
        return text, end


# After these a quote may follow without a space: `$x in'abc'` is ugly, but it is not a string prefix.
_SPACELESS = frozenset({"and", "or", "not", "in", "contains", "is"}) | _OPERAND_WORDS
