"""Programs that no new runs may be started of: what an operator, or the watch over drift, can do in time.

Runs that have begun go on; so do their children. Only what would begin is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nano_vm.errors import CapabilityDeniedError, InputError
from nano_vm.journal.port import DEFAULT_TENANT, Pause
from nano_vm.runtime.rights import ACT, check_right, principal_of

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

LOOK_MS = 500  # how long a pause that another process has set may go unnoticed
NAME_CHARS_MAX = 200
REASON_CHARS_MAX = 1_000


class Pausing:
    """Whether runs may begin: what is paused, as the store said within the last `LOOK_MS`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held: dict[tuple[str, str], Pause] = {}
        self._look_at_ms = 0

    def check(self, name: str, program_hash: str, tenant: str, now_ms: int) -> None:
        """Refuse to begin a run of a program that is paused.

        Raises:
            CapabilityDeniedError: PROGRAM_PAUSED.
        """
        if not self._look_at_ms - LOOK_MS <= now_ms < self._look_at_ms:  # clocks are also set back
            self._look(now_ms)
        if self._held:
            pause = self._held.get((tenant, name)) or self._held.get((tenant, program_hash))
            if pause is not None:
                raise CapabilityDeniedError(
                    "PROGRAM_PAUSED",
                    f"no runs of `{name}` are begun: {pause.reason or 'it is paused'}",
                    help="`nano-vm drift PROGRAM --resume` lets them begin again, or vm.lift_pause(…)",
                    facts={"program": name, "by": pause.by, "since_ms": pause.at_ms},
                )

    def _look(self, now_ms: int) -> None:
        found = self._engine.store.pauses()
        self._held = {(pause.tenant, pause.program): pause for pause in found}
        self._look_at_ms = now_ms + LOOK_MS

    def mark(
        self,
        program: str,
        paused: bool,
        reason: str,
        by: str | Mapping[str, Any] | None,
        tenant: str | None,
    ) -> Pause:
        """Pause a program, or let it run again; in this process at once.

        Raises:
            CapabilityDeniedError: CAPABILITY_DENIED. InputError: USAGE. StoreError: it cannot be written.
        """
        engine = self._engine
        check_right(engine.access, by, ACT)
        if type(program) is not str or not 0 < len(program) <= NAME_CHARS_MAX:
            raise InputError("USAGE", "a program is named by its name or its hash", help="vm.pause('refund')")
        if type(reason) is not str or len(reason) > REASON_CHARS_MAX:
            raise InputError("USAGE", f"a reason is a text of at most {REASON_CHARS_MAX} characters")
        whose = engine.whose(by, tenant) or DEFAULT_TENANT
        who = principal_of(by, whose)
        now = engine.clock.now_ms()
        pause = Pause(
            tenant=whose,
            program=program,
            paused=paused,
            reason=reason,
            by="" if who is None else who["id"],
            at_ms=now,
        )
        engine.store.mark_pause(pause)
        self._look(now)
        return pause
