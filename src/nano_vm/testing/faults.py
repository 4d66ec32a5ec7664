"""What can go wrong, and when: a plan of faults is data, so that it can be repeated and made smaller.

A simulation passes numbered *moments*: before and after every write to the journal, before and after every effect,
around every model call, and whenever the outside does something. A plan says what goes wrong at which of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Final

MOMENTS: Final[dict[str, tuple[str, ...]]] = {
    "write": ("crash", "disk_full"),  # before something is written
    "written": ("crash", "fsync_failed"),  # it is durable; the caller does not know yet
    "effect": ("crash", "refused", "failed"),  # a tool was called and has done nothing yet
    "effected": ("crash", "lost_answer", "hang", "oversized", "not_json"),  # the effect has happened
    "model": ("crash", "provider_down", "hang"),
    "modelled": ("crash", "garbage", "oversized"),
    "vault": ("crash",),  # before something is written or destroyed where the keys are
    "vaulted": ("crash",),
    "outside": (
        "duplicate",
        "corrupted",
        "oversized",
        "stranger",
        "late",
        "cancel",
        "clock_jump",
        "rival",
        "shutdown",
        "verify",
        "erase",
        "new_policy",
    ),
}
"""Kinds of moments, and what may go wrong at one of each kind.

`crash`: the process dies as by SIGKILL. `disk_full`: the store refuses, nothing is written. `fsync_failed`: the
store reports an error though the rows are there. `refused`, `failed`: the tool fails for good, or so that it may
be retried; nothing has happened. `lost_answer`: the connection breaks after the effect. `hang`: no answer for 90
seconds. `oversized`: an answer or event beyond every limit. `not_json`: an answer that is no data. `garbage`: a
model that answers anything, instructions to the engine included. `duplicate`, `corrupted`, `stranger`, `late`: an
event twice, with other content under the same id, from somebody without the role, or for a run that is over.
`cancel`: somebody cancels. `clock_jump`: the wall clock jumps by up to an hour, either way. `rival`: another
worker tries to take the run. `shutdown`: the process is asked to stop, and does so when it has let everything go.
`verify`: somebody verifies the run while it is being driven, and a bundle of it. `erase`: the data subject of a run
with private values is erased. `new_policy`: another policy is put in force.
"""


class Crash(GeneratorExit):
    """The simulated process dies. It passes through every `except Exception`, as a kill would."""


class FaultPlan:
    """Which fault happens at which moment.

    Args:
        seed: draws faults; ignored when `faults` is given.
        rate: the chance of a fault at one moment.
        only: kinds of faults that may happen; all by default.
        faults: a fixed plan, moment -> kind, as `Report.faults` holds it.
        budget: the most faults in one simulation: a run that only ever crashes cannot end.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        rate: float = 0.05,
        only: Iterable[str] | None = None,
        faults: Mapping[int, str] | None = None,
        budget: int = 40,
    ) -> None:
        self._draw = random.Random(seed)
        self._rate = rate
        self._only = None if only is None else frozenset(only)
        self._fixed = None if faults is None else dict(faults)
        self._budget = budget
        self.moment = 0
        self.happened: dict[int, str] = {}
        self.quiet = False

    def at(self, kind: str) -> str | None:
        """Pass a moment of this kind: the fault that happens now, or None."""
        if self.quiet:
            return None
        self.moment += 1
        if self._fixed is not None:
            fault = self._fixed.get(self.moment)
            if fault is not None and fault not in MOMENTS[kind]:
                fault = None  # a smaller plan has moved this moment elsewhere
        else:
            fault = self._drawn(kind)
        if fault is not None:
            self.happened[self.moment] = fault
        return fault

    def _drawn(self, kind: str) -> str | None:
        if self._draw.random() >= self._rate or len(self.happened) >= self._budget:
            return None
        choices = [fault for fault in MOMENTS[kind] if self._only is None or fault in self._only]
        return self._draw.choice(choices) if choices else None
