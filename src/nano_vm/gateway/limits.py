"""Limits on what clients may ask: rates by token bucket, and how much at once. In memory, per process."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict

from nano_vm.gateway.config import Limits

CALLERS_MAX = 10_000  # buckets kept; the one not used for longest goes first


class Gate:
    """Counts the requests of callers (a principal, or an address)."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._at_once: defaultdict[str, int] = defaultdict(int)
        self.at_once = 0
        self.refused_total = 0

    def enter(self, caller: str) -> float | None:
        """None lets the request in (`leave` it afterwards); else the seconds after which to try again."""
        limits = self._limits
        if (
            self.at_once >= limits.concurrent_requests
            or self._at_once[caller] >= limits.concurrent_requests_per_principal
        ):
            self._tidy(caller)
            self.refused_total += 1
            return 1.0
        wait = self._take(caller)
        if wait > 0:
            self._tidy(caller)
            self.refused_total += 1
            return wait
        self.at_once += 1
        self._at_once[caller] += 1
        return None

    def leave(self, caller: str) -> None:
        self.at_once -= 1
        self._at_once[caller] -= 1
        self._tidy(caller)

    def _tidy(self, caller: str) -> None:
        if not self._at_once[caller]:
            del self._at_once[caller]

    def _take(self, caller: str) -> float:
        """Take one from the caller's bucket; the seconds until there is one."""
        rate = self._limits.requests_per_minute / 60.0
        most = max(float(self._limits.requests_per_minute), 1.0)
        now = time.monotonic()
        held, since = self._buckets.pop(caller, (most, now))
        held = min(most, held + (now - since) * rate)
        wait = 0.0 if held >= 1.0 else (1.0 - held) / rate
        self._buckets[caller] = (held - 1.0 if not wait else held, now)
        while len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)
        return wait
