"""What the command line writes: lines for humans, or one JSON document.

Results go to standard output; progress notes, warnings and errors go to standard error. With `--json` standard output
holds JSON and nothing else.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any, TextIO

from nano_vm.observe.wording import compact, printable

__all__ = ["Console", "compact", "printable"]

_STYLES = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1", "busy": "36"}
_SYMBOLS = {
    "good": ("✓", "ok"),
    "bad": ("✗", "!!"),
    "busy": ("▸", ">"),
    "wait": ("⏸", "=="),
    "skip": ("–", "-"),
    "unknown": ("?", "?"),
    "dot": ("·", "-"),
}


class OutputLost(Exception):
    """Standard output takes nothing more: the disk it goes to is full, say."""


class Console:
    """Where a command writes.

    Args:
        json_only: standard output takes one JSON document; `line` is silent.
        quiet: no notes and no progress.
    """

    def __init__(
        self,
        *,
        json_only: bool = False,
        quiet: bool = False,
        debug: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.out = out if out is not None else sys.stdout
        self.err = err if err is not None else sys.stderr
        self.json_only = json_only
        self.quiet = quiet
        self.debug = debug
        self.documents = 0
        for stream in (self.out, self.err):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        self.is_terminal = _is_terminal(self.out)
        self.colour = _colours(self.out)
        self.colour_err = _colours(self.err)
        self._plain_symbols = not (getattr(self.out, "encoding", None) or "utf-8").lower().startswith("utf")

    def symbol(self, name: str) -> str:
        """A sign, in ASCII where the terminal has no other."""
        return _SYMBOLS[name][1 if self._plain_symbols else 0]

    def style(self, text: str, style: str | None) -> str:
        if style is None or not self.colour:
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line of the result; nothing with `--json`."""
        if not self.json_only:
            self._put(self.style(text, style))

    def note(self, text: str, style: str | None = None) -> None:
        """A line beside the result, on standard error; nothing with `--quiet`."""
        if not self.quiet:
            self.complain(text, style)

    def complain(self, text: str, style: str | None = None) -> None:
        """A line on standard error, always."""
        if style is not None and self.colour_err:
            text = f"\x1b[{_STYLES[style]}m{text}\x1b[0m"
        self.err.write(text + "\n")
        self.err.flush()

    def document(self, value: Any) -> None:
        """The one JSON document of `--json`; nothing without it."""
        if self.json_only:
            self.documents += 1
            self._put(json.dumps(value, indent=2, ensure_ascii=self._plain_symbols))

    def json_line(self, value: Any) -> None:
        """One line of JSONL."""
        self.documents += 1
        self._put(json.dumps(value, ensure_ascii=self._plain_symbols))

    def _put(self, text: str) -> None:
        try:
            self.out.write(text + "\n")
            self.out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLost(error.strerror or type(error).__name__) from error


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _colours(stream: TextIO) -> bool:
    return _is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
