"""The one error of the expression language: a code, and which characters of the source it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nano_vm.errors import ProgramError


class ExprError(ProgramError):
    """An expression, template or reference that cannot be accepted, or a value it cannot be applied to.

    Attributes:
        offset: index of the first offending character in the source; `0 <= offset <= len(source)`.
        length: how many characters, 0 at the end of the source and for nodes that were not parsed from text.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        offset: int = 0,
        length: int = 0,
        help: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message, help=help, facts=facts)
        self.offset = offset
        self.length = length
