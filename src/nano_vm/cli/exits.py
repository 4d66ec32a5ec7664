"""Exit codes (STYLE §6). Errors carry their own, see `nano_vm.errors.CODES`."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INVALID: Final = 3
DENIED: Final = 4
VERIFICATION: Final = 5
SUSPENDED: Final = 6
STOPPED: Final = 7
BUG: Final = 70
INTERRUPTED: Final = 130  # 128 + SIGINT
TERMINATED: Final = 143  # 128 + SIGTERM

_OF_STATUS = {
    "SUCCESS": DONE,
    "FAILED": FAILED,
    "SUSPENDED": SUSPENDED,
    "RUNNING": FAILED,  # let go before its end: `recover` takes it up
    "BUDGET_EXCEEDED": STOPPED,
    "STALLED": STOPPED,
    "CANCELLED": STOPPED,
}


# What ends a run FAILED because somebody, or the policy, did not allow it.
_DENIALS = frozenset({"CapabilityDeniedError", "APPROVAL_DENIED", "APPROVAL_EXPIRED"})


def of_status(status: str, error: str | None = None) -> int:
    """The exit code of a command that drove a run to this status; `error` is the type of what ended it."""
    if error in _DENIALS:
        return DENIED
    return _OF_STATUS[status]
