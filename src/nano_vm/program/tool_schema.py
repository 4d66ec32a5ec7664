"""What the compiler is told about a tool."""

from __future__ import annotations

import re
from typing import Any

import msgspec


class ToolSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as the compiler sees it.

    `parameters` is the JSON Schema (2020-12) of the object of arguments; `effect` the effect class of SPEC §7
    (`pure`, `idempotent`, `keyed`, `transactional`, `reconcilable`, `irreversible`); `output` the JSON Schema
    of the result, where known. `protected` names the parameters that take trusted values only, `output_label` is
    what the output counts as (`trusted`, `untrusted`, `secret`; None: what its arguments are). A tool that
    `may_suspend` may answer PENDING: then somebody else's event becomes its output.
    `description` is what a model is told of it.
    """

    name: str
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object"})
    effect: str = "irreversible"
    output: dict[str, Any] | None = None
    protected: tuple[str, ...] = ()
    output_label: str | None = None
    description: str = ""
    may_suspend: bool = True

    @property
    def is_labelled(self) -> bool:
        """Whether labels have to be tracked in a run that calls it."""
        return bool(self.protected) or self.output_label == "secret"


_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")
OFFERED_CHARS_MAX = 64


def offered_name(tool: str) -> str:
    """The name under which a model is offered a tool: models know letters, digits, `_` and `-`, and 64 of them."""
    return _NO_NAME.sub("_", tool)[:OFFERED_CHARS_MAX]
