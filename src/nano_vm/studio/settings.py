"""What one studio was started with. It is one per process, as its server is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nano_vm.program.tool_schema import ToolSchema
from nano_vm.runtime.rights import ACT, APPROVE, READ, RIGHTS, VERIFY

if TYPE_CHECKING:
    from nano_vm.journal.port import JournalStore
    from nano_vm.policy.model import Policy
    from nano_vm.studio.desk import Desk


class SecretLine(NamedTuple):
    """A secret of the vault, without its value."""

    reference: str
    tools: tuple[str, ...]
    changed_at_ms: int
    held: bool


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """What the pages may know of how the studio was started.

    Attributes:
        path: the database's file, None for a store that has none.
        open_store: opens it, for reading.
        desk: acts for the principal; None where nobody may act.
        secrets: lists the vault's secrets; None where no vault is at hand.
        schemas: of the tools that were given, None when none were: then flows to them cannot be proved.
        policy: the one in force here. shown: how the command was called, for commands that can be copied.
        key: what a browser has to show before it is let in; None lets everybody in.
    """

    open_store: Callable[[], JournalStore]
    path: Path | None = None
    principal: Mapping[str, Any] | None = None
    tenant: str | None = None
    desk: Desk | None = None
    secrets: Callable[[], list[SecretLine]] | None = None
    schemas: Mapping[str, ToolSchema] | None = None
    policy: Policy | None = None
    command: Callable[..., str] | None = None
    key: str | None = None
    seconds: float = 2.0  # between two looks at the store

    @property
    def rights(self) -> frozenset[str]:
        return rights_of(self.principal)

    def may(self, right: str) -> bool:
        """Whether whoever sits before the studio may do this, with somebody there to do it."""
        return right in self.rights and (self.desk is not None or right in (READ, VERIFY))


def rights_of(principal: Mapping[str, Any] | None) -> frozenset[str]:
    """What a principal may do in the studio: read and verify, and more only with a role that says so. A role of one's
    own lets its holder answer the approvals that ask for it."""
    roles = [] if principal is None else list(principal.get("roles", ()))
    ours = [RIGHTS[role] for role in roles if role in RIGHTS]
    if ours:
        return frozenset().union(*ours)
    return frozenset({READ, VERIFY, APPROVE}) if roles else frozenset({READ, VERIFY})


_current: Settings | None = None


def use(settings: Settings) -> None:
    """Put the settings of this process in place."""
    global _current
    _current = settings


def current() -> Settings:
    """The settings of this process."""
    if _current is None:
        raise RuntimeError("the studio is started by `nano-vm studio`")
    return _current


__all__ = ["ACT", "APPROVE", "READ", "VERIFY", "SecretLine", "Settings", "current", "rights_of", "use"]
