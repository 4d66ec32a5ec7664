"""What is known of a provider: its circuit breaker and its record. Pure: time is data.

The breaker: CLOSED until `failures` attempts in a row have failed; then OPEN, nobody asks, for `cooldown_ms`; then one
call may probe (HALF_OPEN). Its success closes the circuit, its failure opens it for twice as long, up to a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

LEARNING = 0.2  # weight of the newest call in the running means
FADING_MS = 300_000  # after so long without a call, half of what is held against a provider is forgotten


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """When a circuit opens, and for how long."""

    failures: int = 3
    cooldown_ms: int = 10_000
    cooldown_max_ms: int = 300_000
    probe_ms: int = 60_000  # a probe that has not come back by then is given up


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One provider's record. Times are epoch milliseconds, 0 for never. `health` is the running share of successes,
    `latency_ms` the running mean of how long they took."""

    calls: int = 0
    failed: int = 0
    failures_in_row: int = 0
    health: float = 1.0
    last_error: str = ""
    last_failure_at_ms: int = 0
    last_success_at_ms: int = 0
    latency_ms: float = 0.0
    open_until_ms: int = 0
    opened_in_row: int = 0
    probing: bool = False

    def circuit(self, now_ms: int) -> str:
        """CLOSED, OPEN or HALF_OPEN."""
        if not self.open_until_ms:
            return "CLOSED"
        return "OPEN" if now_ms < self.open_until_ms else "HALF_OPEN"

    def faded(self, now_ms: int) -> tuple[float, float]:
        """(health, latency) as far as they still hold: without calls a provider gets its chance again."""
        last = max(self.last_failure_at_ms, self.last_success_at_ms)
        held = 0.5 ** (max(now_ms - last, 0) / FADING_MS)
        return 1.0 - (1.0 - self.health) * held, self.latency_ms * held


class Memory(Protocol):
    """Where records are kept. `update` is one step for all processes that share it."""

    def load(self) -> dict[str, Health]: ...

    def update(self, provider: str, change: Callable[[Health], Health]) -> Health: ...


class VolatileMemory:
    """Records of this process."""

    def __init__(self) -> None:
        self._known: dict[str, Health] = {}

    def load(self) -> dict[str, Health]:
        return dict(self._known)

    def update(self, provider: str, change: Callable[[Health], Health]) -> Health:
        changed = self._known[provider] = change(self._known.get(provider, Health()))
        return changed


def succeeded(health: Health, now_ms: int, latency_ms: int) -> Health:
    known = health.last_success_at_ms > 0
    latency = health.latency_ms + LEARNING * (latency_ms - health.latency_ms) if known else float(latency_ms)
    return msgspec.structs.replace(
        health,
        calls=health.calls + 1,
        failures_in_row=0,
        health=health.health + LEARNING * (1.0 - health.health),
        last_success_at_ms=now_ms,
        latency_ms=round(latency, 3),
        open_until_ms=0,
        opened_in_row=0,
        probing=False,
    )


def failed(health: Health, now_ms: int, breaker: Breaker, error: str, rest_ms: int = 0) -> Health:
    """After a failed attempt. `rest_ms`: how long the provider asked to be left alone."""
    failures = health.failures_in_row + 1
    opened, until = health.opened_in_row, health.open_until_ms
    # Calls that were under way when the circuit opened do not open it further.
    if failures >= breaker.failures and (health.probing or health.circuit(now_ms) != "OPEN"):
        pause = min(breaker.cooldown_ms * 2 ** min(opened, 32), breaker.cooldown_max_ms)
        opened, until = opened + 1, now_ms + pause
    until = max(until, now_ms + rest_ms) if rest_ms else until
    return msgspec.structs.replace(
        health,
        calls=health.calls + 1,
        failed=health.failed + 1,
        failures_in_row=failures,
        health=round(health.health * (1.0 - LEARNING), 9),
        last_error=error,
        last_failure_at_ms=now_ms,
        open_until_ms=until,
        opened_in_row=opened,
        probing=False,
    )


def claim_probe(health: Health, now_ms: int, breaker: Breaker) -> Health:
    """Take the one probe of a circuit that is HALF_OPEN: for all others it is OPEN again meanwhile."""
    return msgspec.structs.replace(health, open_until_ms=now_ms + breaker.probe_ms, probing=True)
