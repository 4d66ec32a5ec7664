"""What the tests of a store write into it, and how they say what they expect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.port import Durable, RunRecord, RunUpdate
from nano_vm.kernel.events import TimerFired

NOW = 1_790_000_000_000


class Draft:
    """A run in the making: its record, and a chain that seals as many entries as a test wants."""

    def __init__(self, run_id: str, owner: str | None = None, **fields: Any) -> None:
        self.run_id = run_id
        self.chain = Chain(run_id)
        self.record = RunRecord(
            run_id=run_id,
            program_hash=fields.pop("program_hash", canonical.digest(b"{}")),
            program_name=fields.pop("program_name", "refund"),
            created_at_ms=NOW,
            updated_at_ms=NOW,
            owner=owner,
            **fields,
        )

    def entries(
        self, count: int, payload: bytes | None = b'{"amount":5}', salt: bytes | None = None
    ) -> list[Entry]:
        """The next `count` entries; a salt that depends on the place makes them the same in every run of a
        test."""
        sealed = []
        for _ in range(count):
            seq = self.chain.length
            event = TimerFired(at_ms=NOW + seq, attempt=1, occurrence=seq + 1, step="wait")
            drawn = sha256(f"{self.run_id} {seq}".encode()).digest()[:16] if salt is None else salt
            sealed.append(self.chain.seal(event, drawn, payload))
        return sealed

    def update(self, status: str = "RUNNING", *, release: bool = False, **fields: Any) -> RunUpdate:
        """An update that describes the chain as it stands."""
        return RunUpdate(
            status=status,
            updated_at_ms=NOW + self.chain.length,
            length=self.chain.length,
            head=self.chain.head,
            release=release,
            **fields,
        )


async def settle(durable: Durable) -> None:
    """Wait until what a call has promised is durable."""
    if durable is not None:
        await durable


@contextlib.contextmanager
def refusal(code: str, **facts: Any) -> Iterator[None]:
    """The block must raise a nano-vm error with this code and these facts."""
    caught: NanoVMError | None = None
    try:
        yield
    except NanoVMError as error:
        caught = error
    if caught is None:
        raise AssertionError(f"expected {code}, nothing was raised")
    found = {name: caught.facts.get(name) for name in facts}
    assert (caught.code, found) == (code, facts), f"expected {code} {facts}, got {caught!r} {caught.facts}"
