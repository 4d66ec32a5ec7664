"""Runs for readers who may see no private value: what is sealed stays sealed, and says so.

A trace that is made from stored entries, without any key, has a tombstone wherever a value is sealed. Whether the value
is there for those who hold the key, or gone for everybody, its journal says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from nano_vm import canonical
from nano_vm.expr.reference import ERASED
from nano_vm.journal.entry import Entry, erased_keys
from nano_vm.journal.trace import TraceStep

PRIVATE: Final = "[PRIVATE]"  # sealed under a key that is not used here


_GIVEN = ERASED.encode()


class Veil:
    """Shows the values of one run.

    Args:
        entries: of the run, as they are stored: unopened.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.erased = bool(erased_keys(entries))

    def value(self, value: Any) -> Any:
        """A value as it may be seen; shares nothing with what is given when there is something to hide."""
        if self.erased:
            return value
        if isinstance(value, str):
            return value.replace(ERASED, PRIVATE)
        if type(value) not in (dict, list):
            return value
        encoded = canonical.encode(value)
        if _GIVEN not in encoded:
            return value
        return canonical.decode(encoded.replace(_GIVEN, PRIVATE.encode()))

    def steps(self, steps: Sequence[TraceStep]) -> list[TraceStep]:
        """Steps with their outputs and errors as they may be seen."""
        return [
            step
            if self.erased
            else msgspec.structs.replace(step, output=self.value(step.output), error=self.value(step.error))
            for step in steps
        ]
