"""JSON text into plain data, strictly (RFC 8259), with the place of every key and value.

The standard library's parser says where a syntax error is, but not where values are, and lets duplicate keys
and NaN pass. This one does neither, and names the mistakes people make.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from nano_vm.program.source import DEPTH_MAX, NODES_MAX, PLACEHOLDER, Problem, Span, number

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_NUMBERLIKE = re.compile(r"[-+.0-9][-+.0-9eExX_a-fA-F]*")
_CHUNK = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_FOREIGN_WORDS = {"True": "true", "False": "false", "None": "null", "undefined": "null", "nil": "null"}


class Loaded(NamedTuple):
    data: Any
    problems: list[Problem]
    empty: bool


class _Fatal(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


class _Node:
    """Where a value stands; `items` are the nodes of an array, `fields` key span and node of an object's
    members."""

    __slots__ = ("end", "fields", "items", "start", "value")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.value: str | None = None
        self.items: list[_Node] | None = None
        self.fields: dict[str, tuple[Span, _Node]] | None = None


def load(text: str) -> Loaded:
    """Returns the data of a JSON document and everything that is wrong with it. Syntax errors end the
    load."""
    reader = _Reader(text)
    if not text.strip(" \t\n\r"):
        return Loaded(None, [], True)
    try:
        data, _ = reader.document()
    except _Fatal as fatal:
        return Loaded(None, [*reader.problems, fatal.problem], False)
    return Loaded(data, reader.problems, False)


class Spans:
    """Where keys and values stand, found by reading the text again."""

    def __init__(self, text: str) -> None:
        try:
            self._root: _Node | None = _Reader(text).document()[1]
        except _Fatal:
            self._root = None

    def find(self, parts: list[str], key: bool) -> Span | None:
        node, key_span = self._root, None
        for part in parts:
            key_span = None
            if node is None:
                return None
            if node.fields is not None and part in node.fields:
                key_span, node = node.fields[part]
            elif node.items is not None and part.isdecimal() and int(part) < len(node.items):
                node = node.items[int(part)]
            else:
                return None
        if node is None:
            return None
        if key and key_span is not None:
            return key_span
        return Span(node.start, node.end, '"' if node.value is not None else "", node.value)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[Problem] = []
        self._nodes = 0

    def document(self) -> tuple[Any, _Node]:
        value, node = self._value(self._space(0), 0)
        rest = self._space(node.end)
        if rest < len(self.text):
            raise self._fail(
                rest, "something follows the end of the document", "keep one JSON value per file"
            )
        return value, node

    def _space(self, index: int) -> int:
        match = _SPACE.match(self.text, index)
        end = match.end() if match else index
        if self.text.startswith(("//", "/*", "#"), end):
            raise self._fail(end, "JSON has no comments", "remove it, or write the program in YAML")
        return end

    def _fail(
        self, index: int, message: str, help: str | None, code: str = "DOCUMENT_SYNTAX", length: int = 1
    ) -> _Fatal:
        return _Fatal(Problem(code, message, help, index, length))

    def _value(self, index: int, depth: int) -> tuple[Any, _Node]:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise self._fail(
                index, f"more than {NODES_MAX} values", "split the program", "DOCUMENT_TOO_LARGE"
            )
        if depth > DEPTH_MAX:
            message = f"nested more than {DEPTH_MAX} levels deep"
            raise self._fail(index, message, "flatten the document", "DOCUMENT_TOO_DEEP")
        node = _Node(index)
        start = self.text[index : index + 1]
        if start == '"':
            value, node.end = self._string(index)
            node.value = value
            return value, node
        if start == "{":
            return self._object(index, depth, node), node
        if start == "[":
            return self._array(index, depth, node), node
        return self._literal(index, node), node

    def _literal(self, index: int, node: _Node) -> Any:
        match = _NUMBER.match(self.text, index)
        if match:
            like = _NUMBERLIKE.match(self.text, index)
            if like and like.end() > match.end():
                raise self._fail(
                    index,
                    f"`{like[0][:40]}` is not a JSON number",
                    "write it in decimal, or in quotes",
                    "DOCUMENT_NUMBER",
                    len(like[0]),
                )
            node.end = match.end()
            value = number(match[0])
            if isinstance(value, Problem):
                self.problems.append(value._replace(start=index, length=len(match[0])))
                return PLACEHOLDER
            return value
        word = _WORD.match(self.text, index)
        if word and word[0] in _WORDS:
            node.end = word.end()
            return _WORDS[word[0]]
        raise self._not_a_value(index, word[0] if word else "")

    def _not_a_value(self, index: int, word: str) -> _Fatal:
        at = self.text[index : index + 1]
        if not at:
            return self._fail(
                max(0, index - 1), "the document ends too early", "close the open brackets and quotes"
            )
        if word in ("NaN", "Infinity"):
            return self._fail(
                index, f"`{word}` is not JSON", "leave the field out", "DOCUMENT_NUMBER", len(word)
            )
        if word in _FOREIGN_WORDS:
            return self._fail(
                index, f"`{word}` is not JSON", f"write {_FOREIGN_WORDS[word]}", length=len(word)
            )
        if word:
            return self._fail(
                index, f"`{word[:40]}` is not in quotes", f'write "{word[:40]}"', length=len(word)
            )
        if at == "'":
            return self._fail(index, "JSON strings stand in double quotes", "write \" instead of '")
        if at in "}]":
            return self._fail(index, "a comma with nothing behind it", "remove the comma before this bracket")
        if at in "+-.0123456789":
            return self._fail(
                index, "not a JSON number", "write digits on both sides of the point", "DOCUMENT_NUMBER"
            )
        return self._fail(
            index, "a value was expected here", "write a string, number, true, false, null, [ or {"
        )

    def _array(self, index: int, depth: int, node: _Node) -> list[Any]:
        result: list[Any] = []
        node.items = items = []
        index = self._space(index + 1)
        if self.text[index : index + 1] == "]":
            node.end = index + 1
            return result
        while True:
            value, item = self._value(index, depth + 1)
            result.append(value)
            items.append(item)
            index, done = self._separator(self._space(item.end), "]")
            if done:
                node.end = index
                return result

    def _object(self, index: int, depth: int, node: _Node) -> dict[str, Any]:
        result: dict[str, Any] = {}
        node.fields = fields = {}
        index = self._space(index + 1)
        if self.text[index : index + 1] == "}":
            node.end = index + 1
            return result
        while True:
            if self.text[index : index + 1] != '"':
                if self.text[index : index + 1] == "}":
                    raise self._fail(
                        index, "a comma with nothing behind it", "remove the comma before this bracket"
                    )
                word = _WORD.match(self.text, index)
                if word:
                    shown = word[0][:40]
                    raise self._fail(
                        index, f"the key `{shown}` is not in quotes", f'write "{shown}"', length=len(shown)
                    )
                raise self._fail(
                    min(index, max(0, len(self.text) - 1)),
                    "a key in double quotes was expected here",
                    "check brackets, quotes and commas here and on the line above",
                )
            start = index
            key, index = self._string(start)
            span = Span(start, index, '"', key)
            index = self._space(index)
            if self.text[index : index + 1] != ":":
                raise self._fail(
                    min(index, max(0, len(self.text) - 1)), "a colon was expected after the key", "write `:`"
                )
            value, child = self._value(self._space(index + 1), depth + 1)
            if key in result:
                message = f"the key `{key[:60]}` stands twice in one object"
                help = "remove or rename one of them"
                self.problems.append(Problem("DUPLICATE_KEY", message, help, start, span.end - start))
            else:
                result[key] = value
                fields[key] = (span, child)
            index, done = self._separator(self._space(child.end), "}")
            if done:
                node.end = index
                return result

    def _separator(self, index: int, close: str) -> tuple[int, bool]:
        at = self.text[index : index + 1]
        if at == close:
            return index + 1, True
        if at == ",":
            return self._space(index + 1), False
        if not at:
            raise self._fail(
                max(0, index - 1), f"the document ends before a closing `{close}`", f"add `{close}`"
            )
        help = "add a comma" if at not in "}]" else f"close with `{close}`"
        raise self._fail(index, f"`,` or `{close}` was expected here", help)

    def _string(self, start: int) -> tuple[str, int]:
        text = self.text
        match = _CHUNK.match(text, start + 1)
        index = match.end() if match else start + 1
        if text[index : index + 1] == '"':
            return self._checked(text[start + 1 : index], start, index + 1)
        parts = [text[start + 1 : index]]
        while True:
            at = text[index : index + 1]
            if at == '"':
                return self._checked("".join(parts), start, index + 1)
            if at == "\\":
                piece, index = self._escape(index)
                parts.append(piece)
            elif not at or at in "\n\r":
                raise self._fail(start, "a string without its closing quote", 'add the closing "')
            else:
                raise self._fail(
                    index, "a control character in a string", "write it as an escape, such as \\t"
                )
            match = _CHUNK.match(text, index)
            end = match.end() if match else index
            parts.append(text[index:end])
            index = end

    def _checked(self, value: str, start: int, end: int) -> tuple[str, int]:
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            help = "write both halves of the pair, or the character itself"
            self.problems.append(
                Problem("DOCUMENT_STRING", "an unpaired surrogate", help, start, end - start)
            )
            value = value.encode("utf-8", "replace").decode()
        return value, end

    def _escape(self, index: int) -> tuple[str, int]:
        kind = self.text[index + 1 : index + 2]
        if kind in _ESCAPES:
            return _ESCAPES[kind], index + 2
        if kind == "u":
            match = _HEX.match(self.text, index + 2)
            if match:
                code = int(match[0], 16)
                if 0xD800 <= code < 0xDC00 and self.text.startswith("\\u", index + 6):
                    second = _HEX.match(self.text, index + 8)
                    low = int(second[0], 16) if second else 0
                    if 0xDC00 <= low < 0xE000:
                        return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)), index + 12
                return chr(code), index + 6
        raise self._fail(index, "an escape that JSON does not have", "write \\\\ for a backslash", length=2)
