"""A program as its author wrote it: plain data, and the place of everything in it.

YAML, JSON and Python dicts all become a `Document`. Loading never raises for what the text says: whatever is
wrong is in `findings`, and `data` holds what could be understood.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nano_vm.canonical import INT_MAX
from nano_vm.errors import Place, ProgramError
from nano_vm.program import json_text, yaml_text
from nano_vm.program.diagnostic import ERROR, Diagnostic
from nano_vm.program.scalar import source_index
from nano_vm.program.source import BYTES_MAX, DEPTH_MAX, NODES_MAX, PLACEHOLDER, Problem, Span, whole

# What neither YAML nor JSON admits, and what hides things from a reader (bidirectional overrides).
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class _Spans(Protocol):
    def find(self, parts: list[str], key: bool) -> Span | None: ...


class Document:
    """Plain JSON data with places.

    Attributes:
        data: dict, list, str, int, float, bool or None, sharing nothing with the caller; None when
            unreadable.
        text: the source text, None for dicts.
        file: its name, for messages.
        findings: what is wrong with the document itself.
    """

    __slots__ = ("_lines", "_spans", "data", "file", "findings", "format", "text")

    def __init__(
        self, data: Any, *, text: str | None = None, file: str | None = None, format: str = "dict"
    ) -> None:
        self.data = data
        self.text = text
        self.file = file
        self.format = format  # "yaml", "json" or "dict"
        self.findings: list[Diagnostic] = []
        self._spans: _Spans | None = None
        self._lines: list[int] | None = None

    # --- places -------------------------------------------------------------------------------------------

    def place(
        self,
        pointer: str,
        *,
        key: bool = False,
        offset: int | None = None,
        length: int | None = None,
        step: str | None = None,
        field: str | None = None,
    ) -> tuple[Place, int]:
        """Returns where a value stands, and how many characters wide it is.

        Args:
            pointer: JSON Pointer (RFC 6901); a pointer to what does not exist gives the place of its parent.
            key: the member's key instead of its value.
            offset, length: a part of the string found there.
        """
        span = self._span(pointer, key)
        if span is None or self.text is None:
            column = offset + 1 if offset is not None else 0
            return Place(self.file, 0, column, pointer, step, field), length or 1
        if offset is not None and span.value is not None:
            start = source_index(self.text, span.start, span.end, span.style, span.value, offset)
            end = source_index(
                self.text, span.start, span.end, span.style, span.value, offset + (length or 1)
            )
            line, column = self._line_column(start)
            return Place(self.file, line, column, pointer, step, field), max(1, end - start)
        line, column = self._line_column(span.start)
        first_line = self.text[span.start : span.end].split("\n", 1)[0].rstrip()
        width = len(first_line) if span.value is not None or first_line[:1] not in "[{" else 1
        return Place(self.file, line, column, pointer, step, field), max(1, width)

    def written(self, pointer: str) -> str | None:
        """A plain value as its author has put it; None for what has no text, or begins elsewhere."""
        span = self._span(pointer, False)
        if span is None or self.text is None:
            return None
        text = self.text[span.start : span.end].strip()
        return text if re.fullmatch(r"[0-9A-Za-z+._-]{1,40}", text) else None

    def _span(self, pointer: str, key: bool) -> Span | None:
        if self.text is None:
            return None
        if self._spans is None:
            self._spans = json_text.Spans(self.text) if self.format == "json" else yaml_text.Spans(self.text)
        parts = [unescape(part) for part in pointer.split("/")[1:]]
        span = self._spans.find(parts, key)
        while span is None and parts:
            parts.pop()
            span = self._spans.find(parts, key=True)
        return span

    def _line_column(self, index: int) -> tuple[int, int]:
        if self._lines is None:
            text = self.text or ""
            self._lines = [0, *(match.end() for match in re.finditer(r"\n|\r(?!\n)", text))]
        line = bisect.bisect_right(self._lines, index)
        return line, index - self._lines[line - 1] + 1

    def _add(self, problem: Problem) -> None:
        line, column = self._line_column(min(problem.start, len(self.text or "")))
        place = Place(self.file, line, column)
        self.findings.append(
            Diagnostic(problem.code, ERROR, problem.message, problem.help, place, problem.length)
        )


def unescape(part: str) -> str:
    """Returns a reference token of a JSON Pointer as the key it names."""
    return part.replace("~1", "/").replace("~0", "~") if "~" in part else part


def join(pointer: str, key: str | int) -> str:
    """Returns the JSON Pointer of a member of what `pointer` points to."""
    text = str(key)
    if "~" in text or "/" in text:
        text = text.replace("~", "~0").replace("/", "~1")
    return f"{pointer}/{text}"


def from_yaml(text: str | bytes, file: str | None = None) -> Document:
    """Reads YAML 1.2 (JSON is a part of it)."""
    return _from_text(text, file, "yaml")


def from_json(text: str | bytes, file: str | None = None) -> Document:
    """Reads JSON (RFC 8259), strictly."""
    return _from_text(text, file, "json")


def from_file(path: str | Path) -> Document:
    """Reads a file: `.json` as JSON, anything else as YAML.

    Raises:
        ProgramError: PROGRAM_UNREADABLE when the file cannot be opened or read.
    """
    name = str(path) if isinstance(path, str | Path) else f"a {type(path).__name__}"
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(BYTES_MAX + 1)
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        help = "check the path and its permissions"
        raise ProgramError(
            "PROGRAM_UNREADABLE", f"cannot read the program: {reason.lower()}", place=Place(name), help=help
        ) from error
    return from_json(data, name) if name.lower().endswith(".json") else from_yaml(data, name)


def _from_text(source: str | bytes, file: str | None, format: str) -> Document:
    if isinstance(source, bytes | bytearray):
        document = _decoded(bytes(source), file, format)
    elif not isinstance(source, str):
        document = Document(None, text="", file=file, format=format)
        message = f"a {type(source).__name__} is no text of a program"
        document._add(Problem("NOT_A_PROGRAM", message, "for a dict: Program.from_dict", 0, 1))
        return document
    else:
        text = source[1:] if source.startswith("\ufeff") else source
        document = Document(None, text=text, file=file, format=format)
        if len(text) > BYTES_MAX:
            document._add(_too_large())
    if document.findings:
        return document
    text = document.text or ""
    forbidden = _FORBIDDEN.search(text)
    if forbidden:
        message = f"the character U+{ord(forbidden[0]):04X} may not stand in a program"
        help = "remove it, or write it as an escape in double quotes"
        document._add(Problem("DOCUMENT_ENCODING", message, help, forbidden.start(), 1))
        return document
    loaded = json_text.load(text) if format == "json" else yaml_text.load(text)
    document.data = loaded.data
    for problem in loaded.problems:
        document._add(problem)
    if loaded.empty:
        document._add(
            Problem("NOT_A_PROGRAM", "the document is empty", "begin with `name:` and `steps:`", 0, 1)
        )
    return document


def _too_large() -> Problem:
    return Problem("DOCUMENT_TOO_LARGE", f"more than {BYTES_MAX} bytes", "split the program", 0, 1)


def _decoded(data: bytes, file: str | None, format: str) -> Document:
    document = Document(None, text="", file=file, format=format)
    if len(data) > BYTES_MAX:
        document._add(_too_large())
        return document
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        document._add(Problem("DOCUMENT_ENCODING", "the text is UTF-16", "save the file as UTF-8", 0, 1))
        return document
    try:
        document.text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        document.text = data.decode("utf-8-sig", "replace")
        index = document.text.find("\ufffd")
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8"
        document._add(Problem("DOCUMENT_ENCODING", message, "save the file as UTF-8", max(0, index), 1))
    return document


def from_data(data: Any) -> Document:
    """Copies a Python value; everything in it that JSON does not have is a finding."""
    document = Document(None)
    copier = _Copier(document)
    try:
        document.data = copier.copy(data, "", 0)
    except _Stop:
        document.data = None
    return document


class _Stop(Exception):
    pass


class _Copier:
    def __init__(self, document: Document) -> None:
        self._findings = document.findings
        self._nodes = 0
        self._open: set[int] = set()

    def _add(self, code: str, pointer: str, message: str, help: str) -> None:
        self._findings.append(Diagnostic(code, ERROR, message, help, Place(path=pointer)))

    def copy(self, value: Any, pointer: str, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return value if value.isascii() else self._text(value, pointer)
        if kind is bool or value is None:
            return value
        if kind is int or kind is float:
            return self._number(value, pointer)
        if kind is dict or kind is list or kind is tuple or isinstance(value, Mapping):
            return self._container(value, pointer, depth)
        # Enums that are strings or numbers stand for their plain value.
        if isinstance(value, str):
            return self._text(str.__str__(value), pointer)
        if isinstance(value, int):
            return self._number(int(value), pointer)
        if isinstance(value, float):
            return self._number(float(value), pointer)
        help = "use strings, numbers, booleans, None, lists and dicts"
        self._add("DOCUMENT_VALUE", pointer, f"a {kind.__name__} is not JSON", help)
        return None

    def _container(self, value: Any, pointer: str, depth: int) -> Any:
        if id(value) in self._open:
            self._add("DOCUMENT_ALIAS", pointer, "a container that contains itself", "write the value out")
            raise _Stop
        if depth >= DEPTH_MAX:
            self._add(
                "DOCUMENT_TOO_DEEP",
                pointer,
                f"nested more than {DEPTH_MAX} levels deep",
                "flatten the document",
            )
            raise _Stop
        self._nodes += len(value)
        if self._nodes > NODES_MAX:
            self._add("DOCUMENT_TOO_LARGE", pointer, f"more than {NODES_MAX} values", "split the program")
            raise _Stop
        self._open.add(id(value))
        try:
            if isinstance(value, list | tuple):
                return [self.copy(item, f"{pointer}/{index}", depth + 1) for index, item in enumerate(value)]
            result: dict[str, Any] = {}
            for key, item in value.items():
                if not isinstance(key, str):
                    self._add(
                        "DOCUMENT_KEY", pointer, f"a key of type {type(key).__name__}", "keys are strings"
                    )
                    continue
                name = str.__str__(key)
                where = join(pointer, name)
                result[name if name.isascii() else self._text(name, where)] = self.copy(
                    item, where, depth + 1
                )
            return result
        finally:
            self._open.discard(id(value))

    def _text(self, value: str, pointer: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self._add("DOCUMENT_STRING", pointer, "an unpaired surrogate", "remove it")
            return value.encode("utf-8", "replace").decode()
        return value

    def _number(self, value: int | float, pointer: str) -> int | float:
        if isinstance(value, int):
            if -INT_MAX <= value <= INT_MAX:
                return value
            message = "an integer beyond what JSON holds exactly (2^53-1)"
            self._add("DOCUMENT_NUMBER", pointer, message, "write it as a string if it is an identifier")
            return PLACEHOLDER
        if not math.isfinite(value):
            self._add(
                "DOCUMENT_NUMBER", pointer, "a number that is not finite", "leave the field out for no limit"
            )
            return PLACEHOLDER
        return whole(value)
