"""Findings as data, and how a human reads them (STYLE §6).

A `Diagnostic` is one finding about a program: a stable code, where it is, what is wrong and how to mend it.
Nothing in here decides anything; document loading, field validation and the compiler make diagnostics, the
command line shows them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import msgspec

from nano_vm.errors import Place, ProgramError

ERROR = "error"
WARNING = "warning"

# A line of a minified document must not flood the terminal: this much is shown around the caret.
_EXCERPT_WIDTH = 100


class Diagnostic(msgspec.Struct, frozen=True):
    """One finding.

    `place.line` and `place.column` are 1-based; where the document has no text (a dict), `line` is 0,
    `place.path` is the JSON Pointer and `column`, when not 0, counts within the string found there. `length`
    is the width of the culprit in characters (at least 1).
    """

    code: str
    severity: str  # "error" or "warning"
    message: str
    help: str | None
    place: Place
    length: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Returns the finding as JSON: code, severity, file, line, column, length, path, step, field,
        message, help."""
        place = self.place
        return {
            "code": self.code,
            "severity": self.severity,
            "file": place.file,
            "line": place.line,
            "column": place.column,
            "length": self.length,
            "path": place.path,
            "step": place.step,
            "field": place.field,
            "message": self.message,
            "help": self.help,
        }


def render(diagnostic: Diagnostic, source_text: str | None = None) -> str:
    """Returns a finding for humans: code and message, place, the source line with carets, help.

    Args:
        source_text: the text of the document; without it (dicts) the excerpt is left out.
    """
    mark = "" if diagnostic.severity == ERROR else f"{diagnostic.severity}: "
    lines = [f"{mark}{diagnostic.code} {diagnostic.message}"]
    where = str(diagnostic.place)
    if where:
        lines.append(f"  at {where}")
    if source_text is not None and diagnostic.place.line:
        lines.extend(_excerpt(source_text, diagnostic.place.line, diagnostic.place.column, diagnostic.length))
    if diagnostic.help:
        lines.append(f"  help: {diagnostic.help}")
    return "\n".join(lines)


def _excerpt(text: str, line: int, column: int, length: int) -> list[str]:
    source = _line(text, line)
    start = max(column - 1, 0)
    offset = max(0, start - _EXCERPT_WIDTH // 2) if len(source) > _EXCERPT_WIDTH else 0
    shown = source[offset : offset + _EXCERPT_WIDTH]
    # The caret line repeats tabs so that it stays aligned however wide the terminal draws them.
    lead = "".join("\t" if character == "\t" else " " for character in shown[: start - offset])
    carets = "^" * max(1, min(length, len(shown) - len(lead)))
    number = str(line)
    gutter = " " * len(number)
    return [f"  {gutter} |", f"  {number} | {_printable(shown)}", f"  {gutter} | {lead}{carets}"]


def _line(text: str, line: int) -> str:
    position = 0
    for _ in range(line - 1):
        found = text.find("\n", position)
        if found < 0:
            return ""
        position = found + 1
    end = text.find("\n", position)
    return text[position : end if end >= 0 else len(text)].rstrip("\r")


def _printable(text: str) -> str:
    # A program file is somebody else's text: escape sequences in it must not reach the terminal.
    return "".join(character if character.isprintable() or character == "\t" else "�" for character in text)


def sort(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Returns the findings by place, errors before warnings at the same place, each once."""
    unique = dict.fromkeys(diagnostics)
    return sorted(
        unique,
        key=lambda d: (d.place.line, d.place.column, _natural(d.place.path), d.severity != ERROR, d.code),
    )


def _natural(path: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), "") if part.isdecimal() and len(part) < 12 else (1, 0, part)
        for part in path.split("/")
    ]


def quote(text: str) -> str:
    """Returns user text in backticks, shortened and safe for a terminal."""
    text = text if len(text) <= 60 else f"{text[:57]}…"
    return f"`{_printable(text)}`"


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """Returns "did you mean `…`?" for the closest candidate, or None."""
    best = closest(name, candidates)
    return f"did you mean {quote(best)}?" if best is not None else None


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate that `name` was probably meant to be, or None."""
    if len(name) > 80:
        return None
    # Comparing with thousands of names takes seconds; those of similar length are enough.
    near = [candidate for candidate in candidates if abs(len(candidate) - len(name)) <= 6][:2_000]
    folded = {candidate.lower(): candidate for candidate in near}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def to_error(diagnostics: list[Diagnostic]) -> ProgramError:
    """Returns the exception for a list of findings with at least one error.

    Its code is that of the only error, or INVALID_PROGRAM for several; `diagnostics` holds all findings,
    `facts["findings"]` the same as JSON.
    """
    errors = [diagnostic for diagnostic in diagnostics if diagnostic.severity == ERROR]
    first = errors[0]
    if len(errors) == 1:
        code, message = first.code, first.message
    else:
        code, message = "INVALID_PROGRAM", f"{len(errors)} errors, the first: {first.code} {first.message}"
    error = ProgramError(code, message, place=first.place, help=first.help)
    error.facts["findings"] = [diagnostic.to_dict() for diagnostic in diagnostics[:100]]
    error.diagnostics = list(diagnostics)  # type: ignore[attr-defined]
    return error
