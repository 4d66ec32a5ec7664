"""Escalation: what happens when the runs of a program go another way than they used to - before it is worse.

It listens to an engine. When a run of the program ends, its trajectory goes to the monitor; when the health changes,
somebody is alerted, and when it has become bad enough no new runs are begun until a person lifts the pause.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from nano_vm.errors import NanoVMError, StoreError
from nano_vm.kernel import events as ev
from nano_vm.observe.archetypes import ArchetypeMonitor, ArchetypeReport
from nano_vm.observe.drift import DriftMonitor, Health, Report
from nano_vm.observe.trajectory import of_trace

if TYPE_CHECKING:
    from nano_vm.journal.port import Pause
    from nano_vm.runtime.engine import Engine, Progress

AnyReport: TypeAlias = Report | ArchetypeReport
BY = "drift-watch"
_ORDER = list(Health)


class Escalation:
    """Watches the runs that an engine ends, of one version of a program: the one that the monitor's baseline is of.

    Args:
        engine: whose runs; it is listened to from then on, until `close`.
        monitor: with its baseline; how healthy runs are is its to say.
        alert: is told the report whenever the health changes. What it raises goes to the event loop's handler, as of
            every listener; no run is held up by it.
        pause_at: from this health on no new runs of the program are begun (`Engine.pause`); None never.
        tenant: whose runs; those of all tenants count when None, and the default one's program is paused.
    """

    def __init__(
        self,
        engine: Engine,
        monitor: DriftMonitor | ArchetypeMonitor,
        *,
        alert: Callable[[AnyReport], None] | None = None,
        pause_at: Health | None = Health.DEGRADED,
        tenant: str | None = None,
    ) -> None:
        self.monitor = monitor
        self.left_out = 0  # runs whose journals could not be read
        self._engine = engine
        self._alert = alert
        self._pause_at = pause_at
        self._tenant = tenant
        source = monitor.baseline if isinstance(monitor, DriftMonitor) else monitor.archetypes
        self.program = source.program
        self._told = monitor.health
        self._paused = False
        engine.listeners.append(self.hear)

    def close(self) -> None:
        """Stop listening. A pause stays."""
        if self.hear in self._engine.listeners:
            self._engine.listeners.remove(self.hear)

    def hear(self, run_id: str, progress: Progress) -> None:
        """One event that has become durable."""
        if type(progress.event) is not ev.RunFinished:
            return
        try:
            record = self._engine.store.record(run_id)
            if record.program_hash != self.program or self._tenant not in (None, record.tenant):
                return
            trajectory = of_trace(self._engine.trace(run_id))
        except NanoVMError:
            self.left_out += 1
            return
        health = self.monitor.observe(trajectory)
        bad = self._pause_at is not None and _ORDER.index(health) >= _ORDER.index(self._pause_at)
        if not bad:
            self._paused = False
        elif not self._paused:
            self._paused = self._pause(health)
        if health is not self._told:
            self._told = health
            if self._alert is not None:
                self._alert(self.monitor.report())

    def _pause(self, health: Health) -> bool:
        """Pause the program; a store that is busy is asked again when the next run ends."""
        try:
            pause_drifting(self._engine, self.program, health, self.monitor.report(), tenant=self._tenant)
        except StoreError:
            return False
        return True


def pause_drifting(
    engine: Engine, program: str, health: Health, report: AnyReport, *, tenant: str | None = None
) -> Pause:
    """Pause a program, with what was found as the reason.

    Raises:
        StoreError: it cannot be written now.
    """
    found = report if isinstance(report, Report) else report.worst.report
    first = found.evidence[0] if found.evidence else None
    why = (
        "" if first is None else f": `{first['from']}` is followed by `{first['to']}` more often than it was"
    )
    by = {"id": BY, "roles": ["operator"]} | ({} if tenant is None else {"tenant": tenant})
    return engine.pausing.mark(program, True, f"its runs are {health.value}{why}", by, tenant)
