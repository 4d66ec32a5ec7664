"""What was read from a database, kept for as long as nobody has written to it since."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
KEPT_MAX = 64


class Remembered:
    """Answers of rows that hardly ever change, each asked for by every engine that is made.

    Args:
        version: a number that changes when others commit; None when it cannot be told now.
    """

    def __init__(self, version: Callable[[], int | None]) -> None:
        self._version = version
        self._mutex = threading.Lock()  # guards the fields below
        self._seen: int | None = None
        self._turn = 0  # changes whenever something is forgotten
        self._kept: dict[tuple[str, ...], Any] = {}

    def ask(self, key: tuple[str, ...], read: Callable[[], T]) -> T:
        """`read()`, or what it gave when nobody has written since."""
        version = self._version()
        if version is None:
            return read()
        with self._mutex:
            if version != self._seen:
                self._seen = version
                self._forget()
            if key in self._kept:
                found: T = self._kept[key]
                return found
            turn = self._turn
        found = read()
        with self._mutex:
            if turn == self._turn:  # else somebody has written while it was read
                if len(self._kept) >= KEPT_MAX:
                    self._forget()
                self._kept[key] = found
        return found

    def forget(self) -> None:
        """We have written ourselves."""
        with self._mutex:
            self._forget()

    def _forget(self) -> None:
        self._turn += 1
        self._kept.clear()
