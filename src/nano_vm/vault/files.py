"""What a vault holds besides keys, each in a file of its own: secrets, the data keys of subjects, legal holds.

A file's name is the handle of whom it is about, so that it tells nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from nano_vm import canonical
from nano_vm.errors import CapabilityDeniedError
from nano_vm.vault.cabinet import Cabinet
from nano_vm.vault.keys import damaged

_T = TypeVar("_T")


class SecretFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored of a secret. `tools` are the tools that may open it; empty: any tool entitled to a secret."""

    id: str
    tenant: str
    tools: list[str]
    key: str
    created_at_ms: int
    changed_at_ms: int
    sealed: str  # base64


class SubjectFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data keys of one subject, oldest first; the last one is for new values."""

    handle: str
    tenant: str
    keys: list[str]


class Hold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Forbids an erasure."""

    handle: str
    tenant: str
    kind: str
    reason: str
    by: dict[str, Any]
    at_ms: int


_decode_secret = msgspec.json.Decoder(SecretFile).decode
_decode_subject = msgspec.json.Decoder(SubjectFile).decode
_decode_hold = msgspec.json.Decoder(Hold).decode


class Files:
    """Reads and writes them. Raises (all that read): VaultError VAULT_DAMAGED."""

    def __init__(self, cabinet: Cabinet) -> None:
        self._cabinet = cabinet

    def secret(self, handle: str) -> SecretFile | None:
        return self._read("secrets", handle, _decode_secret, "a secret's file cannot be read")

    def subject(self, handle: str) -> SubjectFile | None:
        """The keys of a subject as they are written down, those that an erasure names included."""
        return self._read("subjects", handle, _decode_subject, "a subject's keys cannot be read")

    def check_hold(self, handle: str) -> None:
        """Raises CapabilityDeniedError ERASURE_HELD where there is a legal hold."""
        hold = self._read("holds", handle, _decode_hold, "a legal hold cannot be read")
        if hold is not None:
            raise CapabilityDeniedError(
                "ERASURE_HELD",
                "a legal hold forbids the erasure",
                help="`nano-vm vault release` ends the hold, by whoever may",
                facts={"reason": hold.reason, "by": hold.by, "at_ms": hold.at_ms},
            )

    def write_secret(self, handle: str, file: SecretFile) -> None:
        self._write("secrets", handle, file)

    def write_subject(self, file: SubjectFile) -> SubjectFile:
        self._write("subjects", file.handle, file)
        return file

    def write_hold(self, file: Hold) -> None:
        self._write("holds", file.handle, file)

    def _read(self, drawer: str, handle: str, decode: Callable[[bytes], _T], problem: str) -> _T | None:
        data = self._cabinet.read(drawer, handle)
        if data is None:
            return None
        try:
            return decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise damaged(problem, handle) from None

    def _write(self, drawer: str, handle: str, file: msgspec.Struct) -> None:
        self._cabinet.write(drawer, handle, canonical.encode(msgspec.to_builtins(file)) + b"\n")
