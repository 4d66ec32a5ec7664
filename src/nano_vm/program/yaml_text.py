"""YAML text into plain data, with the place of every key and value.

PyYAML's composer does the syntax; what scalars mean is decided here, by the JSON-like part of YAML 1.2's core
schema: `true false null`, decimal integers and floats. Everything else is a string, so `yes`, `no`, `on`,
`off`, `2024-01-31`, `1_000`, `0o17`, `017` and `12:30` are what they look like. Tags, merge keys and
unbounded aliases are refused.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from nano_vm.program.source import ALIAS_NODES_MAX, DEPTH_MAX, NODES_MAX, PLACEHOLDER, Problem, Span, number

_C_PARSER = getattr(getattr(yaml, "cyaml", None), "CParser", None)

_PLAIN, _TEXT, _COLLECTION = "?plain", "?text", "?collection"
_TRUE, _FALSE = frozenset(("true", "True", "TRUE")), frozenset(("false", "False", "FALSE"))
_NULL = frozenset(("null", "Null", "NULL", "~", ""))
_NUMBER = re.compile(
    r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?"
)
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAYBE_SPECIAL = frozenset("-+.0123456789tTfFnN~")


class _Resolver:
    """Marks nodes by how they were written; PyYAML's own resolution (YAML 1.1) is not used."""

    def resolve(self, kind: type[Any], value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return _COLLECTION
        return _PLAIN if implicit[0] else _TEXT

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        pass

    def ascend_resolver(self) -> None:
        pass


def _composer(text: str) -> Any:
    if _C_PARSER is not None:
        kind = type(
            "_Composer", (_Resolver, _C_PARSER), {"__init__": lambda self, t: _C_PARSER.__init__(self, t)}
        )
        return kind(text)
    return _pure_composer(text)


def _pure_composer(text: str) -> Any:
    from yaml.composer import Composer
    from yaml.parser import Parser
    from yaml.reader import Reader
    from yaml.scanner import Scanner

    class _Pure(Reader, Scanner, Parser, _Resolver, Composer):
        def __init__(self, text: str) -> None:
            Reader.__init__(self, text)
            Scanner.__init__(self)
            Parser.__init__(self)
            Composer.__init__(self)

    return _Pure(text)


class Loaded(NamedTuple):
    data: Any
    problems: list[Problem]
    empty: bool


def load(text: str) -> Loaded:
    """Returns the data of a YAML document and everything that is wrong with it. Syntax errors end the
    load."""
    try:
        too_deep = _depth_problem(text)
        if too_deep is not None:
            return Loaded(None, [too_deep], False)
        root = _composer(text).get_single_node()
    except yaml.YAMLError as error:
        return Loaded(None, [_syntax(error, text)], False)
    except RecursionError:
        return Loaded(None, [_too_deep(0)], False)
    if root is None:
        return Loaded(None, [], True)
    builder = _Builder()
    try:
        data = builder.value(root, 0)
    except _Stop:
        return Loaded(None, builder.problems, False)
    return Loaded(data, builder.problems, False)


# Nesting that is written with few characters; deep indentation needs long lines.
_COMPACT = re.compile(r"(?:[-?:][ \t]+){20}|^[ ]{120}", re.MULTILINE)
_BRACKET = re.compile(r"[\[\]{}]")


def _depth_problem(text: str) -> Problem | None:
    """Returns the problem of a text that nests too deep. The composer of libyaml recurses on the stack of C,
    so it must never see one. Only what looks suspicious is parsed for it."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        depth = depth + 1 if match[0] in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    if deepest <= DEPTH_MAX and _COMPACT.search(text) is None:
        return None
    events, depth = _composer(text), 0
    while events.check_event():
        event = events.get_event()
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                return _too_deep(event.start_mark.index if event.start_mark is not None else 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None


class _Stop(Exception):
    """A limit was reached; reading on would be the attack."""


class _Builder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._seen: set[int] = set()
        self._open: set[int] = set()
        self._nodes = 0
        self._alias_nodes = 0
        self._in_alias = 0

    def _problem(self, code: str, message: str, help: str | None, node: Any) -> None:
        start, end = node.start_mark.index, node.end_mark.index
        width = end - start if isinstance(node, yaml.ScalarNode) else 1
        self.problems.append(Problem(code, message, help, start, max(1, width)))

    def value(self, node: Any, depth: int) -> Any:
        self._nodes += 1
        if self._in_alias:
            self._alias_nodes += 1
            if self._alias_nodes > ALIAS_NODES_MAX:
                message = f"aliases expand to more than {ALIAS_NODES_MAX} values"
                self._problem("DOCUMENT_ALIAS", message, "write the values out, or use `map` or `call`", node)
                raise _Stop
        if self._nodes > NODES_MAX:
            self._problem("DOCUMENT_TOO_LARGE", f"more than {NODES_MAX} values", "split the program", node)
            raise _Stop
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag != _COLLECTION:
            self._tag(node)
        if depth >= DEPTH_MAX:
            self.problems.append(_too_deep(node.start_mark.index))
            raise _Stop
        identity = id(node)
        if identity in self._open:
            self._problem("DOCUMENT_ALIAS", "an alias that contains itself", "write the value out", node)
            raise _Stop
        alias = identity in self._seen
        self._seen.add(identity)
        self._open.add(identity)
        self._in_alias += alias
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, depth + 1) for item in node.value]
            return self._mapping(node, depth)
        finally:
            self._in_alias -= alias
            self._open.discard(identity)

    def _mapping(self, node: Any, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key is None:
                continue
            if key in result:
                message = f"the key `{key}` stands twice in one mapping"
                self._problem("DUPLICATE_KEY", message, "remove or rename one of them", key_node)
                continue
            result[key] = self.value(value_node, depth + 1)
        return result

    def _key(self, node: Any) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._problem("DOCUMENT_KEY", "a key must be a string", "a list or mapping cannot be a key", node)
            return None
        text: str = node.value
        if node.tag == _PLAIN:
            if text == "<<":
                help = "write the fields out; anchors and aliases of whole values are allowed"
                self._problem("DOCUMENT_TAG", "merge keys (`<<`) are not part of the language", help, node)
                return None
            if not isinstance(_plain(text), str):
                self._problem("DOCUMENT_KEY", f"the key `{text}` is not a string", f'write "{text}"', node)
                return None
        elif node.tag != _TEXT:
            self._tag(node)
        return text

    def _scalar(self, node: Any) -> Any:
        text: str = node.value
        if node.tag == _PLAIN:
            if text and text[0] not in _MAYBE_SPECIAL:
                return text
            value = _plain(text)
            if isinstance(value, Problem):
                self._problem(value.code, value.message, value.help, node)
                return PLACEHOLDER
            return value
        if node.tag != _TEXT:
            self._tag(node)
        return text

    def _tag(self, node: Any) -> None:
        shown = str(node.tag).replace("tag:yaml.org,2002:", "!!")
        help = "remove the tag; quotes make a string, a plain number is a number"
        self._problem("DOCUMENT_TAG", f"the tag `{shown}` is not part of the language", help, node)


def _plain(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _NUMBER.fullmatch(text) and text not in ("+", "-", "."):
        return number(text)
    if _NOT_FINITE.fullmatch(text):
        help = f'write "{text}" for a string; leave the field out for no limit'
        return Problem("DOCUMENT_NUMBER", f"`{text}` is not a number that JSON can hold", help, 0, 1)
    return text


def _too_deep(index: int) -> Problem:
    return Problem(
        "DOCUMENT_TOO_DEEP", f"nested more than {DEPTH_MAX} levels deep", "flatten the document", index, 1
    )


def _syntax(error: yaml.YAMLError, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    index = min(mark.index, len(text)) if mark is not None else int(getattr(error, "position", 0) or 0)
    opened = getattr(error, "context_mark", None)
    if "quoted scalar" in str(getattr(error, "context", "")) and opened is not None:
        index = opened.index  # where the quote was opened says more than the end of the file
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML")
    context = str(getattr(error, "context", None) or "")
    at = text[index : index + 1]
    if "expected a single document" in context or "another document" in problem:
        help = "keep one program per file: remove the `---` and what follows"
        return Problem("MULTIPLE_DOCUMENTS", "more than one document in one file", help, index, 3)
    if "alias" in problem:
        return Problem("DOCUMENT_ALIAS", problem, "define the anchor (`&name`) before its alias", index, 1)
    if "anchor" in context and "second" in problem:
        return Problem("DOCUMENT_ALIAS", "the same anchor twice", "rename one of them", index, 1)
    if at == "\t" or "\t" in text[text.rfind("\n", 0, index) + 1 : index + 1].split(":")[0]:
        return Problem("DOCUMENT_TAB", "a tab where YAML wants spaces", "indent with spaces", index, 1)
    message = f"{context}: {problem}" if context and context not in problem else problem
    return Problem("DOCUMENT_SYNTAX", message, _syntax_help(problem, at), index, 1)


def _syntax_help(problem: str, at: str) -> str:
    if "mapping values are not allowed" in problem:
        return "quote text that contains `: `, or check the indentation of this line"
    if at in ("@", "`", "%", "&", "*", "!", "|", ">"):
        return f"quote text that begins with `{at}`"
    if "unexpected end of stream" in problem:
        return "close the quote that was opened here or above"
    if "block" in problem or "',' or" in problem or "node content" in problem:
        return "check indentation, brackets and commas here and on the line above"
    return "quote the text, or check the indentation here and on the line above"


class Spans:
    """Where keys and values stand. Composing again is cheaper than keeping every position of every
    program."""

    def __init__(self, text: str) -> None:
        self._root = None
        try:
            if _depth_problem(text) is None:
                self._root = _composer(text).get_single_node()
        except (yaml.YAMLError, RecursionError):
            pass

    def find(self, parts: list[str], key: bool) -> Span | None:
        node, key_node = self._root, None
        for part in parts:
            key_node = None
            if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
                node = node.value[int(part)]
            elif isinstance(node, yaml.MappingNode):
                for candidate, value in node.value:
                    if isinstance(candidate, yaml.ScalarNode) and candidate.value == part:
                        key_node, node = candidate, value
                        break
                else:
                    return None
            else:
                return None
        found = key_node if key and key_node is not None else node
        if found is None:
            return None
        scalar = isinstance(found, yaml.ScalarNode)
        style = (found.style or "") if scalar else ""
        value = found.value if scalar else None
        return Span(found.start_mark.index, found.end_mark.index, style, value)
