"""The list of erasures: which keys are to be destroyed, written down before any is, and never taken back.

It lies beside the keys, one JSON object a line, each naming the digest of the line before. An erasure goes through
the stages begun, destroyed, done - and whoever opens the vault after a crash finds where it stopped. A key that the
list names is dead, whatever a back-up brings back - but for one stage before these: while its subject's runs are being
stopped, what must be undone can still be read. From that stage on the erasure is decided: no legal hold is taken.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import VaultError
from nano_vm.vault.cabinet import Cabinet

STOPPING, BEGUN, DESTROYED, DONE = "stopping", "begun", "destroyed", "done"


class Erasure(msgspec.Struct, forbid_unknown_fields=True):
    """One erasure. `target` is a secret's reference, or the handle of a subject; `keys` are ids of data keys; `recall`
    has for each concerned run what its journal needs to be folded without the values (`nano_vm.journal.recall`)."""

    id: str
    tenant: str
    kind: str  # "subject" or "secret"
    target: str
    keys: list[str]
    at_ms: int
    by: dict[str, Any]
    reason: str
    stage: str = BEGUN
    runs: list[str] = []
    recall: dict[str, Any] = {}


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    erasure: dict[str, Any]
    prev: str


_decode = msgspec.json.Decoder(_Line).decode
_FIRST = "sha256:" + "0" * 64


class Erasures:
    """The list, read again whenever another process has written to it."""

    def __init__(self, cabinet: Cabinet) -> None:
        self._cabinet = cabinet
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, Erasure] = {}
        self._keys: dict[str, Erasure] = {}
        self._head = _FIRST

    def all(self) -> list[Erasure]:
        """Oldest first, each at its last stage."""
        self._refresh()
        return list(self._known.values())

    def of_key(self, key_id: str) -> Erasure | None:
        """The erasure that a key is dead by."""
        self._refresh()
        return self._keys.get(key_id)

    def find(self, erasure_id: str) -> Erasure | None:
        self._refresh()
        return self._known.get(erasure_id)

    def write(self, erasure: Erasure, **changes: Any) -> Erasure:
        """Write an erasure down as it stands now, durably."""
        with self._cabinet.lock():
            self._refresh()
            stands = msgspec.structs.replace(erasure, **changes)
            plain = canonical.encode({"erasure": msgspec.to_builtins(stands), "prev": self._head})
            self._cabinet.add_line(plain)
            self._refresh()
        return stands

    def _refresh(self) -> None:
        stamp = self._cabinet.stamp()
        if stamp == self._stamp:
            return
        known: dict[str, Erasure] = {}
        keys: dict[str, Erasure] = {}
        head = _FIRST
        for line in self._cabinet.lines():
            try:
                read = _decode(line)
                erasure = msgspec.convert(read.erasure, Erasure)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise _damaged() from None
            if read.prev != head:
                raise _damaged()
            head = canonical.digest(line)
            known[erasure.id] = erasure
            for key_id in erasure.keys if erasure.stage != STOPPING else ():
                keys[key_id] = erasure
        self._known, self._keys, self._head, self._stamp = known, keys, head, stamp


def _damaged() -> VaultError:
    return VaultError(
        "VAULT_DAMAGED",
        "the list of erasures was changed or cut",
        help="restore `erasures.jsonl` from a back-up: without it nobody knows which keys have to stay dead",
        facts={"name": "erasures.jsonl"},
    )
